"""Engines whose daemon was killed, found and taken over by the next: real orphans, no children of ours."""

import asyncio
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from supervisord_llm.core.events import Cause
from supervisord_llm.core.state import State
from supervisord_llm.engines import adoption, records
from supervisord_llm.engines.adoption import adoptable
from supervisord_llm.engines.ask import ask
from supervisord_llm.engines.cgroup import Leaf
from supervisord_llm.engines.tree import Tree, become_subreaper, read_process
from supervisord_llm.errors import EngineError, LaunchError
from supervisord_llm.runtime.ports import Progressing
from tests.engines.conftest import Successor, stats_of
from tests.engines.test_hang import chat
from tests.engines.test_process import alive

FAMILY = "leaves_grandchild,engine_core"
PIDS = ("pid", "core_pid", "grandchild_pid")
SLEEPS = {"config": {"sleep_level": 1}, "asleep": 1}


def living(stats: dict[str, Any]) -> list[str]:
    return [name for name in PIDS if stats.get(name) and alive(stats[name])]


async def test_it_serves_on_as_if_nothing_had_happened(successor: Successor) -> None:
    await successor.inherit({"behaviour": FAMILY, "order": {"launch": 7}})
    stats = successor.stats["alpha"]
    assert (read_process(stats["pid"]) or pytest.fail("it died with its daemon")).parent != os.getpid()
    engine = await successor.adopt()
    await asyncio.wait_for(engine.ready(), 1)
    assert await chat(engine) == 200
    assert await engine.progressing() == Progressing(0, 7.0)
    assert engine.process.pid == stats["pid"] == (await stats_of(engine))["pid"]
    assert successor.launcher.owners(stats[name] for name in PIDS) == {stats[name]: "alpha" for name in PIDS}
    scratch = records.scratch_path(successor.paths.engines, successor.record().marker)
    assert scratch.is_dir()
    assert successor.record().launch == 7
    await engine.stop(kill=False)
    ended = await engine.wait()
    assert (ended.code, ended.reason) == (None, "stopped as asked")
    assert f"--uds {engine.socket}" in ended.command
    assert living(stats) == []
    assert list(successor.paths.engines.iterdir()) == []
    assert successor.launcher.owners([stats["pid"]]) == {}


async def test_its_log_goes_on(successor: Successor) -> None:
    await successor.inherit({"behaviour": "ignores_sigterm"})
    os.kill(successor.stats["alpha"]["pid"], signal.SIGTERM)  # it says so while there is no daemon
    log = successor.paths.logs / "alpha.log"
    while "SIGTERM ignored" not in log.read_text():
        await asyncio.sleep(0.01)
    engine = await successor.adopt()
    lines = successor.launcher.tail("alpha").follow(2)
    assert [await anext(lines) for _ in range(2)] == [
        "(APIServer pid=1) INFO:     Application startup complete.",
        "SIGTERM ignored",
    ]
    os.kill(engine.process.pid, signal.SIGTERM)
    assert await asyncio.wait_for(anext(lines), 5) == "SIGTERM ignored"
    await lines.aclose()  # type: ignore[attr-defined]
    await engine.stop(kill=True)
    assert (await engine.wait()).tail[-3:] == (
        "(APIServer pid=1) INFO:     Application startup complete.",
        "SIGTERM ignored",
        "SIGTERM ignored",
    )


async def test_its_death_is_seen_at_once_and_nothing_is_left(successor: Successor) -> None:
    await successor.inherit({"behaviour": FAMILY})
    engine = await successor.adopt()
    waiting = asyncio.create_task(engine.wait())
    os.kill(engine.process.pid, signal.SIGKILL)
    ended = await asyncio.wait_for(waiting, 2)
    assert ended.code is None
    assert ended.reason.startswith("ended, and its exit code could not be learnt")
    assert living(successor.stats["alpha"]) == []
    assert list(successor.paths.engines.iterdir()) == []


