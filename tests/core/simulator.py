"""Replays a day against a policy: what would have been started, stopped and waited for.

The policy sees events and answers with effects, as the core does; the simulator performs them as the runtime
would, with the engine times of the day, and holds the policy to the law: budgets, one start at a time on a
GPU, no end of an engine in use.
"""

import heapq
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from supervisord_llm.core.effects import (
    Admit,
    CountTokens,
    Effect,
    Prepare,
    Reject,
    SampleGpus,
    SleepEngine,
    StartEngine,
    StopEngine,
    WakeAt,
    WakeEngine,
)
from supervisord_llm.core.events import (
    ConfigChanged,
    EngineExited,
    EngineReady,
    Event,
    FellAsleep,
    GpusSampled,
    Prepared,
    RelayFinished,
    RequestArrived,
    Tick,
    TokensCounted,
    Woke,
)
from supervisord_llm.core.fleet import Fleet, GpuSample, Policy
from supervisord_llm.core.scheduler import step
from tests.core.day import HOST_RAM_BYTES, Call, Day
from tests.core.world import GIB

RESIDUE_BYTES = GIB
SLEEP_S = 1.5
LOOK_S = 0.05


class Scheduler(Protocol):
    """A policy: what happened, and what to do about it. Times in seconds."""

    def take(self, event: Event, now: float) -> Iterable[Effect]: ...


class Core:
    """The policy of llm-supervisor."""

    def __init__(self, day: Day) -> None:
        self.fleet, _ = step(
            Fleet(),
            ConfigChanged(specs=day.specs, gpus=day.gpus, policy=Policy(host_budget_bytes=HOST_RAM_BYTES)),
            0.0,
        )

    def take(self, event: Event, now: float) -> Iterable[Effect]:
        self.fleet, effects = step(self.fleet, event, now)
        return effects


@dataclass(slots=True)
class Process:
    """A running engine."""

    launch: int
    gpus: tuple[int, ...]
    grant_bytes: int
    held_bytes: int
    state: str = "starting"
    """Or "ready", "asleep", "waking", "ending"."""
    leases: set[int] = field(default_factory=set)


