"""The life and the end of real processes: whatever an engine does, nothing of it is left."""

import asyncio
import gc
import json
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path

import pytest

from supervisord_llm.engines import launcher, orphans
from supervisord_llm.engines.process import open_log
from supervisord_llm.engines.records import Record, sweep
from supervisord_llm.engines.tree import Tree, read_process
from supervisord_llm.errors import LaunchError
from tests.engines.conftest import Fleet, stats_of, zombies


def alive(pid: int) -> bool:
    process = read_process(pid)
    return process is not None and not process.zombie


async def test_an_idle_engine_stops_on_sigterm(fleet: Fleet) -> None:
    engine = await fleet.ready("engine_core")
    started = time.monotonic()
    await engine.stop(kill=False)
    assert time.monotonic() - started < 3
    ended = await engine.wait()
    assert (ended.code, ended.reason) == (0, "stopped as asked")
    assert not engine.socket.exists()


async def test_an_engine_that_is_left_has_its_next_owner_alone(fleet: Fleet, tmp_path: Path) -> None:
    left = await fleet.ready("ignores_sigterm")
    lines_seen = fleet.launcher.tail("alpha").lines_seen
    ends = [task for task in asyncio.all_tasks() if "engine" in task.get_name()]
    assert len(ends) == 2
    await fleet.launcher.leave()
    fleet.engines.remove(left)
    record = left.file.record
    del left
    heir = Fleet(tmp_path)
    heir.models = fleet.models
    engine = await heir.launcher.adopt(record, heir.progress.append)
    assert all(task.cancelled() for task in ends)
    gc.collect()
    os.kill(record.pid, signal.SIGTERM)
    await heir.said("SIGTERM ignored")
    os.kill(record.pid, signal.SIGKILL)
    subprocess.run(["true"], check=True)  # reaps children of a Popen that was forgotten
    assert (await asyncio.wait_for(engine.wait(), 5)).code == -signal.SIGKILL
    assert fleet.launcher.tail("alpha").lines_seen == lines_seen


async def test_an_engine_that_ignores_sigterm_is_killed_after_the_timeout(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, term_timeout_s=0.3)
    engine = await fleet.ready("ignores_sigterm")
    await engine.stop(kill=False)
    assert (await engine.wait()).code == -signal.SIGKILL
    await fleet.end()


async def test_a_grandchild_that_left_the_session_dies_with_a_stop(fleet: Fleet) -> None:
    engine = await fleet.ready("leaves_grandchild,engine_core")
    stats = await stats_of(engine)
    assert alive(stats["grandchild_pid"])
    assert os.getsid(stats["grandchild_pid"]) != os.getsid(engine.process.pid)
    await engine.stop(kill=False)
    assert [alive(stats[name]) for name in ("pid", "core_pid", "grandchild_pid")] == [False] * 3


async def test_what_a_killed_leader_leaves_is_killed_before_wait_returns(fleet: Fleet) -> None:
    engine = await fleet.ready("leaves_grandchild,engine_core")
    stats = await stats_of(engine)
    os.kill(stats["pid"], signal.SIGKILL)
    ended = await asyncio.wait_for(engine.wait(), 5)
    assert ended.code == -signal.SIGKILL
    assert "OOM killer" in ended.reason
    assert not alive(stats["core_pid"])
    assert not alive(stats["grandchild_pid"])


async def test_a_loading_engine_is_killed_at_once(fleet: Fleet) -> None:
    engine = await fleet.launch("swallows_sigterm_while_loading,engine_core", FAKE_LOAD_S="60")
    await fleet.said("engine core pid=")
    started = time.monotonic()
    await engine.stop(kill=True)
    assert time.monotonic() - started < 1
    assert (await engine.wait()).code == -signal.SIGKILL


async def test_a_second_stop_forces_the_first(fleet: Fleet) -> None:
    engine = await fleet.ready("ignores_sigterm")
    gentle = asyncio.create_task(engine.stop(kill=False))
    await fleet.said("SIGTERM ignored")
    await engine.stop(kill=True)
    await asyncio.wait_for(gentle, 1)


