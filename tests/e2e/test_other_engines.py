"""Models that another server than vLLM serves, behind a real daemon: the same life, the same rules."""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.house import House, chat, running, say, until_state
from tests.e2e.test_vram import GIB, GpuHouse
from tests.gpu.nvml import StubNvml

SERVER = str(Path(__file__).parents[1] / "fakes" / "fake_server.py")


def server(
    house: House, faults: str = "", *words: str, at: str = "--port={port}", **keys: Any
) -> dict[str, Any]:
    """The settings of a model that the stand-in serves."""
    mark = f"--house={house.root}"  # by which the house knows its engines
    command = [sys.executable, "-IS", SERVER, at, f"--faults={faults}", mark, *words]
    return {"engine": "command", "command": command, "gpus": [], **keys}


async def refused(web: aiohttp.ClientSession, model: str) -> tuple[int, str, str]:
    async with web.post("/v1/chat/completions", json=chat(model)) as answer:
        error = (await answer.json())["error"]
        return answer.status, error["code"], error["message"]


async def stats(house: House, model: str) -> dict[str, Any]:
    """What the server saw, asked behind the daemon's back."""
    port = json.loads((house.root / "runtime" / "engines" / f"{model}.json").read_text())["port"]
    async with aiohttp.ClientSession() as web, web.get(f"http://127.0.0.1:{port}/fake/stats") as answer:
        found: dict[str, Any] = await answer.json()
        return found


async def test_it_starts_with_its_first_request_and_serves_as_any_model(
    house: House, web: aiohttp.ClientSession
) -> None:
    house.configure(
        {
            "plain": server(house, aliases=["p"]),
            "named": server(house, source="org/its-own:name", max_model_len=4096),
            "socket": server(house, at="--socket={socket}"),
        }
    )
    async with running(house):
        async with web.get("/v1/models") as answer:
            listed = {entry["id"]: entry.get("max_model_len") for entry in (await answer.json())["data"]}
        assert listed == {"plain": None, "p": None, "named": 4096, "socket": None}
        assert house.engines() == []
        assert await say(web, "plain") == "I am plain."
        assert await say(web, "p") == "I am plain."
        assert await say(web, "named") == "I am org/its-own:name."
        assert await say(web, "socket") == "I am socket."
        async with web.post("/named/v1/chat/completions", json=chat("any", stream=True)) as answer:
            assert answer.headers["X-LLM-Model"] == "named"
            text = await answer.text()
        assert "org/its-own:name." in text
        assert text.endswith("data: [DONE]\n\n")
        assert "loading the model" in house.cli("logs", "plain").stdout
        assert house.status()["models"]["plain"]["tools"] == "auto"
        house.cli("stop", "plain")
        await until_state(web, "plain", "stopped")
        assert house.cli("start", "plain").returncode == 0


async def test_tools_pass_and_keys_do_not(house: House, web: aiohttp.ClientSession) -> None:
    house.environ["UPSTREAM_SECRET"] = "s3cret"
    house.configure({"plain": server(house)})
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    async with running(house):
        async with web.post(
            "/v1/chat/completions",
            json=chat("plain", tools=tools),
            headers={"Authorization": "Bearer sk-client"},
        ) as answer:
            assert answer.status == 200
        saw = await stats(house, "plain")
        [request] = saw["requests"]
        assert request["body"]["tools"] == tools
        assert "sk-client" not in str(saw)
        assert "s3cret" not in str(saw)


async def test_it_outlives_a_daemon_that_is_killed(house: House, web: aiohttp.ClientSession) -> None:
    house.configure({"plain": server(house)})
    async with running(house):
        assert await say(web, "plain") == "I am plain."
        pid = (await stats(house, "plain"))["pid"]
        await house.stop(signal.SIGKILL)
        await house.start()
        assert house.status()["models"]["plain"]["state"] == "ready"
        assert await say(web, "plain") == "I am plain."
        saw = await stats(house, "plain")
        assert (saw["pid"], len(saw["requests"])) == (pid, 2)


async def test_it_dies_and_comes_back(house: House, web: aiohttp.ClientSession) -> None:
    house.configure({"plain": server(house, "dies_before_first_byte", restart={"backoff": "100ms..1s"})})
    async with running(house):
        assert (await refused(web, "plain"))[:2] == (502, "engine_crashed")
        await until_state(web, "plain", "backoff")
        assert (await refused(web, "plain"))[:2] == (502, "engine_crashed")


async def test_one_that_nobody_uses_is_ended(house: House, web: aiohttp.ClientSession) -> None:
    house.configure({"plain": server(house, idle={"stop_after": "300ms"})})
    async with running(house):
        assert await say(web, "plain") == "I am plain."
        await until_state(web, "plain", "stopped")
        assert house.engines() == []


async def test_one_that_never_listens_is_given_up(house: House, web: aiohttp.ClientSession) -> None:
    house.configure({"plain": server(house, "never_listens,leaves_grandchild", stall_timeout="500ms")})
    async with running(house):
        before = time.monotonic()
        status, code, _ = await refused(web, "plain")
        assert (status, code) == (503, "start_timeout")
        assert time.monotonic() - before < 10


async def test_a_program_that_is_not_there_disables_that_model_alone(
    house: House, web: aiohttp.ClientSession
) -> None:
    house.configure(
        {"none": {"engine": "command", "command": ["no-such-server", "{port}"]}, "plain": server(house)}
    )
    checked = house.cli("check", check=False)
    assert checked.returncode == 1
    [bad] = [line for line in checked.stdout.splitlines() if line.startswith("bad")]
    assert "models.none" in bad
    assert "cannot find the program no-such-server in" in bad
    assert house.cli("pull", "--all").returncode == 0
    async with running(house):
        status, code, message = await refused(web, "none")
        assert (status, code) == (503, "start_failed")
        assert "cannot find the program no-such-server" in message
        assert await say(web, "plain") == "I am plain."


