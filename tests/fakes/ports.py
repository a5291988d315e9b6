"""Ports without a world behind them: every launch, stop and preparation is decided by the test."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from supervisord_llm.runtime.ports import Exit, Progress, Report


@dataclass(eq=False)
class FakeEngine:
    """Becomes ready and ends when the test says so."""

    model: str
    gpus: tuple[int, ...]
    socket: Path
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)
    ended: "asyncio.Future[Exit]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    stops: list[bool] = field(default_factory=list)
    obeys: bool = True

    async def ready(self) -> None:
        await self.is_ready.wait()

    async def wait(self) -> Exit:
        return await asyncio.shield(self.ended)

    async def stop(self, *, kill: bool) -> None:
        self.stops.append(kill)
        if self.obeys and not self.ended.done():
            self.ended.set_result(Exit(0, "ended"))


class FakeLauncher:
    """Records launches; each is ready at once unless `holds` is set."""

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []
        self.holds = False
        self.error: Exception | None = None

    async def launch(self, model: str, launch: int, gpus: tuple[int, ...], report: Report) -> FakeEngine:
        if self.error is not None:
            raise self.error
        engine = FakeEngine(model, gpus, Path(f"/run/{model}-{launch}.sock"))
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


class FakeUpstreams:
    """Records which connections were closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    async def close(self, model: str) -> None:
        self.closed.append(model)
