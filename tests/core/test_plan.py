"""The plan: what each model takes, where it fits and with whom, and what to change where it does not."""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.fleet import Engine, Fleet, Gpu, GpuSample, Learnt, ModelSpec, Stranger
from supervisord_llm.core.planning import together
from supervisord_llm.core.planning.plan import ModelPlan, Plan, as_json, plan
from supervisord_llm.core.planning.together import Need, largest_sets
from supervisord_llm.core.state import State

GIB = 1024**3


def gpu(index: int, budget_gib: float = 20, total_gib: float = 24) -> Gpu:
    return Gpu(
        index=index,
        uuid=f"GPU-{index}",
        name="Card",
        total_bytes=int(total_gib * GIB),
        budget_bytes=int(budget_gib * GIB),
    )


def estimate(
    weights_gib: float, *, length: int = 32768, sequences: int = 4, overhead_gib: float = 1
) -> Estimate:
    """1 GiB of KV cache for each 32768 tokens."""
    per_token = GIB // 32768
    return Estimate(
        weights_bytes=int(weights_gib * GIB),
        kv_bytes=per_token * length * sequences,
        least_kv_bytes=per_token * length,
        overhead_bytes=int(overhead_gib * GIB),
        host_bytes=int(weights_gib * GIB),
        max_model_len=length,
        sequences=sequences,
        kv_bytes_per_token=per_token,
    )


def engine(name: str, sizes: Estimate | None = None, *, state: State = State.STOPPED, **spec: Any) -> Engine:
    learnt = spec.pop("learnt", Learnt())
    asked = ModelSpec(**{"name": name, "pinned": None} | spec)
    return Engine(spec=asked, estimate=sizes, learnt=learnt, state=state)


def fleet(*engines: Engine, gpus: tuple[Gpu, ...] = (gpu(0),), samples: tuple[GpuSample, ...] = ()) -> Fleet:
    return Fleet(
        engines=MappingProxyType({each.name: each for each in engines}),
        gpus=MappingProxyType({each.index: each for each in gpus}),
        samples=MappingProxyType({each.index: each for each in samples}),
    )


def only(made: Plan) -> ModelPlan:
    (found,) = made.models
    return found


def sets(made: Plan) -> list[tuple[str, ...]]:
    return [each.models for each in made.together]


# --- figures ----------------------------------------------------------------------------------


def test_an_estimate_is_split_into_weights_cache_and_overhead() -> None:
    found = only(plan(fleet(engine("m", estimate(5)))))
    assert (found.source, found.where, found.grant_bytes) == ("estimated", "any GPU", 10 * GIB)
    assert (found.weights_bytes, found.kv_bytes, found.overhead_bytes) == (5 * GIB, 4 * GIB, GIB)
    assert (found.max_model_len, found.full_sequences) == (32768, 4.0)
    assert found.fits
    assert found.suggestions == ()


def test_a_card_with_less_than_it_would_like_gives_what_it_has() -> None:
    found = only(plan(fleet(engine("m", estimate(17)))))
    assert (found.grant_bytes, found.kv_bytes, found.full_sequences) == (20 * GIB, 2 * GIB, 2.0)


def test_what_was_measured_wins_over_what_was_estimated() -> None:
    learnt = Learnt(footprint_bytes=9 * GIB, kv_bytes=3 * GIB)
    found = only(plan(fleet(engine("m", estimate(5), learnt=learnt))))
    assert (found.source, found.grant_bytes, found.kv_bytes) == ("measured", 9 * GIB, 3 * GIB)
    assert found.overhead_bytes == GIB


def test_what_is_configured_wins_over_all_and_the_cache_is_what_the_rest_leaves() -> None:
    learnt = Learnt(footprint_bytes=9 * GIB)
    found = only(plan(fleet(engine("m", estimate(5), learnt=learnt, grant=12 * GIB))))
    assert (found.source, found.grant_bytes, found.kv_bytes) == ("configured", 12 * GIB, 6 * GIB)


def test_nothing_known_takes_the_whole_budget() -> None:
    found = only(plan(fleet(engine("m"))))
    assert (found.source, found.grant_bytes, found.weights_bytes) == ("whole budget", 20 * GIB, None)


