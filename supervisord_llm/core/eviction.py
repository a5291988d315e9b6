"""Which idle engines make room on a GPU, and at what price. Busy ones never do."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from supervisord_llm.core.fleet import Engine
from supervisord_llm.core.ledger import held_on, residue_bytes
from supervisord_llm.core.state import State

VISITS_HALVE_S = 7200.0
"""Half of what is known of how often a model is asked for is forgotten in this time."""

IDLE_HALVES_S = 300.0
"""Idle for so long, an engine is half as likely to be asked again soon as when it was in use."""

SESSION_S = 60.0
"""The priority of the client that used an engine last protects it for so long; then it is nobody's."""

VISIT_S = 60.0
"""Requests within this time of a counted visit are the same visit: a burst is not a habit."""

START_S = 60.0
WAKE_S = 3.0
"""What a start and a wake are taken to cost until they are measured."""

LINGER_SHARE = 0.1
LINGER_MOST_S = 10.0
"""An engine in use until now is likely to be asked again in a moment: it is left alone for this share of what
coming back would cost it."""


@dataclass(frozen=True, slots=True)
class Victims:
    """Engines to give way, and their price: lower first. `priority` is the highest of their clients'."""

    priority: float = -math.inf
    cost_s: float = 0.0
    """Expected seconds that somebody will wait for one of them to come back."""
    names: tuple[str, ...] = ()
    may_sleep: bool = True
    """Whether it is enough that those sleep which can; else all of them stop."""


def visits(engine: Engine, now: float) -> float:
    """How often it was used lately."""
    return engine.visits * 2.0 ** (-(now - engine.visited_at) / VISITS_HALVE_S) if engine.visits else 0.0


def can_sleep(engine: Engine) -> bool:
    return engine.spec.sleep_level > 0 and not engine.sleepless and not engine.spec.keep


def comes_back_in_s(engine: Engine) -> float:
    """How long its next user would wait, had it given way."""
    learnt = engine.learnt
    if engine.state is State.READY and can_sleep(engine):
        return WAKE_S if learnt.wake_s is None else learnt.wake_s
    return START_S if learnt.start_s is None else learnt.start_s


def likelihood(engine: Engine, now: float) -> float:
    """How likely it is to be asked for soon, as a weight: by habit, and by how lately it was used.

    A session makes a model that was just used likely whatever its history, and less so the longer it is idle.
    Habit alone would keep yesterday's favourites; idle time alone lets a job that runs once push them out.
    """
    idle_s = 0.0 if engine.leases else now - engine.last_used
    return (1.0 + visits(engine, now)) / (1.0 + idle_s / IDLE_HALVES_S)


def cost_s(engine: Engine, now: float) -> float:
    """What it costs to have it give way: its way back, by the likelihood that it is asked for again."""
    return comes_back_in_s(engine) * likelihood(engine, now)


def protected_by(engine: Engine, now: float) -> float:
    """The priority of whom it would be taken from; -inf once nobody has used it for a while."""
    in_use = bool(engine.leases) or now < engine.last_used + SESSION_S
    return engine.last_priority if in_use else -math.inf


def free_from(engine: Engine) -> float:
    """When it may be asked to give way, if it stays idle: worth its start by then, and not just in use."""
    lingers_s = min(LINGER_MOST_S, LINGER_SHARE * comes_back_in_s(engine))
    resident = engine.since + engine.spec.min_residency_s if engine.state is State.READY else 0.0
    return max(resident, engine.last_used + lingers_s)


def may_give_way(engine: Engine, now: float, *, even_busy: bool = False) -> bool:
    """Idle, not kept, and not needed a moment ago. `even_busy`: it would be so, were it not in use."""
    if engine.spec.keep:
        return False
    if engine.state is State.SLEEPING:
        # Even one that is waited for, where all who wait are asleep and in each other's way.
        return engine.asleep_at is not None and (even_busy or not engine.waiting)
    if engine.state is not State.READY:
        return False
    if even_busy or engine.yields_to:
        resident = now >= engine.since + engine.spec.min_residency_s
        return resident and (even_busy or not engine.leases)
    return not engine.leases and not engine.waiting and now >= free_from(engine)


def victims(
    holders: Iterable[Engine], index: int, missing_bytes: int, now: float, *, even_busy: bool = False
) -> Victims | None:
    """The cheapest engines on GPU `index` whose going frees `missing_bytes`; None where not all would do.

    Those that can sleep are counted with what they hold on to; only where that is too little do they stop.
    """
    candidates = [engine for engine in holders if may_give_way(engine, now, even_busy=even_busy)]
    for sleeping in (True, False):
        frees = {engine.name: _frees(engine, index, sleeping=sleeping) for engine in candidates}
        if sum(frees.values()) >= missing_bytes:
            return _total(_fewest(candidates, frees, missing_bytes, now), now, may_sleep=sleeping)
    return None


def _frees(engine: Engine, index: int, *, sleeping: bool) -> int:
    held = held_on(engine, index)
    if sleeping and engine.state is State.READY and can_sleep(engine):
        return held - residue_bytes(engine, index)
    return held


def _fewest(
    candidates: list[Engine], frees: dict[str, int], missing_bytes: int, now: float
) -> tuple[Engine, ...]:
    """Cheapest by the byte first until it is enough, less those that turned out not to be needed."""
    costs = {engine.name: cost_s(engine, now) for engine in candidates}
    chosen: list[Engine] = []
    for engine in sorted(
        candidates,
        key=lambda engine: (
            protected_by(engine, now),
            costs[engine.name] / max(frees[engine.name], 1),
            engine.last_used,
        ),
    ):
        if missing_bytes <= 0:
            break
        chosen.append(engine)
        missing_bytes -= frees[engine.name]
    for engine in sorted(
        chosen, key=lambda engine: (protected_by(engine, now), costs[engine.name]), reverse=True
    ):
        if missing_bytes + frees[engine.name] <= 0:
            missing_bytes += frees[engine.name]
            chosen.remove(engine)
    return tuple(chosen)


def _total(chosen: tuple[Engine, ...], now: float, *, may_sleep: bool) -> Victims:
    return Victims(
        priority=max((protected_by(engine, now) for engine in chosen), default=-math.inf),
        cost_s=sum(cost_s(engine, now) for engine in chosen),
        names=tuple(engine.name for engine in chosen),
        may_sleep=may_sleep,
    )
