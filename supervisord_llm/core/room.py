"""A GPU as it stands: who holds it, what is left of it, and whether anything is under way there."""

from collections.abc import Iterable
from dataclasses import dataclass

from supervisord_llm.core.fleet import Engine, Fleet, Gpu, GpuSample, Stranger
from supervisord_llm.core.ledger import foreign_bytes, free_bytes
from supervisord_llm.core.state import State

SETTLE_S = 10.0
"""How long memory of an engine that is gone may take to come back before it counts as a stranger's."""

MOVING = frozenset({State.STARTING, State.WAKING, State.DRAINING, State.STOPPING})
"""States that take or give memory: nothing else starts on their GPUs, since vLLM measures what is free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One GPU as it stands."""

    gpu: Gpu
    holders: tuple[Engine, ...]
    foreign_bytes: int
    free_bytes: int
    strangers: tuple[Stranger, ...]
    lost: str
    is_settled: bool
    """What was given up last is seen to be free, or should have been long ago."""

    @property
    def is_moving(self) -> bool:
        return not self.is_settled or any(is_moving(engine) for engine in self.holders)


def is_moving(engine: Engine) -> bool:
    return engine.state in MOVING or (engine.state is State.SLEEPING and engine.asleep_at is None)


def rooms(fleet: Fleet, holders: Iterable[Engine], now: float) -> dict[int, Room]:
    """Every GPU as it stands. `holders` are the engines with processes."""
    on_gpu: dict[int, list[Engine]] = {index: [] for index in fleet.gpus}
    for engine in holders:
        for index in engine.gpus:
            if index in on_gpu:
                on_gpu[index].append(engine)
    return {
        index: _room(gpu, tuple(on_gpu[index]), fleet.samples.get(index), fleet.freed_at.get(index), now)
        for index, gpu in fleet.gpus.items()
    }


def _room(
    gpu: Gpu, holders: tuple[Engine, ...], sample: GpuSample | None, freed_at: float | None, now: float
) -> Room:
    foreign = foreign_bytes(sample, holders)
    return Room(
        gpu=gpu,
        holders=holders,
        foreign_bytes=foreign,
        free_bytes=free_bytes(gpu, holders, foreign),
        strangers=() if sample is None else sample.strangers,
        lost="" if sample is None else sample.lost,
        is_settled=_is_settled(sample, freed_at, now),
    )


def _is_settled(sample: GpuSample | None, freed_at: float | None, now: float) -> bool:
    """A look is newer than what was given up last; or there are no looks, or it takes too long."""
    if freed_at is None or sample is None or sample.used_bytes is None:
        return True
    return sample.at > freed_at or now >= freed_at + SETTLE_S
