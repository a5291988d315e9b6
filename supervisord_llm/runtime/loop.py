"""One writer: event -> core.step -> effects. Everything that changes the fleet goes through `dispatch`.

The writer is a plain call, not a queue with a task: a request for a ready engine is admitted before dispatch
returns, so the hot path has no hop. Events raised while a step is under way line up behind it.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

from supervisord_llm.core import explain
from supervisord_llm.core.effects import Admit, Effect, Notify, Reject, SampleGpus, WakeAt
from supervisord_llm.core.events import (
    EngineAdopted,
    Event,
    RelayFinished,
    RequestArrived,
    RequestCancelled,
    RestartAsked,
    ShutdownBegan,
    SleepAsked,
    StartAsked,
    StopAsked,
    Tick,
)
from supervisord_llm.core.eviction import can_sleep
from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.moves import opens_in_s
from supervisord_llm.core.placement import code_of, impossible
from supervisord_llm.core.scheduler import has_processes, step
from supervisord_llm.core.state import HAS_PROCESS, State
from supervisord_llm.errors import Refused
from supervisord_llm.runtime.eventlog import EventLog
from supervisord_llm.runtime.lease import Lease
from supervisord_llm.runtime.perform import Performer
from supervisord_llm.runtime.ports import Backend, Launcher, Memory, Provisioner, Report, Upstreams
from supervisord_llm.runtime.ports import Engine as EngineProcess

log = logging.getLogger("llm_supervisor.runtime")

Observer = Callable[[Event, Fleet], None]
"""Told after each step: the event and the fleet after it."""


class Runtime:
    """The running fleet. `fleet` is a snapshot: read it, never act on it; ask for a lease instead."""

    def __init__(
        self, launcher: Launcher, provisioner: Provisioner, upstreams: Upstreams, memory: Memory
    ) -> None:
        self.fleet = Fleet()
        self.sample_gpus: Callable[[], None] = lambda: None
        """Looks at the GPUs now and dispatches GpusSampled; set where there are any."""
        self.events = EventLog()
        self.observers: list[Observer] = []
        self._performer = Performer(self.dispatch, launcher, provisioner, upstreams, memory, self._in_flight)
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Event] = deque()
        self._is_stepping = False
        self._is_closed = False
        """What happens is no concern of the fleet any more: nobody is there to perform effects."""
        self._is_hurried = False
        self._leases: dict[int, Lease] = {}
        self._requests = count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._watchers: list[asyncio.Future[None]] = []

    def dispatch(self, event: Event) -> None:
        """Let the core decide about `event` and have its effects performed. The one writer of `fleet`."""
        if self._is_closed:
            return
        self._inbox.append(event)
        if self._is_stepping:
            return
        self._is_stepping = True
        try:
            while self._inbox:
                self._step(self._inbox.popleft())
        finally:
            self._is_stepping = False

    @asynccontextmanager
    async def lease(self, model: str, *, source: str = "", priority: int = 0) -> AsyncIterator[Lease]:
        """Ask for the model's engine; see runtime/lease.py."""
        request = next(self._requests)
        admission: asyncio.Future[Backend] = self._loop.create_future()
        lease = Lease(request, model, source, self._loop.time(), admission)
        self._leases[request] = lease
        self.dispatch(RequestArrived(request=request, model=model, source=source, priority=priority))
        try:
            yield lease
        finally:
            del self._leases[request]
            if lease.is_admitted:
                self.dispatch(RelayFinished(request=request, model=model))
            elif not admission.done() or admission.cancelled():
                self.dispatch(RequestCancelled(request=request, model=model))
            if admission.done() and not admission.cancelled():
                admission.exception()  # a refusal nobody awaited is no news
            admission.cancel()

    def backend(self, model: str) -> Backend | None:
        """Where the model's engine serves, for a question that takes no lease; None unless it is ready."""
        engine = self.fleet.engines.get(model)
        is_ready = engine is not None and engine.state is State.READY
        return self._performer.backend(model) if is_ready else None

    def adopt(self, found: EngineAdopted, engine: EngineProcess) -> None:
        """Take over an engine of an earlier run: it serves, or sleeps, from now on."""
        self._performer.adopt(found.model, found.launch, engine)
        self.dispatch(found)

    def reporter(self, model: str, launch: int) -> Report:
        """Where an engine that is to be adopted tells its progress."""
        return self._performer.reporter(model, launch)

    async def start(self, model: str) -> Engine:
        """Start the model's engine and wait for it. Raises Refused where it could not be started."""
        self._open(model)
        self.dispatch(StartAsked(model=model))
        return await self._until_up(model)

    async def stop(self, model: str) -> Engine:
        """Drain and end the model's engine and wait until it is gone (or stuck).

        A request that came meanwhile may have begun another life of it by then.
        """
        launch = self._known(model).launch
        self.dispatch(StopAsked(model=model))
        return await self._until_gone(model, launch)

    async def sleep(self, model: str) -> Engine:
        """Put the model's engine to sleep and wait. Raises Refused where it cannot, or would not."""
        engine = self._known(model)
        if engine.state is not State.SLEEPING and (engine.state is not State.READY or not can_sleep(engine)):
            raise Refused("not_possible", explain.cannot_sleep(engine))
        self.dispatch(SleepAsked(model=model))
        while (engine := self._known(model)).state in (State.READY, State.DRAINING) or (
            engine.state is State.SLEEPING and not engine.gave_back
        ):
            await self._changed()
        if engine.state is State.SLEEPING or engine.is_wanted:  # else it is needed again already
            return engine
        raise Refused("not_possible", explain.cannot_sleep(engine))

    async def wake(self, model: str) -> Engine:
        """Wake the model's engine, or start it, and wait. Raises Refused like `start`."""
        return await self.start(model)

    async def switch(self, model: str) -> Engine:
        """Stop every other engine, start the model's, and wait for all of it. Raises Refused like `start`."""
        engine = self._open(model)
        if reason := impossible(engine, self.fleet):
            raise Refused(code_of(engine.spec), reason)
        others = {
            engine.name: engine.launch
            for engine in self.fleet
            if engine.name != model
            and not engine.spec.elsewhere
            and (engine.state in HAS_PROCESS or engine.is_wanted)
        }
        for name in others:
            self.dispatch(StopAsked(model=name))
        self.dispatch(StartAsked(model=model))
        for name, launch in others.items():
            await self._until_gone(name, launch)
        return await self._until_up(model)

    async def restart(self, model: str) -> Engine:
        """Drain and end the model's engine, start it again, and wait. Raises Refused like `start`."""
        launch = self._open(model).launch
        self.dispatch(RestartAsked(model=model))
        while (engine := self._known(model)).launch == launch and engine.wanted:
            if engine.state in (State.STUCK, State.FAILED):
                break
            await self._changed()
        return await self._until_up(model)

    async def leave(self) -> None:
        """End with the engines left as they are, for a successor."""
        await self._close()

    async def drained(self, timeout_s: float) -> None:
        """Return once every request has finished, or the time is up, or there is a hurry."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._is_hurried and any(engine.leases or engine.waiting for engine in self.fleet):
                    await self._changed()

    def hurry(self) -> None:
        """Have `drained` wait no longer than for the next step."""
        self._is_hurried = True

    async def _close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._performer.close()

    async def shutdown(self, timeout_s: float) -> bool:
        """Drain and end everything. False where an engine is still there after `timeout_s`."""
        self.dispatch(ShutdownBegan())
        try:
            async with asyncio.timeout(timeout_s):
                while has_processes(self.fleet):
                    await self._changed()
        except TimeoutError:
            pass
        await self._close()
        return not has_processes(self.fleet)

    def _step(self, event: Event) -> None:
        self.fleet, effects = step(self.fleet, event, self._loop.time())
        for effect in effects:
            try:
                self._perform(effect)
            except Exception:  # a bug in one must not lose the others
                log.exception("cannot perform %s; this is a bug, please report it", effect)
        for observer in self.observers:
            observer(event, self.fleet)
        if self._watchers:
            watchers, self._watchers = self._watchers, []
            for watcher in watchers:
                if not watcher.done():
                    watcher.set_result(None)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Admit(request=request, model=model):
                if lease := self._leases.get(request):
                    lease.admitted_at = self._loop.time()
                    if not lease.admission.done():
                        lease.admission.set_result(self._performer.backend(model))
            case Reject(request=request, code=code, message=message, retry_after_s=retry_after_s):
                lease = self._leases.get(request)
                if lease is not None and not lease.admission.done():
                    lease.admission.set_exception(Refused(code, message, retry_after_s=retry_after_s))
            case Notify(model=model, text=text, is_bad=is_bad):
                self.events.add(model, text, is_bad=is_bad)
            case WakeAt(at=at):
                self._wake_at(at)
            case SampleGpus():
                self.sample_gpus()
            case _:
                self._performer.perform(effect)

    def _wake_at(self, at: float) -> None:
        if self._timer is not None and not self._timer.cancelled():
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.dispatch(Tick())

    def _in_flight(self, model: str) -> frozenset[int]:
        engine = self.fleet.engines.get(model)
        return frozenset() if engine is None else engine.leases

    def _known(self, model: str) -> Engine:
        engine = self.fleet.engines.get(model)
        if engine is None or model in self.fleet.removed:
            raise Refused("model_not_found", explain.unknown_model(model))
        return engine

    def _open(self, model: str) -> Engine:
        engine = self._known(model)
        if engine.spec.closed:
            wait_s = opens_in_s(engine, self._loop.time())
            raise Refused("out_of_schedule", explain.closed_to_orders(engine), retry_after_s=wait_s)
        return engine

    async def _until_gone(self, model: str, launch: int) -> Engine:
        """Return when that life of the model's engine is over, or will not end."""
        while (engine := self._known(model)).launch == launch:
            if engine.state in (State.STOPPED, State.STUCK, State.FAILED):
                break
            await self._changed()
        return engine

    async def _until_up(self, model: str) -> Engine:
        settled = {State.READY, State.FAILED, State.BACKOFF, State.STUCK, State.STOPPED}
        while (engine := self._known(model)).state not in settled:
            if engine.state is State.SLEEPING and not engine.is_wanted:  # there was no room to wake
                break
            await self._changed()
        if engine.state is State.READY:
            return engine
        self._open(model)
        raise Refused("start_failed", engine.last_error or f"cannot start {model}: it was stopped meanwhile")

    async def _changed(self) -> None:
        """Return after the next step."""
        watcher: asyncio.Future[None] = self._loop.create_future()
        self._watchers.append(watcher)
        await watcher
