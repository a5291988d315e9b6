"""step(fleet, event, now): the one place where the decisions meet.

An event first changes facts (who waits, who holds a lease, what was asked, what became of a launch); then
each engine it touched takes every move that is due, by the numbered tree in `advance`, and last, what
waits for VRAM is placed. Nothing here knows how any of it is done.
"""

from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType
from typing import assert_never

from supervisord_llm.core import backoff, explain, idle, placement, queue
from supervisord_llm.core.effects import Effect, WakeAt
from supervisord_llm.core.events import (
    ConfigChanged,
    EngineExited,
    EngineReady,
    EngineStuck,
    Event,
    Prepared,
    PrepareFailed,
    Progressed,
    RelayFinished,
    RequestArrived,
    RequestCancelled,
    RestartAsked,
    ShutdownBegan,
    StartAsked,
    StopAsked,
    Tick,
)
from supervisord_llm.core.fleet import Engine, Fleet, Waiting
from supervisord_llm.core.state import HAS_PROCESS, SETTLED, State
from supervisord_llm.core.turn import SOON_S, Turn


def step(fleet: Fleet, event: Event, now: float) -> tuple[Fleet, tuple[Effect, ...]]:
    """The fleet after `event`, and what to do about it. `now` is monotonic seconds and never goes back."""
    turn = _Scheduler(fleet, now)
    turn.take(event)
    turn.place_queued()
    turn.advance_preload()
    turn.ask_to_be_woken()
    return turn.fleet, tuple(turn.effects)


