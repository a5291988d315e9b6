"""What happened. Past tense; `step` has one branch for each."""

from dataclasses import dataclass, field
from enum import StrEnum

from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.fleet import Gpu, GpuSample, ModelSpec, Policy


class Cause(StrEnum):
    """Why an engine ended, as far as the supervisor acts on it."""

    OTHER = "other"
    GPU_OOM = "gpu_oom"
    """It asked CUDA for more than was free, as its log tells."""
    HOST_OOM = "host_oom"
    """The kernel killed it for want of main memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestArrived:
    """A client asks for a model. `source` names the client."""

    request: int
    model: str
    source: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCancelled:
    """A waiting client left."""

    request: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFinished:
    """A lease was given back: answered, failed or left."""

    request: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """What the model will take is known now. News about another signature is stale."""

    model: str
    signature: str
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Venv and weights are there and pass the checks."""

    model: str
    launch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareFailed:
    """They are not. `temporary`: trying again later may help."""

    model: str
    launch: int
    reason: str
    temporary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """A sign of life while preparing or starting."""

    model: str
    launch: int
    phase: str = ""
    fraction: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReady:
    """It answers /health with 200. `kv_bytes`: its KV cache on each GPU, where its log told."""

    model: str
    launch: int
    kv_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAdopted:
    """An engine that an earlier run of the daemon launched lives and answers."""

    model: str
    launch: int
    gpus: tuple[int, ...] = ()
    granted_bytes: tuple[int, ...] = ()
    kv_bytes: int | None = None
    signature: str = ""
    """Of the configuration that it was launched with."""
    is_asleep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineExited:
    """Every process of it is reaped, asked for or not."""

    model: str
    launch: int
    reason: str
    cause: Cause = Cause.OTHER


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStuck:
    """SIGKILL did not end it."""

    model: str
    launch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FellAsleep:
    """It says that it sleeps; whether the memory came free is for the next sample to tell."""

    model: str
    launch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepFailed:
    """It would not, or did not in time."""

    model: str
    launch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Woke:
    """It is awake and answers as it did before it slept."""

    model: str
    launch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeFailed:
    """It would not wake, or woke wrong."""

    model: str
    launch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensCounted:
    """How far a serving engine has come.

    `running` is its requests in flight by its own count, None where it does not tell; `tokens` grows with
    every step of any of them.
    """

    model: str
    launch: int
    running: int | None
    tokens: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusSampled:
    """A look at the GPUs; without figures where NVML does not answer any more."""

    samples: tuple[GpuSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepAsked:
    """A person wants it asleep."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAsked:
    """A person wants it up."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAsked:
    """A person wants it down."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartAsked:
    """A person wants it down and up again."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChanged:
    """The configuration was read: at boot, or again."""

    specs: tuple[ModelSpec, ...]
    gpus: tuple[Gpu, ...] = ()
    policy: Policy = field(default_factory=Policy)
    preload: tuple[str, ...] | None = None
    """Models to start now, one after the other; None leaves what is still to be started as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownBegan:
    """The daemon was told to stop: drain, then end everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed: a WakeAt is due."""


Event = (
    RequestArrived
    | RequestCancelled
    | RelayFinished
    | Estimated
    | Prepared
    | PrepareFailed
    | Progressed
    | EngineReady
    | EngineAdopted
    | EngineExited
    | EngineStuck
    | FellAsleep
    | SleepFailed
    | Woke
    | WakeFailed
    | TokensCounted
    | GpusSampled
    | SleepAsked
    | StartAsked
    | StopAsked
    | RestartAsked
    | ConfigChanged
    | ShutdownBegan
    | Tick
)
