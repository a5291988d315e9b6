"""The one loop: events in, effects performed, results back as events."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from supervisord_llm.core.events import ConfigChanged, Event
from supervisord_llm.core.fleet import Fleet, ModelSpec
from supervisord_llm.core.state import State
from supervisord_llm.errors import LaunchError, ProvisionError, Refused
from supervisord_llm.runtime.loop import Runtime
from supervisord_llm.runtime.ports import Exit
from tests.fakes.ports import FakeLauncher, FakeMemory, FakeProvisioner, FakeUpstreams
from tests.runtime.conftest import House


async def test_a_lease_waits_for_the_start_and_gets_the_socket(house: House) -> None:
    async with house.runtime.lease("a", source="webui") as lease:
        assert not lease.is_admitted
        assert await lease.admission == house.launcher.engines[0].backend
        assert lease.is_admitted
        assert len(house.runtime.fleet.engines["a"].leases) == 1
    assert house.runtime.fleet.engines["a"].leases == frozenset()


async def test_a_lease_of_a_ready_engine_is_admitted_without_a_hop(house: House) -> None:
    await house.runtime.start("a")
    async with house.runtime.lease("a") as lease:
        assert lease.admission.done()
        assert lease.wait_s == pytest.approx(0, abs=0.01)


async def test_two_hundred_leases_make_one_launch(house: House) -> None:
    async def one() -> None:
        async with house.runtime.lease("a") as lease:
            await lease.admission

    await asyncio.gather(*(one() for _ in range(200)))
    assert len(house.launcher.engines) == 1


async def test_who_leaves_while_waiting_is_out_of_the_queue_and_the_load_goes_on(house: House) -> None:
    house.launcher.holds = True
    async with house.runtime.lease("a"):
        await house.until(State.STARTING)
    assert house.runtime.fleet.engines["a"].waiting == ()
    house.launcher.engines[0].is_ready.set()
    await house.until(State.READY)


async def test_a_cancelled_waiter_disturbs_nobody(house: House) -> None:
    house.launcher.holds = True
    async with AsyncExitStack() as stack:
        leaver = await stack.enter_async_context(house.runtime.lease("a"))
        stayer = await stack.enter_async_context(house.runtime.lease("a"))
        leaver.admission.cancel()
        await house.until(State.STARTING)
        house.launcher.engines[0].is_ready.set()
        await stayer.admission


async def test_a_refusal_that_nobody_awaits_is_silent(house: House) -> None:
    async with house.runtime.lease("nope") as lease:
        assert isinstance(lease.admission.exception(), Refused)


async def test_a_failed_preparation_refuses_with_its_reason(house: House) -> None:
    house.provisioner.error = ProvisionError("cannot find /models/a; put it there")
    async with house.runtime.lease("a") as lease:
        with pytest.raises(Refused, match="cannot find /models/a") as refused:
            await lease.admission
    assert refused.value.code == "start_failed"
    assert house.state() is State.FAILED


async def test_a_bug_in_an_edge_becomes_a_failure_not_a_hang(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.provisioner.error = RuntimeError("surprise")
    async with house.runtime.lease("a") as lease:
        with pytest.raises(Refused, match="internal error"):
            await lease.admission
    house.provisioner.error = None
    house.launcher.error = RuntimeError("surprise")
    async with house.runtime.lease("b") as lease:
        with pytest.raises(Refused, match="internal error"):
            await lease.admission
    assert "surprise" in caplog.text


async def test_a_launch_that_cannot_be_made_refuses_with_its_reason(house: House) -> None:
    house.launcher.error = LaunchError("cannot run vllm: no such file; install it")
    with pytest.raises(Refused, match="install it"):
        await house.runtime.start("a")


async def test_a_failed_start_tells_the_last_lines_and_the_command(house: House) -> None:
    house.launcher.holds = True
    async with house.runtime.lease("a") as lease:
        await house.until(State.STARTING)
        house.launcher.engines[0].ended.set_result(
            Exit(2, "exited with code 2", ("vllm: error: no such flag",), "vllm serve /m --nope")
        )
        with pytest.raises(Refused) as refused:
            await lease.admission
    assert refused.value.message == (
        "cannot start a: exited with code 2\nlast lines:\n  vllm: error: no such flag\n"
        "to see it happen:\n  vllm serve /m --nope"
    )


async def test_connections_are_closed_before_an_engine_is_told_to_end(house: House) -> None:
    await house.runtime.start("a")
    order: list[str] = []
    engine = house.launcher.engines[0]
    stop, close = engine.stop, house.upstreams.close

    async def recorded_stop(*, kill: bool, dump: bool = False) -> None:
        order.append("stop")
        await stop(kill=kill, dump=dump)

    async def recorded_close(model: str) -> None:
        order.append("close")
        await close(model)

    engine.stop = recorded_stop  # type: ignore[method-assign]
    house.upstreams.close = recorded_close  # type: ignore[method-assign]
    await house.runtime.stop("a")
    assert order[:2] == ["close", "stop"]


async def test_an_engine_that_will_not_die_is_stuck_until_it_is_reaped(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisord_llm.runtime.perform.REAPED_GRACE_S", 0.01)
    await house.runtime.start("a")
    engine = house.launcher.engines[0]
    engine.obeys = False
    assert (await house.runtime.stop("a")).state is State.STUCK
    engine.ended.set_result(Exit(-9, "was killed"))
    await house.until(State.STOPPED)


async def test_a_crash_brings_a_waiting_request_to_the_next_engine(house: House) -> None:
    house.launcher.holds = True
    async with house.runtime.lease("a") as first:
        await house.until(State.STARTING)
        house.launcher.engines[0].is_ready.set()
        await first.admission
        house.launcher.holds = False
        house.launcher.engines[0].ended.set_result(Exit(0, "exited with code 0 although nobody asked"))
        await house.until(State.BACKOFF)
        async with house.runtime.lease("a") as second:
            assert await second.admission == house.launcher.engines[1].backend


async def test_a_stop_that_meets_a_crash_loses_nothing(house: House) -> None:
    """Its end is known, its connections are still being closed, and everything is told to stop."""
    await house.runtime.start("a")
    await house.runtime.start("b")
    closing, let_go = asyncio.Event(), asyncio.Event()
    close = house.upstreams.close

    async def slow_close(model: str) -> None:
        closing.set()
        await let_go.wait()
        await close(model)

    house.upstreams.close = slow_close  # type: ignore[method-assign]
    house.launcher.engines[0].ended.set_result(Exit(1, "exited with code 1"))
    await closing.wait()
    stopping = asyncio.create_task(house.runtime.shutdown(5))
    await asyncio.sleep(0)
    let_go.set()
    assert await stopping
    assert house.launcher.engines[1].stops == [False]


async def test_stop_returns_although_a_request_begins_the_next_life(house: House) -> None:
    await house.runtime.start("a")
    async with house.runtime.lease("a") as busy:
        await busy.admission
        stopping = asyncio.create_task(house.runtime.stop("a"))
        await house.until(State.DRAINING)
        next_one = asyncio.create_task(ask_and_leave(house.runtime))
    async with asyncio.timeout(5):
        await stopping
        await next_one
    assert len(house.launcher.engines) == 2


async def ask_and_leave(runtime: Runtime) -> None:
    async with runtime.lease("a") as lease:
        await lease.admission


async def test_restart_ends_when_somebody_stops_the_model_meanwhile(house: House) -> None:
    await house.runtime.start("a")
    async with house.runtime.lease("a") as busy:
        await busy.admission
        restarting = asyncio.create_task(house.runtime.restart("a"))
        await house.until(State.DRAINING)
        stopping = asyncio.create_task(house.runtime.stop("a"))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await stopping
        with pytest.raises(Refused):
            await restarting


async def test_restart_waits_for_the_new_life(house: House) -> None:
    await house.runtime.start("a")
    engine = await house.runtime.restart("a")
    assert (engine.state, engine.launch, len(house.launcher.engines)) == (State.READY, 2, 2)


async def test_stopping_a_preparation_cancels_it(house: House) -> None:
    house.provisioner.release = asyncio.Event()
    async with house.runtime.lease("a") as lease:
        await asyncio.sleep(0)
        await house.runtime.stop("a")
        with pytest.raises(Refused):
            await lease.admission
    async with asyncio.timeout(5):
        while house.provisioner.cancelled != ["a"]:
            await asyncio.sleep(0.001)


async def test_buttons_for_an_unknown_model_are_refused(house: House) -> None:
    for press in (house.runtime.start, house.runtime.stop, house.runtime.restart):
        with pytest.raises(Refused, match="cannot find model 'nope'"):
            await press("nope")


async def test_idle_time_is_kept_by_the_loop(house: House) -> None:
    house.runtime.dispatch(ConfigChanged(specs=(ModelSpec(name="a", stop_after_s=0.05),)))
    async with house.runtime.lease("a") as lease:
        await lease.admission
    await house.until(State.STOPPED)
    assert house.launcher.engines[0].stops == [False]


async def test_observers_and_the_event_log_hear_of_every_step(house: House) -> None:
    seen: list[tuple[Event, Fleet]] = []
    house.runtime.observers.append(lambda event, fleet: seen.append((event, fleet)))
    await house.runtime.start("a")
    assert seen[-1][1] is house.runtime.fleet
    assert [entry.text for entry in house.runtime.events.recent(10)][:3] == [
        "prepares a: start was asked for",
        "preparing a: checking",
        "starts a on the CPU",
    ]


async def test_followers_of_the_event_log_get_what_comes(house: House) -> None:
    follower = house.runtime.events.follow()
    heard = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0)
    house.runtime.events.add("a", "hello")
    assert (await heard).text == "hello"
    await follower.aclose()


async def test_shutdown_says_so_when_an_engine_is_left() -> None:
    launcher = FakeLauncher()
    runtime = Runtime(launcher, FakeProvisioner(), FakeUpstreams(), FakeMemory())
    runtime.dispatch(ConfigChanged(specs=(ModelSpec(name="a"),)))
    await runtime.start("a")
    launcher.engines[0].obeys = False
    assert not await runtime.shutdown(0.05)


async def test_a_circuit_that_opens_lets_streams_go_on_and_an_end_does_not(house: House) -> None:
    await house.runtime.start("a")
    house.launcher.engines[0].ended.set_result(Exit(None, "open", answers_on=True))
    await house.until(State.BACKOFF)
    assert (house.upstreams.retired, house.upstreams.closed) == (["a"], [])
    await house.until(State.STOPPED)
    await house.runtime.start("a")
    house.launcher.engines[1].ended.set_result(Exit(1, "died"))
    await house.until(State.FAILED)
    assert house.upstreams.closed == ["a"]