@pytest.mark.parametrize("gpus", [(gpu(0),), ()])
def test_a_model_on_the_cpu_takes_no_gpu(gpus: tuple[Gpu, ...]) -> None:
    found = only(plan(fleet(engine("m", pinned=() if gpus else None), gpus=gpus)))
    assert (found.source, found.where, found.grant_bytes, found.on, found.fits) == (
        "no GPU",
        "the CPU",
        None,
        (),
        True,
    )


def test_where_it_may_run_is_told_in_words() -> None:
    made = plan(
        fleet(
            engine("any", grant=GIB),
            engine("one", grant=GIB, pinned=(1,)),
            engine("both", grant=GIB, pinned=(0, 1)),
            engine("split", grant=GIB, gpu_count=2),
            gpus=(gpu(0), gpu(1)),
        )
    )
    assert [model.where for model in made.models] == ["any GPU", "GPU 1", "GPU 0 and 1", "2 equal GPUs"]
    assert [[on.gpu for on in model.on] for model in made.models] == [[0, 1], [1], [0, 1], [0, 1]]


def test_gpus_tell_who_holds_them_and_what_others_use() -> None:
    up = replace(
        engine("up", grant=5 * GIB),
        state=State.READY,
        gpus=(0,),
        granted_bytes=(5 * GIB,),
        awake_bytes=(5 * GIB,),
    )
    blender = Stranger(pid=4711, name="blender", used_bytes=6 * GIB)
    sample = GpuSample(index=0, at=1.0, used_bytes=10 * GIB, engines={"up": 4 * GIB}, strangers=(blender,))
    first, second = plan(fleet(up, gpus=(gpu(0), gpu(1)), samples=(sample,))).gpus
    assert (first.held_bytes, first.used_bytes, first.foreign_bytes) == (5 * GIB, 10 * GIB, 6 * GIB)
    assert (first.free_bytes, first.models, first.strangers) == (13 * GIB, ("up",), (blender,))
    assert (second.used_bytes, second.foreign_bytes, second.free_bytes) == (None, None, 20 * GIB)


# --- what does not fit --------------------------------------------------------------------------


def test_too_much_context_for_any_card_is_told_with_the_length_that_fits() -> None:
    found = only(plan(fleet(engine("m", estimate(15, length=262144)))))
    assert not found.fits
    assert found.why_not == "cannot start m: it needs 24.0 GiB of a budget of 20.0 GiB on GPU 0"
    assert found.suggestions == ("fits with max-model-len 131072",)


def test_too_large_a_grant_is_told_with_one_that_fits() -> None:
    found = only(plan(fleet(engine("m", estimate(15), grant=22 * GIB))))
    assert found.suggestions == ('fits with vram = "17.0GiB" or more',)
    blind = only(plan(fleet(engine("m", grant=22 * GIB))))
    assert blind.suggestions == ('fits the budget with vram = "20.0GiB"',)


def test_too_small_a_grant_for_one_sequence_is_told_before_vllm_does() -> None:
    untried = engine("m", estimate(5, length=131072), grant=8 * GIB)
    found = only(plan(fleet(untried)))
    assert (found.fits, found.why_not) == (True, "")
    assert found.doubt == (
        "m may not start: its grant is 8.0 GiB, and one sequence of 131072 tokens needs about 10.0 GiB"
    )
    assert sets(plan(fleet(untried))) == [("m",)], "the daemon lets it try"
    assert found.suggestions == (
        'fits with vram = "10.0GiB" or more',
        "fits with max-model-len 65536",
    )


def test_another_gpu_or_two_together_are_told() -> None:
    small, large = gpu(0, 8, 10), gpu(1, 20)
    assert only(plan(fleet(engine("m", estimate(12), pinned=(0,)), gpus=(small, large)))).suggestions == (
        "fits on GPU 1",
    )
    made = plan(fleet(engine("m", estimate(30)), gpus=(gpu(0), gpu(1), gpu(2, 8, 10))))
    assert only(made).suggestions == ("fits with tensor_parallel = 2",)
    made = plan(fleet(engine("m", estimate(30), pinned=(0,)), gpus=(gpu(0), gpu(1))))
    assert only(made).suggestions == ("fits with tensor_parallel = 2 and gpus = [0, 1]",)


