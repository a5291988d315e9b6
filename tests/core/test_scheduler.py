"""What the scheduler decides, one fact a test. No clock, no sleep, no process."""

import pytest

from supervisord_llm.core.effects import CancelPrepare, Notify, Reject, StartEngine, StopEngine
from supervisord_llm.core.events import (
    ConfigChanged,
    EngineExited,
    EngineReady,
    EngineStuck,
    PrepareFailed,
    Progressed,
    RequestCancelled,
    RestartAsked,
    ShutdownBegan,
    StartAsked,
    StopAsked,
)
from supervisord_llm.core.fleet import ModelSpec
from supervisord_llm.core.state import State
from tests.core.world import GIB, World, gpu


def test_the_first_request_prepares_then_starts_then_is_admitted() -> None:
    world = World.of(ModelSpec(name="a"))
    request = world.ask("a")
    assert (world.prepared, world.started, world.admitted) == (["a"], [], [])
    world.prepare("a")
    assert world.of_kind(StartEngine) == [StartEngine(model="a", launch=1, gpus=())]
    world.ready("a")
    assert world.admitted == [request]


def test_two_hundred_first_requests_make_one_start_and_are_all_admitted() -> None:
    world = World.of(ModelSpec(name="a"))
    requests = [world.ask("a") for _ in range(200)]
    world.prepare("a")
    world.ready("a")
    assert (world.started, world.admitted) == (["a"], requests)


def test_a_ready_engine_admits_in_the_same_step() -> None:
    world = World.of(ModelSpec(name="a"))
    world.bring_up("a")
    request = world.ask("a")
    assert world.admitted[-1] == request


def test_an_unknown_model_is_refused() -> None:
    world = World.of(ModelSpec(name="a"))
    request = world.ask("b")
    assert world.rejected == {request: "model_not_found"}
    assert world.prepared == []


def test_higher_priority_goes_first_and_equals_keep_their_order() -> None:
    world = World.of(ModelSpec(name="a", max_concurrent=1, queue_when_busy=True))
    first = world.bring_up("a")
    low, high, low_later, high_later = (world.ask("a", priority) for priority in (0, 5, 0, 5))
    for request in (first, high, high_later, low):
        world.finish(request, "a")
    assert world.admitted == [first, high, high_later, low, low_later]


def test_above_max_concurrent_without_a_queue_is_refused_at_once() -> None:
    world = World.of(ModelSpec(name="a", max_concurrent=2))
    world.bring_up("a")
    world.ask("a")
    third = world.ask("a")
    assert world.rejected == {third: "model_busy"}


def test_a_full_queue_refuses() -> None:
    world = World.of(ModelSpec(name="a", max_concurrent=1, queue_when_busy=True, queue_size=1))
    world.bring_up("a")
    world.ask("a")
    third = world.ask("a")
    assert world.rejected == {third: "model_busy"}


def test_while_it_loads_those_that_will_have_a_slot_do_not_count_against_the_queue() -> None:
    world = World.of(ModelSpec(name="a", max_concurrent=2, queue_when_busy=True, queue_size=1))
    requests = [world.ask("a") for _ in range(4)]
    assert world.rejected == {requests[3]: "model_busy"}


def test_who_waits_too_long_is_told_why() -> None:
    world = World.of(ModelSpec(name="a", max_concurrent=1, queue_when_busy=True, queue_timeout_s=60))
    world.bring_up("a")
    late = world.ask("a")
    world.pass_time(59)
    assert late not in world.rejected
    world.pass_time(1)
    assert world.rejected == {late: "model_busy"}


def test_an_idle_engine_is_stopped_after_its_time_and_starts_again_on_request() -> None:
    world = World.of(ModelSpec(name="a", stop_after_s=300))
    request = world.bring_up("a")
    world.pass_time(1000)
    assert world["a"].state is State.READY, "in use: never reaped"
    world.finish(request, "a")
    world.pass_time(299)
    assert world["a"].state is State.READY
    world.pass_time(1)
    assert world.of_kind(StopEngine) == [StopEngine(model="a", launch=1)]
    waiting = world.ask("a")  # lands while it stops: waits for the next life
    world.exited("a")
    world.prepare("a")
    world.ready("a")
    assert world.admitted == [request, waiting]
    assert world["a"].launch == 2


