"""Engines that sleep, wake, tell how far they have come, and teach something for the next time."""

import asyncio
from dataclasses import replace

import pytest

from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.events import Cause, ConfigChanged
from supervisord_llm.core.fleet import Gpu, ModelSpec
from supervisord_llm.core.state import State
from supervisord_llm.errors import EngineError, Refused
from supervisord_llm.runtime.ports import Exit, Progressing
from tests.runtime.conftest import House

GIB = 1024**3
SLEEPER = ModelSpec(name="a", signature="s", sleep_level=1, backoff_s=(0.01, 0.01))
GPU = Gpu(index=0, uuid="GPU-0", name="Test", total_bytes=24 * GIB, budget_bytes=20 * GIB)


def configure(house: House, *specs: ModelSpec, gpus: tuple[Gpu, ...] = ()) -> None:
    house.runtime.dispatch(ConfigChanged(specs=specs, gpus=gpus))


async def test_an_engine_is_put_to_sleep_and_the_next_request_wakes_it(house: House) -> None:
    configure(house, SLEEPER)
    await house.runtime.start("a")
    assert (await house.runtime.sleep("a")).state is State.SLEEPING
    assert (await house.runtime.sleep("a")).state is State.SLEEPING, "asked twice"
    async with house.runtime.lease("a") as lease:
        assert await lease.admission == house.launcher.engines[0].backend
    assert house.launcher.engines[0].naps == ["sleep 1", "wake 1"]
    assert house.memory.learnt["a", "s"].wake_s is not None


async def test_sleep_waits_for_requests_in_flight(house: House) -> None:
    configure(house, SLEEPER)
    async with house.runtime.lease("a") as lease:
        await lease.admission
        asked = asyncio.create_task(house.runtime.sleep("a"))
        await house.until(State.DRAINING)
        assert house.launcher.engines[0].naps == []
    assert (await asked).state is State.SLEEPING


async def test_what_cannot_sleep_is_refused_with_a_way_out(house: House) -> None:
    await house.runtime.start("b")
    with pytest.raises(Refused, match=r"cannot put b to sleep: .* set its idle.sleep_level = 1"):
        await house.runtime.sleep("b")
    with pytest.raises(Refused, match="cannot put a to sleep"):
        await house.runtime.sleep("a")
    configure(house, ModelSpec(name="far", elsewhere=True))
    await house.runtime.start("far")
    with pytest.raises(Refused, match="cannot put far to sleep: it runs on another machine"):
        await house.runtime.sleep("far")


async def test_an_engine_that_will_not_sleep_is_stopped_and_the_caller_told(house: House) -> None:
    configure(house, SLEEPER)
    await house.runtime.start("a")
    house.launcher.engines[0].refusal = EngineError("cannot put it to sleep: it answers 500")
    with pytest.raises(Refused, match="it answers 500"):
        await house.runtime.sleep("a")
    assert house.launcher.engines[0].stops == [False]


async def test_a_wrong_wake_is_a_restart_and_who_waits_is_served(house: House) -> None:
    configure(house, SLEEPER)
    await house.runtime.start("a")
    await house.runtime.sleep("a")
    house.launcher.engines[0].refusal = EngineError("cannot wake it: it answers otherwise than before")
    async with house.runtime.lease("a") as lease:
        assert await lease.admission == house.launcher.engines[1].backend
    assert house.launcher.engines[0].stops == [True]
    assert "otherwise than before" in house.runtime.fleet.engines["a"].sleepless


async def test_a_stop_during_a_wake_ends_both(house: House) -> None:
    configure(house, SLEEPER)
    await house.runtime.start("a")
    await house.runtime.sleep("a")
    house.launcher.engines[0].holds = True
    waking = asyncio.create_task(house.runtime.wake("a"))
    await house.until(State.WAKING)
    assert (await house.runtime.stop("a")).state is State.STOPPED
    with pytest.raises(Refused):
        await waking


async def test_switch_stops_the_others_first(house: House) -> None:
    await house.runtime.start("a")
    other = house.launcher.engines[0]
    other.obeys = False
    switched = asyncio.create_task(house.runtime.switch("b"))
    await house.until(State.READY, "b")
    assert not switched.done(), "the other one is still there"
    other.ended.set_result(Exit(0, "ended"))
    assert (await switched).state is State.READY
    assert house.state("a") is State.STOPPED


async def test_an_engine_that_stands_still_with_requests_is_dumped_and_replaced(house: House) -> None:
    configure(house, replace(SLEEPER, stall_timeout_s=0.3, drain_timeout_s=0.05))
    async with house.runtime.lease("a") as lease:
        await lease.admission
        house.launcher.engines[0].work = Progressing(running=1, tokens=7.0)
        async with asyncio.timeout(5):
            while not house.launcher.engines[0].dumps:
                await asyncio.sleep(0.005)
    assert (house.launcher.engines[0].stops, house.launcher.engines[0].dumps) == ([True], [True])
    await house.until(State.BACKOFF)
    assert "not one token" in house.runtime.fleet.engines["a"].last_error


async def test_an_engine_that_does_not_tell_is_left_alone(house: House) -> None:
    configure(house, replace(SLEEPER, stall_timeout_s=0.1))
    async with house.runtime.lease("a") as lease:
        await lease.admission
        await asyncio.sleep(0.4)
        assert house.state() is State.READY


async def test_out_of_gpu_memory_changes_one_flag_and_serves_who_waits(house: House) -> None:
    configure(house, SLEEPER)
    house.launcher.holds = True
    async with house.runtime.lease("a") as lease:
        await house.until(State.STARTING)
        house.launcher.holds = False
        house.launcher.engines[0].ended.set_result(Exit(1, "ran out of GPU memory", cause=Cause.GPU_OOM))
        await lease.admission
    assert [dict(order.adjusted) for order in house.launcher.orders] == [{}, {"max-num-seqs": 64}]
    assert house.memory.learnt["a", "s"].adjusted == (("max-num-seqs", 64),)


async def test_the_estimate_sizes_the_grant_before_the_launch(house: House) -> None:
    house.provisioner.estimates["a"] = Estimate(
        weights_bytes=4 * GIB, kv_bytes=2 * GIB, least_kv_bytes=GIB, overhead_bytes=GIB, host_bytes=4 * GIB,
        max_model_len=4096, sequences=4, kv_bytes_per_token=1,
    )  # fmt: skip
    configure(house, replace(SLEEPER, pinned=None), gpus=(GPU,))
    engine = await house.runtime.start("a")
    assert engine.granted_bytes == (7 * GIB,)
    order = house.launcher.orders[0]
    assert (order.memory_fraction, order.kv_bytes) == (7 / 24, 2 * GIB)
