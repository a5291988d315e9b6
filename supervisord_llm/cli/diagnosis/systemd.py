"""systemd: its version, our units, what drop-ins did to them, and the cgroups."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from supervisord_llm.cli.diagnosis.finding import Finding, Level

SERVICE, SOCKET = "llm-supervisor.service", "llm-supervisor.socket"
FETCH = "llm-supervisor-fetch.socket"
MIN_VERSION = 252
CONTROLLERS = ("memory", "cpu", "pids")
LOG = "`journalctl -u llm-supervisor -n 50`"

DIFFERENT: Mapping[str, tuple[str, Level, str]] = {
    "Type": ("notify", "problem", "systemd does not learn when the daemon is up"),
    "KillMode": ("process", "problem", "a restart of the daemon ends every engine"),
    "Delegate": ("yes", "problem", "engines get no cgroups, and limits do not hold"),
    "Restart": ("always", "warning", "a crashed daemon stays down"),
    "RuntimeDirectoryPreserve": ("yes", "problem", "a restarted daemon does not find its engines"),
    "RemoveIPC": ("no", "problem", "a crash of the daemon takes the engines' shared memory"),
    "PrivateUsers": ("no", "problem", "a restarted daemon cannot see its engines, nor take them over"),
    "MemoryDenyWriteExecute": ("no", "problem", "numba and oneDNN make code at run time: engines die"),
    "ProcSubset": ("all", "problem", "CUDA and the daemon do not find /proc/meminfo and /proc/driver"),
    "OOMPolicy": ("continue", "problem", "one engine that runs out of memory ends all of them"),
}
"""Property of the service -> what it is, how bad another value is, and what that does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """What systemd and the cgroups tell."""

    version: int | None = MIN_VERSION
    """None: there is no systemctl."""
    is_booted: bool = True
    """Whether systemd is process 1."""
    is_installed: bool = True
    """Whether the service's file is on disk."""
    complaint: str = ""
    """Why the units could not be asked; "" where they could."""
    service: Mapping[str, str] = field(default_factory=dict)
    socket: Mapping[str, str] = field(default_factory=dict)
    fetch: Mapping[str, str] = field(default_factory=dict)
    """What `systemctl show` says of SERVICE, SOCKET and FETCH."""
    holders: Mapping[int, str] = field(default_factory=dict)
    """Port of the socket unit -> who listens there."""
    cgroup: Literal["v2", "hybrid", "v1", ""] = "v2"
    controllers: frozenset[str] = frozenset(CONTROLLERS)
    """Those of the v2 hierarchy that the service has, or would get."""
    is_wsl: bool = False

    @property
    def has_socket(self) -> bool:
        """Whether systemd holds the port."""
        return self.socket.get("ActiveState") == "active"

    @property
    def is_up(self) -> bool:
        return self.service.get("ActiveState") in ("active", "reloading")


def findings(units: Units) -> Iterator[Finding]:
    """Of systemd, the units, their settings and the cgroups."""
    if not units.is_booted or units.version is None:
        yield _not_booted(units)
        return
    if units.version < MIN_VERSION:
        mend = "upgrade to Debian 12, Ubuntu 24.04 or newer"
        text = f"{units.version} is too old: the units need {MIN_VERSION}"
        yield Finding("problem", "version", text, mend)
    else:
        yield Finding("ok", "version", str(units.version))
    if not units.is_installed:
        text = f"{SERVICE} is not installed: `llm-supervisor serve` runs the daemon in the foreground"
        yield Finding("warning", "service", text, "`sudo scripts/install` in a checkout")
    elif units.complaint:
        text = f"the units cannot be asked: {units.complaint}"
        yield Finding("warning", "service", text, "`systemctl status llm-supervisor` may say more")
    else:
        yield _service(units)
        yield from _socket(units)
        yield from _fetch(units)
        yield from _settings(units)
    yield _cgroups(units)


def _not_booted(units: Units) -> Finding:
    text = "does not run here: `llm-supervisor serve` runs the daemon in the foreground"
    if not units.is_installed:
        return Finding("ok", "systemd", text)
    mend = "see WSL above" if units.is_wsl else "boot with systemd"
    return Finding("problem", "systemd", "does not run here, so the installed units do nothing", mend)


# --- the units ----------------------------------------------------------


