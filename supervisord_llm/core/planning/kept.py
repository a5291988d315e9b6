"""What `keep = true` takes from others for good: kept engines never make room. Pure."""

from collections.abc import Iterator, Sequence

from supervisord_llm.core.explain import gib
from supervisord_llm.core.explain_memory import listed
from supervisord_llm.core.fleet import Fleet
from supervisord_llm.core.ledger import grant_bytes
from supervisord_llm.core.placement import impossible
from supervisord_llm.core.planning.together import Need, all_fit


def conflicts(fleet: Fleet) -> dict[str, str]:
    """Of models that fit alone, those that cannot be beside what is kept, and why, by name."""
    budgets = {index: gpu.budget_bytes for index, gpu in fleet.gpus.items()}
    kinds = {index: gpu.total_bytes for index, gpu in fleet.gpus.items()}
    needs = tuple(_needs(fleet))
    kept = [need for need in needs if fleet.engines[need.name].spec.keep]
    if not kept:
        return {}
    names = f"{listed(need.name for need in kept)} (keep = true)"
    if not all_fit(kept, budgets, kinds):
        why = _too_much(kept, budgets) or f"{names} do not fit the GPUs together"
        return {need.name: f"{why}, so not all of them can be ready at once" for need in kept}
    return {
        need.name: f"it can never start while {names} {'is' if len(kept) == 1 else 'are'} ready"
        for need in needs
        if need not in kept and not all_fit([*kept, need], budgets, kinds)
    }


def _needs(fleet: Fleet) -> Iterator[Need]:
    for engine in fleet:
        spec = engine.spec
        if impossible(engine, fleet):
            continue
        candidates = fleet.gpus if spec.pinned is None else spec.pinned
        grants = {index: grant_bytes(engine, fleet.gpus[index]) for index in candidates}
        fitting = {index: grant for index, grant in grants.items() if grant <= fleet.gpus[index].budget_bytes}
        if fitting:
            yield Need(
                engine.name, spec.pinned, spec.gpu_count if spec.pinned is None else len(fitting), fitting
            )


def _too_much(kept: Sequence[Need], budgets: dict[int, int]) -> str:
    """The GPU to which too many of them are confined."""
    for index, budget in budgets.items():
        bound = [need for need in kept if index in need.grants and need.count == len(need.grants)]
        taken = sum(need.grants[index] for need in bound)
        if taken > budget:
            names = listed(need.name for need in bound)
            return f"{names} (keep = true) take {gib(taken)} of GPU {index}, whose budget is {gib(budget)}"
    return ""
