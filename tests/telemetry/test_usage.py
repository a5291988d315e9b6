"""Token counts: windows of the clock, kept over restarts, and no disk that stops the counting."""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.telemetry import usage
from supervisord_llm.telemetry.usage import HOUR_S, Period, UsageStore, bounds
from tests.config.conftest import UNHURRIED


class Clock:
    def __init__(self, at: str) -> None:
        self.at = datetime.fromisoformat(at).timestamp()

    def __call__(self) -> float:
        return self.at


@pytest.fixture(autouse=True)
def _new_york() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "America/New_York"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


# --- windows ----------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "period", "begin", "hours"),
    [
        ("2026-11-21T12:30:15-05:00", Period.HOUR, "2026-11-21T12:00:00-05:00", 1),
        ("2026-11-21T12:00:00-05:00", Period.HOUR, "2026-11-21T12:00:00-05:00", 1),
        ("2026-11-21T12:30:15-05:00", Period.DAY, "2026-11-21T00:00:00-05:00", 24),
        ("2026-03-08T12:00:00-04:00", Period.DAY, "2026-03-08T00:00:00-05:00", 23),
        ("2026-11-01T12:00:00-05:00", Period.DAY, "2026-11-01T00:00:00-04:00", 25),
        ("2026-11-01T01:30:00-04:00", Period.HOUR, "2026-11-01T01:00:00-04:00", 1),
        ("2026-11-01T01:30:00-05:00", Period.HOUR, "2026-11-01T01:00:00-05:00", 1),
    ],
)
def test_windows_are_those_of_the_clock_on_the_wall(now: str, period: Period, begin: str, hours: int) -> None:
    starts_at, ends_at = bounds(period, datetime.fromisoformat(now).timestamp())
    assert starts_at == datetime.fromisoformat(begin).timestamp()
    assert ends_at == starts_at + hours * HOUR_S


@UNHURRIED
@given(st.floats(0, 4e9), st.sampled_from(Period))
def test_every_moment_is_in_its_window(now: float, period: Period) -> None:
    starts_at, ends_at = bounds(period, now)
    assert starts_at <= now < ends_at <= now + 26 * HOUR_S


def test_a_new_window_begins_at_zero_also_when_the_clock_is_set_back() -> None:
    clock = Clock("2026-11-21T12:30:00-05:00")
    store = UsageStore(clock=clock)
    store.add("a", 5)
    store.add("a", 7)
    assert tokens(store, "a") == [12, 12]
    assert tokens(store, "b")[0] == 0
    clock.at += HOUR_S
    store.add("a", 1)
    assert tokens(store, "a") == [1, 13]
    assert store.windows("a")[0].ends_at - clock.at == HOUR_S / 2
    clock.at -= 7 * 24 * HOUR_S
    assert tokens(store, "a") == [0, 0]


# --- restarts ----------------------------------------------------------


async def test_counts_outlive_a_restart_within_their_window(tmp_path: Path) -> None:
    clock = Clock("2026-11-21T12:30:00-05:00")
    path = tmp_path / "usage.sqlite"
    first = UsageStore(path, clock)
    first.load()
    for _ in range(3):
        first.add("a", 10)
        await first.write()
    first.add("b", 4)
    await first.write()
    second = UsageStore(path, clock)
    second.load()
    assert tokens(second, "a") == [30, 30]
    second.add("b", 1)
    await second.write()
    clock.at += HOUR_S
    third = UsageStore(path, clock)
    third.load()
    assert tokens(third, "a") == [0, 30]
    assert tokens(third, "b") == [0, 5]


async def test_what_is_over_is_not_kept(tmp_path: Path) -> None:
    clock = Clock("2026-11-21T12:30:00-05:00")
    store = UsageStore(tmp_path / "usage.sqlite", clock)
    store.add("gone", 1)
    await store.write()
    clock.at += 48 * HOUR_S
    store.add("a", 1)
    await store.write()
    assert {row[0] for row in rows(tmp_path / "usage.sqlite")} == {"a"}


async def test_an_older_count_never_takes_the_place_of_a_newer_one(tmp_path: Path) -> None:
    """A write that was overtaken, as one may be that runs while the daemon ends."""
    clock = Clock("2026-11-21T12:30:00-05:00")
    path = tmp_path / "usage.sqlite"
    older, newer = UsageStore(path, clock), UsageStore(path, clock)
    older.add("a", 1)
    newer.add("a", 5)
    await newer.write()
    await older.write()
    assert {row[-1] for row in rows(path)} == {5}


async def test_it_is_written_by_itself_off_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "WRITE_EVERY_S", 0.01)
    store = UsageStore(tmp_path / "usage.sqlite")
    running = asyncio.create_task(store.run())
    store.add("a", 3)
    async with asyncio.timeout(5):
        while not (tmp_path / "usage.sqlite").exists() or not rows(tmp_path / "usage.sqlite"):
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])


async def test_without_a_file_it_counts_all_the_same() -> None:
    store = UsageStore()
    store.load()
    store.add("a", 3)
    await store.write()
    assert tokens(store, "a")[1] == 3


# --- disks that fail ----------------------------------------------------------


async def test_a_disk_that_takes_nothing_is_told_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "not there" / "usage.sqlite"
    store = UsageStore(path)
    for _ in range(3):
        store.add("a", 10)
        await store.write()
    assert tokens(store, "a")[0] == 30
    (said,) = caplog.messages
    assert said.startswith(f"cannot keep token counts in {path}: unable to open database file")
    path.parent.mkdir()
    with caplog.at_level(logging.INFO):
        await store.write()
    assert caplog.messages[1:] == [f"{path} can be written again"]
    assert {row[-1] for row in rows(path)} == {30}


async def test_a_full_disk_is_told_and_nothing_is_lost_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("database or disk is full")

    path = tmp_path / "usage.sqlite"
    store = UsageStore(path)
    store.add("a", 10)
    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", full)
        await store.write()
        await store.write()
    assert len(caplog.messages) == 1
    await store.write()
    assert {row[-1] for row in rows(path)} == {10}


@pytest.mark.parametrize(
    "content", [b"this is no database, but long enough to be told from one" * 40, b"\0" * 4096]
)
async def test_a_broken_file_is_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "usage.sqlite"
    path.write_bytes(content)
    store = UsageStore(path)
    store.load()
    assert len(caplog.messages) == 2
    assert path.with_name("usage.sqlite.broken").read_bytes() == content
    store.add("a", 10)
    await store.write()
    again = UsageStore(path)
    again.load()
    assert tokens(again, "a")[1] == 10


def test_a_file_with_other_things_in_it_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "usage.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE tokens (something TEXT)")
    database.commit()
    database.close()
    store = UsageStore(path)
    store.load()
    assert len(caplog.messages) == 1
    assert path.exists()
    assert tokens(store, "a")[1] == 0


def tokens(store: UsageStore, client: str) -> list[int]:
    """In this hour and on this day."""
    return [window.at(store.now()).tokens for window in store.windows(client)]


def rows(path: Path) -> list[tuple[object, ...]]:
    database = sqlite3.connect(path)
    try:
        return database.execute("SELECT * FROM tokens").fetchall()
    except sqlite3.Error:
        return []
    finally:
        database.close()
