"""A real LoRA adapter on a real vLLM: base and adapter answer from one engine, each in its own words."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.house import House, chat, running
from tests.e2e.real_engine import RealEngine
from tests.e2e.tiny_adapter import said_by_adapter, write_tiny_adapter

pytestmark = pytest.mark.slow


@pytest.fixture
async def adapted(house: House, real_engine: RealEngine) -> AsyncIterator[House]:
    """A daemon with the tiny model and its adapter."""
    adapter = write_tiny_adapter(house.root / "every-other", real_engine.model, real_engine.phrase)
    every_other = {"adapter_of": "tiny", "source": str(adapter), "aliases": ["other"]}
    models = {"tiny": real_engine.tiny(), "every-other": every_other}
    house.configure(models, paths=real_engine.paths)
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
