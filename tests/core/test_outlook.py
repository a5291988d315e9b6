"""Why a model is as it is, and what a request would bring about: one sentence each."""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from supervisord_llm.core.effects import Reject
from supervisord_llm.core.events import RequestArrived
from supervisord_llm.core.fleet import Engine, Fleet, Gpu, Learnt, ModelSpec, Waiting
from supervisord_llm.core.outlook import outlook, standing
from supervisord_llm.core.refusal import foreseen
from supervisord_llm.core.scheduler import step
from supervisord_llm.core.state import State

GIB = 1024**3
NOW = 1000.0
CARD = Gpu(index=0, uuid="GPU-0", name="Card", total_bytes=24 * GIB, budget_bytes=20 * GIB)
ONE = Waiting(request=9, source="webui", priority=0, since=NOW - 5)


IN_SPEC = set(ModelSpec.__dataclass_fields__) - {"learnt"}


def engine(name: str = "m", state: State = State.STOPPED, *, gib: int = 12, **fields: Any) -> Engine:
    spec = {key: fields.pop(key) for key in tuple(fields) if key in IN_SPEC}
    asked = ModelSpec(**{"name": name, "pinned": None, "grant": gib * GIB} | spec)
    made = Engine(spec=asked, state=state, since=NOW - 300, last_used=NOW - 200, **fields)
    if state in (State.READY, State.STARTING, State.SLEEPING, State.DRAINING):
        made = replace(made, gpus=(0,), granted_bytes=(gib * GIB,), awake_bytes=(gib * GIB,))
    return made


def fleet(*engines: Engine, gpus: tuple[Gpu, ...] = (CARD,)) -> Fleet:
    return Fleet(
        engines=MappingProxyType({each.name: each for each in engines}),
        gpus=MappingProxyType({each.index: each for each in gpus}),
    )


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (engine(), "m is stopped: nobody asks for it"),
        (engine(disabled="cannot start m: no GPU"), "cannot start m: no GPU"),
        (
            engine(state=State.PREPARING, phase="weights 40%", waiting=(ONE,)),
            "m is preparing since 5 min; 1 request wait: weights 40%",
        ),
        (engine(state=State.QUEUED, phase="waits until b made room"), "m waits until b made room"),
        (engine(state=State.STARTING), "m is starting on GPU 0 since 5 min; 0 requests wait"),
        (
            engine(state=State.READY, stop_after_s=260.0),
            "m is ready on GPU 0, idle for 3 min; unless asked, it is stopped in 60 s",
        ),
        (
            engine(state=State.READY, sleep_after_s=250.0, sleep_level=1),
            "m is ready on GPU 0, idle for 3 min; unless asked, it is put to sleep in 50 s",
        ),
        (engine(state=State.READY, keep=True), "m is ready on GPU 0 and kept"),
        (engine(state=State.READY, leases=frozenset({1, 2})), "m serves 2 requests on GPU 0"),
        (
            engine(state=State.READY, leases=frozenset({1}), yields_to="b"),
            "m finishes 1 request and then makes room for b",
        ),
        (engine(state=State.SLEEPING), "m is falling asleep since 5 min"),
        (
            engine(state=State.SLEEPING, asleep_at=NOW),
            "m sleeps since 5 min, and holds 12.0 GiB of each GPU",
        ),
        (
            engine(state=State.DRAINING, leases=frozenset({1})),
            "m is draining since 5 min; 1 request may finish first",
        ),
        (
            engine(state=State.BACKOFF, last_error="cannot start m: boom", retry_at=NOW + 12),
            "cannot start m: boom; tried again in 12 s",
        ),
        (
            engine(state=State.FAILED, last_error="cannot start m: boom", retry_at=NOW + 12),
            "cannot start m: boom (tried again on a request in 12 s)",
        ),
    ],
)
def test_standing(made: Engine, sentence: str) -> None:
    assert standing(made, NOW) == sentence


@pytest.mark.parametrize("state", State)
def test_every_state_has_both_sentences(state: State) -> None:
    made = engine(state=state, last_error="cannot start m: boom")
    assert "m" in standing(made, NOW)
    assert outlook(fleet(made), made, NOW)


GROK = engine("grok", elsewhere=True, pinned=())
OPEN = replace(GROK, state=State.BACKOFF, last_error="cannot reach grok: boom", retry_at=NOW + 9)
IDLE = engine("idle", State.READY)
BUSY = engine("busy", State.READY, leases=frozenset({1}))
DOZY = engine("dozy", State.READY, sleep_level=1)
ASLEEP = replace(engine("asleep", State.SLEEPING), asleep_at=NOW - 100, gave_back=True)
KEPT = engine("kept", State.READY, keep=True)


