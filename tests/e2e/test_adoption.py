"""Daemons come and go, engines stay: killed, restarted and stopped while clients go on asking."""

import asyncio
import os
import signal
import socket

import aiohttp
import psutil
import pytest

from tests.e2e.crowd import crowd, leaders, more, say
from tests.e2e.house import House, running

CLIENTS = 20


@pytest.fixture
def door(house: House) -> socket.socket:
    """The listening socket that systemd would hold for the daemon."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", house.port))
    listener.listen(1024)
    house.inherited = listener
    return listener


async def test_killed_under_load_the_next_daemon_goes_on_with_the_same_engine(
    house: House, door: socket.socket
) -> None:
    house.configure({"a": house.fake("engine_core")})
    async with running(house):
        async with crowd(house, "a", clients=CLIENTS) as outcomes:
            await more(outcomes)
            before = leaders(house)
            await house.stop(signal.SIGKILL)
            await house.start()
            await more(outcomes)
        assert leaders(house) == before
        assert outcomes["refused"] == 0
        assert outcomes["broken"] <= CLIENTS, "at most what was in flight"
        assert set(outcomes) <= {"200", "broken", "refused"}
        assert "takes over a on the CPU, ready" in house.log
        status = house.status()["models"]["a"]
        assert (status["state"], status["launch"]) == ("ready", 1)
    door.close()


async def test_a_restart_that_is_announced_fails_nobody(house: House, door: socket.socket) -> None:
    house.configure({"a": house.fake(env={"FAKE_TOKENS_PER_S": "50"})})
    async with running(house):
        async with crowd(house, "a", clients=CLIENTS) as outcomes:
            await more(outcomes)
            before = leaders(house)
            assert house.process is not None
            house.process.send_signal(signal.SIGUSR1)
            assert await house.stop() == 0
            await house.start()
            await more(outcomes)
        assert leaders(house) == before
        assert set(outcomes) == {"200"}, outcomes
    door.close()


async def test_on_stop_keep_leaves_engines_and_the_reaper_is_told(
    house: House, web: aiohttp.ClientSession
) -> None:
    house.configure({"a": house.fake()}, server={"on_stop": "keep"})
    async with running(house):
        assert await say(web, "a") == 200
        before = leaders(house)
        assert (house.root / "runtime" / "keep").exists()
        assert await house.stop() == 0
        assert leaders(house) == before
        house.configure({"a": house.fake()}, server={"on_stop": "stop"})
        await house.start()
        assert await say(web, "a") == 200
        assert leaders(house) == before
        assert not (house.root / "runtime" / "keep").exists()


async def test_what_does_not_belong_any_more_is_ended_with_all_its_processes(
    house: House, web: aiohttp.ClientSession
) -> None:
    house.configure(
        {
            "same": house.fake(),
            "changed": house.fake("engine_core,leaves_grandchild"),
            "removed": house.fake("engine_core,leaves_grandchild"),
        }
    )
    async with running(house):
        for model in ("same", "changed", "removed"):
            assert await say(web, model) == 200
        before = leaders(house)
        everybody = {process.pid for process in house.engines()}
        await house.stop(signal.SIGKILL)
        house.configure({"same": house.fake(), "changed": house.fake(flags={"max-model-len": 1024})})
        await house.start()
        assert leaders(house) == {"same": before["same"]}
        assert {process.pid for process in house.engines()} & everybody == {before["same"]}
        assert await say(web, "changed") == 200


async def test_an_adopted_engine_is_watched_stopped_and_its_end_noticed(
    house: House, web: aiohttp.ClientSession
) -> None:
    house.configure({name: house.fake() for name in ("a", "b")})
    async with running(house):
        for model in ("a", "b"):
            assert await say(web, model) == 200
        await house.stop(signal.SIGKILL)
        await house.start()
        os.kill(leaders(house)["a"], signal.SIGKILL)
        async with asyncio.timeout(10):
            while house.status()["models"]["a"]["state"] == "ready":
                await asyncio.sleep(0.05)
        house.cli("stop", "b")
        assert leaders(house) == {}
        assert await say(web, "a") == 200


async def test_a_sleeper_is_taken_over_asleep_and_wakes(house: House, web: aiohttp.ClientSession) -> None:
    house.configure({"a": house.fake(idle={"sleep_level": 1})})
    async with running(house):
        assert await say(web, "a") == 200
        house.cli("sleep", "a")
        before = leaders(house)
        await house.stop(signal.SIGKILL)
        await house.start()
        assert house.status()["models"]["a"]["state"] == "sleeping"
        assert await say(web, "a") == 200
        assert leaders(house) == before


async def test_an_engine_that_does_not_answer_is_ended_not_adopted(
    house: House, web: aiohttp.ClientSession
) -> None:
    house.configure({"a": house.fake()})
    async with running(house):
        assert await say(web, "a") == 200
        pid = leaders(house)["a"]
        await house.stop(signal.SIGKILL)
        os.kill(pid, signal.SIGSTOP)
        await house.start()
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        assert await say(web, "a") == 200
