"""What llama.cpp's router offers beside /v1: load states, and buttons to load and unload.

These routes have no /v1 in front, as there: GET /v1/models/{id} stays what OpenAI's API says.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from supervisord_llm.core.events import Event
from supervisord_llm.core.fleet import Fleet
from supervisord_llm.core.state import State
from supervisord_llm.errors import Refused
from supervisord_llm.gateway import body as bodies
from supervisord_llm.gateway.api import admin, openai
from supervisord_llm.gateway.api.catalog import Listed
from supervisord_llm.gateway.api.following import send_events
from supervisord_llm.gateway.api.orders import Verb, carry_out
from supervisord_llm.gateway.api.status import json_response
from supervisord_llm.gateway.endpoint import Access, Endpoint
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.target import Listing

if TYPE_CHECKING:
    from supervisord_llm.gateway.app import Gateway

GRACE_S = 0.2
"""How long an order may take to be refused before it counts as taken."""

STEP_S = 0.2
"""How long changes are gathered: a load tells its progress more often than anyone can watch."""


class _Order(msgspec.Struct):
    model: str


async def _models(gateway: "Gateway", exchange: Exchange, _: str) -> web.Response:
    return json_response(openai.models(Listing(None, None), gateway.catalog(exchange)))


async def _load(gateway: "Gateway", exchange: Exchange, _: str) -> web.Response:
    """Answers at once; what becomes of it is seen in the list and in the events."""
    return await _take(gateway, exchange, "start")


async def _unload(gateway: "Gateway", exchange: Exchange, _: str) -> web.Response:
    return await _take(gateway, exchange, "stop")


async def _take(gateway: "Gateway", exchange: Exchange, verb: Verb) -> web.Response:
    order = await bodies.read_order(exchange.request, _Order, 'send {"model": "NAME"}')
    name = admin.name_of(exchange, order.model)
    refusal: asyncio.Future[Refused] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        try:
            await carry_out(exchange.settings, gateway.engines, verb, name)
        except Refused as refused:  # told to who still waits; the events and the list tell others
            refusal.set_result(refused)

    task = gateway.orders.start(f"an order for {name}", work())
    await asyncio.wait([task], timeout=GRACE_S)
    if refusal.done():
        raise refusal.result()
    return json_response({"success": True})


async def _events(gateway: "Gateway", exchange: Exchange, _: str) -> None:
    """Each change of a model's status, until the client leaves or the configuration is read again."""
    await send_events(exchange, tuple, _changes(gateway, exchange), lambda change: change)


async def _changes(gateway: "Gateway", exchange: Exchange) -> AsyncIterator[dict[str, Any]]:
    changed = asyncio.Event()

    def note(event: Event, fleet: Fleet) -> None:
        changed.set()

    known = _statuses(gateway, exchange)
    gateway.runtime.observers.append(note)
    try:
        while True:
            await changed.wait()
            changed.clear()
            now = gateway.settings_of(exchange.request)
            if now is not exchange.settings:  # names and rights are others now: ask again
                yield {"model": "*", "event": "models_reload"}
                return
            before, known = known, _statuses(gateway, exchange)
            for name, data in known.items():
                if before.get(name) != data:
                    yield {"model": name, "event": "model_status", "data": data}
            await asyncio.sleep(STEP_S)
    finally:
        gateway.runtime.observers.remove(note)


def _statuses(gateway: "Gateway", exchange: Exchange) -> dict[str, dict[str, Any]]:
    return {one.name: status_data(one) for one in gateway.catalog(exchange).listed()}


def status_data(one: Listed) -> dict[str, Any]:
    """The `data` of a model_status event."""
    data: dict[str, Any] = {"status": one.status}
    if one.progress is not None:
        data["progress"] = one.progress
    if one.state in (State.FAILED, State.BACKOFF):
        data["exit_code"] = 1
    return data


async def _download(gateway: "Gateway", exchange: Exchange, _: str) -> None:
    raise Refused(
        "not_supported",
        "cannot download a model by HTTP: name it in the configuration and run `llm-supervisor pull`",
    )


async def _delete(gateway: "Gateway", exchange: Exchange, _: str) -> None:
    raise Refused(
        "not_supported", "cannot delete a model by HTTP: take it out of the configuration and reload"
    )


ENDPOINTS: Mapping[str, tuple[Endpoint, ...]] = {
    "/models": (
        Endpoint("GET", Access.KEY, _models),
        Endpoint("POST", Access.KEY, _download),
        Endpoint("DELETE", Access.KEY, _delete),
    ),
    "/models/load": (Endpoint("POST", Access.ADMIN, _load),),
    "/models/unload": (Endpoint("POST", Access.ADMIN, _unload),),
    "/models/sse": (Endpoint("GET", Access.KEY, _events),),
}
