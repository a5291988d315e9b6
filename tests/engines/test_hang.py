"""An engine that hangs: seen by its counters, ended with its stacks in the log."""

import asyncio
import os
import resource
import signal
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from supervisord_llm.engines import counters
from supervisord_llm.engines import engine as engines
from supervisord_llm.engines.engine import LocalEngine
from supervisord_llm.errors import EngineError
from supervisord_llm.runtime.ports import Backend, Progressing
from tests.engines.conftest import Fleet

CHAT = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


async def chat(engine: LocalEngine) -> int:
    connector = aiohttp.UnixConnector(str(engine.socket))
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.post("http://e/v1/chat/completions", json=CHAT) as reply,
    ):
        return reply.status


async def test_counters_move_with_every_answer(fleet: Fleet) -> None:
    engine = await fleet.ready()
    before = await engine.progressing()
    assert await chat(engine) == 200
    after = await engine.progressing()
    assert before is not None
    assert after is not None
    assert (before.running, after.running) == (0, 0)
    assert after.tokens > before.tokens


async def test_a_frozen_engine_is_healthy_and_stands_still(fleet: Fleet) -> None:
    engine = await fleet.ready("freezes=2")
    assert await chat(engine) == 200
    asking = asyncio.create_task(chat(engine))
    while (seen := await engine.progressing()) is None or not seen.running:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert await engine.progressing() == seen
    await asyncio.wait_for(engine.ready(), 1)
    os.kill(engine.process.pid, signal.SIGTERM)
    await fleet.said("SIGTERM ignored")
    await engine.stop(kill=True, dump=True)
    with pytest.raises(aiohttp.ClientError):
        await asking


async def test_metrics_that_fall_silent_are_an_error_and_none_at_all_are_not(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "METRICS_S", 0.2)
    engine = await fleet.launch(FAKE_LOAD_S="60")
    assert await engine.progressing() is None
    await engine.stop(kill=True)
    engine = await fleet.ready()
    assert await engine.progressing() == Progressing(0, 0.0)
    os.kill(engine.process.pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match=r"^cannot tell how far alpha is: no answer within 0\.2 s"):
        await engine.progressing()


def page(lines: int) -> bytes:
    """As large as vLLM's: mostly histograms."""
    label = '{engine="0",model_name="a name with } and spaces"}'
    noise = [
        f'vllm:time_to_first_token_seconds_bucket{{le="{n}",model_name="x"}} {n}.0' for n in range(lines)
    ]
    return "\n".join([
        "# TYPE vllm:num_requests_running gauge",
        f"vllm:num_requests_running{label} 2.0",
        'vllm:num_requests_running{engine="1"} 1.0',
        f"vllm:num_requests_waiting{label} 4.0",
        'vllm:num_requests_waiting_by_reason{reason="capacity"} 4.0',
        f"vllm:prompt_tokens_total{label} 1.5e+06",
        f"vllm:generation_tokens_total{label} 7.0",
        f"vllm:generation_tokens_created{label} 1.7e+09",
        f"vllm:iteration_tokens_total_count{label} 3.0",
        f"vllm:iteration_tokens_total_sum{label} 99.0",
        *noise,
        "",
    ]).encode()  # fmt: skip


def test_a_page_of_metrics_is_read_within_a_slice() -> None:
    text = page(1500)
    assert len(text) > 100_000
    assert counters.read(text) == Progressing(7, 1_500_010.0)
    took_s = []
    for _ in range(9):
        started = time.perf_counter()
        counters.read(text)
        took_s.append(time.perf_counter() - started)
    print(f"{len(text)} bytes read in {min(took_s) * 1e3:.2f} ms")
    assert min(took_s) < 0.001


def test_the_first_line_of_a_page_counts() -> None:
    assert counters.read(b"vllm:num_requests_running 2.0\nvllm:prompt_tokens_total 5.0") == Progressing(
        2, 5.0
    )


@pytest.mark.parametrize(
    ("status", "is_for_good"), [(404, True), (405, True), (501, True), (500, False), (503, False)]
)
async def test_only_a_page_that_does_not_exist_ends_the_watching(
    status: int, is_for_good: bool, tmp_path: Path
) -> None:
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(status=status, text="busy")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(tmp_path / "s")).start()
        if is_for_good:
            assert await counters.progressing(Backend(tmp_path / "s")) is None
        else:
            with pytest.raises(EngineError, match=rf"it answered {status} busy; see its log$"):
                await counters.progressing(Backend(tmp_path / "s"))
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "text", [b"", b"# nothing", b"http_requests_total 4.0\n", b"vllm:other 1.0", b"\xff"]
)
def test_another_page_tells_nothing(text: bytes) -> None:
    assert counters.read(text) is None


async def test_a_dump_has_the_stacks_of_every_process_and_leaves_no_core(fleet: Fleet) -> None:
    engine = await fleet.ready("freezes,engine_core,leaves_grandchild")
    pid = engine.process.pid
    assert resource.prlimit(pid, resource.RLIMIT_CORE)[0] <= 1
    started = time.monotonic()
    await engine.stop(kill=True, dump=True)
    assert time.monotonic() - started < 3
    ended = await engine.wait()
    log = fleet.launcher.tail("alpha").last(2000)
    assert len([line for line in log if "Fatal Python error: Aborted" in line]) == 3
    assert any("in spawn_engine_core" in line for line in log)
    assert any("most recent call first" in line for line in log)
    assert (ended.code, ended.reason) == (-signal.SIGABRT, "stopped as asked")


async def test_a_dump_of_what_is_stopped_ends_it_all_the_same(fleet: Fleet) -> None:
    engine = await fleet.ready("engine_core")
    os.kill(engine.process.pid, signal.SIGSTOP)
    started = time.monotonic()
    await engine.stop(kill=True, dump=True)
    assert time.monotonic() - started < 4
    assert (await engine.wait()).code == -signal.SIGKILL


async def test_a_dump_whose_caller_was_cancelled_is_carried_out(fleet: Fleet) -> None:
    engine = await fleet.ready()
    os.kill(engine.process.pid, signal.SIGSTOP)
    stop = asyncio.create_task(engine.stop(kill=True, dump=True))
    await asyncio.sleep(0.1)
    stop.cancel()
    assert (await asyncio.wait_for(engine.wait(), 5)).code == -signal.SIGKILL
