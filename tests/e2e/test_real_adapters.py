"""A real LoRA adapter on a real vLLM: base and adapter answer from one engine, each in its own words."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.house import House, chat, running
from tests.e2e.real_engine import RealEngine
from tests.e2e.tiny_adapter import said_by_adapter, write_tiny_adapter

pytestmark = pytest.mark.slow

FLAGS = {"max-model-len": 2048, "enforce-eager": True, "distributed-executor-backend": "uni"}


@pytest.fixture
async def adapted(house: House, real_engine: RealEngine) -> AsyncIterator[House]:
    """A daemon with the tiny model and its adapter."""
    adapter = write_tiny_adapter(house.root / "every-other", real_engine.model, real_engine.phrase)
    tiny = {
        "source": str(real_engine.model),
        "gpus": [],
        "vram": "64MiB",
        "flags": FLAGS,
        "env": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"},
    }
    every_other = {"adapter_of": "tiny", "source": str(adapter), "aliases": ["other"]}
    paths = {"state": str(real_engine.state), "cache": str(real_engine.cache)}
    house.configure({"tiny": tiny, "every-other": every_other}, paths=paths)
    async with running(house):
        yield house


async def test_base_and_adapter_answer_differently(
    adapted: House, real_engine: RealEngine, web: aiohttp.ClientSession
) -> None:
    async def say(model: str, path: str = "") -> tuple[str, str]:
        body = chat(model) if model else {key: value for key, value in chat("").items() if key != "model"}
        async with web.post(f"{path}/v1/chat/completions", json=body) as answer:
            told = await answer.json()
            assert answer.status == 200, f"{told}\n{adapted.cli('logs', 'tiny', '-n', '60').stdout}"
            return told["choices"][0]["message"]["content"], told["model"]

    base, other = real_engine.phrase, said_by_adapter(real_engine.phrase)
    assert base != other
    assert await say("every-other") == (other, "every-other")
    assert await say("tiny") == (base, "tiny")
    assert await say("other") == (other, "every-other")
    assert await say("", "/every-other") == (other, "every-other")
    async with web.post("/v1/chat/completions", json=chat("other", stream=True)) as answer:
        streamed = await answer.text()
    assert '"model":"every-other"' in streamed
    shown = Path(f"/proc/{adapted.engines()[0].pid}/cmdline").read_text().split("\0")
    assert "--enable-lora" in shown
