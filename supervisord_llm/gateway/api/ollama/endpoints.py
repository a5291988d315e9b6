"""/api/*: Ollama's paths. What generates goes the way of every other request, translated at both ends."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import web

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import body as bodies
from supervisord_llm.gateway.api.ollama import models, request
from supervisord_llm.gateway.api.ollama.answer import Embeddings, Kind, Talk, Timing, line
from supervisord_llm.gateway.api.orders import carry_out, chosen
from supervisord_llm.gateway.api.status import json_response
from supervisord_llm.gateway.auth import Caller, check_admin, check_endpoint
from supervisord_llm.gateway.endpoint import Access, Endpoint
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.inference.infer import infer
from supervisord_llm.gateway.ports import Runtime
from supervisord_llm.gateway.target import Upstream

if TYPE_CHECKING:
    from supervisord_llm.gateway.app import Gateway

LATEST = ":latest"
"""The tag that Ollama's clients add to a name without one."""

Body = TypeVar("Body")


class _Show(msgspec.Struct):
    model: str = ""
    name: str = ""


async def _version(gateway: "Gateway", exchange: Exchange, _: str) -> web.Response:
    return json_response({"version": models.VERSION})


async def _tags(gateway: "Gateway", exchange: Exchange, _: str) -> web.Response:
    return json_response(models.tags(gateway.catalog(exchange)))


async def _ps(gateway: "Gateway", exchange: Exchange, _: str) -> web.Response:
    now = asyncio.get_running_loop().time()
    return json_response(models.running(gateway.catalog(exchange), now))


async def _show(gateway: "Gateway", exchange: Exchange, _: str) -> web.Response:
    asked = await _read(exchange, _Show)
    catalog = gateway.catalog(exchange)
    return json_response(models.show(catalog.find(_name(exchange, asked.model or asked.name)), catalog))


async def _chat(gateway: "Gateway", exchange: Exchange, _: str) -> web.Response | None:
    asked = await _read(exchange, request.Chat)
    if not asked.messages:
        return await _load(gateway, exchange, asked, "chat")
    await _talk(gateway, exchange, asked, "chat", "chat/completions", request.chat(asked))
    return None


async def _generate(gateway: "Gateway", exchange: Exchange, _: str) -> web.Response | None:
    asked = await _read(exchange, request.Generate)
    if not asked.prompt and not asked.images:
        return await _load(gateway, exchange, asked, "generate")
    await _talk(gateway, exchange, asked, "generate", *request.generate(asked))
    return None


async def _talk(
    gateway: "Gateway",
    exchange: Exchange,
    asked: request.Asked,
    kind: Kind,
    tail: str,
    body: dict[str, Any],
) -> None:
    name = asked.model or exchange.settings.default or ""
    exchange.translation = Talk(name, kind, _timing(exchange), streams=asked.streams)
    await _infer(gateway, exchange, tail, body)


async def _load(
    gateway: "Gateway", exchange: Exchange, asked: request.Asked, kind: Kind
) -> web.Response | None:
    """A request without a prompt: the model is to be there, or, with `keep_alive` 0, to go."""
    one = gateway.catalog(exchange).find(_name(exchange, asked.model))
    name, caller, settings = one.offer.name, exchange.caller, exchange.settings
    if asked.unloads:
        check_admin(caller)
        _ = await carry_out(settings, gateway.engines, "stop", name)
        reason = "unload"
    else:
        check_endpoint(caller, "chat/completions")
        with exchange.running():
            model = settings.config.engine_of(chosen(settings, gateway.engines, name))
            await _be_there(gateway.runtime, model, caller)
        reason = "load"
    text = line(asked.model, kind, {}, done=True, done_reason=reason)
    return web.Response(body=text, content_type="application/json")


async def _be_there(runtime: Runtime, model: str, caller: Caller) -> None:
    async with runtime.lease(model, source=caller.name, priority=caller.priority) as lease:
        await lease.settled("load a model")
        lease.admission.result()


async def _embed(gateway: "Gateway", exchange: Exchange, _: str, *, is_old: bool = False) -> None:
    asked = await _read(exchange, request.Embed)
    exchange.translation = Embeddings(
        asked.model or exchange.settings.default or "", _timing(exchange), is_old=is_old
    )
    await _infer(gateway, exchange, "embeddings", request.embed(asked))


async def _infer(gateway: "Gateway", exchange: Exchange, tail: str, body: dict[str, Any]) -> None:
    if "model" in body:
        body["model"] = _name(exchange, body["model"])
    upstream = Upstream("POST", f"/v1/{tail}", "", model=None)
    encoded = msgspec.json.encode(body)
    await infer(exchange, upstream, gateway.engines, encoded)


async def _read(exchange: Exchange, kind: type[Body]) -> Body:
    """The body as JSON, whatever its Content-Type says: curl's own is that of a form."""
    raw = await bodies.read(exchange.request, exchange.settings.config.server.max_body_bytes)
    return await bodies.off_loop(raw, _decode, raw, kind)


def _decode(raw: bytes, kind: type[Body]) -> Body:
    bodies.peek("application/json", raw)  # it is JSON, and not too deep for what is made of it
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as why:
        raise Refused("invalid_request", f"cannot use this request: {why}") from None


def _name(exchange: Exchange, asked: str) -> str:
    """The name as the configuration has it."""
    bare = asked.removesuffix(LATEST)
    return bare if asked not in exchange.settings.names and bare in exchange.settings.names else asked


def _timing(exchange: Exchange) -> Timing:
    return Timing(exchange.started_at, lambda: exchange.wait_s, asyncio.get_running_loop().time)


async def _unsupported(gateway: "Gateway", exchange: Exchange, _: str) -> None:
    raise Refused(
        "not_supported",
        f"cannot serve {exchange.path}: models are named in the configuration, and `llm-supervisor pull` "
        "downloads them",
    )


def _refused(*methods: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(method, Access.KEY, _unsupported) for method in methods)


ENDPOINTS: Mapping[str, tuple[Endpoint, ...]] = {
    "/api/version": (Endpoint("GET", Access.OPEN, _version),),
    "/api/tags": (Endpoint("GET", Access.KEY, _tags),),
    "/api/ps": (Endpoint("GET", Access.KEY, _ps),),
    "/api/show": (Endpoint("POST", Access.KEY, _show),),
    "/api/chat": (Endpoint("POST", Access.KEY, _chat),),
    "/api/generate": (Endpoint("POST", Access.KEY, _generate),),
    "/api/embed": (Endpoint("POST", Access.KEY, _embed),),
    "/api/embeddings": (Endpoint("POST", Access.KEY, partial(_embed, is_old=True)),),
    "/api/pull": _refused("POST"),
    "/api/push": _refused("POST"),
    "/api/create": _refused("POST"),
    "/api/copy": _refused("POST"),
    "/api/delete": _refused("DELETE"),
    "/api/blobs/": _refused("GET", "POST"),
}
