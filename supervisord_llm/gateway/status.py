"""The endpoints that tell how things are, from memory: /, /healthz, /health, /routes, /stats, /metrics."""

from typing import Any

import msgspec
from aiohttp import web

from supervisord_llm import __version__
from supervisord_llm.core.fleet import Fleet
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
        "routes": {name: {"state": _state(fleet, name)} for name in settings.config.models},
    }


def health(settings: Settings, fleet: Fleet) -> dict[str, Any]:
    """Every model with what it holds and who waits for it. `vram_used` is bytes, null where not known."""
    models = {}
    for name in settings.config.models:
        engine = fleet.engines.get(name)
        models[name] = {
            "status": _state(fleet, name),
            "vram_used": sum(engine.used_bytes) if engine and engine.used_bytes is not None else None,
            "requests_in_flight": len(engine.leases) if engine else 0,
            "waiting": len(engine.waiting) if engine else 0,
        }
    return {"status": "healthy", "models": models}


def routes(settings: Settings, caller: Caller, fleet: Fleet) -> dict[str, Any]:
    """Every way to a model that the caller may use."""
    return {
        "default": settings.default if settings.default in caller.models else None,
        "routes": {
            model.name: {
                "path": model.path,
                "aliases": list(model.aliases),
                "source": model.source,
                "state": _state(fleet, model.name),
            }
            for model in settings.models
            if model.name in caller.models
        },
    }


def stats(settings: Settings, caller: Caller, fleet: Fleet, recorder: Recorder) -> dict[str, Any]:
    """What happened since the daemon started, per model."""
    models = {}
    for model in settings.models:
        if model.name in caller.models:
            engine = fleet.engines.get(model.name)
            models[model.name] = {
                "state": _state(fleet, model.name),
                "requests_in_flight": len(engine.leases) if engine else 0,
                "waiting": len(engine.waiting) if engine else 0,
                **recorder.stats.of(model.name),
            }
    return {"version": __version__, "uptime_s": recorder.stats.uptime_s, "models": models}


def metrics(recorder: Recorder, accept: str) -> web.Response:
    """Prometheus text, or OpenMetrics where it is asked for."""
    body, content_type = recorder.metrics.render(accept)
    return web.Response(body=body, headers={"Content-Type": content_type})


def _state(fleet: Fleet, model: str) -> str:
    engine = fleet.engines.get(model)
    return (State.STOPPED if engine is None else engine.state).value