def test_a_kept_engine_is_never_reaped() -> None:
    world = World.of(ModelSpec(name="a", keep=True, stop_after_s=1))
    world.finish(world.bring_up("a"), "a")
    world.pass_time(10_000)
    assert world["a"].state is State.READY


def test_leaving_while_it_loads_does_not_cancel_the_load() -> None:
    world = World.of(ModelSpec(name="a"))
    leaver, stayer = world.ask("a"), world.ask("a")
    world.happen(RequestCancelled(request=leaver, model="a"))
    world.happen(RequestCancelled(request=stayer, model="a"))
    world.prepare("a")  # nobody waits any more, but whoever left may come again
    world.ready("a")
    assert world["a"].state is State.READY
    assert world.admitted == []


def test_a_failed_start_tells_every_waiter_and_backs_off() -> None:
    world = World.of(ModelSpec(name="a", restart_tries=3, backoff_s=(2, 60)))
    requests = [world.ask("a"), world.ask("a")]
    world.prepare("a")
    world.exited("a", "exited with code 1: no such flag")
    assert world.rejected == dict.fromkeys(requests, "start_failed")
    assert "no such flag" in world.of_kind(Reject)[0].message
    assert world["a"].state is State.BACKOFF
    during = world.ask("a")
    assert during not in world.rejected, "who comes now waits for the next try"
    world.pass_time(2)
    assert world["a"].state is State.PREPARING


def test_after_its_tries_it_is_failed_and_refuses_until_the_window_is_over() -> None:
    world = World.of(ModelSpec(name="a", restart_tries=2, restart_window_s=600, backoff_s=(2, 60)))
    for _ in range(2):
        world.ask("a")
        world.pass_time(2)
        world.prepare("a")
        world.exited("a", "boom")
    assert world["a"].state is State.FAILED
    refused = world.ask("a")
    assert world.rejected[refused] == "start_failed"
    assert world.of_kind(Reject)[-1].retry_after_s == pytest.approx(600)
    world.pass_time(600)
    world.ask("a")
    assert world["a"].state is State.PREPARING


def test_a_start_asked_by_hand_clears_a_failure() -> None:
    world = World.of(ModelSpec(name="a", restart_tries=1))
    world.ask("a")
    world.prepare("a")
    world.exited("a")
    assert world["a"].state is State.FAILED
    world.happen(StartAsked(model="a"))
    assert world["a"].state is State.PREPARING


def test_an_exit_that_nobody_asked_for_is_a_crash_and_waiters_go_on_waiting() -> None:
    world = World.of(ModelSpec(name="a", max_concurrent=1, queue_when_busy=True))
    in_flight = world.bring_up("a")
    waiter = world.ask("a")
    world.exited("a", "exited with code 0 although nobody asked")
    assert world["a"].state is State.BACKOFF
    assert world.rejected == {}
    world.finish(in_flight, "a")  # its connection broke
    world.pass_time(2)
    world.prepare("a")
    world.ready("a")
    assert world.admitted == [in_flight, waiter]


def test_a_crash_tells_other_clients_its_reason_and_not_the_last_lines() -> None:
    world = World.of(ModelSpec(name="a", restart_tries=1))
    world.bring_up("a")
    world.exited("a", "exited with code 1\nlast lines:\n  somebody's prompt")
    refused = world.ask("a")
    assert world.rejected == {refused: "start_failed"}
    message = world.of_kind(Reject)[0].message
    assert "exited with code 1" in message
    assert "prompt" not in message


def test_a_kept_engine_comes_back_after_a_crash_without_a_request() -> None:
    world = World.of(ModelSpec(name="a", keep=True), ModelSpec(name="b"))
    for name in ("a", "b"):
        world.finish(world.bring_up(name), name)
        world.exited(name)
    world.pass_time(60)
    assert (world["a"].state, world["b"].state) == (State.PREPARING, State.STOPPED)


