# ruff: noqa: E501 - vLLM's lines are quoted as they are
"""The size of the KV cache, from the log to the engine's property."""

import pytest

from supervisord_llm.engines.kv_cache import GIB, KvCacheSize
from tests.engines.conftest import Fleet

WORKER = "(Worker_TP0 pid=2) INFO 11-21 03:12:48 [gpu_worker.py:789] "
AVAILABLE = WORKER + "Available KV cache memory: 18.65 GiB"
ADVICE = WORKER + (
    "Free memory on device (22.45/23.99 GiB) on startup. Desired GPU memory utilization is (0.85, 20.39 GiB). Actual usage is 1.49 GiB for consumed memory (weights + non-torch), 0.25 GiB for peak activation, and 0.37 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=19468210074` (18.13 GiB) to fit into requested memory, or `--kv-cache-memory=21679683072` (20.19 GiB) to fully utilize gpu memory. Current kv cache memory in use is 18.65 GiB."
)


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        ([], None),
        ([AVAILABLE], int(18.645 * GIB)),
        ([AVAILABLE, ADVICE], 19468210074),
        ([ADVICE, ADVICE.replace("19468210074", "19468210000"), ADVICE], 19468210000),
        ([ADVICE.replace("--kv-cache-memory=", "--kv-cache-memory-bytes=")], 19468210074),
        (["Replace gpu_memory_utilization config with `--kv-cache-memory=38082119680` (35.47 GiB) to fully utilize gpu memory."], None),
        ([AVAILABLE, ADVICE.replace("=19468210074", "=-5").replace("(18.13", "(-0.0")], int(18.645 * GIB)),
        ([WORKER + "Available KV cache memory: 0.0 GiB"], None),
        ([WORKER + "Initial free memory 31.17 GiB, reserved 1.62 GiB memory for KV Cache as specified"], None),
    ],
)  # fmt: skip
def test_sizes(lines: list[str], size: int | None) -> None:
    cache = KvCacheSize()
    for line in lines:
        cache.read(line)
    assert cache.bytes == (size if size is None else pytest.approx(size, abs=2))


async def test_what_a_start_told_is_what_the_next_one_is_given(fleet: Fleet) -> None:
    first = await fleet.ready(FAKE_KV_MIB="100", order={"gpus": (0,), "memory_fraction": 0.5})
    assert first.kv_bytes == 100 * 2**20
    await first.stop(kill=True)
    order = {"gpus": (0,), "memory_fraction": 0.5, "kv_bytes": first.kv_bytes}
    second = await fleet.ready(FAKE_KV_MIB="90", order=order)
    assert second.kv_bytes == 100 * 2**20


async def test_on_the_cpu_there_is_none_of_a_gpu(fleet: Fleet) -> None:
    assert (await fleet.ready("logs_progress")).kv_bytes is None
