"""Tiers: ready, asleep, stopped; and back."""

from supervisord_llm.core.effects import Reject, Remember, StopEngine, WakeEngine
from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.events import (
    Cause,
    ConfigChanged,
    Estimated,
    GpusSampled,
    SleepAsked,
    SleepFailed,
    StartAsked,
    StopAsked,
    WakeFailed,
)
from supervisord_llm.core.eviction import LINGER_MOST_S
from supervisord_llm.core.fleet import GpuSample, ModelSpec, Policy
from supervisord_llm.core.ledger import RESIDUE_BYTES
from supervisord_llm.core.state import State
from tests.core.world import GIB, World, gpu

QUIET_S = LINGER_MOST_S + 1
"""After so long nobody minds that an idle engine gives way."""


def sleeper(name: str = "a", gib: float = 12, **spec: object) -> ModelSpec:
    asked = {"pinned": (0,), "sleep_level": 1, "min_residency_s": 0.0} | spec
    return ModelSpec(name=name, grant=int(gib * GIB), **asked)  # type: ignore[arg-type]


def up(*specs: ModelSpec, policy: Policy | None = None, gpus: int = 1) -> World:
    """The first model is ready, idle for longer than anybody lets it linger."""
    world = World.of(*specs, gpus=tuple(gpu(index) for index in range(gpus)), policy=policy)
    name = specs[0].name
    world.finish(world.bring_up(name), name)
    world.now += QUIET_S
    return world


