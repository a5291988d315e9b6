"""Which GPUs a model gets, or why it has to wait."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from supervisord_llm.core import explain_memory
from supervisord_llm.core.eviction import Victims, victims
from supervisord_llm.core.fleet import Engine, Fleet, Gpu, ModelSpec
from supervisord_llm.core.ledger import grant_bytes, granted_on, held_on
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
            return explain_memory.lost_gpu(spec, next(iter(gpus)), _lost(fleet, next(iter(gpus))))
        fitting = [gpu for gpu in usable if grant_bytes(engine, gpu) <= gpu.budget_bytes]
        together = [fitting] if spec.gpu_count == 1 else _equal_cards(fitting)
        if max(map(len, together), default=0) < spec.gpu_count:
            return explain_memory.never_fits(engine, tuple(usable))
        return ""
    for index in spec.pinned:
        gpu = gpus.get(index)
        if gpu is None:
            return explain_memory.no_such_gpu(spec, index, tuple(gpus))
        if lost := _lost(fleet, index):
            return explain_memory.lost_gpu(spec, index, lost)
        if grant_bytes(engine, gpu) > gpu.budget_bytes:
            return explain_memory.never_fits(engine, (gpu,))
    return ""


def code_of(spec: ModelSpec) -> str:
    """For one that is impossible, of the HTTP error table."""
    return "start_failed" if spec.elsewhere else "no_vram"


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
    (3) enough GPUs with room once what ends there is gone   -> Wait for that
    (4) enough GPUs with room after others give way          -> Evict, the cheapest
    (5) enough GPUs with room once a start there is over     -> Wait for that: it may take minutes
    (6) otherwise                                            -> Wait, and say who holds what

    `even_busy` answers who would have to give way were nobody in use. Pinned GPUs must be there, as
    `impossible` sees to.
    """
    if engine.state is State.SLEEPING:
        sets = [[rooms[index] for index in engine.gpus if index in rooms]]  # those in the config still
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
    found = [
        _choose_among(engine, cards, count, missing, rooms, claimed, now, even_busy=even_busy)
        for cards in sets
    ]
    choices = [each for each in found if each is not None]
    if choices:
        return min(choices, key=lambda ranked: ranked[0])[1]
    return _wait(engine, sets, count, missing, claimed)  # (6)


@dataclass(frozen=True, slots=True)
class Reach:
    """The most that anybody can hope for now, worked out once for all who wait."""

    most_bytes: int
    """Of any one GPU that is not spoken for, without taking from who is in use."""
    least_budget_bytes: int
    """Of any GPU: a model that was seen to take more may be content with a smaller card."""
    nearest: tuple[Room, ...]
    """GPUs in the order in which their state is told as the reason."""


def reach(rooms: Mapping[int, Room], claimed: frozenset[int]) -> Reach:
    usable = [room for room in rooms.values() if not room.lost]
    return Reach(
        max((room.reach_bytes for room in usable if room.gpu.index not in claimed), default=0),
        min((room.gpu.budget_bytes for room in usable), default=0),
        tuple(sorted(usable, key=lambda room: (room.gpu.index in claimed, -room.free_bytes))),
    )


def out_of_reach(engine: Engine, limits: Reach) -> tuple[Room, int] | None:
    """The GPU that comes nearest and what is needed of it, where no GPU has room for it, nor gets any.

    None: that takes a closer look, by `choose`. Where dozens wait, nearly all are out of reach.
    """
    if engine.state is not State.QUEUED or engine.spec.pinned is not None or engine.spec.gpu_count != 1:
        return None
    need = engine.spec.grant
    if need is None and (engine.learnt.footprint_bytes or 0) <= limits.least_budget_bytes:
        need = engine.learnt.footprint_bytes
    if not isinstance(need, int) or need <= limits.most_bytes:
        return None
    for room in limits.nearest:
        missing = need - room.free_bytes
        if missing <= room.movable_bytes or not room.is_settled:
            return (room, need) if missing > 0 else None
    return None


def _may_be_asked(engine: Engine, room: Room, rooms: Mapping[int, Room]) -> list[Engine]:
    """Of the holders of a GPU, those whose going disturbs no start, on none of their GPUs."""
    return [
        holder
        for holder in room.holders
        if holder.name != engine.name
        and not any(rooms[index].is_measuring for index in holder.gpus if index in rooms)
    ]


