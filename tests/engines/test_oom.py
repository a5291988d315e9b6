# ruff: noqa: E501 - vLLM's lines are quoted as they are
"""Which memory ran out: the GPU's, by the log of this launch, or the host's, by the kernel's count."""

import os
import signal
from pathlib import Path

import aiohttp
import pytest

from supervisord_llm.core.events import Cause
from supervisord_llm.engines import oom
from supervisord_llm.engines.cgroup import Leaf
from supervisord_llm.engines.oom import KernelCount, cause_of, gpu_oom_line
from tests.engines.conftest import Fleet
from tests.engines.test_hang import chat

CORE = "(EngineCore_DP0 pid=9) ERROR 11-21 03:12:44 [core.py:901] "
UNKNOWN = KernelCount(of_engine=None, on_host=None)


@pytest.mark.parametrize(
    "line",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of",
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        CORE + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        CORE + "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests.",
        "(Worker_TP1 pid=4) RuntimeError: CUDA error: out of memory",
        "(Worker_TP1 pid=4) torch.AcceleratorError: CUDA error: out of memory",
        CORE + "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        CORE + "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB",
        "RuntimeError: HIP error: out of memory",
        CORE
        + "RuntimeError: Worker failed with error 'CUDA out of memory. Tried to allocate 1 GiB', please check",
        CORE + "Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization",
        "CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:119",
        "box:77:91 [0] NCCL WARN Cuda failure 2 'out of memory'",
    ],
)
def test_lines_that_tell_of_gpu_memory(line: str) -> None:
    assert gpu_oom_line(["(APIServer pid=1) INFO fine", line]) is not None
    assert cause_of([line], 1, UNKNOWN, term=False, kill=False) is Cause.GPU_OOM


@pytest.mark.parametrize(
    "line",
    [
        "(APIServer pid=1) INFO 11-21 03:12:44 [logger.py:40] Received request 1: prompt: 'RuntimeError: CUDA out of memory', params",
        "INFO:     10.0.0.1 - \"POST /v1/completions?x=CUDA%20out%20of%20memory HTTP/1.1\" 200 OK",
        CORE + "ValueError: No available memory for the cache blocks.",
        CORE + "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        CORE + "So leave a small buffer (=150MiB) to avoid OOM",
    ],
)  # fmt: skip
def test_lines_that_do_not(line: str) -> None:
    assert cause_of([line], 1, UNKNOWN, term=False, kill=False) is Cause.OTHER


OOM_LINE = CORE + "torch.OutOfMemoryError: CUDA out of memory."
DIED = "(APIServer pid=1) ERROR 11-21 03:12:44 [core_client.py:562] Engine core proc EngineCore_0 died unexpectedly, shutting down client."
FAILED = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_0': -9}"


@pytest.mark.parametrize(
    ("lines", "code", "of_engine", "on_host", "asked", "cause"),
    [
        ([], -9, 1, 1, "", Cause.HOST_OOM),
        ([DIED], 0, 2, None, "", Cause.HOST_OOM),
        ([OOM_LINE], 1, 1, 1, "", Cause.HOST_OOM),  # the kernel's word is a fact
        ([], -9, 0, 1, "", Cause.OTHER),  # somebody else's process was killed
        ([], -9, None, 1, "", Cause.HOST_OOM),
        ([], -9, None, 0, "", Cause.OTHER),
        ([], -9, None, None, "", Cause.OTHER),
        ([DIED], 0, None, 1, "", Cause.HOST_OOM),
        ([FAILED], 1, None, 1, "", Cause.HOST_OOM),
        ([FAILED.replace("-9", "1")], 1, None, 1, "", Cause.OTHER),
        ([], 1, None, 1, "", Cause.OTHER),
        ([], -9, None, 1, "kill", Cause.OTHER),  # that SIGKILL was ours
        ([DIED], -9, None, 1, "kill", Cause.OTHER),
        ([], -9, 1, 1, "kill", Cause.HOST_OOM),  # the kernel came first; ours it does not count
        ([OOM_LINE], -9, None, 0, "kill", Cause.GPU_OOM),  # and it hung after that
        ([OOM_LINE], 0, 1, 1, "term", Cause.OTHER),
    ],
)
def test_the_cause(
    lines: list[str], code: int, of_engine: int | None, on_host: int | None, asked: str, cause: Cause
) -> None:
    count = KernelCount(of_engine=of_engine, on_host=on_host)
    assert cause_of(lines, code, count, term=bool(asked), kill=asked == "kill") is cause


