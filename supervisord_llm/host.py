"""What the daemon's process needs of its host: directories, a lock and a mark in them, limits, threads."""

import asyncio
import fcntl
import os
import resource
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from supervisord_llm.errors import AlreadyRunning, SupervisorError

OPEN_FILES = 65536
FEW_OPEN_FILES = 4096
LITTLE_LOCKED_BYTES = 64 * 1024**2
THREADS = min(32, (os.cpu_count() or 1) + 4)
"""As many as asyncio would start by and by."""


@contextmanager
def lock(runtime: Path, passed: int | None = None) -> Iterator[int]:
    """Own the runtime directory; yields the descriptor that does. The lock ends with it and the process.

    Args:
        passed: the one of the program whose place this one took.
    """
    path = runtime / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if passed is not None:
        if os.path.sameopenfile(passed, descriptor):
            descriptor, passed = passed, descriptor
        os.close(passed)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise AlreadyRunning(
                f"cannot start: another llm-supervisor (pid {owner or 'unknown'}) runs on {runtime}; "
                f"stop it, or give this one its own [paths] runtime"
            ) from None
        with suppress(OSError):  # on a full disk a second daemon is refused all the same, by an unknown one
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def mark(path: Path, *, there: bool) -> None:
    """A file that tells the units' reaper to leave the engines alone."""
    if there:
        path.touch()
    else:
        path.unlink(missing_ok=True)


def make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SupervisorError(
            f"cannot make {directory}: {error.strerror}; create it for this user, or set [paths]"
        ) from error


def memory_bytes() -> int:
    """The host's main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def raise_open_files() -> None:
    """As many open files as we may have: one a connection here, and vLLM asks for 65535."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def low_limits(*, has_gpus: bool) -> tuple[str, ...]:
    """A sentence for each limit of this process that is too low; engines inherit them."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    told = []
    if files != resource.RLIM_INFINITY and files < FEW_OPEN_FILES:
        told.append(
            f"cannot open more than {files} files: few clients can be served at once; vLLM asks for 65535; "
            f"set LimitNOFILE={OPEN_FILES} in the unit, or `ulimit -n {OPEN_FILES}` before the start"
        )
    if has_gpus and locked_bytes != resource.RLIM_INFINITY and locked_bytes < LITTLE_LOCKED_BYTES:
        told.append(
            f"cannot lock more than {locked_bytes >> 10} KiB of memory: NCCL over InfiniBand and RDMA fail; "
            "set LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited` before the start"
        )
    return tuple(told)


def start_threads(loop: asyncio.AbstractEventLoop) -> None:
    """All that `asyncio.to_thread` will need, now: ending an engine takes one, and a host that has no process
    to spare is when that matters most. Nor does the wait for a child take one.

    Raises:
        SupervisorError: they cannot be had.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="worker")
    all_there = threading.Barrier(THREADS + 1)
    try:
        for _ in range(THREADS):
            pool.submit(all_there.wait)
    except RuntimeError as error:
        all_there.abort()  # else those that are there would keep the process from its end
        raise SupervisorError(
            f"cannot start: {error}; raise TasksMax= in the unit, or `ulimit -u`, or end what made so many"
        ) from error
    all_there.wait()
    loop.set_default_executor(pool)
    if sys.version_info < (3, 12):  # the default since then
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(loop)
        asyncio.set_child_watcher(watcher)
