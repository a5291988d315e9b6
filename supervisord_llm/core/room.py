"""A GPU as it stands: who holds it, what is left of it, and whether anything is under way there."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from supervisord_llm.core.eviction import may_give_way
from supervisord_llm.core.fleet import Engine, Fleet, Gpu, GpuSample, Stranger
from supervisord_llm.core.ledger import foreign_bytes, held_on, limit_bytes, residue_bytes, unexplained_bytes
from supervisord_llm.core.state import State

SETTLE_S = 10.0
"""How long memory of an engine that is gone may take to come back before it counts as a stranger's."""

LOOK_AGAIN_S = 0.25
"""How soon to look again at a GPU whose memory is not back yet."""

LINGERS_BYTES = 512 * 1024**2
"""What a GPU may hold unexplained beyond what it did before memory was given up, and count as settled."""

MOVING = frozenset({State.STARTING, State.WAKING, State.DRAINING, State.STOPPING})
"""States that take or give memory: nothing else starts on their GPUs, since vLLM measures what is free."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """One GPU as it stands: everybody who waits for room asks."""

    now: float
    gpu: Gpu
    holders: tuple[Engine, ...]
    strangers: tuple[Stranger, ...]
    lost: str
    foreign_bytes: int
    free_bytes: int
    coming_bytes: int
    """What will be free once all that ends or falls asleep here has done so."""
    movable_bytes: int
    """What ever goes: the rest is strangers', what is kept and what would not die."""
    is_settled: bool
    """What was given up last is seen to be free, or should have been long ago."""
    is_moving: bool
    is_measuring: bool

    @cached_property
    def idle_bytes(self) -> int:
        """The most that comes free here if all go that may be asked to, now."""
        index = self.gpu.index
        return sum(held_on(engine, index) for engine in self.holders if may_give_way(engine, self.now))

    @property
    def reach_bytes(self) -> int:
        """The most that somebody could get here without taking from who is in use."""
        return self.free_bytes + (self.coming_bytes if self.is_moving else self.idle_bytes)


def is_moving(engine: Engine) -> bool:
    return engine.state in MOVING or (engine.state is State.SLEEPING and not engine.gave_back)


def is_unmeasured(engine: Engine, sample: GpuSample | None, now: float) -> bool:
    """It came up a moment ago on a mere estimate; what it really takes of a GPU the next look will tell."""
    if engine.state is not State.READY or sample is None or sample.used_bytes is None:
        return False
    if engine.spec.grant is not None or engine.estimate is None or engine.learnt.footprint_bytes is not None:
        return False
    return not engine.is_looked_at and now < engine.since + SETTLE_S


def is_measuring(engine: Engine) -> bool:
    """It takes memory, and measures what is free: nothing is to come free beside it of our own doing."""
    return engine.state in (State.STARTING, State.WAKING)


def _gives(engine: Engine, index: int) -> int:
    if engine.state in (State.DRAINING, State.STOPPING) and not engine.to_sleep:
        return held_on(engine, index)
    if engine.to_sleep or (engine.state is State.SLEEPING and not engine.gave_back):
        return held_on(engine, index) - residue_bytes(engine, index)
    return 0


def rooms(
    fleet: Fleet, holders: Iterable[Engine], now: float, only: Iterable[int] | None = None
) -> dict[int, Room]:
    """Every GPU as it stands, or `only` those of them. `holders` are the engines with processes."""
    on_gpu: dict[int, list[Engine]] = {
        index: [] for index in (fleet.gpus if only is None else only) if index in fleet.gpus
    }
    for engine in holders:
        for index in engine.gpus:
            if index in on_gpu:
                on_gpu[index].append(engine)
    return {index: _room(fleet.gpus[index], tuple(here), fleet, now) for index, here in on_gpu.items()}


def _room(gpu: Gpu, holders: tuple[Engine, ...], fleet: Fleet, now: float) -> Room:
    index = gpu.index
    sample, freed_at = fleet.samples.get(index), fleet.freed_at.get(index)
    foreign = foreign_bytes(sample, holders)
    settles = freed_at is not None and now < freed_at + SETTLE_S
    lingering, is_settled = 0, True
    if settles:
        before = fleet.unexplained_bytes.get(index, 0)
        lingering = max(0, unexplained_bytes(sample, holders) - before)
        is_settled = _is_settled(sample, freed_at or 0.0, lingering)
    held, coming, movable = 0, lingering, 0
    moving, measuring = not is_settled, False
    for engine in holders:
        size = held_on(engine, index)
        held += size
        if is_unmeasured(engine, sample, now):
            moving = True
        if is_moving(engine):
            moving = True
            measuring = measuring or is_measuring(engine)
            coming += _gives(engine, index)
        if not engine.spec.keep and engine.state is not State.STUCK:
            movable += size
    return Room(
        now=now,
        gpu=gpu,
        holders=holders,
        strangers=() if sample is None else sample.strangers,
        lost="" if sample is None else sample.lost,
        foreign_bytes=foreign,
        free_bytes=limit_bytes(gpu, foreign) - held,
        coming_bytes=coming,
        movable_bytes=movable,
        is_settled=is_settled,
        is_moving=moving,
        is_measuring=measuring,
    )


def _is_settled(sample: GpuSample | None, freed_at: float, lingering_bytes: int) -> bool:
    """A look that is newer than what was given up last finds it free; or there are no looks."""
    if sample is None or sample.used_bytes is None:
        return True
    return sample.at > freed_at and lingering_bytes <= LINGERS_BYTES
