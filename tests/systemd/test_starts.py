"""The file of failed starts, and the wait: what systemd hears and how a signal ends it."""

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from supervisord_llm.errors import SupervisorError
from supervisord_llm.systemd import starts as module
from supervisord_llm.systemd.notify import Notifier
from supervisord_llm.systemd.starts import Starts, hold_back, now


class Heard(Notifier):
    """Keeps what it would tell."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[float, str]] = []

    def starting(self, within_s: float, status: str) -> None:
        self.told.append((within_s, status))


def failed(file: Path, count: int, ago_s: float = 1.0) -> Starts:
    """As if so many starts had failed."""
    file.write_text("".join(f"{now() - ago_s}\n" for _ in range(count)))
    return Starts(file)


def attempt(file: Path, error: BaseException | None, *, serves: bool = False) -> int:
    """One start that ends so; how many count after it."""
    starts = Starts(file)
    with suppress(BaseException), starts.count():
        if serves:
            starts.served()
        if error is not None:
            raise error
    return len(Starts(file).failed_at())


def test_a_start_counts_if_it_gives_up_before_it_has_served(tmp_path: Path) -> None:
    file = tmp_path / "starts"
    assert attempt(file, OSError()) == 1
    assert attempt(file, SupervisorError()) == 2
    assert attempt(file, KeyboardInterrupt()) == 2
    assert attempt(file, RuntimeError()) == 3
    assert attempt(file, RuntimeError(), serves=True) == 0
    assert attempt(file, None) == 0


@pytest.mark.parametrize("text", ["", "soon\n", "\0\0\0", "1e400\n" * 9, "nan\n" * 9])
async def test_a_file_that_says_nothing_holds_nobody_back(tmp_path: Path, text: str) -> None:
    file = tmp_path / "starts"
    file.write_text(text)
    async with asyncio.timeout(0.5):
        assert await hold_back(Starts(file), Notifier())


async def test_after_four_it_waits_and_says_until_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "hold_s", lambda failed_at, now: 0.2 * (len(failed_at) == 4))
    heard, starts = Heard(), failed(tmp_path / "starts", 4)
    began = time.monotonic()
    assert await hold_back(starts, heard)
    assert time.monotonic() - began >= 0.2
    ((within_s, status),) = heard.told
    assert within_s == pytest.approx(120.2)
    assert status.startswith("the last 4 starts failed: waits until ")
    assert len(starts.failed_at()) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
async def test_a_signal_ends_it_at_once_and_the_next_start_is_free(
    tmp_path: Path, number: signal.Signals
) -> None:
    starts = failed(tmp_path / "starts", 20)
    before = signal.getsignal(number)
    asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), number)
    async with asyncio.timeout(2):
        assert not await hold_back(starts, Notifier())
    assert starts.failed_at() == []
    assert signal.getsignal(number) == before
