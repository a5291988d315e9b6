"""What was learnt of models, written and read again, whatever the disk does."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from supervisord_llm.core.fleet import Learnt
from supervisord_llm.gpu.learnt import LearntStore

ALL = Learnt(
    footprint_bytes=20 * 1024**3,
    kv_bytes=8 * 1024**3,
    start_s=42.5,
    wake_s=3,
    residue_bytes=0,
    adjusted=(("max-num-seqs", 128), ("max-model-len", 4096)),
)


@pytest.fixture
def store(tmp_path: Path) -> LearntStore:
    return LearntStore(tmp_path / "state" / "learnt")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "learnt" / "chat.json"


@pytest.mark.parametrize("learnt", [ALL, Learnt(), Learnt(start_s=0.0)])
async def test_what_was_learnt_is_known_after_a_restart(
    store: LearntStore, tmp_path: Path, learnt: Learnt
) -> None:
    await store.remember("chat", "s1", learnt)
    assert LearntStore(tmp_path / "state" / "learnt").load("chat", "s1") == learnt


async def test_it_is_of_one_model_and_one_signature(store: LearntStore) -> None:
    await store.remember("chat", "s1", ALL)
    assert store.load("chat", "s2") == Learnt()
    assert store.load("other", "s1") == Learnt()
    await store.remember("chat", "s2", Learnt(start_s=1.0))
    assert store.load("chat", "s2") == Learnt(start_s=1.0)
    assert store.load("chat", "s1") == Learnt(), "the newest configuration is the one that is kept"


def changed(**changes: object) -> str:
    learnt: dict[str, object] = {
        "footprint_bytes": None,
        "kv_bytes": 1,
        "start_s": None,
        "wake_s": None,
        "residue_bytes": None,
        "adjusted": [],
    }
    return json.dumps({"version": 1, "signature": "s1", "learnt": learnt | changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"learnt"',
        "\udcff",
        '{"version": 1, "signature": "s1"}',
        '{"version": 1, "signature": "s1", "learnt": {}}',
        "[" * 100_000,
        changed()[:-20],
        changed(kv_bytes="1"),
        changed(kv_bytes=True),
        changed(kv_bytes=-1),
        changed(kv_bytes=1.5),
        changed(start_s=float("nan")),
        changed(start_s=float("inf")),
        changed(start_s=10**400),
        changed(adjusted=[["max-num-seqs"]]),
        changed(adjusted=[["max-num-seqs", None]]),
        changed(adjusted=3),
    ],
)
def test_what_is_torn_is_learnt_again_and_told(
    store: LearntStore, file: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert store.load("chat", "s1") == Learnt()
    (record,) = caplog.records
    assert record.getMessage().startswith(f"cannot read {file}: ")


async def test_another_version_is_learnt_again(store: LearntStore, file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(changed())
    assert store.load("chat", "s1") == Learnt(kv_bytes=1)
    file.write_text(changed().replace('"version": 1', '"version": 2'))
    assert store.load("chat", "s1") == Learnt()


async def test_the_newest_wins_however_the_threads_run(store: LearntStore) -> None:
    news = [Learnt(start_s=float(second)) for second in range(50)]
    await asyncio.gather(*(store.remember("chat", "s1", learnt) for learnt in news))
    assert store.load("chat", "s1") == news[-1]


async def test_a_disk_that_is_full_is_told_once_and_changes_nothing(
    store: LearntStore, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await store.remember("chat", "s1", ALL)

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr("supervisord_llm.gpu.learnt.os.fsync", full)
        for _ in range(3):
            await store.remember("chat", "s1", Learnt())
    assert store.load("chat", "s1") == ALL
    (record,) = caplog.records
    assert record.getMessage().startswith(f"cannot write {file}: No space left on device; ")
    await store.remember("chat", "s1", Learnt(kv_bytes=7))
    assert store.load("chat", "s1") == Learnt(kv_bytes=7)
    assert [path.name for path in file.parent.iterdir()] == ["chat.json"]


async def test_a_directory_that_is_a_file_is_told(
    store: LearntStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").touch()
    await store.remember("chat", "s1", ALL)
    assert len(caplog.records) == 1
    assert store.load("chat", "s1") == Learnt()