class TestFallingAsleep:
    def test_idle_it_sleeps_then_stops(self) -> None:
        world = up(sleeper(sleep_after_s=60, stop_after_s=300))
        world.pass_time(59 - QUIET_S)
        assert world.slept == []
        world.pass_time(1)
        assert world.slept == ["a"]
        world.fell_asleep("a")
        world.pass_time(239)
        assert (world["a"].state, world.stopped) == (State.SLEEPING, [])
        world.pass_time(1)
        assert world.stopped == ["a"]

    def test_it_counts_for_all_of_its_grant_until_its_memory_is_seen_to_be_free(self) -> None:
        world = up(sleeper())
        world.look(0, 13, a=12)
        world.happen(SleepAsked(model="a"))
        world.fell_asleep("a")
        assert world["a"].granted_bytes == (12 * GIB,)
        world.look(0, 2, a=1)
        assert world["a"].granted_bytes == (GIB,)
        assert world.of_kind(Remember)[-1].learnt.residue_bytes == GIB
        assert "a sleeps; it still holds 1.0 GiB of GPU 0" in world.told

    def test_where_none_can_see_it_a_residue_is_assumed(self) -> None:
        world = up(sleeper())
        world.asleep("a")
        assert world["a"].granted_bytes == (RESIDUE_BYTES,)

    def test_by_difference_where_the_driver_does_not_tell_whose_memory_it_is(self) -> None:
        world = up(sleeper())
        world.look(0, 13)
        world.happen(SleepAsked(model="a"))
        world.fell_asleep("a")
        world.look(0, 2.5)
        assert world["a"].granted_bytes == (int(1.5 * GIB),)

    def test_a_small_model_whose_residue_is_most_of_it_is_told_once(self) -> None:
        world = up(sleeper(gib=1.25))
        world.look(0, 2, a=1.2)
        world.happen(SleepAsked(model="a"))
        world.fell_asleep("a")
        for _ in range(3):
            world.look(0, 1.2, a=1.1)
        assert len([text for text in world.told if text.startswith("a sleeps")]) == 1
        assert world["a"].state is State.SLEEPING

    def test_memory_that_does_not_come_back_ends_it_and_it_is_not_put_to_sleep_again(self) -> None:
        world = up(sleeper(sleep_after_s=60))
        world.look(0, 13, a=12)
        world.happen(SleepAsked(model="a"))
        world.fell_asleep("a")
        world.look(0, 13, a=12)
        assert world["a"].state is State.SLEEPING, "it may take a moment"
        world.pass_time(10)
        world.look(0, 13, a=12)
        assert world["a"].state is State.STOPPING
        assert any("did not come back: asleep it still held 12.0 GiB" in text for text in world.told)
        world.exited("a")
        world.look(0, 1, nobody=0)
        world.finish(world.bring_up("a"), "a")
        world.pass_time(300)
        assert len(world.slept) == 1

    def test_memory_that_comes_back_late_does_not_end_it_for_who_waits(self) -> None:
        world = up(sleeper(), ModelSpec(name="b", pinned=(0,), grant=12 * GIB))
        world.look(0, 13, a=12)
        world.ask("b")
        world.prepare("b")
        world.fell_asleep("a")
        world.look(0, 13, a=12)
        assert (world.stopped, world.started) == ([], ["a"])
        world.look(0, 2, a=1)
        assert (world.stopped, world.started) == ([], ["a", "b"])

    def test_without_any_further_look_it_is_taken_for_free_after_a_while(self) -> None:
        world = up(sleeper(), ModelSpec(name="b", pinned=(0,), grant=12 * GIB))
        world.look(0, 13, a=12)
        world.happen(SleepAsked(model="a"))
        world.fell_asleep("a")
        world.pass_time(21)
        assert world["a"].granted_bytes == (RESIDUE_BYTES,)

    def test_nvml_that_stops_telling_is_not_memory_that_did_not_come_back(self) -> None:
        world = up(sleeper())
        world.look(0, 13, a=12)
        world.happen(SleepAsked(model="a"))
        world.fell_asleep("a")
        world.look(0, None)
        assert (world["a"].state, world["a"].granted_bytes) == (State.SLEEPING, (RESIDUE_BYTES,))

    def test_one_that_will_not_sleep_is_stopped(self) -> None:
        world = up(sleeper())
        world.happen(SleepAsked(model="a"), SleepFailed(model="a", launch=1, reason="HTTP 500"))
        assert world["a"].state is State.STOPPING
        assert any("not put to sleep any more" in text and "HTTP 500" in text for text in world.told)

    def test_one_that_never_answers_is_killed_and_who_waits_gets_the_next_life(self) -> None:
        world = up(sleeper(start_timeout_s=100))
        world.happen(SleepAsked(model="a"))
        request = world.ask("a")
        world.pass_time(100)
        assert world.of_kind(StopEngine) == [StopEngine(model="a", launch=1, kill=True)]
        world.exited("a")
        world.prepare("a")
        world.ready("a")
        assert world.admitted[-1] == request

    def test_asked_for_by_hand_it_lets_requests_finish(self) -> None:
        world = up(sleeper())
        request = world.ask("a")
        world.happen(SleepAsked(model="a"))
        assert (world["a"].state, world.slept) == (State.DRAINING, [])
        world.finish(request, "a")
        assert world.slept == ["a"]

    def test_a_request_while_it_falls_asleep_wakes_it(self) -> None:
        world = up(sleeper())
        world.happen(SleepAsked(model="a"))
        request = world.ask("a")
        world.fell_asleep("a")
        assert world.woken == ["a"]
        world.woke("a")
        assert world.admitted[-1] == request

    def test_a_kept_engine_never_sleeps(self) -> None:
        world = up(sleeper(keep=True, sleep_after_s=1), ModelSpec(name="b", pinned=(0,), grant=12 * GIB))
        world.happen(SleepAsked(model="a"))
        world.ask("b")
        world.prepare("b")
        world.pass_time(500)
        assert (world.slept, world.stopped, world["a"].state) == ([], [], State.READY)

    def test_one_that_is_killed_for_want_of_main_memory_while_asleep_does_not_sleep_again(self) -> None:
        world = up(sleeper())
        world.happen(SleepAsked(model="a"))
        world.exited("a", "was killed by the kernel", cause=Cause.HOST_OOM)
        assert world["a"].state is State.BACKOFF
        assert "main memory ran out" in world["a"].sleepless
        world.pass_time(2)
        world.bring_up("a")


