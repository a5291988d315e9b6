"""`llm-supervisor upgrade`: another program takes over in the same process, while clients go on asking."""

import asyncio
import itertools
import json
import os
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.e2e.crowd import crowd, leaders, more, say
from tests.e2e.house import COMMAND, House, chat, free_port, running, until

CLIENTS = 50
PROGRAM = """\
#!{python}
import os, sys
import supervisord_llm
supervisord_llm.__version__ = {version!r}
{more}
from supervisord_llm.cli.main import main
sys.exit(main())
"""


TRIED_UNTIL = """
if "--check" in sys.argv:
    import pathlib, time
    import supervisord_llm.process
    pathlib.Path({file!r} + ".waits").touch()
    while not pathlib.Path({file!r}).exists():
        time.sleep(0.02)
"""
"""Has a program that is tried wait for a file."""


def install(house: House, version: str, more: str = "") -> Path:
    """Put a version of the program where the daemon's command is a link to, and switch the link."""
    file = house.root / f"program-{version}"
    file.write_text(PROGRAM.format(python=sys.executable, version=version, more=more))
    file.chmod(0o755)
    aside = house.root / "llm-supervisor.new"
    aside.symlink_to(file)
    command = house.root / "llm-supervisor"
    aside.replace(command)
    house.command = (str(command),)
    return file


@pytest.fixture
def door(house: House) -> socket.socket:
    """The listening socket that systemd would hold for the daemon."""
    house.inherited = socket.create_server(("127.0.0.1", house.port), backlog=1024)
    return house.inherited


def leader(house: House, model: str) -> int:
    """The pid of its engine's first process."""
    pid: int = json.loads((house.root / "runtime" / "engines" / f"{model}.json").read_text())["pid"]
    return pid


async def upgrade(house: House) -> dict[str, object]:
    done = await asyncio.to_thread(house.cli, "upgrade", "--json")
    found: dict[str, object] = json.loads(done.stdout)
    return found


async def version(web: aiohttp.ClientSession) -> str:
    async with web.get("/healthz") as answer:
        found: str = (await answer.json())["version"]
        return found


class TestUnderLoad:
    """Fifty clients: nobody is refused, no request fails, no model is lost."""

    @pytest.mark.parametrize("how", ["upgrade", "reload", "restart", "kill"])
    async def test_of_short_requests_none_fails(self, house: House, how: str) -> None:
        if how in ("restart", "kill"):  # there, only systemd can hold the port
            house.inherited = socket.create_server(("127.0.0.1", house.port), backlog=1024)
        house.configure({name: house.fake("engine_core", env={"FAKE_TOKENS_PER_S": "200"}) for name in "ab"})
        install(house, "1.0")
        async with running(house):
            async with crowd(house, "a", "b", clients=CLIENTS) as outcomes:
                await more(outcomes)
                before, process = leaders(house), house.process
                for turn in range(2):
                    if how == "upgrade":
                        install(house, f"2.{turn}")
                        assert (await upgrade(house))["to"] == f"2.{turn}"
                    elif how == "reload":
                        await asyncio.to_thread(house.cli, "reload")
                    else:
                        assert house.process is not None
                        if how == "restart":
                            house.process.send_signal(signal.SIGUSR1)
                        await house.stop(signal.SIGKILL if how == "kill" else signal.SIGTERM)
                        await house.start()
                    await more(outcomes)
            assert leaders(house) == before
            assert outcomes["refused"] == 0
            if how == "kill":
                assert set(outcomes) <= {"200", "broken", "refused"}
                assert outcomes["broken"] <= 2 * CLIENTS, "at most what was in flight"
            else:
                assert set(outcomes) == {"200"}, outcomes
            if how in ("upgrade", "reload"):
                assert house.process is process
        if house.inherited is not None:
            house.inherited.close()


