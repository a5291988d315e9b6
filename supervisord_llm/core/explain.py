"""Every decision as one sentence for people: logs, events, HTTP errors and the CLI share these."""

import math

from supervisord_llm.core.fleet import Engine
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


def closed(engine: Engine) -> str:
    return f"cannot serve {engine.name} now: {engine.spec.closed}"


def closed_to_orders(engine: Engine) -> str:
    way_out = "`llm-supervisor schedule none` lets every model run for now"
    return f"cannot start {engine.name}: {engine.spec.closed}; {way_out}"


def busy(engine: Engine) -> str:
    limit = engine.spec.max_concurrent
    if limit is not None and not engine.spec.queue_when_busy:
        return (
            f"cannot serve now: {engine.name} already has {count(limit, 'request')}, its max_concurrent; "
            f"try again soon, or set `queue` for the model to let requests wait"
        )
    return (
        f"cannot serve now: {engine.name} has {count(len(engine.waiting), 'request')} in its queue already; "
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
    return f"{engine.last_error} (tried again on a request in {span(max(1.0, engine.retry_at - now))})"


# --- why a start failed


def start_failed(model: str, reason: str) -> str:
    return f"cannot start {model}: {reason}"


def out_of_reach(model: str, reason: str) -> str:
    return f"cannot reach {model}: {reason}"


def start_timeout(engine: Engine) -> str:
    if engine.state is State.SLEEPING:
        return f"it did not fall asleep within {span(engine.spec.start_timeout_s)}"
    verb = "wake" if engine.state is State.WAKING else "start"
    return (
        f"cannot {verb} {engine.name}: not ready within {span(engine.spec.start_timeout_s)}; "
        f"see `llm-supervisor logs {engine.name}`, or raise its start_timeout"
    )


def stalled(engine: Engine) -> str:
    during = f" ({engine.phase})" if engine.phase else ""
    return (
        f"cannot start {engine.name}: no sign of progress for {span(engine.spec.stall_timeout_s)}{during}; "
        f"see `llm-supervisor logs {engine.name}`, or raise its stall_timeout"
    )


# --- why one waits


# --- what was decided, for the log


def preparing(engine: Engine) -> str:
    if engine.waiting:
        first = engine.waiting[0]
        return f"prepares {engine.name}: asked for by {first.source or 'a request'}"
    if engine.returns and not engine.wanted:
        return f"prepares {engine.name}: it is started again where there is room"
    return f"prepares {engine.name}: start was asked for"


def adopted(engine: Engine) -> str:
    doing = "asleep" if engine.state is State.SLEEPING else "ready"
    where = f"GPU {', '.join(map(str, engine.gpus))}" if engine.gpus else "the CPU"
    return f"takes over {engine.name} on {where}, {doing}, from an earlier run of llm-supervisor"


def starting(engine: Engine) -> str:
    if engine.spec.elsewhere:
        return f"asks whether {engine.name} answers"
    where = f"GPU {', '.join(map(str, engine.gpus))}" if engine.gpus else "the CPU"
    granted = f" with {gib(min(engine.granted_bytes))} of each" if len(engine.gpus) > 1 else ""
    if len(engine.gpus) == 1:
        granted = f" with {gib(engine.granted_bytes[0])}"
    return f"starts {engine.name} on {where}{granted}"


def progress(engine: Engine) -> str:
    share = "" if engine.fraction is None else f" {int(engine.fraction * 10) * 10}%"
    return f"{engine.state} {engine.name}: {engine.phase}{share}"


def ready(engine: Engine, took_s: float) -> str:
    return f"{engine.name} is ready after {took_s:.1f} s; {count(len(engine.waiting), 'request')} waited"


def idle_stop(engine: Engine) -> str:
    return f"stops {engine.name}: idle for {span(engine.spec.stop_after_s or 0)}"


def comes_back(model: str) -> str:
    return f"starts {model}, the default model: it had made room, and the others are idle"


# --- sleep


def cannot_sleep(engine: Engine) -> str:
    if engine.spec.elsewhere:
        return f"cannot put {engine.name} to sleep: it runs on another machine, and holds nothing of this one"
    if engine.sleepless:
        reason = engine.sleepless.removeprefix(f"cannot put {engine.name} to sleep: ")
        return f"cannot put {engine.name} to sleep: {reason}; stop it instead"
    if engine.spec.sleep_level == 0:
        return (
            f"cannot put {engine.name} to sleep: it was not launched to be able to; "
            f"stop it instead, or, where vLLM serves it, set its idle.sleep_level = 1"
        )
    return f"cannot put {engine.name} to sleep: it is {engine.state}; start it first"


# --- the law is enforced


def hung(engine: Engine) -> str:
    return (
        f"{engine.name} hangs: {count(len(engine.leases), 'request')} in flight and not one token for "
        f"{span(engine.spec.stall_timeout_s)}; its stacks go to `llm-supervisor logs {engine.name}`"
    )


def drains(engine: Engine, why: str) -> str:
    return f"stops {engine.name}: {why}; {count(len(engine.leases), 'request')} may finish first"


def drain_over(engine: Engine, now: float) -> str:
    requests = count(len(engine.leases), "request")
    return f"cuts {requests} of {engine.name}: still open after {span(now - engine.since)}"


def retries(engine: Engine, wait_s: float) -> str:
    return f"{engine.last_error}; may be tried again in {span(wait_s)}"


def gave_up(engine: Engine) -> str:
    spec = engine.spec
    return (
        f"{engine.last_error}; failed {count(len(engine.failures), 'time')} within "
        f"{span(spec.restart_window_s)}, so it is left alone for that long; "
        f"`llm-supervisor start {engine.name}` tries at once"
    )


def left_alone(engine: Engine, wait_s: float) -> str:
    now = f"`llm-supervisor start {engine.name}` tries at once"
    return f"{engine.last_error}; left alone for {span(wait_s)}; {now}"


def ended(engine: Engine, reason: str) -> str:
    if engine.state is State.STARTING:
        return start_failed(engine.name, reason)
    return crashed(engine.name, reason)


def crashed(model: str, reason: str) -> str:
    """Without its last lines: a serving engine's may quote requests, and this is told to other clients."""
    headline = reason.partition("\n")[0]
    return f"{model} crashed: {headline}; see `llm-supervisor logs {model}`"


def stuck(engine: Engine) -> str:
    return (
        f"cannot end {engine.name}: SIGKILL did not help, so its memory counts as held; "
        f"look for it in `ps` (state D) and in `dmesg`"
    )
