"""One cgroup (v2) per engine, where systemd or the administrator delegated a subtree to the daemon.

A leaf holds every process of a launch whatever it forks, and `cgroup.kill` ends them in one go. Where there
is no delegation, tree.py finds them by session, ancestry and marker instead.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
OWN = Path("/proc/self/cgroup")

ENTER = 'echo $$ >"$0" 2>/dev/null; exec "$@"'
"""Run by sh in the child, between fork and exec. Not a preexec_fn, which would run Python in the fork of a
threaded process (it may deadlock there) and cost vfork. Failing is no reason not to start."""


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
        """Pids in the leaf and below it; empty once it is removed."""
        pids: set[int] = set()
        for procs in (self.path / "cgroup.procs", *self.path.glob("**/cgroup.procs")):
            with contextlib.suppress(OSError):
                pids.update(int(pid) for pid in procs.read_text().split())
        return pids

    def kill(self) -> None:
        """SIGKILL to everything in it (Linux 5.14; before that the members are killed one by one)."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")

    def oom_kills(self) -> int | None:
        """How many processes in it the kernel killed for want of memory; None without a memory controller."""
        try:
            events = dict(line.split() for line in (self.path / "memory.events").read_text().splitlines())
            return int(events["oom_kill"])
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
    with contextlib.suppress(OSError):  # not delegated, or cgroup v1 has it: then oom_kills() knows nothing
        (root / "cgroup.subtree_control").write_text("+memory")


def release(root: Path) -> None:
    """Undo the latter: systemd before 254 cannot put a restarted daemon into a cgroup with controllers below.

    To be called when a daemon has ended and engines live on, from outside of `root` itself, as ExecStopPost=
    is, which runs in a leaf of its own. What the leaves have counted is lost; settle_in() counts anew.
    """
    with contextlib.suppress(OSError):
        control = root / "cgroup.subtree_control"
        control.write_text(" ".join(f"-{name}" for name in control.read_text().split()))
