"""What this host has: disks, memory, limits, tools, the clock."""

import os
import re
import resource
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import uv

from supervisord_llm.cli.diagnosis.access import User
from supervisord_llm.cli.diagnosis.host import Host, Place
from supervisord_llm.cli.examination.gpu import node_of
from supervisord_llm.cli.examination.limit import Call, NotTold, output, text
from supervisord_llm.config.model import Config, Paths, Share
from supervisord_llm.provision.weights import local_path

DISK_S = 5.0
COMPILERS = ("cc", "gcc", "clang")


def see_host(
    config: Config | None, paths: Paths, user: User, daemon_pid: int | None, *, gpus: int, is_wsl: bool
) -> Host:
    """`paths` are the daemon's; `daemon_pid` is None where it does not run, or cannot be seen."""
    wanted = {"state": paths.state, "cache": paths.cache} | _local_weights(config)
    memory, swap = psutil.virtual_memory().total, psutil.swap_memory()
    whose, limits = _limits(daemon_pid)
    return Host(
        user=user,
        is_own_user=user.uid == os.geteuid(),
        is_wsl=is_wsl,
        gpus=gpus,
        places=tuple(_place(name, path) for name, path in wanted.items()),
        memory_bytes=memory,
        swap_bytes=swap.total,
        swap_used_bytes=swap.used,
        ram_budget_bytes=None if config is None else _ram_budget(config, memory),
        limits_of=whose,
        open_files=limits.get("Max open files"),
        locked_bytes=limits.get("Max locked memory"),
        shared_bytes=_free(Path("/dev/shm")),  # noqa: S108 - looked at, not written to
        is_clock_set=_is_clock_set(),
        has_compiler=any(map(shutil.which, COMPILERS)),
        has_uv=_has_uv(),
        pythons={} if config is None else _pythons(config, paths),
    )


def nearest(path: Path) -> Path:
    """The path, or the nearest parent that exists."""
    return next((each for each in (path, *path.parents) if each.exists()), Path("/"))


# --- disks ----------------------------------------------------------


def _local_weights(config: Config | None) -> dict[str, Path]:
    models = config.models.values() if config is not None else ()
    return {f"models.{model.name}": path for model in models if (path := local_path(model)) is not None}


def _place(name: str, path: Path) -> Place:
    try:
        return Call(lambda: _read_place(name, path)).within(DISK_S, f"the disk of {path}")
    except (NotTold, OSError) as why:
        return Place(name=name, path=str(path), silent=str(why))


def _read_place(name: str, path: Path) -> Place:
    there = nearest(path)
    found = os.statvfs(there)
    return Place(
        name=name,
        path=str(path),
        free_bytes=found.f_bavail * found.f_frsize,
        inodes=found.f_files or None,
        free_inodes=found.f_favail if found.f_files else None,
        kind=_kind(there.resolve()),
        node=node_of(path),
    )


def _kind(path: Path) -> str:
    """Of the file system that has `path`."""
    mounts = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    return next((mounts[each] for each in (path, *path.parents) if each in mounts), "")


def _free(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


# --- memory and limits ----------------------------------------------------------


def _ram_budget(config: Config, memory_bytes: int) -> int:
    wanted = config.host.ram_budget
    return int(wanted.fraction * memory_bytes) if isinstance(wanted, Share) else wanted


def _limits(pid: int | None) -> tuple[str, Mapping[str, int]]:
    """Whose, and name -> the daemon's soft limit, or our hard one, which it may take; unlimited: none."""
    if pid is not None and (shown := text(f"/proc/{pid}/limits")):
        found = re.findall(r"^(Max [a-z ]+?) {2,}(\d+) ", shown, re.MULTILINE)
        return "the daemon", {name: int(soft) for name, soft in found}
    ours = {
        "Max open files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "Max locked memory": resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],
    }
    return "this shell", {name: hard for name, hard in ours.items() if hard != resource.RLIM_INFINITY}


# --- tools and clock ----------------------------------------------------------


def _has_uv() -> bool:
    with suppress(FileNotFoundError):
        return bool(uv.find_uv_bin())
    return False


def _pythons(config: Config, paths: Paths) -> dict[str, bool]:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    venvs = [model.venv for model in config.models.values() if model.venv is not None]
    wanted = {venv.python for venv in venvs if venv.path is None and venv.python is not None}
    return {
        version: version == here
        or shutil.which(f"python{version}") is not None
        or any((paths.state / "python").glob(f"cpython-{version}*"))
        for version in sorted(wanted)
    }


def _is_clock_set() -> bool | None:
    try:
        told = output("timedatectl", "show", "--property=NTPSynchronized", "--value").strip()
    except NotTold:
        return None
    return {"yes": True, "no": False}.get(told)
