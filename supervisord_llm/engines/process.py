"""One engine process and its whole tree: spawned, watched, ended, reaped."""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from supervisord_llm.engines import network, probe
from supervisord_llm.engines.cgroup import Leaf
from supervisord_llm.engines.command import MARKER, Command
from supervisord_llm.engines.logfile import private
from supervisord_llm.engines.tree import Process, Tree, read_process, send_signal
from supervisord_llm.errors import LaunchError

log = logging.getLogger("llm_supervisor.engines")

MAX_SOCKET_PATH = 107
OOM_SCORE_ADJ = 500
"""sun_path of Linux, less its final zero."""

CHECK = "check the model's `venv` or `command`"
WAYS_OUT = {
    errno.EAGAIN: "raise TasksMax= in the unit, or `ulimit -u`, or end what made so many processes",
    errno.ENOMEM: "end what takes the main memory",
    errno.EMFILE: "raise LimitNOFILE= in the unit, or `ulimit -n`",
    errno.ENFILE: "raise the sysctl fs.file-max",
}
"""For a process that cannot be made."""

LOOK_AGAIN_S = 1.0
T = TypeVar("T")

DUMP_S, DUMP_EACH_S, DUMP_POLL_S = 1.5, 0.15, 0.01
"""How long the stacks of a hung engine may take to reach its log: in all, and those of one process."""


