"""The bytes between client and engine."""

import asyncio
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from supervisord_llm.config.model import Server
from supervisord_llm.errors import Refused
from supervisord_llm.gateway.inference.relay import Upstreams
from supervisord_llm.runtime.ports import Backend
from tests.gateway.conftest import CHAT, Build, config, model

HEAD = b"HTTP/1.1 200 OK\r\n"
EVENTS = b"Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def scripted(answer: bytes, *, then_close: bool = True, seen: list[bytes] | None = None) -> Any:
    """An engine that reads one request and answers these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.append(head)
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if length:
            await reader.readexactly(int(length[0].split(b":")[1]))
        writer.write(answer)
        await writer.drain()
        if then_close:
            writer.close()
        else:
            await reader.read()
            writer.close()

    return serve


async def test_first_request_starts_the_engine_and_is_answered(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        assert house.launcher.launches == []
        answer = await house.chat()
        assert answer.status == 200
        assert answer.json["choices"][0]["message"]["content"] == "I am alpha."
        assert answer.headers["X-LLM-Model"] == "alpha"
        assert int(answer.headers["X-LLM-Wait-Ms"]) > 0
        assert answer.headers["X-Request-Id"].startswith("req_")
        assert answer.headers["Server"] == "llm-supervisor"
        assert "X-LLM-Wait-Ms" not in (await house.chat()).headers
        assert house.launcher.launches == ["alpha"]


async def test_two_hundred_first_requests_make_one_start_and_two_hundred_answers(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        answers = await asyncio.gather(*(house.chat() for _ in range(200)))
        assert [answer.status for answer in answers] == [200] * 200
        assert house.launcher.launches == ["alpha"]


async def test_the_body_reaches_the_engine_byte_for_byte(build: Build) -> None:
    raw = b'{ "model" : "alpha",\n\t"messages":[{"content":"h\\u00e9 \xc3\xa9"}], "x": 1.0e2 }\n'
    headers = {"Content-Type": "application/json"}
    async with build(config(model("alpha"))) as house:
        answer = await house.ask("POST", "/v1/chat/completions?a=%20b", data=raw, headers=headers)
        assert answer.status == 200
        last = (await house.engine_stats("alpha"))["last"]
        assert last["body_sha256"] == hashlib.sha256(raw).hexdigest()
        assert last["target"] == "/v1/chat/completions?a=%20b"


async def test_multipart_reaches_the_engine_byte_for_byte(build: Build) -> None:
    audio = bytes(range(256)) * 20_000
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(audio), filename="speech.wav", content_type="audio/wav")
    form.add_field("model", "beta")
    async with build(config(model("alpha"), model("beta"))) as house:
        answer = await house.ask("POST", "/v1/audio/transcriptions", data=form)
        assert json.loads(answer.json["text"]) == {"file": len(audio), "model": 4}
        assert house.launcher.launches == ["beta"]


async def test_a_stream_passes_byte_for_byte_and_unbuffered(build: Build) -> None:
    """Each part arrives before the engine sends the next one."""
    parts = [
        b": hello\n\n",
        b'data: {"x": "\xc3\xa9"}\n',
        b"\n",
        b"event: odd\r\ndata: 1\r\n\r\n",
        b"data: [DONE]",
    ]
    received = [asyncio.Event() for _ in parts]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + EVENTS)
        for part, event in zip(parts, received, strict=True):
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await event.wait()
        writer.write(b"0\r\n\r\n")
        writer.close()

    async with (
        build(config(model("alpha")), scripts={"alpha": serve}) as house,
        house.http.post("/v1/chat/completions", json=CHAT | {"stream": True}) as answer,
    ):
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert answer.headers["Cache-Control"] == "no-cache"
        for part, event in zip(parts, received, strict=True):
            assert await asyncio.wait_for(answer.content.readexactly(len(part)), 2) == part
            event.set()
        assert await answer.content.read() == b""


async def test_compressed_answers_pass_as_they_are(build: Build) -> None:
    raw = b"\x1f\x8bnot really gzip"
    script = scripted(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 17\r\n\r\n" + raw)
    async with build(config(model("alpha")), scripts={"alpha": script}) as house:
        answer = await house.chat()
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.body == raw


async def test_keys_and_hops_stay_here_in_both_directions(build: Build) -> None:
    seen: list[bytes] = []
    script = scripted(
        HEAD + b"Connection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nServer: uvicorn\r\n"
        b"X-Request-Id: theirs\r\nX-Kept: yes\r\nContent-Length: 2\r\n\r\n{}",
        seen=seen,
    )
    sent = {
        "Authorization": "Bearer secret-1",
        "x-api-key": "secret-2",
        "api-key": "secret-3",
        "Cookie": "session=secret-4",
        "X-Forwarded-For": "10.0.0.1",
        "Forwarded": "for=10.0.0.1",
        "Connection": "X-Private, keep-alive",
        "X-Private": "1",
        "TE": "trailers",
        "X-Request-Id": "mine-1",
        "X-Custom": "kept",
    }
    async with build(config(model("alpha")), scripts={"alpha": script}) as house:
        answer = await house.chat(headers=sent)
        assert answer.headers["X-Request-Id"] == "mine-1"
        assert answer.headers["X-Kept"] == "yes"
        assert answer.headers["Server"] == "llm-supervisor"
        assert not {"X-Hop", "Keep-Alive"} & set(answer.headers)
    head = seen[0].lower()
    assert b"x-request-id: mine-1" in head
    assert b"x-custom: kept" in head
    for gone in (b"secret", b"forwarded", b"x-private", b"te:", b"cookie", b"authorization", b"api-key"):
        assert gone not in head


@pytest.mark.parametrize("bad", ["a b", "x" * 129, "é", 'a"b'])
async def test_a_strange_request_id_is_replaced(build: Build, bad: str) -> None:
    async with build(config(model("alpha"))) as house:
        answer = await house.ask("GET", "/healthz", headers={"X-Request-Id": bad})
        assert answer.headers["X-Request-Id"].startswith("req_")


async def test_errors_of_the_engine_pass_as_they_are(build: Build) -> None:
    body = b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}'
    script = scripted(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    async with build(config(model("alpha")), scripts={"alpha": script}) as house:
        answer = await house.chat()
        assert (answer.status, answer.body) == (400, body)


async def test_death_before_the_first_byte_is_a_502(build: Build) -> None:
    async with build(config(model("alpha")), env={"FAKE_VLLM": "dies_before_first_byte"}) as house:
        for stream in (False, True):
            answer = await house.chat(stream=stream)
            assert (answer.status, answer.code) == (502, "engine_crashed")


async def test_death_within_a_stream_is_an_event_and_then_its_end(build: Build) -> None:
    async with build(config(model("alpha")), env={"FAKE_VLLM": "dies_mid_stream"}) as house:
        answer = await house.chat(stream=True)
        assert answer.status == 200
        assert answer.events[-2]["choices"]
        assert answer.events[-1]["error"]["code"] == "engine_crashed"
        assert answer.body.endswith(b"\n\n")
        assert house.recorder.stats.of("alpha")["requests"]["failed"] == 1


@pytest.mark.parametrize(("rest", "is_cut"), [(b"", True), (b"data: [DONE]\n\n", False)])
async def test_a_stream_without_framing_that_ends_early_is_no_success(
    build: Build, rest: bytes, *, is_cut: bool
) -> None:
    """As servers stream that speak HTTP/1.0: the end of the connection is that of the answer."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    script = scripted(HEAD + b"Content-Type: text/event-stream\r\n\r\n" + event + rest)
    async with build(config(model("alpha")), scripts={"alpha": script}) as house:
        answer = await house.chat(stream=True)
        assert answer.body.startswith(event)
        assert (b"engine_crashed" in answer.body) is is_cut


