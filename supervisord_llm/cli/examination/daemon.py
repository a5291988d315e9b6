"""Asks the daemon, if there is one, for its version."""

import os
from pathlib import Path

from supervisord_llm import __version__
from supervisord_llm.cli.client import Client
from supervisord_llm.cli.diagnosis.daemon import Daemon
from supervisord_llm.cli.diagnosis.systemd import Units
from supervisord_llm.errors import SupervisorError


def see_daemon(socket: Path, units: Units) -> tuple[Daemon, int | None]:
    """The daemon, and its pid as far as it is known."""
    running, complaint = "", ""
    pid = int(units.service.get("MainPID") or 0) or None
    try:
        status = Client(socket).get("status")
        running, pid = str(status["version"]), int(status["pid"])
    except SupervisorError as why:
        complaint = str(why)
    found = Daemon(
        socket=str(socket),
        installed=__version__,
        running=running,
        complaint=complaint,
        is_forbidden=not running and _is_forbidden(socket),
        is_up=units.is_up,
        has_socket=units.has_socket,
        is_service=units.is_installed and units.is_booted,
    )
    return found, pid


def _is_forbidden(socket: Path) -> bool:
    try:
        socket.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(socket, os.R_OK | os.W_OK)