class _Scheduler(Turn):
    """Decides. Every method reads and moves the fleet of this turn."""

    # --- events change facts

    def take(self, event: Event) -> None:
        match event:
            case RequestArrived():
                self.request_arrived(event)
            case RequestCancelled(request=request, model=model):
                if engine := self.engines.get(model):
                    left = tuple(one for one in engine.waiting if one.request != request)
                    self.advance(replace(engine, waiting=left))
            case RelayFinished(request=request, model=model):
                if engine := self.engines.get(model):
                    leases = engine.leases - {request}
                    self.advance(replace(engine, leases=leases, last_used=self.now))
            case Prepared() | PrepareFailed() | Progressed() | EngineReady() | EngineExited() | EngineStuck():
                engine = self.engines.get(event.model)
                if engine is not None and engine.launch == event.launch:  # else: news of an earlier life
                    self.launch_news(engine, event)
            case StartAsked(model=model):
                self.start_asked(self.engines[model])
            case StopAsked(model=model):
                engine = self.reject_all(self.engines[model], "shutting_down", explain.stopped_by_hand(model))
                self.take_down(replace(engine, wanted=False), "stop was asked for")
            case RestartAsked(model=model):
                self.take_down(replace(self.engines[model], wanted=True), "restart was asked for")
            case ConfigChanged():
                self.config_changed(event)
            case ShutdownBegan():
                self.state = replace(self.state, stopping=True, preload=())
                for engine in tuple(self.engines.values()):
                    rest = self.reject_all(engine, "shutting_down", explain.daemon_stopping())
                    self.take_down(replace(rest, wanted=False), "llm-supervisor is shutting down")
            case Tick():
                for engine in tuple(self.engines.values()):
                    self.advance(engine)
            case _:
                assert_never(event)

    def request_arrived(self, event: RequestArrived) -> None:
        """Admit, queue or refuse.

        (1) no such model, or the daemon stops           -> refuse
        (2) ready, a slot is free and nobody is before it -> admit
        (3) failed, and its time is not over; or stuck   -> refuse with what went wrong
        (4) no slot and no queue, or the queue is full   -> refuse
        (5) otherwise                                    -> wait, and start the engine if need be
        """
        model, engine = event.model, self.engines.get(event.model)
        if self.state.stopping:  # (1)
            self.refuse(event, model, "shutting_down", explain.daemon_stopping(), SOON_S)
        elif engine is None or model in self.state.removed:  # (1)
            self.refuse(event, model, "model_not_found", explain.unknown_model(model))
        elif engine.state is State.READY and not engine.waiting and queue.has_slot(engine):  # (2)
            self.admit(engine, event)
        elif engine.state is State.FAILED and self.now < engine.retry_at:  # (3)
            text = explain.failed_before(engine, self.now)
            self.refuse(event, model, "start_failed", text, engine.retry_at - self.now)
        elif engine.state is State.STUCK:  # (3)
            self.refuse(event, model, "start_failed", engine.last_error, SOON_S)
        elif queue.is_full(engine):  # (4)
            self.refuse(event, model, "model_busy", explain.busy(engine), SOON_S)
        else:  # (5)
            new = Waiting(request=event.request, source=event.source, priority=event.priority, since=self.now)
            self.advance(replace(engine, waiting=queue.insert(engine.waiting, new)))

    def launch_news(
        self,
        engine: Engine,
        event: Prepared | PrepareFailed | Progressed | EngineReady | EngineExited | EngineStuck,
    ) -> None:
        """What became of the current launch. News that no longer matters in its state is dropped."""
        match event, engine.state:
            case Prepared(), State.PREPARING:
                self.advance(engine.to(State.QUEUED, self.now))
            case PrepareFailed(reason=reason, temporary=temporary), State.PREPARING:
                text = explain.start_failed(engine.name, reason)
                rest = self.reject_all(engine, "start_failed", text)
                if temporary:
                    self.failed(rest, text)
                else:
                    self.give_up_until_asked(rest, text)
            case Progressed(phase=phase, fraction=fraction), State.PREPARING | State.STARTING:
                self.progressed(replace(engine, last_sign=self.now), phase, fraction)
            case EngineReady(), State.STARTING:
                self.notify(engine.name, explain.ready(engine, self.now - engine.since))
                up = engine.to(State.READY, self.now, wanted=False, last_used=self.now, last_error="")
                self.advance(up)
            case EngineExited(reason=reason), State.STARTING:
                text = explain.start_failed(engine.name, reason)
                self.failed(self.reject_all(engine, "start_failed", text), text)
            case EngineExited(reason=reason), State.READY:
                # Who holds a lease learns it from the broken connection; who waits goes on waiting.
                wanted = engine.wanted or engine.spec.keep
                self.failed(replace(engine, wanted=wanted), explain.crashed(engine.name, reason))
            case EngineExited(), State.DRAINING:
                self.advance(engine.to(State.STOPPED, self.now))
            case EngineExited(), State.STOPPING | State.STUCK:
                if engine.kill_reason:
                    self.failed(replace(engine, kill_reason=""), engine.kill_reason)
                else:
                    self.advance(engine.to(State.STOPPED, self.now))
            case EngineStuck(), State.STOPPING:
                text = explain.stuck(engine)
                self.notify(engine.name, text, is_bad=True)
                self.reject_all(engine.to(State.STUCK, self.now, last_error=text), "start_failed", text)
            case _:
                pass

    def progressed(self, engine: Engine, phase: str, fraction: float | None) -> None:
        """A sign of life; one with a phase is shown, and told once a phase and tenth."""
        if phase:
            engine = replace(engine, phase=phase, fraction=fraction)
            text = explain.progress(engine)
            if text not in engine.told:
                self.notify(engine.name, text)
                engine = replace(engine, told=engine.told | {text})
        self.put(engine)

    def start_asked(self, engine: Engine) -> None:
        if engine.state is State.READY or self.state.stopping:
            return
        if engine.state in (State.BACKOFF, State.FAILED):
            engine = engine.to(State.STOPPED, self.now, failures=())
        self.advance(replace(engine, wanted=True))

    def config_changed(self, event: ConfigChanged) -> None:
        """Apply the difference: unchanged engines keep running, changed and removed ones are taken down."""
        names = {spec.name for spec in event.specs}
        removed = frozenset(self.engines.keys() - names)
        wanted = self.state.preload if event.preload is None else event.preload
        self.state = replace(
            self.state,
            gpus=MappingProxyType({gpu.index: gpu for gpu in event.gpus}),
            removed=removed,
            preload=tuple(name for name in wanted if name in names),
        )
        before = self.engines
        self.engines = {
            spec.name: replace(before[spec.name], spec=spec) if spec.name in before else Engine(spec=spec)
            for spec in event.specs
        } | {name: before[name] for name in removed}
        for name in removed:
            engine = self.reject_all(self.engines[name], "model_not_found", explain.unknown_model(name), None)
            self.take_down(replace(engine, wanted=False), "it left the configuration")
        for spec in event.specs:
            engine = self.engines[spec.name]
            if spec.name in before and before[spec.name].spec.signature != spec.signature:
                engine = replace(engine, wanted=engine.wanted or spec.keep)
                self.take_down(engine, "its configuration changed")
            else:
                self.advance(engine)

    # --- moves

    def advance(self, engine: Engine) -> None:
        """Take the move that is due, and the one after it.

        (1) some have waited too long                      -> they are refused
        (2) stopped: removed from the config               -> forgotten; wanted -> prepared
        (3) preparing or starting, and late or stalled     -> given up
        (4) queued                                         -> placed, with all others, in place_queued
        (5) ready: slots are free and some wait            -> admitted; idle for long enough -> stopped
        (6) draining: nobody left, or time is over         -> stopping
        (7) backoff is over                                -> prepared again if wanted, else stopped
        (8) failed, its time is over and someone waits     -> prepared again
        """
        engine = self.put(self.reject_expired(engine))  # (1)
        match engine.state:
            case State.STOPPED:  # (2)
                if engine.name in self.state.removed:
                    if not engine.leases:  # relays of a crashed engine may still be about to end
                        del self.engines[engine.name]
                elif engine.is_wanted and not self.state.stopping:
                    self.begin(engine)
            case State.PREPARING | State.STARTING:  # (3)
                self.check_start(engine)
            case State.READY:  # (5)
                engine = self.admit_waiting(engine)
                if idle.is_due(engine, self.now):
                    self.notify(engine.name, explain.idle_stop(engine))
                    self.advance(engine.to(State.DRAINING, self.now))
            case State.DRAINING:  # (6)
                if engine.leases and self.now >= engine.since + engine.spec.drain_timeout_s:
                    self.notify(engine.name, explain.drain_over(engine), is_bad=True)
                    self.stop(engine)
                elif not engine.leases:
                    self.stop(engine)
            case State.BACKOFF:  # (7)
                if self.now >= engine.retry_at:
                    self.advance(engine.to(State.STOPPED, self.now))
            case State.FAILED:  # (8)
                if self.now >= engine.retry_at and engine.is_wanted:
                    self.begin(engine)
            case State.QUEUED | State.STOPPING | State.STUCK:
                pass  # (4); the others are moved by the end of their processes
            case _:
                assert_never(engine.state)

    def begin(self, engine: Engine) -> None:
        """Prepare it, unless it can never run on this host."""
        if not self.give_up_if_impossible(engine):
            self.prepare(engine)

    def check_start(self, engine: Engine) -> None:
        """Give up a start that takes too long or shows no sign of life."""
        spec = engine.spec
        if engine.state is State.STARTING and self.now >= engine.since + spec.start_timeout_s:
            text = explain.start_timeout(engine)
        elif self.now >= engine.last_sign + spec.stall_timeout_s:
            text = explain.stalled(engine)
        else:
            return
        engine = self.reject_all(engine, "start_timeout", text)
        if engine.state is State.PREPARING:
            self.cancel_prepare(engine)
            self.failed(engine, text)
        else:
            self.stop(replace(engine, kill_reason=text), kill=True)

    def take_down(self, engine: Engine, why: str) -> None:
        """Towards STOPPED from wherever it is; who still waits is served by the next launch."""
        match engine.state:
            case State.PREPARING:
                self.cancel_prepare(engine)
                engine = engine.to(State.STOPPED, self.now)
            case State.QUEUED:
                engine = engine.to(State.STOPPED, self.now)
            case State.STARTING:
                self.notify(engine.name, explain.drains(engine, why))
                self.stop(engine, kill=True)
                return
            case State.READY:
                self.notify(engine.name, explain.drains(engine, why))
                engine = engine.to(State.DRAINING, self.now)
            case State.BACKOFF | State.FAILED:
                engine = engine.to(State.STOPPED, self.now, failures=(), last_error="")
            case State.STOPPED | State.DRAINING | State.STOPPING | State.STUCK:
                pass
            case _:
                assert_never(engine.state)
        self.advance(engine)

    def failed(self, engine: Engine, text: str) -> None:
        """A launch went wrong: wait a while before the next, or give up after too many."""
        failures = (*backoff.recent(engine.failures, engine.spec, self.now), self.now)
        engine = replace(engine, failures=failures, last_error=text)
        if backoff.is_hopeless(failures, engine.spec):
            engine = self.reject_all(engine, "start_failed", text)
            retry_at = self.now + engine.spec.restart_window_s
            self.notify(engine.name, explain.gave_up(engine), is_bad=True)
            # The window starts afresh: whoever asks after it gets all tries again.
            self.put(engine.to(State.FAILED, self.now, retry_at=retry_at, wanted=False, failures=()))
        else:
            wait_s = backoff.delay_s(len(failures), engine.spec)
            self.notify(engine.name, explain.retries(engine, wait_s), is_bad=True)
            self.put(engine.to(State.BACKOFF, self.now, retry_at=self.now + wait_s))

    def give_up_until_asked(self, engine: Engine, text: str) -> None:
        """A fact of the host is against it: the next request looks again, since looking is cheap."""
        if text != engine.last_error:
            self.notify(engine.name, text, is_bad=True)
        engine = replace(engine, last_error=text, wanted=False, retry_at=self.now)
        self.put(engine if engine.state is State.FAILED else engine.to(State.FAILED, self.now))

    def reject_expired(self, engine: Engine) -> Engine:
        late = queue.expired(engine, self.now)
        if not late:
            return engine
        code = {State.READY: "model_busy", State.QUEUED: "no_vram"}.get(engine.state, "start_timeout")
        return self.reject(engine, late, code, explain.waited_too_long(engine), SOON_S)

    # --- decisions over the whole fleet

    def place_queued(self) -> None:
        """Give GPUs to those who are prepared: highest priority first, then oldest.

        One that nobody waits for any more takes room that is there, for whoever left may come again; it does
        not make others give way, nor wait.
        """
        queued = [engine for engine in self.engines.values() if engine.state is State.QUEUED]
        claimed: frozenset[int] = frozenset()
        for engine in sorted(queued, key=_turn_order):
            if self.give_up_if_impossible(engine):
                continue
            fleet = self.state.gpus
            choice = placement.choose(engine.spec, self.engines.values(), fleet, claimed, self.now)
            if not engine.is_wanted and not isinstance(choice, placement.Place):
                self.put(engine.to(State.STOPPED, self.now))
                continue
            match choice:
                case placement.Place(gpus):
                    self.start(engine, gpus)
                case placement.Evict(gpus, models):
                    claimed |= frozenset(gpus)
                    for name in models:
                        self.notify(name, explain.evicted(self.engines[name], engine.name))
                        self.advance(self.engines[name].to(State.DRAINING, self.now))
                    self.put(replace(engine, phase=f"waits until {', '.join(models)} made room"))
                case placement.Wait(gpus, reason):
                    claimed |= frozenset(gpus)
                    if not engine.phase:  # the reason changes with every lease of its holder; say it once
                        self.notify(engine.name, f"{engine.name} waits: {reason}")
                    if reason != engine.phase:
                        self.put(replace(engine, phase=reason))
                case _:
                    assert_never(choice)

    def give_up_if_impossible(self, engine: Engine) -> bool:
        """Looked at before it is prepared and again before it is placed: the GPUs may have changed."""
        reason = placement.impossible(engine.spec, self.state.gpus)
        if reason:
            self.give_up_until_asked(self.reject_all(engine, "no_vram", reason, 60.0), reason)
        return bool(reason)

    def advance_preload(self) -> None:
        """Start the next model of the preload list once the one before it is up or has failed."""
        while self.state.preload:
            current = self.engines.get(self.state.preloading)
            if current is not None and current.state not in SETTLED:
                return
            name, *rest = self.state.preload
            self.state = replace(self.state, preload=tuple(rest), preloading=name)
            if name in self.engines:
                self.start_asked(self.engines[name])

    def ask_to_be_woken(self) -> None:
        engines = (self.engines[name] for name in self.touched if name in self.engines)
        some_queued = any(engine.state is State.QUEUED for engine in self.engines.values())
        times = [time for engine in engines for time in _deadlines(engine)]
        if some_queued:  # an idle neighbour may become evictable
            times += [
                engine.since + engine.spec.min_residency_s
                for engine in self.engines.values()
                if engine.is_idle and engine.since + engine.spec.min_residency_s > self.now
            ]
        if times:
            self.effects.append(WakeAt(at=min(times)))


def _turn_order(engine: Engine) -> tuple[bool, int, float]:
    priority = engine.waiting[0].priority if engine.waiting else 0
    return (not engine.is_wanted, -priority, engine.since)


def _deadlines(engine: Engine) -> Iterable[float]:
    """When, if nothing else happens, `advance` has something to do."""
    spec = engine.spec
    if engine.waiting:
        yield min(one.since for one in engine.waiting) + spec.queue_timeout_s
    match engine.state:
        case State.PREPARING:
            yield engine.last_sign + spec.stall_timeout_s
        case State.STARTING:
            yield min(engine.since + spec.start_timeout_s, engine.last_sign + spec.stall_timeout_s)
        case State.READY:
            deadline = idle.idle_deadline(engine)
            if deadline is not None:
                yield deadline
        case State.DRAINING:
            yield engine.since + spec.drain_timeout_s
        case State.BACKOFF:
            yield engine.retry_at
        case State.STOPPED | State.QUEUED | State.STOPPING | State.FAILED | State.STUCK:
            pass
        case _:
            assert_never(engine.state)


def has_processes(fleet: Fleet) -> bool:
    """Some engine may still have a process: the daemon waits for this to end before it exits."""
    return any(engine.state in HAS_PROCESS for engine in fleet)
