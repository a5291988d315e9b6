"""What a model is granted, what a launch teaches, and what happens to an engine above its grant."""

from dataclasses import replace

import pytest

from supervisord_llm.core.effects import Notify, Reject, Remember, StartEngine, StopEngine
from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.events import Cause, ConfigChanged, Estimated, GpusSampled, StartAsked, StopAsked
from supervisord_llm.core.fleet import Engine, GpuSample, Learnt, ModelSpec, Policy
from supervisord_llm.core.ledger import grant_bytes, kv_bytes
from supervisord_llm.core.state import State
from tests.core.world import GIB, World, gpu

ESTIMATE = Estimate(
    weights_bytes=6 * GIB,
    kv_bytes=4 * GIB,
    least_kv_bytes=1 * GIB,
    overhead_bytes=2 * GIB,
    host_bytes=6 * GIB,
    max_model_len=8192,
    sequences=4,
    kv_bytes_per_token=1,
)


class TestGrant:
    """Configured, else measured, else estimated, else the whole budget."""

    @pytest.mark.parametrize(
        ("grant", "footprint_gib", "estimate", "budget_gib", "granted_gib"),
        [
            (8 * GIB, 5, ESTIMATE, 20, 8.0),
            (0.5, 5, ESTIMATE, 20, 12.0),  # of 24
            (None, 5, ESTIMATE, 20, 5.0),
            (None, None, ESTIMATE, 20, 12.0),
            (None, None, ESTIMATE, 10, 10.0),  # a smaller card gives all it has
            (None, None, ESTIMATE, 8, 9.0),  # one sequence needs 9: more than the budget cannot run
            (None, None, None, 20, 20.0),
            (None, 15, ESTIMATE, 10, 10.0),  # measured on a larger card, or before the budget shrank
            (None, 15, None, 10, 10.0),
        ],
    )
    def test_of_each_source(
        self,
        grant: int | float | None,
        footprint_gib: int | None,
        estimate: Estimate | None,
        budget_gib: float,
        granted_gib: float,
    ) -> None:
        footprint = None if footprint_gib is None else footprint_gib * GIB
        engine = Engine(
            spec=ModelSpec(name="a", grant=grant), estimate=estimate, learnt=Learnt(footprint_bytes=footprint)
        )
        assert grant_bytes(engine, gpu(0, budget_gib)) == granted_gib * GIB

    def test_the_kv_cache_is_what_is_left_and_no_more_than_is_needed(self) -> None:
        engine = Engine(spec=ModelSpec(name="a"), estimate=ESTIMATE)
        assert kv_bytes(engine, (12 * GIB,)) == 4 * GIB
        assert kv_bytes(engine, (10 * GIB, 12 * GIB)) == 2 * GIB
        assert kv_bytes(engine, (20 * GIB,)) == 4 * GIB

    def test_the_kv_cache_of_an_earlier_launch_is_ordered_again_where_it_fits(self) -> None:
        known = Learnt(kv_bytes=3 * GIB, footprint_bytes=11 * GIB)
        engine = Engine(spec=ModelSpec(name="a"), estimate=ESTIMATE, learnt=known)
        assert kv_bytes(engine, (11 * GIB,)) == 3 * GIB
        assert kv_bytes(engine, (10 * GIB,)) == 2 * GIB, "a smaller card: what is left of it"
        assert kv_bytes(replace(engine, estimate=None), (10 * GIB,)) is None
        assert kv_bytes(replace(engine, spec=ModelSpec(name="a", grant=0.5)), (11 * GIB,)) is None

    def test_where_the_estimate_is_above_what_was_measured_vllm_sizes_the_kv_cache(self) -> None:
        engine = Engine(spec=ModelSpec(name="a"), estimate=ESTIMATE, learnt=Learnt(footprint_bytes=7 * GIB))
        assert kv_bytes(engine, (7 * GIB,)) is None

    def test_a_shorter_context_and_fewer_sequences_need_less_kv_cache(self) -> None:
        learnt = Learnt(adjusted=(("max-model-len", 4096), ("max-num-seqs", 2)))
        engine = Engine(spec=ModelSpec(name="a"), estimate=ESTIMATE, learnt=learnt)
        assert kv_bytes(engine, (12 * GIB,)) == GIB

    def test_the_order_to_launch_carries_the_grant_and_the_kv_cache(self) -> None:
        world = World.of(ModelSpec(name="a", pinned=(0,)), gpus=(gpu(0),))
        world.ask("a")
        world.happen(Estimated(model="a", signature="", estimate=ESTIMATE))
        world.prepare("a")
        order = world.of_kind(StartEngine)[0]
        assert (order.memory_fraction, order.kv_bytes) == (0.5, 4 * GIB)
        assert "starts a on GPU 0 with 12.0 GiB" in world.told

    def test_what_can_never_fit_by_its_estimate_is_not_downloaded_first(self) -> None:
        world = World.of(ModelSpec(name="a", pinned=(0,)), gpus=(gpu(0, budget_gib=8),))
        request = world.ask("a")
        world.happen(Estimated(model="a", signature="", estimate=ESTIMATE))
        assert world.rejected == {request: "no_vram"}
        assert "needs 9.0 GiB of a budget of 8.0 GiB" in world.of_kind(Reject)[0].message
        assert world["a"].state is State.FAILED

    def test_an_estimate_of_another_configuration_is_stale(self) -> None:
        world = World.of(ModelSpec(name="a", pinned=(0,), signature="2"), gpus=(gpu(0),))
        world.ask("a")
        world.happen(Estimated(model="a", signature="1", estimate=ESTIMATE))
        assert world["a"].estimate is None