@dataclass
class Figures:
    """What a day came to. Times in seconds."""

    waits_s: dict[int, float] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    wakes: int = 0
    stops: int = 0
    sleeps: int = 0
    start_s: float = 0.0
    steps_s: list[float] = field(default_factory=list)
    """How long the policy thought, in real time."""
    wall_s: float = 0.0

    @property
    def served(self) -> int:
        return len(self.waits_s)

    @property
    def evictions(self) -> int:
        return self.stops + self.sleeps

    def wait_s(self, share: float) -> float:
        """The wait that `share` of those served did not exceed; 0 at once."""
        ordered = sorted(self.waits_s.values())
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Simulator:
    """One day, one policy."""

    def __init__(self, day: Day, policy: Scheduler) -> None:
        self.day, self.policy = day, policy
        self.specs = {spec.name: spec for spec in day.specs}
        self.now = 0.0
        self.figures = Figures()
        self.processes: dict[str, Process] = {}
        self.wake_at: float | None = None
        self._todo: list[tuple[float, int, Event]] = []
        self._order = count()

    def run(self) -> Figures:
        began = time.perf_counter()
        for request, call in enumerate(self.day.calls):
            self.later(
                call.at,
                RequestArrived(request=request, model=call.model, source=call.client, priority=call.priority),
            )
        self.look()
        while self._todo:
            at = self._todo[0][0]
            if self.wake_at is not None and self.wake_at <= at:
                self.now, self.wake_at = max(self.now, self.wake_at), None
                self.happen(Tick())
            else:
                self.now, _, event = heapq.heappop(self._todo)
                self.happen(event)
        self.figures.wall_s = time.perf_counter() - began
        return self.figures

    def later(self, delay_s: float, event: Event) -> None:
        heapq.heappush(self._todo, (self.now + delay_s, next(self._order), event))

    def happen(self, event: Event) -> None:
        """The world changes, then the policy hears of it."""
        match event:
            case EngineReady(model=model) | Woke(model=model):
                self.processes[model].state = "ready"
            case EngineExited(model=model):
                del self.processes[model]
            case FellAsleep(model=model):
                process = self.processes[model]
                process.state, process.held_bytes = "asleep", min(RESIDUE_BYTES, process.grant_bytes)
            case RelayFinished(request=request, model=model):
                self.processes[model].leases.remove(request)
            case _:
                pass
        began = time.perf_counter()
        effects = self.policy.take(event, self.now)
        self.figures.steps_s.append(time.perf_counter() - began)
        for effect in effects:
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        figures = self.figures
        match effect:
            case Admit(request=request, model=model):
                call = self.call(request, model)
                process = self.processes[model]
                assert process.state == "ready", f"{model} is {process.state} and cannot serve"
                process.leases.add(request)
                figures.waits_s[request] = self.now - call.at
                self.later(call.took_s, RelayFinished(request=request, model=model))
            case Reject(request=request, model=model, code=code, message=message):
                self.call(request, model)
                assert message
                figures.refused[code] += 1
            case Prepare(model=model, launch=launch):
                self.later(0.0, Prepared(model=model, launch=launch))
            case StartEngine(model=model, launch=launch, gpus=gpus):
                self.start(model, launch, gpus)
            case StopEngine(model=model, launch=launch):
                process = self.processes[model]
                assert not process.leases, f"{model} was ended with requests in flight"
                process.state = "ending"
                figures.stops += 1
                self.later(
                    self.varied(model, launch, 1.0, 2.0),
                    EngineExited(model=model, launch=launch, reason="ended"),
                )
            case SleepEngine(model=model, launch=launch):
                process = self.processes[model]
                assert process.state == "ready"
                assert not process.leases, f"{model} was put to sleep with requests in flight"
                process.state = "falling asleep"
                figures.sleeps += 1
                self.later(SLEEP_S, FellAsleep(model=model, launch=launch))
            case WakeEngine(model=model, launch=launch):
                process = self.processes[model]
                assert process.state == "asleep"
                self.claim(model, process.gpus)
                process.state, process.held_bytes = "waking", process.grant_bytes
                self.see_budgets(process.gpus)
                figures.wakes += 1
                took_s = self.day.wake_s[model]
                figures.start_s += took_s
                self.later(took_s, Woke(model=model, launch=launch))
            case CountTokens(model=model, launch=launch):
                leases = len(self.processes[model].leases)
                self.later(0.0, TokensCounted(model=model, launch=launch, running=leases, tokens=self.now))
            case SampleGpus():
                self.later(LOOK_S, self.look())
            case WakeAt(at=at):
                self.wake_at = at if self.wake_at is None else min(self.wake_at, at)
            case _:
                pass

    def start(self, model: str, launch: int, gpus: tuple[int, ...]) -> None:
        spec = self.specs[model]
        assert model not in self.processes, f"two engines of {model}"
        assert len(gpus) == spec.gpu_count
        assert len({self.day.gpus[index].total_bytes for index in gpus}) == 1, "cards differ"
        assert isinstance(spec.grant, int)
        self.claim(model, gpus)
        self.processes[model] = Process(launch, gpus, spec.grant, spec.grant)
        self.see_budgets(gpus)
        took_s = self.day.start_s[model] * self.varied(model, launch, 0.9, 1.1)
        self.figures.starts += 1
        self.figures.start_s += took_s
        self.later(took_s, EngineReady(model=model, launch=launch))

    def claim(self, model: str, gpus: tuple[int, ...]) -> None:
        """One start at a time on a GPU, and no memory that comes free meanwhile."""
        for name, process in self.processes.items():
            if name != model and not set(process.gpus).isdisjoint(gpus):
                assert process.state in ("ready", "asleep"), f"{model} starts beside {name}: {process.state}"

    def see_budgets(self, gpus: tuple[int, ...]) -> None:
        for index in gpus:
            assert self.held_bytes(index) <= self.day.gpus[index].budget_bytes, f"GPU {index} is overdrawn"

    def held_bytes(self, index: int) -> int:
        return sum(process.held_bytes for process in self.processes.values() if index in process.gpus)

    def look(self) -> GpusSampled:
        """All GPUs as NVML would tell them, now."""
        return GpusSampled(
            samples=tuple(
                GpuSample(
                    index=gpu.index,
                    at=self.now,
                    used_bytes=self.held_bytes(gpu.index),
                    engines={
                        name: process.held_bytes
                        for name, process in self.processes.items()
                        if gpu.index in process.gpus
                    },
                )
                for gpu in self.day.gpus
            )
        )

    def call(self, request: int, model: str) -> Call:
        call = self.day.calls[request]
        assert call.model == model
        return call

    def varied(self, model: str, launch: int, least: float, most: float) -> float:
        """The same for every policy: drawn from the launch alone."""
        return random.Random(f"{self.day.seed} {model} {launch}").uniform(least, most)
