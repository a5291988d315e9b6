"""Many clients at once, slow ones and many requests: what the daemon holds for them stays within bounds."""

import asyncio
import contextlib
import json
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.house import House, chat, running

KIB, MIB = 1024, 1024**2
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(autouse=True)
def open_files() -> Iterator[None]:
    """As many as the connections of a test need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 < hard < 8192:
        pytest.skip(f"6000 connections need 8192 open files, and the limit here is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def post(body: dict[str, object], path: str = "/v1/chat/completions") -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


def resident_bytes(house: House) -> int:
    assert house.process is not None
    return int(psutil.Process(house.process.pid).memory_info().rss)


def open_descriptors(house: House) -> int:
    assert house.process is not None
    return int(psutil.Process(house.process.pid).num_fds())


@contextlib.asynccontextmanager
async def connections(house: House, count: int, request: bytes = b"") -> AsyncIterator[list[Connection]]:
    """So many connections, each with the request sent."""
    opened: list[Connection] = []
    try:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
            writer.write(request)
            opened.append((reader, writer))
        yield opened
    finally:
        for _, writer in opened:
            writer.transport.abort()


async def answer(reader: asyncio.StreamReader) -> bytes:
    """The body of one answer with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return await reader.readexactly(int(length))


async def until_waiting(house: House, model: str, count: int) -> None:
    async with asyncio.timeout(60):
        while (await asyncio.to_thread(house.status))["models"][model]["waiting"] != count:
            await asyncio.sleep(0.2)


async def test_a_thousand_who_wait_take_less_than_20_kib_each(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.configure({"slow": house.fake("never_ready", start_timeout="2m")})
    async with running(house):
        async with connections(house, 50, post(chat("slow"))):  # what the first requests load stays
            await until_waiting(house, "slow", 50)
        await until_waiting(house, "slow", 0)
        before = resident_bytes(house)
        async with connections(house, 1000, post(chat("slow"))):
            await until_waiting(house, "slow", 1000)
            each = (resident_bytes(house) - before) / 1000
            assert each < 20 * KIB, f"{each / KIB:.1f} KiB for each waiting request"
        await until_waiting(house, "slow", 0)


@pytest.mark.slow
async def test_a_thousand_streams_among_five_thousand_idle_connections(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.configure({"alpha": house.fake(env={"FAKE_TOKENS_PER_S": "1"})})
    streamed = post(chat("alpha", stream=True, ignore_eos=True, max_tokens=20))
    async with running(house), connections(house, 1, post(chat("alpha"))) as first:
        await answer(first[0][0])
        before = resident_bytes(house)
        async with connections(house, 5000), connections(house, 1000, streamed) as streams:
            async with asyncio.timeout(60):
                heads = [await reader.readuntil(b"\r\n\r\n") for reader, _ in streams]
                assert all(head.startswith(b"HTTP/1.1 200") for head in heads)
                texts = [await reader.readuntil(b"data: [DONE]") for reader, _ in streams]
            assert len(texts) == 1000
            grown = resident_bytes(house) - before
            assert grown < 200 * MIB, f"{grown / MIB:.0f} MiB for 6000 connections"
        async with asyncio.timeout(30):
            while open_descriptors(house) > 100:
                await asyncio.sleep(0.1)


async def test_a_slow_reader_slows_the_engine_and_takes_no_memory(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.configure({"alpha": house.fake(env={"FAKE_ANSWER": "word " * 20_000})})
    flood = post(chat("alpha", stream=True, ignore_eos=True, max_tokens=2_000_000))
    async with running(house), connections(house, 1, post(chat("alpha"))) as first:
        await answer(first[0][0])
        before = resident_bytes(house)
        async with connections(house, 20, flood) as stalled:
            await asyncio.sleep(3)  # none of them reads meanwhile
            grown = resident_bytes(house) - before
            assert grown < 20 * MIB, f"{grown / MIB:.1f} MiB for 20 who do not read"
            reader, _ = stalled[0]
            async with asyncio.timeout(60):
                await reader.readexactly(8 * MIB)  # more than was on the way: it goes on where it stood


@pytest.mark.slow
async def test_nothing_leaks_over_ten_thousand_requests(tmp_path: Path) -> None:
    """`scripts/bench soak` sends a hundred thousand."""
    house = House(tmp_path)
    house.configure({"alpha": house.fake()})
    request = post(chat("alpha"))

    async def ask(connection: Connection, times: int) -> None:
        reader, writer = connection
        for _ in range(times):
            writer.write(request)
            await answer(reader)

    async def ask_all(times: int) -> None:
        async with connections(house, 20) as opened:
            await asyncio.gather(*(ask(each, times // 20) for each in opened))

    async with running(house):
        await ask_all(3_000)
        before, descriptors = resident_bytes(house), open_descriptors(house)
        await ask_all(7_000)
        grown = resident_bytes(house) - before
        assert grown < 4 * MIB, f"{grown / MIB:.1f} MiB more after 7,000 requests"
        assert open_descriptors(house) <= descriptors + 5
