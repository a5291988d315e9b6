"""What to change so that a model fits: "fits with max-model-len 16384". Only what the figures bear out."""

import math
from collections.abc import Callable, Iterator, Mapping

from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.explain import gib
from supervisord_llm.core.fleet import Engine, Fleet, Gpu
from supervisord_llm.core.ledger import grant_bytes

GIB = 1024**3
LEAST_LEN = 256
"""A shorter context is no suggestion."""

ROUND_LEN = 1024


LongestContext = Callable[[str, int], int | None]
"""(model, bytes of each GPU) -> the longest context with which it starts within them; None: with none."""


def suggestions(
    engine: Engine, fleet: Fleet, room: Mapping[int, int], longest_context: LongestContext | None = None
) -> tuple[str, ...]:
    """Ways out for a model that does not fit. `room` is what each usable GPU has for grants at all, bytes."""
    spec, gpus = engine.spec, fleet.gpus
    own = gpus if spec.pinned is None else [index for index in spec.pinned if index in gpus]
    count = spec.gpu_count if spec.pinned is None else len(spec.pinned)
    usable = {index: room[index] for index in own if index in room}
    best = _best(usable, count, gpus, is_pinned=spec.pinned is not None)
    found: list[str] = []
    if best is not None:
        found += _sized(engine, best, longest_context)
        found += _once_others_end(engine, fleet, usable)
    if spec.pinned is not None:
        found += _elsewhere(engine, count, gpus, room)
    if count == 1 and spec.grant is None and engine.estimate is not None:
        found += _split(engine.estimate, gpus, room, is_pinned=spec.pinned is not None)
    return tuple(found)


def _best(room: Mapping[int, int], count: int, gpus: Mapping[int, Gpu], *, is_pinned: bool) -> int | None:
    """The most that `count` GPUs have each: of those it is pinned to, or of equal ones."""
    if is_pinned:
        return min(room.values()) if len(room) == count else None
    groups = _by_size(room, gpus).values()
    return max((group[count - 1] for group in groups if len(group) >= count), default=None)


def _by_size(room: Mapping[int, int], gpus: Mapping[int, Gpu]) -> dict[int, list[int]]:
    """Room of equal GPUs by their memory, the most first."""
    groups: dict[int, list[int]] = {}
    for index, free in room.items():
        groups.setdefault(gpus[index].total_bytes, []).append(free)
    return {total: sorted(group, reverse=True) for total, group in groups.items()}


def _sized(engine: Engine, best: int, longest_context: LongestContext | None) -> Iterator[str]:
    """Another `vram`, or a shorter context, where a GPU has `best` bytes to give."""
    estimate, is_configured = engine.estimate, engine.spec.grant is not None
    if estimate is None:
        if is_configured and best * 10 >= GIB:
            yield f'fits the budget with vram = "{_floor(best)}"'
        return
    if is_configured and estimate.least_bytes <= best:
        # Enough for one sequence where too little was given, all there is where it was too much.
        least, most = _ceiling(estimate.least_bytes), _floor(best)
        yield f'fits with vram = "{least}" or more' if least != most else f'fits with vram = "{least}"'
    given = best
    if isinstance(engine.spec.grant, int):
        given = min(best, engine.spec.grant)
    known = None if longest_context is None else longest_context(engine.name, given)
    length = cautious_context(estimate, given) if known is None else known
    if LEAST_LEN <= length < estimate.max_model_len and (not is_configured or given == engine.spec.grant):
        yield f"fits with max-model-len {length}"


def cautious_context(estimate: Estimate, given: int) -> int:
    """A context with which it starts within `given` bytes of each GPU: as if every layer kept every token."""
    per_token = estimate.kv_bytes_per_token
    fixed = max(0, estimate.least_kv_bytes - per_token * estimate.max_model_len)
    left = given - estimate.weights_bytes - estimate.overhead_bytes - fixed
    tokens = max(0, left) // max(per_token, 1)
    return tokens - tokens % (ROUND_LEN if tokens >= ROUND_LEN else LEAST_LEN)


def _once_others_end(engine: Engine, fleet: Fleet, usable: Mapping[int, int]) -> Iterator[str]:
    """Programs that are in the way on a GPU whose budget would do."""
    for index, free in usable.items():
        grant, sample = grant_bytes(engine, fleet.gpus[index]), fleet.samples.get(index)
        if free < grant <= fleet.gpus[index].budget_bytes and sample is not None and sample.strangers:
            largest = max(sample.strangers, key=lambda each: each.used_bytes)
            if free + largest.used_bytes >= grant:
                who = f"{largest.name} (pid {largest.pid}, {gib(largest.used_bytes)})"
                yield f"fits once {who} ends on GPU {index}"


def _elsewhere(engine: Engine, count: int, gpus: Mapping[int, Gpu], room: Mapping[int, int]) -> Iterator[str]:
    """GPUs that it is not pinned to and that have what it takes."""
    pinned = engine.spec.pinned or ()
    fitting = [
        index for index, free in room.items() if index not in pinned and _need(engine, gpus[index]) <= free
    ]
    sizes = [gpus[index].total_bytes for index in fitting]
    for index in fitting:
        alike = [other for other in fitting if gpus[other].total_bytes == gpus[index].total_bytes]
        if sizes.count(gpus[index].total_bytes) >= count:
            yield f"fits on GPU {' and '.join(map(str, alike[:count]))}"
            return


def _need(engine: Engine, gpu: Gpu) -> int:
    least = engine.estimate.least_bytes if engine.estimate is not None else 0
    return max(grant_bytes(engine, gpu), least)


def _split(
    estimate: Estimate, gpus: Mapping[int, Gpu], room: Mapping[int, int], *, is_pinned: bool
) -> Iterator[str]:
    """Over the fewest equal GPUs: weights and KV cache are divided, the overhead is not."""
    divided = estimate.weights_bytes + estimate.least_kv_bytes
    for ways in (2, 4, 8):
        need = math.ceil(divided / ways) + estimate.overhead_bytes
        for total, group in _by_size(room, gpus).items():
            if len(group) >= ways and group[ways - 1] >= need:
                alike = [index for index in room if gpus[index].total_bytes == total and room[index] >= need]
                where = f" and gpus = {alike[:ways]}" if is_pinned else ""
                yield f"fits with tensor_parallel = {ways}{where}"
                return


def _floor(size_bytes: int) -> str:
    """ "14.5GiB", as one writes it in the configuration."""
    return f"{size_bytes * 10 // GIB / 10:.1f}GiB"


def _ceiling(size_bytes: int) -> str:
    return f"{-(-size_bytes * 10 // GIB) / 10:.1f}GiB"