async def test_a_stop_whose_caller_was_cancelled_is_carried_out(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, term_timeout_s=0.3)
    engine = await fleet.ready("ignores_sigterm")
    stop = asyncio.create_task(engine.stop(kill=False))
    await fleet.said("SIGTERM ignored")
    stop.cancel()
    assert (await asyncio.wait_for(engine.wait(), 5)).code == -signal.SIGKILL
    await fleet.end()


async def test_exit_0_that_nobody_asked_for_is_told_as_such(fleet: Fleet) -> None:
    engine = await fleet.ready("exits_zero_unasked")
    ended = await asyncio.wait_for(engine.wait(), 5)
    assert (ended.code, ended.reason) == (0, "exited with code 0 although nobody asked")


async def test_a_crash_that_a_stop_comes_upon_stays_a_crash(fleet: Fleet) -> None:
    engine = await fleet.launch("exits_while_loading")
    await engine.wait()
    await engine.stop(kill=False)
    assert (await engine.wait()).reason.startswith("exited with code 1")


async def test_a_failed_start_tells_the_cause_the_last_lines_and_the_command(fleet: Fleet) -> None:
    engine = await fleet.launch("exits_while_loading")
    ended = await asyncio.wait_for(engine.wait(), 5)
    assert ended.code == 1
    assert ended.reason.startswith("exited with code 1: No available memory for the cache blocks; raise")
    assert "See root cause above" in ended.tail[-1]
    assert f"{fleet.venv}/bin/vllm serve {fleet.weights} --uds {engine.socket}" in ended.command
    assert "FAKE_VLLM=exits_while_loading" in ended.command


async def test_the_tail_of_one_life_holds_no_lines_of_another(fleet: Fleet) -> None:
    first = await fleet.launch("exits_while_loading")
    await first.wait()
    second = await fleet.ready()
    await second.stop(kill=False)
    assert not any("root cause" in line for line in (await second.wait()).tail)
    assert any("root cause" in line for line in fleet.launcher.tail("alpha").last(100))


async def test_ready_is_noticed_within_25_ms(fleet: Fleet) -> None:
    late_s = []
    for _ in range(5):
        engine = await fleet.ready(FAKE_LOAD_S="0.1")
        now = time.monotonic()
        late_s.append(now - (await stats_of(engine))["ready_at"])
        await engine.stop(kill=True)
    print(f"ready noticed after {statistics.median(late_s) * 1e3:.1f} ms (median)")
    assert statistics.median(late_s) < 0.1  # generous: a loaded machine schedules late


async def test_never_ready_is_never_ready(fleet: Fleet) -> None:
    for behaviour in ("never_ready", "health_never_200"):
        engine = await fleet.launch(behaviour)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.ready(), 0.5)
        await engine.stop(kill=True)


async def test_waiting_for_ready_costs_next_to_no_cpu(fleet: Fleet) -> None:
    engine = await fleet.launch("stalls_silently")
    cpu_s, started = time.process_time(), time.monotonic()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.ready(), 1.0)
    share = (time.process_time() - cpu_s) / (time.monotonic() - started)
    print(f"{share:.2%} of a core")
    assert share < 0.05  # under 1% on a quiet machine


async def test_an_engine_sees_only_what_it_needs_of_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "HF_TOKEN",
        "WEBUI_API_KEY",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "VLLM_SERVER_DEV_MODE",
        "https_proxy",
    ):
        monkeypatch.setenv(name, "ours")
    fleet = Fleet(tmp_path)
    env = (await stats_of(await fleet.ready()))["env"]
    assert "ours" not in env.values()
    assert (env["HF_HUB_OFFLINE"], env["CUDA_VISIBLE_DEVICES"]) == ("1", "")
    await fleet.end()


async def test_a_stale_socket_is_removed_and_a_live_one_refused(fleet: Fleet) -> None:
    first = await fleet.ready()
    with pytest.raises(LaunchError, match="another process answers"):
        await fleet.launch()
    os.kill(first.process.pid, signal.SIGSTOP)  # a hung engine still owns its socket
    with pytest.raises(LaunchError, match="another process answers"):
        await fleet.launch()
    os.kill(first.process.pid, signal.SIGKILL)
    await first.wait()
    first.socket.touch()
    await fleet.ready()


async def test_what_cannot_be_run_is_a_launch_error(fleet: Fleet) -> None:
    (fleet.venv / "bin" / "vllm").unlink()
    with pytest.raises(LaunchError, match="no such executable"):
        await fleet.launch()


