"""Which GPUs a model gets, or why it has to wait."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from supervisord_llm.core import explain
from supervisord_llm.core.eviction import victims
from supervisord_llm.core.fleet import Engine, Gpu, ModelSpec
from supervisord_llm.core.ledger import grant_bytes, held_bytes
from supervisord_llm.core.state import State


@dataclass(frozen=True, slots=True)
class Place:
    """Launch on these GPUs now."""

    gpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evict:
    """Stop these idle engines first; `gpus` are spoken for meanwhile."""

    gpus: tuple[int, ...]
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done yet; `gpus` are spoken for, so that later ones do not overtake."""

    gpus: tuple[int, ...]
    reason: str


def impossible(spec: ModelSpec, gpus: Mapping[int, Gpu]) -> str:
    """Why `spec` can never run on this host, or "" if it can.

    Without a GPU a model that lets the scheduler choose runs on the CPU.
    """
    if spec.disabled:
        return spec.disabled
    if spec.pinned is None:
        if not gpus:
            return ""
        fitting = [gpu for gpu in gpus.values() if grant_bytes(spec, gpu) <= gpu.budget_bytes]
        if len(fitting) < spec.gpu_count:
            return explain.never_fits(spec, tuple(gpus.values()))
        return ""
    for index in spec.pinned:
        gpu = gpus.get(index)
        if gpu is None:
            return explain.no_such_gpu(spec, index, tuple(gpus))
        if grant_bytes(spec, gpu) > gpu.budget_bytes:
            return explain.never_fits(spec, (gpu,))
    return ""


def choose(
    spec: ModelSpec, engines: Iterable[Engine], gpus: Mapping[int, Gpu], claimed: frozenset[int], now: float
) -> Place | Evict | Wait:
    """Decide for one prepared model; `claimed` GPUs are spoken for by those before it in the queue.

    (1) no GPU needed                              -> Place
    (2) enough GPUs with room and no other start   -> Place on those with the most room
    (3) enough GPUs after evicting idle engines    -> Evict, fewest engines first
    (4) otherwise                                  -> Wait
    """
    engines = tuple(engines)
    candidates = tuple(gpus) if spec.pinned is None else spec.pinned
    count = spec.gpu_count if spec.pinned is None else len(spec.pinned)
    if not candidates:
        return Place(())  # (1)

    held = held_bytes(engines, gpus)
    free = {index: gpus[index].budget_bytes - held[index] for index in candidates}
    open_gpus = [index for index in candidates if index not in claimed]
    missing = {index: grant_bytes(spec, gpus[index]) - free[index] for index in open_gpus}
    in_motion = {
        index
        for engine in engines
        if engine.state in (State.STARTING, State.DRAINING, State.STOPPING)
        for index in engine.gpus
    }
    roomy = sorted(
        (index for index in open_gpus if missing[index] <= 0 and index not in in_motion),
        key=lambda index: (-free[index], index),
    )
    if len(roomy) >= count:
        return Place(tuple(sorted(roomy[:count])))  # (2)

    # A GPU whose neighbour is starting or stopping will be roomy once that ends: no eviction for it.
    costs: list[tuple[int, int, tuple[str, ...]]] = []
    for index in open_gpus:
        if missing[index] <= 0:
            costs.append((0, index, ()))
        elif index not in in_motion:
            evicted = victims(engines, gpus[index], missing[index], now)
            if evicted is not None:
                costs.append((len(evicted), index, evicted))
    if len(costs) >= count:
        cheapest = sorted(costs)[:count]
        chosen = tuple(sorted(index for _, index, _ in cheapest))
        models = tuple(dict.fromkeys(name for _, _, names in cheapest for name in names))
        if models:
            return Evict(chosen, models)  # (3)
        return Wait(chosen, explain.waits_for_start(engines, chosen))
    return Wait(candidates, explain.waits_for_room(spec, engines, gpus, candidates))  # (4)
