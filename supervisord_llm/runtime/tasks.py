"""Background tasks with a name, whose death is news."""

import asyncio
import logging
from collections.abc import Coroutine

log = logging.getLogger("llm_supervisor.runtime")


class Tasks:
    """The tasks of one owner: held so that they are not collected, ended together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` under `name`; an exception that escapes it is logged with its traceback."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel_all(self) -> None:
        """Cancel what still runs and wait for it."""
        running = tuple(self._tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("cannot go on with %s: %s; this is a bug, please report it", task.get_name(), error,
                      exc_info=error)  # fmt: skip
