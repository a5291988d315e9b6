"""Models elsewhere: no process, so a circuit that opens, and nobody who waits for it to close."""

from supervisord_llm.core.effects import Reject, StopEngine
from supervisord_llm.core.events import ConfigChanged, StartAsked, StopAsked, TokensCounted
from supervisord_llm.core.fleet import ModelSpec
from supervisord_llm.core.state import State
from tests.core.world import World, gpu

SPEC = ModelSpec(name="grok", elsewhere=True, stop_after_s=None, backoff_s=(2.0, 60.0))


def ready() -> World:
    world = World.of(SPEC)
    world.finish(world.bring_up("grok"), "grok")
    return world


def refusals(world: World) -> list[Reject]:
    return world.of_kind(Reject)


def test_while_the_circuit_is_open_everybody_is_refused_at_once_with_when_to_come_again() -> None:
    world = ready()
    world.exited("grok", "http://a: 5 times in a row, lastly: it answers 503")
    assert world["grok"].state is State.BACKOFF
    world.pass_time(0.5)
    world.ask("grok")
    (refusal,) = refusals(world)
    assert (refusal.code, refusal.retry_after_s) == ("start_failed", 1.5)
    assert "it answers 503" in refusal.message
    assert world["grok"].waiting == ()
    assert world["grok"].state is State.BACKOFF, "nobody waits for it, so nothing is tried"


def test_after_the_wait_the_next_request_is_the_one_probe_and_others_wait_for_its_outcome() -> None:
    world = ready()
    world.exited("grok")
    world.pass_time(2.1)
    assert world["grok"].state is State.STOPPED, "nothing is asked before somebody wants it"
    launched = len(world.started)
    asked = [world.ask("grok") for _ in range(5)]
    world.prepare("grok")
    assert len(world.started) == launched + 1
    assert world.rejected == {}
    world.ready("grok")
    assert set(asked) <= set(world.admitted)


def test_who_waits_for_a_probe_that_fails_is_refused_and_told_when() -> None:
    world = World.of(SPEC)
    asked = {world.ask("grok"), world.ask("grok")}
    world.prepare("grok")
    world.exited("grok", "nothing listens there")
    assert {refusal.request for refusal in refusals(world)} == asked
    assert {refusal.retry_after_s for refusal in refusals(world)} == {2.0}
    assert world["grok"].last_error == "cannot reach grok: nothing listens there"


def test_waits_grow_up_to_a_minute_and_it_never_counts_as_failed() -> None:
    world, waits = World.of(SPEC), []
    for _ in range(12):
        world.ask("grok")
        world.prepare("grok")
        world.exited("grok")
        assert world["grok"].state is State.BACKOFF
        waits.append(round(world["grok"].retry_at - world.now, 6))
        world.pass_time(waits[-1] + 0.1)
    assert waits[:6] == [2, 4, 8, 16, 32, 60]
    assert all(later == 60 for later in waits[6:])


def test_failures_of_long_ago_are_forgotten() -> None:
    world = ready()
    for _ in range(3):
        world.exited("grok")
        world.pass_time(70)
        world.finish(world.bring_up("grok"), "grok")
    world.pass_time(SPEC.restart_window_s + 1)
    world.exited("grok")
    assert round(world["grok"].retry_at - world.now, 6) == 2


def test_those_who_wait_for_a_slot_are_refused_when_the_circuit_opens() -> None:
    busy = ModelSpec(name="grok", elsewhere=True, stop_after_s=None, max_concurrent=1, queue_when_busy=True)
    world = World.of(busy)
    first = world.bring_up("grok")
    second = world.ask("grok")
    world.exited("grok")
    assert world.rejected == {second: "start_failed"}
    assert world["grok"].leases == {first}, "its stream goes on"


def test_streams_outlive_the_open_circuit_and_count_in_the_next_life() -> None:
    world = World.of(SPEC)
    stream = world.bring_up("grok")
    world.exited("grok")
    world.pass_time(2.1)
    world.bring_up("grok")
    assert stream in world["grok"].leases
    world.finish(stream, "grok")
    assert stream not in world["grok"].leases
    assert world.of_kind(StopEngine) == []


def test_a_start_by_hand_does_not_wait_for_the_end_of_the_backoff() -> None:
    world = ready()
    world.exited("grok")
    world.happen(StartAsked(model="grok"))
    world.prepare("grok")
    assert world["grok"].state is State.STARTING


def test_a_stop_by_hand_holds_until_the_next_request() -> None:
    world = ready()
    world.happen(StopAsked(model="grok"))
    assert world["grok"].state is State.STOPPING
    world.exited("grok", "stopped as asked")
    assert world["grok"].state is State.STOPPED
    world.pass_time(1000)
    assert world["grok"].state is State.STOPPED
    world.bring_up("grok")


def test_idleness_eviction_and_hangs_do_not_touch_it() -> None:
    local = ModelSpec(name="local", pinned=None, grant=0.8, min_residency_s=0.0, stop_after_s=None)
    other = ModelSpec(name="other", pinned=None, grant=0.8, min_residency_s=0.0, stop_after_s=None)
    world = World.of(SPEC, local, other, gpus=(gpu(0),))
    stream = world.bring_up("grok")
    world.finish(world.bring_up("local"), "local")
    world.ask("other")
    world.prepare("other")
    assert world.stopped == ["local"], "the one that holds memory gives way"
    launch = world["grok"].launch
    world.happen(TokensCounted(model="grok", launch=launch, running=None, tokens=0.0))  # it does not tell
    world.pass_time(10_000)
    world.finish(stream, "grok")
    world.pass_time(100_000)
    assert world["grok"].state is State.READY
    assert "grok" not in world.stopped


def test_a_changed_address_takes_effect_and_a_changed_limit_does_not_end_it() -> None:
    world = ready()
    limited = ModelSpec(name="grok", elsewhere=True, stop_after_s=None, max_concurrent=3)
    world.happen(ConfigChanged(specs=(limited,), gpus=()))
    assert world["grok"].state is State.READY
    moved = ModelSpec(name="grok", elsewhere=True, stop_after_s=None, signature="moved")
    world.happen(ConfigChanged(specs=(moved,), gpus=()))
    assert world["grok"].state is State.STOPPING
