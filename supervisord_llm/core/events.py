"""What happened. Past tense; `step` has one branch for each."""

from dataclasses import dataclass

from supervisord_llm.core.fleet import Gpu, ModelSpec


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
    """It answers /health with 200."""

    model: str
    launch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineExited:
    """Every process of it is reaped, asked for or not."""

    model: str
    launch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStuck:
    """SIGKILL did not end it."""

    model: str
    launch: int


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
    | Prepared
    | PrepareFailed
    | Progressed
    | EngineReady
    | EngineExited
    | EngineStuck
    | StartAsked
    | StopAsked
    | RestartAsked
    | ConfigChanged
    | ShutdownBegan
    | Tick
)
