"""How long a request still waits for its engine, and what it is told meanwhile."""

from supervisord_llm.core.explain import span
from supervisord_llm.core.fleet import Engine
from supervisord_llm.core.state import State

BEFORE_LAUNCH = frozenset({State.STOPPED, State.PREPARING, State.QUEUED, State.BACKOFF})


def ready_in_s(engine: Engine, now: float) -> float | None:
    """At least so long until it is ready, if it starts or wakes as it did the last time.

    None where no such time is known, or it has passed.
    """
    learnt, state = engine.learnt, engine.state
    if state is State.READY:
        return 0.0
    if state is State.BACKOFF and learnt.start_s is not None:
        return max(0.0, engine.retry_at - now) + learnt.start_s
    if state in BEFORE_LAUNCH:
        return learnt.start_s
    if state is State.SLEEPING:
        return learnt.wake_s
    took_s = {State.STARTING: learnt.start_s, State.WAKING: learnt.wake_s}.get(state)
    left_s = None if took_s is None else took_s - (now - engine.since)
    return left_s if left_s is not None and left_s > 0 else None


def told_to_waiting(engine: Engine, request: int, now: float) -> str:
    """For the one who waits: "coder is starting: loading weights 40%; ready in about 30 s; place 2 of 5".

    Without the place where nobody else waits; "" for one that does not wait.
    """
    requests = [one.request for one in engine.waiting]
    if request not in requests:
        return ""
    phase = f": {engine.phase}" if engine.phase else ""
    share = "" if engine.fraction is None else f" {int(engine.fraction * 100)}%"
    left_s = ready_in_s(engine, now)
    parts = [f"{engine.name} is {engine.state}{phase}{share}"]
    if left_s:
        parts.append(f"ready in about {span(max(1.0, left_s))}")
    if len(requests) > 1:
        parts.append(f"place {requests.index(request) + 1} of {len(requests)}")
    return "; ".join(parts)