async def test_death_within_an_event_keeps_the_error_readable(build: Build) -> None:
    script = scripted(HEAD + EVENTS + b'c\r\ndata: {"half\r\n')
    async with build(config(model("alpha")), scripts={"alpha": script}) as house:
        answer = await house.chat(stream=True)
        assert answer.body.startswith(b'data: {"half\n\ndata: {"error":')


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000\r\n\r\n12345", b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"]
)
async def test_a_cut_answer_that_is_no_stream_looks_cut(build: Build, framing: bytes) -> None:
    async with build(config(model("alpha")), scripts={"alpha": scripted(HEAD + framing)}) as house:
        answer = await house.http.post("/v1/chat/completions", json=CHAT)
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_closing_upstreams_breaks_open_streams_with_an_event(build: Build) -> None:
    """What a stop does first: vLLM would wait for the stream."""
    async with build(config(model("alpha")), env={"FAKE_TOKENS_PER_S": "5"}) as house:
        async with house.http.post("/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
            await answer.content.readline()
            await house.gateway.upstreams.close("alpha")
            rest = await asyncio.wait_for(answer.text(), 2)
        assert "engine_crashed" in rest
        assert "was stopped" in rest
        assert (await house.chat()).status == 200


async def test_closing_upstreams_breaks_requests_without_an_answer_yet(build: Build) -> None:
    async with build(config(model("alpha")), env={"FAKE_TOKENS_PER_S": "1"}) as house:
        asked = asyncio.create_task(house.chat())
        await house.until(lambda: len(house.runtime.fleet.engines["alpha"].leases) == 1)
        await asyncio.sleep(0.05)
        await house.gateway.upstreams.close("alpha")
        answer = await asyncio.wait_for(asked, 1)
        assert (answer.status, answer.code) == (502, "engine_crashed")


async def test_a_name_that_is_another_engines_by_now_gets_other_connections(tmp_path: Path) -> None:
    """A remote's stream goes on, while a reload has made its name that of an engine here."""
    upstreams = Upstreams()
    there, here = Backend(origin="http://127.0.0.1:1", elsewhere=True), Backend(tmp_path / "m.sock")
    async with upstreams.connected("m", there) as old, upstreams.connected("m", here) as new:
        assert isinstance(new.connector, aiohttp.UnixConnector)
        assert not isinstance(old.connector, aiohttp.UnixConnector)
    async with upstreams.connected("m", here) as again:
        assert again is new
    await upstreams.close_all()
    assert old.closed
    assert new.closed


async def test_connections_that_are_retired_are_closed_with_the_last_stream() -> None:
    upstreams, there = Upstreams(), Backend(origin="http://127.0.0.1:1", elsewhere=True)
    async with upstreams.connected("m", there) as old:
        async with upstreams.connected("m", there) as same:
            await upstreams.retire("m")
        assert same is old
        assert not old.closed
        async with upstreams.connected("m", there) as new:
            assert new is not old
    assert old.closed
    assert not new.closed
    await upstreams.retire("m")
    assert new.closed, "nobody used it"


async def test_a_stop_breaks_what_goes_on_from_before_the_circuit_opened() -> None:
    upstreams, there = Upstreams(), Backend(origin="http://127.0.0.1:1", elsewhere=True)

    async def stream() -> None:
        async with upstreams.connected("m", there):
            await upstreams.retire("m")
            await upstreams.close("m")
            await asyncio.sleep(5)

    with pytest.raises(Refused, match="was stopped"):
        await stream()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine_within_a_second(build: Build, stream: bool) -> None:
    asked = CHAT | {"stream": stream, "ignore_eos": True, "max_tokens": 1000}
    async with build(config(model("alpha")), env={"FAKE_TOKENS_PER_S": "20"}) as house:
        await house.runtime.start("alpha")
        request = asyncio.create_task(house.http.post("/v1/chat/completions", json=asked))
        await house.until(lambda: len(house.runtime.fleet.engines["alpha"].leases) == 1)
        if stream:
            answer = await request
            await answer.content.readline()
            answer.close()
        else:
            while (await house.engine_stats("alpha"))["running"] != 1:
                await asyncio.sleep(0.01)
            request.cancel()
        async with asyncio.timeout(1):
            while (await house.engine_stats("alpha"))["aborted"] != 1:
                await asyncio.sleep(0.01)
        assert house.runtime.fleet.engines["alpha"].leases == frozenset()
        assert house.recorder.stats.of("alpha")["requests"]["left"] == 1


async def test_a_slow_reader_holds_the_engine_back(build: Build) -> None:
    """Memory stays bounded: of 64 MiB only what sockets and one buffer hold is taken from the engine."""
    sent = 0

    async def firehose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % (64 << 20))
        for _ in range(1024):
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536
        writer.close()

    async with (
        build(config(model("alpha")), scripts={"alpha": firehose}) as house,
        house.http.post("/v1/chat/completions", json=CHAT) as answer,
    ):
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 24 << 20
        assert len(await answer.read()) == 64 << 20


