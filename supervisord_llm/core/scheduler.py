"""step(fleet, event, now): the one place where the decisions meet.

An event first changes facts (who waits, who holds a lease, what was asked, what became of a launch); then
each engine it touched takes every move that is due, by the numbered tree in `advance`, and last, what
waits for VRAM is placed. Nothing here knows how any of it is done.

Five files, each on top of the one before it:
    turn.py        the verbs: fact and effect together
    sleep.py       falling asleep, and main memory for it
    moves.py       one engine: what is due, and what failing and ending mean
    allocation.py  the whole fleet: who gets GPUs, who gives way
    watch.py       what looking at GPUs and engines tells
"""

import math
from types import MappingProxyType

from supervisord_llm.core import explain, explain_memory, queue
from supervisord_llm.core.effects import Effect, WakeAt
from supervisord_llm.core.events import (
    ConfigChanged,
    EngineAdopted,
    EngineExited,
    EngineReady,
    EngineStuck,
    Estimated,
    Event,
    FellAsleep,
    GpusSampled,
    Prepared,
    PrepareFailed,
    Progressed,
    RelayFinished,
    RequestArrived,
    RequestCancelled,
    RestartAsked,
    ShutdownBegan,
    SleepAsked,
    SleepFailed,
    StartAsked,
    StopAsked,
    Tick,
    TokensCounted,
    WakeFailed,
    Woke,
)
from supervisord_llm.core.eviction import can_sleep
from supervisord_llm.core.fleet import Engine, Fleet, ModelSpec, Waiting
from supervisord_llm.core.frozen import replace
from supervisord_llm.core.ledger import granted_on
from supervisord_llm.core.moves import deadline
from supervisord_llm.core.placement import impossible
from supervisord_llm.core.refusal import refusal
from supervisord_llm.core.state import HAS_PROCESS, State
from supervisord_llm.core.watch import Watch

LaunchNews = (
    Prepared
    | PrepareFailed
    | Progressed
    | EngineReady
    | EngineExited
    | EngineStuck
    | FellAsleep
    | SleepFailed
    | Woke
    | WakeFailed
    | TokensCounted
)


def step(fleet: Fleet, event: Event, now: float) -> tuple[Fleet, tuple[Effect, ...]]:
    """The fleet after `event`, and what to do about it. `now` is monotonic seconds and never goes back.

    Who waits for room looks again only where an event may have given some; what time alone gives comes with
    a Tick, so every such moment must be among the wake times.
    """
    turn = _Scheduler(fleet, now)
    turn.take(event)
    if turn.room_changed or isinstance(event, Tick | GpusSampled | ConfigChanged):
        turn.place_waiting()
    while turn.start_by_itself():
        turn.place_waiting()
    turn.ask_to_be_woken()
    return turn.fleet, tuple(turn.effects)


