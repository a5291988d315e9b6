"""What clients see while a model starts."""

import asyncio
import json
from dataclasses import replace

import pytest

from supervisord_llm.config.model import Config, Server
from supervisord_llm.core.events import ConfigChanged
from supervisord_llm.core.fleet import Learnt
from supervisord_llm.core.state import State
from supervisord_llm.errors import ProvisionError
from supervisord_llm.gateway.inference import waiting
from tests.gateway.conftest import CHAT, Build, House, client, config, key, model, running
from tests.gateway.test_relay import EVENTS, HEAD, scripted

STREAM = CHAT | {"stream": True}
ANSWER = HEAD + EVENTS + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "GRACE_S", 0.05)


def waits(house: House, count: int = 1) -> bool:
    return len(house.runtime.fleet.engines["alpha"].waiting) == count


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/alpha/completions"]
)
async def test_a_streaming_client_gets_comments_until_the_model_is_ready(build: Build, path: str) -> None:
    scripts, held = {"alpha": scripted(ANSWER)}, ("alpha",)
    async with (
        build(config(model("alpha")), scripts=scripts, held=held) as house,
        house.http.post(path, json=STREAM) as answer,
    ):
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert answer.headers["X-LLM-Model"] == "alpha"
        assert int(answer.headers["X-LLM-Wait-Ms"]) >= 50
        for _ in range(3):
            assert await answer.content.readexactly(14) == b": keep-alive\n\n"
        house.launcher.held["alpha"].set()
        text = await answer.text()
        assert text.replace(": keep-alive\n\n", "") == "data: [DONE]\n\n"


