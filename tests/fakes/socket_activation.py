"""Runs a command as systemd does that listens for it: the socket as descriptor 3, meant for its pid."""

import socket
import sys

SHIM = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); "
    "os.environ.update(LISTEN_PID=sys.argv[2] or str(os.getpid()), LISTEN_FDS='1'); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


def activated(listener: socket.socket, command: list[str], pid: str = "") -> list[str]:
    """The command line; give it `pass_fds=[listener.fileno()]`. `pid`: whom it is meant for instead."""
    return [sys.executable, "-c", SHIM, str(listener.fileno()), pid, *command]
