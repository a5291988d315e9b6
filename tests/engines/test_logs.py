"""Output of engines: read as it comes, bounded on disk and in memory, never a brake."""

import asyncio
import errno
import logging
import resource
import time
from pathlib import Path

import pytest

from supervisord_llm.engines import reserve
from supervisord_llm.engines.logfile import MAX_FILE_BYTES, LogFile
from supervisord_llm.engines.logs import (
    KEPT_LINES,
    SLICE_BYTES,
    LineSplitter,
    LogTail,
    RateLimitedLog,
    level_of,
)
from tests.engines.conftest import Fleet, stats_of
from tests.fakes.disk import MIB, mounted


def test_lines_are_split_cleaned_and_capped() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"one\r\ntwo\n\nthr") == ["one", "two"]
    assert splitter.feed(b"ee\n\x1b[31mred\x1b[0m\n\xff\n") == ["three", "red", "\ufffd"]
    assert splitter.feed(b"\r 10%\r 20%") == [" 10%"]
    assert splitter.flush_bar() == [" 20%"]
    assert [len(line) for line in splitter.feed(b"x" * 10_000)] == [4096]
    assert splitter.feed(b"still the long line") == []
    assert splitter.feed(b"\nnext\n") == ["next"]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("(EngineCore pid=9) ERROR 11-21 03:12:44 [core.py:901] x", logging.ERROR),
        ("WARNING 11-21 03:12:44 [x.py:1] x", logging.WARNING),
        ("(APIServer pid=9) INFO:     Started server process", logging.INFO),
        ("a line of no level, ERROR inside", logging.INFO),
    ],
)
def test_the_level_is_vllms_own(line: str, level: int) -> None:
    assert level_of(line) == level


