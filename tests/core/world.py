"""A fleet driven by hand: events in, effects recorded, no clock and no I/O."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

from supervisord_llm.core.effects import (
    Admit,
    Effect,
    Notify,
    Prepare,
    Reject,
    SleepEngine,
    StartEngine,
    StopEngine,
    WakeAt,
    WakeEngine,
)
from supervisord_llm.core.events import (
    Cause,
    ConfigChanged,
    EngineExited,
    EngineReady,
    Event,
    FellAsleep,
    GpusSampled,
    Prepared,
    RelayFinished,
    RequestArrived,
    SleepAsked,
    Tick,
    Woke,
)
from supervisord_llm.core.fleet import Engine, Fleet, Gpu, GpuSample, ModelSpec, Policy, Stranger
from supervisord_llm.core.scheduler import step
from supervisord_llm.core.state import State

GIB = 1024**3
E = TypeVar("E", bound=Effect)


def gpu(index: int, budget_gib: float = 20, total_gib: float = 24) -> Gpu:
    return Gpu(
        index=index,
        uuid=f"GPU-{index}",
        name="Test",
        total_bytes=int(total_gib * GIB),
        budget_bytes=int(budget_gib * GIB),
    )


@dataclass
class World:
    """A fleet, its clock, and every effect so far."""

    fleet: Fleet = field(default_factory=Fleet)
    now: float = 0.0
    effects: list[Effect] = field(default_factory=list)
    requests: Iterator[int] = field(default_factory=lambda: count(1))

    @classmethod
    def of(
        cls,
        *specs: ModelSpec,
        gpus: tuple[Gpu, ...] = (),
        preload: tuple[str, ...] = (),
        policy: Policy | None = None,
    ) -> "World":
        world = cls()
        policy = policy or Policy()
        world.happen(ConfigChanged(specs=specs, gpus=gpus, preload=preload, policy=policy))
        return world

    def happen(self, *events: Event) -> list[Effect]:
        """Feed events; returns the effects of these alone."""
        fresh: list[Effect] = []
        for event in events:
            self.fleet, effects = step(self.fleet, event, self.now)
            fresh += effects
        self.effects += fresh
        return fresh

    def ask(self, model: str, priority: int = 0) -> int:
        request = next(self.requests)
        self.happen(RequestArrived(request=request, model=model, source="test", priority=priority))
        return request

    def finish(self, request: int, model: str) -> None:
        self.happen(RelayFinished(request=request, model=model))

    def prepare(self, model: str) -> None:
        self.happen(Prepared(model=model, launch=self[model].launch))

    def ready(self, model: str) -> None:
        self.happen(EngineReady(model=model, launch=self[model].launch))

    def exited(
        self, model: str, reason: str = "exited with code 1", cause: Cause = Cause.OTHER
    ) -> list[Effect]:
        return self.happen(EngineExited(model=model, launch=self[model].launch, reason=reason, cause=cause))

    def fell_asleep(self, model: str) -> None:
        self.happen(FellAsleep(model=model, launch=self[model].launch))

    def woke(self, model: str) -> None:
        self.happen(Woke(model=model, launch=self[model].launch))

    def look(
        self, index: int = 0, used_gib: float | None = None, *, lost: str = "", **engines_gib: float | None
    ) -> list[Effect]:
        """A look at one GPU a moment from now: what is used of it, and by which of our engines.

        Without the latter it is as on WSL2, which does not tell. Strangers have the rest of what is used.
        """
        self.now += 0.01
        ours = {name: int(size * GIB) for name, size in engines_gib.items() if size is not None}
        used = None if used_gib is None else int(used_gib * GIB)
        strange = 0 if used is None or not engines_gib else used - sum(ours.values())
        sample = GpuSample(
            index=index,
            at=self.now - 0.005,
            used_bytes=used,
            engines=ours if engines_gib else None,
            strangers=(Stranger(pid=4711, name="blender", used_bytes=strange),) if strange > GIB else (),
            lost=lost,
        )
        return self.happen(GpusSampled(samples=(sample,)))

    def asleep(self, model: str) -> None:
        """Brings a ready, idle one to sleep, and has it settled where none can see it."""
        self.happen(SleepAsked(model=model))
        self.fell_asleep(model)
        assert self[model].state is State.SLEEPING

    def bring_up(self, model: str) -> int:
        """A request that starts the model; returns it, admitted."""
        request = self.ask(model)
        self.prepare(model)
        self.ready(model)
        assert self[model].state is State.READY
        return request

    def pass_time(self, seconds: float) -> list[Effect]:
        """Let time pass as the runtime does: a Tick at each WakeAt, and one at the end."""
        end = self.now + seconds
        fresh: list[Effect] = []
        stood_still = 0
        while (due := self.next_wake()) is not None and due <= end:
            stood_still = 0 if due > self.now else stood_still + 1
            assert stood_still < 10, "is woken again and again without any time passing"
            self.now = max(self.now, due)
            self.effects = [effect for effect in self.effects if not isinstance(effect, WakeAt)]
            fresh += self.happen(Tick())
        self.now = end
        return fresh + self.happen(Tick())

    def next_wake(self) -> float | None:
        times = [effect.at for effect in self.effects if isinstance(effect, WakeAt)]
        return min(times) if times else None

    def __getitem__(self, model: str) -> Engine:
        return self.fleet.engines[model]

    def of_kind(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    @property
    def admitted(self) -> list[int]:
        return [effect.request for effect in self.of_kind(Admit)]

    @property
    def rejected(self) -> dict[int, str]:
        return {effect.request: effect.code for effect in self.of_kind(Reject)}

    @property
    def prepared(self) -> list[str]:
        return [effect.model for effect in self.of_kind(Prepare)]

    @property
    def started(self) -> list[str]:
        return [effect.model for effect in self.of_kind(StartEngine)]

    @property
    def stopped(self) -> list[str]:
        return [effect.model for effect in self.of_kind(StopEngine)]

    @property
    def slept(self) -> list[str]:
        return [effect.model for effect in self.of_kind(SleepEngine)]

    @property
    def woken(self) -> list[str]:
        return [effect.model for effect in self.of_kind(WakeEngine)]

    @property
    def told(self) -> list[str]:
        return [effect.text for effect in self.of_kind(Notify)]
