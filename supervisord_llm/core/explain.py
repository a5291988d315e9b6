"""Every decision as one sentence for people: logs, events, HTTP errors and the CLI share these."""

import math
from collections.abc import Iterable

from supervisord_llm.core.fleet import Engine, Gpu, ModelSpec, Stranger
from supervisord_llm.core.ledger import grant_bytes, granted_on
from supervisord_llm.core.room import Room, is_moving
from supervisord_llm.core.state import State


def gib(size_bytes: int) -> str:
    """ "9.1 GiB"."""
    return f"{size_bytes / 1024**3:.1f} GiB"


def span(seconds: float) -> str:
    """ "90 s", "5 min", "2 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def count(number: int, noun: str) -> str:
    """ "1 request", "2 requests"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# --- why a request is turned away: shown to end users by chat clients


def unknown_model(model: str) -> str:
    return f"cannot find model {model!r}; GET /v1/models lists the names that exist"


def daemon_stopping() -> str:
    return "cannot serve: llm-supervisor is shutting down; try again once it is back"


def stopped_by_hand(model: str) -> str:
    return f"cannot serve: {model} was stopped by an administrator; the next request starts it again"


def busy(engine: Engine) -> str:
    limit = engine.spec.max_concurrent
    if limit is not None and not engine.spec.queue_when_busy:
        return (
            f"cannot serve now: {engine.name} already has {count(limit, 'request')}, its max_concurrent; "
            f"try again soon, or set `queue` for the model to let requests wait"
        )
    return (
        f"cannot serve now: {count(len(engine.waiting), 'request')} already wait for {engine.name}; "
        f"try again later, or raise its queue.size"
    )


def waited_too_long(engine: Engine) -> str:
    why = f"{engine.state}: {engine.phase}" if engine.phase else str(engine.state)
    return (
        f"cannot serve: {engine.name} was not free within {span(engine.spec.queue_timeout_s)} ({why}); "
        f"try again later, or raise its queue.timeout"
    )


def failed_before(engine: Engine, now: float) -> str:
    if math.isinf(engine.retry_at):
        return f"{engine.last_error} (not tried again by itself; `llm-supervisor start {engine.name}` does)"
    return f"{engine.last_error} (tried again on a request in {span(max(0.0, engine.retry_at - now))})"


# --- why a start failed


def start_failed(model: str, reason: str) -> str:
    return f"cannot start {model}: {reason}"


def start_timeout(engine: Engine) -> str:
    return (
        f"cannot start {engine.name}: not ready within {span(engine.spec.start_timeout_s)}; "
        f"see `llm-supervisor logs {engine.name}`, or raise its start_timeout"
    )


def stalled(engine: Engine) -> str:
    during = f" ({engine.phase})" if engine.phase else ""
    return (
        f"cannot start {engine.name}: no sign of progress for {span(engine.spec.stall_timeout_s)}{during}; "
        f"see `llm-supervisor logs {engine.name}`, or raise its stall_timeout"
    )


def no_such_gpu(spec: ModelSpec, index: int, present: tuple[int, ...]) -> str:
    has = f"this host has GPU {', '.join(map(str, present))}" if present else "this host has no GPU"
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
    equal = f" and it takes {engine.spec.gpu_count} equal GPUs" if many else ""
    return (
        f"cannot start {engine.name}: it can never fit ({cards}{equal}); "
        f"lower its `vram` or max-model-len, raise the budget, or see `llm-supervisor plan`"
    )


def lost_gpu(spec: ModelSpec, index: int, lost: str) -> str:
    return (
        f"cannot start {spec.name}: GPU {index} {lost}; "
        f"reset it or reboot (`nvidia-smi` and `dmesg` may tell more), or change its `gpus`"
    )


