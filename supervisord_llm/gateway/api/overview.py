"""The close look for admins: /admin/status, /admin/plan, /admin/explain. Durations are seconds."""

import asyncio
import os
from dataclasses import asdict
from typing import Any

from supervisord_llm import __version__
from supervisord_llm.core.allocation import wants_room
from supervisord_llm.core.fleet import Engine, Fleet, Gpu, GpuSample
from supervisord_llm.core.ledger import foreign_bytes, grant_bytes, held_bytes
from supervisord_llm.core.outlook import outlook, standing
from supervisord_llm.core.planning.plan import as_json, plan, source
from supervisord_llm.core.planning.suggest import LongestContext
from supervisord_llm.core.queue import turn_order
from supervisord_llm.core.state import HAS_PROCESS, MEANING, State
from supervisord_llm.gateway.clock import iso, iso_of_loop_time
from supervisord_llm.gateway.ports import Entry, Facts, Runtime
from supervisord_llm.gateway.settings import Settings
from supervisord_llm.runtime.ports import Usage

DECISIONS = 20
"""How many decisions about a model are told with it."""

REMEMBERED = 1000
"""How far back they are looked for, among those about all models."""


def status(settings: Settings, fleet: Fleet, uptime_s: float, facts: Facts) -> dict[str, Any]:
    """GET /admin/status: everything about every model and GPU."""
    now = asyncio.get_running_loop().time()
    places = _places(fleet, now)
    return {
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": uptime_s,
        "stopping": fleet.stopping,
        "models": {
            model.name: _engine(fleet.engines[model.name], now)
            | {"engine": model.engine, "place": places.get(model.name)}
            | asdict(facts.usage(model.name) or Usage())
            | asdict(facts.reach(model))
            | {"tools": model.tools, "tool_parser": facts.tool_parser(model.name) or None}
            | {"adapters": [adapter.name for adapter in model.adapters]}
            for model in settings.models
            if model.name in fleet.engines
        },
        "gpus": [_gpu(gpu, fleet, now) for gpu in fleet.gpus.values()],
    }


async def whole_plan(fleet: Fleet, longest_context: LongestContext | None) -> dict[str, Any]:
    """GET /admin/plan. Worked out in a thread: with many models it takes longer than streams may wait."""
    return as_json(await asyncio.to_thread(plan, fleet, longest_context))


def explanation(runtime: Runtime, model: str) -> dict[str, Any]:
    """GET /admin/explain/{model}: why it is as it is, who waits, and what a request would bring about."""
    fleet = runtime.fleet
    engine, now = fleet.engines[model], asyncio.get_running_loop().time()
    return {
        "model": model,
        "state": engine.state.value,
        "since": _since(engine),
        "summary": standing(engine, now),
        "outlook": outlook(fleet, engine, now),
        "grant": _grant(engine, fleet),
        "place": _places(fleet, now).get(model),
        "waiting": [
            {
                "source": one.source,
                "place": place,
                "waits_s": round(now - one.since, 3),
                "reason": engine.phase or MEANING[engine.state],
            }
            for place, one in enumerate(engine.waiting, 1)
        ],
        "decisions": [
            entry_as_json(entry) for entry in runtime.events.recent(REMEMBERED) if entry.model == model
        ][-DECISIONS:],
    }


def entry_as_json(entry: Entry) -> dict[str, Any]:
    """One decision."""
    return {"at": iso(entry.at), "model": entry.model, "text": entry.text, "is_bad": entry.is_bad}


def _places(fleet: Fleet, now: float) -> dict[str, int]:
    """The place of each model that waits for room on GPUs, from 1."""
    waiting = sorted(filter(wants_room, fleet), key=lambda engine: turn_order(engine, now))
    return {engine.name: place for place, engine in enumerate(waiting, 1)}


def _engine(engine: Engine, now: float) -> dict[str, Any]:
    is_ready = engine.state is State.READY
    waits_to_retry = engine.state in (State.BACKOFF, State.FAILED)
    return {
        "state": engine.state.value,
        "since": _since(engine),
        "state_s": round(now - engine.since, 3),
        "phase": engine.phase,
        "fraction": engine.fraction,
        "gpus": list(engine.gpus),
        "grant_bytes": list(engine.granted_bytes),
        "used_bytes": None if engine.used_bytes is None else list(engine.used_bytes),
        "asleep": engine.asleep_at is not None,
        "sleepless": engine.sleepless,
        "yields_to": engine.yields_to,
        "adjusted": dict(engine.learnt.adjusted),
        "estimate": _estimate(engine),
        "launch": engine.launch,
        "requests_in_flight": len(engine.leases),
        "waiting": len(engine.waiting),
        "uptime_s": round(now - engine.since, 3) if is_ready else None,
        "idle_s": round(now - max(engine.last_used, engine.since), 3) if engine.is_idle else None,
        "last_used": iso_of_loop_time(engine.last_used) if engine.last_used else None,
        "last_error": engine.last_error,
        "disabled": engine.spec.disabled,
        "closed": engine.spec.closed,
        "failures": len(engine.failures),
        "retry_in_s": _retry_in_s(engine, now) if waits_to_retry else None,
        "has_process": engine.state in HAS_PROCESS and not engine.spec.elsewhere,
    }


def _since(engine: Engine) -> str | None:
    """When it entered its state; None where it never left its first one."""
    return iso_of_loop_time(engine.since) if engine.since else None


def _retry_in_s(engine: Engine, now: float) -> float | None:
    """None where it is not tried again by itself."""
    wait_s = max(0.0, engine.retry_at - now)
    return round(wait_s, 3) if wait_s != float("inf") else None


def _estimate(engine: Engine) -> dict[str, int] | None:
    estimate = engine.estimate
    return None if estimate is None else asdict(estimate) | {"total_bytes": estimate.total_bytes}


def _grant(engine: Engine, fleet: Fleet) -> dict[str, Any]:
    """What it holds, or else what it would take of each GPU that it may be on."""
    spec = engine.spec
    candidates = tuple(fleet.gpus) if spec.pinned is None else spec.pinned
    return {
        "source": source(engine),
        "gpus": list(engine.gpus),
        "granted_bytes": list(engine.granted_bytes),
        "used_bytes": None if engine.used_bytes is None else list(engine.used_bytes),
        "asks_bytes": {
            str(index): grant_bytes(engine, fleet.gpus[index]) for index in candidates if index in fleet.gpus
        },
        "adjusted": dict(engine.learnt.adjusted),
    }


def _gpu(gpu: Gpu, fleet: Fleet, now: float) -> dict[str, Any]:
    holders = [engine for engine in fleet if gpu.index in engine.gpus]
    sample = fleet.samples.get(gpu.index)
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "total_bytes": gpu.total_bytes,
        "budget_bytes": gpu.budget_bytes,
        "held_bytes": held_bytes(holders, {gpu.index: gpu})[gpu.index],
        "models": [engine.name for engine in holders],
        **_look(sample, holders, now),
    }


def _look(sample: GpuSample | None, holders: list[Engine], now: float) -> dict[str, Any]:
    """What the last look at a GPU told; null is "cannot be learnt"."""
    if sample is None:
        sample = GpuSample(index=-1, at=now)
    is_known = sample.used_bytes is not None
    return {
        "used_bytes": sample.used_bytes,
        "stranger_bytes": foreign_bytes(sample, holders) if is_known else None,
        "strangers": [asdict(stranger) for stranger in sample.strangers],
        "utilization": sample.utilization,
        "temperature_c": sample.temperature_c,
        "lost": sample.lost,
    }
