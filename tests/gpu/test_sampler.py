"""The sampler against the stub NVML, with real child processes that hang and crash."""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisord_llm.core.fleet import Gpu, GpuSample, Stranger
from supervisord_llm.engines.tree import become_subreaper, reap_orphans
from supervisord_llm.gpu import holders
from supervisord_llm.gpu.sampler import SPACING_S, Sampler
from supervisord_llm.gpu.sensor import GpuReading
from tests.gpu.nvml import CARDS, StubNvml

MIB = 1024**2
GIB = 1024**3
TIMEOUT_S = 20
GPUS = tuple(
    Gpu(
        index=index,
        uuid=card.uuid,
        name="Stub",
        total_bytes=card.total_mib * MIB,
        budget_bytes=card.total_mib * MIB,
    )
    for index, card in enumerate(CARDS)
)
WITHOUT_A_DRIVER = """\
import pynvml
def none(*a, **k): raise OSError('none')
pynvml.CDLL = none
from supervisord_llm.gpu import sensor, watch
sensor.WSL_LIBRARY = sensor.Path('/nonexistent')
watch.main()
"""
Samples = tuple[GpuSample, ...]


def nobody(pids: Collection[int]) -> Mapping[int, str]:
    return {}


class Watched:
    """A running sampler and what it reports."""

    def __init__(self, environ: Mapping[str, str], gpus: tuple[Gpu, ...], **options: Any) -> None:
        self.reports: asyncio.Queue[Samples] = asyncio.Queue()
        everything: dict[str, Any] = {"environment": os.environ | environ, "owners": nobody}
        everything |= {"interval_s": 0.05, "backoff_s": (0.05, 0.1)} | options
        self.found: asyncio.Queue[GpuReading] = asyncio.Queue()
        self.sampler = Sampler(
            gpus, report=self.reports.put_nowait, found=self.found.put_nowait, **everything
        )

    async def next(self) -> Samples:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.reports.get()

    async def next_found(self) -> GpuReading:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.found.get()

    async def until(self, holds: Callable[[GpuSample, GpuSample], bool]) -> Samples:
        """The first report whose two samples are as wanted."""
        last: Samples = ()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    last = await self.reports.get()
                    if holds(*last):
                        return last
        pytest.fail(f"never reported; last came {last}")


@contextlib.asynccontextmanager
async def sampling(
    environ: Mapping[str, str], gpus: tuple[Gpu, ...] = GPUS, **options: Any
) -> AsyncIterator[Watched]:
    watched = Watched(environ, gpus, **options)
    task = asyncio.create_task(watched.sampler.run())
    try:
        yield watched
        assert not task.done(), "it goes on for as long as it is let"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def host(tmp_path: Path) -> StubNvml:
    """Two idle GPUs."""
    return StubNvml(tmp_path)


@pytest.fixture
def holder() -> Iterator[int]:
    """The pid of a process that does nothing."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "llm_supervisor.gpu")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "llm_supervisor.gpu"]


def children() -> list[psutil.Process]:
    """Those that look at GPUs for this process."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "supervisord_llm.gpu.watch" in child.cmdline()
    ]


# --- what it makes of a reading ----------------------------------------------------------