class TestTakingOver:
    """What the next program finds as the last one left it."""

    async def test_engines_sockets_and_lock(self, house: House, web: aiohttp.ClientSession) -> None:
        path = house.root / "http.sock"
        house.configure(
            {"a": house.fake(), "b": house.fake(idle={"sleep_level": 1}), "c": house.fake()},
            server={"listen": [f"127.0.0.1:{house.port}", f"unix:{path}"]},
        )
        install(house, "1.0")
        async with running(house):
            for model in "ab":
                assert await say(web, model) == 200
            house.cli("sleep", "b")
            before = leaders(house)
            install(house, "2.0")
            done = await upgrade(house)
            assert done == {"from": "1.0", "to": "2.0", "kept": ["a", "b"], "lost": []}
            assert leaders(house) == before
            status = house.status()
            assert house.process is not None
            assert (status["version"], status["pid"]) == ("2.0", house.process.pid)
            assert {name: model["state"] for name, model in status["models"].items()} == {
                "a": "ready",
                "b": "sleeping",
                "c": "stopped",
            }
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as local:
                assert await version_at(local, "http://x/healthz") == "2.0"
            assert await say(web, "b") == 200
            assert leaders(house) == before
            assert stat.S_IMODE((house.root / "runtime" / "control.sock").stat().st_mode) == 0o660
            second = house.cli("serve", check=False)
            assert f"another llm-supervisor (pid {house.process.pid}) runs" in second.stderr
        assert not (house.root / "runtime" / "control.sock").exists()

    async def test_a_socket_of_systemd(
        self, house: House, web: aiohttp.ClientSession, door: socket.socket
    ) -> None:
        house.configure({"a": house.fake()}, server={"listen": ["127.0.0.1:1"]})
        install(house, "1.0")
        async with running(house):
            assert await say(web, "a") == 200
            before = leaders(house)
            for number in ("2.0", "3.0"):
                install(house, number)
                await upgrade(house)
                assert await version(web) == number
            assert leaders(house) == before
            (pid,) = before.values()
            assert psutil.Process(pid).net_connections("tcp") == [], "the engine does not hold the port"
            words = psutil.Process(pid).environ()
            assert not {"LISTEN_FDS", "LLM_SUPERVISOR_PASSED"} & set(words)
        door.close()

    async def test_other_addresses_take_effect(self, house: House, web: aiohttp.ClientSession) -> None:
        house.configure({"a": house.fake()})
        install(house, "1.0")
        async with running(house):
            other = free_port()
            house.configure({"a": house.fake()}, server={"listen": [f"127.0.0.1:{other}"]})
            await upgrade(house)
            with pytest.raises(aiohttp.ClientConnectorError):
                await version(web)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{other}") as elsewhere:
                assert await version(elsewhere) == "1.0"

    async def test_a_program_run_by_python_is_run_by_python(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"a": house.fake()})
        house.command = COMMAND
        async with running(house):
            assert await say(web, "a") == 200
            assert (await upgrade(house))["kept"] == ["a"]

    async def test_engines_that_end_are_reaped(self, house: House, web: aiohttp.ClientSession) -> None:
        """They stay children of this process, and no object of the last program waits for them any more."""
        house.configure({name: house.fake("engine_core") for name in "abc"})
        install(house, "1.0")
        async with running(house):
            for model in "abc":
                assert await say(web, model) == 200
            pids = {model: leader(house, model) for model in "abc"}
            kill = f"'--check' in sys.argv or (os.kill({pids['a']}, 9), __import__('time').sleep(0.2))"
            install(house, "2.0", more=kill)  # in the very moment between two programs
            done = await asyncio.to_thread(house.cli, "upgrade", check=False)
            assert done.returncode == 1
            assert done.stdout == "1.0 -> 2.0; 2 engines kept: b, c\n"
            assert done.stderr.startswith("1 engine gone: a;")
            os.kill(pids["b"], signal.SIGKILL)
            house.cli("stop", "c")
            async with asyncio.timeout(10):
                while any(psutil.pid_exists(pid) for pid in pids.values()):
                    await asyncio.sleep(0.05)
            assert house.process is not None
            children = psutil.Process(house.process.pid).children()
            assert [child for child in children if child.status() == psutil.STATUS_ZOMBIE] == []
            assert await say(web, "a") == 200


