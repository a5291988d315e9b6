"""How long one waits, and what one is told."""

from dataclasses import replace

import pytest

from supervisord_llm.core.eta import ready_in_s, told_to_waiting
from supervisord_llm.core.fleet import Engine, Learnt, ModelSpec, Waiting
from supervisord_llm.core.state import State

NOW = 1000.0
KNOWN = Learnt(start_s=90.0, wake_s=4.0)


def engine(state: State, *, since_s: float = 0.0, learnt: Learnt = KNOWN) -> Engine:
    return Engine(spec=ModelSpec(name="coder"), state=state, since=NOW - since_s, learnt=learnt)


@pytest.mark.parametrize(
    ("state", "since_s", "left_s"),
    [
        (State.READY, 50, 0.0),
        (State.STOPPED, 50, 90.0),
        (State.PREPARING, 50, 90.0),  # a download is not part of a start, and takes what it takes
        (State.QUEUED, 50, 90.0),
        (State.STARTING, 30, 60.0),
        (State.STARTING, 100, None),
        (State.SLEEPING, 500, 4.0),
        (State.WAKING, 1, 3.0),
        (State.FAILED, 1, None),
        (State.DRAINING, 1, None),
    ],
)
def test_it_is_ready_as_it_was_the_last_time(state: State, since_s: float, left_s: float | None) -> None:
    assert ready_in_s(engine(state, since_s=since_s), NOW) == left_s


def test_one_that_failed_waits_first() -> None:
    failed = replace(engine(State.BACKOFF, since_s=1), retry_at=NOW + 7)
    assert ready_in_s(failed, NOW) == 97.0
    assert ready_in_s(failed, NOW + 8) == 90.0


@pytest.mark.parametrize("state", [State.STOPPED, State.STARTING, State.SLEEPING, State.WAKING])
def test_without_a_last_time_nothing_is_promised(state: State) -> None:
    assert ready_in_s(engine(state, learnt=Learnt()), NOW) is None


def test_what_is_told() -> None:
    waiting = tuple(Waiting(request=each, source="", priority=0, since=NOW) for each in (7, 8))
    loading = replace(
        engine(State.STARTING, since_s=30), phase="loading weights", fraction=0.431, waiting=waiting
    )
    assert told_to_waiting(loading, 8, NOW) == (
        "coder is starting: loading weights 43%; ready in about 60 s; place 2 of 2"
    )
    alone = replace(engine(State.QUEUED, learnt=Learnt()), waiting=waiting[:1])
    assert told_to_waiting(alone, 7, NOW) == "coder is queued"
    assert told_to_waiting(alone, 8, NOW) == ""