async def test_engines_and_strangers_are_told_apart(host: StubNvml, holder: int) -> None:
    ours = os.getpid()
    host.hold(ours, 0, 3 * 1024)
    host.hold(holder, 1, 512)
    asked: list[set[int]] = []

    def owners(pids: Collection[int]) -> Mapping[int, str]:
        asked.append(set(pids))
        return {ours: "chat"}

    async with sampling(host.environ, owners=owners) as watched:
        first, second = await watched.next()
    assert asked[0] == {ours, holder}
    assert (first.index, first.used_bytes, first.engines, first.strangers) == (
        0,
        3 * GIB,
        {"chat": 3 * GIB},
        (),
    )
    assert (first.utilization, first.temperature_c, first.lost) == (0.0, 40, "")
    stranger = Stranger(pid=holder, name="sleep", used_bytes=GIB // 2)
    assert (second.index, second.engines, second.strangers) == (1, {}, (stranger,))


async def test_the_processes_of_one_engine_are_added_up(host: StubNvml, holder: int) -> None:
    host.hold(os.getpid(), 0, 1024)
    host.hold(holder, 0, 1024)
    async with sampling(host.environ, owners=lambda pids: dict.fromkeys(pids, "chat")) as watched:
        first, _ = await watched.next()
    assert first.engines == {"chat": 2 * GIB}


async def test_a_gpu_keeps_its_index_when_another_one_vanishes(
    host: StubNvml, told: Callable[[], list[str]]
) -> None:
    async with sampling(host.environ) as watched:
        await watched.next()
        host.set_cards(CARDS[1])
        first, second = await watched.until(lambda first, second: bool(first.lost))
        assert (first.index, first.used_bytes, first.engines) == (0, None, None)
        assert (second.index, second.used_bytes, second.lost) == (1, 0, "")
        host.set_cards(*CARDS)
        await watched.until(lambda first, second: first.used_bytes == 0)
    why = "the driver does not find it any more; `dmesg` may tell more"
    assert told() == [f"GPU 0 (Stub, GPU-aaaa) is lost: {why}", "GPU 0 (Stub, GPU-aaaa) is back"]


async def test_without_figures_per_process_it_is_unknown_who_holds_what(
    host: StubNvml, told: Callable[[], list[str]]
) -> None:
    host.say("wsl", f"proc 0 {os.getpid()} 100")
    async with sampling(host.environ, owners=lambda pids: dict.fromkeys(pids, "chat")) as watched:
        for _ in range(3):
            first, _ = await watched.next()
            assert (first.used_bytes, first.engines, first.strangers) == (100 * MIB, None, ())
    (sentence,) = told()
    assert sentence.startswith("GPU 0 does not tell what each process holds")


@pytest.fixture(params=["host", "container"])
def namespace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose pids this process knows."""
    here = str(holders.PID_NAMESPACE.readlink())
    monkeypatch.setattr(holders, "HOST_PID_NAMESPACE", here if request.param == "host" else "pid:[1]")
    return str(request.param)


async def test_a_pid_that_nobody_has_is_a_process_that_ended_or_of_another_namespace(
    host: StubNvml, namespace: str
) -> None:
    host.say("proc 0 99999999 100", f"proc 1 {os.getpid()} 100")
    async with sampling(host.environ, owners=lambda pids: {os.getpid(): "chat"}) as watched:
        first, second = await watched.next()
        again, _ = await watched.next()
    assert second.engines == {"chat": 100 * MIB}
    if namespace == "container":
        assert (first.engines, first.strangers) == (None, ())
        assert (again.engines, again.strangers) == (None, ())
    else:
        assert (first.engines, first.strangers) == ({}, ()), "it may have been an engine's"
        ghost = Stranger(pid=99999999, name="?", used_bytes=100 * MIB)
        assert (again.engines, again.strangers) == ({}, (ghost,)), "the driver holds on to it"


async def test_memory_that_is_not_told_is_unknown(host: StubNvml) -> None:
    host.say("nomem 0")
    async with sampling(host.environ) as watched:
        first, second = await watched.next()
    assert (first.used_bytes, first.lost, second.used_bytes) == (None, "", 0)


# --- a card falls off the bus ----------------------------------------------------------


async def test_a_lost_gpu_is_told_with_its_reason_and_found_again(
    host: StubNvml, told: Callable[[], list[str]]
) -> None:
    async with sampling(host.environ) as watched:
        await watched.next()
        host.say("lost 1")
        first, second = await watched.until(lambda first, second: bool(second.lost))
        assert first.used_bytes == 0
        assert second.lost == "it fell off the bus; look for Xid in `dmesg`, and reboot"
        assert (second.used_bytes, second.engines) == (None, None)
        (before,) = children()
        host.unsay("lost 1")  # the child that saw it lost sees it so for ever
        await watched.until(lambda first, second: not second.lost)
        (after,) = children()
    assert before.pid != after.pid
    assert told() == [
        f"GPU 1 (Stub, GPU-bbbb) is lost: {second.lost}",
        "GPU 1 (Stub, GPU-bbbb) is back",
    ]


async def test_a_gpu_that_is_lost_from_the_first_look_on_is_told_with_its_reason(host: StubNvml) -> None:
    host.say("lost 1")
    async with sampling(host.environ) as watched:
        first, second = await watched.next()
    assert (first.used_bytes, first.lost) == (0, "")
    assert second.lost.startswith("it fell off the bus")


async def test_while_nvml_cannot_be_initialised_anew_the_other_gpus_are_still_watched(host: StubNvml) -> None:
    async with sampling(host.environ) as watched:
        await watched.next()
        (before,) = children()
        host.say("lost 1", "init-fails")
        await watched.until(lambda first, second: bool(second.lost))
        for _ in range(10):
            first, second = await watched.next()
            assert first.used_bytes == 0
            assert second.lost
        assert before.is_running()
        host.unsay("lost 1", "init-fails")
        await watched.until(lambda first, second: not second.lost)


# --- NVML itself fails ----------------------------------------------------------


async def test_nvml_that_hangs_is_given_up_in_time_and_holds_nothing_up(
    host: StubNvml, told: Callable[[], list[str]]
) -> None:
    loop = asyncio.get_running_loop()
    async with sampling(host.environ, deadline_s=0.5) as watched:
        await watched.next()
        (child,) = children()
        host.say("hang")
        lags: list[float] = []

        async def measure() -> None:
            while True:
                before = loop.time()
                await asyncio.sleep(0.005)
                lags.append(loop.time() - before - 0.005)

        meter = asyncio.create_task(measure())
        began = loop.time()
        first, second = await watched.until(lambda first, second: first.used_bytes is None)
        took_s = loop.time() - began
        meter.cancel()
        assert (second.used_bytes, first.lost, second.lost) == (None, "", ""), "unknown, not lost"
        assert 0.4 < took_s < 2
        assert max(lags) < 0.4, "the loop went on"
        assert not child.is_running()
        host.unsay("hang")
        await watched.until(lambda first, second: first.used_bytes == 0)
    why = "NVML does not answer within 0.5 s"
    assert told() == [
        f"cannot look at the GPUs: {why}; it is tried again until it works",
        "NVML answers again",
    ]


async def test_nvml_that_crashes_takes_nothing_with_it(host: StubNvml, told: Callable[[], list[str]]) -> None:
    host.say("crash")
    async with sampling(host.environ) as watched:
        for _ in range(3):  # one report a failure
            assert [sample.used_bytes for sample in await watched.next()] == [None, None]
        host.unsay("crash")
        await watched.until(lambda first, second: first.used_bytes == 0)
    why = "NVML crashed the process that asks it (SIGABRT)"
    assert told() == [
        f"cannot look at the GPUs: {why}; it is tried again until it works",
        "NVML answers again",
    ]


async def test_a_child_that_hangs_inside_the_driver_is_not_joined_by_another(
    host: StubNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.say("hang")
    monkeypatch.setattr("supervisord_llm.gpu.watcher.END_S", 0.05)
    async with sampling(host.environ, deadline_s=0.3) as watched:
        with monkeypatch.context() as patched:
            patched.setattr("asyncio.subprocess.Process.kill", lambda process: None)
            for _ in range(5):
                assert (await watched.next())[0].used_bytes is None
            (child,) = children()
        host.unsay("hang")
        child.kill()  # it came out of the driver
        await watched.until(lambda first, second: first.used_bytes == 0)


async def test_failures_are_spaced_out_whatever_the_hurry(host: StubNvml) -> None:
    host.say("init-fails")
    loop = asyncio.get_running_loop()
    async with sampling(host.environ, backoff_s=(0.2, 0.4)) as watched:
        times = []
        for _ in range(3):
            await watched.next()
            times.append(loop.time())
            watched.sampler.hurry()
    assert times[1] - times[0] >= 0.2
    assert times[2] - times[1] >= 0.4


async def test_a_lost_gpu_stays_lost_while_nvml_fails(host: StubNvml) -> None:
    async with sampling(host.environ) as watched:
        await watched.next()
        host.say("lost 1")
        await watched.until(lambda first, second: bool(second.lost))
        host.say("count-fails")
        _, second = await watched.until(lambda first, second: first.used_bytes is None)
        assert second.lost


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("input(); print('{}', flush=True); input()", "the process that asks NVML writes nonsense"),
        ("raise SystemExit(3)", "the process that asks NVML ended with exit code 3"),
        (WITHOUT_A_DRIVER, "no NVIDIA driver: libnvidia-ml.so.1 not found"),
    ],
)
async def test_whatever_the_child_does_is_unknown_with_a_sentence(
    program: str, why: str, told: Callable[[], list[str]]
) -> None:
    async with sampling({}, command=(sys.executable, "-c", program)) as watched:
        assert [sample.used_bytes for sample in await watched.next()] == [None, None]
    (sentence,) = told()
    assert sentence.startswith(f"cannot look at the GPUs: {why}")


async def test_a_child_that_cannot_be_spawned_is_a_failure_like_others(
    told: Callable[[], list[str]],
) -> None:
    async with sampling({}, command=("/nonexistent/python",)) as watched:
        assert [sample.used_bytes for sample in await watched.next()] == [None, None]
    assert "/nonexistent/python cannot be run (No such file or directory)" in told()[0]


# --- when it looks ----------------------------------------------------------


async def test_hurry_looks_at_once_and_again_if_a_look_is_under_way(host: StubNvml, holder: int) -> None:
    async with sampling(host.environ, interval_s=3600) as watched:
        first, _ = await watched.next()
        assert first.used_bytes == 0
        host.hold(holder, 0, 1024)
        watched.sampler.hurry()
        first, _ = await watched.next()
        assert first.used_bytes == GIB
        watched.sampler.hurry()
        await asyncio.sleep(SPACING_S)  # the look is under way, or done
        host.release(holder)
        for _ in range(50):
            watched.sampler.hurry()
        await watched.until(lambda first, second: first.used_bytes == 0)
        await asyncio.sleep(2 * SPACING_S)
        assert watched.reports.qsize() <= 1, "fifty wishes are one look"


async def test_a_sample_is_as_old_as_the_question(host: StubNvml) -> None:
    slow = (
        "import sys, time\n"
        "from supervisord_llm.gpu import sensor, watch\n"
        "read = sensor.Sensor.read\n"
        "watch.Sensor.read = lambda self: (time.sleep(0.3), read(self))[1]\n"
        "watch.main()"
    )
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with sampling(host.environ, interval_s=3600, command=(sys.executable, "-c", slow)) as watched:
        first, second = await watched.next()
        assert began <= first.at == second.at <= loop.time() - 0.3


async def test_without_gpus_there_is_no_child_and_with_others_they_are_reported(host: StubNvml) -> None:
    async with sampling(host.environ, gpus=(), interval_s=0.01) as watched:
        watched.sampler.hurry()
        await asyncio.sleep(0.1)
        assert watched.reports.empty()
        assert children() == []
        watched.sampler.set_gpus(GPUS[1:])
        assert [sample.index for sample in await watched.next()] == [1]


@pytest.mark.parametrize("trouble", [("hang",), ("crash",), ("init-fails",), ("lost 0", "lost 1")])
async def test_gpus_that_did_not_answer_are_sought_and_told_of_once(
    host: StubNvml, trouble: tuple[str, ...]
) -> None:
    host.say(*trouble)
    async with sampling(host.environ, gpus=(), deadline_s=1.0) as watched:
        watched.sampler.set_gpus((), seeks=True)
        async with asyncio.timeout(TIMEOUT_S):
            while not children():
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert watched.found.empty()
        host.unsay(*trouble)
        found = await watched.next_found()
        while len(found.gpus) < len(GPUS):  # the one card may be seen before the other
            found = await watched.next_found()
        assert [gpu.uuid for gpu in found.gpus] == [gpu.uuid for gpu in GPUS]
        watched.sampler.set_gpus(GPUS)
        watched.found = asyncio.Queue()
        assert [sample.index for sample in await watched.next()] == [0, 1]
        assert watched.found.empty()


async def test_a_card_beside_those_of_the_fleet_is_told_of_when_it_answers(host: StubNvml) -> None:
    host.say("lost 0")
    async with sampling(host.environ, gpus=GPUS[1:]) as watched:
        for _ in range(5):
            (only,) = await watched.next()
            assert (only.index, only.used_bytes, only.lost) == (1, 0, "")
        assert watched.found.empty()
        host.unsay("lost 0")
        assert [gpu.index for gpu in (await watched.next_found()).gpus] == [0, 1]
        for _ in range(3):
            await watched.next()
        assert watched.found.empty(), "once"


async def test_a_driver_that_finds_no_gpu_ends_the_search(host: StubNvml) -> None:
    host.set_cards()
    async with sampling(host.environ, gpus=()) as watched:
        watched.sampler.set_gpus((), seeks=True)
        assert (await watched.next_found()).unknown == ""
        watched.sampler.set_gpus(())
        async with asyncio.timeout(TIMEOUT_S):
            while children():
                await asyncio.sleep(0.01)


async def test_one_child_serves_many_looks_and_no_reaper_takes_it(host: StubNvml) -> None:
    become_subreaper()
    async with sampling(host.environ) as watched:
        await watched.next()
        (child,) = children()
        for _ in range(5):
            reap_orphans()
            assert (await watched.next())[0].used_bytes == 0
        assert children() == [child]
        child.kill()
        await watched.until(lambda first, second: first.used_bytes is None)
        await watched.until(lambda first, second: first.used_bytes == 0)


async def test_the_end_of_the_sampler_does_not_wait_for_a_child_that_hangs(host: StubNvml) -> None:
    host.say("hang")
    loop = asyncio.get_running_loop()
    async with sampling(host.environ, deadline_s=3600) as watched:
        async with asyncio.timeout(TIMEOUT_S):
            while not children():
                await asyncio.sleep(0.01)
        assert watched.reports.empty()
        began = loop.time()
    assert loop.time() - began < 2
    assert children() == []


def test_a_child_whose_daemon_is_killed_ends_even_while_the_driver_hangs(host: StubNvml) -> None:
    host.say("hang")
    parent = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'supervisord_llm.gpu.watch'], "
        "stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdin.write(b'\\n'); child.stdin.flush()\n"
        "print(child.pid, flush=True)\n"
        "input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent],
        env=os.environ | host.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as daemon:
        assert daemon.stdout is not None
        child = psutil.Process(int(daemon.stdout.readline()))
        until(lambda: str(host.library) in Path(f"/proc/{child.pid}/maps").read_text())
        daemon.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
