"""Hours of the week: which window is on, and when that changes. The one place that knows of wall clocks.

Instants are aware datetimes, given by the caller; what a window says is local time in the schedule's zone.
"""

from dataclasses import dataclass
from datetime import time, tzinfo

EVERY_DAY = frozenset(range(7))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """From `start` to before `end`, local time, on days of the week on which it starts (0 is Monday).

    With `end` at or before `start` it goes past midnight, into the day after.
    """

    start: time
    end: time
    days: frozenset[int] = EVERY_DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """[schedule] windows: hours in which only some models may run."""

    name: str
    hours: Hours
    only: tuple[str, ...] | None = None
    """Models that may run; None: all of them."""
    preload: tuple[str, ...] = ()
    """Models to start when it begins, in this order."""
    drain_s: float = 0.0
    """How long before it begins the others take no new requests."""
    fallback: str | None = None
    """The model or route that answers in place of one that may not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """[schedule]: the first window that is on counts; outside of all, every model may run."""

    zone: tzinfo
    windows: tuple[Window, ...] = ()