async def test_no_zombies_and_no_open_files_after_20_lives(fleet: Fleet) -> None:
    await (await fleet.ready()).stop(kill=True)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for life in range(20):
        engine = await fleet.launch("engine_core,leaves_grandchild", FAKE_LOAD_S="60")
        if life % 2:
            await fleet.said("grandchild pid=")
        await engine.stop(kill=True)
        assert engine.process.tree.members() == []
    assert zombies() == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_a_record_lives_as_long_as_its_engine(fleet: Fleet) -> None:
    engine = await fleet.ready()
    path = fleet.paths.engines / "alpha.json"
    record = Record.parse(path.read_text())
    assert (record.pid, record.socket) == (engine.process.pid, str(engine.socket))
    assert path.stat().st_mode & 0o077 == 0
    await engine.stop(kill=False)
    assert not path.exists()


async def test_a_sweep_ends_what_an_earlier_daemon_left(fleet: Fleet) -> None:
    engine = await fleet.ready("engine_core,leaves_grandchild")
    stats = await stats_of(engine)
    os.kill(stats["pid"], signal.SIGSTOP)
    done = await asyncio.to_thread(sweep, fleet.paths.engines)
    assert done == [f"ended the engine of alpha (pid {stats['pid']}), left by an earlier run of the daemon"]
    assert not alive(stats["core_pid"])
    assert not alive(stats["grandchild_pid"])
    assert list(fleet.paths.engines.iterdir()) == []
    await engine.wait()


async def test_a_sweep_touches_no_stranger_with_a_reused_pid(fleet: Fleet) -> None:
    engine = await fleet.ready()
    path = fleet.paths.engines / "alpha.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"start_time": record["start_time"] + 1, "marker": "another"}))
    assert sweep(fleet.paths.engines) == ["forgot the engine of alpha: it had already ended"]
    assert alive(engine.process.pid)


async def test_what_not_even_sigkill_ends_keeps_its_record(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a process in state D: the next start-up tries again, and says so again."""
    engine = await fleet.ready()
    with monkeypatch.context() as patch:
        patch.setattr(orphans, "SWEEP_TIMEOUT_S", 0.0)
        patch.setattr(Tree, "kill", lambda tree: False)
        for _ in range(2):
            [sentence] = sweep(fleet.paths.engines)
            assert sentence.startswith("cannot end the engine of alpha ")
            assert engine.socket.exists()
    assert "ended the engine of alpha" in (await asyncio.to_thread(sweep, fleet.paths.engines))[0]
    assert list(fleet.paths.engines.iterdir()) == []
    await engine.wait()


async def test_a_launch_that_fails_leaves_nothing_behind(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it fails with, and wherever."""

    def surprise(*args: object, **options: object) -> None:
        raise RuntimeError

    for target, name in ((fleet.launcher, "_weights_of"), (launcher, "spawn")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, surprise)
            with pytest.raises(RuntimeError):
                await fleet.launch()
        assert not any(fleet.paths.engines.glob("*"))
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("log of")]


async def test_directories_and_logs_of_engines_are_for_us_alone(fleet: Fleet) -> None:
    """Also where an earlier version, or a person, made the directories wider."""
    for directory in (fleet.paths.engines, fleet.paths.logs):
        directory.mkdir(parents=True)
        directory.chmod(0o755)
    await fleet.ready()
    log = fleet.launcher.tail("alpha").path
    assert {path.stat().st_mode & 0o077 for path in (fleet.paths.engines, fleet.paths.logs, log)} == {0}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": "x"}', "null", "\0" * 100])
def test_a_torn_record_is_removed(tmp_path: Path, text: str) -> None:
    (tmp_path / "alpha.json").write_text(text)
    [sentence] = sweep(tmp_path)
    assert "not a record of an engine" in sentence
    assert list(tmp_path.iterdir()) == []


async def test_the_kernel_takes_an_engine_before_the_daemon(fleet: Fleet) -> None:
    engine = await fleet.ready()
    score = Path(f"/proc/{engine.process.pid}/oom_score_adj").read_text()
    assert int(score) == 500


def test_a_log_that_cannot_be_written_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"cannot write its log .*: Is a directory; check `paths.state`"):
        open_log(tmp_path)
