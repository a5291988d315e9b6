"""All processes of one launch, found and killed whatever they did to hide.

vLLM has no parent-death signal: when its API server dies, EngineCore and the workers live on and hold the
GPU. So the tree is everything that descends from the leader, is in its session, is in its cgroup, or carries
the launch's marker in its environment. (A process title such as VLLM::EngineCore overwrites the environment
that /proc shows, so the marker alone would not do; nor would the session alone, which anybody may leave.)

A pid is only ever signalled together with its start time, through a pidfd.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from supervisord_llm.engines.cgroup import Leaf
from supervisord_llm.engines.command import MARKER

PROC = Path("/proc")
ABSENT = (FileNotFoundError, ProcessLookupError, PermissionError)
"""There is no such process, or it is none of ours. Any other error tells nothing: who is out of open files
must not take a living engine for a dead one."""

PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Orphans of engines become children of this process from now on, so that they can be seen and reaped.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become a child subreaper")


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table. `start_time` is in clock ticks since boot."""

    pid: int
    parent: int
    session: int
    start_time: int
    zombie: bool

    @property
    def identity(self) -> tuple[int, int]:
        """What tells it from a later process of the same pid."""
        return self.pid, self.start_time


def read_process(pid: int) -> Process | None:
    """The process `pid` now, or None if there is none.

    Raises:
        OSError: it cannot be told.
    """
    try:
        stat = (PROC / str(pid) / "stat").read_bytes()
    except ABSENT:
        return None
    fields = stat.rpartition(b")")[2].split()  # the name, in parentheses, may hold anything
    state, parent, session, start_time = fields[0], int(fields[1]), int(fields[3]), int(fields[19])
    return Process(pid, parent, session, start_time, zombie=state in (b"Z", b"X"))


def process_table() -> dict[int, Process]:
    """Every process that /proc shows us. About 20 us each.

    Raises:
        OSError: it cannot be told.
    """
    pids = [int(name) for name in os.listdir(PROC) if name.isdigit()]  # noqa: PTH208 - twice as fast
    return {pid: process for pid in pids if (process := read_process(pid)) is not None}


def marker_of(pid: int) -> str | None:
    """The marker in the environment of `pid`; None where there is none or it may not be read."""
    return variable_of(pid, MARKER)


def variable_of(pid: int, name: str) -> str | None:
    """A variable of the environment that `pid` was started with; None as for marker_of."""
    try:
        environ = (PROC / str(pid) / "environ").read_bytes()
    except ABSENT:
        return None
    start = f"{name}=".encode()
    found = next((entry for entry in environ.split(b"\0") if entry.startswith(start)), None)
    return None if found is None else found[len(start) :].decode(errors="replace")


def writes_to(pid: int, file: Path) -> bool:
    """Whether the standard output or the standard error of `pid` is this file."""
    for descriptor in ("1", "2"):
        with contextlib.suppress(*ABSENT):
            if (PROC / str(pid) / "fd" / descriptor).samefile(file):
                return True
    return False


def send_signal(process: Process, signum: int) -> bool:
    """Signal exactly this process, never a later one of the same pid. False if it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = read_process(process.pid)
        if now is None or now.start_time != process.start_time:
            return False
        signal.pidfd_send_signal(pidfd, signum)
        return True
    except OSError:
        return False
    finally:
        os.close(pidfd)


def reap(pid: int) -> bool:
    """Reap a dead child; False while a thread of it is still dying (in a driver's call, for example).

    Never waitpid(-1): that would steal the children of asyncio and subprocess.
    """
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


@dataclass(slots=True)
class Tree:
    """The processes of one launch. `known` remembers whom a look has found, wherever they go later."""

    leader: int
    start_time: int
    marker: str
    leaf: Leaf | None = None
    log: Path | None = None
    """What its processes write to, where the leader may be gone, pid and all, before anybody looks."""
    known: set[tuple[int, int]] = field(default_factory=set)

    def members(self, table: dict[int, Process] | None = None) -> list[Process]:
        """Every process of the tree, zombies included."""
        table = process_table() if table is None else table
        young = [process for process in table.values() if process.start_time >= self.start_time]
        in_leaf = self.leaf.members() if self.leaf is not None else set()
        found = {
            process.pid
            for process in young
            if process.identity in self.known
            or process.identity == (self.leader, self.start_time)
            or self.has_in_session(process, table.get(self.leader))
            or process.pid in in_leaf
            or marker_of(process.pid) == self.marker
        }
        found = with_descendants(found, young) - {os.getpid(), 1}
        members = [table[pid] for pid in found]
        self.known = {process.identity for process in members}
        return members

    def has_in_session(self, process: Process, leader: Process | None) -> bool:
        """A session is named after its leader's pid, so a new process with that pid makes it a stranger's.

        Where there is no `leader` it may be either's: that of one that came and went since is left alone.
        """
        if process.session != self.leader:
            return False
        if leader is None:
            return self.log is not None and writes_to(process.pid, self.log)
        return leader.start_time == self.start_time

    def hidden(self, table: dict[int, Process]) -> set[int]:
        """Processes in the leaf that /proc does not show us, or does not show yet.

        With ProtectProc=invisible and PrivateUsers= a restarted daemon no more sees its engines.
        """
        return set() if self.leaf is None else self.leaf.members() - table.keys()

    def is_alive(self) -> bool:
        """Whether any process of it still runs."""
        table = process_table()
        return any(not process.zombie for process in self.members(table)) or bool(self.hidden(table))

    def kill(self) -> bool:
        """SIGKILL whoever lives and reap whoever is dead; True when nothing is left but the leader's zombie.

        The leader itself is for the caller to reap, last: until then neither its pid nor its session can be
        taken by somebody else. Not instant: call it again until it says True. Blocks for some milliseconds.

        Raises:
            OSError: it cannot be told who lives; call it again.
        """
        if self.leaf is not None:
            self.leaf.kill()
        table = process_table()
        members = self.members(table)
        pids = {process.pid for process in members}
        remaining = bool(self.hidden(table))
        for process in members:
            if not process.zombie:
                send_signal(process, signal.SIGKILL)
                remaining = True
            elif process.pid != self.leader:
                ours = process.parent == os.getpid()
                # A zombie of a dying parent becomes ours next, or init's.
                remaining |= not reap(process.pid) if ours else process.parent in pids
        reap_orphans()
        return not remaining


def with_descendants(pids: Iterable[int], processes: Iterable[Process]) -> set[int]:
    """`pids` and everything that descends from them."""
    children: dict[int, list[int]] = {}
    for process in processes:
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found


def reap_children() -> None:
    """Reap what died while this process was executed anew, since nobody waits for it any more.

    Only before anything is spawned.
    """
    for process in process_table().values():
        if process.parent == os.getpid() and process.zombie:
            reap(process.pid)


def reap_orphans() -> None:
    """Reap dead children that were handed to us: those whose session is neither ours nor their own.

    Our own children are started in our session, or as leaders of theirs, and their owners wait for them.
    """
    session = os.getsid(0)
    for process in process_table().values():
        orphan = process.parent == os.getpid() and process.session not in (session, process.pid)
        if orphan and process.zombie:
            reap(process.pid)
