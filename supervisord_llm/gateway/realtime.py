"""A websocket to an engine: `/v1/realtime`, as OpenAI has it, where an engine offers it.

The key may come as a subprotocol, since a browser can send no header; the model is the query's or the path's.
The lease is held for as long as the connection lives.
"""

import asyncio
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

import aiohttp
from aiohttp import WSCloseCode, web
from yarl import URL

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import errors, websocket
from supervisord_llm.gateway.auth import KEY_PROTOCOL, check_endpoint
from supervisord_llm.gateway.browser import check_origin
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.inference import admission, routed
from supervisord_llm.gateway.ports import Runtime
from supervisord_llm.gateway.relay import Upstreams, engine_gone, request_headers
from supervisord_llm.gateway.route import Upstream

USUAL = "realtime"
"""The subprotocol of OpenAI's clients. A browser that offers any insists on the choice of one."""


async def converse(exchange: Exchange, upstream: Upstream, runtime: Runtime, upstreams: Upstreams) -> None:
    """Join the client with an engine, starting it if need be.

    Raises:
        Refused: it cannot be done; nothing has been sent.
        ConnectionError: the client is gone.
    """
    request = exchange.request
    check_origin(request.headers, exchange.settings.browsers.cors, "open a websocket")
    check_endpoint(exchange.caller, upstream.tail)
    websocket.check(request)
    fields = dict(parse_qsl(upstream.query, keep_blank_values=True))
    route = routed(exchange, upstream, fields.get("model"))
    query = urlencode(fields | {"model": route.model}) if route.rename else upstream.query
    with exchange.running():
        async with admission(exchange, runtime, route.model, upstream.tail, streams=False) as backend:
            url = URL(backend.url(upstream.path) + (f"?{query}" if query else ""), encoded=True)
            try:
                async with upstreams.connected(route.model, backend) as session:
                    await _join(exchange, session, url, backend.headers)
            except Refused as gone:
                if not isinstance(exchange.response, web.WebSocketResponse):
                    raise
                exchange.refusal = gone.code
                await _end(exchange, WSCloseCode.INTERNAL_ERROR, gone.message)
            except asyncio.CancelledError:
                await _end(exchange, WSCloseCode.GOING_AWAY)
                raise


async def _join(
    exchange: Exchange, session: aiohttp.ClientSession, url: URL, own_headers: Mapping[str, str]
) -> None:
    """
    Raises:
        Refused: `engine_crashed`.
    """
    request = exchange.request
    assert exchange.model is not None
    most = exchange.settings.config.server.max_body_bytes
    offered = [each for each in websocket.offered(request.headers) if not each.startswith(KEY_PROTOCOL)]
    headers = request_headers(request.headers, exchange.request_id)
    headers.update(own_headers)
    try:
        engine = await websocket.connect(session, url, headers, offered, most)
    except aiohttp.WSServerHandshakeError as refusal:
        await exchange.begin(_refusal(exchange, refusal.status))
        return
    except (aiohttp.ClientError, OSError) as why:
        raise engine_gone(exchange.model) from why
    async with engine:
        usual = USUAL if USUAL in offered else None
        client = websocket.answer(engine.protocol or usual, most)
        await exchange.begin(client)
        if not await websocket.join(client, engine):
            raise engine_gone(exchange.model)


async def _end(exchange: Exchange, code: int, reason: str = "") -> None:
    """Tell the client, if it has its websocket already. A reason has at most 123 bytes."""
    if isinstance(exchange.response, web.WebSocketResponse):
        await exchange.response.close(code=code, message=reason.encode()[:120])


def _refusal(exchange: Exchange, status: int) -> web.Response:
    """The engine's own status; what it said with it is not to be had."""
    refused = Refused(
        "not_found", f"cannot open a websocket: the engine of {exchange.model} answers {status} to that"
    )
    return web.Response(
        status=status if status >= 400 else 502,
        body=errors.body(refused, exchange.request_id),
        content_type="application/json",
    )