def test_ranks_take_equal_cards() -> None:
    found = only(plan(fleet(engine("m", grant=4 * GIB, gpu_count=2), gpus=(gpu(0), gpu(1, 8, 10)))))
    assert found.why_not == "cannot start m: it takes 2 equal GPUs, and there are 1 with room for it"


def test_what_the_host_lacks_is_told_as_when_it_is_asked_for() -> None:
    made = plan(fleet(engine("off", disabled="cannot start off: no such GPU"), engine("far", pinned=(3,))))
    assert made.models[0].why_not == "cannot start off: no such GPU"
    assert "it is pinned to GPU 3 and this host has GPU 0" in made.models[1].why_not


def test_programs_in_the_way_are_named() -> None:
    blender = Stranger(pid=4711, name="blender", used_bytes=12 * GIB)
    sample = GpuSample(index=0, at=1.0, used_bytes=12 * GIB, engines={}, strangers=(blender,))
    found = only(plan(fleet(engine("m", grant=16 * GIB), samples=(sample,))))
    assert found.why_not == ("cannot start m: it needs 16.0 GiB, and other programs leave 12.0 GiB of GPU 0")
    assert "fits once blender (pid 4711, 12.0 GiB) ends on GPU 0" in found.suggestions


def test_a_lost_gpu_holds_nothing() -> None:
    lost = GpuSample(index=0, at=1.0, lost="fell off the bus")
    made = plan(fleet(engine("m", grant=GIB), gpus=(gpu(0), gpu(1)), samples=(lost,)))
    assert made.gpus[0].lost == "fell off the bus"
    assert [each.why_not for each in only(made).on] == ["GPU 0 is lost", ""]
    assert made.together[0].gpus == ((1,),)


# --- what fits together -----------------------------------------------------------------------------


def test_all_that_fits_is_one_set_with_its_places() -> None:
    made = plan(
        fleet(engine("a", grant=12 * GIB), engine("b", grant=12 * GIB), gpus=(gpu(0), gpu(1))),
    )
    assert sets(made) == [("a", "b")]
    assert sorted(made.together[0].gpus) == [(0,), (1,)]
    assert made.is_complete


def test_every_largest_set_is_told_with_who_is_left_out_and_why() -> None:
    made = plan(fleet(engine("a", grant=12 * GIB), engine("b", grant=12 * GIB), engine("c", grant=6 * GIB)))
    assert sets(made) == [("a", "c"), ("b", "c")]
    (left_out,) = made.together[0].left_out
    assert (left_out.name, left_out.why) == ("b", "10.0 GiB short on GPU 0")


def test_a_large_model_over_both_cards_stands_alone() -> None:
    made = plan(
        fleet(
            engine("day", grant=18 * GIB),
            engine("embed", grant=3 * GIB, pinned=(1,)),
            engine("night", grant=19 * GIB, gpu_count=2),
            gpus=(gpu(0), gpu(1)),
        )
    )
    assert sets(made) == [("day", "embed"), ("night",)]


def test_models_that_never_fit_or_need_no_gpu_are_in_no_set() -> None:
    made = plan(fleet(engine("a", grant=GIB), engine("big", grant=90 * GIB), engine("cpu", pinned=())))
    assert sets(made) == [("a",)]


def test_a_tight_packing_is_found() -> None:
    """Biggest first is not enough: 10+6+4 and 8+7+5 fill two cards of 20."""
    sizes = (10, 8, 7, 6, 5, 4)
    engines = [engine(f"m{size}", grant=size * GIB) for size in sizes]
    assert len(sets(plan(fleet(*engines, gpus=(gpu(0), gpu(1)))))[0]) == 6


