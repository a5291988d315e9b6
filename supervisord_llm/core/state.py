"""The states of an engine and every move between them, as tables.

`transition` refuses a move that is not in TRANSITIONS, so the table is the machine and the picture in the
README, which is drawn from it, is true.
"""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Where the engine of a model stands. The words are the same in HTTP, CLI and metrics."""

    STOPPED = "stopped"
    PREPARING = "preparing"
    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    SLEEPING = "sleeping"
    WAKING = "waking"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"
    STUCK = "stuck"


MEANING: Mapping[State, str] = {
    State.STOPPED: "no process; the next request starts it",
    State.PREPARING: "venv and weights are being made present",
    State.QUEUED: "prepared; waits for VRAM or for another start on its GPU",
    State.STARTING: "launched, not yet answering",
    State.READY: "serves",
    State.SLEEPING: "alive, its weights in main memory or dropped; holds little of its GPUs",
    State.WAKING: "getting its weights and KV cache back",
    State.DRAINING: "takes no new requests; open ones may finish",
    State.STOPPING: "being ended",
    State.BACKOFF: "failed a moment ago; waits before the next try",
    State.FAILED: "failed too often; requests are refused until the time is over or someone starts it",
    State.STUCK: "would not die; its memory counts as held",
}

TRANSITIONS: Mapping[State, Mapping[State, str]] = {
    State.STOPPED: {
        State.PREPARING: "request or start",
        State.FAILED: "can never run here",
        State.READY: "taken over from an earlier run",
        State.SLEEPING: "taken over, asleep",
    },
    State.PREPARING: {
        State.QUEUED: "prepared",
        State.BACKOFF: "could not be prepared",
        State.FAILED: "cannot be prepared",
        State.STOPPED: "stop or reload",
    },
    State.QUEUED: {
        State.STARTING: "there is room",
        State.FAILED: "can never fit",
        State.STOPPED: "stop or reload; nobody waits and there is no room",
    },
    State.STARTING: {
        State.READY: "answers /health",
        State.STOPPING: "stop, start timeout or stall",
        State.BACKOFF: "exited",
        State.FAILED: "exited, once too often",
    },
    State.READY: {
        State.SLEEPING: "idle or evicted, and able to sleep",
        State.DRAINING: "idle, evicted, stop, reload, hung or above its grant",
        State.STOPPING: "its GPU is lost",
        State.BACKOFF: "crashed",
        State.FAILED: "crashed, once too often",
    },
    State.SLEEPING: {
        State.WAKING: "request or wake, and there is room",
        State.STOPPING: "idle, evicted, stop or reload; or would not sleep",
        State.BACKOFF: "crashed",
        State.FAILED: "crashed, once too often",
    },
    State.WAKING: {
        State.READY: "answers as before",
        State.STOPPING: "stop, or would not wake",
        State.BACKOFF: "crashed",
        State.FAILED: "crashed, once too often",
    },
    State.DRAINING: {
        State.SLEEPING: "last request done, and asked to sleep",
        State.STOPPING: "last request done, or drain timeout",
        State.STOPPED: "exited",
        State.BACKOFF: "exited, having hung",
        State.FAILED: "exited, having hung once too often",
    },
    State.STOPPING: {
        State.STOPPED: "every process reaped",
        State.BACKOFF: "reaped after a failure",
        State.FAILED: "reaped after one failure too many",
        State.STUCK: "SIGKILL did not help",
    },
    State.BACKOFF: {
        State.PREPARING: "time is over and someone waits",
        State.STOPPED: "time is over, or stop",
    },
    State.FAILED: {State.PREPARING: "request after the time, or start", State.STOPPED: "stop or reload"},
    State.STUCK: {
        State.STOPPED: "every process reaped",
        State.BACKOFF: "reaped after a failure",
        State.FAILED: "reaped after one failure too many",
    },
}

HAS_PROCESS = frozenset({
    State.STARTING, State.READY, State.SLEEPING, State.WAKING, State.DRAINING, State.STOPPING, State.STUCK,
})  # fmt: skip
"""States in which the engine has processes, and so holds memory of its GPUs.

Gone means reaped: STUCK still holds, and SLEEPING holds all of its grant until its memory is seen to be free.
"""

RESTS = frozenset({State.READY, State.SLEEPING})
"""States that last while a process is there and nothing is under way: an engine that may be idle."""

RUNS_OR_WILL = frozenset({
    State.PREPARING, State.QUEUED, State.STARTING, State.READY, State.SLEEPING, State.WAKING,
})  # fmt: skip
"""States that have to be left for an engine to end: it is there, or is on its way."""

SETTLED = frozenset({
    State.STOPPED, State.READY, State.SLEEPING, State.BACKOFF, State.FAILED, State.STUCK,
})  # fmt: skip
"""States that last until something new happens: what a `start` or `stop` waits for."""


class IllegalTransition(Exception):
    """A bug in the scheduler, not a fact of the world: the move is not in TRANSITIONS."""


def check_transition(source: State, target: State) -> None:
    """Raise IllegalTransition unless TRANSITIONS allows `source` -> `target`."""
    if target not in TRANSITIONS[source]:
        raise IllegalTransition(f"{source} -> {target}")
