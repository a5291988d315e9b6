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
from tests.core.day import day
from tests.core.rivals import Fifo, Lru
from tests.core.simulator import Core, Figures, Simulator
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


def test_ten_thousand_requests_over_forty_models_swap_less_and_wait_less_than_under_lru_and_fifo() -> None:
    """The simulator itself fails where a budget is exceeded, two start on a GPU, or one in use is ended."""
    today = day(103)
    ours, lru, fifo = (Simulator(today, policy(today)).run() for policy in (Core, Lru, Fifo))
    for figures in (ours, lru, fifo):
        assert figures.served == len(today.calls) == 10_000
    for rival in (lru, fifo):
        assert ours.starts < rival.starts
        assert ours.wait_s(0.95) < rival.wait_s(0.95)


def test_models_that_sleep_are_started_less_and_waited_for_less() -> None:
    def run(*, sleep: bool) -> Figures:
        today = day(7, requests=1500, length_s=3 * 3600)
        today = today.able_to_sleep() if sleep else today
        return Simulator(today, Core(today)).run()

    asleep, stopped = run(sleep=True), run(sleep=False)
    assert (asleep.served, stopped.served) == (1500, 1500)
    assert asleep.wakes > 0
    assert asleep.starts < stopped.starts
    assert asleep.wait_s(0.95) < stopped.wait_s(0.95)


def test_a_simulated_day_comes_out_the_same_every_time() -> None:
    first, again = (day(5, requests=400, length_s=3600) for _ in range(2))
    assert first == again
    runs = [Simulator(today, Core(today)).run() for today in (first, again)]
    assert runs[0].waits_s == runs[1].waits_s
    assert (runs[0].starts, runs[0].stops) == (runs[1].starts, runs[1].stops)
