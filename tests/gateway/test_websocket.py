"""Websockets to engines: /v1/realtime, with an engine that the test serves itself."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from supervisord_llm.config.model import Config, Server
from tests.gateway.conftest import Build, House, client, config, key, model

PROTOCOLS = ("realtime", "openai-insecure-api-key.key-a", "openai-beta.realtime-v1")


async def echo(request: web.Request) -> web.StreamResponse:
    """An engine that sends everything back; "headers" and "target" tell what it got."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        match message.type, message.data:
            case WSMsgType.TEXT, "headers":
                await socket.send_json({name.lower(): value for name, value in request.headers.items()})
            case WSMsgType.TEXT, "target":
                await socket.send_str(request.raw_path)
            case WSMsgType.TEXT, "die":
                assert request.transport is not None
                request.transport.abort()
            case WSMsgType.TEXT, "close":
                await socket.close(code=4000, message=b"done")
            case WSMsgType.TEXT, text:
                await socket.send_str(text)
            case WSMsgType.BINARY, data:
                await socket.send_bytes(data)
    return socket


Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def talking(build: Build, settings: Config, engine: Serve = echo) -> AsyncIterator[House]:
    """A house whose model alpha is `engine`."""

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        return await engine(request)  # type: ignore[arg-type]

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    async with build(settings, held=("alpha",)) as house:

        async def start() -> None:
            await house.until(lambda: house.launcher.launches == ["alpha"])
            await web.UnixSite(runner, str(house.launcher.directory / "alpha.sock")).start()
            house.launcher.held["alpha"].set()

        starting = asyncio.create_task(start())
        yield house
        starting.cancel()
        await runner.cleanup()


def with_key(**fields: Any) -> Config:
    return config(model("alpha", aliases=("al",)), clients=(client("a"), client("b", models=())), **fields)


