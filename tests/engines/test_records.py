"""What is on disk about an engine: read with care, and swept where it is not understood."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from supervisord_llm.engines import records
from supervisord_llm.engines.records import IDENTIFYING, Record, RecordFile, survey, sweep, why_lost
from tests.engines.conftest import Successor, stats_of
from tests.engines.test_process import alive
from tests.fakes.disk import mounted

RECORD = Record(
    model="alpha",
    marker="3-0123456789abcdef",
    pid=4_000_000,
    start_time=5,
    boot_id="boot",
    socket="/run/alpha.sock",
    leaf=None,
    started_at=1.5,
    gpus=(0, 1),
    granted_bytes=(7, 8),
    adjusted={"max-num-seqs": 8},
    canary=(0.5, 1.0),
)


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    for record in (RECORD, replace(RECORD, canary="Paris", leaf="/sys/fs/cgroup/x", kv_bytes=9)):
        records.write_record(tmp_path, record)
        assert Record.parse(records.record_path(tmp_path, "alpha").read_text()) == record


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pid", 1),
        ("pid", True),
        ("pid", "7"),
        ("marker", ""),
        ("start_time", None),
        ("started_at", "now"),
        ("leaf", 3),
        ("gpus", [0, "1"]),
        ("gpus", 0),
        ("granted_bytes", [1.5]),
        ("kv_bytes", "9"),
        ("adjusted", {"max-num-seqs": "8"}),
        ("adjusted", []),
        ("canary", ["x"]),
        ("canary", 5),
        ("sleep_level", "1"),
        ("version", "2"),
        ("version", None),
        ("log_begun", -0.5),
    ],
)
def test_a_value_that_cannot_be_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="not a record of an engine"):
        Record.parse(json.dumps(asdict(RECORD) | {name: value}))


@pytest.mark.parametrize("version", [None, 1, 3])
async def test_an_engine_of_another_version_is_ended_not_adopted(
    successor: Successor, version: int | None
) -> None:
    """Of an older one, without the fields that adoption needs; of a newer one, with fields unknown here."""
    await successor.inherit({"behaviour": "engine_core"})
    path = records.record_path(successor.paths.engines, "alpha")
    told = {name: json.loads(path.read_text())[name] for name in IDENTIFYING}
    path.write_text(json.dumps(told | ({"version": version, "new": {}} if version else {"argv": ["vllm"]})))
    found = survey(successor.paths.engines)
    assert found.alive == ()
    assert found.others == (
        "cannot adopt the engine of alpha: its record was written by another version of llm-supervisor",
    )
    [done] = await successor.sweep()
    assert done.startswith("ended the engine of alpha ")
    assert not alive(successor.stats["alpha"]["core_pid"])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "7", "\0" * 100])
def test_a_torn_record_is_told_and_removed(tmp_path: Path, text: str) -> None:
    (tmp_path / "alpha.json").write_text(text)
    found = survey(tmp_path)
    assert found.alive == ()
    assert found.others[0].startswith(f"cannot read {tmp_path}/alpha.json: ")
    assert (tmp_path / "alpha.json").exists()
    assert sweep(tmp_path)[0].startswith(f"removed {tmp_path}/alpha.json: ")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Where scratch directories fit into the path of a unix socket; in those of pytest they do not."""
    path = Path(tempfile.mkdtemp(prefix="llm-"))
    yield path
    shutil.rmtree(path)


async def test_an_engine_whose_record_is_torn_is_ended_all_the_same(short_path: Path) -> None:
    """Found by its environment, which tells it from the engines of other daemons."""
    successor = Successor(short_path)
    try:
        await successor.inherit({"behaviour": "engine_core,leaves_grandchild"}, {"model": "beta"})
        path = records.record_path(successor.paths.engines, "alpha")
        path.write_text(path.read_text()[:100])
        beta = successor.record("beta")
        assert sweep(short_path / "elsewhere") == []
        stats = successor.stats["alpha"]
        torn, stray = await successor.sweep(beta.marker)
        assert torn.startswith(f"removed {path}: not a record of an engine: ")
        assert stray == (
            f"ended an engine without a record (pid {stats['pid']}), left by an earlier run of the daemon"
        )
        assert not any(alive(stats[name]) for name in ("pid", "core_pid", "grandchild_pid"))
        assert alive(beta.pid)
    finally:
        await successor.end()


async def test_a_record_of_another_launch_with_our_pid_is_forgotten(successor: Successor) -> None:
    """The marker in the environment of the process is that of another: nothing is done to it."""
    await successor.inherit({})
    record = successor.record()
    stale = replace(record, marker="9-another")
    records.write_record(successor.paths.engines, stale)
    assert why_lost(stale) == "its pid is that of another launch"
    assert records.end(stale) == (True, "forgot the engine of alpha: its pid is that of another launch")
    assert alive(record.pid)
    records.write_record(successor.paths.engines, record)


def test_what_proc_hides_is_said_to_be_hidden(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text(f"{RECORD.pid}\n")
    hidden = replace(RECORD, leaf=str(tmp_path), boot_id=records.boot_id())
    assert (why_lost(hidden) or "").startswith("/proc hides it from us")


async def test_a_full_disk_costs_the_record_not_the_engine(
    successor: Successor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    await successor.inherit({"config": {"sleep_level": 1}})
    monkeypatch.setattr(records, "write_record", full)
    engine = await successor.adopt()
    await engine.sleep(1)
    await engine.wake(1)
    assert (await stats_of(engine))["pid"] == engine.process.pid


def test_on_a_full_disk_the_old_record_stays_whole_and_the_new_one_is_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mounted(tmp_path / "disk", 1) as disk:
        file = RecordFile(disk.path, RECORD)
        file.keep()
        disk.fill()
        for kv_bytes in (1, 2):
            file.keep(kv_bytes=kv_bytes, command="x" * 5000)
        assert Record.parse((disk.path / "alpha.json").read_text()) == RECORD
        assert not (disk.path / "alpha.json.new").exists()
        [told] = [record.getMessage() for record in caplog.records]
        assert told.startswith(f"cannot write {disk.path}/alpha.json: No space left on device; until it can")
        disk.empty()
        file.retry()
        assert Record.parse((disk.path / "alpha.json").read_text()).kv_bytes == 2


def test_a_record_damaged_anyhow_harms_nobody(tmp_path: Path) -> None:
    """Cut, with bytes changed, or with bytes of something else: told, removed or found to have ended."""
    random = Random(1)
    path = records.record_path(tmp_path, "alpha")
    for _ in range(300):
        records.write_record(tmp_path, replace(RECORD, boot_id=records.boot_id()))
        raw = bytearray(path.read_bytes())
        match random.randrange(3):
            case 0:
                del raw[random.randrange(len(raw)) :]
            case 1:
                raw[random.randrange(len(raw))] = random.randrange(256)
            case _:
                start = random.randrange(len(raw))
                raw[start : start + 20] = random.randbytes(20)
        path.write_bytes(raw)
        assert survey(tmp_path).alive == ()
        assert sweep(tmp_path) != []
        assert not path.exists()


def test_a_record_file_takes_its_scratch_directory_along(tmp_path: Path) -> None:
    file = RecordFile(tmp_path, RECORD)
    file.keep(kv_bytes=5)
    records.scratch_path(tmp_path, RECORD.marker).mkdir()
    assert Record.parse((tmp_path / "alpha.json").read_text()).kv_bytes == 5
    file.remove()
    assert list(tmp_path.iterdir()) == []
