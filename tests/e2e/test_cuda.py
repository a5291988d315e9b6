"""Real CUDA memory seen through real NVML. Needs an NVIDIA GPU; elsewhere it is skipped and says why.

`.venv/bin/pytest tests/e2e/test_cuda.py -m ''` on a machine with one: half a GiB for a few seconds.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import pytest

from supervisord_llm.core.fleet import Gpu, GpuSample
from supervisord_llm.gpu.sampler import Sampler
from supervisord_llm.gpu.sensor import GpuSeen, read_gpus

MIB = 1024**2
HELD_MIB = 512
START_S = 60.0
"""CUDA's first call on a machine whose driver is not loaded yet can take half a minute."""
BACK_S = 10.0
"""What the driver may take to give back the memory of a process that was killed."""

HOLD = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    if code := getattr(cuda, name)(*arguments):
        sys.exit(f"{name}: CUDA error {code}")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
call("cuCtxSetCurrent", context)
call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(int(sys.argv[1]) * 1024**2))
print("holds it", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def card() -> GpuSeen:
    """The GPU of this machine with the most free memory."""
    reading = read_gpus()
    if not reading.gpus:
        pytest.skip(reading.absence)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        pytest.skip(f"no CUDA driver beside NVML: {error}")
    card = max(reading.gpus, key=lambda gpu: gpu.free_bytes or 0)
    if (card.free_bytes or 0) < 4 * HELD_MIB * MIB:
        pytest.skip(f"GPU {card.index} has less than {4 * HELD_MIB} MiB free")
    return card


@contextlib.contextmanager
def holding(card: GpuSeen) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that holds HELD_MIB of the card and its CUDA context."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(HELD_MIB)],
        env=os.environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(card.index)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        deadline = threading.Timer(START_S, process.kill)
        deadline.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"holds it\n", "its standard error says why"
            deadline.cancel()
            yield process
        finally:
            deadline.cancel()
            process.kill()


def now(card: GpuSeen) -> GpuSeen:
    return next(gpu for gpu in read_gpus().gpus if gpu.uuid == card.uuid)


def used(card: GpuSeen) -> int:
    used_bytes = now(card).used_bytes
    assert used_bytes is not None
    return used_bytes


def needs_pids(card: GpuSeen, pid: int) -> None:
    """Skip where the driver cannot tell what this very process holds."""
    processes = now(card).processes
    if processes is None:
        pytest.skip("this driver does not tell what each process holds (WSL2)")
    if pid not in {process.pid for process in processes} and not _are_pids_of_the_host():
        pytest.skip("the driver tells pids of the host, and this is a container with its own")


def _are_pids_of_the_host() -> bool:
    return str(Path("/proc/self/ns/pid").readlink()) == "pid:[4026531836]"


def test_the_card_is_as_full_as_it_is_and_empties_after_a_kill(card: GpuSeen) -> None:
    before = used(card)
    slack = HELD_MIB * MIB // 4  # what others on this card may come and go with
    with holding(card) as holder:
        assert used(card) >= before + HELD_MIB * MIB - slack
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        killed_at = time.monotonic()
        while used(card) > before + slack:
            assert time.monotonic() < killed_at + BACK_S, "the memory does not come back"
            time.sleep(0.05)


def test_the_process_that_holds_it_is_told_by_pid(card: GpuSeen) -> None:
    with holding(card) as holder:
        needs_pids(card, holder.pid)
        held = {process.pid: process.used_bytes for process in now(card).processes or ()}
    assert held[holder.pid] >= HELD_MIB * MIB
    killed_at = time.monotonic()
    while holder.pid in {process.pid for process in now(card).processes or ()}:
        assert time.monotonic() < killed_at + BACK_S, "the process is still listed"
        time.sleep(0.05)


async def test_the_sampler_knows_engines_from_strangers(card: GpuSeen) -> None:
    assert card.total_bytes is not None
    gpu = Gpu(
        index=card.index,
        uuid=card.uuid,
        name=card.name,
        total_bytes=card.total_bytes,
        budget_bytes=card.total_bytes,
    )
    ours: dict[int, str] = {}

    def owners(pids: Collection[int]) -> Mapping[int, str]:
        return {pid: ours[pid] for pid in pids if pid in ours}

    samples: asyncio.Queue[GpuSample] = asyncio.Queue()
    sampler = Sampler([gpu], owners, lambda told: samples.put_nowait(told[0]), interval_s=0.2)
    task = asyncio.create_task(sampler.run())

    async def until(holds: Callable[[GpuSample], bool], within_s: float) -> GpuSample:
        async with asyncio.timeout(within_s):
            while not holds(sample := await samples.get()):
                assert not sample.lost
        return sample

    try:
        await until(lambda sample: sample.used_bytes is not None, START_S)
        with holding(card) as holder:
            needs_pids(card, holder.pid)
            sample = await until(
                lambda sample: holder.pid in {stranger.pid for stranger in sample.strangers}, BACK_S
            )
            stranger = next(stranger for stranger in sample.strangers if stranger.pid == holder.pid)
            assert stranger.used_bytes >= HELD_MIB * MIB
            assert stranger.name.startswith("python")
            ours[holder.pid] = "chat"
            sample = await until(lambda sample: "chat" in (sample.engines or {}), BACK_S)
            assert sample.engines is not None
            assert sample.engines["chat"] >= HELD_MIB * MIB
            assert holder.pid not in {stranger.pid for stranger in sample.strangers}
        sampler.hurry()
        await until(lambda sample: "chat" not in (sample.engines or {}), BACK_S)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
