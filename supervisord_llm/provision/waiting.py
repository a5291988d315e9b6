"""Long waits that show that they are alive, so that nobody takes them for a stall."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from supervisord_llm.runtime.ports import Progress, Report

SIGN_OF_LIFE = Progress("")
"""Still alive, and the phase is what it was."""
SIGN_S = 1.0
"""Between two signs of life."""

T = TypeVar("T")


async def in_thread(work: Callable[[], T], report: Report, stop: threading.Event | None = None) -> T:
    """What `work` returns, run in a thread, with signs of life while it lasts.

    A thread cannot be cancelled: a cancellation sets `stop`, which `work` may look at, and is raised when the
    thread has ended, so that nothing goes on behind the caller's back.
    """
    running = asyncio.get_running_loop().run_in_executor(None, work)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait({running}, timeout=SIGN_S)
        except asyncio.CancelledError as cancellation:
            cancelled = cancellation
            if stop is not None:
                stop.set()
        else:
            if not running.done():
                report(SIGN_OF_LIFE)
    if cancelled is not None:
        running.exception()  # looked at, or asyncio complains that nobody did
        raise cancelled
    return running.result()
