"""Websockets from end to end: messages pass both ways as they come, and the other side hears of an end.

A message is taken whole before it is passed on; its sender waits while the other side does not keep up.
Compression is left out: it would cost both sides' time on a way that is mostly a local one.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import aiohttp
from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from supervisord_llm.errors import Refused

PING_S = 30.0
"""How often a client is asked whether it is there; one that has not answered after half of it is not."""

CLOSE_S = 2.0
"""How long the other side may take to say goodbye."""

Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


def is_websocket(request: web.BaseRequest) -> bool:
    """Whether the client asks for one."""
    return request.method == "GET" and is_upgrade(request.headers)


def is_upgrade(headers: CIMultiDictProxy[str]) -> bool:
    """Whether these are the headers of one that is asked for."""
    return headers.get("Upgrade", "").strip().lower() == "websocket"


def offered(headers: CIMultiDictProxy[str]) -> list[str]:
    """The subprotocols that the client offers."""
    words = ",".join(headers.getall("Sec-WebSocket-Protocol", ())).split(",")
    return [word.strip() for word in words if word.strip()]


def check(request: web.BaseRequest) -> None:
    """
    Raises:
        Refused: `invalid_request`, it is no valid handshake.
    """
    try:
        is_valid = bool(web.WebSocketResponse(protocols=offered(request.headers)).can_prepare(request))
    except ValueError:  # its key is not even ASCII
        is_valid = False
    if not is_valid:
        raise Refused("invalid_request", "cannot open a websocket: its handshake is not that of RFC 6455")


async def connect(
    session: aiohttp.ClientSession,
    url: URL,
    headers: CIMultiDict[str],
    protocols: Sequence[str],
    max_bytes: int,
) -> aiohttp.ClientWebSocketResponse:
    """Open a websocket to an upstream. `headers` are the request's that are to reach it.

    Raises:
        aiohttp.WSServerHandshakeError: it answers, but with something else.
        aiohttp.ClientError, OSError: it does not answer.
    """
    kept = CIMultiDict(
        (name, value) for name, value in headers.items() if not name.lower().startswith("sec-websocket-")
    )
    return await session.ws_connect(
        url,
        headers=kept,
        protocols=protocols,
        max_msg_size=max_bytes,
        timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
    )


def answer(protocol: str | None, max_bytes: int) -> web.WebSocketResponse:
    """The client's side, to be prepared; `protocol` is the one that was agreed on."""
    return web.WebSocketResponse(
        timeout=CLOSE_S,
        autoclose=False,  # the upstream hears of it first: with its connection ends the request
        heartbeat=PING_S,
        protocols=() if protocol is None else (protocol,),
        compress=False,
        max_msg_size=max_bytes,
    )


class _End(NamedTuple):
    """How it ended: which side is gone, and what it said; no code: nothing."""

    gone: Socket
    code: int | None
    reason: bytes


async def join(client: web.WebSocketResponse, upstream: aiohttp.ClientWebSocketResponse) -> bool:
    """Pass messages both ways until one side ends, and tell the other.

    False if the upstream is gone without a word. When cancelled, it ends the upstream's side alone.
    """
    sending = asyncio.create_task(_pump(client, upstream))
    receiving = asyncio.create_task(_pump(upstream, client))
    try:
        done, _ = await asyncio.wait((sending, receiving), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await _cancel(sending, receiving)
        await upstream.close(code=WSCloseCode.GOING_AWAY)
        raise
    await _cancel(sending, receiving)
    end = (receiving if receiving in done else sending).result()
    if end.gone is client:
        await upstream.close(code=end.code or WSCloseCode.GOING_AWAY, message=end.reason)
        await client.close(code=end.code or WSCloseCode.OK)
        return True
    await client.close(code=end.code or WSCloseCode.INTERNAL_ERROR, message=end.reason)
    await upstream.close()
    return end.code is not None


async def _pump(source: Socket, sink: Socket) -> _End:
    """Pass on what comes, until one of the two is gone."""
    while True:
        message = await source.receive()
        try:
            match message.type:
                case WSMsgType.TEXT:
                    await sink.send_str(message.data)
                case WSMsgType.BINARY:
                    await sink.send_bytes(message.data)
                case WSMsgType.CLOSE:  # 0: it gave no code
                    return _End(source, message.data or WSCloseCode.OK, (message.extra or "").encode())
                case WSMsgType.ERROR if isinstance(message.data, WebSocketError):
                    return _End(source, message.data.code, b"")
                case _:
                    return _End(source, None, b"")
        except ConnectionError:
            return _End(sink, None, b"")


async def _cancel(*tasks: asyncio.Task[_End]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
