"""The daemon's event loop: its clock leaves out the time in which the process could not run.

After a stop of the process, or a pause of its virtual machine (WSL when Windows sleeps), every deadline would
have passed at once, and engines that became ready or answered in the meantime would be ended. So deadlines,
back-off and idle times count running time. In a suspend of the host itself Linux's CLOCK_MONOTONIC stands
still anyway, and the wall clock, whatever it is set to, moves none of them.
"""

import asyncio
import time

BEAT_S = 1.0
"""The loop turns this often, even with nothing to do."""

HELD_UP_S = 3.0
"""A longer time between two turns was none of ours."""


class SteadyLoop(asyncio.SelectorEventLoop):
    """`time()` goes on where it was after the process was held up."""

    def __init__(self) -> None:
        self._seen_at = time.monotonic()
        self._lost_s = 0.0
        super().__init__()
        self._beat()

    def time(self) -> float:
        """Seconds: CLOCK_MONOTONIC, less what was lost."""
        now = time.monotonic()
        if now - self._seen_at > HELD_UP_S:
            self._lost_s += now - self._seen_at
        self._seen_at = now
        return now - self._lost_s

    def _beat(self) -> None:
        self.call_later(BEAT_S, self._beat)
