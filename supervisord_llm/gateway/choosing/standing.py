"""How the models of a route stand, from the fleet's snapshot. Pure."""

from collections.abc import Callable

from supervisord_llm.core import queue
from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.moves import opens_in_s
from supervisord_llm.core.outlook import needs_eviction, refusal
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
    why = refusal(fleet, engine, now)
    code, retry_after_s = _refused(fleet, engine, now) if why else ("start_failed", None)
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


def _refused(fleet: Fleet, engine: Engine, now: float) -> tuple[str, float | None]:
    """The code with which the core would refuse a request, and when to come again."""
    if fleet.stopping:
        return "shutting_down", None
    if engine.spec.closed:
        return "out_of_schedule", opens_in_s(engine, now)
    if engine.state is State.FAILED and now < engine.retry_at:
        return "start_failed", min(60.0, engine.retry_at - now)
    if engine.state is not State.STUCK and queue.is_full(engine):
        return "model_busy", None
    return "start_failed" if engine.state is State.STUCK else "no_vram", None
