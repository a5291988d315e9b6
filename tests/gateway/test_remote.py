"""Requests to an API elsewhere: what it gets, what comes back, and what becomes of its failures."""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from supervisord_llm.config.model import Client, Model, Rate, RequestPolicy
from supervisord_llm.core.state import State
from supervisord_llm.engines.remote import FAILURES
from supervisord_llm.gateway.inference import waiting
from supervisord_llm.gateway.limits import rates
from tests.fakes import fake_provider
from tests.fakes.fake_provider import KEY, Answer, FakeProvider, fails, provider
from tests.gateway.conftest import CHAT, Build, House, client, config, key, model
from tests.gateway.test_websocket import echo

PERSONAL = {
    "Cookie": "session=secret-cookie",
    "X-Forwarded-For": "192.168.7.7",
    "X-Real-Ip": "192.168.7.7",
    "Forwarded": "for=192.168.7.7",
    "User-Agent": "someone/1.0",
    "X-OpenWebUI-User-Name": "Ada",
    "X-OpenWebUI-User-Email": "ada@example.org",
    "X-OpenWebUI-Chat-Id": "chat-77",
    "X-Session-Id": "session-77",
    "X-LLM-While-Waiting": "progress",
    "X-Stainless-OS": "Linux",
    "X-Api-Key": "key-a",
    "X-Their-Secret": "s",
    "Referer": "http://intranet/",
    "Accept-Language": "de",
}


def grok(fake: FakeProvider, **fields: Any) -> Model:
    given = {"source": "grok-4", "engine": "remote", "url": fake.url, "key": KEY, "gpus": ()}
    return model("grok", **(given | {"aliases": ("g",), "stall_timeout_s": 5.0} | fields))


@asynccontextmanager
async def house_of(
    build: Build, answer: Answer | None = None, clients: tuple[Client, ...] = (), **fields: Any
) -> AsyncIterator[tuple[House, FakeProvider]]:
    """A house whose only model is elsewhere."""
    async with provider(answer=answer) as fake, build(config(grok(fake, **fields), clients=clients)) as house:
        yield house, fake


async def ask(house: House, **fields: Any) -> Any:
    return await house.chat(model="grok", **fields)


# --- what it gets ---------------------------------------------------------------------------------


async def test_it_gets_its_own_key_and_name_and_nothing_that_tells_of_the_client(build: Build) -> None:
    async with house_of(build, clients=(client("a"),)) as (house, fake):
        headers = {**key("a"), **PERSONAL, "Anthropic-Version": "1", "X-Request-Id": "r1"}
        answer = await house.chat(model="g", headers=headers)
    assert answer.status == 200
    sent = fake.last.headers
    assert {name: value for name, value in sent.items() if name not in ("accept", "content-length")} == {
        "host": f"127.0.0.1:{fake.port}",
        "authorization": f"Bearer {KEY}",
        "user-agent": sent["user-agent"],
        "content-type": "application/json",
        "accept-encoding": "identity",
        "anthropic-version": "1",
        "x-request-id": "r1",
        "x-llm-hops": "1",
    }
    assert sent["user-agent"].startswith("llm-supervisor/")
    assert fake.last.body == CHAT | {"model": "grok-4"}
    assert fake.last.target == "/v1/chat/completions"


@pytest.mark.parametrize("named", ["grok", "g", None, ""])
async def test_the_body_names_the_model_as_it_is_called_there(build: Build, named: str | None) -> None:
    async with house_of(build) as (house, fake):
        body = {"messages": CHAT["messages"]} | ({} if named is None else {"model": named})
        answer = await house.ask("POST", "/v1/chat/completions", json=body)
        assert (answer.status, fake.last.body["model"]) == (200, "grok-4")
        await house.ask("POST", "/grok/v1/chat/completions", json=body | {"model": "gpt-4o"})
        assert fake.last.body["model"] == "grok-4"


async def test_it_has_no_output_here_to_show(build: Build) -> None:
    async with house_of(build) as (house, _):
        answer = await house.ask("GET", "/admin/logs/g", control=True)
        assert (answer.status, answer.code) == (400, "invalid_request")
        assert "cannot show the logs of grok: it runs on another machine" in answer.json["error"]["message"]


