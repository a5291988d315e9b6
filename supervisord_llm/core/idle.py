"""When an engine that nobody uses is put to sleep or stopped."""

from supervisord_llm.core.eviction import can_sleep
from supervisord_llm.core.fleet import Engine
from supervisord_llm.core.state import State


def stop_deadline(engine: Engine) -> float | None:
    """When to stop it if it stays idle; None for one that is used, waited for or kept."""
    after_s = engine.spec.stop_after_s
    if after_s is None or not engine.is_idle or engine.spec.keep:
        return None
    return _idle_since(engine) + after_s


def sleep_deadline(engine: Engine) -> float | None:
    """When to put it to sleep if it stays idle; None where it cannot, or sleeps."""
    after_s = engine.spec.sleep_after_s
    if after_s is None or engine.state is not State.READY or not engine.is_idle or not can_sleep(engine):
        return None
    return _idle_since(engine) + after_s


def is_due(deadline: float | None, now: float) -> bool:
    """Judged in the same step that acts on it, so no request can slip in."""
    return deadline is not None and now >= deadline


def _idle_since(engine: Engine) -> float:
    """Last used, or ready without ever having been used. Sleep does not make it idle for less long."""
    return max(engine.last_used, engine.since if engine.state is State.READY else 0.0)
