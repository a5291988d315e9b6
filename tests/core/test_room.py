"""Who gets which GPU, who waits for whom, and that nobody waits for ever."""

import heapq
from dataclasses import replace
from itertools import count

import pytest

from supervisord_llm.core.effects import (
    Admit,
    Effect,
    Prepare,
    Reject,
    SampleGpus,
    SleepEngine,
    StartEngine,
    StopEngine,
    WakeEngine,
)
from supervisord_llm.core.events import (
    EngineExited,
    EngineReady,
    EngineStuck,
    Event,
    FellAsleep,
    Prepared,
    RelayFinished,
    RequestArrived,
    RequestCancelled,
    StopAsked,
    Tick,
    Woke,
)
from supervisord_llm.core.eviction import LINGER_MOST_S
from supervisord_llm.core.fleet import ModelSpec
from supervisord_llm.core.state import State
from tests.core.world import GIB, World, gpu

QUIET_S = LINGER_MOST_S + 1
"""After so long nobody minds that an idle engine gives way."""


def model(name: str, gib: float = 20, **spec: object) -> ModelSpec:
    asked = {"pinned": (0,), "min_residency_s": 0.0} | spec
    return ModelSpec(name=name, grant=int(gib * GIB), **asked)  # type: ignore[arg-type]


def up(*specs: ModelSpec, gpus: int = 1) -> World:
    """The first is ready and idle, and nobody would mind its going."""
    world = World.of(*specs, gpus=tuple(gpu(index) for index in range(gpus)))
    world.finish(world.bring_up(specs[0].name), specs[0].name)
    world.now += QUIET_S
    return world


def queue(world: World, name: str, priority: int = 0) -> int:
    request = world.ask(name, priority)
    world.prepare(name)
    return request


class TestStrangers:
    def test_within_what_no_grant_may_take_they_do_not_count(self) -> None:
        world = World.of(model("a"), gpus=(gpu(0, budget_gib=20, total_gib=24),))
        world.look(0, 4, nobody=0)
        world.bring_up("a")

    def test_in_the_budget_they_do_and_are_named_when_their_time_is_over(self) -> None:
        world = World.of(model("a", 18), gpus=(gpu(0),))
        world.look(0, 8, nobody=0)
        request = queue(world, "a")
        assert world["a"].state is State.QUEUED
        world.pass_time(9)
        assert world.rejected == {}
        assert SampleGpus() in world.pass_time(1), "looked at again, for they may be gone"
        assert world.rejected == {request: "no_vram"}
        assert world.of_kind(Reject)[0].message == (
            "cannot start a now: it needs 18.0 GiB, 16.0 GiB free on GPU 0; held by other programs (8.0 GiB: "
            "blender, pid 4711, 8.0 GiB); none of that makes room by itself, so end what holds it, or try "
            "again later"
        )
        assert world["a"].state is State.STOPPED

    def test_one_that_leaves_makes_room(self) -> None:
        world = World.of(model("a", 18), gpus=(gpu(0),))
        world.look(0, 8, nobody=0)
        queue(world, "a")
        world.look(0, 1, nobody=0)
        assert world.started == ["a"]

    def test_one_card_taken_by_strangers_is_not_hopeless_while_another_is_only_busy(self) -> None:
        world = World.of(model("busy", 20, pinned=(1,)), model("a", 10, pinned=None), gpus=(gpu(0), gpu(1)))
        world.look(0, 15, nobody=0)
        request = world.bring_up("busy")
        waiter = queue(world, "a")
        world.pass_time(25)
        assert world.rejected == {}
        world.finish(request, "busy")
        world.pass_time(QUIET_S)
        world.exited("busy")
        assert world["a"].gpus == (1,)
        assert waiter not in world.rejected

    def test_a_stuck_engine_is_no_hope_either(self) -> None:

        world = up(model("a"), model("b"))
        world.happen(StopAsked(model="a"), EngineStuck(model="a", launch=1))
        request = queue(world, "b")
        world.pass_time(10)
        assert world.rejected == {request: "no_vram"}


