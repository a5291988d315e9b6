"""What every test is held to: it leaves no task and no child process behind."""

import asyncio
import asyncio.runners
from collections.abc import Iterator

import psutil
import pytest

from supervisord_llm.engines.tree import reap_orphans


@pytest.fixture(autouse=True)
def no_task_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A task still running when its loop closes is a leak; asyncio would cancel it in silence."""
    left: list[str] = []
    cancel_all = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]

    def noted(loop: asyncio.AbstractEventLoop) -> None:
        left.extend(str(task.get_coro()) for task in asyncio.all_tasks(loop))
        cancel_all(loop)

    monkeypatch.setattr(asyncio.runners, "_cancel_all_tasks", noted)
    yield
    assert left == [], "tasks outlived the test"


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """A child that a test made, alive or zombie, ends with the test."""
    before = set(psutil.Process().children())
    yield
    reap_orphans()  # some tests make this process a subreaper, as the daemon is one
    left = [child for child in psutil.Process().children() if child not in before]
    assert left == [], "child processes outlived the test"