@pytest.mark.parametrize(
    ("behaviour", "flags", "ends"),
    [
        ("oom_while_loading=128", {}, True),
        ("oom_while_loading=128", {"max-num-seqs": 128}, False),
        ("oom_always", {"max-num-seqs": 1}, True),
    ],
)
async def test_gpu_memory_that_runs_out_while_loading(
    fleet: Fleet, behaviour: str, flags: dict[str, int], ends: bool
) -> None:
    config = {"flags": flags, "env": {"FAKE_VLLM": behaviour}}
    if not ends:
        await fleet.ready(config=config)
        return
    ended = await (await fleet.launch(config=config)).wait()
    assert (ended.code, ended.cause) == (1, Cause.GPU_OOM)
    assert ended.reason.startswith(
        "exited with code 1: ran out of GPU memory (torch.OutOfMemoryError: CUDA out"
    )
    assert "raise the model's `vram`" in ended.reason


async def test_gpu_memory_that_runs_out_while_serving(fleet: Fleet) -> None:
    engine = await fleet.ready("oom_serving=128")
    with pytest.raises(aiohttp.ClientError):
        await chat(engine)
    assert (await engine.wait()).cause is Cause.GPU_OOM
    second = await fleet.ready("oom_serving=128", order={"adjusted": {"max-num-seqs": 128}})
    assert await chat(second) == 200
    os.kill(second.process.pid, signal.SIGSEGV)
    assert (await second.wait()).cause is Cause.OTHER, "the lines of an earlier launch do not count"


@pytest.fixture
def vmstat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's counters, as a file of ours."""
    path = tmp_path / "vmstat"
    path.write_text("nr_free_pages 1\noom_kill 3\n")
    monkeypatch.setattr(oom, "VMSTAT", path)
    return path


async def test_a_kill_by_the_kernel_is_told_from_one_by_a_person(fleet: Fleet, vmstat: Path) -> None:
    engine = await fleet.ready()
    os.kill(engine.process.pid, signal.SIGKILL)
    ended = await engine.wait()
    assert (ended.cause, ended.code) == (Cause.OTHER, -signal.SIGKILL)
    engine = await fleet.ready()
    vmstat.write_text("nr_free_pages 1\noom_kill 4\n")
    os.kill(engine.process.pid, signal.SIGKILL)
    ended = await engine.wait()
    assert ended.cause is Cause.HOST_OOM
    assert ended.reason.startswith("the kernel's OOM killer ended it: main memory ran out; lower ")


async def test_a_kill_by_us_is_never_the_kernels(fleet: Fleet, vmstat: Path) -> None:
    engine = await fleet.ready("ignores_sigterm")
    vmstat.write_text("oom_kill 4\n")
    await engine.stop(kill=True)
    ended = await engine.wait()
    assert (ended.code, ended.cause, ended.reason) == (-signal.SIGKILL, Cause.OTHER, "stopped as asked")


def test_a_leaf_counts_what_the_kernel_killed_in_it(tmp_path: Path) -> None:
    leaf = Leaf(tmp_path)
    assert leaf.oom_kills() is None
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 0\noom 1\noom_kill 2\noom_group_kill 0\n")
    assert leaf.oom_kills() == 2


def test_a_kernel_that_does_not_count(vmstat: Path) -> None:
    vmstat.write_text("nr_free_pages 1\n")
    assert oom.kills_on_host() is None
    vmstat.unlink()
    assert oom.kills_on_host() is None
