"""Budgets and pinning, as tables of facts."""

from dataclasses import replace
from pathlib import Path

import pytest

from supervisord_llm.config.model import Config, Host, Paths, Server, Share, Vram
from supervisord_llm.core.fleet import Gpu, Policy
from supervisord_llm.gpu.budget import Budgets, Pin, budgets, pin, policy
from supervisord_llm.gpu.sensor import NO_DRIVER, GpuLost, GpuReading, GpuSeen

GIB = 1024**3


def seen(index: int, total_bytes: int | None = 24 * GIB) -> GpuSeen:
    return GpuSeen(
        index=index, uuid=f"GPU-{index:04x}", name="Card", total_bytes=total_bytes, free_bytes=total_bytes
    )


def gpu(index: int) -> Gpu:
    return Gpu(index=index, uuid=f"GPU-{index:04X}", name="Card", total_bytes=24 * GIB, budget_bytes=1)


def budgets_of(vram: Vram, gpu_budgets: dict[str, int | Share], *gpus: GpuSeen) -> list[int]:
    made = budgets(vram, gpu_budgets, GpuReading(gpus))
    assert made.facts == ()
    return [gpu.budget_bytes for gpu in made.gpus]


def test_a_share_is_of_the_cards_total_and_the_reserve_is_taken_off() -> None:
    vram = Vram(budget=Share(0.5), reserve_bytes=1 * GIB)
    assert budgets_of(vram, {}, seen(0), seen(1, 8 * GIB)) == [11 * GIB, 3 * GIB]


def test_a_gpu_knows_its_reserve() -> None:
    (made,) = budgets(Vram(reserve_bytes=GIB), {}, GpuReading((seen(0),))).gpus
    assert made.reserve_bytes == GIB


@pytest.mark.parametrize(
    ("ram_budget", "host_total_bytes", "expected_bytes"),
    [
        (Share(0.5), 64 * GIB, 32 * GIB),
        (Share(0.5), None, None),
        (8 * GIB, None, 8 * GIB),
        (8 * GIB, 64 * GIB, 8 * GIB),
    ],
)
def test_the_policy_of_the_fleet(
    ram_budget: int | Share, host_total_bytes: int | None, expected_bytes: int | None
) -> None:
    here = Path("/")
    config = Config(
        files=(),
        server=Server(),
        paths=Paths(state=here, cache=here, runtime=here),
        auth_required=False,
        clients=(),
        vram=Vram(enforce="stop", tolerance=Share(0.1)),
        gpu_budgets={},
        host=Host(ram_budget=ram_budget),
        models={},
    )
    made = policy(config, host_total_bytes)
    assert made == Policy(enforce="stop", tolerance=0.1, host_budget_bytes=expected_bytes)


def test_a_size_is_taken_as_it_is() -> None:
    assert budgets_of(Vram(budget=10 * GIB), {}, seen(0)) == [10 * GIB]


def test_a_gpus_own_budget_wins_by_index_and_by_uuid() -> None:
    own: dict[str, int | Share] = {"0": 4 * GIB, "gpu-0001": Share(0.25)}
    assert budgets_of(Vram(), own, seen(0), seen(1), seen(2)) == [4 * GIB, 6 * GIB, int(0.9 * 24 * GIB)]


def test_a_budget_above_the_card_is_the_card_and_is_told() -> None:
    made = budgets(Vram(reserve_bytes=GIB), {"0": 30 * GIB}, GpuReading((seen(0),)))
    assert made.gpus[0].budget_bytes == 23 * GIB
    assert made.facts == (
        "gpus.0.budget is 30.0 GiB, but GPU 0 (Card) has 24.0 GiB: all of it is the budget",
    )


def test_a_reserve_that_eats_the_budget_leaves_zero_and_is_told() -> None:
    made = budgets(Vram(budget=GIB, reserve_bytes=2 * GIB), {}, GpuReading((seen(0),)))
    assert made.gpus[0].budget_bytes == 0
    assert made.facts == ("the budget of GPU 0 is nothing once vram.reserve is taken off",)


def test_a_budget_of_a_gpu_that_is_not_there_is_told() -> None:
    made = budgets(Vram(), {"3": GIB}, GpuReading((seen(0),)))
    assert made.facts == ("gpus.3 is set, but this host has no GPU 3; it has 0 (GPU-0000)",)


