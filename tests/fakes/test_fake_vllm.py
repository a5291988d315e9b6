"""The fake answers like vLLM, as far as the tests of other rooms rely on it."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes import install_fake_vllm

Start = Callable[..., Awaitable[tuple[asyncio.subprocess.Process, aiohttp.ClientSession]]]


async def answers(socket: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    writer.close()
    return True


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    program = install_fake_vllm(tmp_path / "venv")
    opened: list[tuple[asyncio.subprocess.Process, aiohttp.ClientSession]] = []

    async def start(*flags: str, **env: str) -> tuple[asyncio.subprocess.Process, aiohttp.ClientSession]:
        socket = tmp_path / f"{len(opened)}.sock"
        argv: list[str | Path] = [
            program,
            "serve",
            "/m",
            "--uds",
            socket,
            "--served-model-name",
            "alpha",
            "alias",
            *flags,
        ]
        process = await asyncio.create_subprocess_exec(*argv, env=os.environ | env, stdout=-3)
        connector = aiohttp.UnixConnector(str(socket))
        session = aiohttp.ClientSession("http://engine", connector=connector)
        opened.append((process, session))
        deadline = time.monotonic() + 10
        while not await answers(socket) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return process, session

    yield start
    for process, session in opened:
        await session.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


CHAT = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}


async def test_chat_streams_and_answers(start: Start) -> None:
    _, http = await start()
    async with http.get("/health") as reply:
        assert reply.status == 200
    async with http.post("/v1/chat/completions", json=CHAT) as reply:
        assert (await reply.json())["choices"][0]["message"]["content"] == "I am alpha."
    async with http.post("/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
        events = [line[6:] for line in (await reply.text()).splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(deltas) == "I am alpha."


async def test_responses_are_answered_whole(start: Start) -> None:
    _, http = await start()
    async with http.post("/v1/responses", json={"model": "alpha", "input": "hi"}) as reply:
        answer = await reply.json()
    assert [part["text"] for item in answer["output"] for part in item["content"]] == ["I am alpha."]


async def test_a_client_that_leaves_aborts_its_stream(start: Start) -> None:
    _, http = await start(FAKE_TOKENS_PER_S="50")
    long = CHAT | {"stream": True, "ignore_eos": True, "max_tokens": 1000}
    async with http.post("/v1/chat/completions", json=long) as reply:
        await reply.content.readline()
    deadline = time.monotonic() + 2
    stats: dict[str, int] = {}
    while not stats.get("aborted") and time.monotonic() < deadline:
        async with http.get("/fake/stats") as reply:
            stats = await reply.json()
    assert (stats["aborted"], stats["running"]) == (1, 0)


async def test_multipart_sizes_come_back(start: Start) -> None:
    _, http = await start()
    form = aiohttp.FormData({"model": "alpha"})
    form.add_field("file", b"x" * 1000, filename="a.wav")
    async with http.post("/v1/audio/transcriptions", data=form) as reply:
        assert json.loads((await reply.json())["text"]) == {"model": 5, "file": 1000}


async def test_dies_mid_stream_after_two_tokens(start: Start) -> None:
    process, http = await start(FAKE_VLLM="dies_mid_stream")
    with pytest.raises(aiohttp.ClientPayloadError):
        async with http.post("/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
            await reply.read()
    assert await process.wait() == 1


async def test_hangs_on_sigterm_until_the_stream_is_closed(start: Start) -> None:
    process, http = await start(FAKE_VLLM="hangs_on_sigterm_with_open_stream", FAKE_TOKENS_PER_S="50")
    long = CHAT | {"stream": True, "ignore_eos": True, "max_tokens": 1000}
    async with http.post("/v1/chat/completions", json=long) as reply:
        await reply.content.readline()
        process.send_signal(signal.SIGTERM)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), 0.3)
    assert await asyncio.wait_for(process.wait(), 5) == 0


async def test_a_sleeper_that_is_not_given_its_weights_back_talks_nonsense(start: Start) -> None:
    _, http = await start(VLLM_SERVER_DEV_MODE="1")

    async def said() -> str:
        async with http.post("/v1/chat/completions", json=CHAT) as reply:
            return str((await reply.json())["choices"][0]["message"]["content"])

    async def done(target: str, **options: Any) -> int:
        async with http.post(target, **options) as reply:
            return reply.status

    assert await done("/sleep?level=2") == 200
    assert await done("/v1/chat/completions", json=CHAT) == 500
    assert await done("/wake_up?tags=weights") == 200
    async with http.get("/is_sleeping") as reply:
        assert (await reply.json()) == {"is_sleeping": True}
    assert await done("/wake_up?tags=kv_cache") == 200
    assert await said() != "I am alpha."
    assert await done("/collective_rpc", json={"method": "reload_weights"}) == 200
    assert await said() == "I am alpha."


async def test_only_dev_mode_has_the_endpoints_of_the_operator(start: Start) -> None:
    _, http = await start(VLLM_SERVER_DEV_MODE="0")
    for path in ("/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache"):
        async with http.post(path) as reply:
            assert reply.status == 404
    async with http.get("/is_sleeping") as reply:
        assert reply.status == 404


async def test_sleep_mode_is_refused_on_the_cpu(start: Start) -> None:
    process, _ = await start("--enable-sleep-mode", CUDA_VISIBLE_DEVICES="")
    assert await process.wait() == 1


@pytest.mark.parametrize("behaviour", ["", "engine_core", "sleep_keeps_memory"])
async def test_what_it_holds_is_told_to_the_stub_of_nvml(
    start: Start, tmp_path: Path, behaviour: str
) -> None:
    env = {"FAKE_VLLM": behaviour, "VLLM_SERVER_DEV_MODE": "1", "CUDA_VISIBLE_DEVICES": "0,2"}
    process, http = await start(
        **env,
        STUB_NVML_STATE=str(tmp_path),
        FAKE_VRAM_MIB="3000",
        FAKE_RESIDUE_MIB="500",
        FAKE_VRAM_GROWS="9:0.3",
    )
    async with http.get("/fake/stats") as reply:
        stats = await reply.json()
    told = tmp_path / "procs" / str(stats["core_pid"] or stats["pid"])
    assert [path.name for path in told.parent.iterdir()] == [told.name]
    assert told.read_text() == "0 3000\n2 3000\n"
    await http.post("/sleep?level=1")
    asleep = 3000 if behaviour == "sleep_keeps_memory" else 500
    assert told.read_text() == f"0 {asleep}\n2 {asleep}\n"
    await http.post("/wake_up")
    deadline = time.monotonic() + 5
    while told.read_text() == "0 3000\n2 3000\n" and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert told.read_text() == "0 3009\n2 3009\n"
    process.terminate()  # takes its engine core with it
    await process.wait()


async def test_half_of_it_is_held_while_it_loads(start: Start, tmp_path: Path) -> None:
    env = {"CUDA_VISIBLE_DEVICES": "0", "STUB_NVML_STATE": str(tmp_path), "FAKE_VRAM_MIB": "3000"}
    starting = asyncio.ensure_future(start(**env, FAKE_LOAD_S="1"))
    deadline = time.monotonic() + 5
    while not (told := [*tmp_path.glob("procs/*")]) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert told[0].read_text() == "0 1500\n"
    await starting
    assert told[0].read_text() == "0 3000\n"
