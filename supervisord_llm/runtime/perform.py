"""Performs the slow effects: each is a named task, and its result returns as an event."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from supervisord_llm.core.effects import (
    CancelPrepare,
    CountTokens,
    Prepare,
    Remember,
    SleepEngine,
    StartEngine,
    StopEngine,
    WakeEngine,
)
from supervisord_llm.core.events import (
    Cause,
    EngineExited,
    EngineReady,
    EngineStuck,
    Estimated,
    Event,
    FellAsleep,
    Prepared,
    PrepareFailed,
    Progressed,
    SleepFailed,
    TokensCounted,
    WakeFailed,
    Woke,
)
from supervisord_llm.errors import EngineError, LaunchError, ProvisionError
from supervisord_llm.runtime.ports import (
    Backend,
    Engine,
    Exit,
    Launcher,
    Memory,
    Progress,
    Provisioner,
    Report,
    Upstreams,
)
from supervisord_llm.runtime.tasks import Tasks

log = logging.getLogger("llm_supervisor.runtime")

REAPED_GRACE_S = 1.0
"""After a stop has returned, how long its EngineExited may take before the engine counts as stuck."""

SlowEffect = (
    Prepare | CancelPrepare | StartEngine | StopEngine | SleepEngine | WakeEngine | CountTokens | Remember
)
"""What takes time, and is performed by a task of its own."""


@dataclass(eq=False, slots=True)
class _Run:
    """One launch: its engine once there is one, what it is being told, and that it ended."""

    launched: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    engine: Engine | None = None
    told: asyncio.Task[None] | None = None
    """It is being put to sleep or woken."""
    asked: asyncio.Task[None] | None = None
    """It is being asked how far it has come."""


class Performer:
    """Knows the edges only by their Protocols. One run per (model, launch)."""

    def __init__(
        self,
        dispatch: Callable[[Event], None],
        launcher: Launcher,
        provisioner: Provisioner,
        upstreams: Upstreams,
        memory: Memory,
        in_flight: Callable[[str], frozenset[int]],
    ) -> None:
        self._dispatch = dispatch
        self._in_flight = in_flight
        self._memory = memory
        self._launcher = launcher
        self._provisioner = provisioner
        self._upstreams = upstreams
        self._tasks = Tasks()
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._runs: dict[tuple[str, int], _Run] = {}
        self._serving: dict[str, Engine] = {}

    def perform(self, effect: SlowEffect) -> None:
        name = f"{type(effect).__name__} {effect.model}"
        match effect:
            case Prepare():
                before = self._preparing.get(effect.model)
                task = self._tasks.start(name, self._prepare(effect, before))
                self._preparing[effect.model] = task
                task.add_done_callback(lambda done: self._prepared(effect.model, done))
            case CancelPrepare():
                if (preparing := self._preparing.get(effect.model)) is not None:
                    preparing.cancel()
            case StartEngine():
                report = self.reporter(effect.model, effect.launch)
                self._follow(effect.model, effect.launch, self._launcher.launch(effect, report), name)
            case Remember(model=model, signature=signature, learnt=learnt):
                _ = self._tasks.start(name, self._memory.remember(model, signature, learnt))
            case StopEngine() | SleepEngine() | WakeEngine() | CountTokens():
                live = self._runs.get((effect.model, effect.launch))
                if live is not None:  # else its end is on the way
                    self._tell(effect, live, name)

    def adopt(self, model: str, launch: int, engine: Engine) -> None:
        """Follow an engine that an earlier run of the daemon launched."""

        async def at_once() -> Engine:
            return engine

        self._serving[model] = engine
        self._follow(model, launch, at_once(), f"AdoptEngine {model}")

    def _follow(self, model: str, launch: int, launching: Coroutine[None, None, Engine], name: str) -> None:
        run = self._runs[model, launch] = _Run()
        _ = self._tasks.start(name, self._run(model, launch, launching, run))

    def _tell(
        self, effect: StopEngine | SleepEngine | WakeEngine | CountTokens, run: _Run, name: str
    ) -> None:
        match effect:
            case StopEngine():
                if run.told is not None:
                    run.told.cancel()
                _ = self._tasks.start(name, self._stop(effect, run))
            case SleepEngine() | WakeEngine():
                run.told = self._tasks.start(name, self._change_tier(effect, run))
            case CountTokens():
                if run.asked is None or run.asked.done():  # else it has not answered the last time yet
                    run.asked = self._tasks.start(name, self._count(effect, run))

    def backend(self, model: str) -> Backend:
        """Where the model's running engine serves."""
        return self._serving[model].backend

    async def close(self) -> None:
        await self._tasks.cancel_all()

    def reporter(self, model: str, launch: int) -> Report:
        """Where the launch tells its progress."""

        def report(progress: Progress) -> None:
            self._dispatch(
                Progressed(model=model, launch=launch, phase=progress.phase, fraction=progress.fraction)
            )

        return report

    def _prepared(self, model: str, task: asyncio.Task[None]) -> None:
        if self._preparing[model] is task:  # and not the one after it
            del self._preparing[model]

    async def _prepare(self, effect: Prepare, before: asyncio.Task[None] | None) -> None:
        if before is not None:  # a cancelled one may still be cleaning up
            try:
                await asyncio.wait({before})
            except asyncio.CancelledError:
                await asyncio.wait({before})  # for the one after us
                raise
        model, launch = effect.model, effect.launch
        try:
            await self._estimate(effect)
            await self._provisioner.prepare(model, self.reporter(model, launch))
            await self._estimate(effect)  # the weights are here now
        except ProvisionError as error:
            self._dispatch(
                PrepareFailed(model=model, launch=launch, reason=str(error), temporary=error.temporary)
            )
        except Exception as error:
            log.exception("cannot prepare %s#%s; this is a bug, please report it", model, launch)
            reason = f"internal error: {error!r}; see the daemon's log"
            self._dispatch(PrepareFailed(model=model, launch=launch, reason=reason, temporary=True))
        else:
            self._dispatch(Prepared(model=model, launch=launch))

    async def _estimate(self, effect: Prepare) -> None:
        estimate = await self._provisioner.estimate(effect.model)
        if estimate is not None:
            self._dispatch(Estimated(model=effect.model, signature=effect.signature, estimate=estimate))

    async def _run(
        self, model: str, launch: int, launching: Coroutine[None, None, Engine], run: _Run
    ) -> None:
        """From launch to the last process reaped. The core hears of the end only once it is one."""
        cause, answers_on = Cause.OTHER, False
        try:
            run.engine = await launching
            self._serving[model] = run.engine
            run.launched.set()
            end = await self._watch(model, launch, run.engine)
            reason, cause, answers_on = _end(end), end.cause, end.answers_on
        except (LaunchError, ProvisionError) as error:
            reason = str(error)
        except Exception as error:  # a bug in an edge must not leave the core waiting
            log.exception("cannot go on with %s#%s; this is a bug, please report it", model, launch)
            reason = f"internal error: {error!r}; see the daemon's log"
            if run.engine is not None:
                await run.engine.stop(kill=True)
        run.launched.set()
        run.ended.set()
        if not answers_on:
            await self._upstreams.close(model)
        del self._runs[model, launch]  # no wait between this and the news: a stop meets one or the other
        self._serving.pop(model, None)
        for task in (run.told, run.asked):
            if task is not None:
                task.cancel()
        self._dispatch(EngineExited(model=model, launch=launch, reason=reason, cause=cause))
        if answers_on:
            await self._upstreams.retire(model)

    async def _watch(self, model: str, launch: int, engine: Engine) -> Exit:
        ready = asyncio.create_task(engine.ready(), name=f"probe {model}#{launch}")
        ended = asyncio.create_task(engine.wait(), name=f"wait {model}#{launch}")
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not ended.done():
                ready.result()
                self._dispatch(EngineReady(model=model, launch=launch, kv_bytes=engine.kv_bytes))
            return await ended
        finally:
            ready.cancel()
            ended.cancel()

    async def _stop(self, effect: StopEngine, run: _Run) -> None:
        await run.launched.wait()
        if run.engine is None:
            return
        await self._upstreams.close(effect.model)
        await run.engine.stop(kill=effect.kill, dump=effect.dump)
        try:
            await asyncio.wait_for(run.ended.wait(), REAPED_GRACE_S)
        except TimeoutError:
            self._dispatch(EngineStuck(model=effect.model, launch=effect.launch))

    async def _change_tier(self, effect: SleepEngine | WakeEngine, run: _Run) -> None:
        """Put it to sleep or wake it, and tell what came of it."""
        assert run.engine is not None
        model, launch = effect.model, effect.launch
        act, done, failed = (
            (run.engine.sleep, FellAsleep, SleepFailed)
            if isinstance(effect, SleepEngine)
            else (run.engine.wake, Woke, WakeFailed)
        )
        try:
            await act(effect.level)
        except EngineError as error:
            reason = str(error)
        except Exception as error:
            log.exception("cannot perform %s; this is a bug, please report it", effect)
            reason = f"internal error: {error!r}"
        else:
            self._dispatch(done(model=model, launch=launch))
            return
        self._dispatch(failed(model=model, launch=launch, reason=reason))

    async def _count(self, effect: CountTokens, run: _Run) -> None:
        assert run.engine is not None
        with contextlib.suppress(EngineError):  # no answer is no progress: the core notices by the clock
            found = await run.engine.progressing(lambda: self._in_flight(effect.model))
            running, tokens = (None, 0.0) if found is None else (found.running, found.tokens)
            self._dispatch(
                TokensCounted(model=effect.model, launch=effect.launch, running=running, tokens=tokens)
            )


def _end(end: Exit) -> str:
    """Why it ended, its last words, and how to see it happen by hand."""
    parts = [end.reason]
    if end.tail:
        parts.append("last lines:\n" + "\n".join(f"  {line}" for line in end.tail))
    if end.command:
        parts.append(f"to see it happen:\n  {end.command}")
    return "\n".join(parts)
