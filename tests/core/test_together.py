"""Sets of models that fit at once, against trying everything."""

import time
from itertools import combinations, product

from hypothesis import given, settings
from hypothesis import strategies as st

from supervisord_llm.core.planning import together
from supervisord_llm.core.planning.together import Need, largest_sets

KINDS = {0: 24, 1: 24, 2: 10}


@st.composite
def needs(draw: st.DrawFn) -> list[Need]:
    """Up to five models for three GPUs, two of them equal."""
    made = []
    for number in range(draw(st.integers(0, 5))):
        size = draw(st.integers(1, 20))
        pinned = draw(st.sampled_from([None, None, None, (0,), (2,), (0, 1)]))
        count = len(pinned) if pinned else draw(st.sampled_from([1, 1, 2]))
        made.append(Need(f"m{number}", pinned, count, dict.fromkeys(pinned or KINDS, size)))
    return made


def places(need: Need) -> list[tuple[int, ...]]:
    if need.pinned is not None:
        return [need.pinned]
    return [place for place in combinations(KINDS, need.count) if len({KINDS[index] for index in place}) == 1]


def fits(chosen: tuple[Need, ...], room: dict[int, int]) -> bool:
    """Whether any way to place them does, by trying all."""
    for way in product(*map(places, chosen)):
        free = dict(room)
        for need, place in zip(chosen, way, strict=True):
            for index in place:
                free[index] -= need.grants[index]
        if min(free.values()) >= 0:
            return True
    return False


@settings(deadline=None)
@given(needs(), st.tuples(*[st.integers(0, 24)] * 3))
def test_the_sets_are_those_that_trying_everything_finds(found: list[Need], rooms: tuple[int, ...]) -> None:
    room = dict(enumerate(rooms))
    fitting = {
        frozenset(need.name for need in chosen)
        for size in range(1, len(found) + 1)
        for chosen in combinations(found, size)
        if fits(chosen, room)
    }
    maximal = {names for names in fitting if not any(names < others for others in fitting)}
    told = largest_sets(found, room, KINDS)
    assert {frozenset(each) for each in told.sets} == maximal
    assert told.is_complete
    for each in told.sets:
        free = dict(room)
        for need in found:
            for index in each.get(need.name, ()):
                free[index] -= need.grants[index]
        assert min(free.values()) >= 0


@settings(deadline=None)
@given(needs(), st.tuples(*[st.integers(0, 24)] * 3))
def test_sets_that_are_grown_cannot_grow_any_more(found: list[Need], rooms: tuple[int, ...]) -> None:
    room, most = dict(enumerate(rooms)), together.EXHAUSTIVE_MODELS
    together.EXHAUSTIVE_MODELS = 0
    try:
        told = largest_sets(found, room, KINDS)
    finally:
        together.EXHAUSTIVE_MODELS = most
    alone = {need.name for need in found if fits((need,), room)}
    assert {name for each in told.sets for name in each} == alone, "every model that fits is in one"


def test_the_hardest_search_ends_soon() -> None:
    """Twelve models that nearly fit eight equal GPUs in thousands of ways."""
    sizes = (9, 11, 7, 13, 8, 12, 10, 9, 11, 13, 14, 15)
    room = dict.fromkeys(range(8), 19)
    hard = [Need(f"m{number}", None, 1, dict.fromkeys(room, size)) for number, size in enumerate(sizes)]
    began = time.monotonic()
    largest_sets(hard, room, dict.fromkeys(room, 1))
    assert time.monotonic() - began < 5
