"""Falling asleep and waking, with real processes that do it well or badly."""

import json
from typing import Any

import pytest

from supervisord_llm.engines import sleep
from supervisord_llm.engines.engine import LocalEngine
from supervisord_llm.engines.sleep import agree
from supervisord_llm.errors import EngineError
from tests.engines.conftest import Fleet, stats_of

LEVEL_2 = [
    "wake_up tags=weights",
    "collective_rpc reload_weights",
    "wake_up tags=kv_cache",
    "reset_prefix_cache",
]


async def sleeper(fleet: Fleet, behaviour: str = "", **env: str) -> LocalEngine:
    return await fleet.ready(behaviour, config={"sleep_level": 1, "env": {"FAKE_VLLM": behaviour} | env})


@pytest.mark.parametrize(("level", "steps"), [(1, ["wake_up"]), (2, LEVEL_2)])
async def test_sleeps_and_wakes_as_it_was(fleet: Fleet, level: int, steps: list[str]) -> None:
    engine = await sleeper(fleet)
    for _ in range(2):
        await engine.sleep(level)
        assert (await stats_of(engine))["is_sleeping"]
        await engine.wake(level)
    stats = await stats_of(engine)
    assert stats["sleeps"] == 2 * [f"sleep level={level}", *steps]
    assert (stats["is_sleeping"], stats["completed"], stats["asked_asleep"]) == (False, 4, 0)


async def test_level_2_without_its_weights_is_noticed(fleet: Fleet) -> None:
    """It answers with status 200 and says that it is awake; only what it answers is wrong."""
    engine = await sleeper(fleet)
    await engine.sleep(2)
    with pytest.raises(
        EngineError, match=r'^cannot wake alpha: .*otherwise than before .*"I am alpha\.", now "'
    ):
        await engine.wake(1)


@pytest.mark.parametrize(
    ("behaviour", "limit", "asleep", "told"),
    [
        ("sleep_hangs", "SLEEP_S", True, "cannot put alpha to sleep: no answer within 0.3 s; see"),
        ("freezes", "CANARY_S", True, "cannot put alpha to sleep: no answer within 0.3 s; see"),
        ("wake_hangs", "WAKE_S", False, "cannot wake alpha: no answer within 0.3 s; see"),
        ("wake_fails", "", False, "cannot wake alpha: POST /wake_up answers 500 Internal Server Error; see"),
        ("wakes_wrong", "", False, "cannot wake alpha: it answers otherwise than before it slept"),
        ("oom_serving", "", True, "cannot put alpha to sleep: no answer from the engine"),
    ],
)
async def test_what_goes_wrong_is_told_in_time(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, behaviour: str, limit: str, asleep: bool, told: str
) -> None:
    engine = await sleeper(fleet, behaviour)
    if limit:
        monkeypatch.setattr(sleep, limit, 0.3)
    if not asleep:
        await engine.sleep(1)
    with pytest.raises(EngineError) as error:
        await (engine.sleep(1) if asleep else engine.wake(1))
    assert str(error.value).startswith(told)


async def test_without_the_endpoints_it_cannot_sleep(fleet: Fleet) -> None:
    engine = await fleet.ready()
    with pytest.raises(EngineError, match="POST /sleep\\?level=1 answers 404"):
        await engine.sleep(1)


async def test_a_model_for_embeddings_is_compared_by_one(fleet: Fleet) -> None:
    engine = await sleeper(fleet, "embeds_only")
    await engine.sleep(2)
    await engine.wake(2)
    await engine.sleep(2)
    with pytest.raises(EngineError, match="an embedding, now an embedding"):
        await engine.wake(1)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("Paris", "Paris", True),
        ("Paris", "!!!!", False),
        ("Paris", None, False),
        (None, None, True),
        (None, "Paris", True),
        ((0.6, 0.8), (0.601, 0.799), True),
        ((0.6, 0.8), (0.8, -0.6), False),
        ((0.6, 0.8), (0.6, 0.8, 0.0), False),
        ((0.6, 0.8), json.loads("[NaN, 1.0]"), False),
        ((0.6, 0.8), (0.0, 0.0), False),
    ],
)
def test_canaries(before: Any, after: Any, same: bool) -> None:
    after = tuple(after) if isinstance(after, list) else after
    assert agree(before, after) is same
