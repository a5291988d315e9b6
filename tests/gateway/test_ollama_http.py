"""Ollama's API as its clients meet it: keys, names, streams, waiting, errors."""

import asyncio
import json
from typing import Any

import pytest

from supervisord_llm.core.card import Card
from supervisord_llm.core.state import State
from supervisord_llm.errors import ProvisionError
from supervisord_llm.gateway.ports import Facts
from tests.gateway.conftest import Answer, Build, House, client, config, key, model

ASK: dict[str, Any] = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}
QWEN = Card(model_type="qwen2", precision="awq", inputs=("text", "image"))


def lines(answer: Answer) -> list[Any]:
    return [json.loads(line) for line in answer.body.splitlines()]


async def seen(house: House) -> Any:
    """The body that the engine got: the fake answers "echo" with it."""
    answer = await house.ask("POST", "/api/chat", json=ASK | {"stream": False, "messages": ECHO})
    return json.loads(answer.json["message"]["content"])


ECHO = [{"role": "user", "content": "echo"}]


async def test_a_chat_streams_lines_and_ends_with_the_counts(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        answer = await house.ask("POST", "/api/chat", json=ASK)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        assert answer.headers["X-LLM-Model"] == "alpha"
        *parts, last = lines(answer)
        assert "".join(part["message"]["content"] for part in parts) == "I am alpha."
        assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", 3)
        assert last["total_duration"] >= last["load_duration"] > 0
        assert house.recorder.stats.of("alpha")["tokens"] == {"prompt": 1, "completion": 3}


async def test_one_object_where_no_stream_is_wanted(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        answer = await house.ask("POST", "/api/generate", json={"prompt": "hi", "stream": False})
        assert answer.headers["Content-Type"] == "application/json"
        assert (answer.json["response"], answer.json["done"]) == ("I am alpha.", True)
        raw = await house.ask("POST", "/api/generate", json={"prompt": "hi", "stream": False, "raw": True})
        assert raw.json["response"] == "I am alpha."
        assert (await house.engine_stats("alpha"))["last"]["target"] == "/v1/completions"


async def test_the_body_may_be_called_a_form_as_curl_does(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await house.ask("POST", "/api/chat", data=json.dumps(ASK), headers=form)
        assert answer.status == 200
        headers = dict((await house.engine_stats("alpha"))["last"]["headers"])
        assert headers["content-type"] == "application/json"


@pytest.mark.parametrize("asked", ["alpha", "alpha:latest", "a", "a:latest"])
async def test_the_tag_that_clients_add_is_no_part_of_the_name(build: Build, asked: str) -> None:
    async with build(config(model("alpha", aliases=("a",)), model("beta"))) as house:
        answer = await house.ask("POST", "/api/chat", json=ASK | {"model": asked})
        assert {line["model"] for line in lines(answer)} == {asked}
        assert (await house.ask("POST", "/api/show", json={"model": asked})).status == 200


async def test_a_tag_of_the_configuration_is_part_of_it(build: Build) -> None:
    async with build(config(model("alpha", aliases=("alpha:latest",)), model("beta"))) as house:
        assert (await house.ask("POST", "/api/chat", json=ASK | {"model": "alpha:latest"})).status == 200
        wrong = await house.ask("POST", "/api/chat", json=ASK | {"model": "alpha:7b"})
        assert wrong.status == 404
        assert "did you mean alpha" in wrong.json["error"]


async def test_embeddings_of_both_kinds(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        new = await house.ask("POST", "/api/embed", json={"model": "alpha", "input": ["x", "y"]})
        assert new.json["embeddings"] == [[0.6, 0.8, 0.0]] * 2
        assert new.json["prompt_eval_count"] == 2
        old = await house.ask("POST", "/api/embeddings", json={"model": "alpha", "prompt": "x"})
        assert old.json == {"embedding": [0.6, 0.8, 0.0]}


async def test_while_the_model_loads_nothing_is_sent_that_is_not_json(build: Build) -> None:
    async with build(config(model("alpha")), held=("alpha",)) as house:
        house.provisioner.release = asyncio.Event()
        asking = asyncio.ensure_future(house.ask("POST", "/api/chat", json=ASK))
        await house.until(lambda: len(house.runtime.fleet.engines["alpha"].waiting) == 1)
        house.provisioner.error = ProvisionError("cannot find the weights; run `pull`")
        house.provisioner.release.set()
        answer = await asking
        assert answer.status == 503
        assert "cannot find the weights" in answer.json["error"]
        assert 1 <= int(answer.headers["Retry-After"]) <= 60


async def test_an_engine_that_dies_leaves_a_last_line(build: Build) -> None:
    async with build(config(model("alpha")), env={"FAKE_VLLM": "dies_mid_stream"}) as house:
        *parts, last = lines(await house.ask("POST", "/api/chat", json=ASK))
        assert "".join(part["message"]["content"] for part in parts) == "I am "
        assert last["error"].startswith("cannot finish this answer")


async def test_the_engines_own_refusal_keeps_its_status(build: Build) -> None:
    async with build(config(model("alpha")), env={"FAKE_VLLM": "embeds_only"}) as house:
        answer = await house.ask("POST", "/api/chat", json=ASK)
        assert (answer.status, answer.json) == (404, {"error": "Not Found"})


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/chat", b"{", 400),
        ("POST", "/api/chat", b'{"model": 3}', 400),
        ("POST", "/api/chat", b'{"messages": [{"role": "user", "content": []}]}', 400),
        ("POST", "/api/generate", b'{"prompt": "x", "template": "y"}', 400),
        ("POST", "/api/show", b'{"model": "nope"}', 404),
        ("GET", "/api/chat", b"", 405),
        ("GET", "/api/nope", b"", 404),
        ("POST", "/api/pull", b"{}", 501),
        ("DELETE", "/api/delete", b"{}", 501),
        ("POST", "/api/blobs/sha256:abc", b"", 501),
        ("HEAD", "/api/blobs/sha256:abc", b"", 501),
    ],
)
async def test_mistakes_are_told_in_ollamas_shape(
    build: Build, method: str, path: str, body: bytes, status: int
) -> None:
    async with build(config(model("alpha"))) as house:
        answer = await house.ask(method, path, data=body)
        assert answer.status == status
        if method != "HEAD":
            assert set(answer.json) == {"error"}
            assert answer.json["error"].startswith("cannot ")
        assert house.launcher.launches == []


async def test_keys_count_here_too(build: Build) -> None:
    clients = (client("me", models=("alpha",)),)
    async with build(config(model("alpha"), model("beta"), clients=clients)) as house:
        assert (await house.ask("GET", "/api/version")).status == 200
        for path in ("/api/tags", "/api/ps"):
            refused = await house.ask("GET", path)
            assert (refused.status, set(refused.json)) == (401, {"error"})
        tags = (await house.ask("GET", "/api/tags", headers=key("me"))).json["models"]
        assert [one["model"] for one in tags] == ["alpha"]
        assert (await house.ask("POST", "/api/chat", json=ASK, headers=key("me"))).status == 200
        beta = await house.ask("POST", "/api/chat", json=ASK | {"model": "beta"}, headers=key("me"))
        assert beta.status == 403
        show = await house.ask("POST", "/api/show", json={"model": "beta"}, headers=key("me"))
        assert show.status == 403


async def test_show_tells_what_copilot_asks_for(build: Build) -> None:
    flags = {"max-model-len": 8192, "enable-auto-tool-choice": True, "reasoning-parser": "qwen3"}
    facts = Facts(card=lambda name: QWEN)
    async with build(config(model("alpha", flags=flags)), facts=facts) as house:
        version = (await house.ask("GET", "/api/version")).json["version"]
        assert tuple(map(int, version.split("."))) >= (0, 6, 4)
        shown = (await house.ask("POST", "/api/show", json={"name": "alpha", "verbose": True})).json
        assert shown["capabilities"] == ["completion", "vision", "tools", "thinking"]
        assert shown["model_info"] == {
            "general.architecture": "qwen2",
            "general.basename": "alpha",
            "qwen2.context_length": 8192,
        }
        assert shown["details"]["quantization_level"] == "awq"
        assert house.launcher.launches == []


async def test_ps_lists_what_is_loaded_and_when_it_goes(build: Build) -> None:
    async with build(config(model("alpha", aliases=("a",)), model("beta"))) as house:
        assert (await house.ask("GET", "/api/ps")).json == {"models": []}
        await house.runtime.start("alpha")
        (one,) = (await house.ask("GET", "/api/ps")).json["models"]
        assert (one["model"], one["context_length"]) == ("alpha", 4096)
        assert one["expires_at"] > one["modified_at"]


async def test_a_request_without_a_prompt_loads_the_model_or_lets_it_go(build: Build) -> None:
    clients = (client("me"), client("boss", admin=True))
    async with build(config(model("alpha"), clients=clients)) as house:
        loaded = await house.ask("POST", "/api/generate", json={"model": "alpha"}, headers=key("me"))
        assert (loaded.json["done_reason"], loaded.json["response"]) == ("load", "")
        assert house.state("alpha") is State.READY
        go = {"model": "alpha", "messages": [], "keep_alive": 0}
        assert (await house.ask("POST", "/api/chat", json=go, headers=key("me"))).status == 403
        gone = await house.ask("POST", "/api/chat", json=go, headers=key("boss"))
        assert gone.json["done_reason"] == "unload"
        assert house.state("alpha") is State.STOPPED


async def test_what_the_client_asked_for_reaches_the_engine(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        body = await seen(house)
        assert (body["model"], body["stream"]) == ("alpha", False)
        assert body["messages"] == ECHO
