"""Engines of an earlier run of the daemon."""

from supervisord_llm.core.effects import StopEngine, WakeEngine
from supervisord_llm.core.events import ConfigChanged, EngineAdopted, GpusSampled
from supervisord_llm.core.fleet import GpuSample, ModelSpec
from supervisord_llm.core.state import State
from tests.core.world import GIB, World, gpu

SPEC = ModelSpec(name="a", signature="s", pinned=(0,), grant=12 * GIB, sleep_level=1)


def adopt(
    world: World, model: str = "a", *, gib: int = 12, signature: str = "s", asleep: bool = False
) -> None:
    world.happen(
        EngineAdopted(
            model=model,
            launch=7,
            gpus=(0,),
            granted_bytes=(gib * GIB,),
            signature=signature,
            is_asleep=asleep,
        )
    )


def test_it_serves_at_once_and_its_next_launch_has_the_next_number() -> None:
    world = World.of(SPEC, gpus=(gpu(0),))
    adopt(world)
    assert (world["a"].state, world["a"].launch, world["a"].granted_bytes) == (State.READY, 7, (12 * GIB,))
    request = world.ask("a")
    assert world.admitted == [request]
    world.exited("a")
    world.ask("a")
    world.pass_time(10)
    assert world["a"].launch == 8


def test_asleep_it_goes_on_sleeping_until_it_is_asked_for() -> None:
    world = World.of(SPEC, gpus=(gpu(0),))
    adopt(world, asleep=True)
    world.now += 1
    world.happen(GpusSampled(samples=(GpuSample(index=0, at=world.now, used_bytes=GIB, engines={"a": GIB}),)))
    assert (world["a"].state, world["a"].granted_bytes) == (State.SLEEPING, (GIB,))
    world.ask("a")
    assert len(world.of_kind(WakeEngine)) == 1


def test_of_another_configuration_it_is_stopped_and_who_asks_gets_the_new_one() -> None:
    world = World.of(SPEC, gpus=(gpu(0),))
    adopt(world, signature="other")
    request = world.ask("a")
    assert world.of_kind(StopEngine) == [StopEngine(model="a", launch=7)]
    world.exited("a")
    world.prepare("a")
    world.ready("a")
    assert world.admitted == [request]
    assert world["a"].launched_as == "s"


def test_on_a_gpu_that_is_gone_it_is_stopped() -> None:
    world = World.of(SPEC, gpus=(gpu(1),))
    adopt(world)
    assert world.stopped == ["a"]


def test_while_no_gpu_tells_of_itself_it_goes_on() -> None:
    """As with a driver that hangs while the daemon starts."""
    world = World.of(SPEC)
    adopt(world)
    request = world.ask("a")
    assert world.admitted == [request]


def test_over_a_budget_that_was_lowered_idle_ones_make_room_and_it_is_told() -> None:
    other = ModelSpec(name="b", signature="s", pinned=(0,), grant=12 * GIB)
    world = World.of(SPEC, other, gpus=(gpu(0, budget_gib=24),))
    adopt(world)
    adopt(world, "b")
    busy = world.ask("a")
    world.pass_time(60)
    assert world.stopped == []
    world.happen(ConfigChanged(specs=(SPEC, other), gpus=(gpu(0, budget_gib=12),)))
    assert world.stopped == ["b"], "the one in use stays"
    assert any("engines hold 24.0 GiB of GPU 0, whose budget is 12.0 GiB now" in text for text in world.told)
    world.exited("b")
    world.finish(busy, "a")
    world.pass_time(60)
    assert world.stopped == ["b"], "what is left is within the budget"


def test_what_does_not_fit_a_budget_alone_goes_when_it_is_idle() -> None:
    world = World.of(SPEC, gpus=(gpu(0),))
    adopt(world)
    request = world.ask("a")
    world.pass_time(60)
    world.happen(ConfigChanged(specs=(SPEC,), gpus=(gpu(0, budget_gib=8),)))
    assert world.stopped == []
    world.finish(request, "a")
    world.pass_time(60)
    assert world["a"].state is not State.READY
