"""Keys, limits and quotas of a real daemon: minted, configured, reloaded, restarted, killed."""

import asyncio
import json
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import aiohttp

from supervisord_llm.telemetry.usage import WRITE_EVERY_S
from tests.e2e.house import House, chat, running

Clients = dict[str, dict[str, Any]]


def minted(house: House, name: str) -> tuple[str, str]:
    """A key and its hash."""
    told = json.loads(house.cli("keys", "new", name, "--json").stdout)
    return told["key"], told["key_sha256"]


def write(house: House, clients: Clients, **tables: dict[str, object]) -> None:
    named = {f"clients.{name}": client for name, client in clients.items()}
    house.configure({"alpha": house.fake()}, **{"auth": {"required": True}, **named, **tables})


async def ask(web: aiohttp.ClientSession, key: str) -> tuple[int, Any, Any]:
    async with web.post(
        "/v1/chat/completions", json=chat("alpha"), headers={"Authorization": f"Bearer {key}"}
    ) as answer:
        return answer.status, answer.headers, await answer.json()


async def test_a_key_is_minted_used_and_replaced_without_a_gap(
    house: House, web: aiohttp.ClientSession
) -> None:
    write(house, {})
    old, old_hash = minted(house, "webui")
    write(house, {"webui": {"key_sha256": old_hash}})
    async with running(house):
        assert (await ask(web, old))[0] == 200
        told = json.loads(house.cli("keys", "new", "webui", "--json").stdout)
        hashes = json.loads(told["config"].removeprefix("key_sha256 = "))
        assert (await ask(web, told["key"]))[0] == 401
        write(house, {"webui": {"key_sha256": hashes}})
        house.cli("reload")
        assert [(await ask(web, key))[0] for key in (old, told["key"])] == [200, 200]
        write(house, {"webui": {"key_sha256": hashes[0]}})
        house.cli("reload")
        assert [(await ask(web, key))[0] for key in (old, told["key"])] == [401, 200]
        assert old not in house.log
        assert told["key"] not in house.log


async def test_a_quota_outlives_a_restart_and_a_crash(house: House, web: aiohttp.ClientSession) -> None:
    write(house, {})
    key, digest = minted(house, "a")
    limits = {"key_sha256": digest, "tokens_per_day": 4}
    write(house, {"a": limits})
    database = house.root / "state" / "usage.sqlite"
    async with running(house):
        status, headers, answer = await ask(web, key)
        assert (status, headers["X-RateLimit-Remaining-Tokens"]) == (200, "4")
        used = answer["usage"]["total_tokens"]
        assert used >= 4, "the fake's answer is long enough for this test"
        status, _, answer = await ask(web, key)
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
    await house.start()
    status, headers, _ = await ask(web, key)
    assert status == 429
    assert headers["X-Should-Retry"] == "false"
    assert headers["X-RateLimit-Limit-Tokens"] == "4"
    write(house, {"a": limits | {"tokens_per_day": 1000}})
    house.cli("reload")
    assert (await ask(web, key))[0] == 200
    deadline = time.monotonic() + WRITE_EVERY_S + 5
    while counted(database) == used and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert counted(database) == 2 * used, "it is written while the daemon runs"
    _ = await house.stop(signal.SIGKILL)
    async with running(house):
        assert (await ask(web, key))[1]["X-RateLimit-Remaining-Tokens"] == str(1000 - 2 * used)


async def test_a_state_directory_that_takes_no_counts_stops_nothing(
    house: House, web: aiohttp.ClientSession
) -> None:
    write(house, {})
    key, digest = minted(house, "a")
    write(house, {"a": {"key_sha256": digest, "tokens_per_hour": 100}})
    (house.root / "state" / "usage.sqlite").mkdir(parents=True)
    async with running(house):
        assert (await ask(web, key))[0] == 200
        assert int((await ask(web, key))[1]["X-RateLimit-Remaining-Tokens"]) < 100
    told = [entry for entry in house.entries() if "cannot keep token counts" in entry.get("message", "")]
    assert len(told) == 1


async def test_limits_of_addresses_come_and_go_with_a_reload(
    house: House, web: aiohttp.ClientSession
) -> None:
    write(house, {})
    async with running(house):
        for _ in range(50):
            async with web.get("/healthz") as answer:
                assert answer.status == 200
        write(house, {}, rate_limit={"per_ip": "1/h", "burst": 2})
        house.cli("reload")
        statuses = []
        for _ in range(4):
            async with web.get("/healthz") as answer:
                statuses.append(answer.status)
        assert statuses == [200, 200, 429, 429]
        assert house.status()["models"], "the control socket has no limit"
        write(house, {})
        house.cli("reload")
        async with web.get("/healthz") as answer:
            assert answer.status == 200


def counted(database: Path) -> int:
    """Tokens of today in the file."""
    connection = sqlite3.connect(database)
    try:
        found: int = connection.execute("SELECT tokens FROM tokens WHERE period = 'day'").fetchone()[0]
        return found
    finally:
        connection.close()
