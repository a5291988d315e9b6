"""Asking what may hang: a command, or a call of the system, for so long and no longer."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

COMMAND_S = 5.0
"""For a command that answers in milliseconds."""

PATH = ":".join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/lib/wsl/lib"))
"""Firewalls are not on the PATH of ordinary users, nor is nvidia-smi on that of services under WSL."""


class NotTold(Exception):
    """No answer. The message is a clause: "systemctl says: Failed to connect to bus"."""


class Silent(NotTold):
    """It takes too long: "systemctl does not answer within 5 s"."""


def output(*command: str, limit_s: float = COMMAND_S) -> str:
    """What a command prints on stdout.

    A child that hangs inside a driver cannot be killed: it is left behind, not waited for.

    Raises:
        NotTold: it is not there, or fails.
        Silent: it takes too long.
    """
    name = command[0]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"LC_ALL": "C", "PATH": PATH},
            start_new_session=True,
        )
    except OSError as error:
        raise NotTold(f"{name} cannot be run ({error.strerror})") from None
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        threading.Thread(target=child.communicate, daemon=True).start()  # reaps it when it comes out
        raise Silent(f"{name} does not answer within {limit_s:g} s") from None
    if child.returncode != 0:
        why = err.decode(errors="replace").strip().splitlines()
        raise NotTold(f"{name} says: {why[0]}" if why else f"{name} failed with exit code {child.returncode}")
    return out.decode(errors="replace")


class Call(Generic[T]):
    """A call in a thread of its own, which the end of the process does not wait for."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._answers: list[T] = []
        self._errors: list[Exception] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def within(self, limit_s: float, what: str) -> T:
        """
        Raises:
            Silent: `what` takes too long.
        """
        self._thread.start()
        self._thread.join(limit_s)
        if self._errors:
            raise self._errors[0]
        if not self._answers:
            raise Silent(f"{what} does not answer within {limit_s:g} s")
        return self._answers[0]

    def _run(self) -> None:
        try:
            self._answers.append(self._ask())
        except Exception as error:  # raised again where it is waited for
            self._errors.append(error)


def text(path: str) -> str:
    """A small file of /proc, /sys or /etc; "" where it is not there or not ours to read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
