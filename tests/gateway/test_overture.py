"""What a peer sends before its answer, and what it refuses: passed on as it is, and nothing against it."""

import asyncio
import itertools
import json
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from aiohttp import web

from supervisord_llm.core.state import State
from supervisord_llm.engines.remote import FAILURES
from supervisord_llm.errors import Refused
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.inference.overture import overture
from tests.fakes.fake_provider import KEY, Answer
from tests.gateway.conftest import Build
from tests.gateway.test_remote import ask, house_of

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
COMMENT = b": waiting\n\n"
CHUNK = b'data: {"choices": []}\n\n'
NO_VRAM = {"message": "cannot start: no room", "type": "server_error", "param": None, "code": "no_vram"}
ERROR = b"data: " + json.dumps({"error": NO_VRAM}).encode() + b"\n\n"
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "cannot start"}}
ANTHROPIC = b"event: error\ndata: " + json.dumps(OVERLOADED).encode() + b"\n\n"
OTHER = b'data: {"error": {"message": "bad", "code": 400}}\n\n'


@dataclass
class Client:
    """As much of an exchange as it takes."""

    is_held: bool = False
    got: list[bytes] = field(default_factory=list)

    async def hold(self) -> None:
        self.is_held = True

    async def beat(self, event: bytes) -> None:
        self.got.append(event)


async def heard(sent: bytes, step: int, client: Client) -> tuple[bytes, bytes]:
    """What `overture` returns of a stream that comes in pieces of `step` bytes, and what is left of it."""
    pieces = [sent[at : at + step] for at in range(0, len(sent), step)]

    async def read() -> bytes:
        return pieces.pop(0) if pieces else b""

    return await overture(cast("Exchange", client), read, client.hold), b"".join(pieces)


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("before", [(), (COMMENT,), (PING, COMMENT, COMMENT)])
@pytest.mark.parametrize(
    "answer", [CHUNK * 2, b"", OTHER, CHUNK.replace(b"\n", b"\r\n"), b"event: message_start\n"]
)
async def test_an_answer_is_passed_on_whole(step: int, before: tuple[bytes, ...], answer: bytes) -> None:
    client = Client()
    first, rest = await heard(b"".join(before) + answer, step, client)
    assert first + rest == answer
    assert client.got == list(before)
    assert client.is_held == bool(before)


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("before", [(), (COMMENT, PING)])
@pytest.mark.parametrize(("event", "code"), [(ERROR, "no_vram"), (ANTHROPIC, "start_failed")])
async def test_a_refusal_is_raised_as_it_was(
    step: int, before: tuple[bytes, ...], event: bytes, code: str
) -> None:
    client = Client()
    with pytest.raises(Refused) as raised:
        await heard(b"".join(before) + event, step, client)
    assert raised.value.code == code
    assert raised.value.message.startswith("cannot start")
    assert client.got == list(before)


async def test_an_event_without_end_is_passed_on() -> None:
    sent = b"event: error\n" + b"x" * 200_000
    first, rest = await heard(sent, 60_000, Client())
    assert first + rest == sent
    assert len(first) < 200_000


# --- through the gateway -----------------------------------------------------------------------------


def refuses(status: int, error: Any, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":  # whether it has the model
            return web.json_response({})
        return web.json_response({"error": error}, status=status, headers=headers)

    return answer


async def test_refusals_of_a_peer_are_told_and_close_nothing(build: Build) -> None:
    refusal = refuses(503, NO_VRAM, **{"Retry-After": "17"})
    async with house_of(build, refusal, peer="p") as (house, fake):
        for _ in range(FAILURES + 2):
            answer = await ask(house)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "17")
            error = answer.json["error"]
            assert (error["code"], error["message"]) == ("no_vram", "cannot start: no room")
        assert house.runtime.fleet.engines["grok"].state is State.READY
        assert fake.last.headers["x-llm-peer"] == "1"
        assert fake.last.headers["authorization"] == f"Bearer {KEY}"


async def test_a_refusal_that_comes_in_pieces_is_one(build: Build) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({})
        response = web.StreamResponse(status=503, headers={"Content-Type": "application/json"})
        await response.prepare(request)
        body = json.dumps({"error": NO_VRAM}).encode()
        for piece in (body[:10], body[10:]):
            await response.write(piece)
            await asyncio.sleep(0.05)
        return response

    async with house_of(build, answer, peer="p") as (house, _):
        assert (await ask(house)).code == "no_vram"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (503, {"message": "from a proxy"}),
        (503, "busy"),
        (502, {**NO_VRAM, "code": "no_vram"}),
        (401, {**NO_VRAM, "code": "invalid_api_key"}),
    ],
)
async def test_other_failures_count_against_it(build: Build, status: int, error: Any) -> None:
    async with house_of(build, refuses(status, error), peer="p") as (house, _):
        codes = [(await ask(house)).status for _ in range(FAILURES + 1)]
        assert codes == [*itertools.repeat(502, FAILURES), 503]
        assert house.runtime.fleet.engines["grok"].state is State.BACKOFF


async def test_a_stream_of_a_peer_comes_as_it_is(build: Build) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in (COMMENT, COMMENT, CHUNK, b"data: [DONE]\n\n"):
            await response.write(piece)
        return response

    async with house_of(build, answer, peer="p") as (house, _):
        reply = await ask(house, stream=True)
        assert reply.headers["X-LLM-Model"] == "grok"
        assert reply.body == COMMENT * 2 + CHUNK + b"data: [DONE]\n\n"