class TestLearning:
    """A launch teaches the next one."""

    def world(self, **spec: object) -> World:
        world = World.of(
            ModelSpec(name="a", pinned=(0,), signature="1", **spec),  # type: ignore[arg-type]
            ModelSpec(name="b", pinned=(0,), grant=4 * GIB),
            gpus=(gpu(0),),
        )
        world.look(0, 1, nobody=0)
        return world

    def learnt(self, world: World) -> list[int | None]:
        return [each.learnt.footprint_bytes for each in world.of_kind(Remember) if each.model == "a"]

    def test_its_footprint_by_process_and_the_next_start_is_granted_that(self) -> None:
        world = self.world()
        world.finish(world.bring_up("a"), "a")
        assert world["a"].granted_bytes == (20 * GIB,)
        world.look(0, 14, a=13)
        assert self.learnt(world)[-1] == 13 * GIB
        world.happen(StopAsked(model="a"))
        world.exited("a")
        world.look(0, 1, nobody=0)
        world.happen(StartAsked(model="a"))
        world.prepare("a")
        assert world["a"].granted_bytes == (13 * GIB,)

    def test_a_look_from_before_it_was_ready_tells_nothing(self) -> None:
        world = self.world()
        world.bring_up("a")
        old = GpuSample(index=0, at=world.now - 1, used_bytes=9 * GIB, engines={"a": 8 * GIB})
        world.happen(GpusSampled(samples=(old,)))
        assert world["a"].used_bytes is None

    def test_it_grows_and_does_not_shrink_with_what_is_seen(self) -> None:
        world = self.world()
        world.bring_up("a")
        for seen_gib in (10, 10.01, 12, 9):
            world.look(0, 14, a=seen_gib)
        assert [size for size in self.learnt(world) if size] == [10 * GIB, 12 * GIB]

    def test_by_difference_where_the_driver_does_not_tell_whose_memory_it_is(self) -> None:
        world = self.world()
        world.look(0, 2.5)
        world.bring_up("a")
        world.look(0, 16)
        assert self.learnt(world)[-1] == 13.5 * GIB
        world.look(0, 19)
        assert world["a"].used_bytes == (int(13.5 * GIB),), "later differences may be anybody's"

    @pytest.mark.parametrize("after_gib", [2.55, 3.0, 24])
    def test_a_difference_that_cannot_be_it_is_ignored(self, after_gib: float) -> None:
        world = self.world()
        world.happen(Estimated(model="a", signature="1", estimate=ESTIMATE))
        world.look(0, 2.5)
        world.bring_up("a")
        world.look(0, after_gib)
        world.pass_time(20)
        world.look(0, after_gib)
        assert (world["a"].state, world["a"].used_bytes) == (State.READY, None)
        assert self.learnt(world) == [None]

    def test_a_neighbour_that_ends_during_its_start_spoils_the_difference(self) -> None:
        world = self.world(grant=12 * GIB)
        world.finish(world.bring_up("b"), "b")
        world.look(0, 6)
        world.ask("a")
        world.prepare("a")
        world.exited("b")
        world.ready("a")
        world.look(0, 10)
        assert world["a"].used_bytes is None

    def test_a_changed_configuration_forgets_and_measures_again(self) -> None:
        world = self.world()
        world.finish(world.bring_up("a"), "a")
        world.look(0, 14, a=13)
        changed = ModelSpec(name="a", pinned=(0,), signature="2")
        world.happen(ConfigChanged(specs=(changed,), gpus=(gpu(0),)))
        assert world["a"].learnt == Learnt()
        world.exited("a")
        assert len(self.learnt(world)) == 2, "its start, its footprint; nothing of the old shape after that"

    def test_an_estimate_that_was_too_low_is_corrected_while_there_is_room(self) -> None:
        world = self.world()
        world.happen(Estimated(model="a", signature="1", estimate=ESTIMATE))
        world.bring_up("a")
        world.look(0, 16, a=15)
        assert (world["a"].granted_bytes, world["a"].state) == ((15 * GIB,), State.READY)
        assert any("its grant is 15.0 GiB of GPU 0" in text for text in world.told)

    def test_strangers_are_never_taken_for_it(self) -> None:
        world = self.world()
        world.bring_up("a")
        world.look(0, 23, a=10)
        assert self.learnt(world)[-1] == 10 * GIB


