"""A daemon that has another unit fetch: first requests, failures, and restarts in the middle of it."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from supervisord_llm.provision.fetch_unit import VARIABLE
from tests.e2e.house import House, chat, running, until
from tests.e2e.test_provisioning import provisioned
from tests.fakes.fetch_socket import FetchSocket, listening
from tests.provision.hub import FIRST, Hub, serving

Ask = Callable[[], "asyncio.Task[tuple[int, dict[str, Any]]]"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as served:
        yield served


@pytest.fixture
def unit(house: House, hub: Hub) -> Iterator[FetchSocket]:
    """A house whose daemon reaches no hub, and a unit beside it that does."""
    keys = {"restart": {"backoff": "100ms..1s", "tries": 9}, "venv": {"path": str(house.root / "venv")}}
    house.configure({"tiny": provisioned(house, hub, **keys)})
    hub.break_after = 8
    patient = {"HF_HUB_DOWNLOAD_TIMEOUT": "60"}
    with listening(house.root / "fetch.sock", house.config, house.environ | patient) as unit:
        house.environ |= {VARIABLE: str(unit.path), "HF_ENDPOINT": "http://127.0.0.1:9"}
        yield unit


@pytest.fixture
async def ask(web: aiohttp.ClientSession) -> AsyncIterator[Ask]:
    """Asks the model in the background: the status and the body of the answer."""
    asked: list[asyncio.Task[Any]] = []

    async def post() -> tuple[int, dict[str, Any]]:
        async with web.post("/v1/chat/completions", json=chat("tiny")) as answer:
            return answer.status, await answer.json()

    def begin() -> "asyncio.Task[tuple[int, dict[str, Any]]]":
        asked.append(asyncio.create_task(post()))
        return asked[-1]

    yield begin
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def downloading(hub: Hub) -> None:
    """Wait until the weights stopped coming."""
    await until(lambda: any("GET" in one and one.endswith("safetensors") for one in hub.requests))


def go_on(hub: Hub) -> None:
    hub.faults.clear()
    hub.released.set()


async def test_the_first_request_is_answered_and_progress_is_seen(
    house: House, unit: FetchSocket, hub: Hub, ask: Ask
) -> None:
    endpoint = house.environ["HF_ENDPOINT"]
    house.configure({"tiny": provisioned(house, hub)})  # the venv, too
    house.environ["HF_ENDPOINT"] = endpoint
    async with running(house):
        status, answer = await ask()
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "I am tiny.")
        assert len(unit.started) == 1
        phases = [entry["message"] for entry in house.entries() if "preparing tiny" in entry["message"]]
        assert any("weights: " in phase for phase in phases)
        assert any("venv: " in phase for phase in phases)
        assert (house.root / "state/venvs/tiny/bin/vllm").exists()
    assert "llm-supervisor pull tiny" not in house.cli("check", check=False).stdout


async def test_what_the_unit_cannot_have_is_told_the_client_and_tried_again(
    house: House, unit: FetchSocket, hub: Hub, ask: Ask
) -> None:
    async with running(house):
        hub.faults.add("down")
        status, answer = await ask()
        assert (status, answer["error"]["code"]) == (503, "start_failed")
        assert hub.url in answer["error"]["message"]
        hub.faults.clear()
        status, _ = await ask()
        assert status == 200


async def test_a_fetch_that_dies_is_a_503_that_can_be_tried_again(
    house: House, unit: FetchSocket, hub: Hub, ask: Ask
) -> None:
    hub.faults.add("hang")
    async with running(house):
        asked = ask()
        await downloading(hub)
        unit.kill()
        status, answer = await asked
        assert (status, answer["error"]["code"]) == (503, "start_failed")
        assert "ended without an answer; journalctl" in answer["error"]["message"]
        go_on(hub)
        status, _ = await ask()
        assert status == 200


async def test_without_the_socket_the_message_says_what_to_start(house: House, hub: Hub, ask: Ask) -> None:
    house.configure({"tiny": provisioned(house, hub)})
    house.environ[VARIABLE] = str(house.root / "nobody.sock")
    async with running(house):
        status, answer = await ask()
        assert status == 503
        assert "systemctl start llm-supervisor-fetch.socket" in answer["error"]["message"]
        assert hub.requests == [], "the daemon asked by itself"


@pytest.mark.parametrize("how", ["killed", "restarted"])
async def test_a_fetch_outlives_the_daemon_and_its_successor_joins_it(
    house: House, unit: FetchSocket, hub: Hub, ask: Ask, how: str
) -> None:
    hub.faults.add("hang")
    await house.start()
    asked = ask()
    await downloading(hub)
    assert house.process is not None
    if how == "killed":
        house.process.kill()
        house.process.wait()
    else:
        house.process.send_signal(signal.SIGUSR1)
        asked.cancel()  # or the daemon would wait for it
        assert await house.stop() == 0
    with contextlib.suppress(aiohttp.ClientError, asyncio.CancelledError):
        await asked
    async with running(house):
        asked = ask()
        await until(lambda: len(unit.started) == 2)
        assert unit.started[0].poll() is None
        go_on(hub)
        status, _ = await asked
        assert status == 200
        assert unit.started[0].wait(5) == 0
        assert sum("safetensors" in one and "GET" in one for one in hub.requests) == 2, "twice: broken once"


async def test_a_stop_of_the_model_or_of_the_daemon_ends_the_fetch(
    house: House, unit: FetchSocket, hub: Hub, ask: Ask
) -> None:
    hub.faults.add("hang")
    async with running(house):
        for stop in (lambda: house.cli("stop", "tiny"), None):
            hub.requests.clear()
            asked = ask()
            await downloading(hub)
            if stop is not None:
                await asyncio.to_thread(stop)
            else:
                assert await house.stop() == 0
            await until(lambda: not unit.running)
            with contextlib.suppress(aiohttp.ClientError):
                await asked
    assert not (house.root / "state/weights/tiny.json").exists()
    assert list((house.root / "state/hub").rglob("*.incomplete")) == []


async def test_a_client_that_leaves_does_not_end_it(
    house: House, unit: FetchSocket, hub: Hub, ask: Ask
) -> None:
    hub.faults.add("hang")
    async with running(house):
        asked = ask()
        await downloading(hub)
        asked.cancel()
        await until(lambda: house.status()["models"]["tiny"]["waiting"] == 0)
        go_on(hub)
        await until(lambda: (house.root / "state/weights/tiny.json").exists())
        assert (await ask())[0] == 200


async def test_a_file_that_says_something_else_by_now_is_told(
    house: House, unit: FetchSocket, hub: Hub, ask: Ask
) -> None:
    async with running(house):
        house.config.write_text(house.config.read_text().replace(FIRST, "2" * 40))
        status, answer = await ask()
        assert status == 503
        assert "run llm-supervisor reload" in answer["error"]["message"]
        house.cli("reload")
        assert (await ask())[0] in (200, 503)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nobody", "the configuration has no such model"),
        ("../tiny", "the configuration has no such model"),
        ('{"source": "evil/model"}', "the configuration has no such model"),
        ("", "the configuration has no such model"),
        ("x" * 70_000, "the configuration has no such model"),
    ],
)
async def test_nothing_but_a_name_of_the_configuration_is_taken(
    house: House, unit: FetchSocket, hub: Hub, line: str, complaint: str
) -> None:
    reader, writer = await asyncio.open_unix_connection(unit.path)
    with contextlib.suppress(OSError):
        writer.write(line.encode() + b"\n")
        told = [json.loads(each) async for each in reader]
        assert [complaint in one["error"] for one in told] == [True]
    writer.close()
    assert unit.started[0].wait(5) == 1
    assert hub.requests == []


async def test_an_invalid_configuration_is_told(house: House, unit: FetchSocket, ask: Ask) -> None:
    async with running(house):
        house.config.write_text(house.config.read_text() + "max_concurent = 3\n")
        status, answer = await ask()
        assert status == 503
        assert "the configuration is invalid" in answer["error"]["message"]
        assert "max_concurrent" in answer["error"]["message"]
        assert [each.wait(5) for each in unit.started] == [1]