@pytest.mark.parametrize(
    ("made", "others", "sentence"),
    [
        (engine(), (), "a request would start m on GPU 0"),
        (
            engine(learnt=Learnt(start_s=62.0)),
            (),
            "a request would start m on GPU 0, which took 62 s the last time",
        ),
        (engine(), (IDLE,), "a request would stop idle to make room and start m on GPU 0"),
        (engine(), (DOZY,), "a request would put dozy to sleep to make room and start m on GPU 0"),
        (
            engine(gib=20),
            (replace(DOZY, granted_bytes=(10 * GIB,)), replace(ASLEEP, granted_bytes=(GIB,))),
            "a request would stop dozy and asleep to make room and start m on GPU 0",
        ),
        (engine(state=State.READY), (), "a request would be served at once"),
        (
            engine(state=State.READY, leases=frozenset({1}), max_concurrent=1, queue_when_busy=True),
            (),
            "a request would wait for a slot",
        ),
        (
            engine(state=State.STARTING, waiting=(ONE,)),
            (),
            "a request would wait until m is ready, behind 1 request",
        ),
        (engine(pinned=()), (), "a request would start m on the CPU"),
        (GROK, (), "a request would ask whether grok answers, and be sent there if so"),
        (replace(GROK, state=State.READY), (), "a request would be served at once"),
    ],
)
def test_outlook(made: Engine, others: tuple[Engine, ...], sentence: str) -> None:
    assert outlook(fleet(made, *others), made, NOW) == sentence


@pytest.mark.parametrize(
    ("made", "others", "part"),
    [
        (engine(), (BUSY,), "a request would wait: m needs 12.0 GiB, 8.0 GiB free on GPU 0; held by busy ("),
        (
            engine(),
            (KEPT,),
            "soon be refused: cannot start m now: it needs 12.0 GiB, 8.0 GiB free on GPU 0; held by kept",
        ),
        (engine(gib=30), (), "a request would be refused: cannot start m: it can never fit"),
        (
            engine(state=State.FAILED, last_error="cannot start m: boom", retry_at=NOW + 9),
            (),
            "a request would be refused: cannot start m: boom",
        ),
        (OPEN, (), "a request would be refused: cannot reach grok: boom"),
        (
            engine(state=State.READY, leases=frozenset({1}), max_concurrent=1),
            (),
            "a request would be refused: cannot serve now: m already has 1 request",
        ),
    ],
)
def test_outlook_tells_what_is_in_the_way(made: Engine, others: tuple[Engine, ...], part: str) -> None:
    assert part in outlook(fleet(made, *others), made, NOW)


def test_one_elsewhere_is_on_no_processor_of_this_host() -> None:
    assert "CPU" not in standing(replace(GROK, state=State.READY, leases=frozenset({1})), NOW)
    assert "CPU" not in standing(replace(GROK, state=State.READY), NOW)
    assert "CPU" not in standing(replace(GROK, state=State.STARTING), NOW)


@pytest.mark.parametrize(
    ("made", "code", "retry_after_s"),
    [
        (OPEN, "start_failed", 9.0),
        (replace(OPEN, retry_at=NOW), "", None),
        (engine(state=State.BACKOFF, retry_at=NOW + 9), "", None),
        (engine(state=State.FAILED, retry_at=NOW + 9), "start_failed", 9.0),
        (engine(state=State.STUCK), "start_failed", 5.0),
        (engine(state=State.READY, leases=frozenset({1}), max_concurrent=1), "model_busy", 5.0),
        (engine(closed="the window day"), "out_of_schedule", 3600.0),
        (engine(gib=30), "no_vram", 60.0),
        (engine(gib=30, state=State.READY), "", None),
    ],
)
def test_routes_foresee_what_the_scheduler_would_say(
    made: Engine, code: str, retry_after_s: float | None
) -> None:
    found = foreseen(fleet(made), made, NOW)
    assert (("", None) if found is None else (found.code, found.retry_after_s)) == (code, retry_after_s)
    _, effects = step(fleet(made), RequestArrived(request=9, model=made.name), NOW)
    told = [(effect.code, effect.retry_after_s) for effect in effects if isinstance(effect, Reject)]
    assert told == ([] if found is None else [(code, retry_after_s)])


def test_a_daemon_that_stops_refuses() -> None:
    made = engine()
    assert "shutting down" in outlook(replace(fleet(made), stopping=True), made, NOW)