class TestEnforcement:
    """An engine above its grant, its tolerance and its time."""

    def world(self, enforce: str, **spec: object) -> World:
        world = World.of(
            ModelSpec(name="a", pinned=(0,), grant=10 * GIB, drain_timeout_s=30, **spec),  # type: ignore[arg-type]
            gpus=(gpu(0),),
            policy=Policy(enforce=enforce),  # type: ignore[arg-type]
        )
        world.bring_up("a")
        return world

    def exceed(self, world: World, seconds: float = 6, used_gib: float = 12) -> None:
        world.look(0, 13, a=used_gib)
        world.pass_time(seconds)
        world.look(0, 13, a=used_gib)

    def test_within_the_tolerance_nothing_happens(self) -> None:
        world = self.world("stop")
        self.exceed(world, used_gib=10.4)
        assert world["a"].state is State.READY

    def test_a_peak_passes(self) -> None:
        world = self.world("stop")
        world.look(0, 13, a=12)
        world.pass_time(4)
        world.look(0, 13, a=9)
        world.pass_time(4)
        world.look(0, 13, a=12)
        assert world["a"].state is State.READY

    def test_observe_tells_once(self) -> None:
        world = self.world("observe")
        for used_gib in (12, 12.5, 13):
            self.exceed(world, used_gib=used_gib)
        bad = [each.text for each in world.of_kind(Notify) if each.is_bad]
        assert len(bad) == 1
        assert bad[0].startswith("a holds 12.0 GiB of GPU 0 and was granted 10.0 GiB; raise its `vram`")
        assert world["a"].state is State.READY

    def test_restart_lets_requests_finish_and_starts_it_again(self) -> None:
        world = self.world("restart")
        request = world.admitted[0]
        self.exceed(world)
        assert (world["a"].state, world.stopped) == (State.DRAINING, [])
        world.finish(request, "a")
        assert world.stopped == ["a"]
        world.exited("a")
        world.pass_time(60)
        assert world["a"].state is State.PREPARING

    def test_stop_does_not_start_it_again_by_itself(self) -> None:
        world = self.world("stop")
        world.finish(world.admitted[0], "a")
        self.exceed(world)
        world.exited("a")
        world.pass_time(60)
        assert world["a"].state is State.STOPPED

    def test_again_and_again_is_a_failure(self) -> None:
        world = self.world("restart", restart_tries=2)
        world.finish(world.admitted[0], "a")
        self.exceed(world)
        world.exited("a")
        world.pass_time(60)
        world.prepare("a")
        world.ready("a")
        self.exceed(world)
        world.exited("a")
        assert world["a"].state is State.FAILED
        refused = world.ask("a")
        assert world.rejected[refused] == "start_failed"
        assert "was granted 10.0 GiB" in world.of_kind(Reject)[-1].message

    def test_what_it_takes_beyond_its_grant_is_not_given_to_a_neighbour(self) -> None:
        world = World.of(
            ModelSpec(name="a", pinned=(0,), grant=10 * GIB),
            ModelSpec(name="b", pinned=(0,), grant=9 * GIB),
            gpus=(gpu(0),),
            policy=Policy(enforce="observe"),
        )
        world.bring_up("a")
        world.look(0, 13, a=12)
        world.ask("b")
        world.prepare("b")
        assert world["b"].state is State.QUEUED


