"""Two real vLLM engines on the CPU as the members of one route, behind the daemon."""

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import openai
import psutil
import pytest

from tests.e2e.house import House
from tests.e2e.real_engine import RealEngine

pytestmark = pytest.mark.slow

CONTEXTS = {"short": 512, "long": 2048}


@pytest.fixture(scope="module")
def house(real_engine: RealEngine) -> Iterator[House]:
    models = {name: real_engine.tiny(length) for name, length in CONTEXTS.items()}
    rules = [{"tokens_over": 200, "use": "long"}]
    route = {"members": list(CONTEXTS), "rules": rules, "sticky": "session"}
    with real_engine.serving(models, **{"routes.tiny": route}) as house:
        yield house


@pytest.fixture
def sdk(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(sdk: openai.OpenAI, prompt: str = "Who are you?", **more: Any) -> tuple[str, str, str]:
    """The member, the reason and the text."""
    with sdk.chat.completions.with_streaming_response.create(
        model="tiny", messages=[{"role": "user", "content": prompt}], **more
    ) as answer:
        told = json.loads(answer.read())
        headers = answer.headers
        text = told["choices"][0]["message"]["content"]
        return headers["x-llm-model"], headers["x-llm-route-reason"], text.strip()


def test_both_members_start_and_answer(house: House, sdk: openai.OpenAI, real_engine: RealEngine) -> None:
    assert next(iter(sdk.models.list())).id == "tiny"
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda prompt: ask(sdk, prompt), ("Who are you?", "What are you?")))
    assert {member for member, _, _ in answers} == set(CONTEXTS)
    assert {text for *_, text in answers} == {real_engine.phrase}


def test_a_long_prompt_goes_to_the_long_context_by_an_exact_count(sdk: openai.OpenAI) -> None:
    member, reason, _ = ask(sdk, "word " * 400, max_tokens=4)
    assert member == "long", reason
    assert re.fullmatch(r"rule 1: \d+ tokens, over 200", reason), "estimated near 512, so counted"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(sdk, "word " * 4000, max_tokens=4)
    assert refused.value.code == "context_length_exceeded"
    assert "2048" in str(refused.value)


def test_a_session_stays_and_a_killed_member_is_replaced(house: House, sdk: openai.OpenAI) -> None:
    session: dict[str, Any] = {"extra_headers": {"X-Session-Id": "s"}}
    member, _, _ = ask(sdk, **session)
    for _ in range(3):
        again, reason, _ = ask(sdk, **session)
        assert (again, "same session" in reason) == (member, True)
    record = json.loads((house.root / "runtime" / "engines" / f"{member}.json").read_text())
    os.kill(record["pid"], signal.SIGSTOP)  # it takes the request and never answers
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, sdk, **session)
        asyncio.run(_until_in_flight(house, member))
        leader = psutil.Process(record["pid"])
        for process in (*leader.children(recursive=True), leader):
            process.kill()
        other, reason, text = asked.result(30)
    assert other == ({*CONTEXTS} - {member}).pop()
    assert reason.startswith(f"try 2, after {member}: engine_crashed")
    assert text
    assert house.status()["routes"]["tiny"]["retries"] == {member: 1}


async def _until_in_flight(house: House, model: str) -> None:
    async with aiohttp.ClientSession(house.url) as http, asyncio.timeout(10):
        while True:
            async with http.get("/health") as answer:
                if (await answer.json())["models"][model]["requests_in_flight"]:
                    return
            await asyncio.sleep(0.02)
