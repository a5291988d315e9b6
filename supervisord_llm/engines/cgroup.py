"""One cgroup (v2) per engine, where systemd or the administrator delegated a subtree to the daemon.

A leaf holds every process of a launch whatever it forks, and `cgroup.kill` ends them in one go. Where there
is no delegation, tree.py finds them by session, ancestry and marker instead.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from supervisord_llm.config.model import Limits
from supervisord_llm.config.values import SIZE_UNITS
from supervisord_llm.runtime.ports import Usage

MOUNTS = Path("/proc/self/mountinfo")
OWN = Path("/proc/self/cgroup")

ENTER = 'echo $$ >"$0" 2>/dev/null; exec "$@"'
"""Run by sh in the child, between fork and exec. Not a preexec_fn, which would run Python in the fork of a
threaded process (it may deadlock there) and cost vfork. Failing is no reason not to start."""


CONTROLLERS = ("memory", "cpu", "pids")
CPU_PERIOD_US = 100_000
WAY_OUT = "run the daemon as a service with Delegate=yes, on a host with cgroup v2 alone (cgroup_no_v1=all)"


@dataclass(frozen=True, slots=True)
class Leaf:
    """The cgroup of one launch."""

    path: Path

    @classmethod
    def create(cls, root: Path, name: str) -> "Leaf":
        leaf = cls(root / name)
        leaf.path.mkdir(exist_ok=True)
        return leaf

    def entering(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        """`argv`, run in this leaf from its first instruction on."""
        return ("/bin/sh", "-c", ENTER, str(self.path / "cgroup.procs"), *argv)

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def members(self) -> set[int]:
        """Pids in the leaf and below it; empty once it is removed.

        Raises:
            OSError: there are no open files left to look.
        """
        pids: set[int] = set()
        for procs in (self.path / "cgroup.procs", *self.path.glob("**/cgroup.procs")):
            try:
                pids.update(int(pid) for pid in procs.read_text().split())
            except OSError as why:
                if why.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # then it is not known
                    raise
        return pids

    def kill(self) -> None:
        """SIGKILL to everything in it (Linux 5.14; before that the members are killed one by one)."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")

    def limit(self, limits: Limits) -> tuple[str, ...]:
        """Set what it may take, to last until controllers go; a sentence for each limit that cannot be.

        Lowered below what is in use, the kernel takes memory back first, which blocks, and kills last.
        """
        told: list[str] = []
        for name, value, file, text in _settings(limits):
            why = self._write(file, text)
            if why is not None:
                told.append(f"cannot enforce {name} = {value}: {why}")
        if limits.memory_bytes is not None:
            # An API server without its EngineCore, or one without a worker, is of no use, and may hang.
            self._write("memory.oom.group", "1")
        return tuple(told)

    def _write(self, file: str, text: str) -> str | None:
        """Why not, if not."""
        controller = file.partition(".")[0]
        path = self.path / file
        if not path.exists():
            return f"the {controller} controller is not delegated to the daemon; {WAY_OUT}"
        try:
            path.write_text(text)
        except OSError as why:
            return f"{path}: {why.strerror}; choose another value"
        return None

    def usage(self) -> Usage:
        """What it takes of the host; two small files."""
        microseconds = self._count("cpu.stat", "usage_usec")
        return Usage(
            memory_bytes=self._count("memory.current"),
            cpu_s=None if microseconds is None else microseconds / 1e6,
        )

    def oom_kills(self) -> int | None:
        """How many processes in it the kernel killed for want of memory; None without a memory controller."""
        return self._count("memory.events", "oom_kill")

    def _count(self, file: str, key: str | None = None) -> int | None:
        """The number in `file`, or the one beside `key` in it; None where there is none."""
        try:
            text = (self.path / file).read_text()
            return int(text if key is None else dict(line.split() for line in text.splitlines())[key])
        except (OSError, ValueError, KeyError):
            return None

    def remove(self) -> None:
        """Remove it and what the engine made below it. A leaf that is not empty stays."""
        below = [path for path in self.path.glob("**/") if path != self.path]
        for directory in (*sorted(below, reverse=True), self.path):
            with contextlib.suppress(OSError):
                directory.rmdir()


DAEMON = "daemon"
"""The leaf of the daemon itself: made by settle_in(), or by DelegateSubgroup= of systemd."""


def delegated_root() -> Path | None:
    """Our own cgroup, if it is ours to divide: cgroup v2, marked as delegated, writable. Else None.

    Where we are in our leaf already, executed anew or put there by systemd, it is the one above.
    """
    own = own_cgroup()
    if own is not None and own.name == DAEMON and not is_delegated(own):
        own = own.parent
    return own if own is not None and is_delegated(own) and os.access(own / "cgroup.procs", os.W_OK) else None


def own_cgroup() -> Path | None:
    """The directory of our cgroup in the v2 hierarchy."""
    try:
        inside = next(line[3:] for line in OWN.read_text().splitlines() if line.startswith("0::"))
        mount = next(line.split()[4] for line in MOUNTS.read_text().splitlines() if " - cgroup2 " in line)
    except (OSError, StopIteration):
        return None
    path = Path(mount) / inside.lstrip("/")
    return path if (path / "cgroup.procs").exists() else None


def is_delegated(path: Path) -> bool:
    """systemd marks what it delegates with an extended attribute, so that others keep off."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def settle_in(root: Path) -> None:
    """Move the daemon into a leaf of its own, since processes live in leaves only."""
    Leaf.create(root, DAEMON).add(os.getpid())
    with contextlib.suppress(OSError):
        present = (root / "cgroup.controllers").read_text().split()
        for controller in CONTROLLERS:
            # Not delegated, or cgroup v1 has it: then limit() says so, and oom_kills() knows nothing.
            if controller in present:
                with contextlib.suppress(OSError):
                    (root / "cgroup.subtree_control").write_text(f"+{controller}")


def no_leaf(limits: Limits) -> tuple[str, ...]:
    """What Leaf.limit() would say of an engine without one."""
    return tuple(
        f"cannot enforce {name} = {value}: the engine has no cgroup of its own; {WAY_OUT}"
        for name, value, *_ in _settings(limits)
    )


def _settings(limits: Limits) -> Iterator[tuple[str, str, str, str]]:
    """Of each limit that is set: its name and value in the configuration, its file, what is written there."""
    if limits.memory_bytes is not None:
        yield "memory", _size(limits.memory_bytes), "memory.max", str(limits.memory_bytes)
    if limits.cpu is not None:
        quota_us = round(limits.cpu * CPU_PERIOD_US)
        yield "cpu", f"{limits.cpu:g}", "cpu.max", f"{quota_us} {CPU_PERIOD_US}"
    if limits.pids is not None:
        yield "pids", str(limits.pids), "pids.max", str(limits.pids)


def _size(size_bytes: int) -> str:
    """ "32GiB", in the largest unit that divides it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes % SIZE_UNITS[unit] == 0:
            return f"{size_bytes // SIZE_UNITS[unit]}{unit}"
    return str(size_bytes)
