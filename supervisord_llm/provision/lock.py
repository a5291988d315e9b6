"""One builder of a thing at a time, across tasks and processes."""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from supervisord_llm.provision.waiting import SIGN_OF_LIFE, SIGN_S
from supervisord_llm.runtime.ports import Progress, Report

RETRY_S = 0.1


@asynccontextmanager
async def locked(file: Path, report: Report) -> AsyncIterator[int]:
    """Hold the flock of `file`; yields its descriptor. Tells that it waits, then signs of life.

    A child that inherits the descriptor holds the lock with us, so a worker that outlives a killed daemon
    keeps the next daemon waiting instead of having its files removed under it.
    """
    with _opened(file) as descriptor:
        told_at: float | None = None
        while not _take(descriptor):
            if told_at is None or time.monotonic() - told_at >= SIGN_S:
                waits = Progress("waiting for another one to finish the same work")
                report(waits if told_at is None else SIGN_OF_LIFE)
                told_at = time.monotonic()
            await asyncio.sleep(RETRY_S)
        yield descriptor


@contextmanager
def locked_now(file: Path) -> Iterator[bool]:
    """Hold the flock of `file` if nobody else does; yields whether we do."""
    with _opened(file) as descriptor:
        yield _take(descriptor)


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
