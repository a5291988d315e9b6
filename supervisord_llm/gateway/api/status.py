"""The endpoints that tell how things are, from memory: /, /healthz, /health, /routes, /stats, /metrics."""

from typing import Any

import msgspec
from aiohttp import web

from supervisord_llm import __version__
from supervisord_llm.config.model import Model
from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.routes.pick import warmth
from supervisord_llm.core.routes.reach import models_of
from supervisord_llm.core.routes.route import Route
from supervisord_llm.core.state import State
from supervisord_llm.gateway.auth import Caller
from supervisord_llm.gateway.settings import Settings
from supervisord_llm.telemetry.recorder import Recorder


def json_response(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def hint() -> web.Response:
    """What a person sees who opens the address in a browser."""
    return web.Response(
        text=f"llm-supervisor {__version__}: an OpenAI-compatible API is at /v1, its health at /healthz\n"
    )


def healthz(settings: Settings, fleet: Fleet) -> dict[str, Any]:
    """The daemon serves; whether a model does is told beside it."""
    return {
        "status": "ok",
        "version": __version__,
        "routes": {
            **{name: {"state": state_of(settings, fleet, name)} for name in settings.config.models},
            **{
                name: {"state": state_of(settings, fleet, name), "members": list(route.members)}
                for name, route in settings.config.routes.items()
            },
        },
    }


def health(settings: Settings, fleet: Fleet) -> dict[str, Any]:
    """Every model with what it holds and who waits for it. `vram_used` is bytes, null where not known."""
    models = {}
    for name in settings.config.models:
        engine = _engine(settings, fleet, name)
        models[name] = {
            "status": state_of(settings, fleet, name),
            "vram_used": sum(engine.used_bytes) if engine and engine.used_bytes is not None else None,
            "requests_in_flight": len(engine.leases) if engine else 0,
            "waiting": len(engine.waiting) if engine else 0,
        }
    return {"status": "healthy", "models": models}


def routes(settings: Settings, caller: Caller, fleet: Fleet) -> dict[str, Any]:
    """Every way to a model that the caller may use, by its name or through a route."""
    return {
        "default": settings.default if settings.default in caller.models else None,
        "routes": {
            offer.name: {"path": offer.path, "aliases": list(offer.aliases)}
            | (_route(settings, offer, fleet) if isinstance(offer, Route) else _model(settings, offer, fleet))
            for offer in settings.offers
            if offer.name in caller.models
        },
    }


def _model(settings: Settings, model: Model, fleet: Fleet) -> dict[str, Any]:
    return {"source": model.source, "state": state_of(settings, fleet, model.name)}


def _route(settings: Settings, route: Route, fleet: Fleet) -> dict[str, Any]:
    """`source` is what it leads to, members first."""
    return {
        "source": ", ".join(models_of(route.name, settings.config.routes)),
        "state": state_of(settings, fleet, route.name),
        "members": {name: state_of(settings, fleet, name) for name in route.members},
        "policy": route.policy.value,
        "sticky": route.sticky.value,
    }


def stats(settings: Settings, caller: Caller, fleet: Fleet, recorder: Recorder) -> dict[str, Any]:
    """What happened since the daemon started, per model and per route."""
    models = {}
    for model in settings.models:
        if model.name in caller.models:
            engine = _engine(settings, fleet, model.name)
            models[model.name] = {
                "state": state_of(settings, fleet, model.name),
                "requests_in_flight": len(engine.leases) if engine else 0,
                "waiting": len(engine.waiting) if engine else 0,
                **recorder.stats.of(model.name),
            }
    routes = {
        name: {"state": state_of(settings, fleet, name), **recorder.stats.of_route(name)}
        for name in settings.config.routes
        if name in caller.models
    }
    uptime_s = recorder.stats.uptime_s
    return {"version": __version__, "uptime_s": uptime_s, "models": models, "routes": routes}


def metrics(recorder: Recorder, accept: str) -> web.Response:
    """Prometheus text, or OpenMetrics where it is asked for."""
    body, content_type = recorder.metrics.render(accept)
    return web.Response(body=body, headers={"Content-Type": content_type})


def _engine(settings: Settings, fleet: Fleet, model: str) -> Engine | None:
    return fleet.engines.get(settings.config.engine_of(model))


def state_of(settings: Settings, fleet: Fleet, name: str) -> State:
    """Of a model; of a route that of the member which is nearest to serving."""
    route = settings.config.routes.get(name)
    engine = _engine(settings, fleet, name if route is None else nearest(settings, fleet, route))
    return State.STOPPED if engine is None else engine.state


def nearest(settings: Settings, fleet: Fleet, route: Route) -> str:
    """The member that serves, or has the least way to go until it does."""
    return min(route.members, key=lambda member: warmth(state_of(settings, fleet, member)))
