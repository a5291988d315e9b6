"""Lists of models and what they can do, in Ollama's shape. From memory; starts nothing."""

import hashlib
import time
from typing import Any

from supervisord_llm.core.fleet import Engine
from supervisord_llm.core.state import RESTS
from supervisord_llm.gateway.api.catalog import Catalog, Listed
from supervisord_llm.gateway.clock import iso

VERSION = "0.12.6"
"""The version of Ollama whose API this is: clients refuse to talk to one that is too old."""

FOR_EVER_S = 100 * 365 * 24 * 3600.0
"""When a model goes that nothing ends for being idle."""


def tags(catalog: Catalog) -> dict[str, Any]:
    """GET /api/tags: every model."""
    return {"models": [_entry(one, catalog) for one in catalog.listed()]}


def running(catalog: Catalog, now: float) -> dict[str, Any]:
    """GET /api/ps: those that are loaded, asleep ones too. `now` is loop time, seconds."""
    return {
        "models": [
            _entry(one, catalog)
            | {
                "expires_at": _expires_at(one.engine, now),
                "size_vram": sum(one.engine.used_bytes or one.engine.granted_bytes),
                "context_length": one.can.max_model_len or 0,
            }
            for one in catalog.listed()
            if one.engine is not None and one.engine.state in RESTS and one.name == one.model.name
        ]
    }


def show(one: Listed, catalog: Catalog) -> dict[str, Any]:
    """POST /api/show: one model. `model_info` has what clients look for in a GGUF file's metadata."""
    family = _family(one)
    info: dict[str, Any] = {"general.architecture": family, "general.basename": one.name}
    if one.can.max_model_len is not None:
        info[f"{family}.context_length"] = one.can.max_model_len
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _details(one),
        "model_info": info,
        "capabilities": capabilities(one),
        "modified_at": iso(catalog.created),
    }


def capabilities(one: Listed) -> list[str]:
    """In Ollama's words."""
    main = {"generate": "completion", "embed": "embedding", "classify": "reranking"}[one.can.task]
    beside = {"vision": "image" in one.can.inputs, "audio": "audio" in one.can.inputs}
    beside |= {"tools": one.can.tools is not False, "thinking": one.can.thinking}
    return [main, *(word for word, applies in beside.items() if applies)]


def _entry(one: Listed, catalog: Catalog) -> dict[str, Any]:
    estimate = one.engine.estimate if one.engine is not None else None
    identity = f"{one.source}@{one.model.revision}"
    return {
        "name": one.name,
        "model": one.name,
        "modified_at": iso(catalog.created),
        "size": estimate.host_bytes if estimate is not None else 0,
        "digest": hashlib.sha256(identity.encode()).hexdigest(),
        "details": _details(one),
    }


def _details(one: Listed) -> dict[str, Any]:
    family = _family(one)
    return {
        "parent_model": one.offer.name if one.is_alias else "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": one.card.precision if one.card is not None else "",
    }


def _family(one: Listed) -> str:
    return (one.card.model_type if one.card is not None else "") or "unknown"


def _expires_at(engine: Engine, now: float) -> str:
    """When it is stopped unless it is used again."""
    after_s = engine.spec.stop_after_s
    if engine.spec.keep or after_s is None:
        left_s = FOR_EVER_S
    elif engine.leases or engine.waiting:
        left_s = after_s
    else:
        left_s = max(0.0, max(engine.last_used, engine.since) + after_s - now)
    return iso(time.time() + left_s)
