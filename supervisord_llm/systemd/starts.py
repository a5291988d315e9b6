"""Holds back a daemon that fails to start again and again.

systemd's own limit is off: once hit, it fails the socket, too, and clients are refused. Here they wait at it.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

from supervisord_llm.core.holdback import hold_s
from supervisord_llm.systemd.notify import Notifier

log = logging.getLogger("llm_supervisor.systemd")

STOPS = (signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1 says that a SIGTERM for a restart follows."""

START_S = 120.0
"""What a start may take after the wait: TimeoutStartSec= of the unit."""


class Starts:
    """Those that failed since the last one that came to serve, a line each in a file that a boot removes.

    One that was killed is not among them: it did not fail by itself.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._has_served = False

    def failed_at(self) -> list[float]:
        """When each failed, on the clock of `now`. A file that cannot be read is no reason not to start."""
        try:
            return [float(line) for line in self._file.read_text().split()]
        except (OSError, ValueError):
            return []

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count this one if it ends with an error before it has served."""
        try:
            yield
        except Exception:
            if not self._has_served:
                with suppress(OSError):
                    self._file.write_text("".join(f"{at}\n" for at in (*self.failed_at(), now())))
            raise

    def served(self) -> None:
        """It has come to serve."""
        self._has_served = True
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        with suppress(OSError):
            self._file.unlink()


def now() -> float:
    """Seconds since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def hold_back(starts: Starts, notifier: Notifier) -> bool:
    """Wait as long as it takes; False where the daemon was told to stop meanwhile.

    The start after that is tried at once: whoever restarts it by hand has mended something.
    """
    failed_at = starts.failed_at()
    wait_s = hold_s(failed_at, now())
    if wait_s and await _is_stopped(wait_s, len(failed_at), notifier):
        starts.forget()
        return False
    return True


async def _is_stopped(wait_s: float, failures: int, notifier: Notifier) -> bool:
    until = f"{datetime.now().astimezone() + timedelta(seconds=wait_s):%H:%M:%S}"
    log.warning(
        "the last %d starts failed: waits until %s before the next; clients wait at the port; "
        "`systemctl restart llm-supervisor` tries at once",
        failures,
        until,
    )
    notifier.starting(wait_s + START_S, f"the last {failures} starts failed: waits until {until}")
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in STOPS:
        loop.add_signal_handler(number, stopped.set)
    try:
        await asyncio.wait_for(stopped.wait(), wait_s)
    except TimeoutError:
        return False
    finally:
        for number in STOPS:
            loop.remove_signal_handler(number)
    return True
