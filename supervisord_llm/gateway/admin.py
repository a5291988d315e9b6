"""/admin: orders to the runtime, and a close look at it. Every caller here is an admin."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec
from aiohttp import web

from supervisord_llm import __version__
from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.ledger import held_bytes
from supervisord_llm.core.state import HAS_PROCESS, State
from supervisord_llm.errors import ConfigError, Refused
from supervisord_llm.gateway import body as bodies
from supervisord_llm.gateway.clock import iso, iso_of_loop_time
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.following import send_events
from supervisord_llm.gateway.ports import Entry, Logs, Reload, Runtime
from supervisord_llm.gateway.route import model_not_found
from supervisord_llm.gateway.status import json_response

MAX_ORDER_BYTES = 64 * 1024
MAX_LINES = 100_000


class _Order(msgspec.Struct):
    model: str | None = None
    route: str | None = None


async def drive(exchange: Exchange, runtime: Runtime, verb: str) -> web.Response:
    """POST /admin/start, stop, restart: waits until it is settled."""
    raw = await bodies.read(exchange.request, MAX_ORDER_BYTES)
    try:
        order = msgspec.json.decode(raw, type=_Order)
    except (ValueError, RecursionError) as why:
        raise Refused("invalid_json", f'cannot read the order: {why}; send {{"model": "NAME"}}') from None
    asked = order.model if order.model is not None else order.route
    if asked is None:
        raise Refused("invalid_request", 'cannot tell which model is meant: send {"model": "NAME"}')
    model = _model(exchange, asked)  # not `exchange.model`: an order is no request that an engine served
    act = {"start": runtime.start, "stop": runtime.stop, "restart": runtime.restart}[verb]
    engine = await act(model)
    return json_response({"model": model, "state": engine.state.value})


async def reload_config(reload: Reload) -> web.Response:
    """POST /admin/reload: what changed, or every problem and nothing changed."""
    try:
        return json_response(await reload())
    except ConfigError as why:
        problems = "\n".join(str(problem) for problem in why.problems)
        raise Refused("invalid_config", f"cannot reload, the old configuration stays:\n{problems}") from None


def status(exchange: Exchange, fleet: Fleet, uptime_s: float) -> dict[str, Any]:
    """GET /admin/status: everything about every model. Times are ISO 8601, durations seconds."""
    held = held_bytes(fleet, fleet.gpus)
    return {
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": uptime_s,
        "stopping": fleet.stopping,
        "models": {
            model.name: _engine(fleet.engines[model.name])
            for model in exchange.settings.models
            if model.name in fleet.engines
        },
        "gpus": [
            {
                "index": gpu.index,
                "held_bytes": held[gpu.index],
                "uuid": gpu.uuid,
                "name": gpu.name,
                "total_bytes": gpu.total_bytes,
                "budget_bytes": gpu.budget_bytes,
                "models": [engine.name for engine in fleet if gpu.index in engine.gpus],
            }
            for gpu in fleet.gpus.values()
        ],
    }


def _engine(engine: Engine) -> dict[str, Any]:
    now = asyncio.get_running_loop().time()
    is_ready = engine.state is State.READY
    waits_to_retry = engine.state in (State.BACKOFF, State.FAILED)
    return {
        "state": engine.state.value,
        "since": iso_of_loop_time(engine.since),
        "state_s": round(now - engine.since, 3),
        "phase": engine.phase,
        "fraction": engine.fraction,
        "gpus": list(engine.gpus),
        "launch": engine.launch,
        "requests_in_flight": len(engine.leases),
        "waiting": len(engine.waiting),
        "uptime_s": round(now - engine.since, 3) if is_ready else None,
        "idle_s": round(now - max(engine.last_used, engine.since), 3) if engine.is_idle else None,
        "last_used": iso_of_loop_time(engine.last_used) if engine.last_used else None,
        "last_error": engine.last_error,
        "disabled": engine.spec.disabled,
        "failures": len(engine.failures),
        "retry_in_s": round(max(0.0, engine.retry_at - now), 3) if waits_to_retry else None,
        "has_process": engine.state in HAS_PROCESS,
    }


async def events(exchange: Exchange, runtime: Runtime) -> None:
    """GET /admin/events: decisions as server-sent events, `n` recent ones first (default 0), then live.

    follow=0 ends it after the recent ones.
    """
    asked = parse_qs(exchange.query)
    count = _number(asked, "n", 0)

    def recent() -> Sequence[Entry]:
        return runtime.events.recent(count) if count else ()

    follows = _flag(asked, "follow", default=True)
    await send_events(exchange, recent, runtime.events.follow() if follows else None, _entry)


async def logs(exchange: Exchange, logs_of: Logs, model: str) -> None:
    """GET /admin/logs/{model}: the last `n` lines (default 100) as text; follow=1: as events, then live."""
    asked = parse_qs(exchange.query)
    tail = logs_of(_model(exchange, model))
    count = _number(asked, "n", 100)

    def last() -> Sequence[str]:
        return tail.last(count) if count else ()

    if _flag(asked, "follow", default=False):
        await send_events(exchange, last, tail.follow(), lambda line: {"line": line})
    else:
        await exchange.begin(web.Response(text="".join(f"{line}\n" for line in last())))


def _entry(entry: Entry) -> dict[str, Any]:
    return {"at": iso(entry.at), "model": entry.model, "text": entry.text, "is_bad": entry.is_bad}


def _model(exchange: Exchange, asked: str) -> str:
    """The model of a name or alias."""
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
    return asked.get(name, ["1" if default else "0"])[-1].lower() in ("1", "true", "yes")