def test_a_list_that_is_cut_says_so_and_shows_every_model() -> None:
    engines = [engine(f"m{number}", grant=9 * GIB) for number in range(8)]
    made = plan(fleet(*engines))
    assert len(made.together) == together.MOST_SETS
    assert not made.is_complete
    assert {name for names in sets(made) for name in names} == {each.name for each in engines}


def test_many_models_are_grown_into_sets_quickly() -> None:
    engines = [engine(f"m{number}", grant=(3 + number % 9) * GIB) for number in range(200)]
    made = plan(fleet(*engines, gpus=tuple(gpu(index) for index in range(8))))
    assert not made.is_complete
    assert 0 < len(made.together) <= together.MOST_SETS
    for found in made.together:
        free = dict.fromkeys(range(8), 20 * GIB)
        for name, places in zip(found.models, found.gpus, strict=True):
            for index in places:
                free[index] -= (3 + int(name[1:]) % 9) * GIB
        assert min(free.values()) >= 0


def test_a_search_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "MOST_STEPS", 5)
    needs = [Need(f"m{number}", None, 1, {0: 6, 1: 6}) for number in range(8)]
    assert not largest_sets(needs, {0: 20, 1: 20}, {0: 1, 1: 1}).is_complete


def test_as_json_has_models_by_name() -> None:
    document = as_json(plan(fleet(engine("a", grant=GIB))))
    assert list(document) == ["gpus", "models", "together", "is_complete"]
    assert document["models"]["a"]["grant_bytes"] == GIB
    assert "name" not in document["models"]["a"]


# --- one verdict -------------------------------------------------------------------------------------


def test_what_runs_or_has_run_is_not_doubted() -> None:
    tight: dict[str, Any] = {"grant": 8 * GIB, "sizes": estimate(5, length=131072)}
    assert only(plan(fleet(engine("m", **tight)))).doubt
    assert not only(plan(fleet(engine("m", learnt=Learnt(start_s=40.0), **tight)))).doubt
    up = replace(engine("m", state=State.READY, **tight), gpus=(0,), granted_bytes=(8 * GIB,))
    assert (only(plan(fleet(up))).fits, only(plan(fleet(up))).doubt) == (True, "")


def test_what_runs_is_not_refused_for_its_next_start() -> None:
    up = replace(engine("m", grant=10 * GIB, state=State.READY), gpus=(0,), granted_bytes=(10 * GIB,))
    made = plan(fleet(up, gpus=(gpu(0, 5),)))
    assert only(made).fits
    assert only(made).doubt.startswith("m is ready; its next start would be refused: cannot start m: ")
    assert sets(made) == []


def test_a_ladder_step_is_judged_with_its_flags() -> None:
    learnt = Learnt(adjusted=(("max-model-len", 65536), ("max-num-seqs", 2)))
    found = only(plan(fleet(engine("m", estimate(5, length=131072), grant=8 * GIB, learnt=learnt))))
    assert (found.doubt, found.max_model_len, found.full_sequences) == ("", 65536, 1.0)


def test_what_failed_says_so_in_the_plan() -> None:
    broken = replace(engine("m", grant=GIB, state=State.FAILED), last_error="cannot start m: no\nlast lines")
    assert only(plan(fleet(replace(broken, retry_at=60.0)))).doubt == "cannot start m: no"
    assert only(plan(fleet(broken))).doubt == "", "the host was against it, and may not be any more"


def test_the_cpu_is_told_the_cache_that_is_configured() -> None:
    sizes = estimate(5)
    made = plan(
        fleet(
            engine("m", sizes, pinned=()),
            engine("n", sizes, pinned=(), grant=GIB),
            engine("o", sizes, pinned=(), grant=GIB, disabled="cannot start o: its GPU is lost"),
        )
    )
    assert [model.kv_bytes for model in made.models] == [None, GIB, None]
    assert [model.where for model in made.models] == ["the CPU", "the CPU", "-"]
    assert [model.full_sequences for model in made.models] == [None] * 3


def test_nothing_is_free_on_a_lost_gpu() -> None:
    lost = GpuSample(index=0, at=1.0, lost="it fell off the bus")
    assert plan(fleet(gpus=(gpu(0),), samples=(lost,))).gpus[0].free_bytes == 0
