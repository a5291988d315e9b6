"""What systemd knows of the units, and what the cgroups offer."""

import grp
import os
import pwd
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil

from supervisord_llm.cli.diagnosis.access import User
from supervisord_llm.cli.diagnosis.systemd import DIFFERENT, FETCH, SERVICE, SOCKET, Units
from supervisord_llm.cli.examination.limit import NotTold, output, text
from supervisord_llm.config.load import DEFAULT_FILE, config_file

FOLDERS = tuple(Path(root, "systemd/system") for root in ("/etc", "/usr/local/lib", "/usr/lib", "/lib"))
PROPERTIES = (
    *("Id", "LoadState", "UnitFileState", "NeedDaemonReload", "DropInPaths", "User", "SupplementaryGroups"),
    *("ActiveState", "SubState", "StatusText", "Result", "ExecMainStatus", "NRestarts", "MainPID"),
    *("ControlGroup", "Listen"),
)
CGROUPS = Path("/sys/fs/cgroup")


def see_units(*, is_wsl: bool) -> Units:
    """One call of systemctl, and a few small files."""
    version, shown, complaint = None, dict[str, dict[str, str]](), ""
    with suppress(NotTold, IndexError, ValueError):
        version = int(re.split(r"\D", output("systemctl", "--version").split()[1])[0])
    is_booted = Path("/run/systemd/system").is_dir()
    if is_booted and version is not None and is_installed():
        try:
            wanted = ",".join((*PROPERTIES, *DIFFERENT))
            shown = _blocks(output("systemctl", "show", f"--property={wanted}", SERVICE, SOCKET, FETCH))
        except NotTold as why:
            complaint = str(why)
    service, socket = shown.get(SERVICE, {}), shown.get(SOCKET, {})
    ports = [] if socket.get("ActiveState") == "active" else ports_of(socket)
    kind, controllers = _cgroups(service.get("ControlGroup", ""))
    return Units(
        version=version,
        is_booted=is_booted,
        is_installed=is_installed(),
        complaint=complaint,
        service=service,
        socket=socket,
        fetch=shown.get(FETCH, {}),
        holders={port: holder for port in ports if (holder := _holder(port))},
        cgroup=kind,
        controllers=controllers,
        is_wsl=is_wsl,
    )


def is_installed() -> bool:
    """Whether the service's file is there, for a systemd that may not run."""
    return any((folder / SERVICE).exists() for folder in FOLDERS)


def user_of(units: Units, config: Path | None) -> User:
    """Who the daemon of `config` runs as: the service's user for the system's own, else who asks."""
    name = units.service.get("User", "")
    if not name or config_file(config) != DEFAULT_FILE:
        return _this_user()
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return _this_user()
    gids = set(os.getgrouplist(entry.pw_name, entry.pw_gid))
    for group in units.service.get("SupplementaryGroups", "").split():
        with suppress(KeyError):
            gids.add(grp.getgrnam(group).gr_gid)
    return User(entry.pw_name, entry.pw_uid, frozenset(gids))


def _this_user() -> User:
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return User(name, uid, frozenset((os.getegid(), *os.getgroups())))


def ports_of(socket: Mapping[str, str]) -> list[int]:
    """Of the socket unit, those that not only this machine reaches."""
    found = re.findall(r"(\S*):(\d+) \(Stream\)", socket.get("Listen", ""))
    return [int(port) for host, port in found if not host.startswith(("127.", "[::1]"))]


def _blocks(shown: str) -> dict[str, dict[str, str]]:
    """Property -> value by the Id of each unit; values of one that comes again (Listen=) are joined."""
    units: dict[str, dict[str, str]] = {}
    for block in shown.split("\n\n"):
        properties: dict[str, str] = {}
        for name, _, value in (line.partition("=") for line in block.splitlines()):
            properties[name] = f"{properties[name]} {value}" if name in properties else value
        units[properties.get("Id", "")] = properties
    return units


def _holder(port: int) -> str:
    """Who listens there; "" where nobody does."""
    try:
        listening = [
            each
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
        ]
    except (psutil.Error, OSError):
        return ""
    for each in listening:
        if each.pid:
            with suppress(psutil.Error):
                return f"{psutil.Process(each.pid).name()} (pid {each.pid})"
    return "a process of another user" if listening else ""


def _cgroups(of_service: str) -> tuple[Literal["v2", "hybrid", "v1", ""], frozenset[str]]:
    """The hierarchy, and the controllers of the service; of the root where it does not run."""
    kind: Literal["v2", "hybrid", "v1", ""] = ""
    root = CGROUPS
    if (CGROUPS / "cgroup.controllers").exists():
        kind = "v2"
    elif (CGROUPS / "unified" / "cgroup.controllers").exists():
        kind, root = "hybrid", CGROUPS / "unified"
    elif CGROUPS.is_dir():
        kind = "v1"
    for group in (root / of_service.strip("/"), root):
        if controllers := text(str(group / "cgroup.controllers")):
            return kind, frozenset(controllers.split())
    return kind, frozenset()
