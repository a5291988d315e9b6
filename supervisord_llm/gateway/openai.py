"""GET /v1/models: what the key may use, from memory. Starts nothing and asks no engine."""

from collections.abc import Mapping
from typing import Any

from supervisord_llm.config.model import Model
from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.sizing.serving import whole
from supervisord_llm.core.state import State
from supervisord_llm.gateway.auth import Caller, check_model
from supervisord_llm.gateway.ports import ContextLength
from supervisord_llm.gateway.route import Listing, model_not_found
from supervisord_llm.gateway.settings import Settings

STATUS: Mapping[State, str] = {
    State.STOPPED: "unloaded",
    State.PREPARING: "loading",
    State.QUEUED: "loading",
    State.STARTING: "loading",
    State.READY: "loaded",
    State.SLEEPING: "unloaded",
    State.WAKING: "loading",
    State.DRAINING: "unloaded",
    State.STOPPING: "unloaded",
    State.BACKOFF: "unloaded",
    State.FAILED: "unloaded",
    State.STUCK: "unloaded",
}
"""Our states in the words that Open WebUI and llama.cpp's clients know."""


def models(
    listing: Listing,
    settings: Settings,
    caller: Caller,
    fleet: Fleet,
    created: int,
    context_length: ContextLength,
) -> dict[str, Any]:
    """The list, or one entry of it.

    Raises:
        Refused: `model_not_found`, `model_forbidden`.
    """
    if listing.model is not None:
        check_model(caller, listing.model)
    shown = [
        model
        for model in settings.models
        if model.name in caller.models and listing.model in (None, model.name)
    ]
    entries = {
        name: _entry(name, model, fleet.engines.get(model.name), created) | {"max_model_len": longest}
        for model in shown
        for longest in [_max_model_len(model, fleet) or context_length(model.name)]
        for name in (model.name, *model.aliases)
    }
    if listing.id is None:
        return {"object": "list", "data": list(entries.values())}
    if listing.id not in entries:
        if listing.model is None and listing.id in settings.names:
            check_model(caller, settings.names[listing.id])
        raise model_not_found(listing.id, list(entries))
    return entries[listing.id]


def _entry(name: str, model: Model, engine: Engine | None, created: int) -> dict[str, Any]:
    state = State.STOPPED if engine is None else engine.state
    status: dict[str, Any] = {"value": STATUS[state], "state": state.value}
    if engine is not None and STATUS[state] == "loading" and engine.fraction is not None:
        status["progress"] = engine.fraction
    if state is State.FAILED:
        status["failed"] = True
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "llm-supervisor",
        "name": name,
        "root": model.source,
        "parent": None,
        "status": status,
    }


def _max_model_len(model: Model, fleet: Fleet) -> int | None:
    """As changed after it ran out of memory, else as the flag says it; None leaves it to the weights."""
    engine = fleet.engines.get(model.name)
    adjusted = dict(engine.learnt.adjusted) if engine is not None else {}
    return adjusted.get("max-model-len") or whole(model.flags.get("max-model-len"))
