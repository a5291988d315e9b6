"""The order of those who wait for a model."""

from supervisord_llm.core.fleet import Engine, Waiting


def insert(waiting: tuple[Waiting, ...], new: Waiting) -> tuple[Waiting, ...]:
    """`waiting` with `new` behind everyone of its priority or higher."""
    if not waiting or waiting[-1].priority >= new.priority:
        return (*waiting, new)
    return tuple(sorted((*waiting, new), key=lambda one: -one.priority))  # stable: the oldest stay first


def has_slot(engine: Engine) -> bool:
    """Fewer leases than max_concurrent."""
    return engine.spec.max_concurrent is None or len(engine.leases) < engine.spec.max_concurrent


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
    limit = now - engine.spec.queue_timeout_s
    return tuple(one for one in engine.waiting if one.since <= limit)
