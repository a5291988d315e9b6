"""Engines that hang and GPUs that are lost."""

import pytest

from supervisord_llm.core.effects import CountTokens, Reject, StopEngine
from supervisord_llm.core.events import (
    Cause,
    ConfigChanged,
    EngineExited,
    EngineStuck,
    RequestCancelled,
    SleepAsked,
    StartAsked,
    StopAsked,
    TokensCounted,
)
from supervisord_llm.core.fleet import Learnt, ModelSpec, Policy
from supervisord_llm.core.state import State
from tests.core.world import GIB, World, gpu


class TestHangs:
    """Requests running and not one token."""

    def world(self, **spec: object) -> World:
        asked = {"stall_timeout_s": 100.0, "drain_timeout_s": 30.0} | spec
        world = World.of(ModelSpec(name="a", **asked))  # type: ignore[arg-type]
        world.bring_up("a")
        return world

    def count(self, world: World, running: int | None, tokens: float = 0.0) -> None:
        launch = world["a"].launch
        world.happen(TokensCounted(model="a", launch=launch, running=running, tokens=tokens))

    def pass_time(self, world: World, seconds: float, running: int | None, tokens: float = 0.0) -> None:
        """With an answer to each question."""
        end = world.now + seconds
        while world.now < end and world["a"].state is State.READY:
            if any(isinstance(effect, CountTokens) for effect in world.pass_time(1)):
                self.count(world, running, tokens)

    def test_a_busy_engine_is_asked_how_far_it_is_and_an_idle_one_is_not(self) -> None:
        world = self.world(stop_after_s=None)
        self.pass_time(world, 20, 1, 5.0)
        asked = len(world.of_kind(CountTokens))
        assert asked >= 3
        world.finish(1, "a")
        world.pass_time(60)
        assert len(world.of_kind(CountTokens)) == asked

    def test_tokens_that_stand_still_end_it_with_its_stacks_and_it_starts_again(self) -> None:
        world = self.world()
        self.pass_time(world, 95, 1, 5.0)
        assert world["a"].state is State.READY
        self.pass_time(world, 30, 1, 5.0)
        assert world["a"].state is State.DRAINING
        late = world.ask("a")
        world.pass_time(30)
        assert world.of_kind(StopEngine) == [StopEngine(model="a", launch=1, kill=True, dump=True)]
        assert any(
            text.startswith("a hangs: 1 request in flight and not one token for 100 s") for text in world.told
        )
        world.exited("a", "was killed")
        world.finish(1, "a")
        assert world["a"].state is State.BACKOFF
        world.pass_time(2)
        world.prepare("a")
        world.ready("a")
        assert world.admitted == [1, late]

    def test_without_anybody_left_it_is_killed_at_once(self) -> None:
        world = self.world()
        self.pass_time(world, 130, 1, 5.0)
        world.finish(1, "a")
        assert world.of_kind(StopEngine) == [StopEngine(model="a", launch=1, kill=True, dump=True)]

    def test_tokens_that_move_are_progress(self) -> None:
        world = self.world()
        for tokens in range(40):
            self.pass_time(world, 10, 1, float(tokens))
        assert world["a"].state is State.READY

    def test_nothing_running_by_its_own_count_is_progress(self) -> None:
        """A client that does not read its answer is none of the engine's doing."""
        world = self.world()
        self.pass_time(world, 400, 0, 5.0)
        assert world["a"].state is State.READY

    def test_one_that_does_not_tell_is_never_ended_for_it(self) -> None:
        world = self.world()
        self.pass_time(world, 1000, None)
        assert world["a"].state is State.READY
        assert len(world.of_kind(CountTokens)) == 1

    def test_one_that_told_and_answers_no_more_hangs(self) -> None:
        world = self.world()
        self.count(world, 1, 5.0)
        world.pass_time(130)
        assert world["a"].state is State.DRAINING

    def test_a_daemon_that_was_held_up_itself_asks_before_it_judges(self) -> None:
        world = self.world()
        self.count(world, 1, 5.0)
        world.now += 500
        world.pass_time(0)
        assert world["a"].state is State.READY
        self.count(world, 1, 6.0)
        world.pass_time(20)
        assert world["a"].state is State.READY

    def test_a_long_idle_time_is_no_hang_of_the_next_request(self) -> None:
        world = self.world(stop_after_s=None)
        self.count(world, 1, 5.0)
        world.finish(1, "a")
        world.pass_time(1000)
        world.ask("a")
        world.pass_time(60)
        assert world["a"].state is State.READY

    def test_again_and_again_is_a_failure(self) -> None:
        world = self.world(restart_tries=1)
        self.count(world, 1, 5.0)
        world.pass_time(130)
        world.finish(1, "a")
        world.exited("a", "was killed")
        assert world["a"].state is State.FAILED