def test_a_fact_of_the_host_refuses_at_once_and_is_looked_at_again_with_the_next_request() -> None:
    world = World.of(ModelSpec(name="a"))
    request = world.ask("a")
    world.happen(PrepareFailed(model="a", launch=1, reason="cannot find /models/a; put it there"))
    assert (world.rejected, world["a"].state) == ({request: "start_failed"}, State.FAILED)
    world.ask("a")
    assert world["a"].state is State.PREPARING


def test_a_temporary_failure_to_prepare_backs_off() -> None:
    world = World.of(ModelSpec(name="a"))
    world.ask("a")
    world.happen(PrepareFailed(model="a", launch=1, reason="no network", temporary=True))
    assert world["a"].state is State.BACKOFF


def test_a_start_that_takes_too_long_is_killed_and_its_waiters_told() -> None:
    world = World.of(ModelSpec(name="a", start_timeout_s=100, stall_timeout_s=1000))
    request = world.ask("a")
    world.prepare("a")
    world.pass_time(100)
    assert world.of_kind(StopEngine) == [StopEngine(model="a", launch=1, kill=True)]
    assert world.rejected == {request: "start_timeout"}
    world.exited("a", "was killed")
    assert world["a"].state is State.BACKOFF
    assert "start_timeout" in world["a"].last_error


def test_signs_of_life_hold_off_the_stall_timeout_but_not_the_start_timeout() -> None:
    world = World.of(ModelSpec(name="a", start_timeout_s=100, stall_timeout_s=10))
    world.ask("a")
    world.prepare("a")
    for _ in range(19):
        world.pass_time(5)
        world.happen(Progressed(model="a", launch=1, phase="loading weights", fraction=0.5))
        assert world["a"].state is State.STARTING
    world.pass_time(5)
    assert world["a"].state is State.STOPPING


def test_progress_is_shown_always_and_told_once_a_phase_and_tenth() -> None:
    world = World.of(ModelSpec(name="a"))
    world.ask("a")
    for phase, fraction in (
        ("weights", 0.11),
        ("venv", None),
        ("weights", 0.19),
        ("weights", 0.2),
        ("venv", None),
    ):
        world.happen(Progressed(model="a", launch=1, phase=phase, fraction=fraction))
    assert (world["a"].phase, world["a"].fraction) == ("venv", None)
    assert [notice.text for notice in world.of_kind(Notify)][1:] == [
        "preparing a: weights 10%",
        "preparing a: venv",
        "preparing a: weights 20%",
    ]


def test_a_stalled_preparation_is_cancelled() -> None:
    world = World.of(ModelSpec(name="a", stall_timeout_s=10))
    request = world.ask("a")
    world.pass_time(10)
    assert world.of_kind(CancelPrepare) == [CancelPrepare(model="a", launch=1)]
    assert world.rejected == {request: "start_timeout"}


def test_news_of_an_earlier_life_is_ignored() -> None:
    world = World.of(ModelSpec(name="a"))
    world.finish(world.bring_up("a"), "a")
    world.happen(StopAsked(model="a"))
    world.exited("a")
    world.ask("a")
    before = world.fleet
    world.happen(EngineExited(model="a", launch=1, reason="late"), EngineReady(model="a", launch=1))
    assert world.fleet.engines == before.engines


def test_stop_drains_and_cuts_what_is_still_open_after_the_drain_timeout() -> None:
    world = World.of(ModelSpec(name="a", drain_timeout_s=30))
    request = world.bring_up("a")
    world.happen(StopAsked(model="a"))
    assert (world["a"].state, world.stopped) == (State.DRAINING, [])
    world.pass_time(29)
    assert world.stopped == []
    world.pass_time(1)
    assert world.stopped == ["a"]
    world.finish(request, "a")
    world.exited("a")
    assert world["a"].state is State.STOPPED


def test_stopping_a_loading_engine_kills_it() -> None:
    world = World.of(ModelSpec(name="a"))
    request = world.ask("a")
    world.prepare("a")
    world.happen(StopAsked(model="a"))
    assert world.of_kind(StopEngine) == [StopEngine(model="a", launch=1, kill=True)]
    assert world.rejected == {request: "shutting_down"}


