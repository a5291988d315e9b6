"""How long a model that failed waits, and when it has failed too often."""

from supervisord_llm.core.fleet import ModelSpec


def recent(failures: tuple[float, ...], spec: ModelSpec, now: float) -> tuple[float, ...]:
    """The failures that still count."""
    return tuple(at for at in failures if at > now - spec.restart_window_s)


def delay_s(failure_count: int, spec: ModelSpec) -> float:
    """Seconds to wait after the n-th failure in a row: doubled each time, within the model's bounds."""
    shortest, longest = spec.backoff_s
    return min(longest, shortest * 2.0 ** min(failure_count - 1, 60))


def is_hopeless(failures: tuple[float, ...], spec: ModelSpec) -> bool:
    """As many failures within the window as there are tries."""
    return len(failures) >= spec.restart_tries
