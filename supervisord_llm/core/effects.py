"""What to do. Imperative; the runtime performs each one and reports back with an event."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisord_llm.core.fleet import Learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Make venv and weights present. Answered by Estimated, if it can be, and Prepared or PrepareFailed."""

    model: str
    launch: int
    signature: str = ""
    """Of the configuration that it is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelPrepare:
    """Nobody wants it any more; no answer."""

    model: str
    launch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEngine:
    """Launch on these GPUs. Answered by EngineReady and, sooner or later, EngineExited."""

    model: str
    launch: int
    gpus: tuple[int, ...]
    memory_fraction: float | None = None
    """The grant as a share of each GPU, for the engine's own limit; None on the CPU."""
    kv_bytes: int | None = None
    """The size of its KV cache on each GPU, where it is known."""
    adjusted: Mapping[str, int] = field(default_factory=dict)
    """vLLM flags that win over the configured ones, because it ran out of memory with those."""
    granted_bytes: tuple[int, ...] = ()
    """Of each of `gpus`, in their order: for a later run of the daemon that takes the engine over."""
    signature: str = ""
    """Of the configuration that it is launched with; for the same reader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopEngine:
    """End it; `kill` at once where there is nothing to save. Answered by EngineExited or EngineStuck.

    `dump`: it hangs; have its stacks written to its log before it is killed.
    """

    model: str
    launch: int
    kill: bool = False
    dump: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepEngine:
    """Put it to sleep. Answered by FellAsleep or SleepFailed."""

    model: str
    launch: int
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeEngine:
    """Wake it and see that it still answers as before. Answered by Woke or WakeFailed."""

    model: str
    launch: int
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CountTokens:
    """Ask the engine how far it has come. Answered by TokensCounted."""

    model: str
    launch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleGpus:
    """Look at the GPUs now rather than in a while. Answered by GpusSampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember:
    """Keep on disk what was learnt of the model while its configuration had this signature."""

    model: str
    signature: str
    learnt: Learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """The request may use the engine."""

    request: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """The request will not be served. `code` is `error.code` of the HTTP error table."""

    request: int
    model: str
    code: str
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """A decision as one sentence, for the log and the event stream. `is_bad` asks for a person's eye."""

    model: str
    text: str
    is_bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeAt:
    """Send a Tick no later than this time."""

    at: float


Effect = (
    Prepare
    | CancelPrepare
    | StartEngine
    | StopEngine
    | SleepEngine
    | WakeEngine
    | CountTokens
    | SampleGpus
    | Remember
    | Admit
    | Reject
    | Notify
    | WakeAt
)