def test_restart_ends_one_life_and_begins_another() -> None:
    world = World.of(ModelSpec(name="a"))
    world.finish(world.bring_up("a"), "a")
    world.happen(RestartAsked(model="a"))
    world.exited("a")
    assert (world["a"].state, world["a"].launch) == (State.PREPARING, 2)


def test_an_engine_that_will_not_die_counts_as_held_and_is_freed_when_it_does() -> None:
    world = World.of(ModelSpec(name="a", pinned=(0,)), ModelSpec(name="b", pinned=(0,)), gpus=(gpu(0),))
    world.finish(world.bring_up("a"), "a")
    world.happen(StopAsked(model="a"), EngineStuck(model="a", launch=1))
    assert world["a"].state is State.STUCK
    world.ask("b")
    world.prepare("b")
    assert world["b"].state is State.QUEUED
    world.exited("a")
    assert world.started == ["a", "b"]


class TestGpus:
    """Budgets, placement and eviction."""

    def test_engines_share_a_gpu_while_their_grants_fit(self) -> None:
        world = World.of(
            ModelSpec(name="a", pinned=(0,), grant=8 * GIB),
            ModelSpec(name="b", pinned=(0,), grant=8 * GIB),
            gpus=(gpu(0, budget_gib=20),),
        )
        world.bring_up("a")
        world.bring_up("b")
        assert world.started == ["a", "b"]

    def test_an_idle_engine_makes_room_and_is_gone_before_the_next_starts(self) -> None:
        world = World.of(
            ModelSpec(name="a", pinned=(0,), min_residency_s=0),
            ModelSpec(name="b", pinned=(0,)),
            gpus=(gpu(0),),
        )
        world.finish(world.bring_up("a"), "a")
        world.ask("b")
        world.prepare("b")
        assert (world.stopped, world.started) == (["a"], ["a"])
        world.exited("a")
        assert world.started == ["a", "b"]

    def test_a_busy_engine_is_never_evicted_and_the_waiter_learns_why(self) -> None:
        world = World.of(
            ModelSpec(name="a", pinned=(0,), min_residency_s=0),
            ModelSpec(name="b", pinned=(0,)),
            gpus=(gpu(0),),
        )
        request = world.bring_up("a")
        world.ask("b")
        world.prepare("b")
        world.pass_time(300)
        assert (world.stopped, world["b"].state) == ([], State.QUEUED)
        reason = "needs 20.0 GiB, 0.0 GiB free on GPU 0; held by a (20.0 GiB, in use by 1 request)"
        assert world["b"].phase == reason
        world.finish(request, "a")
        assert world.stopped == ["a"]

    def test_an_engine_is_not_evicted_before_its_min_residency(self) -> None:
        world = World.of(
            ModelSpec(name="a", pinned=(0,), min_residency_s=30),
            ModelSpec(name="b", pinned=(0,)),
            gpus=(gpu(0),),
        )
        world.finish(world.bring_up("a"), "a")
        world.ask("b")
        world.prepare("b")
        world.pass_time(29)
        assert world.stopped == []
        world.pass_time(1)
        assert world.stopped == ["a"]

    def test_a_kept_engine_is_not_evicted(self) -> None:
        world = World.of(
            ModelSpec(name="a", pinned=(0,), keep=True, min_residency_s=0),
            ModelSpec(name="b", pinned=(0,), queue_timeout_s=60),
            gpus=(gpu(0),),
        )
        world.finish(world.bring_up("a"), "a")
        request = world.ask("b")
        world.prepare("b")
        world.pass_time(60)
        assert (world.stopped, world.rejected) == ([], {request: "no_vram"})

    def test_auto_takes_the_gpu_with_the_most_room(self) -> None:
        world = World.of(
            ModelSpec(name="a", pinned=None, grant=8 * GIB),
            ModelSpec(name="b", pinned=None, grant=8 * GIB),
            gpus=(gpu(0), gpu(1)),
        )
        world.bring_up("a")
        world.bring_up("b")
        assert [effect.gpus for effect in world.of_kind(StartEngine)] == [(0,), (1,)]

    def test_tensor_parallel_takes_that_many_gpus(self) -> None:
        world = World.of(ModelSpec(name="a", pinned=None, gpu_count=2), gpus=(gpu(0), gpu(1)))
        world.bring_up("a")
        assert world["a"].gpus == (0, 1)

    def test_auto_without_a_gpu_runs_on_the_cpu(self) -> None:
        world = World.of(ModelSpec(name="a", pinned=None))
        world.bring_up("a")
        assert world["a"].gpus == ()

    def test_what_can_never_fit_is_refused_with_the_figures_before_anything_is_prepared(self) -> None:
        world = World.of(ModelSpec(name="a", pinned=(0,), grant=30 * GIB), gpus=(gpu(0),))
        request = world.ask("a")
        assert (world.prepared, world.rejected) == ([], {request: "no_vram"})
        assert "needs 30.0 GiB of a budget of 20.0 GiB" in world.of_kind(Reject)[0].message

    def test_a_gpu_that_is_not_there_disables_only_its_model(self) -> None:
        world = World.of(ModelSpec(name="a", pinned=(7,)), ModelSpec(name="b", pinned=(0,)), gpus=(gpu(0),))
        request = world.ask("a")
        assert world.rejected == {request: "no_vram"}
        world.bring_up("b")

    def test_a_model_that_the_host_rules_out_is_refused_with_the_sentence_given(self) -> None:
        world = World.of(ModelSpec(name="a", disabled="cannot start a: no GPU-1234 here"))
        request = world.ask("a")
        assert world.rejected == {request: "no_vram"}
        assert world["a"].last_error == "cannot start a: no GPU-1234 here"

    def test_what_is_held_stays_held_when_a_reload_asks_for_less(self) -> None:
        big = ModelSpec(name="a", pinned=(0,), grant=20 * GIB, signature="1")
        other = ModelSpec(name="b", pinned=(0,), grant=18 * GIB)
        world = World.of(big, other, gpus=(gpu(0, budget_gib=22),))
        request = world.bring_up("a")
        small = ModelSpec(name="a", pinned=(0,), grant=2 * GIB, signature="2")
        world.happen(ConfigChanged(specs=(small, other), gpus=(gpu(0, budget_gib=22),)))
        world.ask("b")
        world.prepare("b")
        assert world.started == ["a"], "a still drains with 20 GiB"
        world.finish(request, "a")
        world.exited("a")
        assert world.started == ["a", "b"]

    def test_a_start_waits_until_a_draining_neighbour_is_gone(self) -> None:
        world = World.of(*(ModelSpec(name=name, pinned=(0,), grant=4 * GIB) for name in "ab"), gpus=(gpu(0),))
        request = world.bring_up("a")
        world.happen(StopAsked(model="a"))
        world.ask("b")
        world.prepare("b")
        assert (world.started, world["b"].phase) == (["a"], "waits until a is done draining on GPU 0")
        world.finish(request, "a")
        world.exited("a")
        assert world.started == ["a", "b"]

    def test_one_start_at_a_time_on_a_gpu(self) -> None:
        world = World.of(*(ModelSpec(name=name, pinned=(0,), grant=4 * GIB) for name in "ab"), gpus=(gpu(0),))
        for name in "ab":
            world.ask(name)
            world.prepare(name)
        assert world.started == ["a"]
        world.ready("a")
        assert world.started == ["a", "b"]

    def test_queued_for_nobody_evicts_nobody(self) -> None:
        world = World.of(
            ModelSpec(name="a", pinned=(0,), min_residency_s=0),
            ModelSpec(name="b", pinned=(0,)),
            gpus=(gpu(0),),
        )
        busy = world.bring_up("a")
        leaver = world.ask("b")
        world.prepare("b")
        world.happen(RequestCancelled(request=leaver, model="b"))
        world.finish(busy, "a")
        assert (world["b"].state, world.stopped) == (State.STOPPED, [])


