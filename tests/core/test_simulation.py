"""A day of a household: requests by the thousand, engines that load for minutes, in a second of real time."""

import heapq
import random
from collections.abc import Callable
from itertools import count

from supervisord_llm.core.effects import Admit, Effect, Prepare, Reject, StartEngine, StopEngine
from supervisord_llm.core.events import (
    EngineExited,
    EngineReady,
    Event,
    Prepared,
    RelayFinished,
    RequestArrived,
    Tick,
)
from supervisord_llm.core.fleet import ModelSpec
from tests.core.world import GIB, World, gpu

DAY_S = 24 * 3600.0


def test_a_day_of_requests_is_served_by_six_models_on_two_gpus() -> None:
    rng = random.Random(1)
    specs = tuple(
        ModelSpec(name=f"m{i}", pinned=None, grant=size * GIB, stop_after_s=900, queue_timeout_s=3600)
        for i, size in enumerate((6, 6, 8, 10, 14, 18))
    )
    world = World.of(*specs, gpus=(gpu(0), gpu(1)))
    todo: list[tuple[float, int, Callable[[], Event]]] = []
    order = count()

    def later(delay_s: float, event: Event) -> None:
        heapq.heappush(todo, (world.now + delay_s, next(order), lambda: event))

    arrived: set[int] = set()
    answered: dict[int, str] = {}

    def perform(effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Prepare(model=model, launch=launch):
                    later(0.01, Prepared(model=model, launch=launch))
                case StartEngine(model=model, launch=launch):
                    later(rng.uniform(20, 120), EngineReady(model=model, launch=launch))
                case StopEngine(model=model, launch=launch):
                    later(1, EngineExited(model=model, launch=launch, reason="ended"))
                case Admit(request=request, model=model):
                    later(rng.uniform(0.5, 30), RelayFinished(request=request, model=model))
                    answered[request] = "admitted"
                case Reject(request=request, code=code):
                    answered[request] = code
                case _:
                    pass

    at = 0.0
    for request in range(4000):
        at += rng.expovariate(4000 / DAY_S)
        model = rng.choices(specs, weights=(40, 20, 15, 10, 10, 5))[0].name
        arrived.add(request)
        later(at, RequestArrived(request=request, model=model))
    while todo:
        wake = world.next_wake()
        if wake is not None and wake <= todo[0][0]:
            world.now = max(world.now, wake)
            world.effects.clear()
            perform(world.happen(Tick()))
        else:
            world.now, _, event = heapq.heappop(todo)
            perform(world.happen(event()))
    assert answered.keys() == arrived
    assert set(answered.values()) == {"admitted"}
