"""The tables, and every state against every event."""

import ast
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import supervisord_llm.core
from supervisord_llm.core import backoff
from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.events import (
    Cause,
    ConfigChanged,
    EngineExited,
    EngineReady,
    EngineStuck,
    Estimated,
    Event,
    FellAsleep,
    GpusSampled,
    Prepared,
    PrepareFailed,
    Progressed,
    RelayFinished,
    RequestArrived,
    RequestCancelled,
    RestartAsked,
    ShutdownBegan,
    SleepAsked,
    SleepFailed,
    StartAsked,
    StopAsked,
    Tick,
    TokensCounted,
    WakeFailed,
    Woke,
)
from supervisord_llm.core.fleet import Engine, Fleet, GpuSample, ModelSpec, Policy, Waiting
from supervisord_llm.core.scheduler import step
from supervisord_llm.core.state import HAS_PROCESS, MEANING, TRANSITIONS, State
from tests.core.world import GIB, gpu

SPEC = ModelSpec(
    name="a", pinned=(0,), signature="1", sleep_level=1, sleep_after_s=20, max_num_seqs=16, max_model_len=4096
)
NOW = 20_000.0
BIG = Estimate(
    weights_bytes=90 * GIB,
    kv_bytes=GIB,
    least_kv_bytes=GIB,
    overhead_bytes=GIB,
    host_bytes=90 * GIB,
    max_model_len=4096,
    sequences=4,
    kv_bytes_per_token=1,
)

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
    EngineExited(model="a", launch=1, reason="exited", cause=Cause.GPU_OOM),
    EngineExited(model="a", launch=1, reason="exited", cause=Cause.HOST_OOM),
    EngineStuck(model="a", launch=1),
    Estimated(model="a", signature="1", estimate=BIG),
    Estimated(model="a", signature="of another configuration", estimate=BIG),
    FellAsleep(model="a", launch=1),
    SleepFailed(model="a", launch=1, reason="no"),
    Woke(model="a", launch=1),
    WakeFailed(model="a", launch=1, reason="no"),
    TokensCounted(model="a", launch=1, running=None),
    TokensCounted(model="a", launch=1, running=0),
    TokensCounted(model="a", launch=1, running=1, tokens=5.0),
    GpusSampled(samples=()),
    GpusSampled(samples=(GpuSample(index=0, at=NOW - 1),)),
    GpusSampled(samples=(GpuSample(index=0, at=NOW - 1, used_bytes=9 * GIB),)),
    GpusSampled(samples=(GpuSample(index=0, at=NOW - 1, used_bytes=23 * GIB, engines={"a": 22 * GIB}),)),
    GpusSampled(samples=(GpuSample(index=0, at=NOW - 1, lost="fell off the bus"),)),
    SleepAsked(model="a"),
    StartAsked(model="a"),
    StopAsked(model="a"),
    RestartAsked(model="a"),
    ConfigChanged(specs=(SPEC,), gpus=(gpu(0),)),
    ConfigChanged(specs=(ModelSpec(name="a", signature="2"),)),
    ConfigChanged(specs=(replace(SPEC, closed="of the hour"),), gpus=(gpu(0),)),
    ConfigChanged(specs=()),
    ShutdownBegan(),
    Tick(),
)


def test_every_state_has_a_row_and_a_meaning_and_can_be_left_and_reached() -> None:
    reachable = {target for row in TRANSITIONS.values() for target in row}
    assert set(TRANSITIONS) == set(MEANING) == set(State) == reachable
    assert all(TRANSITIONS.values())


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@settings(max_examples=60, deadline=None)
@given(
    state=st.sampled_from(State),
    waits=st.booleans(),
    leased=st.booleans(),
    wanted=st.booleans(),
    asleep=st.booleans(),
    gave_back=st.booleans(),
    hangs=st.booleans(),
    killed=st.booleans(),
    tokens=st.sampled_from([None, 5.0]),
    host_budget=st.sampled_from([None, GIB]),
    age_s=st.sampled_from([0.0, 31.0, 10_000.0]),
)
def test_every_state_takes_every_event_and_only_moves_along_the_table(
    state: State,
    event: Event,
    waits: bool,
    leased: bool,
    wanted: bool,
    asleep: bool,
    gave_back: bool,
    hangs: bool,
    killed: bool,
    tokens: float | None,
    host_budget: int | None,
    age_s: float,
) -> None:
    now, is_held = NOW, state in HAS_PROCESS
    waiting = (Waiting(request=1, source="", priority=0, since=now - age_s),) if waits else ()
    engine = Engine(
        spec=SPEC,
        state=state,
        since=now - age_s,
        launch=1,
        gpus=(0,) if is_held else (),
        granted_bytes=(20 * GIB,) if is_held else (),
        awake_bytes=(20 * GIB,) if is_held else (),
        before_bytes=(GIB,) if is_held else (),
        launched_as="1",
        waiting=waiting,
        leases=frozenset({2}) if leased else frozenset(),
        last_used=now - age_s,
        last_sign=now - age_s,
        wanted=wanted,
        asleep_at=now - age_s if state is State.SLEEPING and asleep else None,
        gave_back=state is State.SLEEPING and asleep and gave_back,
        to_sleep=state is State.DRAINING and asleep,
        hangs=state is State.DRAINING and hangs,
        kill_reason="hangs" if state in (State.DRAINING, State.STOPPING, State.STUCK) and killed else "",
        tokens=tokens,
        tokens_at=now - age_s,
        counted_at=now - age_s,
        over_since=now - age_s if killed else None,
    )
    fleet = Fleet(
        engines={"a": engine},
        gpus={0: gpu(0)},
        samples={0: GpuSample(index=0, at=now - 40, used_bytes=21 * GIB)} if gave_back else {},
        policy=Policy(host_budget_bytes=host_budget),
    )
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
    "contextlib",
    "dataclasses",
    "enum",
    "types",
    "typing",
    "math",
    "datetime",
    "itertools",
    "functools",
    "re",
    "fnmatch",
}


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: path.name)
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