class TestEviction:
    def test_it_makes_room_asleep_where_that_is_enough(self) -> None:
        world = up(sleeper(), ModelSpec(name="b", pinned=(0,), grant=18 * GIB))
        world.ask("b")
        world.prepare("b")
        assert (world.slept, world.stopped, world["b"].phase) == (["a"], [], "waits until a has made room")
        world.fell_asleep("a")
        assert world.started == ["a", "b"]

    def test_it_stops_where_its_residue_is_too_much(self) -> None:
        world = up(sleeper(), ModelSpec(name="b", pinned=(0,), grant=19 * GIB))
        world.ask("b")
        world.prepare("b")
        assert (world.slept, world.stopped) == ([], ["a"])

    def test_a_sleeper_stops_for_who_needs_its_residue(self) -> None:
        world = up(sleeper(), ModelSpec(name="b", pinned=(0,), grant=19 * GIB))
        world.asleep("a")
        world.ask("b")
        world.prepare("b")
        assert world.stopped == ["a"]


class TestMainMemory:
    def policy(self, gib: float) -> Policy:
        return Policy(host_budget_bytes=int(gib * GIB))

    def test_older_sleepers_stop_for_newer_ones(self) -> None:
        specs = (sleeper("a", 6), sleeper("b", 6), sleeper("c", 6))
        world = up(*specs, policy=self.policy(13))
        for name in "bc":
            world.now += QUIET_S
            world.finish(world.bring_up(name), name)
        world.asleep("a")
        world.asleep("b")
        assert world.stopped == []
        world.asleep("c")
        assert world.stopped == ["a"]
        assert "stops a, asleep: [host] ram_budget does not allow c to sleep beside it" in world.told

    def test_nobody_is_stopped_where_it_would_not_be_enough(self) -> None:
        world = up(sleeper("a", 4), sleeper("b", 7), sleeper("c", 8), policy=self.policy(12), gpus=1)
        for name in "bc":
            world.now += QUIET_S
            world.finish(world.bring_up(name), name)
        world.asleep("a")
        world.asleep("b")
        world.ask("b")  # wakes: its RAM is not to be had
        world.happen(SleepAsked(model="c"))
        assert "a" not in world.stopped
        assert world.stopped == ["c"], "asked to sleep, and cannot"

    def test_what_is_too_large_is_never_put_to_sleep(self) -> None:
        world = up(sleeper(sleep_after_s=60, stop_after_s=None), policy=self.policy(8))
        world.pass_time(60)
        assert (world.slept, world["a"].state) == ([], State.READY)
        assert any("takes 12.0 GiB of main memory, and [host] ram_budget is 8.0 GiB" in t for t in world.told)

    def test_level_2_takes_none(self) -> None:
        world = up(sleeper(sleep_level=2), policy=self.policy(1))
        world.asleep("a")