async def test_a_changed_command_is_another_engine_and_a_changed_name_of_the_model_is_not(
    house: House, web: aiohttp.ClientSession
) -> None:
    house.configure({"plain": server(house)})
    async with running(house):
        await say(web, "plain")
        first = (await stats(house, "plain"))["pid"]
        house.configure({"plain": server(house, source="other", health="/health")})
        house.cli("reload")
        assert await say(web, "plain") == "I am other."
        assert (await stats(house, "plain"))["pid"] == first
        house.configure({"plain": server(house, "", "--more")})
        house.cli("reload")
        assert await say(web, "plain") == "I am plain."
        assert (await stats(house, "plain"))["pid"] != first


# ---- hanging -----------------------------------------------------------------------------------------------

QUICK = {"drain_timeout": "200ms"}


@pytest.mark.parametrize(("asked", "expected"), [("any", (200, "spare")), ("slow", (502, "slow"))])
async def test_one_that_freezes_is_ended_and_the_request_goes_on(
    house: House, web: aiohttp.ClientSession, asked: str, expected: tuple[int, str]
) -> None:
    restart = {"backoff": "1m..1m"}
    house.configure(
        {"slow": server(house, "slow=60", stall_timeout="1s", restart=restart), "spare": server(house)},
        server=QUICK,
        **{"routes.any": {"members": ["slow", "spare"], "policy": "warm"}},
    )
    async with running(house):
        await asyncio.to_thread(house.cli, "start", "slow")
        asking = asyncio.create_task(web.post("/v1/chat/completions", json=chat(asked)))
        async with asyncio.timeout(10):
            while not (found := await stats(house, "slow"))["requests"] or found["health_asked"] < 5:
                await asyncio.sleep(0.02)
        os.kill(found["pid"], signal.SIGSTOP)
        answer = await asyncio.wait_for(asking, 10)
        assert (answer.status, answer.headers["X-LLM-Model"]) == expected
        assert "slow hangs: 1 request in flight and not one token for 1 s" in house.log
        await until_state(web, "slow", "backoff")


async def test_one_that_cannot_answer_while_it_works_is_left_to_its_work(
    house: House, web: aiohttp.ClientSession
) -> None:
    house.configure({"slow": server(house, "slow=3,one_at_a_time", stall_timeout="500ms")}, server=QUICK)
    async with running(house):
        assert await say(web, "slow") == "I am slow."
        assert "hangs" not in house.log


# ---- on GPUs -----------------------------------------------------------------------------------------------


@pytest.fixture
async def gpus(house: House, web: aiohttp.ClientSession) -> GpuHouse:
    nvml = StubNvml(house.root)
    house.environ |= nvml.environ
    return GpuHouse(house, nvml, web)


def on_gpu(house: GpuHouse, name: str, fake: str = "", *, mib: int, **keys: Any) -> dict[str, Any]:
    """The fake vLLM, which holds memory of the stub's GPUs, as one more server with a command."""
    model = house.fake(fake, mib=mib, **keys)
    program = str(Path(str(model.pop("venv")["path"])) / "bin" / "vllm")  # type: ignore[index]
    command = [program, "serve", "x", "--uds", "{socket}", "--served-model-name", "{model}", "{gpus}"]
    return model | {"engine": "command", "command": command, "source": name}


async def test_it_has_the_whole_budget_until_it_is_measured_and_makes_room(gpus: GpuHouse) -> None:
    models = {
        "a": on_gpu(gpus, "a", mib=4 * 1024, gpus=[0]),
        "b": on_gpu(gpus, "b", mib=2 * 1024, gpus=[0], vram="8GiB"),
    }
    gpus.house.configure(models)
    assert "a" in gpus.house.cli("plan").stdout
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        budget = (await gpus.look())["gpus"][0]["budget_bytes"]
        assert (await gpus.look())["models"]["a"]["grant_bytes"] == [budget]
        assert gpus.argv("a")[-1] == "0"
        await gpus.until(lambda status: status["models"]["a"]["used_bytes"] == [4 * GIB])
        assert (await gpus.say("b"))[0] == 200  # which takes its place
        assert (await gpus.look())["models"]["a"]["state"] == "stopped"
        assert (await gpus.say("a"))[0] == 200  # beside it, now that it is known what it takes
        status = await gpus.look()
        assert status["models"]["b"]["state"] == "ready"
        assert status["models"]["a"]["grant_bytes"] == [4 * GIB]


async def test_gpu_memory_that_runs_out_is_no_reason_for_a_loop(gpus: GpuHouse) -> None:
    restart = {"tries": 1, "backoff": "50ms..50ms"}
    gpus.house.configure({"a": on_gpu(gpus, "a", "oom_always", mib=1, gpus=[0], restart=restart)})
    async with running(gpus.house):
        for _ in range(2):
            status, error = await gpus.say("a")
            assert (status, error["code"]) == (503, "start_failed")
            assert "ran out of GPU memory" in error["message"]
        found = await gpus.state("a", "failed")
        assert found["state"] == "failed"
        assert "max-num-seqs" not in gpus.house.log
        assert not [each for each in gpus.house.engines() if each.pid != os.getpid()]