def _service(units: Units) -> Finding:
    shown = units.service
    state, result, status = (shown.get(each, "") for each in ("ActiveState", "Result", "ExecMainStatus"))
    at_boot = shown.get("UnitFileState", "") not in ("disabled", "masked", "masked-runtime")
    if shown.get("LoadState") == "masked":
        return Finding("problem", "service", "is masked", f"`sudo systemctl unmask {SERVICE}`")
    if shown.get("LoadState") not in ("loaded", None):
        text = f"its file cannot be loaded ({shown.get('LoadState')})"
        return Finding("problem", "service", text, f"`systemd-analyze verify {SERVICE}` says why")
    if status == "78" and state in ("failed", "activating"):
        mend = "`sudo llm-supervisor check`, then `sudo systemctl restart llm-supervisor`"
        return Finding("problem", "service", "did not start: the configuration was invalid", mend)
    if state == "failed":
        text = f"failed ({result}, exit status {status})"
        return Finding("problem", "service", text, f"{LOG}, then `sudo systemctl restart llm-supervisor`")
    if state == "activating" and shown.get("SubState") == "auto-restart":
        return Finding(
            "problem", "service", f"ends and is started again ({result}, exit status {status})", LOG
        )
    if units.is_up and not at_boot:
        mend = "`sudo systemctl enable llm-supervisor`"
        return Finding("warning", "service", "is active, but is not started at boot", mend)
    if state == "inactive" and not units.has_socket:
        mend = "`sudo systemctl enable --now llm-supervisor`"
        return Finding("problem" if at_boot else "warning", "service", "is not started", mend)
    restarts = shown.get("NRestarts", "0")
    text = f"is {state or 'in an unknown state'}"
    if state == "activating" and shown.get("StatusText"):  # it holds itself back, and until when
        text += f" ({shown['StatusText']})"
    if state == "inactive":
        text += "; the first request starts it"
    elif restarts not in ("", "0"):
        return Finding("warning", "service", f"{text}, after {restarts} restarts by itself", LOG)
    return Finding("ok", "service", text)


def _socket(units: Units) -> Iterator[Finding]:
    listens = units.socket.get("Listen", "").replace(" (Stream)", "")
    if units.has_socket:
        yield Finding("ok", "socket", f"systemd holds {listens or 'the port'}")
        return
    main = f"(pid {units.service.get('MainPID')})"  # the daemon itself has it, where the socket was stopped
    strangers = {port: holder for port, holder in units.holders.items() if not holder.endswith(main)}
    for port, holder in strangers.items():
        mend = f"stop that, or take another port: `sudo systemctl edit {SOCKET}`"
        yield Finding("problem", "socket", f"port {port} is held by {holder}", mend)
    if units.is_up and not strangers:
        text = "is not active: clients are refused while the daemon restarts"
        mend = f"`sudo systemctl enable {SOCKET} && sudo systemctl restart {SERVICE}`: engines go on"
        yield Finding("warning", "socket", text, mend)


def _fetch(units: Units) -> Iterator[Finding]:
    loaded = units.fetch.get("LoadState") == "loaded"
    if units.is_up and loaded and units.fetch.get("ActiveState") != "active":
        text = "is not active: what a model lacks is not downloaded at its first request"
        yield Finding("warning", "fetch", text, f"`sudo systemctl start {FETCH}`")


def _settings(units: Units) -> Iterator[Finding]:
    shown = units.service
    if shown.get("NeedDaemonReload") == "yes":
        text = "changed on disk since systemd read it"
        yield Finding("warning", "unit files", text, "`sudo systemctl daemon-reload`")
    drop_ins = shown.get("DropInPaths", "")
    for name, (expected, level, effect) in DIFFERENT.items():
        value = shown.get(name, expected)
        if value != expected:
            where = f" (drop-ins: {drop_ins})" if drop_ins else ""
            mend = f"`sudo systemctl edit llm-supervisor` and take {name}= out"
            yield Finding(level, "unit files", f"{name}={value}: {effect}{where}", mend)


# --- cgroups ----------------------------------------------------------


def _cgroups(units: Units) -> Finding:
    missing = [name for name in CONTROLLERS if name not in units.controllers]
    if units.cgroup == "v2" and not missing:
        return Finding("ok", "cgroups", f"v2, with {', '.join(CONTROLLERS)}")
    if units.is_wsl:
        mend = "write `kernelCommandLine=cgroup_no_v1=all` under [wsl2] in .wslconfig, then `wsl --shutdown`"
    else:
        mend = "put `cgroup_no_v1=all` on the kernel's command line, and reboot"
    if units.cgroup in ("v1", ""):
        text = "there is no v2: engines are ended by session, and `limits` of a model do not hold"
        return Finding("warning", "cgroups", text, mend)
    text = f"without {', '.join(missing)}: those `limits` of a model do not hold"
    if not missing:
        return Finding("ok", "cgroups", f"v2 beside v1, with {', '.join(CONTROLLERS)}")
    return Finding("warning", "cgroups", text, mend)