class TestReload:
    """A reload is a difference of two configurations."""

    def test_unchanged_models_keep_running_and_take_new_soft_settings(self) -> None:
        world = World.of(ModelSpec(name="a", signature="1", stop_after_s=300))
        world.finish(world.bring_up("a"), "a")
        world.happen(ConfigChanged(specs=(ModelSpec(name="a", signature="1", stop_after_s=10),)))
        assert world["a"].state is State.READY
        world.pass_time(10)
        assert world.stopped == ["a"]

    def test_a_changed_model_drains_and_who_waits_gets_the_new_one(self) -> None:
        world = World.of(ModelSpec(name="a", signature="1"))
        request = world.bring_up("a")
        world.happen(ConfigChanged(specs=(ModelSpec(name="a", signature="2"),)))
        waiter = world.ask("a")
        world.finish(request, "a")
        world.exited("a")
        world.prepare("a")
        world.ready("a")
        assert world.admitted == [request, waiter]
        assert world["a"].launch == 2

    def test_a_removed_model_refuses_its_waiters_drains_and_is_forgotten(self) -> None:
        world = World.of(ModelSpec(name="a", max_concurrent=1, queue_when_busy=True))
        request = world.bring_up("a")
        waiter = world.ask("a")
        world.happen(ConfigChanged(specs=()))
        late = world.ask("a")
        assert world.rejected == {waiter: "model_not_found", late: "model_not_found"}
        world.finish(request, "a")
        world.exited("a")
        assert world.fleet.engines == {}

    def test_a_removed_model_is_remembered_until_the_relays_of_its_crashed_engine_have_ended(self) -> None:
        world = World.of(ModelSpec(name="a"))
        request = world.bring_up("a")
        world.exited("a")
        world.happen(ConfigChanged(specs=()))
        assert world["a"].leases == {request}
        world.finish(request, "a")
        assert world.fleet.engines == {}

    def test_a_model_changed_while_it_loads_is_killed_and_loaded_anew(self) -> None:
        world = World.of(ModelSpec(name="a", signature="1"))
        request = world.ask("a")
        world.prepare("a")
        world.happen(ConfigChanged(specs=(ModelSpec(name="a", signature="2"),)))
        world.exited("a")
        world.prepare("a")
        world.ready("a")
        assert world.admitted == [request]