class TestLostGpus:
    def test_its_engines_are_killed_and_a_pinned_model_is_refused_with_the_sentence(self) -> None:
        world = World.of(ModelSpec(name="a", pinned=(0,), grant=8 * GIB), gpus=(gpu(0),))
        in_flight = world.bring_up("a")
        waiting = world.ask("a")
        assert waiting in world.admitted
        world.look(0, lost="fell off the bus")
        assert world.of_kind(StopEngine) == [StopEngine(model="a", launch=1, kill=True)]
        late = world.ask("a")
        world.finish(in_flight, "a")
        world.exited("a", "was killed")
        world.pass_time(2)
        assert world.rejected == {late: "no_vram"}
        message = world.of_kind(Reject)[0].message
        assert message.startswith("cannot start a: GPU 0")
        assert "fell off the bus" in message
        assert message.endswith("change its `gpus`")

    def test_a_model_that_may_run_anywhere_is_started_elsewhere_for_who_waits(self) -> None:
        world = World.of(ModelSpec(name="a", pinned=None, grant=8 * GIB), gpus=(gpu(0), gpu(1)))
        world.finish(world.bring_up("a"), "a")
        world.look(0, lost="fell off the bus")
        request = world.ask("a")
        world.exited("a", "was killed")
        world.pass_time(2)
        world.prepare("a")
        world.ready("a")
        assert (world["a"].gpus, world.admitted[-1]) == ((1,), request)

    def test_once_it_is_back_it_is_used_again_and_what_is_kept_returns(self) -> None:
        world = World.of(
            ModelSpec(name="a", pinned=(0,), grant=8 * GIB),
            ModelSpec(name="k", pinned=(0,), grant=8 * GIB, keep=True),
            gpus=(gpu(0),),
        )
        world.finish(world.bring_up("k"), "k")
        world.look(0, lost="fell off the bus")
        world.exited("k", "was killed")
        world.pass_time(2)
        assert world["k"].state is State.FAILED
        world.look(0, 1, nobody=0)
        assert "GPU 0 answers again" in world.told
        assert world["k"].state is State.PREPARING
        world.prepare("k")
        world.ready("k")
        world.bring_up("a")

    def test_it_is_told_once(self) -> None:
        world = World.of(ModelSpec(name="a", pinned=(0,)), gpus=(gpu(0),))
        for _ in range(3):
            world.look(0, lost="fell off the bus")
        assert len(world.told) == 1

    def test_one_that_will_not_die_there_does_not_hold_up_the_other_gpus(self) -> None:
        world = World.of(
            ModelSpec(name="a", pinned=(0,), grant=8 * GIB),
            ModelSpec(name="b", pinned=None),
            gpus=(gpu(0), gpu(1)),
        )
        world.bring_up("a")
        world.look(0, lost="fell off the bus")
        world.happen(EngineStuck(model="a", launch=1))
        world.bring_up("b")
        assert world["b"].gpus == (1,)


@pytest.mark.parametrize("leaves_by", ["start", "config"])
def test_a_failure_for_good_is_left_by_a_person_only(leaves_by: str) -> None:
    spec = ModelSpec(name="a", pinned=(0,), max_num_seqs=1)
    world = World.of(spec, gpus=(gpu(0),), policy=Policy(enforce="observe"))
    world.ask("a")
    world.prepare("a")
    world.happen(EngineExited(model="a", launch=1, reason="CUDA out of memory", cause=Cause.GPU_OOM))
    world.pass_time(1_000_000)
    refused = world.ask("a")
    assert world.rejected[refused] == "start_failed"
    assert "`llm-supervisor start a` does" in world.of_kind(Reject)[-1].message
    world.happen(RequestCancelled(request=refused, model="a"))
    if leaves_by == "start":
        world.happen(StartAsked(model="a"))
    else:
        world.happen(ConfigChanged(specs=(ModelSpec(name="a", pinned=(0,), signature="2"),), gpus=(gpu(0),)))
        world.ask("a")
    assert world["a"].state is State.PREPARING


def test_a_restart_by_enforcement_makes_nobody_give_way() -> None:
    greedy = ModelSpec(name="greedy", pinned=(0,), grant=8 * GIB, min_residency_s=0, backoff_s=(1, 1))
    good = ModelSpec(name="good", pinned=(0,), grant=12 * GIB, min_residency_s=0)
    world = World.of(greedy, good, gpus=(gpu(0),))
    world.finish(world.bring_up("greedy"), "greedy")
    world.finish(world.bring_up("good"), "good")
    for _ in range(5):
        world.now += 2
        world.look(0, 27, greedy=15, good=12)
    assert world.stopped == ["greedy"]
    world.exited("greedy")
    world.look(0, 12, good=12)
    world.pass_time(2)
    world.prepare("greedy")
    assert world["greedy"].state is State.STARTING, "there is room for what it was granted"
    world.ready("greedy")
    for _ in range(5):
        world.now += 2
        world.look(0, 27, greedy=15, good=12)
    world.exited("greedy")
    world.look(0, 20, good=12)  # a stranger took the room meanwhile
    world.pass_time(2)
    world.prepare("greedy")
    assert (world["greedy"].state, world["good"].state) == (State.STOPPED, State.READY)