async def test_a_page_talks_to_an_engine_with_its_key_as_a_subprotocol(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with talking(build, with_key()) as house:
        async with house.http.ws_connect("/v1/realtime?model=al&intent=x", protocols=PROTOCOLS) as socket:
            assert socket.protocol == "realtime"
            await socket.send_str("grüß")
            assert await socket.receive_str(timeout=5) == "grüß"
            await socket.send_bytes(bytes(100_000))
            assert await socket.receive_bytes(timeout=5) == bytes(100_000)
            await socket.send_str("headers")
            headers = await socket.receive_json(timeout=5)
            assert headers["sec-websocket-protocol"] == "realtime,openai-beta.realtime-v1"
            assert not {"authorization", "origin", "cookie"} & headers.keys()
            await socket.send_str("target")
            assert await socket.receive_str(timeout=5) == "/v1/realtime?model=al&intent=x"
        assert house.launcher.launches == ["alpha"]
    assert "key-a" not in caplog.text


async def test_a_websocket_needs_a_key_and_a_right(build: Build) -> None:
    async with talking(build, with_key()) as house:
        for path, headers, status in (
            ("/v1/realtime?model=alpha", {}, 401),
            ("/v1/realtime?model=alpha&api_key=key-a", {}, 401),
            ("/v1/realtime?model=alpha", key("b"), 403),
            ("/v1/realtime?model=ghost", key("a"), 404),
            ("/v1/realtime?model=alpha", key("a") | {"Origin": "https://evil.org"}, 403),
        ):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
                await house.http.ws_connect(path, headers=headers)
            assert refusal.value.status == status, path
        assert house.launcher.launches == []


@pytest.mark.parametrize("origin", ["https://app.example.org", "http://127.0.0.1:{port}"])
async def test_pages_of_this_host_and_of_allowed_origins_may_open_one(build: Build, origin: str) -> None:
    async with talking(build, with_key(cors_origins=("https://app.example.org",))) as house:
        headers = key("a") | {"Origin": origin.format(port=house.port)}
        async with house.http.ws_connect("/alpha/v1/realtime", headers=headers) as socket:
            await socket.send_str("hi")
            assert await socket.receive_str(timeout=5) == "hi"


async def test_the_engine_is_asked_for_its_own_name(build: Build) -> None:
    async with talking(build, config(model("alpha"))) as house:
        for path, target in (
            ("/v1/realtime", "/v1/realtime"),
            ("/alpha/v1/realtime?intent=a%20b&model=gpt-realtime", "/v1/realtime?intent=a+b&model=alpha"),
        ):
            async with house.http.ws_connect(path) as socket:
                await socket.send_str("target")
                assert await socket.receive_str(timeout=5) == target


async def test_the_lease_is_held_for_as_long_as_the_connection_lives(build: Build) -> None:
    async with talking(build, config(model("alpha"))) as house:
        async with house.http.ws_connect("/v1/realtime") as socket:
            await socket.send_str("hi")
            await socket.receive_str(timeout=5)
            assert house.runtime.fleet.engines["alpha"].leases
        await house.until(lambda: not house.runtime.fleet.engines["alpha"].leases)


async def test_the_death_of_the_engine_is_told(build: Build) -> None:
    async with talking(build, config(model("alpha"))) as house:
        async with house.http.ws_connect("/v1/realtime") as socket:
            await socket.send_str("die")
            message = await socket.receive(timeout=5)
            assert (message.type, message.data) == (WSMsgType.CLOSE, 1011)
        async with house.http.ws_connect("/v1/realtime") as socket:
            await socket.send_str("hi")
            await socket.receive_str(timeout=5)
            stopping = asyncio.create_task(house.gateway.upstreams.close("alpha"))
            message = await socket.receive(timeout=5)
            assert (message.type, message.data) == (WSMsgType.CLOSE, 1011)
            assert "was stopped" in message.extra
            await stopping
        async with house.http.ws_connect("/v1/realtime") as socket:
            await socket.send_str("close")
            message = await socket.receive(timeout=5)
            assert (message.data, message.extra) == (4000, "done")


async def test_a_message_beyond_the_limit_ends_it(build: Build) -> None:
    async with talking(build, config(model("alpha"), server=Server(max_body_bytes=1000))) as house:
        socket = await house.http.ws_connect("/v1/realtime")
        await socket.send_bytes(bytes(2000))
        assert (await socket.receive(timeout=5)).data == 1009
        await socket.close()


async def test_a_client_that_says_nothing_is_asked_whether_it_is_there(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisord_llm.gateway.websocket.PING_S", 0.1)
    async with talking(build, config(model("alpha"))) as house:
        socket = await house.http.ws_connect("/v1/realtime", autoping=False)
        assert (await socket.receive(timeout=5)).type is WSMsgType.PING
        await house.until(lambda: not house.runtime.fleet.engines["alpha"].leases)  # for want of a pong
        await socket.close()


async def test_an_engine_without_websockets_answers_for_itself(build: Build) -> None:
    async def refuses(request: web.Request) -> web.StreamResponse:
        return web.Response(status=403)

    async with talking(build, config(model("alpha")), refuses) as house:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await house.http.ws_connect("/v1/realtime")
        assert refusal.value.status == 403


async def test_other_upgrades_are_none(build: Build) -> None:
    upgrade = b"Host: x\r\nConnection: upgrade, close\r\nUpgrade: %s\r\nSec-WebSocket-Version: 13\r\n\r\n"
    async with build(config(model("alpha"))) as house:
        for path, protocol in (
            (b"/v1/models", b"websocket"),
            (b"/v1/models", b"h2c"),
            (b"/healthz", b"TLS/1.2"),
        ):
            answer = await house.raw(b"GET " + path + b" HTTP/1.1\r\n" + upgrade % protocol)
            assert answer.startswith(b"HTTP/1.1 200 ")
        answer = await house.raw(b"GET /v1/realtime?model=alpha HTTP/1.1\r\n" + upgrade % b"websocket")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert house.launcher.launches == []
