"""Ports without a world behind them: every launch, stop and preparation is decided by the test."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from supervisord_llm.core.effects import StartEngine
from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.fleet import Learnt
from supervisord_llm.runtime.ports import Backend, Exit, InFlight, Progress, Progressing, Report


@dataclass(eq=False)
class FakeEngine:
    """Becomes ready and ends when the test says so."""

    model: str
    gpus: tuple[int, ...]
    socket: Path
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)
    ended: "asyncio.Future[Exit]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    stops: list[bool] = field(default_factory=list)
    """Of each stop, whether it was a kill."""
    dumps: list[bool] = field(default_factory=list)
    """Of each stop, whether stacks were asked for."""
    obeys: bool = True
    kv_bytes: int | None = None
    naps: list[str] = field(default_factory=list)
    """In order: "sleep 1", "wake 1"."""
    refusal: Exception | None = None
    """Raised by sleep, wake and progressing."""
    holds: bool = False
    """Never falls asleep, never wakes."""
    work: Progressing | None = None

    @property
    def backend(self) -> Backend:
        return Backend(self.socket)

    async def ready(self) -> None:
        await self.is_ready.wait()

    async def wait(self) -> Exit:
        return await asyncio.shield(self.ended)

    async def sleep(self, level: int) -> None:
        await self._do(f"sleep {level}")

    async def wake(self, level: int) -> None:
        await self._do(f"wake {level}")

    async def _do(self, what: str) -> None:
        self.naps.append(what)
        if self.holds:
            await asyncio.Event().wait()
        if self.refusal is not None:
            raise self.refusal

    async def progressing(self, in_flight: InFlight = frozenset) -> Progressing | None:
        if self.refusal is not None:
            raise self.refusal
        return self.work

    async def stop(self, *, kill: bool, dump: bool = False) -> None:
        self.stops.append(kill)
        self.dumps.append(dump)
        if self.obeys and not self.ended.done():
            self.ended.set_result(Exit(0, "ended"))


class FakeLauncher:
    """Records launches; each is ready at once unless `holds` is set."""

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []
        self.orders: list[StartEngine] = []
        self.holds = False
        self.error: Exception | None = None

    async def launch(self, order: StartEngine, report: Report) -> FakeEngine:
        if self.error is not None:
            raise self.error
        self.orders.append(order)
        engine = FakeEngine(order.model, order.gpus, Path(f"/run/{order.model}-{order.launch}.sock"))
        if not self.holds:
            engine.is_ready.set()
        self.engines.append(engine)
        report(Progress("launched"))
        return engine


class FakeProvisioner:
    """Prepares at once, or raises, or holds until `release` is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.release: asyncio.Event | None = None
        self.estimates: dict[str, Estimate] = {}
        self.prepared: list[str] = []
        self.cancelled: list[str] = []

    async def prepare(self, model: str, report: Report) -> None:
        report(Progress("checking"))
        try:
            if self.release is not None:
                await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(model)
            raise
        if self.error is not None:
            raise self.error
        self.prepared.append(model)

    async def estimate(self, model: str) -> Estimate | None:
        return self.estimates.get(model)


class FakeUpstreams:
    """Records which connections were closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []
        self.retired: list[str] = []

    async def close(self, model: str) -> None:
        self.closed.append(model)

    async def retire(self, model: str) -> None:
        self.retired.append(model)


class FakeMemory:
    """Remembers in a dictionary, by model and signature."""

    def __init__(self) -> None:
        self.learnt: dict[tuple[str, str], Learnt] = {}

    async def remember(self, model: str, signature: str, learnt: Learnt) -> None:
        self.learnt[model, signature] = learnt
