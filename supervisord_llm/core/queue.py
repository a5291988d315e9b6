"""The order of those who wait: for a model, and of models for room."""

from supervisord_llm.core.eviction import START_S
from supervisord_llm.core.fleet import Engine, Waiting
from supervisord_llm.core.state import State

FAIR_WAIT_S = 30.0
"""For so long others may go on using the room that somebody waits for: AAABBB is served, not ABABAB."""

STARVING_WAITS = 4
"""After so many fair waits no priority comes before it."""


def insert(waiting: tuple[Waiting, ...], new: Waiting) -> tuple[Waiting, ...]:
    """`waiting` with `new` behind everyone of its priority or higher."""
    if not waiting or waiting[-1].priority >= new.priority:
        return (*waiting, new)
    return tuple(sorted((*waiting, new), key=lambda one: -one.priority))  # stable: the oldest stay first


def has_slot(engine: Engine) -> bool:
    """Fewer leases than max_concurrent."""
    return engine.spec.max_concurrent is None or len(engine.leases) < engine.spec.max_concurrent


def is_open(engine: Engine) -> bool:
    """A request that comes now is admitted at once."""
    return engine.state is State.READY and not engine.waiting and not engine.yields_to and has_slot(engine)


def is_full(engine: Engine) -> bool:
    """No further request may wait."""
    spec = engine.spec
    if spec.max_concurrent is None:
        return len(engine.waiting) >= max(spec.queue_size, 1)
    # While it loads, those that will have a slot once it is ready do not count against the queue.
    size = spec.queue_size if spec.queue_when_busy else 0
    return len(engine.waiting) + len(engine.leases) >= spec.max_concurrent + size


def expired(engine: Engine, now: float) -> tuple[Waiting, ...]:
    """Those who have waited for queue_timeout_s."""
    if not engine.waiting or waits_since(engine) > (limit := now - engine.spec.queue_timeout_s):
        return ()
    return tuple(one for one in engine.waiting if one.since <= limit)


def waits_since(engine: Engine) -> float:
    """When its longest waiting request came; or, without one, when it was prepared or wanted awake."""
    if len(engine.waiting) == 1:
        return engine.waiting[0].since
    asked_at = engine.wanted_since if engine.state is State.SLEEPING else engine.since
    return min((one.since for one in engine.waiting), default=asked_at)


def fair_wait_s(engine: Engine) -> float:
    """How long it waits for room before those who use it take no new requests.

    Longer for a model that takes long to start, or swapping would be all that is done; never so long that
    its requests run out of time.
    """
    start_s = START_S if engine.learnt.start_s is None else engine.learnt.start_s
    return min(max(FAIR_WAIT_S, start_s), engine.spec.queue_timeout_s / 2)


def overdue_at(engine: Engine) -> float:
    """From when on those in its way have to yield."""
    return waits_since(engine) + fair_wait_s(engine)


def is_overdue(engine: Engine, now: float) -> bool:
    return now >= overdue_at(engine)


def turn_order(engine: Engine, now: float) -> tuple[bool, bool, int, float]:
    """Who comes first where several models wait for room: priority, then age; and nobody starves."""
    since = waits_since(engine)
    is_starving = now >= since + STARVING_WAITS * fair_wait_s(engine)
    priority = engine.waiting[0].priority if engine.waiting else 0
    return (not engine.is_wanted, not is_starving, 0 if is_starving else -priority, since)