class TestOutOfMemory:
    """Never tried again unchanged."""

    def world(self, **spec: object) -> World:
        asked = {"max_num_seqs": 16, "max_model_len": 8192} | spec
        world = World.of(ModelSpec(name="a", pinned=(0,), **asked), gpus=(gpu(0),))  # type: ignore[arg-type]
        world.ask("a")
        world.prepare("a")
        return world

    def run_out(self, world: World) -> None:
        world.exited("a", "CUDA out of memory\nlast lines: secret", cause=Cause.GPU_OOM)
        world.pass_time(2)
        if world["a"].state is State.PREPARING:
            world.prepare("a")

    def test_the_ladder_to_its_end(self) -> None:
        world = self.world()
        for _ in range(4):
            self.run_out(world)
        assert [dict(each.adjusted) for each in world.of_kind(StartEngine)] == [
            {},
            {"max-num-seqs": 4},
            {"max-num-seqs": 4, "max-model-len": 4096},
            {"max-num-seqs": 4, "max-model-len": 2048},
        ]
        assert world["a"].state is State.FAILED
        assert world.rejected == {1: "start_failed"}
        assert world.of_kind(Reject)[0].message == (
            "cannot run a: out of GPU memory even with fewer sequences and a shorter context "
            "(CUDA out of memory); raise its `vram`, or choose a smaller model"
        )
        world.pass_time(100_000)
        later = world.ask("a")
        assert world.rejected[later] == "start_failed", "not by itself, however long one waits"
        world.happen(StartAsked(model="a"))
        assert world["a"].state is State.PREPARING

    def test_a_changed_configuration_leaves_the_end_of_the_ladder(self) -> None:
        world = self.world(max_num_seqs=4, max_model_len=2048)
        self.run_out(world)
        assert world["a"].state is State.FAILED
        changed = ModelSpec(name="a", pinned=(0,), signature="2")
        world.happen(ConfigChanged(specs=(changed,), gpus=(gpu(0),)))
        assert world["a"].state is State.STOPPED

    def test_a_change_is_named_and_remembered_and_who_waits_goes_on_waiting(self) -> None:
        world = self.world()
        self.run_out(world)
        assert world.rejected == {}
        assert world.of_kind(Remember)[-1].learnt.adjusted == (("max-num-seqs", 4),)
        assert any("its next start has max-num-seqs 4 in place of 16" in text for text in world.told)

    def test_a_serving_engine_that_runs_out_comes_back_changed(self) -> None:
        world = self.world(keep=True)
        world.ready("a")
        world.finish(1, "a")
        self.run_out(world)
        assert world.of_kind(StartEngine)[-1].adjusted == {"max-num-seqs": 4}
        assert not any("secret" in text for text in world.told)

    def test_what_ran_out_while_it_was_ended_starts_changed_the_next_time(self) -> None:
        world = self.world()
        world.ready("a")
        world.happen(StopAsked(model="a"))
        world.exited("a", "CUDA out of memory", cause=Cause.GPU_OOM)
        assert world["a"].state is State.STOPPED
        world.ask("a")
        world.prepare("a")
        assert world.of_kind(StartEngine)[-1].adjusted == {"max-num-seqs": 4}

    def test_a_footprint_measured_with_other_flags_is_forgotten(self) -> None:
        world = self.world()
        world.ready("a")
        world.look(0, 14, a=13)
        self.run_out(world)
        assert world["a"].learnt.footprint_bytes is None

    def test_out_of_main_memory_sleepers_give_theirs_back_and_it_is_tried_once_more(self) -> None:
        sleeper = ModelSpec(name="s", pinned=(0,), grant=8 * GIB, sleep_level=1)
        world = World.of(sleeper, ModelSpec(name="a", backoff_s=(2, 60)), gpus=(gpu(0),))
        world.finish(world.bring_up("s"), "s")
        world.asleep("s")
        request = world.ask("a")
        world.prepare("a")
        world.exited("a", "was killed by the kernel", cause=Cause.HOST_OOM)
        assert (world.stopped, world["a"].state, world.rejected) == (["s"], State.BACKOFF, {})
        world.exited("s")
        world.pass_time(2)
        world.prepare("a")
        world.exited("a", "was killed by the kernel", cause=Cause.HOST_OOM)
        assert world["a"].state is State.FAILED
        assert world.rejected == {request: "start_failed"}
        assert "want of main memory" in world.of_kind(Reject)[0].message
        world.pass_time(600)
        world.ask("a")
        assert world["a"].state is State.PREPARING


