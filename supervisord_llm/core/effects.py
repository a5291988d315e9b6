"""What to do. Imperative; the runtime performs each one and reports back with an event."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Make venv and weights present. Answered by Prepared or PrepareFailed."""

    model: str
    launch: int


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StopEngine:
    """End it; `kill` at once where there is nothing to save. Answered by EngineExited or EngineStuck."""

    model: str
    launch: int
    kill: bool = False


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


Effect = Prepare | CancelPrepare | StartEngine | StopEngine | Admit | Reject | Notify | WakeAt