def test_preload_starts_one_after_the_other_and_a_failure_does_not_stop_it() -> None:
    world = World.of(*(ModelSpec(name=name) for name in "abc"), preload=("b", "a", "c"))
    assert world.prepared == ["b"]
    world.prepare("b")
    world.ready("b")
    assert world.prepared == ["b", "a"]
    world.happen(PrepareFailed(model="a", launch=1, reason="broken"))
    assert world.prepared == ["b", "a", "c"]


def test_a_reload_during_boot_keeps_what_is_still_to_be_preloaded() -> None:
    specs = tuple(ModelSpec(name=name) for name in "abc")
    world = World.of(*specs, preload=("a", "b", "c"))
    world.happen(ConfigChanged(specs=specs[:2]))
    world.prepare("a")
    world.ready("a")
    assert world.prepared == ["a", "b"]
    assert world.fleet.preload == ()


def test_shutdown_refuses_who_waits_drains_who_is_served_and_starts_nothing_more() -> None:
    world = World.of(*(ModelSpec(name=name) for name in "abc"), preload=("c",))
    served = world.bring_up("a")
    waiter = world.ask("b")
    world.happen(ShutdownBegan())
    late = world.ask("a")
    assert world.rejected == {waiter: "shutting_down", late: "shutting_down"}
    assert world["a"].state is State.DRAINING
    world.finish(served, "a")
    assert world.stopped == ["a"]
    world.exited("a")
    world.pass_time(10_000)
    assert {engine.state for engine in world.fleet} == {State.STOPPED}


def test_every_move_is_told() -> None:
    world = World.of(ModelSpec(name="a", stop_after_s=60))
    world.finish(world.bring_up("a"), "a")
    world.pass_time(60)
    assert [notice.text for notice in world.of_kind(Notify)] == [
        "prepares a: asked for by test",
        "starts a on the CPU",
        "a is ready after 0.0 s; 1 request waited",
        "stops a: idle for 60 s",
    ]