async def test_large_bodies_pass(build: Build) -> None:
    raw = json.dumps(CHAT | {"padding": "x" * (5 << 20)}).encode()
    headers = {"Content-Type": "application/json"}
    async with build(config(model("alpha"))) as house:
        answer = await house.ask("POST", "/v1/chat/completions", data=io.BytesIO(raw), headers=headers)
        assert answer.status == 200
        assert (await house.engine_stats("alpha"))["last"]["body_bytes"] == len(raw)


async def test_head_and_empty_answers_have_no_body(build: Build) -> None:
    script = scripted(b"HTTP/1.1 204 No Content\r\n\r\n")
    rest = b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with build(config(model("alpha")), scripts={"alpha": script}) as house:
        answer = await house.raw(b"DELETE /alpha/v1/responses/r1" + rest)
        assert answer.startswith(b"HTTP/1.1 204 ")
        assert answer.endswith(b"\r\n\r\n")
        head = await house.raw(b"HEAD /v1/models" + rest)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert head.endswith(b"\r\n\r\n")


async def test_http_1_0_gets_no_chunks(build: Build) -> None:
    body = json.dumps(CHAT | {"stream": True}).encode()
    async with build(config(model("alpha"))) as house:
        answer = await house.raw(
            b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
    head, _, text = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert text.startswith(b"data: {")
    assert text.endswith(b"data: [DONE]\n\n")


async def test_a_name_the_engine_does_not_know_becomes_its_own(build: Build) -> None:
    async with build(config(model("alpha"), model("beta"))) as house:
        answer = await house.chat(path="/beta/v1/chat/completions", model="gpt-5")
        assert (answer.status, answer.json["model"]) == (200, "beta")


async def test_an_unknown_model_may_go_to_the_default_one(build: Build) -> None:
    server = Server(default_model="beta", unknown_model="default")
    async with build(config(model("alpha"), model("beta"), server=server)) as house:
        assert (await house.chat(model="gpt-5")).json["model"] == "beta"


async def test_max_concurrent_is_answered_with_retry_after(build: Build) -> None:
    slow = CHAT | {"stream": True, "ignore_eos": True, "max_tokens": 100}
    async with (
        build(config(model("alpha", max_concurrent=1)), env={"FAKE_TOKENS_PER_S": "20"}) as house,
        house.http.post("/v1/chat/completions", json=slow) as first,
    ):
        await first.content.readline()
        answer = await house.chat()
        assert (answer.status, answer.code) == (503, "model_busy")
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
