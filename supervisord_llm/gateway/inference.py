"""One request for an engine, from its first header to the last byte of its answer."""

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import body as bodies
from supervisord_llm.gateway.auth import check_model
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.ports import Runtime
from supervisord_llm.gateway.relay import Upstreams, relay
from supervisord_llm.gateway.route import POSTED, STREAMING, Upstream, choose
from supervisord_llm.gateway.waiting import admitted


async def infer(exchange: Exchange, upstream: Upstream, runtime: Runtime, upstreams: Upstreams) -> None:
    """Answer the exchange from an engine, starting it if need be.

    Raises:
        Refused: it cannot be answered, or not to its end.
        ConnectionError: the client is gone.
    """
    settings, caller = exchange.settings, exchange.caller
    if upstream.model is not None:
        check_model(caller, upstream.model)
    content_type = exchange.request.headers.get("Content-Type", "")
    body = await bodies.read(exchange.request, settings.config.server.max_body_bytes)
    peek = await bodies.off_loop(body, _peek, upstream, content_type, body)
    route = choose(
        upstream,
        peek.model,
        settings.names,
        settings.default,
        unknown_to_default=settings.config.server.unknown_model == "default",
        visible=settings.names_for(caller) if upstream.model is None else (),
    )
    check_model(caller, route.model)
    exchange.model = route.model
    if route.rename:
        body = await bodies.off_loop(body, bodies.rename, content_type, body, route.model)
    async with runtime.lease(route.model, source=caller.name, priority=caller.priority) as lease:
        socket = await admitted(exchange, lease, streams=peek.stream and upstream.tail in STREAMING)
        await relay(exchange, upstreams, route.model, socket, upstream, body)


def _peek(upstream: Upstream, content_type: str, body: bytes) -> bodies.Peek:
    if body:
        return bodies.peek(content_type, body)
    if upstream.tail in POSTED:
        raise Refused("invalid_json", f"cannot serve {upstream.path} without a body: send JSON")
    return bodies.Peek()