def spawn(
    command: Command, *, socket: Path, log: Path, leaf: Leaf | None = None, isolated: bool = False
) -> "EngineProcess":
    """Start `command` in a session of its own, writing to the file `log`, which outlives us as no pipe would.

    With `isolated` in a network of its own, too, which network.look() found to be possible.

    Raises:
        LaunchError: the socket's path is too long or taken, or there is no such executable, or no fork.
    """
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
        raise LaunchError(
            f"cannot listen on {socket}: longer than 107 bytes; choose a shorter `paths.runtime`"
        )
    if probe.is_answering(socket):
        raise LaunchError(f"cannot start: another process answers on {socket}; end it, or restart the daemon")
    with contextlib.suppress(FileNotFoundError):
        socket.unlink()  # vLLM leaves its socket behind and refuses to start on one
    if not os.access(command.argv[0], os.X_OK):
        raise LaunchError(f"cannot run {command.argv[0]}: no such executable; {CHECK}")
    argv = network.entering(command.argv) if isolated else command.argv
    argv = argv if leaf is None else leaf.entering(argv)
    try:
        with open_log(log) as output:
            popen = subprocess.Popen(
                argv,
                env=dict(command.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except OSError as why:
        raise LaunchError(
            f"cannot run {command.argv[0]}: {why.strerror}; {WAYS_OUT.get(why.errno or 0, CHECK)}"
        ) from why
    forbid_core_dumps(popen.pid)
    offer_to_oom_killer(popen.pid)
    try:
        process = read_process(popen.pid)
        assert process is not None, "an unreaped child has a line in the process table"
        tree = Tree(popen.pid, process.start_time, command.env.get(MARKER, ""), leaf, log)
        return EngineProcess(os.pidfd_open(popen.pid), tree, socket, popen)
    except OSError as why:
        popen.kill()
        popen.wait()
        raise LaunchError(f"cannot watch {command.argv[0]}: {why.strerror}; check `ulimit -n`") from why


def open_log(log: Path) -> IO[bytes]:
    """
    Raises:
        LaunchError: it cannot be written.
    """
    try:
        return open(log, "ab", buffering=0, opener=private)
    except OSError as why:
        raise LaunchError(
            f"cannot write its log {log}: {why.strerror}; check `paths.state`, its owner and its disk"
        ) from why


def take_over(tree: Tree, socket: Path) -> "EngineProcess":
    """Watch and own what an earlier run of the daemon spawned.

    Raises:
        LaunchError: its leader is gone, or cannot be watched.
    """
    try:
        pidfd = os.pidfd_open(tree.leader)
    except OSError as why:
        raise LaunchError(f"cannot take over pid {tree.leader}: {why.strerror}") from why
    leader = read_process(tree.leader)  # after the pidfd was opened: it names this very process
    if leader is None or leader.start_time != tree.start_time or leader.zombie:
        os.close(pidfd)
        raise LaunchError(f"cannot take over pid {tree.leader}: it has ended")
    return EngineProcess(pidfd, tree, socket)


def offer_to_oom_killer(pid: int) -> None:
    """Have the kernel take an engine before the daemon, whose score under systemd its children inherit."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ))


def forbid_core_dumps(pid: int) -> None:
    """An engine that aborts would write its memory to the disk, tens of GiB; its children inherit this.

    One byte is too little for a core and, unlike 0, also holds where core_pattern is a pipe.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    with contextlib.suppress(OSError, ValueError):  # gone already; or the hard limit is 0
        resource.prlimit(pid, resource.RLIMIT_CORE, (1, hard))


class EngineProcess:
    """A running engine. It watches itself: whatever happens to the caller, the tree is killed and reaped.

    One that was taken over is mostly no child of ours. Init reaps it then, and its exit code is unknown.
    """

    def __init__(
        self, pidfd: int, tree: Tree, socket: Path, popen: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        """`pidfd` of the tree's leader, which is ours from now on; `popen` if we spawned it."""
        self.tree = tree
        self.socket = socket
        self.asked_to_stop = False
        self.on_gone: Callable[[], None] = lambda: None
        """Called once, when every process is reaped."""
        self.oom_kills: int | None = None
        """Once gone: how many of its processes the kernel killed for want of memory, where its leaf tells."""
        self._popen = popen
        self._ended = asyncio.Event()
        """The leader is dead, though not yet reaped."""
        self._end = asyncio.Event()
        """The tree must go, now."""
        self._dumped = asyncio.Event()
        self._dumped.set()
        """Nobody is writing stacks that a SIGKILL would cut off."""
        self._pidfd = pidfd
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_leader_ended)
        self._gone = asyncio.create_task(self._watch(), name=f"watch engine {self.pid}")

    @property
    def pid(self) -> int:
        return self.tree.leader

    @property
    def gone(self) -> bool:
        """Every process of the tree is reaped."""
        return self._gone.done()

    def _on_leader_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._ended.set()
        self._end.set()

    async def _watch(self) -> int | None:
        """Wait for the end, make it complete, and return the leader's exit code."""
        await self._end.wait()
        await self._dumped.wait()
        pause_s = 0.005
        while not await self._told(self.tree.kill):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)
        await self._ended.wait()
        os.close(self._pidfd)
        code = await self._told(self._reap_leader)
        with contextlib.suppress(OSError):
            self.socket.unlink()
        if self.tree.leaf is not None:
            self.oom_kills = self.tree.leaf.oom_kills()
            self.tree.leaf.remove()
        self.on_gone()
        return code

    async def _told(self, look: Callable[[], T]) -> T:
        """What `look` finds among the processes, as soon as that can be told: we may be out of open files."""
        while True:
            try:
                return await asyncio.to_thread(look)
            except OSError as why:
                log.warning("cannot look for the processes of engine %d: %s", self.pid, why.strerror)
                await asyncio.sleep(LOOK_AGAIN_S)

    def _reap_leader(self) -> int | None:
        code = None
        leader = read_process(self.pid)
        if leader is not None and leader.start_time == self.tree.start_time and leader.parent == os.getpid():
            with contextlib.suppress(ChildProcessError):
                code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if self._popen is not None:  # subprocess need not look for it any more
            self._popen.returncode = 0 if code is None else code
        return code

    async def wait(self) -> int | None:
        """The leader's exit code (negative: a signal; None: unknown), once the whole tree is reaped."""
        return await asyncio.shield(self._gone)

    async def stop(self, *, term_timeout_s: float, kill_timeout_s: float, dump: bool = False) -> None:
        """SIGTERM to the leader, SIGKILL to the tree after `term_timeout_s` (0: at once).

        With `dump` the processes first get a SIGABRT each and DUMP_S in all to write their stacks to the log.

        Returns when all is reaped, or `kill_timeout_s` after the SIGKILL if even that did not help; the watch
        then goes on trying every second. Cancelling this cancels the waiting, not the end.
        """
        if not self._end.is_set():  # else it has crashed before, and stays a crash
            self.asked_to_stop = True
            if dump:
                await self._dump()
        if term_timeout_s > 0 and not self._end.is_set():
            await self._told(self.tree.members)  # remembers who is who before parents begin to die
            asyncio.get_running_loop().call_later(term_timeout_s, self._end.set)
            self._terminate_leader()
        else:
            self._end.set()
        await asyncio.wait([self._gone], timeout=term_timeout_s + kill_timeout_s)

    async def _dump(self) -> None:
        """Have every process write its stacks and die of it, one by one lest their lines mix.

        The leader is first: it would notice the death of the others. One that is stopped does nothing.
        """
        clock = asyncio.get_running_loop().time
        self._dumped.clear()
        try:
            members = await self._told(self.tree.members)
            deadline = clock() + DUMP_S
            for process in sorted(members, key=lambda process: (process.pid != self.pid, process.pid)):
                send_signal(process, signal.SIGABRT)
                limit = min(clock() + DUMP_EACH_S, deadline)
                while is_alive(process) and clock() < limit:  # noqa: ASYNC110 - not our child, mostly
                    await asyncio.sleep(DUMP_POLL_S)
        finally:
            self._dumped.set()
            self._end.set()

    def leave(self) -> None:
        """Watch it no longer, so that it can be taken over anew. One that is ending has its end."""
        if self._end.is_set():
            return
        self._gone.cancel()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._popen is not None:  # subprocess must not reap it either
            self._popen.returncode = 0

    def _terminate_leader(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)


def is_alive(process: Process) -> bool:
    """Whether it is the same process still, and not a zombie. Where that cannot be told it is."""
    try:
        now = read_process(process.pid)
    except OSError:
        return True
    return now is not None and now.identity == process.identity and not now.zombie
