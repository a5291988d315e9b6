"""/admin: orders to the runtime, its decisions and its engines' output. Every caller here is an admin."""

from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs

import msgspec
from aiohttp import web

from supervisord_llm.config.kinds import Unreadable
from supervisord_llm.config.values import DURATION, read_duration
from supervisord_llm.errors import ConfigError, Refused
from supervisord_llm.gateway import body as bodies
from supervisord_llm.gateway.api.following import send_events
from supervisord_llm.gateway.api.orders import Verb, carry_out
from supervisord_llm.gateway.api.overview import entry_as_json
from supervisord_llm.gateway.api.status import json_response
from supervisord_llm.gateway.choosing.search import Engines
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.ports import Entry, Logs, Reload, Runtime, Timetable
from supervisord_llm.gateway.target import model_not_found

MAX_LINES = 100_000
FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class _Order(msgspec.Struct):
    model: str | msgspec.UnsetType = msgspec.UNSET
    route: str | msgspec.UnsetType = msgspec.UNSET


class _Override(msgspec.Struct, rename={"for_": "for"}, forbid_unknown_fields=True):
    window: str | None
    for_: str | float | None = None


async def drive(exchange: Exchange, engines: Engines, verb: Verb) -> web.Response:
    """POST /admin/start, stop, restart, sleep, wake, switch: waits until it is settled."""
    order = await bodies.read_order(exchange.request, _Order, 'send {"model": "NAME"}')
    asked = [name for name in (order.model, order.route) if name is not msgspec.UNSET]
    if len(asked) != 1:
        raise Refused("invalid_request", 'cannot tell which model is meant: send {"model": "NAME"}')
    name = name_of(exchange, asked[0])  # not `exchange.model`: an order is no request that an engine served
    return json_response(await carry_out(exchange.settings, engines, verb, name))


async def reload_config(reload: Reload) -> web.Response:
    """POST /admin/reload: what changed, or every problem and nothing changed."""
    try:
        return json_response(await reload())
    except ConfigError as why:
        problems = "\n".join(str(problem) for problem in why.problems)
        raise Refused("invalid_config", f"cannot reload, the old configuration stays:\n{problems}") from None


async def override(exchange: Exchange, timetable: Timetable) -> web.Response:
    """POST /admin/schedule: what is in force from now on."""
    way_out = 'send {"window": "NAME", "for": "1h"}; null is no window, "auto" what the hours say'
    order = await bodies.read_order(exchange.request, _Override, way_out)
    try:
        for_s = None if order.for_ is None else read_duration(order.for_)
    except Unreadable:
        why_not = f'cannot read "for": write {DURATION.accepts}'
        raise Refused("invalid_request", why_not, param="for") from None
    await timetable.override(order.window, for_s)
    return json_response(timetable.describe())


async def events(exchange: Exchange, runtime: Runtime) -> None:
    """GET /admin/events: decisions as server-sent events, `n` recent ones first (default 0), then live.

    follow=0 ends it after the recent ones.
    """
    asked = parse_qs(exchange.query)
    count = _number(asked, "n", 0)

    def recent() -> Sequence[Entry]:
        return runtime.events.recent(count) if count else ()

    follows = _flag(asked, "follow", default=True)
    await send_events(exchange, recent, runtime.events.follow() if follows else None, entry_as_json)


async def logs(exchange: Exchange, logs_of: Logs, model: str) -> None:
    """GET /admin/logs/{model}: the last `n` lines (default 100) as text; follow=1: as events, then live."""
    asked = parse_qs(exchange.query)
    name = name_of(exchange, model)
    if name in exchange.settings.config.routes:
        members = ", ".join(exchange.settings.config.routes[name].members)
        message = f"cannot show the logs of {name}: it is a route; ask for one of its members: {members}"
        raise Refused("invalid_request", message)
    if exchange.settings.config.models[name].engine == "remote":
        message = f"cannot show the logs of {name}: it runs on another machine; see `llm-supervisor events`"
        raise Refused("invalid_request", message)
    tail = logs_of(exchange.settings.config.engine_of(name))
    count = _number(asked, "n", 100)

    def last() -> Sequence[str]:
        return tail.last(count) if count else ()

    if _flag(asked, "follow", default=False):
        await send_events(exchange, last, tail.follow(), lambda line: {"line": line})
    else:
        await exchange.begin(web.Response(text="".join(f"{line}\n" for line in last())))


def name_of(exchange: Exchange, asked: str) -> str:
    """The model or route of a name or alias."""
    names = exchange.settings.names
    if asked not in names:
        raise model_not_found(asked, list(names))
    return names[asked]


def _number(asked: Mapping[str, list[str]], name: str, default: int) -> int:
    value = asked.get(name, [str(default)])[-1]
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise Refused("invalid_request", f"cannot use {name}={value[:50]!r}: it must be a whole number")
    return min(int(value), MAX_LINES)


def _flag(asked: Mapping[str, list[str]], name: str, *, default: bool) -> bool:
    value = asked.get(name, ["1" if default else "0"])[-1]
    if value not in FLAGS:
        raise Refused("invalid_request", f"cannot use {name}={value[:50]!r}: it must be 0 or 1")
    return FLAGS[value]