def test_a_kill_for_lateness_that_ran_out_of_memory_is_an_oom_all_the_same() -> None:
    world = World.of(
        ModelSpec(name="a", pinned=(0,), start_timeout_s=100, stall_timeout_s=1000), gpus=(gpu(0),)
    )
    world.ask("a")
    world.prepare("a")
    world.pass_time(100)
    assert world.of_kind(StopEngine)
    world.exited("a", "CUDA out of memory", cause=Cause.GPU_OOM)
    assert dict(world["a"].learnt.adjusted) == {"max-num-seqs": 64}


def test_a_neighbour_waits_until_it_is_seen_what_an_estimate_really_took() -> None:
    guess = replace(ESTIMATE, weights_bytes=4 * GIB, kv_bytes=GIB, overhead_bytes=GIB)
    guessed = ModelSpec(name="a", pinned=(0,))
    sized = ModelSpec(name="b", pinned=(0,), grant=12 * GIB)
    world = World.of(guessed, sized, gpus=(gpu(0),))
    world.look(0, 0.1, nobody=0)
    world.happen(Estimated(model="a", signature="", estimate=guess))
    world.ask("a")
    world.ask("b")
    world.prepare("a")
    world.prepare("b")
    world.ready("a")
    assert world.started == ["a"]
    assert world["b"].phase == "waits until it is seen what the last start on GPU 0 takes"
    world.look(0, 14, a=14)
    assert world.started == ["a"], "14 GiB instead of 6: there is no room for b"
    assert world["a"].granted_bytes == (14 * GIB,)


def test_nobody_waits_for_a_look_that_does_not_come() -> None:
    guess = replace(ESTIMATE, weights_bytes=4 * GIB, kv_bytes=GIB, overhead_bytes=GIB)
    world = World.of(
        ModelSpec(name="a", pinned=(0,)), ModelSpec(name="b", pinned=(0,), grant=12 * GIB), gpus=(gpu(0),)
    )
    world.look(0, 0.1, nobody=0)
    world.happen(Estimated(model="a", signature="", estimate=guess))
    world.ask("a")
    world.ask("b")
    world.prepare("a")
    world.prepare("b")
    world.ready("a")
    world.pass_time(11)
    assert world.started == ["a", "b"]


def test_a_kv_cache_that_a_start_failed_with_is_measured_anew() -> None:
    spec = ModelSpec(name="a", pinned=(0,), grant=12 * GIB, learnt=Learnt(kv_bytes=GIB), backoff_s=(1, 1))
    world = World.of(spec, gpus=(gpu(0),))
    world.ask("a")
    world.prepare("a")
    world.exited("a", "To serve at least one request ...")
    world.ask("a")
    world.pass_time(2)
    world.prepare("a")
    assert [effect.kv_bytes for effect in world.of_kind(StartEngine)] == [GIB, None]