async def version_at(web: aiohttp.ClientSession, url: str) -> str:
    async with web.get(url) as answer:
        found: str = (await answer.json())["version"]
        return found


class TestInFlight:
    """Requests finish first, as far as drain_timeout goes; who comes meanwhile waits."""

    async def test_a_stream_finishes_and_who_comes_meanwhile_is_answered_by_the_next(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"a": house.fake(env={"FAKE_TOKENS_PER_S": "10"})})
        install(house, "1.0")
        async with running(house):
            assert await say(web, "a") == 200
            go = house.root / "go"
            install(house, "2.0", more=TRIED_UNTIL.format(file=str(go)))
            upgrading = asyncio.create_task(upgrade(house))
            await until(lambda: Path(f"{go}.waits").exists())
            body = chat("a", stream=True, ignore_eos=True, max_tokens=20)
            async with web.post("/v1/chat/completions", json=body) as answer:
                await answer.content.readany()
                go.touch()
                await until(lambda: "upgrades from 1.0 to 2.0" in house.log)
                async with aiohttp.ClientSession(house.url) as late:
                    waiting = asyncio.create_task(version(late))
                    assert (await answer.text()).endswith("data: [DONE]\n\n")
                    assert not waiting.done()
                    assert await waiting == "2.0"
            assert (await upgrading)["kept"] == ["a"]

    async def test_a_stream_that_outlasts_the_drain_is_cut(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"a": house.fake(env={"FAKE_TOKENS_PER_S": "10"})}, server={"drain_timeout": "500ms"})
        install(house, "1.0")
        async with running(house):
            body = chat("a", stream=True, ignore_eos=True, max_tokens=5000)
            async with web.post("/v1/chat/completions", json=body) as answer:
                await answer.content.readany()
                assert (await upgrade(house))["kept"] == ["a"]
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.text()

    async def test_a_stop_meanwhile_wins(self, house: House, web: aiohttp.ClientSession) -> None:
        house.configure({"a": house.fake(env={"FAKE_TOKENS_PER_S": "10"})}, server={"drain_timeout": "30s"})
        install(house, "1.0")
        async with running(house):
            body = chat("a", stream=True, ignore_eos=True, max_tokens=50)
            async with web.post("/v1/chat/completions", json=body) as answer:
                await answer.content.readany()
                control = aiohttp.UnixConnector(str(house.root / "runtime" / "control.sock"))
                async with aiohttp.ClientSession(connector=control) as boss:
                    async with boss.post("http://x/admin/upgrade") as begun:
                        assert begun.status == 200, await begun.text()
                    async with boss.post("http://x/admin/upgrade") as again:
                        assert (again.status, (await again.json())["error"]["code"]) == (409, "not_possible")
                assert house.process is not None
                house.process.send_signal(signal.SIGTERM)
                assert (await answer.text()).endswith("data: [DONE]\n\n")
            assert await house.stop() == 0
            assert house.engines() == []
            assert "executes" not in house.log

    async def test_a_stop_in_the_last_moment_wins(self, house: House, web: aiohttp.ClientSession) -> None:
        house.configure({"a": house.fake()})
        install(house, "1.0")
        async with running(house):
            assert await say(web, "a") == 200
            control = aiohttp.UnixConnector(str(house.root / "runtime" / "control.sock"))
            async with (
                aiohttp.ClientSession(connector=control) as boss,
                boss.get("http://x/admin/events"),  # holds it up for a second after the lull
            ):
                async with boss.post("http://x/admin/upgrade") as begun:
                    assert begun.status == 200, await begun.text()
                await asyncio.sleep(1.0)
                assert house.process is not None
                house.process.send_signal(signal.SIGTERM)
            assert await house.stop() == 0
            assert house.engines() == []

    async def test_systemd_hears_signs_of_life_all_the_while(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        path = house.root / "notify.sock"
        said: list[tuple[float, str]] = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(path))
            listener.setblocking(False)

            async def listen() -> None:
                while True:
                    message = await asyncio.get_running_loop().sock_recv(listener, 4096)
                    said.append((time.monotonic(), message.decode()))

            listening = asyncio.create_task(listen())
            house.environ |= {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"}
            house.configure({"a": house.fake(env={"FAKE_TOKENS_PER_S": "10"})})
            install(house, "1.0")
            async with running(house):
                body = chat("a", stream=True, ignore_eos=True, max_tokens=25)
                async with web.post("/v1/chat/completions", json=body) as answer:
                    await answer.content.readany()
                    del said[:]
                    upgrading = asyncio.create_task(upgrade(house))
                    await answer.text()
                    await upgrading
                messages = [message for _, message in said]
            listening.cancel()
        reloading = next(i for i, text in enumerate(messages) if text.startswith("RELOADING=1"))
        assert "STATUS=upgrading to 1.0" in messages[reloading]
        assert any(text.startswith("READY=1") for text in messages[reloading:])
        assert not any("STOPPING" in text for text in messages)
        pings = [(at, text) for at, text in said if text.endswith("WATCHDOG=1")]
        paused = {text.partition("\n")[0] for _, text in pings if text != "WATCHDOG=1"}
        assert paused == {"WATCHDOG_USEC=60000000", "WATCHDOG_USEC=400000"}
        gaps = [
            later - earlier
            for (earlier, text), (later, _) in itertools.pairwise(pings)
            if not text.startswith("WATCHDOG_USEC=60000000")
        ]
        assert max(gaps) < 0.6


class TestRefusal:
    """What cannot take over is found out before anything is given up."""

    async def refused(self, house: House, web: aiohttp.ClientSession, code: int = 1) -> str:
        """What the command says; the daemon goes on as if nothing had been."""
        pids, started_at = leaders(house), house.status()["started_at"]
        done = await asyncio.to_thread(house.cli, "upgrade", check=False)
        assert done.returncode == code, done.stdout
        assert done.stdout == ""
        assert (house.status()["started_at"], leaders(house)) == (started_at, pids)
        assert await version(web) == "1.0"
        assert await say(web, "a") == 200
        return done.stderr

    async def test_of_a_program_that_does_not_run(self, house: House, web: aiohttp.ClientSession) -> None:
        house.configure({"a": house.fake()})
        install(house, "1.0")
        async with running(house):
            assert await say(web, "a") == 200
            install(house, "2.0", more="import no_such_library")
            assert "ModuleNotFoundError: No module named 'no_such_library'" in await self.refused(house, web)
            install(house, "2.1").chmod(0o644)
            assert "cannot be run: Permission denied" in await self.refused(house, web)
            (house.root / "llm-supervisor").unlink()
            assert "cannot be run: No such file or directory" in await self.refused(house, web)

    async def test_of_a_program_to_which_the_configuration_is_invalid(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"a": house.fake()})
        install(house, "1.0")
        async with running(house):
            assert await say(web, "a") == 200
            install(house, "2.0")
            house.configure({"a": house.fake(gpu="x")})
            assert "models.a.gpu" in await self.refused(house, web, code=78)

    async def test_a_program_that_vanishes_in_the_last_moment_leaves_the_old_one_serving(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"a": house.fake()})
        install(house, "1.0")
        async with running(house):
            assert await say(web, "a") == 200
            before = leaders(house)
            house.configure({"a": house.fake(), "b": house.fake()})
            await asyncio.to_thread(house.cli, "reload")
            install(house, "2.0", more="os.chmod(os.path.realpath(sys.argv[0]), 0o644)")
            async with crowd(house, "a", clients=CLIENTS) as outcomes:
                await more(outcomes)
                done = await asyncio.to_thread(house.cli, "upgrade", check=False)
                assert done.returncode == 1
                assert "cannot be executed: Permission denied" in done.stderr
                await more(outcomes)
            assert set(outcomes) == {"200"}
            assert leaders(house) == before
            assert await version(web) == "1.0"
            assert await say(web, "b") == 200, "the configuration in force is the last one"
            before = leaders(house)
            install(house, "2.1")
            assert (await upgrade(house))["to"] == "2.1"
            assert leaders(house) == before
