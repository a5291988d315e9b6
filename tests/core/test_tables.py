"""The tables, and every state against every event."""

import ast
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import supervisord_llm.core
from supervisord_llm.core import backoff
from supervisord_llm.core.events import (
    ConfigChanged,
    EngineExited,
    EngineReady,
    EngineStuck,
    Event,
    Prepared,
    PrepareFailed,
    Progressed,
    RelayFinished,
    RequestArrived,
    RequestCancelled,
    RestartAsked,
    ShutdownBegan,
    StartAsked,
    StopAsked,
    Tick,
)
from supervisord_llm.core.fleet import Engine, Fleet, ModelSpec, Waiting
from supervisord_llm.core.scheduler import step
from supervisord_llm.core.state import HAS_PROCESS, MEANING, TRANSITIONS, State
from tests.core.world import gpu

SPEC = ModelSpec(name="a", pinned=(0,), signature="1")

EVENTS: tuple[Event, ...] = (
    RequestArrived(request=9, model="a"),
    RequestCancelled(request=1, model="a"),
    RelayFinished(request=2, model="a"),
    Prepared(model="a", launch=1),
    PrepareFailed(model="a", launch=1, reason="no"),
    PrepareFailed(model="a", launch=1, reason="no", temporary=True),
    Progressed(model="a", launch=1, phase="loading"),
    EngineReady(model="a", launch=1),
    EngineExited(model="a", launch=1, reason="exited"),
    EngineStuck(model="a", launch=1),
    StartAsked(model="a"),
    StopAsked(model="a"),
    RestartAsked(model="a"),
    ConfigChanged(specs=(SPEC,), gpus=(gpu(0),)),
    ConfigChanged(specs=(ModelSpec(name="a", signature="2"),)),
    ConfigChanged(specs=()),
    ShutdownBegan(),
    Tick(),
)


def test_every_state_has_a_row_and_a_meaning_and_can_be_left_and_reached() -> None:
    reachable = {target for row in TRANSITIONS.values() for target in row}
    assert set(TRANSITIONS) == set(MEANING) == set(State) == reachable
    assert all(TRANSITIONS.values())


@given(
    state=st.sampled_from(State),
    event=st.sampled_from(EVENTS),
    waits=st.booleans(),
    leased=st.booleans(),
    wanted=st.booleans(),
    age_s=st.sampled_from([0.0, 31.0, 10_000.0]),
)
def test_every_state_takes_every_event_and_only_moves_along_the_table(
    state: State, event: Event, waits: bool, leased: bool, wanted: bool, age_s: float
) -> None:
    now = 20_000.0
    waiting = (Waiting(request=1, source="", priority=0, since=now - age_s),) if waits else ()
    engine = Engine(
        spec=SPEC,
        state=state,
        since=now - age_s,
        launch=1,
        gpus=(0,) if state in HAS_PROCESS else (),
        waiting=waiting,
        leases=frozenset({2}) if leased else frozenset(),
        last_used=now - age_s,
        last_sign=now - age_s,
        wanted=wanted,
    )
    fleet = Fleet(engines={"a": engine}, gpus={0: gpu(0)})
    # A move that is not in the table raises IllegalTransition here.
    after, effects = step(fleet, event, now)
    assert step(fleet, event, now) == (after, effects), "the same question has the same answer"


@given(failures=st.integers(1, 10_000))
def test_backoff_grows_within_its_bounds(failures: int) -> None:
    spec = ModelSpec(name="a", backoff_s=(2, 60))
    assert 2 <= backoff.delay_s(failures, spec) <= backoff.delay_s(failures + 1, spec) <= 60


CORE = Path(supervisord_llm.core.__file__).parent
ALLOWED = {
    "collections",
    "dataclasses",
    "enum",
    "types",
    "typing",
    "math",
    "datetime",
    "itertools",
    "functools",
    "re",
}


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda path: path.name)
def test_the_core_imports_nothing_that_touches_the_world(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {".".join((node.module or "").split(".")[:2])}
    stdlib = {name.split(".")[0] for name in imported} & sys.stdlib_module_names
    assert stdlib <= ALLOWED
    assert imported - stdlib <= {"supervisord_llm.core"} | {f"{name}.abc" for name in ALLOWED}
