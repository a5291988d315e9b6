"""When an engine that nobody uses is stopped."""

from supervisord_llm.core.fleet import Engine


def idle_deadline(engine: Engine) -> float | None:
    """When to stop it if it stays idle; None for one that is used, waited for or kept."""
    if not engine.is_idle or engine.spec.keep or engine.spec.stop_after_s is None:
        return None
    return max(engine.last_used, engine.since) + engine.spec.stop_after_s


def is_due(engine: Engine, now: float) -> bool:
    """It has been idle for stop_after_s. Judged in the same step that stops it, so no request can slip in."""
    deadline = idle_deadline(engine)
    return deadline is not None and now >= deadline
