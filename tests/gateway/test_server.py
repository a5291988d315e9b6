"""The HTTP server under the gateway, where aiohttp's own manners do not do."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import errors
from supervisord_llm.gateway.doors.server import http_server
from tests.gateway.conftest import Build, config, model


class Wire(asyncio.Transport):
    """A connection that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


async def test_a_connection_made_as_the_server_ends_is_closed_with_it() -> None:
    """aiohttp's task for it has not run yet, and would wait for a request that is no longer read."""
    server = http_server(lambda request: asyncio.sleep(0, web.Response()))
    protocol, wire = server(), Wire()
    protocol.connection_made(wire)
    server.pre_shutdown()
    assert wire.is_closed
    protocol.connection_lost(None)
    async with asyncio.timeout(5):
        await server.shutdown(5)


def test_what_a_failed_start_quotes_is_redacted_before_it_leaves() -> None:
    quoted = Refused("start_failed", "cannot start a: UV_INDEX=https://ann:pass@example.org/simple vllm")
    assert b"pass" not in errors.body(quoted, "req_1")


def posted(version: str, body: bytes, *more: bytes) -> bytes:
    head = (
        f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    )
    return b"\r\n".join((head + b"Content-Length: %d" % len(body), *more, b"", body))


PLAIN = b'{"model":"alpha","messages":[{"role":"user","content":"hi"}]}'
STREAM = PLAIN[:-1] + b',"stream":true}'


async def test_http_1_0_gets_no_chunks_and_streams_end_with_the_connection(build: Build) -> None:
    """What nginx speaks to us unless it is told otherwise."""
    async with build(config(model("alpha"))) as house:
        for more in ((), (b"Connection: keep-alive",)):
            answer = await house.raw(posted("1.0", STREAM, *more))
            head, _, stream = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.0 200 ")
            assert b"transfer-encoding" not in head.lower()
            assert b"keep-alive" not in head.lower()
            assert stream.startswith(b"data: ")
            assert stream.endswith(b"data: [DONE]\n\n")


async def test_http_1_0_waits_for_a_model_like_others(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisord_llm.gateway.inference.waiting.GRACE_S", 0.01)
    async with build(config(model("alpha")), env={"FAKE_LOAD_S": "0.3"}) as house:
        head, _, stream = (await house.raw(posted("1.0", STREAM))).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert stream.startswith(b": keep-alive\n\n")
        assert stream.endswith(b"data: [DONE]\n\n")


async def test_a_connection_is_kept_where_the_client_wants_it(build: Build) -> None:
    last = b"Connection: close"
    async with build(config(model("alpha"))) as house:
        for version, keep in (("1.1", ()), ("1.0", (b"Connection: keep-alive",))):
            answer = await house.raw(posted(version, PLAIN, *keep) + posted(version, PLAIN, last))
            assert answer.count(f"HTTP/{version} 200 ".encode()) == 2
        once = await house.raw(posted("1.0", PLAIN))
        assert once.startswith(b"HTTP/1.0 200 ")


async def test_pipelined_streams_follow_each_other_whole(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        last = posted("1.1", STREAM, b"Connection: close")
        answer = await house.raw(posted("1.1", STREAM) + posted("1.1", PLAIN) + last)
        assert answer.count(b"HTTP/1.1 200 ") == 3
        assert answer.count(b"data: [DONE]\n\n") == 2
        assert answer.index(b"data: [DONE]\n\n") < answer.index(b'"object": "chat.completion"')


async def test_a_head_that_is_too_long_is_told_so(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        answer = await house.raw(b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"a" * 40_000 + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 400 ")
        assert b"32768 bytes" in answer
