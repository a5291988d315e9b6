"""sd_notify: tells systemd that the daemon is ready, what it does, and that it is alive.

Over the `sdnotify` package, which encodes latin-1 and swallows the failure: one `加` in STATUS loses the
READY in the same datagram. So text is made ASCII here, and lines are joined, since a line break would end
STATUS and begin a field of its own.
"""

import asyncio
import os
import time
from collections.abc import Mapping

import sdnotify

PATIENCE_S = 1.0
"""How long READY, RELOADING and STOPPING wait for a receiver whose queue is full."""


class Notifier:
    """Silent where $NOTIFY_SOCKET is not set, that is, outside systemd."""

    def __init__(self) -> None:
        self._systemd = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None

    @property
    def is_heard(self) -> bool:
        """Whether systemd listens."""
        return self._systemd is not None

    def ready(self, status: str = "") -> None:
        """The daemon serves. Also ends what `reloading` began."""
        self._send("READY=1", status)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("", text)

    def reloading(self, status: str = "") -> None:
        """A reload begins; `ready` ends it."""
        # systemd 253 and later only believe a reload that carries this clock.
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", status)

    def stopping(self, status: str = "") -> None:
        """The daemon drains and will end."""
        self._send("STOPPING=1", status)

    def starting(self, within_s: float, status: str) -> None:
        """The start goes on for up to `within_s` from now, whatever TimeoutStartSec= says."""
        self._send(f"EXTEND_TIMEOUT_USEC={within_s * 1e6:.0f}", status)

    def watchdog(self) -> None:
        """A sign of life; due every `watchdog_interval_s`."""
        self._send("WATCHDOG=1", "")

    def pausing(self, for_s: float) -> None:
        """There may be no sign of life for so long, whatever WatchdogSec= says, until `resuming`."""
        if watchdog_interval_s() is not None:
            self._send(f"WATCHDOG_USEC={for_s * 1e6:.0f}\nWATCHDOG=1", "")

    def resuming(self) -> None:
        """WatchdogSec= holds again."""
        if (interval_s := watchdog_interval_s()) is not None:
            self._send(f"WATCHDOG_USEC={interval_s * 2e6:.0f}\nWATCHDOG=1", "")

    async def watch(self) -> None:
        """Give signs of life for as long as the loop turns that serves every request."""
        self.resuming()
        interval_s = watchdog_interval_s()
        while interval_s is not None:
            self.watchdog()
            await asyncio.sleep(interval_s)

    def close(self) -> None:
        """Give the socket back; later calls are silent."""
        if self._systemd is not None and self._systemd.socket is not None:
            self._systemd.socket.close()
        self._systemd = None

    def _send(self, fields: str, status: str) -> None:
        if self._systemd is None:
            return
        line = " ".join(status.split()).encode("ascii", "replace").decode("ascii")
        message = "\n".join(part for part in (fields, f"STATUS={line}" if line else "") if part)
        if message and self._systemd.socket is not None:
            # A full queue of the receiver blocks a send, and with it every stream: what is said again soon is
            # dropped instead, what is said once waits a moment.
            is_repeated = fields in ("", "WATCHDOG=1")
            self._systemd.socket.settimeout(0 if is_repeated else PATIENCE_S)
            self._systemd.notify(message)


def watchdog_interval_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often to call `watchdog`: half of what systemd allows; None where it does not ask this process."""
    try:
        if int(environ.get("WATCHDOG_PID", os.getpid())) != os.getpid():
            return None
        allowed_us = int(environ["WATCHDOG_USEC"])
    except (KeyError, ValueError):
        return None
    return allowed_us / 2e6 if allowed_us > 0 else None
