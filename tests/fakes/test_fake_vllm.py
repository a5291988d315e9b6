"""The fake answers like vLLM, as far as the tests of other rooms rely on it."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

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

    async def start(**env: str) -> tuple[asyncio.subprocess.Process, aiohttp.ClientSession]:
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
