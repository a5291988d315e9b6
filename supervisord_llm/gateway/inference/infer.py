"""One request for an engine, from its first header to the last byte of its answer.

Where an engine dies, or cannot be had, before a byte of its answer has reached the client, the next one that
may serve the request is asked: see choosing/search.py.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import body as bodies
from supervisord_llm.gateway.auth import check_endpoint, check_model
from supervisord_llm.gateway.choosing.search import Engines, Search
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.inference.batching import relay_parts
from supervisord_llm.gateway.inference.relay import relay
from supervisord_llm.gateway.inference.waiting import Waiter, admitted
from supervisord_llm.gateway.policy.fields import Fields, encoded
from supervisord_llm.gateway.policy.policy import Shaped, drop_tools, shape
from supervisord_llm.gateway.policy.usage import UsageFilter
from supervisord_llm.gateway.target import FORMS, POSTED, STREAMING, Target, Upstream, choose
from supervisord_llm.runtime.ports import Backend


@dataclass(frozen=True, slots=True)
class _Job:
    """A request as it came."""

    exchange: Exchange
    upstream: Upstream
    target: Target
    content_type: str
    body: bytes
    fields: Fields | None
    """Of JSON."""
    streams: bool


async def infer(
    exchange: Exchange, upstream: Upstream, engines: Engines, translated: bytes | None = None
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
        target = targeted(exchange, upstream, peek.model)
        upstream.check_opened(exchange.settings.opened[target.name])
        streams = peek.stream and upstream.tail in STREAMING and exchange.translation is None
        job = _Job(exchange, upstream, target, content_type, body, peek.fields, streams)
        search = Search(exchange, engines, target.name, upstream.tail, body, peek.fields)
        model = await search.first()
        while True:
            try:
                await _attempt(job, engines, model)
            except Refused as refused:
                model = await search.after(refused)
            else:
                search.learn()
                return


async def _attempt(job: _Job, engines: Engines, model: str) -> None:
    """Have one model's engine answer.

    Raises:
        Refused: it cannot; part of its answer may have been sent, see `exchange.is_unanswered`.
    """
    exchange, upstream, body = job.exchange, job.upstream, job.body
    policy = exchange.settings.policies[model]
    upstream.check_opened(policy.rules.opened)
    name = body_name(exchange, job.target, model)
    shaped: Shaped | None = None
    if job.fields is not None:
        shaped = await bodies.off_loop(body, _shaped, exchange, upstream, model, job.fields, name)
    elif name is not None and body:
        body = bodies.rename(job.content_type, body, name)
    engine = exchange.settings.config.engine_of(model)
    async with admission(exchange, engines, model, upstream.tail, streams=job.streams) as backend:
        if shaped is None:
            await relay(exchange, engines.upstreams, engine, backend, upstream, body)
            return
        if policy.needs_parser and shaped.offers_tools and not engines.facts.tool_parser(engine):
            drop_tools(policy, shaped)
        exchange.usage = UsageFilter(drops=shaped.hides_usage) if shaped.streams else None
        sent = await bodies.off_loop(body, shaped.bodies, body)
        if len(sent) == 1:
            await relay(exchange, engines.upstreams, engine, backend, upstream, sent[0])
        else:
            await relay_parts(exchange, engines.upstreams, engine, backend, upstream, sent)


def targeted(exchange: Exchange, upstream: Upstream, asked: str | None) -> Target:
    """The model or route that the request is for. `asked`: the client's word.

    Raises:
        Refused: `model_not_found`, `model_forbidden`, `invalid_request`.
    """
    settings, caller = exchange.settings, exchange.caller
    target = choose(
        upstream,
        asked,
        settings.names,
        settings.default,
        unknown_to_default=settings.config.server.unknown_model == "default",
        visible=settings.names_for(caller) if upstream.model is None else (),
    )
    check_model(caller, target.name)
    return target


def body_name(exchange: Exchange, target: Target, model: str) -> str | None:
    """What the body must call the model for its engine; None: as it does."""
    if (served := exchange.settings.served_as.get(model)) is not None:
        return served
    return model if target.rename or model != target.name else None


@asynccontextmanager
async def admission(
    exchange: Exchange, engines: Engines, model: str, tail: str, *, streams: bool
) -> AsyncIterator[Backend]:
    """Where the engine of `model` serves, once the request may use it; it may until the end of the block.

    Raises:
        Refused: it never may, or not before its client gives up.
    """
    caller, runtime = exchange.caller, engines.runtime
    engine = exchange.settings.config.engine_of(model)
    async with runtime.lease(engine, source=caller.name, priority=caller.priority) as lease:
        if exchange.asked_at is None:
            exchange.asked_at = lease.asked_at
        waiter = Waiter(
            exchange,
            lease,
            exchange.asked_at,
            tail,
            streams=streams,
            engine=lambda: runtime.fleet.engines[engine],
            now=asyncio.get_running_loop().time,
        )
        backend = await admitted(waiter)
        engines.rates.take(model)  # what was refused until here is not sent
        yield backend


async def _read(exchange: Exchange, translated: bytes | None) -> tuple[str, bytes]:
    """The body to look at, and its type."""
    if translated is not None:
        return "application/json", translated
    content_type = exchange.request.headers.get("Content-Type", "")
    return content_type, await bodies.read(exchange.request, exchange.settings.config.server.max_body_bytes)


def _shaped(exchange: Exchange, upstream: Upstream, model: str, fields: Fields, name: str | None) -> Shaped:
    settings = exchange.settings
    ours = {} if name is None else {"model": encoded(name)}
    if model in settings.prioritised:
        ours["priority"] = encoded(-exchange.caller.priority)  # to vLLM, lower is earlier
    return shape(settings.policies[model], upstream.tail, fields, ours)


def _peek(upstream: Upstream, content_type: str, body: bytes) -> bodies.Peek:
    if body:
        return bodies.peek(content_type, body, may_be_form=not upstream.is_listed or upstream.tail in FORMS)
    if upstream.is_listed and upstream.tail in POSTED:
        raise Refused("invalid_json", f"cannot serve {upstream.path} without a body: send JSON")
    return bodies.Peek()
