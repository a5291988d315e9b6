"""Sockets that systemd listens on for us (sd_listen_fds(3)): a restart of the daemon refuses nobody."""

import os
import socket
from collections.abc import MutableMapping

FIRST_FD = 3


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets passed to this process; [] where there are none or they are meant for another.

    Takes the variables out of `environ` and the descriptors out of reach of children, so that no engine ends
    up holding the port.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    sockets = [socket.socket(fileno=FIRST_FD + index) for index in range(int(count))]
    for each in sockets:
        each.set_inheritable(False)
        each.setblocking(False)
    return sockets