def grant_on_waking(engine: Engine, index: int) -> int:
    """What a sleeping engine needs of GPU `index` beyond what it holds."""
    awake = sum(size for gpu, size in zip(engine.gpus, engine.awake_bytes, strict=True) if gpu == index)
    return awake - granted_on(engine, index)


_Rank = tuple[int, float, float, int, int]
"""What to prefer among sets of GPUs: at once, then in a moment, then evicting by priority, cost and number,
then waiting for a start."""


def _choose_among(
    engine: Engine,
    cards: list[Room],
    count: int,
    missing: Mapping[int, int],
    rooms: Mapping[int, Room],
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

    costs: list[tuple[tuple[bool, float, float, int], int, Victims]] = []
    starting: list[int] = []
    for room in open_cards:
        index = room.gpu.index
        if missing[index] <= (room.coming_bytes if room.is_moving else 0):
            if room.is_measuring:
                starting.append(index)
            else:
                costs.append(((False, 0.0, 0.0, 0), index, Victims()))
    # Whose victims are ending waits for them: to evict on another GPU as well would be for nothing.
    for room in open_cards if len(costs) < count else ():
        index = room.gpu.index
        if not room.is_moving and missing[index] > 0 and (even_busy or missing[index] <= room.idle_bytes):
            found = victims(
                _may_be_asked(engine, room, rooms), index, missing[index], now, even_busy=even_busy
            )
            if found is not None:
                costs.append(((True, found.priority, found.cost_s, len(found.names)), index, found))
    if len(costs) < count <= len(costs) + len(starting):
        chosen = tuple(sorted([*starting, *(index for _, index, _ in costs)][:count]))
        reason = explain_memory.waits_for_others([room for room in cards if room.gpu.index in chosen])
        return (3, 0.0, 0.0, 0, 0), Wait(chosen, reason, is_soon=True)  # (5)
    if len(costs) < count:
        return None
    cheapest = sorted(costs, key=lambda each: each[:2])[:count]
    chosen = tuple(sorted(index for _, index, _ in cheapest))
    models = tuple(dict.fromkeys(name for _, _, found in cheapest for name in found.names))
    if not models:
        reason = explain_memory.waits_for_others([room for room in cards if room.gpu.index in chosen])
        return (1, 0.0, 0.0, 0, 0), Wait(chosen, reason, is_soon=True)  # (3)
    priority = max(found.priority for _, _, found in cheapest)
    cost_s = sum(found.cost_s for _, _, found in cheapest)
    may_sleep = all(found.may_sleep for _, _, found in cheapest)
    return (2, priority, cost_s, len(models), 0), Evict(chosen, models, may_sleep)  # (4)


def _wait(
    engine: Engine, sets: list[list[Room]], count: int, missing: Mapping[int, int], claimed: frozenset[int]
) -> Wait:
    """Why nothing can be done, told of the GPUs that come nearest, and of what lacks most there."""
    hopeful = [[room for room in cards if not _is_hopeless(engine, room, missing)] for cards in sets]
    enough = [cards for cards in hopeful if len(cards) >= count]
    by_need = [
        sorted(cards, key=lambda room: (room.gpu.index in claimed, missing[room.gpu.index], room.gpu.index))
        for cards in enough or sets
        if cards
    ]
    if not by_need:
        return Wait((), "waits for its GPUs")
    nearest = min((cards[:count] for cards in by_need), key=lambda cards: missing[cards[-1].gpu.index])
    gpus = tuple(sorted(room.gpu.index for room in nearest))
    worst = max(nearest, key=lambda room: missing[room.gpu.index])
    lacks = missing[worst.gpu.index]
    if lacks <= 0 and not claimed.isdisjoint(gpus):
        reason = explain_memory.spoken_for(gpus)
    elif lacks <= 0:
        reason = explain_memory.waits_for_others(nearest)
    else:
        left = explain_memory.left(worst, but=engine.name)
        reason = explain_memory.waits_for_room(engine, lacks + worst.free_bytes, left)
    return Wait(gpus, reason, is_hopeless=not enough)


def _is_hopeless(engine: Engine, room: Room, missing: Mapping[int, int]) -> bool:
    """Not even with all gone that ever goes: the rest are strangers, what is kept and what would not die."""
    movable = room.movable_bytes
    if engine.state is State.SLEEPING and not engine.spec.keep:  # it is one of them
        movable -= held_on(engine, room.gpu.index)
    return room.is_settled and movable < missing[room.gpu.index]


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
