"""One request for an engine, from its first header to the last byte of its answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import body as bodies
from supervisord_llm.gateway.auth import check_endpoint, check_model
from supervisord_llm.gateway.batching import relay_parts
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.policy.fields import Fields, encoded
from supervisord_llm.gateway.policy.policy import Shaped, drop_tools, shape
from supervisord_llm.gateway.policy.usage import UsageFilter
from supervisord_llm.gateway.ports import Facts, Runtime
from supervisord_llm.gateway.relay import Upstreams, relay
from supervisord_llm.gateway.route import FORMS, POSTED, STREAMING, Route, Upstream, choose
from supervisord_llm.gateway.waiting import Waiter, admitted
from supervisord_llm.runtime.ports import Backend


async def infer(
    exchange: Exchange,
    upstream: Upstream,
    runtime: Runtime,
    upstreams: Upstreams,
    facts: Facts,
    translated: bytes | None = None,
) -> None:
    """Answer the exchange from an engine, starting it if need be.

    `translated` is JSON to send instead of the request's body, which has been read.

    Raises:
        Refused: it cannot be answered, or not to its end.
        ConnectionError: the client is gone.
    """
    check_endpoint(exchange.caller, upstream.tail)
    if upstream.model is not None:
        check_model(exchange.caller, upstream.model)
    with exchange.running():
        content_type, body = await _read(exchange, translated)
        peek = await bodies.off_loop(body, _peek, upstream, content_type, body)
        route = routed(exchange, upstream, peek.model)
        shaped: Shaped | None = None
        if peek.fields is not None:
            shaped = await bodies.off_loop(body, _shaped, exchange, upstream, route, peek.fields)
        elif route.rename:
            body = bodies.rename(content_type, body, route.model)
        streams = peek.stream and upstream.tail in STREAMING and exchange.translation is None
        async with admission(exchange, runtime, route.model, upstream.tail, streams=streams) as backend:
            if shaped is None:
                await relay(exchange, upstreams, route.model, backend, upstream, body)
                return
            policy = exchange.settings.policies[route.model]
            if policy.needs_parser and shaped.offers_tools and not facts.tool_parser(route.model):
                drop_tools(policy, shaped)
            if shaped.streams:
                exchange.usage = UsageFilter(drops=shaped.hides_usage)
            sent = await bodies.off_loop(body, shaped.bodies, body)
            if len(sent) == 1:
                await relay(exchange, upstreams, route.model, backend, upstream, sent[0])
            else:
                await relay_parts(exchange, upstreams, route.model, backend, upstream, sent)


def routed(exchange: Exchange, upstream: Upstream, asked: str | None) -> Route:
    """The model that the request goes to, which its answer names from here on. `asked`: the client's word.

    Raises:
        Refused: `model_not_found`, `model_forbidden`, `invalid_request`.
    """
    settings, caller = exchange.settings, exchange.caller
    route = choose(
        upstream,
        asked,
        settings.names,
        settings.default,
        unknown_to_default=settings.config.server.unknown_model == "default",
        visible=settings.names_for(caller) if upstream.model is None else (),
    )
    check_model(caller, route.model)
    exchange.model = route.model
    return route


@asynccontextmanager
async def admission(
    exchange: Exchange, runtime: Runtime, model: str, tail: str, *, streams: bool
) -> AsyncIterator[Backend]:
    """Where the model's engine serves, once the request may use it; it may until the end of the block.

    Raises:
        Refused: it never may, or not before its client gives up.
    """
    caller = exchange.caller
    async with runtime.lease(model, source=caller.name, priority=caller.priority) as lease:
        waiter = Waiter(
            exchange,
            lease,
            tail,
            streams=streams,
            engine=lambda: runtime.fleet.engines[model],
            now=asyncio.get_running_loop().time,
        )
        yield await admitted(waiter)


async def _read(exchange: Exchange, translated: bytes | None) -> tuple[str, bytes]:
    """The body to look at, and its type."""
    if translated is not None:
        return "application/json", translated
    content_type = exchange.request.headers.get("Content-Type", "")
    return content_type, await bodies.read(exchange.request, exchange.settings.config.server.max_body_bytes)


def _shaped(exchange: Exchange, upstream: Upstream, route: Route, fields: Fields) -> Shaped:
    settings = exchange.settings
    ours = {"model": encoded(route.model)} if route.rename else {}
    if route.model in settings.prioritised:
        ours["priority"] = encoded(-exchange.caller.priority)  # to vLLM, lower is earlier
    return shape(settings.policies[route.model], upstream.tail, fields, ours)


def _peek(upstream: Upstream, content_type: str, body: bytes) -> bodies.Peek:
    if body:
        return bodies.peek(content_type, body, may_be_form=upstream.tail in FORMS)
    if upstream.tail in POSTED:
        raise Refused("invalid_json", f"cannot serve {upstream.path} without a body: send JSON")
    return bodies.Peek()