def test_a_card_of_unknown_size_is_left_out_and_is_told() -> None:
    made = budgets(Vram(), {}, GpuReading((seen(0, None), seen(1))))
    assert [gpu.index for gpu in made.gpus] == [1]
    assert made.facts == ("GPU 0 (Card) does not tell its memory size and is left out",)


def test_auto_is_the_schedulers_choice_or_the_cpu() -> None:
    assert pin("auto", Budgets((gpu(0),))) == Pin(None)
    assert pin("auto", Budgets()) == Pin(())
    assert pin((), Budgets((gpu(0),))) == Pin(())


def test_indices_and_uuids_become_indices() -> None:
    assert pin((1, "gpu-0000"), Budgets((gpu(0), gpu(1)))) == Pin((1, 0))


def test_what_is_not_there_or_named_twice_is_a_sentence() -> None:
    missing = "gpus = [2], but this host has no GPU 2; it has 0 (GPU-0000)"
    assert pin((2,), Budgets((gpu(0),))) == Pin((), missing)
    assert pin((0,), Budgets()) == Pin((), "gpus = [0], but this host has no GPU 0; it has none")
    twice = "gpus = [0, 'GPU-0000'] names GPU 0 twice"
    assert pin((0, "GPU-0000"), Budgets((gpu(0),))) == Pin((), twice)


def test_two_budgets_of_one_gpu_are_told() -> None:
    made = budgets(Vram(), {"0": GIB, "GPU-0000": 2 * GIB}, GpuReading((seen(0),)))
    assert made.gpus[0].budget_bytes == GIB
    assert made.facts == ("gpus.GPU-0000 and gpus.0 are the same GPU: gpus.0 counts",)


BUS = "it fell off the bus"
LOST = GpuLost(index=0, uuid="", why=BUS)


@pytest.mark.parametrize(
    ("reading", "unknown"),
    [
        (GpuReading(problems=(NO_DRIVER,)), ""),
        (GpuReading(), ""),
        (GpuReading((seen(0),), ("cannot read GPU 1",)), ""),
        (GpuReading(problems=("NVML hangs",)), "NVML hangs"),
        (GpuReading(problems=("cannot read GPU 0",), lost=(LOST,)), "cannot read GPU 0"),
        (GpuReading((seen(0, None),)), "GPU 0 (Card) does not tell its memory size"),
    ],
)
def test_not_to_know_the_gpus_is_not_to_have_none(reading: GpuReading, unknown: str) -> None:
    made = budgets(Vram(), {"0": GIB}, reading)
    assert (reading.unknown, made.unknown) == (unknown, unknown)
    pinned = pin("auto", made)
    assert pinned.indices == (None if made.gpus else ())
    assert bool(pinned.why_not) == bool(unknown)
    assert unknown in pinned.why_not
    assert pin((), made) == Pin(())
    if unknown:
        assert not any("gpus.0" in fact for fact in made.facts), "nobody knows"


def test_a_pin_to_a_card_that_was_lost_from_the_start_says_so() -> None:
    made = budgets(Vram(), {}, GpuReading((seen(1),), ("cannot read GPU 0",), (LOST,)))
    why = f"GPU 0 is lost: {BUS}; or change its `gpus`"
    assert pin((0,), made) == Pin((), why)
    assert pin(("GPU-ffff",), made) == Pin((), why), "its UUID was never learnt"
    assert pin((1,), made) == Pin((1,))
    assert "this host has no GPU 2" in pin((2,), made).why_not
    assert pin((0,), Budgets(lost=(LOST,), unknown="cannot read GPU 0")) == Pin((), why)


def test_cards_join_and_none_leaves() -> None:
    known = GpuReading((seen(1),), ("cannot read GPU 0",), (LOST,))
    assert known.joined(GpuReading(problems=("NVML hangs",))) is known
    assert GpuReading(problems=("NVML hangs",)).joined(known) is known
    both = known.joined(GpuReading((seen(0), seen(1))))
    assert ([gpu.index for gpu in both.gpus], both.lost, both.problems) == ([0, 1], (), ())
    without = both.joined(GpuReading((replace(seen(1), index=0),)))
    assert [(gpu.index, gpu.uuid) for gpu in without.gpus] == [(0, "GPU-0000"), (1, "GPU-0001")]
    swapped = both.joined(GpuReading((replace(seen(7), index=0), seen(1))))
    assert swapped.gpus == both.gpus
    (problem,) = swapped.problems
    assert problem.startswith("GPU GPU-0007 came to the place of GPU 0 (GPU-0000) and is left out")