class TestWaking:
    def asleep(self, *specs: ModelSpec, gpus: int = 1) -> World:
        world = up(*specs, gpus=gpus)
        world.asleep(specs[0].name)
        return world

    def test_a_request_wakes_it_where_it_is(self) -> None:
        world = self.asleep(sleeper())
        request = world.ask("a")
        assert world.of_kind(WakeEngine) == [WakeEngine(model="a", launch=1, level=1)]
        assert world["a"].granted_bytes == (12 * GIB,)
        world.now += 2
        world.woke("a")
        assert world.admitted[-1] == request
        assert world.of_kind(Remember)[-1].learnt.wake_s == 2

    def test_a_start_asked_by_hand_wakes_it(self) -> None:
        world = self.asleep(sleeper())
        world.happen(StartAsked(model="a"))
        assert world.woken == ["a"]

    def test_it_does_not_make_room_for_itself(self) -> None:
        world = self.asleep(sleeper(), sleeper("b", 10, keep=True))
        world.finish(world.bring_up("b"), "b")
        world.happen(StartAsked(model="a"))
        assert (world.stopped, world.woken) == ([], [])

    def test_a_wake_is_a_start_as_far_as_the_lock_goes(self) -> None:
        world = self.asleep(sleeper(gib=6), ModelSpec(name="b", pinned=(0,), grant=4 * GIB))
        world.ask("a")
        world.ask("b")
        world.prepare("b")
        assert world.started == ["a"]
        world.woke("a")
        assert world.started == ["a", "b"]

    def test_others_make_room_for_it(self) -> None:
        world = self.asleep(sleeper(), sleeper("b", 18))
        world.finish(world.bring_up("b"), "b")
        world.now += QUIET_S
        world.ask("a")
        assert world.slept == ["a", "b"]
        world.fell_asleep("b")
        assert world.woken == ["a"]

    def test_its_place_taken_for_long_it_starts_elsewhere(self) -> None:
        world = self.asleep(sleeper(pinned=None), ModelSpec(name="b", pinned=(0,), grant=18 * GIB), gpus=2)
        assert world["a"].gpus == (0,)
        world.bring_up("b")
        request = world.ask("a")
        world.pass_time(29)
        assert world.stopped == []
        world.pass_time(31)
        assert world.stopped == ["a"]
        world.exited("a")
        world.prepare("a")
        world.ready("a")
        assert (world["a"].gpus, world.admitted[-1]) == ((1,), request)

    def test_a_stranger_in_its_place_sends_it_elsewhere(self) -> None:
        world = self.asleep(sleeper(pinned=None), gpus=2)
        world.look(0, 22, a=1)
        world.ask("a")
        assert world.stopped == ["a"]

    def test_a_failed_wake_is_a_restart_for_the_same_waiters(self) -> None:
        world = self.asleep(sleeper())
        request = world.ask("a")
        world.happen(WakeFailed(model="a", launch=1, reason="answers otherwise than before"))
        assert world.of_kind(StopEngine) == [StopEngine(model="a", launch=1, kill=True)]
        world.exited("a")
        assert world["a"].state is State.PREPARING
        world.prepare("a")
        world.ready("a")
        assert (world.admitted[-1], world.rejected) == (request, {})
        assert "answers otherwise" in world["a"].sleepless

    def test_a_wake_that_never_ends_is_killed(self) -> None:
        world = self.asleep(sleeper(start_timeout_s=100))
        request = world.ask("a")
        world.pass_time(100)
        assert world.rejected == {request: "start_timeout"}
        assert world.of_kind(Reject)[0].message.startswith("cannot wake a: not ready within 100 s")
        assert world["a"].sleepless

    def test_sleepers_that_wait_in_each_others_way_do_not_wait_for_ever(self) -> None:
        specs = [sleeper(name, 18, queue_timeout_s=10_000) for name in "abc"]
        world = up(*specs[:1], *specs[1:])
        world.asleep("a")
        world.finish(world.bring_up("b"), "b")
        world.asleep("b")
        world.look(0, 6, a=2.5, b=2.5)  # more than was thought
        requests = [world.ask("a"), world.ask("b")]
        world.pass_time(200)
        for name in "ab":
            if world[name].state is State.STOPPING:
                world.exited(name)
        world.pass_time(200)
        assert world.woken, (world["a"].phase, world["b"].phase)
        assert requests


