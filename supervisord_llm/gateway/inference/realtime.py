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
from supervisord_llm.gateway.choosing.search import Engines, Search
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.inference import elsewhere
from supervisord_llm.gateway.inference.infer import admission, body_name, targeted
from supervisord_llm.gateway.inference.relay import Upstreams, engine_gone, headers_for
from supervisord_llm.gateway.target import Upstream
from supervisord_llm.outage import outage
from supervisord_llm.runtime.ports import Backend, Beginning

USUAL = "realtime"
"""The subprotocol of OpenAI's clients. A browser that offers any insists on the choice of one."""


async def converse(exchange: Exchange, upstream: Upstream, engines: Engines) -> None:
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
    target = targeted(exchange, upstream, fields.get("model"))
    with exchange.running():
        model = await Search(exchange, engines, target.name, upstream.tail, b"", None).first()
        name = body_name(exchange, target, model)
        query = upstream.query if name is None else urlencode(fields | {"model": name})
        engine = exchange.settings.config.engine_of(model)
        async with admission(exchange, engines, model, upstream.tail, streams=False) as backend:
            query = elsewhere.query(query) if backend.elsewhere else query
            url = URL(backend.url(upstream.path) + (f"?{query}" if query else ""), encoded=True)
            try:
                async with engines.upstreams.connected(engine, backend) as session:
                    await _join(exchange, engines.upstreams, session, url, engine, backend)
            except Refused as gone:
                if not isinstance(exchange.response, web.WebSocketResponse):
                    raise
                exchange.refusal = gone.code
                await _end(exchange, WSCloseCode.INTERNAL_ERROR, gone.message)
            except asyncio.CancelledError:
                await _end(exchange, WSCloseCode.GOING_AWAY)
                raise


async def _join(
    exchange: Exchange,
    upstreams: Upstreams,
    session: aiohttp.ClientSession,
    url: URL,
    model: str,
    backend: Backend,
) -> None:
    """
    Raises:
        Refused: `engine_crashed`; `rate_limit_exceeded` where an API elsewhere says so.
    """
    request = exchange.request
    most = exchange.settings.config.server.max_body_bytes
    offered = [each for each in websocket.offered(request.headers) if not each.startswith(KEY_PROTOCOL)]
    try:
        engine = await websocket.connect(session, url, headers_for(exchange, backend), offered, most)
    except aiohttp.WSServerHandshakeError as refusal:
        if backend.elsewhere:
            headers: Mapping[str, str] = refusal.headers or {}
            if not (backend.is_peer and refusal.status in elsewhere.PEER_STATUSES):
                upstreams.tell(model, Beginning(refusal.status, "", elsewhere.retry_after_s(headers)))
            if (refused := elsewhere.trouble(model, backend, refusal.status, headers)) is not None:
                raise refused from None
        await exchange.begin(_refusal(exchange, refusal.status))
        return
    except (aiohttp.ClientError, OSError) as why:
        if not backend.elsewhere:
            raise engine_gone(model) from why
        what = outage(why)
        upstreams.tell(model, Beginning(why=what))
        raise elsewhere.unreachable(model, backend, what) from why
    async with engine:
        if backend.elsewhere:
            upstreams.tell(model, Beginning(101))
        usual = USUAL if USUAL in offered else None
        client = websocket.answer(engine.protocol or usual, most)
        await exchange.begin(client)
        if not await websocket.join(client, engine):
            raise engine_gone(model)


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
