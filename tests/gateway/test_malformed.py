"""Bytes that no good client sends: always an answer, never a 5xx, and nothing of them in the log."""

import asyncio
import json
import logging

import pytest

from supervisord_llm.config.model import Server
from supervisord_llm.gateway import body, server
from tests.gateway.conftest import Build, client, config, model

POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\n"
)
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
CHAT = b'{"model":"alpha"}'


def sized(payload: bytes) -> bytes:
    return POST + b"Content-Length: %d\r\n\r\n%s" % (len(payload), payload)


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (sized(b"{"), {400}),
        (sized(b"[" * 100_000), {400}),
        (sized(b'{"model":"alpha","x":' + b"[" * 100_000), {400}),
        (sized(b'{"model": 1}'), {400}),
        (sized(b'{"model":"' + b"x" * 100_000 + b'"}'), {404}),
        (sized(b'{"model":"../../etc/passwd"}'), {404}),
        (sized(b'{"model":"\\u0000"}'), {404}),
        (sized(b""), {400}),
        (POST + b"\r\n", {400}),
        (POST.replace(b"application/json", b"text/plain") + b"Content-Length: 2\r\n\r\n{}", {415}),
        (sized(CHAT).replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"), {415}),
        (sized(CHAT).replace(b"\r\n\r\n", b"\r\nContent-Encoding: bogus\r\n\r\n"), {415}),
        (sized(CHAT).replace(b"\r\n\r\n", b"\r\nExpect: a-miracle\r\n\r\n"), {417}),
        (POST + b"Content-Length: -1\r\n\r\n", {400}),
        (POST + b"Content-Length: 1x\r\n\r\n", {400}),
        (POST + b"Content-Length: +5\r\n\r\n12345", {400}),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345", {400}),
        (POST + b"Content-Length: 99999999999999999999999\r\n\r\n", {400, 413}),
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", {400}),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", {400}),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", {400}),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", {400}),
        (GET + b"X: a\x00b\r\n\r\n", {400}),
        (GET + b"X: a\r\n b\r\n\r\n", {200, 400}),
        (GET + b"Bad Header: 1\r\n\r\n", {400}),
        (GET + b"X: " + b"a" * 100_000 + b"\r\n\r\n", {400, 431}),
        (GET + b"".join(b"X-%d: 1\r\n" % n for n in range(5000)) + b"\r\n", {400, 431}),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {400, 414}),
        (b"GET /v1/\x00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400}),
        (b"GET /v1/\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400}),
        (b"GET /v1/models/%00%0d%0a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
        (b"GET /v1/models/%ff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
        (b"GET //healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
        (b"GET /coder/../admin/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
        (b"POST /alpha/sleep HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
        (b"POST /v1/%73leep HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404, 405}),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 404, 405}),
        (b"TRACE /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 405}),
        (b"PUT /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {405}),
        (b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n", {400}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
        (b"nonsense\r\n\r\n", {400}),
    ],
)
async def test_malformed_requests_get_a_4xx_in_our_shape(
    build: Build, request_bytes: bytes, statuses: set[int]
) -> None:
    async with build(config(model("alpha"))) as house:
        answer = await house.raw(request_bytes)
        assert int(answer.split(b" ")[1]) in statuses
        if statuses != {200, 400}:
            error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert b"X-Request-Id: " in answer
        assert house.launcher.launches == []


async def test_no_header_can_be_injected_by_a_name(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        answer = await house.raw(
            b"GET /v1/models/a%0d%0aX-Injected:%201 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert b"\r\nX-Injected" not in answer


async def test_bodies_above_the_limit_are_refused_unread(build: Build) -> None:
    async with build(config(model("alpha"), server=Server(max_body_bytes=1000))) as house:
        declared = await house.raw(POST + b"Content-Length: 1001\r\n\r\n")
        assert declared.startswith(b"HTTP/1.1 413 ")
        chunk = b"200\r\n" + b"x" * 512 + b"\r\n"
        chunked = await house.raw(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2)
        assert chunked.startswith(b"HTTP/1.1 413 ")
        for answer in (declared, chunked):
            assert b'"code":"body_too_large"' in answer
            assert b"Connection: close" in answer
        fits = await house.raw(sized(CHAT + b" " * (1000 - len(CHAT))))
        assert fits.startswith(b"HTTP/1.1 200 ")


async def test_100_continue_is_sent_before_the_body_is_read(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        writer.write(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(CHAT))
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(CHAT)
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_chunked_bodies_are_framed_anew_without_their_trailers(build: Build) -> None:
    chunked = b"%x;ext=1\r\n%s\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(CHAT), CHAT)
    async with build(config(model("alpha"))) as house:
        assert (await house.raw(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunked)).startswith(
            b"HTTP/1.1 200 "
        )
        last = (await house.engine_stats("alpha"))["last"]
        assert last["body_bytes"] == len(CHAT)
        assert not {"x-trailer", "transfer-encoding"} & {name for name, _ in last["headers"]}


async def test_pipelined_requests_are_answered_in_order_and_each_needs_its_key(build: Build) -> None:
    with_key = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nx-api-key: key-a\r\n\r\n"
    without = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with build(config(model("alpha"), clients=(client("a"),))) as house:
        answer = await house.raw(with_key + with_key + without)
        assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"401"]


async def test_an_upgrade_is_not_forwarded(build: Build) -> None:
    upgrade = b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n"
    async with build(config(model("alpha"))) as house:
        request = sized(CHAT).replace(b"Connection: close\r\n", upgrade)
        assert (await house.raw(request)).startswith(b"HTTP/1.1 200 ")
        names = {name for name, _ in (await house.engine_stats("alpha"))["last"]["headers"]}
        assert "upgrade" not in names


async def test_silent_connections_and_bodies_are_closed(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.05)
    monkeypatch.setattr(body, "SILENCE_S", 0.05)
    async with build(config(model("alpha"))) as house:
        assert await house.raw(b"") == b""
        assert await house.raw(b"GET /healthz HTTP/1.1\r\nHo") == b""
        slow = await house.raw(POST + b"Content-Length: 100\r\n\r\n{")
        assert slow.startswith(b"HTTP/1.1 408 ")


async def test_neither_keys_nor_prompts_are_logged(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = b"Authorization: Bearer sk-verysecret\r\n"
    payload = b'{"model":"alpha","messages":[{"role":"user","content":"my-private-prompt"}]}'
    async with build(config(model("alpha"))) as house:
        await house.raw(sized(payload).replace(b"Host: x\r\n", b"Host: x\r\n" + secret))
        await house.raw(sized(payload).replace(b"Host: x\r\n", b"Host: x\r\nBad Header: 1\r\n" + secret))
        await house.raw(POST + secret + b"Transfer-Encoding: chunked\r\n\r\nzz" + payload)
        await house.raw(sized(b'{"model":"a\\u001b[31m\\nFAKE","x":"my-private-prompt"}'))
        await house.raw(
            b"GET /v1/models?api_key=sk-verysecret HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
    lines = [record.getMessage() + str(record.exc_info or "") for record in caplog.records]
    assert any("POST /v1/chat/completions 200" in line for line in lines)
    for line in lines:
        assert "verysecret" not in line
        assert "my-private-prompt" not in line
        assert "\x1b" not in line