class _Scheduler(Watch):
    """Takes events. Every method reads and moves the fleet of this turn."""

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
            case Estimated(model=model, signature=signature):
                engine = self.engines.get(model)
                if (
                    engine is not None and engine.spec.signature == signature
                ):  # else: of another configuration
                    self.estimated(replace(engine, estimate=event.estimate))
            case GpusSampled():
                self.sampled(event)
            case EngineAdopted():
                self.adopted(self.engines[event.model], event)
            case SleepAsked(model=model):
                self.sleep_asked(self.engines[model])
            case StartAsked(model=model):
                self.start_asked(self.engines[model])
            case StopAsked(model=model):
                engine = self.reject_all(self.engines[model], "shutting_down", explain.stopped_by_hand(model))
                self.take_down(replace(engine, wanted=False, returns=False), "stop was asked for")
            case RestartAsked(model=model):
                if not self.engines[model].spec.closed:
                    self.take_down(replace(self.engines[model], wanted=True), "restart was asked for")
            case ConfigChanged():
                self.config_changed(event)
            case ShutdownBegan():
                self.state = replace(self.state, stopping=True, preload=())
                for engine in tuple(self.engines.values()):
                    rest = self.reject_all(engine, "shutting_down", explain.daemon_stopping())
                    rest = replace(rest, wanted=False, returns=False)
                    self.take_down(rest, "llm-supervisor is shutting down")
            case Tick():
                for name in [engine.name for engine in self.active()]:
                    if (engine := self.engines.get(name)) is not None:  # those before it may have moved it
                        self.advance(engine)
            case _:
                engine = self.engines.get(event.model)
                if engine is not None and engine.launch == event.launch:  # else: news of an earlier life
                    self.launch_news(engine, event)

    def request_arrived(self, event: RequestArrived) -> None:
        """Admit, queue or refuse.

        (1) no such model, or there is a reason against it  -> refuse, see refusal.py
        (2) ready, a slot is free and nobody is before it   -> admit
        (3) otherwise                                       -> wait, and start the engine if need be
        """
        engine = self.engines.get(event.model)
        if engine is None:  # (1)
            self.refuse(event, event.model, "model_not_found", explain.unknown_model(event.model))
        elif found := refusal(self.state, engine, self.now):  # (1)
            self.refuse(event, event.model, *found)
        elif queue.is_open(engine):  # (2)
            self.admit(engine, event)
        else:  # (3)
            new = Waiting(request=event.request, source=event.source, priority=event.priority, since=self.now)
            self.advance(replace(engine, waiting=queue.insert(engine.waiting, new)))

    def launch_news(self, engine: Engine, event: LaunchNews) -> None:
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
            case EngineReady(kv_bytes=kv_bytes), State.STARTING:
                self.became_ready(engine, kv_bytes)
            case EngineExited(), _:
                self.exited(engine, event)
            case EngineStuck(), State.STOPPING:
                text = explain.stuck(engine)
                self.notify(engine.name, text, is_bad=True)
                self.reject_all(engine.to(State.STUCK, self.now, last_error=text), "start_failed", text)
            case FellAsleep(), State.SLEEPING if engine.asleep_at is None:
                self.fell_asleep(engine)
            case SleepFailed(reason=reason), State.SLEEPING if engine.asleep_at is None:
                self.stop(self.give_up_sleep(engine, reason))
            case Woke(), State.WAKING:
                took_s = self.now - engine.since
                self.notify(engine.name, explain_memory.woke(engine, took_s))
                engine = self.learn(engine, replace(engine.learnt, wake_s=took_s))
                self.serve(engine)
            case WakeFailed(reason=reason), State.WAKING:
                # Who waits goes on waiting: it is started anew.
                wanted = engine.wanted or bool(engine.waiting)
                self.stop(replace(self.give_up_sleep(engine, reason), wanted=wanted), kill=True)
            case TokensCounted(), State.READY:
                self.counted(engine, event)
            case _:
                pass

    def became_ready(self, engine: Engine, kv_bytes: int | None) -> None:
        took_s = self.now - engine.since
        self.notify(engine.name, explain.ready(engine, took_s))
        if not engine.spec.elsewhere:  # there is nothing of it here to be learnt
            learnt = replace(engine.learnt, start_s=took_s, is_exhausted=False)
            if engine.gpus:
                learnt = replace(learnt, kv_bytes=kv_bytes or engine.kv_bytes)
            engine = self.learn(engine, learnt)
        self.serve(engine)

    def adopted(self, engine: Engine, event: EngineAdopted) -> None:
        """It goes on as it is; unless the configuration or the GPUs are others now, then it makes way."""
        if engine.state is State.FAILED:
            engine = engine.to(State.STOPPED, self.now)
        taken = engine.to(
            State.SLEEPING if event.is_asleep else State.READY,
            self.now,
            launch=event.launch,
            gpus=event.gpus,
            granted_bytes=event.granted_bytes,
            awake_bytes=event.granted_bytes,
            before_bytes=(None,) * len(event.gpus),
            kv_bytes=event.kv_bytes,
            launched_as=event.signature,
            last_used=self.now,
            asleep_at=self.now if event.is_asleep else None,
        )
        self.notify(engine.name, explain.adopted(taken))
        taken = self.put(taken)
        rooms = self.rooms()
        if event.signature != engine.spec.signature:
            self.take_down(taken, "its configuration changed")
        elif rooms and any(index not in rooms or rooms[index].lost for index in event.gpus):
            self.take_down(taken, "one of its GPUs is not there any more")
        else:
            self.mind_budgets()
            self.advance(taken)
        self.sample_soon()

    def could_wake(self, engine: Engine) -> bool:
        """What it was granted awake is still within the budgets of its GPUs, and they are still there."""
        gpus = self.state.gpus
        return not gpus or all(
            index in gpus and size <= gpus[index].budget_bytes
            for index, size in zip(engine.gpus, engine.awake_bytes, strict=True)
        )

    def mind_budgets(self) -> None:
        """Say so where more is held of a GPU than may be, and see to it from now on."""
        if self.state.is_overfull:
            return
        for index, room in self.rooms().items():
            held = sum(granted_on(engine, index) for engine in room.holders)
            if held > room.gpu.budget_bytes:
                text = explain_memory.over_budget(index, held, room.gpu.budget_bytes)
                self.notify("", text, is_bad=True)
                self.state = replace(self.state, is_overfull=True)
                self.room_changed = True

    def serve(self, engine: Engine) -> None:
        """Started or awake: whoever waits is served, and what a start on its GPUs held up may go on."""
        up = engine.to(State.READY, self.now, wanted=False, last_used=self.now, last_error="")
        self.advance(up)
        self.nudge_neighbours(up.gpus)
        if up.gpus:
            self.sample_soon()

    def estimated(self, engine: Engine) -> None:
        """What it takes is known: one that can never fit is not downloaded first."""
        self.put(engine)
        if engine.state is State.PREPARING and impossible(engine, self.state):
            self.cancel_prepare(engine)
            self.give_up_if_impossible(engine)

    def sleep_asked(self, engine: Engine) -> None:
        """Asleep once nobody uses it any more. Whether it can is asked by the one who asks."""
        if engine.state is State.READY and can_sleep(engine):
            self.notify(engine.name, explain_memory.drains_to_sleep(engine))
            self.advance(engine.to(State.DRAINING, self.now, to_sleep=True))

    def progressed(self, engine: Engine, phase: str, fraction: float | None) -> None:
        """A sign of life; one with a phase is shown, and told once a phase and tenth."""
        if phase:
            engine = replace(engine, phase=phase, fraction=fraction)
            text = explain.progress(engine)
            if text not in engine.told:
                self.notify(engine.name, text)
                engine = replace(engine, told=engine.told | {text})
        self.put(engine)

    def config_changed(self, event: ConfigChanged) -> None:
        """Apply the difference: unchanged engines keep running, changed and removed ones are taken down."""
        names = {spec.name for spec in event.specs}
        removed = frozenset(self.engines.keys() - names)
        wanted = self.state.preload if event.preload is None else event.preload
        self.state = replace(
            self.state,
            gpus=MappingProxyType({gpu.index: gpu for gpu in event.gpus}),
            policy=event.policy,
            removed=removed,
            preload=tuple(name for name in wanted if name in names),
        )
        before = self.engines
        self.put_all(
            {spec.name: _with_spec(before.get(spec.name), spec) for spec in event.specs}
            | {name: before[name] for name in removed}
        )
        for name in removed:
            engine = self.reject_all(self.engines[name], "model_not_found", explain.unknown_model(name), None)
            self.take_down(replace(engine, wanted=False, returns=False), "it left the configuration")
        for spec in event.specs:
            engine = self.engines[spec.name]
            if spec.closed:
                engine = self.closed(engine)
            if spec.name in before and before[spec.name].spec.signature != spec.signature:
                engine = replace(engine, wanted=engine.wanted or (spec.keep and not spec.closed))
                self.take_down(engine, "its configuration changed")
            elif engine.state is State.SLEEPING and not self.could_wake(engine):
                self.take_down(engine, "it would not fit awake any more")
            else:
                self.advance(engine)
        self.mind_budgets()

    def ask_to_be_woken(self) -> None:
        times = [deadline(self.engines[name], self.now) for name in self.touched if name in self.engines]
        times += [at for at in self.wake_times if at > self.now]
        if times and (at := min(times)) < math.inf:
            self.effects.append(WakeAt(at=at))


def has_processes(fleet: Fleet) -> bool:
    """Some engine may still have a process: the daemon waits for this to end before it exits."""
    return any(engine.state in HAS_PROCESS for engine in fleet)


def _fresh(spec: ModelSpec) -> Engine:
    """As the daemon finds it when it starts. That it ran out of GPU memory for good is not forgotten."""
    if not spec.learnt.is_exhausted:
        return Engine(spec=spec, learnt=spec.learnt)
    text = explain_memory.was_out_of_rungs(spec.name)
    return Engine(spec=spec, learnt=spec.learnt, state=State.FAILED, retry_at=math.inf, last_error=text)


def _with_spec(engine: Engine | None, spec: ModelSpec) -> Engine:
    """The engine under its new settings; what was known of another shape is forgotten."""
    if engine is None:
        return _fresh(spec)
    if engine.spec.signature == spec.signature:
        return replace(engine, spec=spec)
    return replace(engine, spec=spec, learnt=spec.learnt, estimate=None, sleepless="")
