"""Whether a request is turned away: decided here alone, for who asks and for who only wonders."""

from typing import NamedTuple

from supervisord_llm.core import explain, queue
from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.moves import opens_in_s
from supervisord_llm.core.placement import code_of, impossible
from supervisord_llm.core.state import State
from supervisord_llm.core.turn import LATER_S, LONG_S, SOON_S

RUNS = frozenset({State.STARTING, State.READY, State.SLEEPING, State.WAKING})
"""States of an engine that was placed."""


class Refusal(NamedTuple):
    """`code` is of the HTTP error table, `text` a sentence for people."""

    code: str
    text: str
    retry_after_s: float | None = None


def refusal(fleet: Fleet, engine: Engine, now: float) -> Refusal | None:
    """Why a request that comes now is refused at once; None: it is admitted, or waits.

    (1) the daemon stops, or its model was removed or is closed
    (2) failed, and its time is not over; or stuck. So is one that is elsewhere and out of reach
    (3) no slot and no queue, or the queue is full
    """
    if fleet.stopping:  # (1)
        return Refusal("shutting_down", explain.daemon_stopping(), SOON_S)
    if engine.name in fleet.removed:  # (1)
        return Refusal("model_not_found", explain.unknown_model(engine.name))
    if engine.spec.closed:  # (1)
        return Refusal("out_of_schedule", explain.closed(engine), opens_in_s(engine, now))
    if queue.is_open(engine):
        return None
    if _is_given_up(engine) and now < engine.retry_at:  # (2)
        text = explain.failed_before(engine, now)
        return Refusal("start_failed", text, min(engine.retry_at - now, LONG_S))
    if engine.state is State.STUCK:  # (2)
        return Refusal("start_failed", explain.stuck(engine), SOON_S)
    if queue.is_full(engine):  # (3)
        return Refusal("model_busy", explain.busy(engine), SOON_S)
    return None


def foreseen(fleet: Fleet, engine: Engine, now: float) -> Refusal | None:
    """The same, of one that could never be started, too: who asks is told so by the attempt."""
    found = refusal(fleet, engine, now)
    if found is None and engine.state not in RUNS and (why := impossible(engine, fleet)):
        return Refusal(code_of(engine.spec), why, LATER_S)
    return found


def _is_given_up(engine: Engine) -> bool:
    """Nobody is to wait for it to be tried again."""
    return engine.state is State.FAILED or (engine.spec.elsewhere and engine.state is State.BACKOFF)
