"""What the daemon's own process has of its host: limits and threads."""

import asyncio
import subprocess
import sys
import threading

import pytest

from supervisord_llm.errors import SupervisorError
from supervisord_llm.host import start_threads

ASK = "from supervisord_llm.host import low_limits; print(*low_limits(has_gpus={}), sep='\\n')"


@pytest.mark.parametrize(
    ("limit", "has_gpus", "told"),
    [
        ("--nofile=64", False, ("cannot open more than 64 files", "LimitNOFILE=65536", "ulimit -n 65536")),
        ("--memlock=65536", True, ("cannot lock more than 64 KiB", "LimitMEMLOCK=infinity", "ulimit -l")),
        ("--memlock=65536", False, ()),  # nothing of CUDA runs
    ],
)
def test_limits_that_are_too_low_are_told_with_the_fix(
    limit: str, has_gpus: bool, told: tuple[str, ...]
) -> None:
    command = ["prlimit", limit, sys.executable, "-c", ASK.format(has_gpus)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(words in said for words in told)
    assert told or "cannot lock" not in said


async def test_a_thread_that_cannot_be_had_ends_those_that_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def start_two(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(SupervisorError, match="can't start new thread; raise TasksMax"):
        start_threads(asyncio.get_running_loop())
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()
