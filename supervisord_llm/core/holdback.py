"""How long a daemon whose starts fail one after the other waits before it tries again.

Counted are starts that gave up before the daemon served. After one that served, or was killed, the next comes
at once: each life does its work and costs no model.
"""

from collections.abc import Sequence

AT_ONCE = 4
"""Failures in a row after which it is tried again at once: an update in the middle, a slow disk."""

WINDOW_S = 600.0
"""Older failures are forgotten."""

SHORTEST_S, LONGEST_S = 1.0, 60.0


def hold_s(failed_at: Sequence[float], now: float) -> float:
    """Seconds to wait, doubled with each failure after the first four.

    Args:
        failed_at: since the last one that served, on the clock of `now`.
    """
    count = sum(now - WINDOW_S < at <= now for at in failed_at)
    return 0.0 if count < AT_ONCE else min(LONGEST_S, SHORTEST_S * 2.0 ** min(count - AT_ONCE, 60))
