"""GET /v1/models: what the key may use, with all that clients read there beside OpenAI's own fields."""

from typing import Any

from supervisord_llm.core.state import State
from supervisord_llm.gateway.api.catalog import Catalog, Listed
from supervisord_llm.gateway.auth import check_model
from supervisord_llm.gateway.target import Listing


def models(listing: Listing, catalog: Catalog) -> dict[str, Any]:
    """The list, or one entry of it.

    Raises:
        Refused: `model_not_found`, `model_forbidden`.
    """
    if listing.model is not None:
        check_model(catalog.caller, listing.model)
    if listing.id is not None:
        return _entry(catalog.find(listing.id, listing.model), catalog.created)
    return {
        "object": "list",
        "data": [_entry(one, catalog.created) for one in catalog.listed(listing.model)],
    }


def _entry(one: Listed, created: int) -> dict[str, Any]:
    """`max_model_len`, `root` and `parent` are vLLM's, `status` and `architecture` llama.cpp's, others those
    of Open WebUI."""
    return {
        "id": one.name,
        "object": "model",
        "created": created,
        "owned_by": "llm-supervisor",
        "name": one.name,
        "root": one.source,
        "parent": None if one.route is not None else one.model.adapter_of,
        "max_model_len": one.can.max_model_len,
        "status": _status(one),
        "architecture": {"input_modalities": list(one.can.inputs), "output_modalities": _outputs(one)},
        "tags": [{"name": word} for word in one.can.words],
        "info": {"meta": _meta(one)},
    }


def _status(one: Listed) -> dict[str, Any]:
    status: dict[str, Any] = {"value": one.status, "state": one.state.value}
    if one.progress is not None:
        status["progress"] = one.progress
    if one.state is State.FAILED:
        status |= {"failed": True, "exit_code": 1}  # any but 0 is a failure to llama.cpp's clients
    return status


def _outputs(one: Listed) -> list[str]:
    return {"generate": ["text"], "embed": ["embeddings"], "classify": ["scores"]}[one.can.task]


def _meta(one: Listed) -> dict[str, Any]:
    """What Open WebUI shows, and whether it offers its own tools with each chat."""
    of = f"{one.offer.name}: " if one.is_alias else ""
    what = "" if one.route is None else f"{one.route.policy} of "
    length = one.can.max_model_len
    context = f", {length} tokens of context" if length else ""
    can = {"builtin_tools": one.can.tools} if one.can.tools is not None else {}
    if one.card is not None:
        can["vision"] = "image" in one.can.inputs
    return {"description": f"{of}{what}{one.source}{context}", "capabilities": can}
