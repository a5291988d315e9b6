"""One step stays below a millisecond, even with a thousand models, eight full GPUs and fifty who wait.

A millisecond on the machine that REFERENCE_S was measured on. On a slower one, or one that is busy, a fixed
piece of Python takes longer as well, and the step may in proportion; on a faster one it gets no less.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import pytest

from supervisord_llm.core.events import (
    EngineExited,
    EngineReady,
    Event,
    GpusSampled,
    RelayFinished,
    RequestArrived,
    Tick,
)
from supervisord_llm.core.fleet import Engine, Fleet, GpuSample, ModelSpec
from supervisord_llm.core.scheduler import step
from supervisord_llm.core.state import State
from tests.core.world import GIB, World, gpu

MODELS, GPUS, EACH, QUEUED = 1000, 8, 6, 50
LIMIT_S = 0.001
REFERENCE_S = 0.0007
"""What `calibration_s` takes at its best on one core of a server CPU of 2021 (AMD EPYC 7003, Python 3.11)."""


def look(fleet: Fleet, at: float) -> GpusSampled:
    """Every GPU, with what its engines were granted in use."""
    samples = []
    for index in fleet.gpus:
        engines = {one.name: one.granted_bytes[0] for one in fleet if index in one.gpus}
        used = sum(engines.values())
        samples.append(GpuSample(index=index, at=at, used_bytes=used, engines=engines))
    return GpusSampled(samples=tuple(samples))


def full_house() -> World:
    """Engines on all that the GPUs have, a third of them in use, some starting, some ending; and a queue."""
    specs = [ModelSpec(name=f"m{index}", pinned=None, grant=10 * GIB) for index in range(MODELS)]
    world = World.of(*specs, gpus=tuple(gpu(index, EACH * 10, 80) for index in range(GPUS)))
    world.happen(look(world.fleet, 0.0))
    for index in range(GPUS * EACH):
        request = world.bring_up(f"m{index}")
        if index % 3:
            world.finish(request, f"m{index}")
    world.now = 10.0
    world.happen(look(world.fleet, world.now))
    for index in range(500, 500 + QUEUED):
        world.ask(f"m{index}", priority=index % 3)
        world.prepare(f"m{index}")
    world.pass_time(25)
    for engine in [each for each in world.fleet if each.state is State.STOPPING][: GPUS // 2]:
        world.exited(engine.name)
    world.now += 1
    world.happen(look(world.fleet, world.now))
    return world


def some(world: World, state: State) -> Engine:
    return next(engine for engine in world.fleet if engine.state is state)


def relay_finished(world: World) -> Event:
    engine = next(engine for engine in world.fleet if engine.leases)
    return RelayFinished(request=min(engine.leases), model=engine.name)


def engine_ready(world: World) -> Event:
    engine = some(world, State.STARTING)
    return EngineReady(model=engine.name, launch=engine.launch)


def engine_exited(world: World) -> Event:
    engine = some(world, State.STOPPING)
    return EngineExited(model=engine.name, launch=engine.launch, reason="ended")


EVENTS: dict[str, Callable[[World], Event]] = {
    "a request for a ready model": lambda world: RequestArrived(
        request=10**6, model=some(world, State.READY).name
    ),
    "a request for a stopped model": lambda world: RequestArrived(request=10**6, model="m999"),
    "a relay finished": relay_finished,
    "an engine is ready": engine_ready,
    "an engine exited": engine_exited,
    "a look at the GPUs": lambda world: look(world.fleet, world.now),
    "a tick": lambda world: Tick(),
}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = full_house()
    states = [engine.state for engine in world.fleet]
    assert states.count(State.QUEUED) >= QUEUED - 10
    assert sum(map(states.count, (State.READY, State.STARTING, State.STOPPING))) >= GPUS * EACH - 5
    gc.disable()  # as timeit does: the heap of the whole test run is not the step's
    yield world
    gc.enable()


@dataclass(frozen=True)
class Point:
    """What the calibration makes and reads."""

    name: str
    at: float


def calibration_s() -> float:
    """The CPU time of what steps are made of: calls, attributes, small objects, dictionaries and sorting."""

    def far(point: Point) -> bool:
        return point.at > 10 and point.name != "p7"

    began = time.process_time()
    for _ in range(4):
        points = {f"p{index}": Point(f"p{index}", index * 37 % 101) for index in range(150)}
        ordered = sorted(points.values(), key=lambda point: (point.at, point.name))
        assert sum(points[point.name].at for point in ordered if far(point)) > 0
    return time.process_time() - began


def took_s(world: World, kind: str) -> float:
    """What a step takes on the reference machine, or would: the median of rounds, in each the best of ten.

    The best, since others on the machine only ever make it slower; in each round the calibration meets the
    same of them as the step does; the median, since a round may have met with more.
    """
    event, found, raw = EVENTS[kind](world), [], []
    for _ in range(21):
        speed, took = min(calibration_s() for _ in range(5)), []
        for _ in range(10):
            began = time.process_time()
            step(world.fleet, event, world.now + 0.01)
            took.append(time.process_time() - began)
        raw.append(min(took))
        found.append(min(took) / max(1.0, speed / REFERENCE_S))
    print(f"{kind}: {median(found) * 1e6:.0f} µs; as it is, {min(raw) * 1e6:.0f} to {max(raw) * 1e6:.0f}")
    return median(found)


@pytest.mark.parametrize("kind", EVENTS)
def test_a_step_among_a_thousand_models_takes_less_than_a_millisecond(world: World, kind: str) -> None:
    assert took_s(world, kind) < LIMIT_S


@pytest.mark.parametrize("kind", ["a request for a ready model", "a request for a stopped model"])
def test_a_request_does_not_pay_for_those_who_wait(world: World, kind: str) -> None:
    assert took_s(world, kind) < LIMIT_S / 5
