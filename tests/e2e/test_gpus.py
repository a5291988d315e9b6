"""The daemon on a host with two GPUs, as far as a stub of NVML can be one: 24 and 8 GiB, budgets of 90%."""

import asyncio

import aiohttp
import pytest

from tests.e2e.house import House, chat, running
from tests.gpu.nvml import compile_stub


@pytest.fixture
def gpu_house(house: House) -> House:
    (house.root / "lib").mkdir()
    compile_stub(house.root / "lib")
    house.environ |= {"LD_LIBRARY_PATH": str(house.root / "lib")}
    return house


async def say(web: aiohttp.ClientSession, model: str) -> int:
    async with web.post("/v1/chat/completions", json=chat(model)) as answer:
        await answer.read()
        return answer.status


async def launched(house: House, model: str) -> dict[str, object]:
    """How the fake engine was started, asked behind the daemon's back."""
    socket = house.root / "runtime" / "engines" / f"{model}.sock"
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as engine,
        engine.get("http://engine/fake/stats") as answer,
    ):
        stats: dict[str, object] = await answer.json()
        return stats


async def test_an_engine_is_pinned_and_told_its_grant_as_its_own_limit(
    gpu_house: House, web: aiohttp.ClientSession
) -> None:
    gpu_house.configure(
        {
            "one": gpu_house.fake(gpus=[1], vram="4GiB"),
            "two": gpu_house.fake(gpus=[0], vram="6GiB"),
            "both": gpu_house.fake(gpus=[0, 1], vram="25%", tensor_parallel=2, min_residency="0s"),
        }
    )
    async with running(gpu_house):
        assert [await say(web, model) for model in ("one", "two", "both")] == [200, 200, 200]
        for model, gpus, fraction in (
            ("one", "1", "0.5000"),
            ("two", "0", "0.2500"),
            ("both", "0,1", "0.2500"),
        ):
            stats = await launched(gpu_house, model)
            argv, env = stats["argv"], stats["env"]
            assert isinstance(argv, list)
            assert isinstance(env, dict)
            assert env["CUDA_VISIBLE_DEVICES"] == gpus
            assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
            assert env["HF_HUB_OFFLINE"] == "1"
            assert argv[argv.index("--gpu-memory-utilization") + 1] == fraction
            assert "--kv-cache-memory-bytes" not in argv
        held = [gpu["held_bytes"] for gpu in gpu_house.status()["gpus"]]
        assert held == [12 * 1024**3, 6 * 1024**3]


async def test_an_idle_engine_makes_room_and_a_busy_one_does_not(
    gpu_house: House, web: aiohttp.ClientSession
) -> None:
    slow = {"FAKE_TOKENS_PER_S": "10"}
    gpu_house.configure(
        {
            "old": gpu_house.fake(gpus=[0], vram="15GiB", min_residency="0s", env=slow),
            "new": gpu_house.fake(gpus=[0], vram="15GiB", min_residency="0s"),
        }
    )
    async with running(gpu_house):
        body = chat("old", stream=True, ignore_eos=True, max_tokens=15)
        async with web.post("/v1/chat/completions", json=body) as answer:
            await answer.content.readany()
            waiter = asyncio.create_task(say(web, "new"))
            async with asyncio.timeout(5):
                while gpu_house.status()["models"]["new"]["state"] != "queued":
                    await asyncio.sleep(0.02)
            assert "in use by 1 request" in gpu_house.status()["models"]["new"]["phase"]
            assert (await answer.text()).endswith("data: [DONE]\n\n"), "the busy engine was left alone"
        assert await waiter == 200
        assert gpu_house.status()["models"]["old"]["state"] == "stopped"
        assert "stops old, idle, to make room for new" in gpu_house.cli("events").stdout


async def test_what_can_never_run_here_is_refused_alone_and_named_by_check(
    gpu_house: House, web: aiohttp.ClientSession
) -> None:
    gpu_house.configure(
        {
            "large": gpu_house.fake(gpus=[1], vram="20GiB"),
            "elsewhere": gpu_house.fake(gpus=[3]),
            "fine": gpu_house.fake(gpus=[1], vram="4GiB"),
        }
    )
    async with running(gpu_house):
        for model, figure in (("large", "needs 20.0 GiB of a budget of 7.2 GiB"), ("elsewhere", "no GPU 3")):
            async with web.post("/v1/chat/completions", json=chat(model)) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"]) == (503, "no_vram")
                assert figure in error["message"]
        assert await say(web, "fine") == 200
        checked = gpu_house.cli("check", check=False)
        assert checked.returncode == 1
        assert "models.elsewhere" in checked.stdout
        assert "models.large" in checked.stdout
