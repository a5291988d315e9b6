"""One builder of a thing at a time, across tasks and processes."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from supervisord_llm.runtime.ports import Progress, Report

RETRY_S = 0.1


@asynccontextmanager
async def locked(file: Path, report: Report) -> AsyncIterator[int]:
    """Hold the flock of `file`; yields its descriptor.

    A child that inherits the descriptor holds the lock with us, so a worker that outlives a killed daemon
    keeps the next daemon waiting instead of having its files removed under it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        waiting = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    report(Progress("waiting for another one to finish the same work"))
                waiting = True
                await asyncio.sleep(RETRY_S)
        yield descriptor
    finally:
        os.close(descriptor)