class TestSettling:
    """Memory that was given up is seen to be free before the next launch."""

    def evicted(self) -> World:
        world = up(model("a"), model("b"), model("c", 2))
        world.look(0, 19, a=18)
        queue(world, "b")
        world.exited("a")
        assert world.started == ["a"]
        return world

    def test_a_launch_waits_for_a_look_that_is_newer(self) -> None:
        world = self.evicted()
        assert world["b"].phase == "waits until memory that was given up on GPU 0 is seen to be free"
        world.look(0, 1, nobody=0)
        assert world.started == ["a", "b"]

    def test_and_for_the_memory_to_be_back(self) -> None:
        world = self.evicted()
        world.look(0, 12, nobody=0)
        assert world.started == ["a"]
        world.look(0, 1.3, nobody=0)
        assert world.started == ["a", "b"]

    def test_nobody_gives_way_for_memory_that_is_on_its_way(self) -> None:
        world = World.of(model("idle", 4), model("a", 16), model("b", 16), gpus=(gpu(0),))
        for name in ("idle", "a"):
            world.finish(world.bring_up(name), name)
            world.now += QUIET_S
        world.look(0, 20, idle=4, a=15)
        world.ask("idle")
        queue(world, "b")
        assert world.stopped == ["a"]
        world.finish(world.admitted[-1], "idle")
        world.now += QUIET_S
        world.exited("a")
        world.look(0, 14, idle=4)
        assert world.stopped == ["a"]
        world.look(0, 5, idle=4)
        assert world.started[-1] == "b"

    def test_but_not_for_ever(self) -> None:
        world = self.evicted()
        world.pass_time(10)
        assert world.started == ["a", "b"]

    def test_without_looks_nothing_is_waited_for(self) -> None:
        world = up(model("a"), model("b"))
        queue(world, "b")
        world.exited("a")
        assert world.started == ["a", "b"]

    def test_where_the_driver_does_not_tell_the_rest_of_the_card_is_not_taken_for_it(self) -> None:
        world = World.of(model("a"), model("b"), gpus=(gpu(0),))
        world.look(0, 2)
        world.bring_up("a")
        world.look(0, 18)  # 16 of its 20, and a desktop of 2
        world.finish(world.admitted[-1], "a")
        world.now += QUIET_S
        queue(world, "b")
        world.exited("a")
        world.look(0, 2)
        assert world.started[-1] == "b"


class TestPlacement:
    def test_tensor_parallel_takes_equal_cards(self) -> None:
        spec = ModelSpec(name="a", pinned=None, gpu_count=2, grant=8 * GIB)
        cards = (gpu(0, 40, 48), gpu(1, 20, 24), gpu(2, 20, 24))
        world = World.of(spec, gpus=cards)
        world.bring_up("a")
        assert world["a"].gpus == (1, 2)

    def test_without_as_many_equal_cards_it_is_refused_with_the_figures(self) -> None:
        spec = ModelSpec(name="a", pinned=None, gpu_count=2, grant=8 * GIB)
        world = World.of(spec, gpus=(gpu(0, 40, 48), gpu(1, 20, 24)))
        request = world.ask("a")
        assert world.rejected == {request: "no_vram"}
        assert "it takes 2 equal GPUs" in world.of_kind(Reject)[0].message

    def test_what_a_pair_lacks_is_told_of_the_card_that_lacks_it(self) -> None:
        pair = ModelSpec(name="pair", pinned=None, gpu_count=2, grant=18 * GIB)
        world = World.of(model("a", 8, pinned=(1,)), pair, gpus=(gpu(0), gpu(1)))
        world.bring_up("a")
        queue(world, "pair")
        assert world["pair"].phase == (
            "needs 18.0 GiB, 12.0 GiB free on GPU 1; held by a (8.0 GiB, in use by 1 request)"
        )

    def test_one_that_waits_for_a_start_holds_up_no_other_gpu(self) -> None:
        world = World.of(
            model("busy", 12, pinned=(1,)),
            model("slow", 12),
            model("auto", 12, pinned=None),
            model("small", 4, pinned=(1,)),
            gpus=(gpu(0), gpu(1)),
        )
        world.bring_up("busy")
        queue(world, "slow")
        queue(world, "auto")
        queue(world, "small")
        assert world.started == ["busy", "slow", "small"]

    def test_the_cheapest_gives_way(self) -> None:
        world = up(
            model("a", 10, pinned=(0,)), model("b", 10, pinned=(1,)), model("c", 15, pinned=None), gpus=2
        )
        world.finish(world.bring_up("b"), "b")
        for _ in range(3):
            world.now += 61
            world.finish(world.ask("a"), "a")
        world.now += QUIET_S
        queue(world, "c")
        assert world.stopped == ["b"]

    def test_one_whose_client_matters_more_gives_way_last(self) -> None:
        world = up(
            model("a", 10, pinned=(0,)), model("b", 10, pinned=(1,)), model("c", 15, pinned=None), gpus=2
        )
        world.finish(world.bring_up("b"), "b")
        for _ in range(3):
            world.now += 61
            world.finish(world.ask("b"), "b")
        world.finish(world.ask("a", priority=10), "a")
        world.now += QUIET_S
        queue(world, "c")
        assert world.stopped == ["b"]