async def test_without_a_key_none_is_sent_and_without_a_source_its_own_name(build: Build) -> None:
    async with provider(key=None) as fake:
        async with build(config(grok(fake, key=None, source="grok"))) as house:
            assert (await ask(house)).status == 200
        assert "authorization" not in fake.last.headers
        assert fake.last.body["model"] == "grok"


async def test_the_usage_of_a_stream_is_asked_for_and_counted_and_no_priority_is_sent(build: Build) -> None:
    async with house_of(build, clients=(client("a", priority=7),)) as (house, fake):
        answer = await ask(house, stream=True, headers=key("a"))
        assert [each["choices"][0]["delta"]["content"] for each in answer.events] == ["hel", "lo"]
        assert fake.last.body == CHAT | {
            "model": "grok-4",
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        assert house.recorder.stats.of("grok")["tokens"] == {"prompt": 3, "completion": 1}


async def test_policies_of_the_model_hold_search_tools_among_them(build: Build) -> None:
    rules = RequestPolicy(
        force={"search_parameters": {"mode": "auto"}, "tools": [{"type": "web_search"}]},
        min={"max_tokens": 100},
        strip=("user",),
    )
    async with house_of(build, request=rules) as (house, fake):
        theirs = {"type": "function", "function": {"name": "f"}}
        again = {"type": "web_search", "user_location": "here"}
        await ask(house, max_tokens=5, user="ada", tools=[theirs, again])
        assert fake.last.body == CHAT | {
            "model": "grok-4",
            "max_tokens": 100,
            "search_parameters": {"mode": "auto"},
            "tools": [theirs, {"type": "web_search"}],
        }
        await ask(house)
        assert fake.last.body["tools"] == [{"type": "web_search"}]


async def test_tools_of_clients_pass_although_no_parser_is_known(build: Build) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    async with house_of(build) as (house, fake):
        await ask(house, tools=tools, tool_choice="required")
        assert fake.last.body["tools"] == tools


async def test_query_strings_pass_without_keys(build: Build) -> None:
    async with house_of(build) as (house, fake):
        query = "?api-version=2024-10-21&key=key-a&API_KEY=k&x=%20a"
        await house.ask("POST", f"/v1/chat/completions{query}", json=CHAT | {"model": "grok"})
        assert fake.last.target == "/v1/chat/completions?api-version=2024-10-21&x=%20a"


async def test_a_form_names_the_model_as_it_is_called_there(build: Build) -> None:
    async with house_of(build, answer=fake_provider.fails(400)) as (house, fake):
        form = aiohttp.FormData()
        form.add_field("model", "grok")
        form.add_field("file", b"RIFF", filename="a.wav", content_type="audio/wav")
        await house.ask("POST", "/v1/audio/transcriptions", data=form)
        assert b'name="model"\r\n\r\ngrok-4\r\n' in fake.last.body
        assert b"RIFF" in fake.last.body


async def test_long_lists_of_embeddings_go_there_in_parts(build: Build) -> None:
    async def embed(request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        data = [{"index": index, "embedding": [0.5]} for index, _ in enumerate(body["input"])]
        return web.json_response({"object": "list", "data": data, "usage": {"total_tokens": len(data)}})

    async with house_of(build, embed, request=RequestPolicy(max_batch=2)) as (house, fake):
        body = {"model": "grok", "input": ["a", "b", "c"]}
        answer = await house.ask("POST", "/v1/embeddings", json=body)
        assert [each["index"] for each in answer.json["data"]] == [0, 1, 2]
        assert [each.body["input"] for each in fake.seen] == [["a", "b"], ["c"]]
        assert {each.body["model"] for each in fake.seen} == {"grok-4"}


async def test_a_websocket_has_its_key_its_name_and_nothing_of_the_client(build: Build) -> None:
    async with (
        house_of(build, echo, clients=(client("a"),)) as (house, _),
        house.http.ws_connect("/v1/realtime?model=g&key=k", headers=key("a") | PERSONAL) as socket,
    ):
        await socket.send_str("target")
        assert await socket.receive_str(timeout=5) == "/v1/realtime?model=grok-4"
        await socket.send_str("headers")
        told = await socket.receive_json(timeout=5)
    assert told["authorization"] == f"Bearer {KEY}"
    assert {name for name in told if name not in ("authorization", "user-agent", "x-request-id")} == {
        "host", "upgrade", "connection", "sec-websocket-version", "sec-websocket-key", "accept",
        "accept-encoding", "x-llm-hops",
    }  # fmt: skip


async def test_a_websocket_that_the_key_does_not_open_is_no_fault_of_the_client(build: Build) -> None:
    async with house_of(build, fails(401)) as (house, _):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await house.http.ws_connect("/v1/realtime?model=grok")
        assert refused.value.status == 502


async def test_websockets_count_like_other_requests(build: Build) -> None:
    async with house_of(build, echo, rate=Rate(1, 3600.0)) as (house, fake):
        async with house.http.ws_connect("/v1/realtime?model=grok") as socket:
            await socket.send_str("target")
            await socket.receive_str(timeout=5)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await house.http.ws_connect("/v1/realtime?model=grok")
        assert refused.value.status == 429
        assert len(fake.seen) == 1


async def test_websockets_that_fail_open_the_circuit_and_their_limit_is_kept(build: Build) -> None:
    async def fail(house: House) -> int:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await house.http.ws_connect("/v1/realtime?model=grok")
        return refused.value.status

    async with house_of(build, fails(429, Retry_After="20")) as (house, fake):
        assert [await fail(house), await fail(house)] == [429, 429]
        assert len(fake.seen) == 1, "it is left alone"
    async with house_of(build, fails(500)) as (house, _):
        assert [await fail(house) for _ in range(FAILURES + 1)] == [502] * FAILURES + [503]
        assert house.state("grok") is State.BACKOFF


# --- what comes back ------------------------------------------------------------------------------


async def test_of_its_headers_only_what_clients_need_comes_back(build: Build) -> None:
    async with house_of(build, fake_provider.telling) as (house, _):
        answer = await ask(house)
    for name in ("Set-Cookie", "Strict-Transport-Security", "Alt-Svc", "OpenAI-Organization"):
        assert name not in answer.headers
    assert "X-RateLimit-Limit-Requests" not in answer.headers
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["X-LLM-Model"] == "grok"


async def test_what_comes_compressed_all_the_same_is_unpacked(build: Build) -> None:
    async with house_of(build, fake_provider.gzipped) as (house, _):
        answer = await ask(house)
    assert answer.json["choices"][0]["message"]["content"] == "hello"
    assert "Content-Encoding" not in answer.headers
    assert house.recorder.stats.of("grok")["tokens"] == {"prompt": 3, "completion": 1}


@pytest.mark.parametrize("status", [400, 404, 422, 501])
async def test_what_is_about_the_request_comes_back_as_it_is(build: Build, status: int) -> None:
    async with house_of(build, fails(status)) as (house, _):
        answer = await ask(house)
        assert (answer.status, answer.json["error"]["message"]) == (status, "provider's own words")
        assert house.state("grok") is State.READY


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_that_quotes_the_key_is_told_without_it(build: Build, stream: bool) -> None:
    async def quotes(request: web.Request) -> web.StreamResponse:
        return fake_provider.failure(400, f"you sent {request.headers['Authorization']}, and a mistake")

    async with house_of(build, quotes) as (house, _):
        answer = await ask(house, stream=stream)
    assert answer.json["error"]["message"] == f"you sent Bearer {'*' * len(KEY)}, and a mistake"


@pytest.mark.parametrize("cut", [1, len(KEY) - 1, len(KEY)])
async def test_a_key_that_comes_in_two_pieces_is_none_that_is_told(build: Build, cut: int) -> None:
    async def quotes(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=400, headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        for piece in (f"no: {KEY[:cut]}", f"{KEY[cut:]} {KEY[:5]}"):
            await response.write(piece.encode())
            await asyncio.sleep(0.05)
        return response

    async with house_of(build, quotes) as (house, _):
        assert (await ask(house)).body == f"no: {'*' * len(KEY)} {KEY[:5]}".encode()


async def test_endpoints_beside_v1_are_not_found_there(build: Build) -> None:
    async with house_of(build) as (house, fake):
        answer = await house.ask("POST", "/tokenize", json={"model": "grok", "prompt": "a"})
        assert (answer.status, fake.last.target) == (404, "/v1/tokenize")
        assert answer.json["error"]["message"] == "no such path: /v1/tokenize"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (301, "it redirects (301), which is not followed; correct `url`"),
        (401, "it does not accept the key (401); check the key"),
        (402, "there is nothing left to pay it with (402); see the account there"),
        (403, "it forbids it to the key (403); check the key"),
        (500, "it answers 500, a fault of its own; try again"),
        (529, "it answers 529, a fault of its own; try again"),
    ],
)
async def test_what_is_for_the_operator_is_a_502_and_its_words_are_in_the_log_alone(
    build: Build, status: int, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def quotes_the_key(request: web.Request) -> web.StreamResponse:
        return fake_provider.failure(status, f"provider's own words about {fake_provider.shown_key(request)}")

    async with house_of(build, quotes_the_key) as (house, fake):
        answer = await ask(house)
        assert (answer.status, answer.code) == (502, "engine_crashed")
        origin = fake.url.removesuffix("/v1")
        assert answer.json["error"]["message"].startswith(f"cannot use grok at {origin}: {expected}")
        assert b"own words" not in answer.body
    assert "provider's own words about" in caplog.text
    assert KEY not in caplog.text


async def test_the_same_after_the_head_of_a_stream_was_sent_is_an_event(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "GRACE_S", 0.01)
    async with house_of(build, fails(401)) as (house, fake):
        fake.probe_s = 0.2
        answer = await ask(house, stream=True)
    assert answer.status == 200
    assert answer.body.startswith(b": keep-alive")
    (error,) = answer.events
    assert error["error"]["code"] == "engine_crashed"


# --- limits ---------------------------------------------------------------------------------------


async def test_its_limit_is_told_and_it_is_left_alone_until_then(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(rates.time, "monotonic", lambda: now)
    async with house_of(build, fails(429, Retry_After="20")) as (house, fake):
        answer = await ask(house)
        assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
        assert answer.headers["Retry-After"] == "20"
        assert "there are too many (429)" in answer.json["error"]["message"]
        fake.answer, now = None, now + 5
        answer = await ask(house)
        assert (answer.status, answer.headers["Retry-After"], len(fake.seen)) == (429, "15", 1)
        now += 15
        assert (await ask(house)).status == 200
        assert house.state("grok") is State.READY


@pytest.mark.parametrize("told", ["Wed, 21 Oct 2099 07:28:00 GMT", "-1", "nan", "", "soon"])
async def test_a_limit_without_a_number_is_passed_on_and_nothing_is_held_back(
    build: Build, told: str
) -> None:
    async with house_of(build, fails(429, Retry_After=told)) as (house, fake):
        for _ in range(2 * FAILURES):
            assert (await ask(house)).status == 429
        assert len(fake.seen) == 2 * FAILURES
        assert house.state("grok") is State.READY


async def test_a_rate_of_the_configuration_holds_across_clients_and_reloads(build: Build) -> None:
    async with house_of(build, rate=Rate(2, 3600.0), clients=(client("a"), client("b"))) as (house, fake):
        assert (await ask(house, headers=key("a"))).status == 200
        assert (await ask(house, headers=key("b"))).status == 200
        house.gateway.configure(house.gateway.settings.config)
        answer = await ask(house, headers=key("a"))
        assert (answer.status, answer.code, len(fake.seen)) == (429, "rate_limit_exceeded", 2)
        assert "as many as its `rate` allows" in answer.json["error"]["message"]
        assert 1700 < int(answer.headers["Retry-After"]) <= 1800


async def test_what_is_refused_here_does_not_count_towards_the_rate(build: Build) -> None:
    async with house_of(build, rate=Rate(1, 3600.0)) as (house, fake):
        assert [(await ask(house, n=10_000)).status for _ in range(2)] == [400, 400]
        assert ((await ask(house)).status, len(fake.seen)) == (200, 1)


async def test_where_nobody_is_any_more_what_has_no_answer_yet_is_given_up(build: Build) -> None:
    async with house_of(build) as (house, fake):
        fake.answer = fake.hangs
        waiting = [asyncio.create_task(ask(house, stream=stream)) for stream in (False, True)]
        while len(fake.seen) < 2:
            await asyncio.sleep(0.01)
        house.gateway.upstreams.lose("grok")
        for answer in await asyncio.wait_for(asyncio.gather(*waiting), 2):
            assert (answer.status, answer.code) == (502, "engine_crashed")


async def test_what_goes_round_in_a_circle_ends(build: Build) -> None:
    async with house_of(build) as (house, fake):
        for told, sent in (("", "1"), ("1", "2"), ("3", "4"), ("-1", "1"), ("x", "1")):
            assert (await ask(house, headers={"X-LLM-Hops": told})).status == 200
            assert fake.last.headers["x-llm-hops"] == sent
        answer = await ask(house, headers={"X-LLM-Hops": "4"})
        assert (answer.status, answer.code, len(fake.seen)) == (502, "engine_crashed", 5)
        assert "came through 4 daemons" in answer.json["error"]["message"]


# --- failures -------------------------------------------------------------------------------------


async def test_one_that_never_answers_is_given_up_and_its_connection_closed(build: Build) -> None:
    async with provider() as fake, build(config(grok(fake, stall_timeout_s=0.2))) as house:
        gone = asyncio.Event()

        async def hangs(request: web.Request) -> web.StreamResponse:
            try:
                return await fake.hangs(request)
            finally:
                gone.set()

        fake.answer = hangs
        answer = await ask(house)
        assert (answer.status, answer.code) == (502, "engine_crashed")
        assert (
            "it has sent nothing for 0.2 s; try again, or raise `stall_timeout`"
            in answer.json["error"]["message"]
        )
        async with asyncio.timeout(5):
            await gone.wait()


async def test_one_that_falls_silent_in_a_stream_ends_it_with_an_error(build: Build) -> None:
    async with provider() as fake, build(config(grok(fake, stall_timeout_s=0.3))) as house:
        fake.answer = fake.streams_on
        answer = await ask(house, stream=True)
        assert answer.status == 200
        assert answer.events[0]["choices"][0]["delta"]["content"] == "one"
        assert "sent nothing for too long" in answer.events[-1]["error"]["message"]


async def test_a_trickle_is_no_silence(build: Build) -> None:
    async def trickles(request: web.Request) -> web.StreamResponse:
        return await fake_provider.stream(request, list("abcdefgh"), pause_s=0.1)

    async with house_of(build, trickles, stall_timeout_s=0.4) as (house, _):
        answer = await ask(house, stream=True)
        assert "".join(each["choices"][0]["delta"]["content"] for each in answer.events) == "abcdefgh"


async def test_a_client_that_leaves_ends_the_request_there(build: Build) -> None:
    async with house_of(build) as (house, fake):
        gone = asyncio.Event()

        async def hangs(request: web.Request) -> web.StreamResponse:
            try:
                return await fake.streams_on(request)
            finally:
                gone.set()

        fake.answer = hangs
        async with house.http.post(
            "/v1/chat/completions", json=CHAT | {"model": "grok", "stream": True}
        ) as reply:
            await reply.content.readany()
        async with asyncio.timeout(5):
            await gone.wait()


async def test_an_oversized_header_is_an_error_of_one_line(build: Build) -> None:
    async def shouts(request: web.Request) -> web.StreamResponse:
        return web.Response(text="{}", headers={"X-Big": "x" * 20_000})

    async with house_of(build, shouts) as (house, _):
        answer = await ask(house)
        assert (answer.status, answer.code) == (502, "engine_crashed")
        assert "what it sends is not HTTP as it should be" in answer.json["error"]["message"]
        assert len(answer.body) < 1000


async def test_the_circuit_opens_is_refused_meanwhile_and_closes_with_one_probe(build: Build) -> None:
    async with house_of(build, fails(503)) as (house, fake):
        for _ in range(FAILURES):
            assert (await ask(house)).status == 502
        await house.until(lambda: house.state("grok") is not State.READY)
        assert len(fake.seen) == FAILURES
        fake.answer = None
        async with asyncio.timeout(5):
            while (answer := await ask(house)).status != 200:
                assert (answer.status, answer.code) == (503, "start_failed")
                assert "Retry-After" in answer.headers
                assert "it answers 503" in answer.json["error"]["message"]
        assert fake.probes == 2


async def test_streams_outlive_the_opening_of_the_circuit(build: Build) -> None:
    async with house_of(build) as (house, fake):
        fake.answer = fake.streams_on
        body = CHAT | {"model": "grok", "stream": True}
        async with house.http.post("/v1/chat/completions", json=body) as reply:
            assert b"one" in await reply.content.readany()
            fake.answer = fails(500)
            for _ in range(FAILURES):
                await ask(house)
            await house.until(lambda: house.state("grok") is not State.READY)
            fake.release.set()
            rest = await reply.content.read()
        assert b"two" in rest
        assert b"[DONE]" in rest
        assert b"error" not in rest


async def test_a_stop_by_hand_holds_until_the_next_request(build: Build) -> None:
    async with house_of(build) as (house, fake):
        assert (await ask(house)).status == 200
        stopped = await house.ask("POST", "/admin/stop", json={"model": "grok"}, control=True)
        assert stopped.status == 200
        assert house.state("grok") is State.STOPPED
        assert (await ask(house)).status == 200
        assert fake.probes == 2


async def test_a_changed_key_is_used_by_the_next_request(build: Build) -> None:
    async with house_of(build) as (house, fake):
        assert (await ask(house)).status == 200
        house.launcher.configure(grok(fake, key="sk-new-key-000000"))
        fake.key = "sk-new-key-000000"
        assert (await ask(house)).status == 200
        assert (fake.probes, len(house.launcher.launches)) == (1, 1)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:1/v1", "nothing listens there"),
        ("http://nowhere.invalid/v1", "its name does not resolve"),
    ],
)
async def test_who_is_not_there_is_told_with_what_to_do(build: Build, url: str, expected: str) -> None:
    async with provider() as fake, build(config(grok(fake, url=url))) as house:
        answer = await ask(house)
        assert (answer.status, answer.code) == (503, "start_failed")
        assert expected in answer.json["error"]["message"]
        assert "; " in answer.json["error"]["message"]
        assert "Retry-After" in answer.headers


async def test_a_certificate_of_an_unknown_authority_gets_no_key(build: Build) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with provider(tls) as fake, build(config(grok(fake))) as house:
        answer = await ask(house)
        assert (answer.status, answer.code) == (503, "start_failed")
        assert "its certificate is not trusted" in answer.json["error"]["message"]
        assert (fake.seen, fake.probes) == ([], 0)


async def test_the_status_of_one_elsewhere_has_no_process_and_no_key(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with house_of(build) as (house, _):
        assert (await ask(house)).status == 200
        pages = [
            "/admin/status",
            "/admin/plan",
            "/admin/explain/grok",
            "/admin/events?follow=0",
            "/v1/models",
            "/metrics",
        ]
        told = [await house.ask("GET", page, control=True) for page in pages]
        assert [each.status for each in told] == [200] * len(pages)
        status = told[0].json["models"]["grok"]
        assert (status["state"], status["engine"], status["has_process"]) == ("ready", "remote", False)
        assert (status["gpus"], status["used_bytes"], status["memory_bytes"]) == ([], None, None)
        listed = told[4].json["data"][0]
        assert listed["id"] == "grok"
        assert KEY not in "".join(each.body.decode() for each in told) + caplog.text
        assert KEY not in repr(house.runtime.fleet) + repr(house.gateway.settings)
