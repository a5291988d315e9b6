"""Which GPUs a model gets, or why it has to wait."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from supervisord_llm.core import explain
from supervisord_llm.core.eviction import Victims, victims
from supervisord_llm.core.fleet import Engine, Fleet, Gpu
from supervisord_llm.core.ledger import grant_bytes, granted_on
from supervisord_llm.core.room import Room
from supervisord_llm.core.state import State


@dataclass(frozen=True, slots=True)
class Place:
    """Launch, or wake, on these GPUs now."""

    gpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evict:
    """These idle engines give way first; `gpus` are spoken for meanwhile."""

    gpus: tuple[int, ...]
    models: tuple[str, ...]
    may_sleep: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done yet; `gpus` are those it waits for."""

    gpus: tuple[int, ...]
    reason: str
    is_soon: bool = False
    """Only for a start, an end or a look under way there: nobody may overtake it."""
    is_hopeless: bool = False
    """What is in its way does not make room: strangers, and what is kept."""


Choice = Place | Evict | Wait


def impossible(engine: Engine, fleet: Fleet) -> str:
    """Why the model can never run on this host as it is, or "" if it can.

    Without a GPU a model that lets the scheduler choose runs on the CPU.
    """
    spec, gpus = engine.spec, fleet.gpus
    if spec.disabled:
        return spec.disabled
    if spec.pinned is None:
        if not gpus:
            return ""
        usable = [gpu for gpu in gpus.values() if not _lost(fleet, gpu.index)]
        if not usable:
            return explain.lost_gpu(spec, next(iter(gpus)), _lost(fleet, next(iter(gpus))))
        fitting = [gpu for gpu in usable if grant_bytes(engine, gpu) <= gpu.budget_bytes]
        if max(map(len, _equal_cards(fitting)), default=0) < spec.gpu_count:
            return explain.never_fits(engine, tuple(usable))
        return ""
    for index in spec.pinned:
        gpu = gpus.get(index)
        if gpu is None:
            return explain.no_such_gpu(spec, index, tuple(gpus))
        if lost := _lost(fleet, index):
            return explain.lost_gpu(spec, index, lost)
        if grant_bytes(engine, gpu) > gpu.budget_bytes:
            return explain.never_fits(engine, (gpu,))
    return ""


def choose(
    engine: Engine,
    rooms: Mapping[int, Room],
    claimed: frozenset[int],
    now: float,
    *,
    even_busy: bool = False,
) -> Choice:
    """Decide for one model that is prepared, or asleep; `claimed` GPUs are spoken for by others.

    (1) no GPU needed                                        -> Place
    (2) enough GPUs with room, at rest                       -> Place on those with the most room
    (3) enough GPUs with room after others give way          -> Evict, the cheapest
    (4) enough GPUs with room once a start or end there is over -> Wait for that
    (5) otherwise                                            -> Wait, and say who holds what

    `even_busy` answers who would have to give way were nobody in use.
    """
    if engine.state is State.SLEEPING:
        sets = [[rooms[index] for index in engine.gpus if index in rooms]]
        count = len(engine.gpus)
    elif engine.spec.pinned is not None:
        sets = [[rooms[index] for index in engine.spec.pinned]]
        count = len(engine.spec.pinned)
    else:
        usable = [room for room in rooms.values() if not room.lost]
        count = engine.spec.gpu_count if rooms else 0
        sets = _equal_rooms(usable) if count > 1 else [usable]
    if count == 0:
        return Place(())  # (1)

    missing = {
        index: grant_on_waking(engine, index) - room.free_bytes
        if engine.state is State.SLEEPING
        else grant_bytes(engine, room.gpu) - room.free_bytes
        for index, room in rooms.items()
    }
    choices = [
        choice
        for cards in sets
        if (choice := _choose_among(cards, count, missing, claimed, now, even_busy=even_busy)) is not None
    ]
    if choices:
        return min(choices, key=lambda ranked: ranked[0])[1]
    return _wait(engine, sets, missing)  # (5)


