"""What many requests leave behind in the daemon, good ones and broken ones; commands of scripts/bench."""

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from tests.e2e.house import House, running
from tests.gateway.mutator import SEEDS, STREAM, Fuzz
from tests.gateway.wire import CHAT, JSON, KEY, chunked, framed, get, post

CONNECTIONS = 20
SAMPLES = 10
REQUESTS = (
    *[post(CHAT, KEY + JSON)] * 4,
    post(STREAM, KEY + JSON),
    post(b'{"model":"alpha","input":["a","b"]}', KEY + JSON, b"/v1/embeddings"),
    framed(KEY + JSON + b"Transfer-Encoding: chunked\r\n", chunked(CHAT)),
    get(b"/v1/models", KEY),
    post(CHAT, JSON),  # no key: 401
    post(b'{"model":"nobody"}', KEY + JSON),  # 404
)
"""In turn, on connections that are kept."""


@contextlib.asynccontextmanager
async def daemon() -> AsyncIterator[tuple[House, psutil.Process]]:
    """One with a model behind keys, whose engine runs."""
    with tempfile.TemporaryDirectory(prefix="llms-") as root:
        house = House(Path(root), environ={"BENCH_KEY": "key-a", "BENCH_ADMIN": "key-admin"})
        clients: dict[str, dict[str, object]] = {
            "auth": {"required": True},
            "clients.a": {"key_env": "BENCH_KEY"},
            "clients.admin": {"key_env": "BENCH_ADMIN", "admin": True},
            "cors": {"allow_origins": ["http://o"]},
        }
        house.configure({"alpha": house.fake()}, **clients)
        async with running(house):
            assert house.process is not None
            yield house, psutil.Process(house.process.pid)


def held(process: psutil.Process) -> tuple[float, int]:
    """(MiB resident, open descriptors)"""
    return process.memory_info().rss / 1024**2, process.num_fds()


async def soak(count: int) -> None:
    """So many requests, most of them good; what the daemon holds after each tenth of them."""
    statuses: Counter[int] = Counter()
    async with daemon() as (house, process):
        held_before = held(process)
        print(f"{'requests':>9} {'per s':>7} {'median ms':>9} {'p99 ms':>7} {'MiB':>6} {'open':>5}")
        print(f"{0:>9} {'':>7} {'':>9} {'':>7} {held_before[0]:>6.1f} {held_before[1]:>5}")
        samples = []
        for tenth in range(1, SAMPLES + 1):
            began, took = time.perf_counter(), []
            each = count // SAMPLES // CONNECTIONS
            for times in await asyncio.gather(*(client(house, each, statuses) for _ in range(CONNECTIONS))):
                took += times
            rate = len(took) / (time.perf_counter() - began)
            p99 = statistics.quantiles(took, n=100)[98]
            await asyncio.sleep(0.5)  # connections end
            samples.append(held(process))
            print(f"{tenth * len(took):>9} {rate:>7.0f} {statistics.median(took):>9.1f} {p99:>7.1f} "
                  f"{samples[-1][0]:>6.1f} {samples[-1][1]:>5}")  # fmt: skip
    print(f"answers: {dict(statuses.most_common())}")
    memory = [mib for mib, _ in samples]
    print(f"memory after the first tenth: {memory[-1] - memory[0]:+.1f} MiB, at most {max(memory):.1f} MiB; "
          f"open descriptors: {samples[-1][1] - samples[0][1]:+d}")  # fmt: skip


async def client(house: House, count: int, statuses: Counter[int]) -> list[float]:
    """Milliseconds that each of its requests took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    took = []
    for turn in range(count):
        began = time.perf_counter()
        writer.write(REQUESTS[turn % len(REQUESTS)].replace(b"Connection: close\r\n", b""))
        head = await reader.readuntil(b"\r\n\r\n")
        size = head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]
        if size:
            await reader.readexactly(int(size))
        else:
            await reader.readuntil(b"\r\n0\r\n\r\n")
        took.append((time.perf_counter() - began) * 1000)
        statuses[int(head[9:12])] += 1
    writer.close()
    await writer.wait_closed()
    return took


async def fuzz(minutes: float, seed: int) -> int:
    """Requests broken at random, for so long. Returns how many went wrong."""
    seeds = [each for each in SEEDS if b"/site" not in each]
    async with daemon() as (house, process):
        await client(house, len(REQUESTS), Counter())
        run = Fuzz(house.port, seed, seeds=seeds)
        await run.run(10)  # what is loaded on first use stays
        print(f"before: {held(process)[0]:.1f} MiB, {held(process)[1]} open descriptors")
        began = time.monotonic()
        while (left_s := began + minutes * 60 - time.monotonic()) > 0 and len(run.wrong) < 10:
            await run.run(min(60, left_s))
            run.seed += 1
            print(f"{time.monotonic() - began:>5.0f} s: {run.sent} sent, {held(process)[0]:.1f} MiB")
        await asyncio.sleep(5)
        print(f"after:  {held(process)[0]:.1f} MiB, {held(process)[1]} open descriptors")
        await client(house, len(REQUESTS), Counter())
        errors = [entry for entry in house.entries() if entry["level"] in ("error", "critical")]
    print(f"{run.sent} requests from seed {seed} on; answers: {dict(run.statuses.most_common())}")
    print(f"{len(run.wrong)} went wrong, {len(errors)} errors in the log")
    for raw, why in run.wrong:
        print(f"{raw!r}\n    {why}")
    for entry in errors:
        print(entry)
    return len(run.wrong) + len(errors)