class TestTurns:
    def test_an_engine_in_use_a_moment_ago_is_left_alone_for_a_moment(self) -> None:
        world = World.of(model("a"), model("b"), gpus=(gpu(0),))
        request = queue(world, "a")
        world.now += 60  # what coming back would cost it
        world.ready("a")
        world.finish(request, "a")
        queue(world, "b")
        assert world.stopped == []
        assert "a (20.0 GiB, not idle for long enough)" in world["b"].phase
        world.pass_time(QUIET_S)
        assert world.stopped == ["a"]

    def test_who_uses_it_goes_on_for_a_fair_wait_and_then_yields(self) -> None:
        world = up(model("a"), model("b"))
        busy = world.ask("a")
        waiter = queue(world, "b")
        world.pass_time(59)
        assert world.ask("a") in world.admitted
        world.pass_time(2)
        assert world["a"].yields_to == "b"
        assert any(
            text.startswith("a takes no new requests: it makes room for b, which has") for text in world.told
        )
        late = world.ask("a")
        assert late not in world.admitted
        world.finish(busy, "a")
        assert world.stopped == []
        world.finish(busy + 2, "a")
        assert world.stopped == ["a"]
        world.exited("a")
        world.ready("b")
        assert waiter in world.admitted
        assert (world["a"].state, world.rejected) == (State.PREPARING, {})

    def test_who_waits_no_more_is_yielded_to_no_more(self) -> None:

        world = up(model("a"), model("b"))
        world.ask("a")
        waiter = queue(world, "b")
        world.pass_time(61)
        late = world.ask("a")
        world.happen(RequestCancelled(request=waiter, model="b"))
        assert (world["a"].yields_to, late in world.admitted) == ("", True)

    def test_within_its_residency_it_does_not_yield_and_nobody_else_starts_there(self) -> None:
        world = World.of(model("a", 16, min_residency_s=100), model("b", 16), model("c", 2), gpus=(gpu(0),))
        world.bring_up("a")
        queue(world, "b")
        world.pass_time(70)
        queue(world, "c")
        assert (world["a"].yields_to, world.started) == ("", ["a"])
        world.pass_time(31)
        assert world["a"].yields_to == "b"

    def test_higher_priority_first_but_nobody_starves(self) -> None:
        world = up(model("a"), model("low"), model("high"))
        world.ask("a")
        queue(world, "low", 0)
        queue(world, "high", 9)
        world.pass_time(61)
        assert world["a"].yields_to == "high"
        world.pass_time(200)
        assert world["a"].yields_to == "low"

    def test_requests_are_served_in_runs(self) -> None:
        """ABABAB becomes AAABBB."""
        world = up(model("a"), model("b"))
        for _ in range(3):
            world.finish(world.ask("a"), "a")
            world.ask("b")
        world.prepare("b")
        world.pass_time(QUIET_S)
        world.exited("a")
        world.ready("b")
        assert world.started == ["a", "b"]
        assert len(world.admitted) == 7


