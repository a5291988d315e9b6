"""What the daemon's own process needs of its host: directories, the lock on them, open files, a mark."""

import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supervisord_llm.errors import AlreadyRunning, SupervisorError

OPEN_FILES = 65536


@contextmanager
def lock(runtime: Path) -> Iterator[None]:
    """Own the runtime directory. The lock goes with the process, however it ends."""
    path = runtime / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise AlreadyRunning(
                f"cannot start: another llm-supervisor (pid {owner or 'unknown'}) runs on {runtime}; "
                f"stop it, or give this one its own [paths] runtime"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
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


def raise_open_files() -> None:
    """As many open files as we may have: one a connection here, and vLLM asks for 65535."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