def test_our_own_log_gets_the_lines_at_a_bounded_rate(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llm_supervisor.engine")
    forward = RateLimitedLog("alpha")
    began = int(time.monotonic())
    for _ in range(1000):
        forward("WARNING x")
    seconds = int(time.monotonic()) - began + 1
    assert 200 <= len(caplog.records) <= 201 * seconds
    assert caplog.records[0].model == "alpha"  # type: ignore[attr-defined]
    assert caplog.records[0].levelno == logging.WARNING


async def test_a_follower_gets_the_last_lines_and_then_the_new_ones(fleet: Fleet) -> None:
    await (await fleet.ready()).stop(kill=True)
    lines = fleet.launcher.tail("alpha").follow(1)
    assert "Application startup complete" in await anext(lines)
    await fleet.launch("stalls_but_logs")
    async for line in lines:
        if line == "still here":
            break
    await lines.aclose()  # type: ignore[attr-defined]


async def test_output_is_progress(fleet: Fleet) -> None:
    await fleet.ready("logs_progress", FAKE_LOAD_S="0.5")
    await fleet.said("startup complete")
    phases = [(step.phase, step.fraction) for step in fleet.progress]
    assert ("loading weights", 0.4) in phases
    assert ("allocating the KV cache", None) in phases


async def test_a_flood_neither_blocks_the_engine_nor_fills_memory_or_disk(
    fleet: Fleet,
) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine = await fleet.ready("floods_log=100")
    largest, lag_s, flooded = 0, 0.0, 0
    while flooded < 120_000_000:
        turn = time.monotonic()
        await asyncio.sleep(0.02)
        lag_s = max(lag_s, time.monotonic() - turn - 0.02)
        largest = max(largest, sum(path.stat().st_size for path in fleet.paths.logs.iterdir()))
        flooded = (await stats_of(engine))["flooded_bytes"]
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    tail = fleet.launcher.tail("alpha")
    print(
        f"{flooded / 1e6:.0f} MB: {largest / 1e6:.0f} MB on disk, +{grown_kib} KiB, loop {lag_s:.3f} s late"
    )
    assert largest < 3 * MAX_FILE_BYTES
    assert grown_kib < 30_000
    assert len(tail.last(10_000)) == KEPT_LINES
    assert any("bytes of output left out here" in line for line in tail.last(KEPT_LINES))


async def test_a_full_disk_loses_old_output_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "alpha.log"
    (tmp_path / "alpha.log.1").symlink_to("/dev/full")
    path.touch()
    tail = LogTail("alpha", path, max_bytes=1000)
    tail.start()
    with path.open("ab", buffering=0) as engine:
        engine.write(b"x" * 99 + b"\n" + b"y\n" * 1000)
        while path.stat().st_size > 1000:
            await asyncio.sleep(0.01)
        engine.write(b"still read\n")
        while "still read" not in tail.last(1):
            await asyncio.sleep(0.01)
    await tail.finish()
    assert not (tmp_path / "alpha.log.1").exists()


async def test_on_a_full_disk_every_line_is_heard_and_what_is_dropped_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine's writes never fail: the room was set aside before the disk became full."""
    with mounted(tmp_path / "disk", 6) as disk:
        path = disk.path / "alpha.log"
        tail = LogTail("alpha", path, max_bytes=MIB)
        tail.start()
        disk.fill()
        written = 0

        async def write(count: int) -> None:
            nonlocal written
            with path.open("ab", buffering=0) as engine:
                for _ in range(count // 1000):
                    engine.write(b"x" * 49_999 + b"\n")
                    engine.write((b"y" * 99 + b"\n") * 500)
                    written += 501
                    async with asyncio.timeout(10):
                        while tail.lines_seen < written:
                            await asyncio.sleep(0.01)

        await write(30_000)
        assert path.stat().st_size < 2 * MIB
        [told] = [record.getMessage() for record in caplog.records if "cannot keep" in record.getMessage()]
        assert told == f"cannot keep old output of {path}: No space left on device; free some space"
        disk.empty()
        await write(15_000)
        last = next(record.getMessage() for record in caplog.records if "dropped" in record.getMessage())
        assert int(last.split()[0]) >= MIB
        assert (disk.path / "alpha.log.1").stat().st_size > 0
        await tail.finish()


def test_without_any_room_an_engine_writes_elsewhere_until_there_is_some(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 4) as disk:
        home, elsewhere = disk.path / "alpha.log", tmp_path / "alpha.log"
        file = LogFile(home, elsewhere, max_bytes=MIB)
        disk.fill()
        file.begin()
        assert file.path == elsewhere
        elsewhere.write_text("words")
        disk.empty()
        file.begin()
        assert file.path == home
        assert not elsewhere.exists()
        disk.fill()
        home.write_bytes(b"x" * (MIB // 2))  # its own room
        file.begin()
        assert file.path == home


def test_where_nothing_can_be_set_aside_there_is_as_much_room_as_the_disk_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "_fallocate", lambda *_: errno.EOPNOTSUPP)
    with mounted(tmp_path / "disk", 2) as disk:
        assert reserve.reserve(disk.path / "log", 10 * MIB) == 10 * MIB
        disk.fill()
        assert reserve.reserve(disk.path / "log", 10 * MIB) == 0
    assert reserve.reserve(tmp_path / "nowhere" / "log", MIB) == MIB, "that is for the launch to say"


async def test_what_a_rotation_leaves_unread_is_told_and_the_last_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "alpha.log"
    path.touch()
    tail = LogTail("alpha", path, max_bytes=1000)
    tail.start()
    with path.open("ab", buffering=0) as engine:
        engine.write((b"x" * 159 + b"\n") * 1200)  # a slice is read, a slice is the end
        while path.stat().st_size > 1000:
            await asyncio.sleep(0.01)
    await tail.finish()
    old = tmp_path / "alpha.log.1"
    assert f"[{192_000 - 2 * SLICE_BYTES} bytes of output left out here: see {old}]" in tail.last(KEPT_LINES)
    assert tail.last(1) == ["x" * 159]
    assert old.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("begun", "kept", "since"),
    [
        (0, ["of before", "one", "two"], ["of before", "one", "two"]),
        (10, ["of before", "one", "two"], ["one", "two"]),
        (1000, ["of before", "one", "two"], ["of before", "one", "two"]),  # it was rotated meanwhile
        (18, ["of before", "one", "two"], []),
    ],
)
async def test_an_engine_that_wrote_while_nobody_was_there_is_followed_from_here(
    tmp_path: Path, begun: int, kept: list[str], since: list[str]
) -> None:
    path = tmp_path / "alpha.log"
    path.write_text("of before\none\ntwo\nthr")
    tail = LogTail("alpha", path)
    heard: list[str] = []
    tail.on_line = heard.append
    mark = tail.resume(begun)
    assert (tail.last(9), tail.since(mark)) == (kept, since)
    with path.open("a") as engine:
        engine.write("ee\n")
    await tail.catch_up()
    assert (tail.last(9), tail.since(mark), heard) == ([*kept, "three"], [*since, "three"], ["three"])
    await tail.finish()


async def test_of_a_long_absence_only_the_last_lines_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "alpha.log"
    path.write_text("0123456789abcd\n" * 10_000)
    tail = LogTail("alpha", path)
    mark = tail.resume(15)
    lines = tail.since(mark)
    assert set(lines) == {"0123456789abcd"}
    assert SLICE_BYTES // 15 - 2 < len(lines) <= SLICE_BYTES // 15 or len(lines) == KEPT_LINES
    await tail.finish()


async def test_what_an_earlier_daemon_logged_can_still_be_read(tmp_path: Path) -> None:
    (tmp_path / "alpha.log").write_text("of yesterday\n")
    assert LogTail("alpha", tmp_path / "alpha.log").last(5) == ["of yesterday"]