async def test_an_early_refusal_keeps_its_status(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        house.provisioner.error = ProvisionError("cannot find the weights; run `pull`")
        answer = await house.chat(stream=True)
        assert (answer.status, answer.code) == (503, "start_failed")
        assert "cannot find the weights" in answer.json["error"]["message"]
        assert "X-LLM-Model" in answer.headers
        assert 1 <= int(answer.headers["Retry-After"]) <= 60


@pytest.mark.parametrize(
    ("path", "head"), [("chat/completions", b"data: "), ("messages", b"event: error\ndata: ")]
)
async def test_a_late_refusal_is_an_event(build: Build, path: str, head: bytes) -> None:
    async with build(config(model("alpha")), held=("alpha",)) as house:
        house.provisioner.release = asyncio.Event()
        async with house.http.post(f"/v1/{path}", json=STREAM) as answer:
            beat = waiting.PING if path == "messages" else b": keep-alive\n\n"
            assert await answer.content.readexactly(len(beat)) == beat
            house.provisioner.error = ProvisionError("cannot find the weights; run `pull`")
            house.provisioner.release.set()
            body = (await answer.read()).replace(beat, b"")
        assert body.startswith(head)
        error = json.loads(body.partition(b"data: ")[2])["error"]
        assert "cannot find the weights" in error["message"]
        assert house.recorder.stats.of("alpha")["requests"]["failed"] == 1


async def test_an_error_of_the_engine_after_the_wait_is_an_event(build: Build) -> None:
    body = b'{"error": {"message": "too long",\n"type": "BadRequestError", "param": null, "code": 400}}'
    script = scripted(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    async with (
        build(config(model("alpha")), scripts={"alpha": script}, held=("alpha",)) as house,
        house.http.post("/v1/chat/completions", json=STREAM) as answer,
    ):
        await answer.content.readexactly(14)
        house.launcher.held["alpha"].set()
        text = (await answer.text()).replace(": keep-alive\n\n", "")
    assert text.endswith("\n\n")
    assert json.loads(text.removeprefix("data: ")) == json.loads(body)


async def test_a_client_that_does_not_stream_is_held_silently(build: Build) -> None:
    scripts = {"alpha": scripted(HEAD + b"Content-Length: 2\r\n\r\n{}")}
    async with (
        build(config(model("alpha")), scripts=scripts, held=("alpha",)) as house,
        running(house.chat()) as asked,
    ):
        await house.until(lambda: waits(house))
        await asyncio.sleep(0.2)
        assert not asked.done()
        house.launcher.held["alpha"].set()
        answer = await asked
        assert (answer.status, answer.body) == (200, b"{}")
        assert int(answer.headers["X-LLM-Wait-Ms"]) >= 200


async def test_a_heartbeat_of_zero_holds_streams_silently(build: Build) -> None:
    silent = config(model("alpha"), server=Server(heartbeat_s=0))
    async with (
        build(silent, scripts={"alpha": scripted(ANSWER)}, held=("alpha",)) as house,
        running(house.chat(stream=True)) as asked,
    ):
        await house.until(lambda: waits(house))
        await asyncio.sleep(0.2)
        assert not asked.done()
        house.launcher.held["alpha"].set()
        assert (await asked).body == b"data: [DONE]\n\n"


@pytest.mark.parametrize("stream", [True, False])
async def test_who_leaves_is_out_of_the_queue_and_the_load_goes_on(build: Build, stream: bool) -> None:
    async with build(config(model("alpha")), scripts={"alpha": scripted(ANSWER)}, held=("alpha",)) as house:
        async with running(house.chat(stream=stream)) as leaver, running(house.chat(stream=True)) as stayer:
            await house.until(lambda: waits(house, 2))
            leaver.cancel()
            await house.until(lambda: waits(house, 1))
            house.launcher.held["alpha"].set()
            assert (await stayer).status == 200
        assert house.launcher.launches == ["alpha"]


async def test_the_only_one_who_leaves_does_not_stop_the_load(build: Build) -> None:
    async with build(config(model("alpha")), scripts={"alpha": scripted(ANSWER)}, held=("alpha",)) as house:
        async with running(house.chat(stream=True)):
            await house.until(lambda: house.state("alpha") is State.STARTING)
        await house.until(lambda: waits(house, 0))
        assert house.state("alpha") is State.STARTING
        async with running(house.chat(stream=True)) as retry:
            await house.until(lambda: waits(house))
            house.launcher.held["alpha"].set()
            assert (await retry).status == 200
        assert house.launcher.launches == ["alpha"]


async def test_anthropic_clients_get_the_ping_that_they_know(build: Build) -> None:
    async with (
        build(config(model("alpha")), scripts={"alpha": scripted(ANSWER)}, held=("alpha",)) as house,
        house.http.post("/v1/messages", json=STREAM) as answer,
    ):
        assert await answer.content.readexactly(len(waiting.PING)) == waiting.PING
        house.launcher.held["alpha"].set()
        assert (await answer.read()).replace(waiting.PING, b"") == b"data: [DONE]\n\n"


def wishing(wish: str, by: str) -> tuple[Config, dict[str, str]]:
    """A client that wants something, by its configuration or by a header."""
    if by == "header":
        return config(model("alpha")), {"X-LLM-While-Waiting": wish}
    return config(model("alpha"), clients=(client("webui", while_waiting=(wish,)),)), key("webui")


@pytest.mark.parametrize("by", ["header", "config"])
async def test_a_chat_that_wants_progress_sees_it_as_reasoning_once(build: Build, by: str) -> None:
    configured, headers = wishing("progress", by)
    async with (
        build(configured, scripts={"alpha": scripted(ANSWER)}, held=("alpha",)) as house,
        house.http.post("/v1/chat/completions", json=STREAM, headers=headers) as answer,
    ):
        first = json.loads((await answer.content.readuntil(b"\n\n")).removeprefix(b"data: "))
        assert first["object"] == "chat.completion.chunk"
        assert first["choices"][0]["delta"]["reasoning_content"] == "alpha is starting\n"
        assert await answer.content.readexactly(14) == b": keep-alive\n\n"
        house.launcher.held["alpha"].set()
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")


async def test_other_streams_that_want_progress_see_it_as_comments(build: Build) -> None:
    configured, headers = wishing("progress", "header")
    async with (
        build(configured, scripts={"alpha": scripted(ANSWER)}, held=("alpha",)) as house,
        house.http.post("/v1/completions", json=STREAM, headers=headers) as answer,
    ):
        assert await answer.content.readuntil(b"\n\n") == b": alpha is starting\n\n"
        house.launcher.held["alpha"].set()
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("by", ["header", "config"])
async def test_white_space_comes_before_json_for_those_who_want_it(build: Build, by: str) -> None:
    configured, headers = wishing("white-space", by)
    scripts = {"alpha": scripted(HEAD + b'Content-Length: 11\r\n\r\n{"is": "a"}')}
    async with (
        build(configured, scripts=scripts, held=("alpha",)) as house,
        house.http.post("/v1/chat/completions", json=CHAT, headers=headers) as answer,
    ):
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert await answer.content.readexactly(2) == b"  "
        house.launcher.held["alpha"].set()
        assert json.loads(await answer.read()) == {"is": "a"}


async def test_after_white_space_an_error_is_the_json(build: Build) -> None:
    configured, headers = wishing("white-space", "header")
    async with build(configured, held=("alpha",)) as house:
        house.provisioner.release = asyncio.Event()
        async with house.http.post("/v1/chat/completions", json=CHAT, headers=headers) as answer:
            assert await answer.content.readexactly(1) == b" "
            house.provisioner.error = ProvisionError("cannot find the weights; run `pull`")
            house.provisioner.release.set()
            assert json.loads(await answer.read())["error"]["code"] == "start_failed"
        assert house.recorder.stats.of("alpha")["requests"]["failed"] == 1


@pytest.mark.parametrize(
    ("headers", "patience_s"),
    [
        ({}, None),
        ({"x-stainless-read-timeout": "60"}, 180.0),
        ({"x-stainless-read-timeout": "60.0", "x-stainless-retry-count": "1"}, 120.0),
        ({"x-stainless-read-timeout": "60", "x-stainless-retry-count": "2"}, 60.0),
        ({"x-stainless-read-timeout": "60", "x-stainless-retry-count": "7"}, 60.0),
        ({"x-stainless-timeout": "600", "x-stainless-lang": "js"}, 900.0),
        ({"x-stainless-timeout": "600", "x-stainless-lang": "python"}, 1800.0),
        ({"x-stainless-read-timeout": "None"}, None),
        ({"x-stainless-read-timeout": "nan"}, None),
        ({"x-stainless-read-timeout": "-1"}, None),
        ({"x-stainless-read-timeout": "60", "x-stainless-retry-count": "many"}, None),
    ],
)
def test_patience(headers: dict[str, str], patience_s: float | None) -> None:
    assert waiting.patience(headers) == patience_s


async def test_who_would_give_up_first_is_told_at_once_and_the_load_goes_on(build: Build) -> None:
    hasty = {"x-stainless-read-timeout": "5"}
    async with build(config(model("alpha")), scripts={"alpha": scripted(ANSWER)}, held=("alpha",)) as house:
        known = replace(
            house.runtime.fleet.engines["alpha"].spec, signature="s", learnt=Learnt(start_s=100.0)
        )
        house.runtime.dispatch(ConfigChanged(specs=(known,), gpus=()))
        answer = await house.chat(headers=hasty)
        assert (answer.status, answer.code) == (503, "start_timeout")
        assert "100 s" in answer.json["error"]["message"]
        assert answer.headers["Retry-After"] == "60"
        await house.until(lambda: house.state("alpha") is State.STARTING)
        house.launcher.held["alpha"].set()
        await house.until(lambda: house.state("alpha") is State.READY)
        assert (await house.chat(headers=hasty)).status == 200


async def test_a_stream_is_kept_alive_however_hasty_its_client(build: Build) -> None:
    async with build(config(model("alpha")), scripts={"alpha": scripted(ANSWER)}, held=("alpha",)) as house:
        known = replace(
            house.runtime.fleet.engines["alpha"].spec, signature="s", learnt=Learnt(start_s=100.0)
        )
        house.runtime.dispatch(ConfigChanged(specs=(known,), gpus=()))
        hasty = {"x-stainless-read-timeout": "5"}
        async with house.http.post("/v1/chat/completions", json=STREAM, headers=hasty) as answer:
            assert await answer.content.readexactly(14) == b": keep-alive\n\n"
            house.launcher.held["alpha"].set()
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")