async def test_its_log_explains_its_end_where_no_exit_code_does(successor: Successor) -> None:
    await successor.inherit({"behaviour": "oom_serving"})
    engine = await successor.adopt()
    with pytest.raises(aiohttp.ClientError):
        await chat(engine)
    ended = await engine.wait()
    assert (ended.code, ended.cause) == (None, Cause.GPU_OOM)
    assert "ran out of GPU memory" in ended.reason


async def test_the_kernels_count_still_tells_of_an_oom_kill(
    successor: Successor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await successor.inherit({}, cgroup_root=tmp_path)  # a directory, which is all a leaf is to this test
    engine = await successor.adopt()
    assert engine.process.tree.leaf == Leaf(Path(successor.record().leaf or ""))
    monkeypatch.setattr(Leaf, "oom_kills", lambda leaf: 1)
    os.kill(engine.process.pid, signal.SIGKILL)
    ended = await engine.wait()
    assert (ended.code, ended.cause) == (None, Cause.HOST_OOM)


async def test_one_that_became_a_child_of_ours_is_reaped_and_tells_its_code(successor: Successor) -> None:
    """As after an upgrade in place: a process that executes itself anew keeps its children."""
    become_subreaper()
    await successor.inherit({"behaviour": "engine_core"})
    engine = await successor.adopt()
    os.kill(engine.process.pid, signal.SIGSEGV)
    assert (await asyncio.wait_for(engine.wait(), 5)).code == -signal.SIGSEGV
    assert read_process(engine.process.pid) is None
    await successor.inherit({})
    await successor.sweep()
    assert read_process(successor.stats["alpha"]["pid"]) is None


async def test_adopting_twice_in_a_row_keeps_everything(successor: Successor) -> None:
    """Each daemon writes the record that the next one reads."""
    order = {"gpus": [0, 1], "granted_bytes": [5, 6], "signature": "s", "adjusted": {"max-num-seqs": 4}}
    await successor.inherit({"order": order, "FAKE_KV_MIB": "64"})
    first = successor.record()
    assert first.kv_bytes == 64 * 1024**2
    assert (first.gpus, first.granted_bytes, first.signature) == ((0, 1), (5, 6), "s")
    assert first.adjusted == {"max-num-seqs": 4}
    engine = await successor.adopt()
    assert engine.kv_bytes == first.kv_bytes
    assert successor.record() == first


async def test_an_engine_without_its_daemon_costs_no_open_file(successor: Successor) -> None:
    fds = Path("/proc/self/fd")
    before = 0
    for life in range(3):
        await successor.inherit({"behaviour": FAMILY})
        engine = await successor.adopt()
        await engine.stop(kill=True)
        before = before or len(list(fds.iterdir()))
        assert len(list(fds.iterdir())) == before, f"in life {life}"


# ---- asleep ------------------------------------------------------------------------------------------------


async def test_a_sleeper_stays_asleep_and_wakes_as_it_was(successor: Successor) -> None:
    await successor.inherit({"behaviour": "", **SLEEPS})
    assert await adoptable(successor.record()) == adoption.Verdict(State.SLEEPING)
    engine = await successor.adopt()
    assert (await stats_of(engine))["is_sleeping"]
    assert successor.record().canary == "I am alpha."
    await engine.wake(1)
    assert successor.record().canary is None
    assert await adoptable(successor.record()) == adoption.Verdict(State.READY)


async def test_a_sleeper_that_wakes_otherwise_than_under_the_daemon_before_is_noticed(
    successor: Successor,
) -> None:
    await successor.inherit({**SLEEPS, "asleep": 2})
    engine = await successor.adopt()
    with pytest.raises(EngineError, match=r'otherwise than before it slept \("I am alpha\."'):
        await engine.wake(1)


@pytest.mark.parametrize(("level", "reason"), [(1, None), (2, "cannot use alpha: it answers otherwise than")])
async def test_one_whose_daemon_died_while_it_woke_has_to_prove_itself(
    successor: Successor, level: int, reason: str | None
) -> None:
    await successor.inherit({**SLEEPS, "asleep": level})
    record = successor.record()
    await ask(record.backend, "POST", "/wake_up")
    verdict = await adoptable(record)
    assert verdict.state is (State.READY if reason is None else None)
    assert verdict.reason.startswith(reason or "")


async def test_models_of_embeddings_keep_their_canary_too(successor: Successor) -> None:
    await successor.inherit({"behaviour": "embeds_only", **SLEEPS})
    engine = await successor.adopt()
    assert successor.record().canary == (0.6, 0.8, 0.0)
    await engine.wake(1)


# ---- not to be adopted -------------------------------------------------------------------------------------


async def refused(successor: Successor) -> str:
    """Why it cannot be adopted; then it is swept, and nothing of it is left."""
    [record] = records.survey(successor.paths.engines).alive
    verdict = await adoptable(record)
    assert verdict.state is None
    assert alive(record.pid), "questions kill nobody"
    [done] = await successor.sweep()
    assert done == f"ended the engine of alpha (pid {record.pid}), left by an earlier run of the daemon"
    assert living(successor.stats["alpha"]) == []
    assert list(successor.paths.engines.iterdir()) == []
    return verdict.reason


async def test_one_that_hangs_is_not_waited_for(
    successor: Successor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "ANSWER_S", 0.3)
    await successor.inherit({"behaviour": FAMILY})
    os.kill(successor.stats["alpha"]["pid"], signal.SIGSTOP)
    started = time.monotonic()
    assert await refused(successor) == "no answer within 0.3 s"
    assert time.monotonic() - started < 2


async def test_one_whose_socket_is_gone_cannot_be_reached(successor: Successor) -> None:
    await successor.inherit({"behaviour": FAMILY})
    Path(successor.record().socket).unlink()
    assert (await refused(successor)).startswith("no answer from it (")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("health_never_200", "GET /health answers 503"),
        ("stalls_silently", "no answer from it ("),
    ],
)
async def test_one_that_is_not_ready_yet_is_not_adopted(
    successor: Successor, monkeypatch: pytest.MonkeyPatch, behaviour: str, reason: str
) -> None:
    await successor.inherit({"behaviour": behaviour, "waits": False})
    socket = Path(successor.record().socket)
    while behaviour == "health_never_200" and not socket.exists():
        await asyncio.sleep(0.01)
    assert (await refused(successor)).startswith(reason)


