"""What becomes of a model that the schedule closes, whatever it was doing, and of who asks for it."""

from dataclasses import replace

import pytest

from supervisord_llm.core import outlook
from supervisord_llm.core.effects import Reject, StopEngine
from supervisord_llm.core.events import (
    ConfigChanged,
    EngineAdopted,
    RelayFinished,
    RestartAsked,
    SleepAsked,
    StartAsked,
    Tick,
)
from supervisord_llm.core.fleet import Learnt, ModelSpec
from supervisord_llm.core.state import State
from tests.core.world import GIB, World, gpu

WHY = 'window "night" of the schedule does not let it run until 06:00 (UTC)'
DAY = ModelSpec(name="day", pinned=(0,), grant=15 * GIB, stop_after_s=None, sleep_level=1)
NIGHT = ModelSpec(name="night", pinned=None, gpu_count=2, grant=18 * GIB, stop_after_s=None)
GPUS = (gpu(0), gpu(1))


def close(world: World, *names: str, opens_in_s: float | None = 3600.0, drains_for_s: float = 0.0) -> None:
    """As the daemon says it at a switch; the others are open."""
    opens_at = None if opens_in_s is None else world.now + opens_in_s
    closes_at = world.now + drains_for_s if drains_for_s else 0.0
    specs = tuple(
        replace(engine.spec, closed=WHY, opens_at=opens_at, closes_at=closes_at)
        if engine.name in names
        else replace(engine.spec, closed="", opens_at=None, closes_at=0.0)
        for engine in world.fleet
    )
    world.happen(ConfigChanged(specs=specs, gpus=GPUS))


@pytest.fixture
def world() -> World:
    return World.of(DAY, NIGHT, gpus=GPUS)


def test_who_comes_is_refused_with_when_it_opens(world: World) -> None:
    close(world, "day")
    request = world.ask("day")
    (refused,) = [effect for effect in world.of_kind(Reject) if effect.request == request]
    assert (refused.code, refused.retry_after_s) == ("out_of_schedule", 3600.0)
    assert refused.message == f"cannot serve day now: {WHY}"
    assert world.prepared == []


def test_where_it_is_not_known_when_it_opens_an_hour_is_said(world: World) -> None:
    close(world, "day", opens_in_s=None)
    world.ask("day")
    assert world.of_kind(Reject)[-1].retry_after_s == 3600.0


@pytest.mark.parametrize("doing", ["preparing", "queued", "starting", "sleeping", "waking"])
def test_one_that_is_not_up_ends_at_once_and_who_waits_is_refused(world: World, doing: str) -> None:
    if doing in ("sleeping", "waking"):
        world.finish(world.bring_up("day"), "day")
        world.asleep("day")
        waits = world.ask("day") if doing == "waking" else None
    else:
        if doing == "queued":  # the cards are taken
            world.bring_up("night")
        waits = world.ask("day")
        if doing != "preparing":
            world.prepare("day")
    assert world["day"].state == doing
    close(world, "day")
    assert world["day"].state is (State.STOPPED if doing in ("preparing", "queued") else State.STOPPING)
    assert waits is None or world.rejected[waits] == "out_of_schedule"
    if world["day"].state is State.STOPPING:
        world.exited("day")
    world.pass_time(3000)
    assert world["day"].state is State.STOPPED


def test_one_that_serves_drains_and_is_cut_when_the_time_is_over(world: World) -> None:
    request = world.bring_up("day")
    close(world, "day")
    assert world["day"].state is State.DRAINING
    assert f"stops day: {WHY}; 1 request may finish first" in world.told
    world.pass_time(29)
    assert world.stopped == []
    world.pass_time(2)
    assert world.stopped == ["day"]
    world.exited("day")
    world.happen(RelayFinished(request=request, model="day"))
    assert world["day"].state is State.STOPPED


def test_while_the_window_is_yet_to_come_what_is_in_flight_may_go_on_until_then(world: World) -> None:
    request = world.bring_up("day")
    close(world, "day", drains_for_s=600)
    refused = world.ask("day")
    assert world.rejected == {refused: "out_of_schedule"}
    world.pass_time(599)
    assert world.stopped == []
    world.pass_time(2)
    assert world.stopped == ["day"]
    assert world["day"].leases == {request}


