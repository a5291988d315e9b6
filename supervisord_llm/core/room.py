"""A GPU as it stands: who holds it, what is left of it, and whether anything is under way there."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from supervisord_llm.core.eviction import may_give_way
from supervisord_llm.core.fleet import Engine, Fleet, Gpu, GpuSample, Stranger
from supervisord_llm.core.ledger import foreign_bytes, free_bytes, held_on, residue_bytes, unexplained_bytes
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
    """One GPU as it stands. What is derived is kept: everybody who waits for room asks."""

    now: float

    gpu: Gpu
    holders: tuple[Engine, ...]
    foreign_bytes: int
    free_bytes: int
    strangers: tuple[Stranger, ...]
    lost: str
    lingering_bytes: int
    """Of `foreign_bytes`, what was given up and is not seen to be free yet."""
    is_settled: bool
    """What was given up last is seen to be free, or should have been long ago."""

    @cached_property
    def is_moving(self) -> bool:
        return not self.is_settled or any(is_moving(engine) for engine in self.holders)

    @cached_property
    def is_measuring(self) -> bool:
        return any(map(is_measuring, self.holders))

    @cached_property
    def idle_bytes(self) -> int:
        """The most that comes free here if all go that may be asked to, now."""
        index = self.gpu.index
        return sum(held_on(engine, index) for engine in self.holders if may_give_way(engine, self.now))

    @cached_property
    def reach_bytes(self) -> int:
        """The most that somebody could get here without taking from who is in use."""
        return self.free_bytes + (self.coming_bytes if self.is_moving else self.idle_bytes)

    @cached_property
    def movable_bytes(self) -> int:
        """What ever goes: the rest is strangers', what is kept and what would not die."""
        index = self.gpu.index
        return sum(
            held_on(engine, index)
            for engine in self.holders
            if not engine.spec.keep and engine.state is not State.STUCK
        )

    @cached_property
    def coming_bytes(self) -> int:
        """What will be free once all that ends or falls asleep here has done so."""
        going = sum(_gives(engine, self.gpu.index) for engine in self.holders)
        return going + self.lingering_bytes


def is_moving(engine: Engine) -> bool:
    return engine.state in MOVING or (engine.state is State.SLEEPING and not engine.gave_back)


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
    sample, freed_at = fleet.samples.get(gpu.index), fleet.freed_at.get(gpu.index)
    foreign = foreign_bytes(sample, holders)
    settles = freed_at is not None and now < freed_at + SETTLE_S
    before = fleet.unexplained_bytes.get(gpu.index, 0)
    lingering = max(0, unexplained_bytes(sample, holders) - before) if settles else 0
    return Room(
        now=now,
        gpu=gpu,
        holders=holders,
        foreign_bytes=foreign,
        free_bytes=free_bytes(gpu, holders, foreign),
        strangers=() if sample is None else sample.strangers,
        lost="" if sample is None else sample.lost,
        lingering_bytes=lingering,
        is_settled=not settles or _is_settled(sample, freed_at or 0.0, lingering),
    )


def _is_settled(sample: GpuSample | None, freed_at: float, lingering_bytes: int) -> bool:
    """A look that is newer than what was given up last finds it free; or there are no looks."""
    if sample is None or sample.used_bytes is None:
        return True
    return sample.at > freed_at and lingering_bytes <= LINGERS_BYTES
