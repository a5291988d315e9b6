"""The rules of a model over real HTTP, in front of an engine that tells what it got."""

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

import pytest

from supervisord_llm.config.model import RequestPolicy
from supervisord_llm.gateway import body as bodies
from supervisord_llm.gateway.ports import Facts
from tests.gateway.conftest import CHAT, Build, House, config, model, running

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


async def sent(house: House, name: str = "alpha") -> Any:
    """The body of the last request, as the engine got it."""
    return json.loads((await house.engine_stats(name))["last"]["body"])


def tokens(house: House) -> Any:
    """As they are counted, a moment after the answer."""
    return house.recorder.stats.of("alpha")["tokens"]


async def test_the_engine_gets_what_the_rules_make_of_it(build: Build) -> None:
    rules = RequestPolicy(default={"temperature": 0.5}, max={"max_tokens": 100}, strip=("logit_bias",))
    async with build(config(model("alpha", request=rules, system_prompt="Be brief."))) as house:
        answer = await house.chat(logit_bias={"1": 1}, max_tokens=32_000)
        assert answer.status == 200
        assert await sent(house) == CHAT | {
            "messages": [{"role": "system", "content": "Be brief."}, *CHAT["messages"]],
            "temperature": 0.5,
            "max_tokens": 100,
        }


async def test_a_refusal_names_the_field_and_starts_nothing(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        answer = await house.chat(n=100)
        assert (answer.status, answer.code) == (400, "invalid_request")
        assert answer.json["error"]["param"] == "n"
        assert "max = { n = … }" in answer.json["error"]["message"]
        assert house.launcher.launches == []
        anthropic = await house.chat(path="/v1/messages", chat_template="x")
        assert anthropic.status == 400
        assert anthropic.json["error"]["type"] == "invalid_request_error"


async def test_each_model_has_its_own_rules(build: Build) -> None:
    opened = model("beta", request=RequestPolicy(max={"n": 200}))
    async with build(config(model("alpha"), opened)) as house:
        assert (await house.chat(n=100)).status == 400
        assert (await house.chat(n=100, model="beta")).status == 200
        assert (await house.chat(n=100, path="/beta/v1/chat/completions")).status == 200
        assert await sent(house, "beta") == CHAT | {"n": 100, "model": "beta"}


async def test_usage_is_counted_and_the_client_sees_none(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        plain = await house.chat(stream=True)
        assert all("usage" not in event for event in plain.events)
        assert plain.body.endswith(b'"finish_reason": "stop", "delta": {}}]}\n\ndata: [DONE]\n\n')
        assert (await sent(house))["stream_options"] == {"include_usage": True}
        await house.until(lambda: tokens(house) == {"prompt": 1, "completion": 3})
        asked = await house.chat(stream=True, stream_options={"include_usage": True})
        assert asked.events[-1]["usage"]["total_tokens"] == 4
        await house.until(lambda: tokens(house) == {"prompt": 2, "completion": 6})


@pytest.mark.parametrize(("path", "prompt"), [("/v1/chat/completions", 0), ("/v1/messages", 1)])
async def test_who_leaves_within_a_stream_is_counted_by_its_events(
    build: Build, path: str, prompt: int
) -> None:
    async with build(config(model("alpha")), env={"FAKE_TOKENS_PER_S": "200"}) as house:
        long = CHAT | {"stream": True, "ignore_eos": True, "max_tokens": 2000}
        async with house.http.post(path, json=long) as answer:
            for _ in range(20):
                await answer.content.readuntil(b"\n\n")
        await house.until(lambda: house.recorder.stats.of("alpha")["requests"]["left"] == 1)
        assert 15 <= tokens(house)["completion"] < 200
        assert tokens(house)["prompt"] == prompt


async def test_tools_go_where_the_engine_reads_calls(build: Build) -> None:
    parsers = {"alpha": "hermes", "beta": "", "gamma": ""}
    passing = model("gamma", tools="pass")
    models, facts = (model("alpha"), model("beta"), passing), Facts(tool_parser=parsers.__getitem__)
    async with build(config(*models), facts=facts) as house:
        for name in parsers:
            assert (await house.chat(model=name, tools=[TOOL], tool_choice="auto")).status == 200
        assert (await sent(house, "alpha"))["tools"] == [TOOL]
        assert await sent(house, "beta") == CHAT | {"model": "beta"}
        assert (await sent(house, "gamma"))["tools"] == [TOOL]
        insisting = await house.chat(model="beta", tools=[TOOL], tool_choice="required")
        assert insisting.status == 400
        assert insisting.json["error"]["param"] == "tool_choice"
        assert "tool-call-parser" in insisting.json["error"]["message"]


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_long_lists_of_inputs_are_sent_in_parts(build: Build, encoding: str) -> None:
    alpha = model("alpha", request=RequestPolicy(max_batch=3))
    async with build(config(alpha)) as house:
        body = {"model": "alpha", "input": [f"text {i}" for i in range(8)], "encoding_format": encoding}
        answer = await house.ask("POST", "/v1/embeddings", json=body)
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("application/json")
        assert "Content-Length" not in answer.headers, "that of a part"
        assert [entry["index"] for entry in answer.json["data"]] == list(range(8))
        assert answer.json["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
        assert (await house.engine_stats("alpha"))["batches"] == [3, 3, 2]
        await house.until(lambda: tokens(house)["prompt"] == 8)


async def test_an_error_of_a_part_is_that_of_all(build: Build) -> None:
    async with build(config(model("alpha", request=RequestPolicy(max_batch=2)))) as house:
        body = {"model": "alpha", "input": ["a", "b", "refuse", "d", "e"]}
        answer = await house.ask("POST", "/v1/embeddings", json=body)
        assert answer.status == 400
        assert answer.json["error"]["message"] == "an input is refused"
        assert (await house.engine_stats("alpha"))["batches"] == [2, 2]


async def test_a_body_that_trickles_ends(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a byte comes."""
    monkeypatch.setattr(bodies, "PATIENCE_S", 0.3)
    async with build(config(model("alpha"))) as house:
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        writer.write(head + b"Content-Length: 100000\r\n\r\n{")
        began = time.monotonic()

        async def trickle() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.02)

        async with running(trickle()):
            status = b""
            with suppress(ConnectionError):  # the end may overtake the answer
                status = await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        assert not status or b" 408 " in status
        assert time.monotonic() - began < 3
