"""Every decision about memory as one sentence for people: room, sleep, grants and lost GPUs."""

from collections.abc import Iterable

from supervisord_llm.core.explain import count, gib, span
from supervisord_llm.core.fleet import Engine, Gpu, ModelSpec, Stranger
from supervisord_llm.core.ledger import grant_bytes, granted_on
from supervisord_llm.core.room import Room, is_moving
from supervisord_llm.core.state import State


def on_gpus(gpus: Iterable[int]) -> str:
    """ "GPU 0", "GPU 0 and 1", "the CPU"."""
    return f"GPU {listed(map(str, gpus))}" if (gpus := tuple(gpus)) else "the CPU"


def listed(names: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


# --- why a model cannot run


def no_such_gpu(spec: ModelSpec, index: int, present: tuple[int, ...]) -> str:
    has = f"this host has {on_gpus(present)}" if present else "this host has no GPU"
    return (
        f"cannot start {spec.name}: it is pinned to GPU {index} and {has}; "
        f"change its `gpus`, or run `llm-supervisor check`"
    )


def never_fits(engine: Engine, gpus: tuple[Gpu, ...]) -> str:
    cards = ", ".join(
        f"GPU {gpu.index} needs {gib(grant_bytes(engine, gpu))} of a budget of {gib(gpu.budget_bytes)}"
        for gpu in gpus
    )
    many = engine.spec.gpu_count > 1 and engine.spec.pinned is None
    equal = f"; it takes {engine.spec.gpu_count} equal GPUs" if many else ""
    return (
        f"cannot start {engine.name}: it can never fit ({cards}{equal}); "
        f"lower its `vram` or max-model-len, raise the budget, or see `llm-supervisor plan`"
    )


def lost_gpu(spec: ModelSpec, index: int, lost: str) -> str:
    return f"cannot start {spec.name}: GPU {index} is lost: {lost}; or change its `gpus`"


def no_room_now(engine: Engine, reason: str) -> str:
    verb = "wake" if engine.state is State.SLEEPING else "start"
    return (
        f"cannot {verb} {engine.name} now: it {reason}; none of that makes room by itself, "
        f"so end what holds it, or try again later"
    )


# --- why one waits


def waits_for_others(rooms: Iterable[Room]) -> str:
    """There will be room once what is under way on one of these GPUs is over."""
    for room in rooms:
        for engine in room.holders:
            if is_moving(engine):
                return f"waits until {engine.name} is done {doing(engine)} on GPU {room.gpu.index}"
        if not room.is_settled:
            return f"waits until memory that was given up on GPU {room.gpu.index} is seen to be free"
        if room.is_moving:
            return f"waits until it is seen what the last start on GPU {room.gpu.index} takes"
    return "waits for its GPUs"


def waits_for_room(engine: Engine, need_bytes: int, left: str) -> str:
    """What it needs of a GPU, and what is `left` of that."""
    more = " more" if engine.state is State.SLEEPING else ""
    return f"needs {gib(need_bytes)}{more}, {left}"


OTHERS_BEFORE = "which no GPU can free now; others wait before it"


def left(room: Room, *, but: str = "") -> str:
    """What is free of a GPU, and who has the rest, `but` not counted."""
    gpu = room.gpu
    holders = [
        f"{holder.name} ({gib(granted_on(holder, gpu.index))}, {_hold(holder)})"
        for holder in room.holders
        if holder.name != but
    ]
    if room.foreign_bytes:
        holders.append(foreign(room.foreign_bytes, room.strangers))
    free = gib(max(0, room.free_bytes))
    return f"{free} free on GPU {gpu.index}; held by {', '.join(holders) or 'nobody'}"


def foreign(size_bytes: int, strangers: tuple[Stranger, ...]) -> str:
    """ "other programs (6.2 GiB: blender, pid 4711, 6.0 GiB)"."""
    largest = sorted(strangers, key=lambda each: -each.used_bytes)[:3]
    named = ", ".join(f"{each.name}, pid {each.pid}, {gib(each.used_bytes)}" for each in largest)
    return f"other programs ({gib(size_bytes)}{': ' if named else ''}{named})"


def waits_behind(model: str) -> str:
    return f"waits its turn: {model} is before it"


def spoken_for(gpus: tuple[int, ...]) -> str:
    return f"waits its turn: {on_gpus(gpus)} is spoken for by who waits for longer"


def makes_room(models: tuple[str, ...]) -> str:
    return f"waits until {listed(models)} {'has' if len(models) == 1 else 'have'} made room"


def doing(engine: Engine) -> str:
    return "falling asleep" if engine.state is State.SLEEPING else str(engine.state)


def _hold(engine: Engine) -> str:
    if engine.leases:
        return f"in use by {count(len(engine.leases), 'request')}"
    if engine.state is State.READY:
        return "kept" if engine.spec.keep else "not idle for long enough"
    if engine.state is State.SLEEPING and engine.gave_back:
        return "asleep"
    return doing(engine)


# --- who makes room


def evicted(engine: Engine, for_model: str) -> str:
    idle = "asleep" if engine.state is State.SLEEPING else "idle"
    return f"stops {engine.name}, {idle}, {for_the_sake_of(for_model)}"


def for_the_sake_of(model: str) -> str:
    return f"to make room for {model}"


def moves(engine: Engine) -> str:
    return f"stops {engine.name}, asleep: its room on {on_gpus(engine.gpus)} is taken; it starts elsewhere"


def yields(engine: Engine, to: Engine, now: float) -> str:
    waited = f", which has waited for {span(now - to.waiting[0].since)}" if to.waiting else ""
    return (
        f"{engine.name} takes no new requests: it makes room for {to.name}{waited}; "
        f"{count(len(engine.leases), 'request')} may finish first"
    )


def takes_again(engine: Engine) -> str:
    return f"{engine.name} takes requests again: nobody waits for its room any more"


# --- sleep

ASKED = "as asked"


def falls_asleep(engine: Engine, why: str) -> str:
    return f"puts {engine.name} to sleep (level {engine.spec.sleep_level}): {why}"


def drains_to_sleep(engine: Engine) -> str:
    return f"puts {engine.name} to sleep as asked; {count(len(engine.leases), 'request')} may finish first"


def idle_for(seconds: float) -> str:
    return f"idle for {span(seconds)}"


def sleeps(engine: Engine, residue_bytes: int | None) -> str:
    held = "" if residue_bytes is None else f"; it still holds {gib(residue_bytes)} of {on_gpus(engine.gpus)}"
    return f"{engine.name} sleeps{held}"


def wakes(engine: Engine) -> str:
    return f"wakes {engine.name} on {on_gpus(engine.gpus)}"


def woke(engine: Engine, took_s: float) -> str:
    return f"{engine.name} is awake after {took_s:.1f} s; {count(len(engine.waiting), 'request')} waited"


def sleepless(engine: Engine, reason: str) -> str:
    return f"{engine.name} is not put to sleep any more until its configuration changes: {reason}"


def kept_its_memory(engine: Engine, used_bytes: int) -> str:
    return f"its memory did not come back: asleep it still held {gib(used_bytes)} of {on_gpus(engine.gpus)}"


def no_ram_to_sleep(engine: Engine, need_bytes: int, budget_bytes: int) -> str:
    return f"asleep it takes {gib(need_bytes)} of main memory, and [host] ram_budget is {gib(budget_bytes)}"


NO_RAM_LEFT = "main memory ran out, and the kernel killed it; lower [host] ram_budget"


def gives_ram_up(engine: Engine, for_model: str) -> str:
    return f"stops {engine.name}, asleep: [host] ram_budget does not allow {for_model} to sleep beside it"


def gives_ram_back(engine: Engine, for_model: str) -> str:
    return f"stops {engine.name}, asleep: main memory ran out, and {for_model} was killed for want of it"


# --- the law is enforced

BREAKS_THE_LAW = "it holds more than it may"


def above_grant(engine: Engine, used: tuple[int, ...]) -> str:
    over = zip(used, engine.granted_bytes, engine.gpus, strict=True)
    most, may, gpu = max(over, key=lambda each: each[0] - each[1])
    return (
        f"{engine.name} holds {gib(most)} of GPU {gpu} and was granted {gib(may)}; "
        f"raise its `vram`, or lower max-num-seqs or max-model-len"
    )


def regranted(engine: Engine, used_bytes: int) -> str:
    return (
        f"{engine.name} holds more than it was expected to: "
        f"its grant is {gib(used_bytes)} of {on_gpus(engine.gpus)} from now on"
    )


def adjusts(engine: Engine, flag: str, before: int, after: int) -> str:
    return (
        f"{engine.name} ran out of GPU memory: its next start has {flag} {after} in place of {before}; "
        f"raise its `vram` or set the flag yourself to have it otherwise"
    )


def out_of_rungs(engine: Engine, reason: str) -> str:
    return (
        f"cannot run {engine.name}: out of GPU memory even with fewer sequences and a shorter context "
        f"({reason.partition(chr(10))[0].partition(';')[0]}); raise its `vram`, or choose a smaller model"
    )


def was_out_of_rungs(model: str) -> str:
    return (
        f"cannot run {model}: it ran out of GPU memory even with fewer sequences and a shorter context; "
        f"raise its `vram`, or choose a smaller model"
    )


def goes_for_the_budget(engine: Engine, index: int) -> str:
    return f"ends or puts to sleep {engine.name}, idle: the budget of GPU {index} was lowered"


FOR_THE_BUDGET = "for the sake of the budget"


def over_budget(index: int, held_bytes: int, budget_bytes: int) -> str:
    return (
        f"engines hold {gib(held_bytes)} of GPU {index}, whose budget is {gib(budget_bytes)} now: "
        f"they make room as they fall idle"
    )


def figures_gone(index: int) -> str:
    return f"GPU {index} does not tell what is used of it any more: starts go by the grants alone"


def figures_back(index: int) -> str:
    return f"GPU {index} tells again what is used of it"


def out_of_main_memory(engine: Engine, reason: str) -> str:
    return (
        f"cannot run {engine.name}: the kernel killed it for want of main memory "
        f"({reason.partition(chr(10))[0]}); lower [host] ram_budget, raise its limits.memory, or free memory"
    )


def gpu_lost(engine: Engine, index: int, lost: str) -> str:
    return f"ends {engine.name}: GPU {index} is lost: {lost}"


def gpu_is_lost(index: int, lost: str) -> str:
    return f"GPU {index} is lost, {lost}; its engines are ended, and nothing starts there until it is back"


def gpu_is_back(index: int) -> str:
    return f"GPU {index} answers again"
