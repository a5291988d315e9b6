"""The daemon: whether it answers, whether this user may ask, and which version it is."""

from collections.abc import Iterator
from dataclasses import dataclass

from supervisord_llm.cli.diagnosis.finding import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """What there is behind the control socket."""

    socket: str
    installed: str
    """The version of this command."""
    running: str = ""
    """The version that answers; "" where none does."""
    complaint: str = ""
    """Why none does, with a way out after the first semicolon."""
    is_forbidden: bool = False
    """Whether this user may not ask."""
    is_up: bool = False
    """Whether systemd says that the service runs."""
    has_socket: bool = False
    """Whether systemd holds the port, and starts the daemon for the first client."""
    is_service: bool = True
    """Whether the service is installed, under a systemd that runs."""


def findings(daemon: Daemon) -> Iterator[Finding]:
    text, _, mend = daemon.complaint.partition("; ")
    if daemon.running and daemon.running != daemon.installed:
        told = f"version {daemon.running} runs, and {daemon.installed} is installed"
        mend = "`sudo llm-supervisor upgrade`, or `sudo systemctl restart llm-supervisor`: engines go on"
        yield Finding("warning", "daemon", told, mend)
    elif daemon.running:
        yield Finding("ok", "daemon", f"answers at {daemon.socket}, version {daemon.running}")
    elif daemon.is_forbidden:
        yield Finding("warning", "daemon", text, mend)
    elif daemon.is_up:
        told = f"systemd says that it runs, but it does not answer at {daemon.socket}"
        yield Finding("problem", "daemon", told, "`journalctl -u llm-supervisor -n 50` may say why")
    elif daemon.has_socket:
        yield Finding("ok", "daemon", "does not run; the first request starts it")
    else:
        start = "`sudo systemctl start llm-supervisor`" if daemon.is_service else "`llm-supervisor serve`"
        yield Finding("warning", "daemon", f"none answers at {daemon.socket}", start)
