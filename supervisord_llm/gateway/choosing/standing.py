"""How the models of a route stand, from the fleet's snapshot. Pure."""

from collections.abc import Callable

from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.outlook import needs_eviction
from supervisord_llm.core.refusal import foreseen
from supervisord_llm.core.routes.route import Standing
from supervisord_llm.core.state import State

COLD = frozenset({State.STOPPED, State.SLEEPING, State.BACKOFF, State.FAILED})
"""States from which it has to start, or to wake."""


def standing(
    fleet: Fleet,
    engine: Engine,
    now: float,
    context_length: Callable[[str], int | None],
    *,
    name: str = "",
    evictions: bool = False,
) -> Standing:
    """How a model stands that `engine` serves.

    Args:
        context_length: what its weights are made for.
        name: of the model, where it is not the engine's.
        evictions: whether to find out if its start would cost another engine its place.
    """
    refusal = foreseen(fleet, engine, now)
    code, why, retry_after_s = refusal or ("", "", None)
    return Standing(
        name=name or engine.name,
        state=engine.state,
        load=len(engine.leases) + len(engine.waiting),
        max_concurrent=engine.spec.max_concurrent,
        context=context(engine, context_length),
        evicts=evictions and not why and engine.state in COLD and needs_eviction(fleet, engine, now),
        unable=why,
        code=code,
        retry_after_s=retry_after_s,
    )


def context(engine: Engine, context_length: Callable[[str], int | None]) -> int | None:
    """Tokens it holds: as it was changed to after running out of memory, by its flag, or by its weights."""
    adjusted = dict(engine.learnt.adjusted).get("max-model-len") if engine.learnt.adjusted else None
    return adjusted or engine.spec.max_model_len or context_length(engine.name)