def grant_on_waking(engine: Engine, index: int) -> int:
    """What a sleeping engine needs of GPU `index` beyond what it holds."""
    awake = sum(size for gpu, size in zip(engine.gpus, engine.awake_bytes, strict=True) if gpu == index)
    return awake - granted_on(engine, index)


_Rank = tuple[int, int, float, int, int]
"""What to prefer among sets of GPUs: at once, then waiting, then evicting by priority, cost and number."""


def _choose_among(
    cards: list[Room],
    count: int,
    missing: Mapping[int, int],
    claimed: frozenset[int],
    now: float,
    *,
    even_busy: bool,
) -> tuple[_Rank, Choice] | None:
    """The best choice of `count` of `cards`, if there is one, and its rank."""
    open_cards = [room for room in cards if room.gpu.index not in claimed]
    at_rest = sorted(
        (room for room in open_cards if missing[room.gpu.index] <= 0 and not room.is_moving),
        key=lambda room: (-room.free_bytes, room.gpu.index),
    )
    if len(at_rest) >= count:
        gpus = tuple(sorted(room.gpu.index for room in at_rest[:count]))
        return (0, 0, 0.0, 0, -at_rest[0].free_bytes), Place(gpus)  # (2)

    # A GPU whose neighbour is starting or stopping will be at rest once that ends: no eviction for it.
    costs: list[tuple[tuple[int, float, int], int, Victims]] = []
    for room in open_cards:
        index = room.gpu.index
        if missing[index] <= 0:
            costs.append(((0, 0.0, 0), index, Victims()))
        elif not room.is_moving:
            found = victims(room.holders, index, missing[index], now, even_busy=even_busy)
            if found is not None:
                costs.append(((found.priority, found.cost_s, len(found.names)), index, found))
    if len(costs) < count:
        return None
    cheapest = sorted(costs, key=lambda each: each[:2])[:count]
    chosen = tuple(sorted(index for _, index, _ in cheapest))
    models = tuple(dict.fromkeys(name for _, _, found in cheapest for name in found.names))
    if not models:
        reason = explain.waits_for_others([room for room in cards if room.gpu.index in chosen])
        return (1, 0, 0.0, 0, 0), Wait(chosen, reason, is_soon=True)  # (4)
    priority = max(rank[0] for rank, _, _ in cheapest)
    cost_s = sum(rank[1] for rank, _, _ in cheapest)
    may_sleep = all(found.may_sleep for _, _, found in cheapest)
    return (2, priority, cost_s, len(models), 0), Evict(chosen, models, may_sleep)  # (3)


def _wait(engine: Engine, sets: list[list[Room]], missing: Mapping[int, int]) -> Wait:
    """Why nothing can be done, told of the GPU that comes nearest."""
    cards = [room for cards in sets for room in cards]
    if not cards:
        return Wait((), "waits for its GPUs")
    nearest = min(cards, key=lambda room: (missing[room.gpu.index], room.gpu.index))
    need = missing[nearest.gpu.index] + nearest.free_bytes
    movable = sum(
        granted_on(holder, nearest.gpu.index)
        for holder in nearest.holders
        if holder is not engine and not holder.spec.keep
    )
    return Wait(
        tuple(room.gpu.index for room in cards),
        explain.waits_for_room(engine, nearest, need),
        is_soon=nearest.is_moving,
        is_hopeless=nearest.free_bytes + movable < need and not nearest.is_moving,
    )


def _equal_cards(gpus: Iterable[Gpu]) -> list[list[Gpu]]:
    """The GPUs in groups of the same memory: tensor parallel ranks are all of one size."""
    ordered = sorted(gpus, key=lambda gpu: gpu.total_bytes)
    return [list(group) for _, group in groupby(ordered, key=lambda gpu: gpu.total_bytes)]


def _equal_rooms(usable: list[Room]) -> list[list[Room]]:
    by_index = {room.gpu.index: room for room in usable}
    return [[by_index[gpu.index] for gpu in group] for group in _equal_cards(room.gpu for room in usable)]


def _lost(fleet: Fleet, index: int) -> str:
    sample = fleet.samples.get(index)
    return "" if sample is None else sample.lost
