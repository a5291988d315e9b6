"""The loop's clock: it goes on where it was when the process could not run."""

import asyncio
import time

import pytest

from supervisord_llm.steady import HELD_UP_S, SteadyLoop


def test_a_long_pause_is_left_out_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    loop = SteadyLoop()
    try:
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        loop._seen_at = clock[0]
        begun = loop.time()
        clock[0] += HELD_UP_S - 0.1
        assert loop.time() - begun == pytest.approx(HELD_UP_S - 0.1)
        clock[0] += 3600
        assert loop.time() - begun == pytest.approx(HELD_UP_S - 0.1)
        clock[0] += 1
        assert loop.time() - begun == pytest.approx(HELD_UP_S + 0.9)
    finally:
        loop.close()


def test_an_idle_loop_turns_often_enough_to_tell_a_long_wait_from_a_pause() -> None:
    async def wait() -> float:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.sleep(HELD_UP_S + 0.3)
        return loop.time() - begun

    with asyncio.Runner(loop_factory=SteadyLoop) as runner:
        assert runner.run(wait()) == pytest.approx(HELD_UP_S + 0.3, abs=0.25)
