"""Which models can be resident at once: the largest sets that fit the GPUs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

EXHAUSTIVE_MODELS = 12
"""Up to this many every set is looked at; with more, sets are grown one model at a time."""

MOST_SETS = 10
MOST_STEPS = 20_000
"""Placements tried before the search gives up: a tenth of a second."""

Set = dict[str, tuple[int, ...]]
"""Model -> the GPUs it would be on."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one model takes: `count` equal GPUs with `grants[index]` free on each, or all of `pinned`."""

    name: str
    pinned: tuple[int, ...] | None
    count: int
    grants: Mapping[int, int]
    """Bytes by GPU, of those it can be on."""


@dataclass(frozen=True, slots=True)
class Found:
    """The sets, those that show most first; `is_complete` where there are no others."""

    sets: tuple[Set, ...]
    is_complete: bool


def largest_sets(needs: Sequence[Need], room: Mapping[int, int], kinds: Mapping[int, int]) -> Found:
    """Sets to which no other model could be added. `room` is bytes by GPU, `kinds` tells equal GPUs apart."""
    search = _Search(kinds)
    if len(needs) > EXHAUSTIVE_MODELS:
        found = _grown(search, needs, room)
        is_complete = [len(each) for each in found] == [len(needs)]
    else:
        found = _all(search, needs, room)
        is_complete = search.steps < MOST_STEPS and len(found) <= MOST_SETS
    return Found(tuple(_in_order(each, needs) for each in _telling(found)[:MOST_SETS]), is_complete)


def all_fit(needs: Sequence[Need], room: Mapping[int, int], kinds: Mapping[int, int]) -> bool:
    """Whether all of them can be resident at once; True also where that takes too long to tell."""
    search = _Search(kinds)
    return search.fit(needs, dict(room)) is not None or search.steps > MOST_STEPS


def _all(search: "_Search", needs: Sequence[Need], room: Mapping[int, int]) -> list[Set]:
    """Every maximal set: a set fits only if each of its subsets does, so they are built up by size."""
    if needs and (everything := search.fit(needs, dict(room))) is not None:
        return [everything]
    fitting: dict[frozenset[int], Set] = {frozenset(): {}}
    maximal: dict[frozenset[int], Set] = {}
    while fitting:
        larger: dict[frozenset[int], Set] = {}
        refused: set[frozenset[int]] = set()
        for known, placed in fitting.items():
            is_maximal = True
            for added in range(len(needs)):
                candidate = known | {added}
                if added in known or candidate in refused:
                    continue
                if candidate not in larger:
                    subsets = (candidate - {one} for one in candidate)
                    fits = all(subset in fitting for subset in subsets)
                    found = (
                        search.fit([needs[index] for index in sorted(candidate)], dict(room))
                        if fits
                        else None
                    )
                    if found is None:
                        refused.add(candidate)
                        continue
                    larger[candidate] = found
                is_maximal = False
            if is_maximal and known:
                maximal[known] = placed
        fitting = larger
    return list(maximal.values())


def _grown(search: "_Search", needs: Sequence[Need], room: Mapping[int, int]) -> list[Set]:
    """Sets grown around models that are in none yet, until each model is in one or there are enough."""
    found: list[Set] = []
    covered: set[str] = set()
    for seed in needs:
        if seed.name in covered or len(found) > MOST_SETS:
            continue
        free, grown = dict(room), Set()
        for need in (seed, *sorted(needs, key=lambda need: need.name in covered)):
            if need.name not in grown and (place := next(search.places(need, free), None)) is not None:
                grown[need.name] = place
                _take(need, place, free)
        if grown:
            found.append(grown)
        covered |= {seed.name, *grown}
    return found


def _telling(found: list[Set]) -> list[Set]:
    """First sets that show every model once, then the larger ones."""
    left = sorted(found, key=len, reverse=True)
    ordered: list[Set] = []
    shown: set[str] = set()
    while left:
        best = max(left, key=lambda each: len(set(each) - shown))  # the first of several
        left.remove(best)
        ordered.append(best)
        shown |= set(best)
    return ordered


def _in_order(found: Set, needs: Sequence[Need]) -> Set:
    return {need.name: found[need.name] for need in needs if need.name in found}


def _take(need: Need, place: tuple[int, ...], free: dict[int, int]) -> None:
    for index in place:
        free[index] -= need.grants[index]


class _Search:
    """Tries placements until one fits all, and counts them."""

    def __init__(self, kinds: Mapping[int, int]) -> None:
        self.kinds = kinds
        self.steps = 0

    def fit(self, needs: Sequence[Need], free: dict[int, int]) -> Set | None:
        """Where each could be, or None. Pinned ones first, then those that are hard to place."""
        ordered = sorted(
            needs,
            key=lambda need: (need.pinned is None, -need.count, -max(need.grants.values(), default=0)),
        )
        return self._fit(ordered, free)

    def _fit(self, needs: Sequence[Need], free: dict[int, int]) -> Set | None:
        if not needs:
            return {}
        need, *others = needs
        for place in self.places(need, free):
            self.steps += 1
            if self.steps > MOST_STEPS:
                return None
            left = dict(free)
            _take(need, place, left)
            rest = self._fit(others, left)
            if rest is not None:
                return {need.name: place, **rest}
        return None

    def places(self, need: Need, free: Mapping[int, int]) -> Iterator[tuple[int, ...]]:
        """Where it fits, the tightest first; of GPUs that are alike only one."""
        fitting = [index for index, grant in need.grants.items() if grant <= free.get(index, -1)]
        if need.pinned is not None:
            if len(fitting) == len(need.pinned):
                yield need.pinned
            return
        fitting.sort(key=lambda index: (free[index], index))
        seen: set[tuple[tuple[int, int], ...]] = set()
        for place in combinations(fitting, need.count):
            alike = tuple((self.kinds[index], free[index]) for index in place)
            if len({kind for kind, _ in alike}) == 1 and alike not in seen:
                seen.add(alike)
                yield tuple(sorted(place))
