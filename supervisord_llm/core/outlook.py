"""Why a model is as it is, and what a request for it would bring about now. One sentence each, for people."""

from typing import assert_never

from supervisord_llm.core import explain, queue
from supervisord_llm.core.allocation import wants_room
from supervisord_llm.core.eviction import can_sleep
from supervisord_llm.core.explain import count, gib, span
from supervisord_llm.core.explain_memory import listed, no_room_now
from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.frozen import replace
from supervisord_llm.core.idle import sleep_deadline, stop_deadline
from supervisord_llm.core.placement import Choice, Evict, Place, Wait, choose
from supervisord_llm.core.refusal import foreseen
from supervisord_llm.core.room import rooms
from supervisord_llm.core.state import HAS_PROCESS, State


def standing(engine: Engine, now: float) -> str:
    """Why it is as it is."""
    name, state = engine.name, engine.state
    since, phase = f"since {span(now - engine.since)}", f": {engine.phase}" if engine.phase else ""
    match state:
        case State.STOPPED:
            return engine.spec.disabled or _stopped(engine)
        case State.PREPARING | State.STARTING | State.WAKING:
            where = "" if state is State.PREPARING else _where(engine)
            return f"{name} is {state}{where} {since}; {count(len(engine.waiting), 'request')} wait{phase}"
        case State.QUEUED:
            return f"{name} {engine.phase or 'waits for its turn'}"
        case State.READY:
            return _ready(engine, now)
        case State.SLEEPING if engine.asleep_at is None:
            return f"{name} is falling asleep {since}"
        case State.SLEEPING if engine.is_wanted:
            return f"{name} sleeps and {engine.phase or 'is about to be woken'}"
        case State.SLEEPING:
            held = f", and holds {gib(max(engine.granted_bytes))} of each GPU" if engine.granted_bytes else ""
            return f"{name} sleeps {since}{held}"
        case State.DRAINING | State.STOPPING:
            open_ones = f"; {count(len(engine.leases), 'request')} may finish first" if engine.leases else ""
            return f"{name} is {state} {since}{open_ones}"
        case State.BACKOFF:
            return f"{engine.last_error}; tried again in {span(max(0.0, engine.retry_at - now))}"
        case State.FAILED:
            return explain.failed_before(engine, now)
        case State.STUCK:
            return explain.stuck(engine)
        case _:
            assert_never(state)


def outlook(fleet: Fleet, engine: Engine, now: float) -> str:
    """What would become of a request for it that came now."""
    if refusal := foreseen(fleet, engine, now):
        return f"a request would be refused: {refusal.text}"
    if queue.is_open(engine):
        return "a request would be served at once"
    others = f", behind {count(len(engine.waiting), 'request')}" if engine.waiting else ""
    match engine.state:
        case State.READY:
            return f"a request would wait for a slot{others}"
        case State.PREPARING | State.QUEUED | State.STARTING | State.WAKING:
            return f"a request would wait until {engine.name} is ready{others}"
        case _:
            return _would_start(fleet, engine, now)


def _stopped(engine: Engine) -> str:
    if engine.spec.closed:
        return f"{engine.name} is stopped: {engine.spec.closed}"
    if engine.last_error:
        return f"{engine.name} is stopped: {engine.last_error}"
    return f"{engine.name} is stopped: nobody asks for it"


def _ready(engine: Engine, now: float) -> str:
    name, where = engine.name, _where(engine)
    if engine.yields_to:
        left = count(len(engine.leases), "request")
        return f"{name} finishes {left} and then makes room for {engine.yields_to}"
    if not engine.is_idle:
        waiting = f"; {count(len(engine.waiting), 'request')} wait" if engine.waiting else ""
        return f"{name} serves {count(len(engine.leases), 'request')}{where}{waiting}"
    if engine.spec.keep:
        return f"{name} is ready{where} and kept"
    ends = (("is put to sleep", sleep_deadline(engine)), ("is stopped", stop_deadline(engine)))
    due = min(((at, what) for what, at in ends if at is not None), default=None)
    unless = "" if due is None else f"; unless asked, it {due[1]} in {span(max(0.0, due[0] - now))}"
    idle_s = now - max(engine.last_used, engine.since)
    return f"{name} is ready{where}, idle for {span(idle_s)}{unless}"


def needs_eviction(fleet: Fleet, engine: Engine, now: float) -> bool:
    """Whether it could be started, or woken, only once another engine makes room."""
    return bool(fleet.gpus) and not isinstance(_choice(fleet, _as_if_asked(engine), now), Place)


def _as_if_asked(engine: Engine) -> Engine:
    """The engine, asleep or prepared, as it looks for room."""
    if engine.state is State.SLEEPING:
        return engine
    return replace(engine, state=State.QUEUED, gpus=(), granted_bytes=())


def _choice(fleet: Fleet, asked: Engine, now: float) -> Choice:
    is_asleep = asked.state is State.SLEEPING
    holders = [
        other for other in fleet if other.state in HAS_PROCESS and (is_asleep or other.name != asked.name)
    ]
    return choose(asked, rooms(fleet, holders, now), frozenset(), now)


def _would_start(fleet: Fleet, engine: Engine, now: float) -> str:
    """Where it would be started or woken, and at whose expense."""
    if engine.spec.elsewhere:
        return f"a request would ask whether {engine.name} answers, and be sent there if so"
    is_asleep = engine.state is State.SLEEPING
    took_s = engine.learnt.wake_s if is_asleep else engine.learnt.start_s
    took = f", which took {span(took_s)} the last time" if took_s is not None else ""
    verb = f"wake {engine.name}" if is_asleep else f"start {engine.name}"
    waiting = sum(wants_room(other) for other in fleet if other is not engine)
    behind = f"; {count(waiting, 'model')} wait for room before it" if waiting else ""
    asked = _as_if_asked(engine)
    match _choice(fleet, asked, now):
        case Place(gpus):
            return f"a request would {verb} on {_on(gpus)}{took}{behind}"
        case Evict(gpus, models, may_sleep):
            first = _makes_room([fleet.engines[name] for name in models], may_sleep=may_sleep)
            return f"a request would {first} to make room and {verb} on {_on(gpus)}{took}{behind}"
        case Wait(reason=reason, is_hopeless=True):
            return f"a request would soon be refused: {no_room_now(asked, reason)}"
        case Wait(reason=reason):
            return f"a request would wait: {engine.name} {reason}{behind}"
        case other:
            assert_never(other)


def _makes_room(victims: list[Engine], *, may_sleep: bool) -> str:
    """ "put a to sleep, stop b and c"."""
    dozing = [each.name for each in victims if may_sleep and each.state is State.READY and can_sleep(each)]
    ending = [each.name for each in victims if each.name not in dozing]
    parts = [f"put {listed(dozing)} to sleep"] if dozing else []
    return ", ".join([*parts, f"stop {listed(ending)}"] if ending else parts)


def _where(engine: Engine) -> str:
    return "" if engine.spec.elsewhere else f" on {_on(engine.gpus)}"


def _on(gpus: tuple[int, ...]) -> str:
    return f"GPU {', '.join(map(str, gpus))}" if gpus else "the CPU"
