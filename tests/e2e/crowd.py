"""Clients that keep asking, and the engines that serve them, by pid."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import psutil

from tests.e2e.house import House, chat


def leaders(house: House) -> dict[str, int]:
    """The pid of each model's engine."""
    found = {}
    for process in house.engines():
        with contextlib.suppress(psutil.Error, ValueError):
            words = process.cmdline()
            found[words[words.index("--served-model-name") + 1]] = process.pid
    return found


async def say(web: aiohttp.ClientSession, model: str) -> int:
    async with web.post("/v1/chat/completions", json=chat(model)) as answer:
        await answer.read()
        return answer.status


@contextlib.asynccontextmanager
async def crowd(house: House, *models: str, clients: int) -> AsyncIterator[Counter[str]]:
    """Clients that ask again and again, on connections that they keep; what became of their requests."""
    outcomes: Counter[str] = Counter()

    async def ask(model: str) -> None:
        async with aiohttp.ClientSession(house.url) as web:
            while True:
                try:
                    outcomes[str(await say(web, model))] += 1
                except aiohttp.ClientConnectorError:
                    outcomes["refused"] += 1
                except aiohttp.ClientError:
                    outcomes["broken"] += 1

    tasks = [asyncio.create_task(ask(models[turn % len(models)])) for turn in range(clients)]
    try:
        yield outcomes
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def more(outcomes: Counter[str], count: int = 50) -> None:
    """Until so many more are served."""
    target = outcomes["200"] + count
    async with asyncio.timeout(30):
        while outcomes["200"] < target:
            await asyncio.sleep(0.02)
