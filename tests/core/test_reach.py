"""The short look at those who wait never sends away whom the long look would serve."""

from dataclasses import replace
from types import MappingProxyType

from hypothesis import event, given, settings
from hypothesis import strategies as st

from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.fleet import Engine, Fleet, GpuSample, Learnt, ModelSpec
from supervisord_llm.core.placement import Wait, choose, out_of_reach, reach
from supervisord_llm.core.room import SETTLE_S, rooms
from supervisord_llm.core.state import HAS_PROCESS, State
from tests.core.world import GIB, gpu

NOW = 1000.0
MOMENTS = st.sampled_from([0.0, 990.0, 995.0, 999.9])
SIZES = st.sampled_from([size * GIB for size in (2, 10, 15, 20, 30, 40)])
ESTIMATE = Estimate(
    weights_bytes=2 * GIB,
    kv_bytes=4 * GIB,
    least_kv_bytes=GIB,
    overhead_bytes=GIB,
    host_bytes=2 * GIB,
    max_model_len=8192,
    sequences=4,
    kv_bytes_per_token=1,
)


@st.composite
def holders(draw: st.DrawFn, index: int, count: int) -> Engine:
    """An engine with processes on some of `count` GPUs."""
    gpus = draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=2).map(sorted).map(tuple))
    state = draw(st.sampled_from([State.READY, State.READY, *sorted(HAS_PROCESS)]))
    granted = tuple(draw(SIZES) for _ in gpus)
    return Engine(
        spec=ModelSpec(
            name=f"holder{index}", keep=draw(st.integers(0, 3)) == 3, sleep_level=draw(st.integers(0, 1))
        ),
        state=state,
        since=draw(MOMENTS),
        last_used=draw(MOMENTS),
        gpus=gpus,
        granted_bytes=granted,
        awake_bytes=granted,
        used_bytes=draw(st.sampled_from([None, None, (2 * GIB,) * len(gpus), (20 * GIB,) * len(gpus)])),
        leases=draw(st.sampled_from([frozenset(), frozenset({1}), frozenset({1})])),
        asleep_at=NOW - 1 if state is State.SLEEPING and draw(st.booleans()) else None,
        gave_back=draw(st.booleans()),
        to_sleep=state is State.DRAINING and draw(st.booleans()),
        yields_to=draw(st.sampled_from(["", "asker"])),
    )


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """GPUs of several sizes, with engines in every state, strangers, and memory that is not back yet."""
    count = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.sampled_from([10, 20, 40]), min_size=count, max_size=count))
    found = [draw(holders(index, count)) for index in range(draw(st.integers(0, 5)))]
    samples = {
        index: GpuSample(
            index=index,
            at=draw(MOMENTS),
            used_bytes=draw(st.sampled_from([None, 0, 2 * GIB, 20 * GIB])),
            lost=draw(st.sampled_from(["", "", "", "", "fell off the bus"])),
        )
        for index in draw(st.sets(st.integers(0, count - 1)))
    }
    freed = draw(st.sets(st.integers(0, count - 1)))
    return Fleet(
        engines=MappingProxyType({each.name: each for each in found}),
        gpus=MappingProxyType({index: gpu(index, size, size + 4) for index, size in enumerate(sizes)}),
        samples=MappingProxyType(samples),
        freed_at=MappingProxyType(
            {index: NOW - draw(st.sampled_from([1.0, 2 * SETTLE_S])) for index in freed}
        ),
    )


@st.composite
def askers(draw: st.DrawFn) -> Engine:
    spec = ModelSpec(name="asker", pinned=None, grant=draw(st.none() | SIZES | st.just(0.5)))
    learnt = Learnt(footprint_bytes=draw(st.none() | SIZES))
    estimate = draw(st.sampled_from([None, ESTIMATE]))
    return Engine(spec=spec, state=State.QUEUED, learnt=learnt, estimate=estimate)


@settings(max_examples=500)
@given(fleets(), askers(), st.frozensets(st.integers(0, 2), max_size=1))
def test_who_is_out_of_reach_can_only_wait(fleet: Fleet, asker: Engine, claimed: frozenset[int]) -> None:
    there = rooms(fleet, fleet, NOW)
    found = out_of_reach(asker, reach(there, claimed))
    choice = choose(asker, there, claimed, NOW)
    event(f"{'out of reach' if found else 'a closer look'}: {type(choice).__name__}")
    if found is not None:
        assert isinstance(choice, Wait)
        assert not choice.is_soon
        assert not choice.is_hopeless


def test_who_took_more_elsewhere_may_be_content_with_a_smaller_card() -> None:
    holder = Engine(
        spec=ModelSpec(name="holder"),
        state=State.READY,
        gpus=(0,),
        granted_bytes=(40 * GIB,),
        leases=frozenset({1}),
    )
    fleet = Fleet(
        engines=MappingProxyType({"holder": holder}),
        gpus=MappingProxyType({0: gpu(0, 40, 44), 1: gpu(1, 20, 24)}),
    )
    asker = Engine(
        spec=ModelSpec(name="asker", pinned=None), state=State.QUEUED, learnt=Learnt(footprint_bytes=30 * GIB)
    )
    limits = reach(rooms(fleet, fleet, NOW), frozenset())
    assert out_of_reach(asker, limits) is None
    assert out_of_reach(replace(asker, spec=replace(asker.spec, grant=30 * GIB)), limits) is not None