def test_once_nothing_is_in_flight_it_ends_before_the_window_begins(world: World) -> None:
    request = world.bring_up("day")
    close(world, "day", drains_for_s=600)
    world.finish(request, "day")
    assert world.of_kind(StopEngine) == [StopEngine(model="day", launch=1)]


def test_a_drain_that_was_to_end_asleep_ends_stopped(world: World) -> None:
    request = world.bring_up("day")
    world.happen(SleepAsked(model="day"))
    close(world, "day")
    world.finish(request, "day")
    assert world["day"].state is State.STOPPING
    assert world.slept == []


def test_keep_does_not_resist_nor_bring_it_back() -> None:
    world = World.of(replace(DAY, keep=True), NIGHT, gpus=GPUS)
    world.finish(world.bring_up("day"), "day")
    close(world, "day")
    world.exited("day")
    world.pass_time(7000)
    assert world["day"].state is State.STOPPED


@pytest.mark.parametrize("order", [StartAsked, RestartAsked])
def test_an_order_for_it_changes_nothing(world: World, order: type[StartAsked | RestartAsked]) -> None:
    close(world, "day")
    world.happen(order(model="day"))
    world.pass_time(100)
    assert world["day"].state is State.STOPPED
    assert world.prepared == []


def test_a_crash_while_it_drains_does_not_bring_it_back(world: World) -> None:
    world.bring_up("day")
    close(world, "day")
    world.exited("day")
    world.pass_time(100)
    assert world["day"].state is State.STOPPED


def test_the_preload_of_the_window_follows_once_the_others_are_gone(world: World) -> None:
    request = world.bring_up("day")
    specs = (replace(DAY, closed=WHY, opens_at=4000.0), NIGHT)
    world.happen(ConfigChanged(specs=specs, gpus=GPUS, preload=("day", "night")))
    world.prepare("night")
    assert world["night"].state is State.QUEUED
    world.pass_time(10)
    world.finish(request, "day")
    world.exited("day")
    for index in (0, 1):
        world.look(index, used_gib=0.5, other=0.0)
    assert world["night"].state is State.STARTING
    world.ready("night")
    assert world["day"].state is State.STOPPED


def test_the_default_model_does_not_come_back_before_it_opens() -> None:
    world = World.of(replace(DAY, comes_back=True), NIGHT, gpus=GPUS)
    world.finish(world.bring_up("day"), "day")
    world.pass_time(100)
    night = world.ask("night")
    world.prepare("night")
    if world["day"].state is State.SLEEPING:
        world.fell_asleep("day")
    assert world.fleet.displaced == "day"
    close(world, "day")
    world.exited("day")
    world.pass_time(5)
    assert world["night"].state is State.STARTING
    world.ready("night")
    world.finish(night, "night")
    world.pass_time(900)
    assert world["day"].state is State.STOPPED
    close(world)
    world.pass_time(900)
    assert world["day"].state is not State.STOPPED


def test_one_of_an_earlier_run_is_drained(world: World) -> None:
    close(world, "day")
    world.happen(EngineAdopted(model="day", launch=7, gpus=(0,), granted_bytes=(15 * GIB,)))
    assert world["day"].state is State.STOPPING
    world.exited("day")
    assert world["day"].state is State.STOPPED


def test_a_failure_is_still_known_when_it_opens() -> None:
    world = World.of(replace(DAY, learnt=Learnt(is_exhausted=True)), NIGHT, gpus=GPUS)
    close(world, "day")
    request = world.ask("day")
    assert world.rejected[request] == "out_of_schedule"
    close(world)
    request = world.ask("day")
    assert world.rejected[request] == "start_failed"


def test_people_are_told_why(world: World) -> None:
    close(world, "day")
    engine = world["day"]
    assert outlook.standing(engine, world.now) == f"day is stopped: {WHY}"
    assert "a request would be refused: cannot serve day now" in outlook.outlook(
        world.fleet, engine, world.now
    )


def test_a_tick_does_not_say_it_twice(world: World) -> None:
    world.bring_up("day")
    close(world, "day")
    told = len(world.told)
    for _ in range(5):
        close(world, "day")
        world.happen(Tick())
    assert len(world.told) == told
