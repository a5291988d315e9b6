"""A first request to a model of which nothing is there yet: venv and weights are made while it waits."""

import asyncio
import contextlib
import os
from pathlib import Path

import aiohttp

from tests.e2e.house import House, chat, running
from tests.fakes import make_weights
from tests.provision.hub import FIRST, REPO, Hub, serving
from tests.provision.wheels import make_wheel

FAKE = Path(__file__).parent.parent / "fakes" / "fake_vllm.py"


def provisioned(house: House, hub: Hub, **keys: object) -> dict[str, object]:
    """A model from a hub on this machine, served by the fake out of a wheel that real uv installs."""
    make_wheel(house.root / "wheels", "tiny-engine", code=FAKE.read_text())
    hub.commits[FIRST] = {
        path.name: path.read_bytes() for path in make_weights(house.root / "upstream").iterdir()
    }
    house.environ |= hub.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    return {
        "source": REPO,
        "revision": FIRST,
        "gpus": [],
        "venv": {"requirements": ["tiny-engine==1.0"], "find_links": [str(house.root / "wheels")]},
        **keys,
    }


async def test_the_first_request_prepares_reports_and_is_answered(
    house: House, web: aiohttp.ClientSession
) -> None:
    with serving() as hub:
        house.configure({"tiny": provisioned(house, hub)})
        async with running(house):
            answer = asyncio.create_task(web.post("/v1/chat/completions", json=chat("tiny")))
            seen: set[str] = set()
            while not answer.done():
                async with web.get("/healthz") as health:
                    seen.add((await health.json())["routes"]["tiny"]["state"])
                await asyncio.sleep(0.01)
            async with await answer as done:
                assert (await done.json())["choices"][0]["message"]["content"] == "I am tiny."
            assert "preparing" in seen
            phases = [entry for entry in house.entries() if "preparing tiny" in entry["message"]]
            assert phases, "the log tells how far it got"
            assert (house.root / "state/venvs/tiny/bin/vllm").exists()
            assert (house.root / "state/hub").is_dir()


async def test_pull_does_it_ahead_and_an_unreachable_hub_is_a_503_that_can_be_tried_again(
    house: House, web: aiohttp.ClientSession
) -> None:
    with serving() as hub:
        house.configure({"tiny": provisioned(house, hub, restart={"backoff": "100ms..1s", "tries": 9})})
        async with running(house):
            hub.faults.add("down")
            async with web.post("/v1/chat/completions", json=chat("tiny")) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"]) == (503, "start_failed")
                assert hub.url in error["message"]
            hub.faults.clear()
            assert "tiny" in house.cli("pull", "--all").stdout
            requests = len(hub.requests)
            async with web.post("/v1/chat/completions", json=chat("tiny")) as answer:
                assert answer.status == 200
            assert len(hub.requests) == requests, "what was pulled is not asked for again"


async def test_stopping_the_daemon_in_a_download_leaves_nothing_half_made(
    house: House, web: aiohttp.ClientSession
) -> None:
    with serving() as hub:
        model = provisioned(house, hub)
        hub.commits[FIRST]["model.safetensors"] += bytes(32 << 20)
        hub.faults.add("hang")
        house.configure({"tiny": model})
        async with running(house):
            asked = asyncio.create_task(web.post("/v1/chat/completions", json=chat("tiny")))
            async with asyncio.timeout(20):
                while not any("resolve" in request and "safetensors" in request for request in hub.requests):
                    await asyncio.sleep(0.05)
            assert await house.stop() == 0
            with contextlib.suppress(aiohttp.ClientError):
                (await asked).close()
            assert not (house.root / "state/weights/tiny.json").exists()
            assert "the weights" in house.cli("check", check=False).stdout