async def test_one_that_does_not_say_whether_it_sleeps_is_not_adopted(successor: Successor) -> None:
    """Nobody knows whether it holds its memory."""
    await successor.inherit({**SLEEPS})
    record = successor.record()
    server = await asyncio.start_unix_server(say_ok, Path(record.socket).with_name("other.sock"))
    async with server:
        verdict = await adoptable(replace(record, socket=str(Path(record.socket).with_name("other.sock"))))
    assert verdict == adoption.Verdict(None, "GET /is_sleeping answers 200 {}")


async def say_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    writer.close()


async def test_one_that_died_between_question_and_adoption_leaves_nothing(successor: Successor) -> None:
    await successor.inherit({"behaviour": FAMILY})
    record = successor.record()
    assert (await adoptable(record)).state is State.READY
    await successor.sweep(record.marker)
    os.kill(record.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while (leader := read_process(record.pid)) is not None and not leader.zombie:
            await asyncio.sleep(0.001)
    with pytest.raises(LaunchError, match="ended the engine of alpha"):
        await successor.launcher.adopt(record, successor.progress.append)
    assert living(successor.stats["alpha"]) == []
    assert list(successor.paths.engines.iterdir()) == []
    assert successor.launcher.owners([record.pid]) == {}


async def test_one_that_died_with_its_daemon_leaves_orphans_that_are_swept(successor: Successor) -> None:
    """Its pid is free again by then; its engine core is found by session and log, for titles hide markers."""
    await successor.inherit({"behaviour": FAMILY})
    record, stats = successor.record(), successor.stats["alpha"]
    os.kill(record.pid, signal.SIGKILL)
    while alive(record.pid):
        await asyncio.sleep(0.01)
    assert living(stats) == ["core_pid", "grandchild_pid"]
    core = read_process(stats["core_pid"])
    tree = Tree(record.pid, record.start_time, "hidden", log=Path(record.log))
    assert core is not None
    assert tree.has_in_session(core, None)
    found = records.survey(successor.paths.engines)
    assert (found.alive, found.others) == ((), ("cannot adopt the engine of alpha: it has ended",))
    await successor.sweep()
    assert living(stats) == []


@pytest.mark.parametrize("role", ["leader", "follower"])
async def test_a_stranger_is_neither_adopted_nor_touched(successor: Successor, role: str) -> None:
    """One with the pid of an engine; or one in a session of that number whose leader is gone again."""
    await successor.inherit({})
    record = successor.record()
    script = "sleep 60 > /dev/null & echo $!; [ $0 = follower ] || read line"
    stranger = subprocess.Popen(
        ["/bin/sh", "-c", script, role],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert stranger.stdout is not None
    child = int(stranger.stdout.readline())
    theirs = [child]
    try:
        if role == "follower":
            stranger.wait()
        else:
            theirs.append(stranger.pid)
        born = read_process(theirs[-1])
        assert born is not None
        for start_time in (born.start_time - 1, born.start_time + 1):
            stale = replace(record, pid=stranger.pid, start_time=start_time, marker="1-of-a-dead-launch")
            records.write_record(successor.paths.engines, stale)
            assert records.survey(successor.paths.engines).alive == ()
            assert (await adoptable(stale)).reason == "it has ended"
            with pytest.raises(LaunchError, match=r"^cannot take over pid "):
                await successor.launcher.adopt(stale, successor.progress.append)
            records.write_record(successor.paths.engines, stale)
            done = await successor.sweep(record.marker)
            assert done == ["forgot the engine of alpha: it had already ended"]
            assert all(map(alive, theirs))
    finally:
        records.write_record(successor.paths.engines, record)
        os.kill(child, signal.SIGKILL)
        stranger.communicate()


async def test_a_record_of_before_the_boot_says_nothing_of_today(successor: Successor) -> None:
    await successor.inherit({})
    record = successor.record()
    old = replace(record, boot_id="another")
    records.write_record(successor.paths.engines, old)
    found = records.survey(successor.paths.engines)
    assert found.others == ("cannot adopt the engine of alpha: it ran before the last boot",)
    assert (await adoptable(old)).state is None
    assert records.end(old) == (True, "forgot the engine of alpha: it ran before the last boot")
    assert alive(record.pid)
    records.write_record(successor.paths.engines, record)


async def test_two_records_of_one_engine_make_one_engine(successor: Successor) -> None:
    await successor.inherit({"behaviour": FAMILY})
    record = successor.record()
    twins = [replace(record, model="beta"), replace(record, model="gamma", marker="9-another")]
    for twin in twins:
        records.write_record(successor.paths.engines, twin)
    (successor.paths.engines / "delta.json").write_bytes(
        (successor.paths.engines / "alpha.json").read_bytes()
    )
    assert records.survey(successor.paths.engines).alive == (record,)
    engine = await successor.adopt()
    assert [path.name for path in successor.paths.engines.glob("*.json")] == ["alpha.json"]
    assert await chat(engine) == 200
    assert living(successor.stats["alpha"]) == list(PIDS)
    await engine.stop(kill=True)


async def test_one_is_kept_and_its_neighbour_is_not(successor: Successor) -> None:
    await successor.inherit({"behaviour": FAMILY}, {"behaviour": FAMILY, "model": "beta"})
    alpha = await successor.adopt()
    assert living(successor.stats["beta"]) == []
    assert living(successor.stats["alpha"]) == list(PIDS)
    assert await chat(alpha) == 200
    assert sorted(path.suffix for path in successor.paths.engines.iterdir()) == ["", ".json", ".sock"]