class TestReturn:
    def world(self) -> World:
        home = replace(model("home", 12), comes_back=True)
        return up(home, model("b", 12), model("far", 4, pinned=(1,)), gpus=2)

    def test_the_default_model_comes_back_once_who_has_its_room_is_idle(self) -> None:
        world = self.world()
        queue(world, "b")
        world.exited("home")
        world.ready("b")
        world.finish(world.admitted[-1], "b")
        world.pass_time(59)
        assert world.prepared == ["home", "b"]
        world.pass_time(1)
        assert world.prepared == ["home", "b", "home"]
        world.prepare("home")
        assert world.stopped == ["home", "b"]

    def test_who_is_busy_on_another_gpu_does_not_keep_it_away(self) -> None:
        world = self.world()
        queue(world, "b")
        world.exited("home")
        world.ready("b")
        world.bring_up("far")
        world.finish(2, "b")
        world.pass_time(61)
        assert world.prepared[-1] == "home"

    def test_while_its_room_is_used_it_stays_away(self) -> None:
        world = self.world()
        queue(world, "b")
        world.exited("home")
        world.ready("b")
        world.pass_time(500)
        assert world.prepared == ["home", "b"]

    def test_asleep_it_is_woken(self) -> None:
        home = replace(model("home", 12, sleep_level=1), comes_back=True)
        world = up(home, model("b", 12))
        queue(world, "b")
        world.fell_asleep("home")
        world.ready("b")
        world.finish(world.admitted[-1], "b")
        world.pass_time(61)
        assert world.stopped == ["b"]
        world.exited("b")
        assert world.woken == ["home"]


@pytest.mark.parametrize("sleep_level", [0, 1])
def test_with_requests_for_ever_on_all_models_everyone_is_served_in_bounded_time(sleep_level: int) -> None:
    """Six models, two GPUs, never a quiet moment, leases of at most 20 s: who waits is admitted."""
    specs = [
        ModelSpec(
            name=f"m{index}",
            grant=size * GIB,
            pinned=pinned,
            gpu_count=gpus,
            sleep_level=sleep_level,
            min_residency_s=10,
            queue_timeout_s=100_000,
            queue_size=10_000,
        )
        for index, (size, pinned, gpus) in enumerate(
            [(19, (0,), 1), (19, (1,), 1), (8, None, 1), (8, None, 1), (5, (0,), 1), (18, None, 2)]
        )
    ]
    world = World.of(*specs, gpus=(gpu(0), gpu(1)))
    order = count()
    todo: list[tuple[float, int, Event]] = []
    came: dict[int, tuple[float, int]] = {}
    waits: dict[int, float] = {}

    def later(delay_s: float, event: Event) -> None:
        heapq.heappush(todo, (world.now + delay_s, next(order), event))

    def perform(effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Prepare(model=name, launch=launch):
                    later(0.1, Prepared(model=name, launch=launch))
                case StartEngine(model=name, launch=launch):
                    later(15, EngineReady(model=name, launch=launch))
                case SleepEngine(model=name, launch=launch):
                    later(1, FellAsleep(model=name, launch=launch))
                case WakeEngine(model=name, launch=launch):
                    later(2, Woke(model=name, launch=launch))
                case StopEngine(model=name, launch=launch):
                    later(1, EngineExited(model=name, launch=launch, reason="ended"))
                case Admit(request=request, model=name):
                    waits[request] = world.now - came.pop(request)[0]
                    later(5 + request % 16, RelayFinished(request=request, model=name))
                case Reject() as refusal:
                    raise AssertionError(refusal)
                case _:
                    pass

    end = 4 * 3600.0
    for step in range(int(end)):  # one a second, the popular ones more, with all priorities
        name = f"m{(step * step + step // 7) % 6}"
        priority = 5 if name == "m0" else step % 3
        heapq.heappush(
            todo, (float(step), next(order), RequestArrived(request=step, model=name, priority=priority))
        )
    while todo or came:
        wake = world.next_wake()
        if not todo or (wake is not None and wake <= todo[0][0]):
            assert wake is not None, "some wait, and nothing will ever happen"
            assert wake < end + 3600, "some wait for ever"
            world.now = max(world.now, wake)
            world.effects.clear()
            perform(world.happen(Tick()))
        else:
            world.now, _, event = heapq.heappop(todo)
            if isinstance(event, RequestArrived):
                came[event.request] = (world.now, event.priority)
            perform(world.happen(event))
    assert max(waits.values()) < 1800, "bounded: a few fair waits and the starts between them"