class TestBesideAStart:
    """Nothing comes free on a GPU where a start measures it."""

    def starting(self, idle: ModelSpec) -> World:
        world = up(idle, ModelSpec(name="b", pinned=(0,), grant=4 * GIB))
        world.ask("b")
        world.prepare("b")
        assert world["b"].state is State.STARTING
        return world

    def test_an_idle_stop_waits_for_it_and_comes_after_it(self) -> None:
        world = self.starting(ModelSpec(name="a", pinned=(0,), grant=8 * GIB, stop_after_s=20))
        world.pass_time(60)
        assert world.stopped == []
        world.ready("b")
        assert world.stopped == ["a"]

    def test_so_does_sleep(self) -> None:
        world = self.starting(sleeper(sleep_after_s=20, stop_after_s=None))
        world.pass_time(60)
        assert world.slept == []
        world.exited("b")
        assert world.slept == ["a"]

    def test_so_does_an_eviction_of_one_that_is_on_that_gpu_too(self) -> None:
        world = World.of(
            ModelSpec(name="pair", pinned=(0, 1), grant=12 * GIB, min_residency_s=0),
            ModelSpec(name="b", pinned=(0,), grant=4 * GIB),
            ModelSpec(name="c", pinned=(1,), grant=12 * GIB),
            gpus=(gpu(0), gpu(1)),
        )
        world.finish(world.bring_up("pair"), "pair")
        world.now += QUIET_S
        world.ask("b")
        world.prepare("b")
        world.ask("c")
        world.prepare("c")
        assert world.stopped == []
        world.ready("b")
        assert world.stopped == ["pair"]


def test_preload_wakes_who_sleeps_and_goes_on_once_it_is_up() -> None:
    specs = (sleeper("a", 6), sleeper("b", 6))
    world = up(*specs)
    world.asleep("a")
    world.happen(ConfigChanged(specs=specs, gpus=(gpu(0),), preload=("a", "b")))
    assert (world.woken, world.prepared) == (["a"], ["a"])
    world.woke("a")
    assert world.prepared == ["a", "b"]


def test_a_stop_ends_a_sleeper_without_waking_it() -> None:
    world = up(sleeper())
    world.asleep("a")
    world.happen(StopAsked(model="a"))
    assert world.of_kind(StopEngine) == [StopEngine(model="a", launch=1)]


def test_a_lost_look_at_another_gpu_says_nothing_of_a_sleeper() -> None:
    world = up(sleeper())
    world.look(0, 13, a=12)
    world.happen(SleepAsked(model="a"))
    world.fell_asleep("a")
    world.happen(GpusSampled(samples=(GpuSample(index=1, at=world.now + 1, used_bytes=0, engines={}),)))
    assert world["a"].granted_bytes == (12 * GIB,)


def test_main_memory_is_that_of_the_weights_where_they_are_known() -> None:
    world = up(sleeper(), policy=Policy(host_budget_bytes=8 * GIB))
    known = Estimate(
        weights_bytes=6 * GIB,
        kv_bytes=GIB,
        least_kv_bytes=GIB,
        overhead_bytes=GIB,
        host_bytes=6 * GIB,
        max_model_len=1024,
        sequences=1,
        kv_bytes_per_token=1,
    )
    world.happen(Estimated(model="a", signature="", estimate=known))
    world.asleep("a")


def test_figures_that_never_showed_it_say_nothing_of_its_sleep() -> None:
    """As of a driver, or a container, that always tells the same."""
    world = World.of(sleeper(), sleeper("b"), gpus=(gpu(0),))
    world.look(0, 4)
    world.finish(world.bring_up("a"), "a")
    world.look(0, 4)
    world.happen(SleepAsked(model="a"))
    world.fell_asleep("a")
    world.look(0, 4)
    assert (world["a"].state, world["a"].granted_bytes) == (State.SLEEPING, (RESIDUE_BYTES,))
    world.happen(StopAsked(model="a"))
    world.exited("a")
    world.ask("b")
    world.prepare("b")
    world.look(0, 4)
    assert world.started == ["a", "b"], "nor of its end"


def test_without_a_look_since_it_is_awake_its_sleep_is_not_judged() -> None:
    world = World.of(sleeper(), gpus=(gpu(0),))
    world.look(0, 1)
    world.finish(world.bring_up("a"), "a")
    world.happen(SleepAsked(model="a"))
    world.fell_asleep("a")
    world.look(0, 2.2)
    assert (world["a"].state, world["a"].sleepless) == (State.SLEEPING, "")