def no_room_now(engine: Engine, reason: str) -> str:
    return (
        f"cannot start {engine.name} now: it {reason}, and none of that makes room by itself; "
        f"stop what holds it, or try again later"
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
    return "waits for its GPUs"


def waits_for_room(engine: Engine, room: Room, need_bytes: int) -> str:
    """What it needs of a GPU, what is free there and who has the rest."""
    gpu = room.gpu
    holders = [
        f"{holder.name} ({gib(granted_on(holder, gpu.index))}, {_hold(holder)})"
        for holder in room.holders
        if holder is not engine
    ]
    if room.foreign_bytes:
        holders.append(foreign(room.foreign_bytes, room.strangers))
    free = gib(max(0, room.free_bytes))
    held = ", ".join(holders) or "nobody"
    return f"needs {gib(need_bytes)}, {free} free on GPU {gpu.index}; held by {held}"


def foreign(size_bytes: int, strangers: tuple[Stranger, ...]) -> str:
    """ "other programs (6.2 GiB: blender, pid 4711)"."""
    named = ", ".join(f"{each.name}, pid {each.pid}, {gib(each.used_bytes)}" for each in strangers[:3])
    return f"other programs ({gib(size_bytes)}{': ' if named else ''}{named})"


def waits_behind(model: str) -> str:
    return f"waits its turn: {model} is before it"


def makes_room(models: tuple[str, ...]) -> str:
    return f"waits until {', '.join(models)} made room"


def doing(engine: Engine) -> str:
    return "falling asleep" if engine.state is State.SLEEPING else str(engine.state)


def _hold(engine: Engine) -> str:
    if engine.leases:
        return f"in use by {count(len(engine.leases), 'request')}"
    if engine.state is State.READY:
        return "kept" if engine.spec.keep else "in use a moment ago"
    return doing(engine)


# --- what was decided, for the log


def preparing(engine: Engine) -> str:
    if engine.waiting:
        first = engine.waiting[0]
        return f"prepares {engine.name}: asked for by {first.source or 'a request'}"
    return f"prepares {engine.name}: start was asked for"


def starting(engine: Engine) -> str:
    where = f"GPU {', '.join(map(str, engine.gpus))}" if engine.gpus else "the CPU"
    return f"starts {engine.name} on {where}"


def progress(engine: Engine) -> str:
    share = "" if engine.fraction is None else f" {int(engine.fraction * 10) * 10}%"
    return f"{engine.state} {engine.name}: {engine.phase}{share}"


def ready(engine: Engine, took_s: float) -> str:
    return f"{engine.name} is ready after {took_s:.1f} s; {count(len(engine.waiting), 'request')} waited"


def idle_stop(engine: Engine) -> str:
    return f"stops {engine.name}: idle for {span(engine.spec.stop_after_s or 0)}"


def evicted(engine: Engine, for_model: str) -> str:
    return f"stops {engine.name}, idle, {for_the_sake_of(for_model)}"


def for_the_sake_of(model: str) -> str:
    return f"to make room for {model}"


def moves(engine: Engine) -> str:
    return f"stops {engine.name}, asleep: there is no room to wake on its GPU, and there is on another"


def yields(engine: Engine, to: Engine, now: float) -> str:
    waited = f", which waits since {span(now - to.waiting[0].since)}" if to.waiting else ""
    return (
        f"{engine.name} takes no new requests: it makes room for {to.name}{waited}; "
        f"{count(len(engine.leases), 'request')} may finish first"
    )


def takes_again(engine: Engine) -> str:
    return f"{engine.name} takes requests again: nobody waits for its room"


def comes_back(model: str) -> str:
    return f"starts {model}, the default model: it had made room, and the others are idle"


# --- sleep

ASKED = "as asked"


def falls_asleep(engine: Engine, why: str) -> str:
    return f"puts {engine.name} to sleep (level {engine.spec.sleep_level}): {why}"


def drains_to_sleep(engine: Engine) -> str:
    return f"puts {engine.name} to sleep as asked; {count(len(engine.leases), 'request')} may finish first"


def idle_for(seconds: float) -> str:
    return f"idle for {span(seconds)}"


def sleeps(engine: Engine, residue_bytes: int | None) -> str:
    held = "" if residue_bytes is None else f"; it still holds {gib(residue_bytes)} of each GPU"
    return f"{engine.name} sleeps{held}"


def wakes(engine: Engine) -> str:
    return f"wakes {engine.name}"


def woke(engine: Engine, took_s: float) -> str:
    return f"{engine.name} is awake after {took_s:.1f} s; {count(len(engine.waiting), 'request')} waited"


def sleepless(engine: Engine, reason: str) -> str:
    return f"{engine.name} is not put to sleep any more until its configuration changes: {reason}"


def kept_its_memory(engine: Engine, used_bytes: int) -> str:
    return f"its memory did not come back: it still holds {gib(used_bytes)} of a GPU"


def no_ram_to_sleep(engine: Engine, need_bytes: int, budget_bytes: int) -> str:
    return f"asleep it takes {gib(need_bytes)} of main memory, and [host] ram_budget is {gib(budget_bytes)}"


def cannot_sleep(engine: Engine) -> str:
    if engine.sleepless:
        return f"cannot put {engine.name} to sleep: {engine.sleepless}; stop it instead"
    if engine.spec.sleep_level == 0:
        return (
            f"cannot put {engine.name} to sleep: it was not launched to be able to; "
            f"set its idle.sleep_level = 1, or stop it instead"
        )
    return f"cannot put {engine.name} to sleep: it is {engine.state}; start it first"


# --- the law is enforced


BREAKS_THE_LAW = "it holds more than it may"


def above_grant(engine: Engine, used: tuple[int, ...]) -> str:
    most, may, gpu = max(zip(used, engine.granted_bytes, engine.gpus, strict=True))
    return (
        f"{engine.name} holds {gib(most)} of GPU {gpu} and was granted {gib(may)}; "
        f"raise its `vram`, or lower max-num-seqs or max-model-len"
    )


def regranted(engine: Engine, used_bytes: int) -> str:
    return f"{engine.name} holds more than was estimated: its grant is {gib(used_bytes)} of each GPU now"


def hung(engine: Engine) -> str:
    return (
        f"{engine.name} hangs: {count(len(engine.leases), 'request')} in flight and not one token for "
        f"{span(engine.spec.stall_timeout_s)}; its stacks go to `llm-supervisor logs {engine.name}`"
    )


def adjusts(engine: Engine, flag: str, before: int, after: int) -> str:
    return (
        f"{engine.name} ran out of GPU memory: its next start has {flag} {after} in place of {before}; "
        f"raise its `vram` or set the flag yourself to have it otherwise"
    )


def out_of_rungs(engine: Engine, reason: str) -> str:
    return (
        f"cannot run {engine.name}: out of GPU memory even with fewer sequences and a shorter context "
        f"({reason.partition(chr(10))[0]}); raise its `vram`, or choose a smaller model"
    )


def gpu_lost(engine: Engine, index: int, lost: str) -> str:
    return f"ends {engine.name}: GPU {index} {lost}"


def drains(engine: Engine, why: str) -> str:
    return f"stops {engine.name}: {why}; {count(len(engine.leases), 'request')} may finish first"


def drain_over(engine: Engine) -> str:
    requests = count(len(engine.leases), "request")
    return f"cuts {requests} of {engine.name}: still open after {span(engine.spec.drain_timeout_s)}"


def retries(engine: Engine, wait_s: float) -> str:
    return f"{engine.last_error}; may be tried again in {span(wait_s)}"


def gave_up(engine: Engine) -> str:
    spec = engine.spec
    return (
        f"{engine.last_error}; failed {count(len(engine.failures), 'time')} within "
        f"{span(spec.restart_window_s)}, so it is left alone for that long; "
        f"`llm-supervisor start {engine.name}` tries at once"
    )


def crashed(model: str, reason: str) -> str:
    """Without its last lines: a serving engine's may quote requests, and this is told to other clients."""
    headline = reason.partition("\n")[0]
    return f"{model} crashed: {headline}; see `llm-supervisor logs {model}`"


def stuck(engine: Engine) -> str:
    return (
        f"cannot end {engine.name}: SIGKILL did not help, so its memory counts as held; "
        f"look for it in `ps` (state D) and in `dmesg`"
    )


def gpu_is_lost(index: int, lost: str) -> str:
    return f"GPU {index} {lost}: its engines are ended, and nothing is started there until it is back"


def gpu_is_back(index: int) -> str:
    return f"GPU {index} answers again"