def test_the_end_of_the_ladder_is_remembered_until_somebody_asks_for_a_start() -> None:
    exhausted = ModelSpec(name="a", pinned=(0,), grant=8 * GIB, learnt=Learnt(is_exhausted=True))
    world = World.of(exhausted, gpus=(gpu(0),))
    world.ask("a")
    rejected = world.of_kind(Reject)[0]
    assert (rejected.code, rejected.retry_after_s) == ("start_failed", 3600.0)
    assert "raise its `vram`" in rejected.message
    assert world.prepared == []
    world.happen(StartAsked(model="a"))
    assert world.prepared == ["a"]


def test_figures_that_stop_coming_and_come_again_are_told() -> None:
    world = World.of(ModelSpec(name="a", pinned=(0,)), gpus=(gpu(0),))
    world.look(0, 1)
    world.look(0, None)
    world.look(0, None)
    assert sum("does not tell what is used of it any more" in text for text in world.told) == 1
    world.look(0, 1)
    assert "GPU 0 tells again what is used of it" in world.told


def test_who_is_moved_by_one_before_it_is_not_put_back_by_a_tick() -> None:
    """a is due to sleep, and b has to go for it: b stays gone."""
    asleep = {"pinned": (0,), "sleep_level": 1, "min_residency_s": 0.0}
    specs = (
        ModelSpec(name="a", grant=8 * GIB, sleep_after_s=60, **asleep),  # type: ignore[arg-type]
        ModelSpec(name="b", grant=8 * GIB, **asleep),  # type: ignore[arg-type]
    )
    world = World.of(*specs, gpus=(gpu(0),), policy=Policy(host_budget_bytes=10 * GIB))
    for name in ("a", "b"):
        world.finish(world.bring_up(name), name)
    world.happen(SleepAsked(model="b"))
    world.fell_asleep("b")
    world.pass_time(100)
    assert world.stopped == ["b"]
    assert (world["a"].state, world["b"].state) == (State.SLEEPING, State.STOPPING)


def test_budgets_of_two_gpus_are_lowered_under_an_engine_on_both() -> None:
    both = ModelSpec(name="a", pinned=(0, 1), gpu_count=2, grant=12 * GIB, min_residency_s=0)
    world = World.of(both, gpus=(gpu(0), gpu(1)))
    world.finish(world.bring_up("a"), "a")
    world.now += 100
    world.happen(ConfigChanged(specs=(both,), gpus=(gpu(0, 8), gpu(1, 8))))
    assert world.stopped == ["a"]


def test_a_stop_by_hand_is_no_restart_of_one_that_was_ended_for_its_memory() -> None:
    greedy = ModelSpec(name="a", pinned=(0,), grant=8 * GIB, backoff_s=(5, 5))
    world = World.of(greedy, gpus=(gpu(0),))
    world.finish(world.bring_up("a"), "a")
    for _ in range(5):
        world.now += 2
        world.look(0, 15, a=15)
    world.exited("a")
    assert world["a"].state is State.BACKOFF
    world.happen(StopAsked(model="a"))
    world.pass_time(20)
    assert (world["a"].state, world.prepared) == (State.STOPPED, ["a"])


def test_a_sleeper_on_the_same_gpu_gives_its_main_memory_for_a_start_that_the_kernel_killed() -> None:
    asleep = ModelSpec(name="b", pinned=(0,), grant=4 * GIB, sleep_level=1)
    world = World.of(ModelSpec(name="a", pinned=(0,), grant=4 * GIB), asleep, gpus=(gpu(0),))
    world.finish(world.bring_up("b"), "b")
    world.happen(SleepAsked(model="b"))
    world.fell_asleep("b")
    world.ask("a")
    world.prepare("a")
    world.exited("a", "was killed", Cause.HOST_OOM)
    assert world.stopped == ["b"]
    assert world["a"].state is State.BACKOFF


def test_a_sleeper_that_would_not_fit_awake_any_more_is_ended_by_the_reload() -> None:
    spec = ModelSpec(name="a", pinned=(0,), sleep_level=1)
    world = World.of(spec, gpus=(gpu(0),))
    world.finish(world.bring_up("a"), "a")
    world.happen(SleepAsked(model="a"))
    world.fell_asleep("a")
    world.happen(ConfigChanged(specs=(spec,), gpus=(gpu(0, 16),)))
    assert world.stopped == ["a"]
    world.exited("a")
    world.ask("a")
    world.prepare("a")
    assert world["a"].granted_bytes == (16 * GIB,)


def test_a_wake_by_hand_waits_from_when_it_was_asked_for() -> None:
    sleeper = ModelSpec(name="a", pinned=(0,), grant=12 * GIB, sleep_level=1, min_residency_s=0)
    other = ModelSpec(name="b", pinned=(0,), grant=12 * GIB, min_residency_s=0)
    world = World.of(sleeper, other, gpus=(gpu(0),))
    world.finish(world.bring_up("a"), "a")
    world.happen(SleepAsked(model="a"))
    world.fell_asleep("a")
    world.bring_up("b")
    world.pass_time(300)
    world.happen(StartAsked(model="a"))
    assert world["b"].yields_to == "", "not at once"
    world.pass_time(100)
    assert world["b"].yields_to == "a"
