"""Sockets that were listening before this program ran, so that its coming and going refuses nobody.

systemd's (sd_listen_fds(3)), and those of the program whose place it took in the same process (process.py).
"""

import json
import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

FIRST_FD = 3
OURS = "LLM_SUPERVISOR_PASSED"
"""What goes beyond systemd's protocol: descriptors that need not follow each other, and the lock."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What one program leaves open for the next."""

    systemd: tuple[socket.socket, ...] = ()
    """As systemd passed them, in their order."""
    names: str = ""
    """$LISTEN_FDNAMES of those."""
    listening: Mapping[str, tuple[socket.socket, ...]] = field(default_factory=dict)
    """Those that the program before made itself, by the address in its configuration."""
    lock: int | None = None
    """The descriptor that holds the lock of the runtime directory."""


def inherited(environ: MutableMapping[str, str] = os.environ) -> Passed:
    """What was passed to this process; nothing where it is meant for another.

    Takes the variables out of `environ` and the descriptors out of reach of children, so that no engine ends
    up holding the port.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "")
    ours = json.loads(environ.pop(OURS, "{}"))
    if pid != str(os.getpid()):
        return Passed()
    passed = Passed(
        systemd=tuple(_socket(FIRST_FD + index) for index in range(int(count) if count.isdecimal() else 0)),
        names=names,
        listening={
            address: tuple(map(_socket, descriptors))
            for address, descriptors in ours.get("listening", {}).items()
        },
        lock=ours.get("lock"),
    )
    _set_inheritable(passed, inheritable=False)
    return passed


def pass_on(passed: Passed) -> dict[str, str]:
    """Let the program that is executed next in this process inherit `passed`; the variables that tell it."""
    _set_inheritable(passed, inheritable=True)
    listening = {address: _numbers(sockets) for address, sockets in passed.listening.items()}
    systemd = {"LISTEN_FDS": str(len(passed.systemd))} if passed.systemd else {}
    names = {"LISTEN_FDNAMES": passed.names} if passed.names else {}
    ours = json.dumps({"listening": listening, "lock": passed.lock})
    return {"LISTEN_PID": str(os.getpid()), OURS: ours, **systemd, **names}


def keep(passed: Passed) -> None:
    """It was not executed: undo `pass_on`."""
    _set_inheritable(passed, inheritable=False)


def _set_inheritable(passed: Passed, *, inheritable: bool) -> None:
    lock = () if passed.lock is None else (passed.lock,)
    ours = (each for sockets in passed.listening.values() for each in sockets)
    for descriptor in (*_numbers(passed.systemd), *_numbers(tuple(ours)), *lock):
        os.set_inheritable(descriptor, inheritable)


def _socket(descriptor: int) -> socket.socket:
    found = socket.socket(fileno=descriptor)
    found.setblocking(False)
    return found


def _numbers(sockets: Sequence[socket.socket]) -> list[int]:
    return [each.fileno() for each in sockets]
