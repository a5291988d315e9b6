"""Measure what the daemon itself costs, with the fake engine in place of vLLM.

cost      a first request on a stopped model, less the time the engine itself takes from exec to listening;
          the daemon with 50 configured models and nothing to do: memory, CPU, time from exec to serving
soak      100,000 requests: memory, open files, times
fuzz      requests broken at random, for as long as you like; exits 1 if one of them breaks something

Prints its command, the machine, and the spread of every figure.
"""

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from endurance import fuzz, soak

from tests.e2e.house import House, chat, running

MODELS = 50


def show(name: str, values: list[float], unit: str, aim: str) -> None:
    spread = f"min {min(values):.1f}, median {statistics.median(values):.1f}, max {max(values):.1f} {unit}"
    print(f"{name:<34} {spread}  (n={len(values)}; aim: {aim})")


def engine_alone_s(house: House, load_s: float) -> float:
    """Seconds from exec of the fake engine to its first answer on /health."""
    path = house.root / "alone.sock"
    argv = [str(house.root / "venv/bin/vllm"), "serve", str(house.root / "weights"), "--uds", str(path)]
    began = time.perf_counter()
    engine = subprocess.Popen(
        [*argv, "--served-model-name", "m"],
        env={"PATH": os.environ["PATH"], "FAKE_LOAD_S": str(load_s)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    async def until_healthy() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
            while True:
                try:
                    async with session.get("http://engine/health"):
                        return
                except aiohttp.ClientError:
                    await asyncio.sleep(0.005)

    try:
        asyncio.run(until_healthy())
        return time.perf_counter() - began
    finally:
        engine.kill()
        engine.wait()
        path.unlink(missing_ok=True)


async def cold_ms(house: House, rounds: int) -> list[float]:
    """Milliseconds from a first request to its whole answer, each on a model of its own."""
    took = []
    async with running(house), aiohttp.ClientSession(house.url) as web:
        for index in range(rounds):
            began = time.perf_counter()
            async with web.post("/v1/chat/completions", json=chat(f"m{index}")) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()
            took.append((time.perf_counter() - began) * 1000)
            async with web.post("/admin/stop", json={"model": f"m{index}"}, headers=ADMIN) as answer:
                assert answer.status == 200, await answer.text()
    return took


ADMIN = {"Authorization": "Bearer bench"}


async def idle(house: House, seconds: float) -> tuple[float, float, float]:
    """(ms from exec to serving, MiB resident, percent of one core) of an idle daemon."""
    began = time.perf_counter()
    async with running(house):
        serving_ms = (time.perf_counter() - began) * 1000
        assert house.process is not None
        daemon = psutil.Process(house.process.pid)
        await asyncio.sleep(1)
        before = sum(daemon.cpu_times()[:2])
        await asyncio.sleep(seconds)
        cpu = (sum(daemon.cpu_times()[:2]) - before) / seconds * 100
        return serving_ms, daemon.memory_info().rss / 1024**2, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=("cost", "soak", "fuzz"), default="cost")
    parser.add_argument("--rounds", type=int, default=15, help="cost: measurements of the cold path")
    parser.add_argument("--load", type=float, default=0.5, help="cost: seconds the fake engine loads")
    parser.add_argument("--requests", type=int, default=100_000, help="soak: how many")
    parser.add_argument("--minutes", type=float, default=5.0, help="fuzz: for how long")
    parser.add_argument("--seed", type=int, default=1, help="fuzz: the same seed breaks requests alike")
    args = parser.parse_args()
    print(f"command: {' '.join(sys.argv)}")
    print(f"machine: {os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    match args.what:
        case "soak":
            asyncio.run(soak(args.requests))
        case "fuzz":
            sys.exit(1 if asyncio.run(fuzz(args.minutes, args.seed)) else 0)
        case _:
            cost(args)


def cost(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="llms-") as root:
        house = House(Path(root), environ={"BENCH_KEY": "bench"})
        clients = {"clients.bench": {"key_env": "BENCH_KEY", "admin": True}}
        names = [f"m{index}" for index in range(max(MODELS, args.rounds))]
        house.configure({name: house.fake(load_s=args.load) for name in names}, **clients)
        alone = [engine_alone_s(house, args.load) * 1000 for _ in range(args.rounds)]
        show("engine alone, exec to /health", alone, "ms", "the yardstick")
        cold = asyncio.run(cold_ms(house, args.rounds))
        show("first request through the daemon", cold, "ms", "")
        added = [value - statistics.median(alone) for value in cold]
        show("added to the engine's own start", added, "ms", "at most 100")
        runs = [asyncio.run(idle(house, 10)) for _ in range(3)]
    show(f"{len(names)} models: exec to serving", [run[0] for run in runs], "ms", "at most 1500")
    show(f"{len(names)} models: resident", [run[1] for run in runs], "MiB", "below 100")
    show(f"{len(names)} models: idle CPU", [run[2] for run in runs], "%", "below 1")


if __name__ == "__main__":
    main()
