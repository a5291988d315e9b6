"""What the runtime asks of the world. The edges implement these; daemon.py joins them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from supervisord_llm.core.effects import StartEngine
from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.events import Cause
from supervisord_llm.core.fleet import Learnt


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of slow work: a `phase` in a few words and, where it can be known, a `fraction` of 1."""

    phase: str
    fraction: float | None = None


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Exit:
    """How an engine ended, told once every process of it is reaped.

    `code` is the leader's exit code, negative for a signal, None if it could not be learnt.
    `reason` is one sentence for people; `tail` the last lines of output; `command` can be pasted in a shell.
    """

    code: int | None
    reason: str
    tail: tuple[str, ...] = ()
    command: str = ""
    cause: Cause = Cause.OTHER
    answers_on: bool = False
    """It is only not asked any more: what it has begun to answer may go on."""


@dataclass(frozen=True, slots=True)
class Progressing:
    """How far a serving engine has come: requests in its hands, and a number that grows with each step."""

    running: int
    tokens: float


InFlight = Callable[[], frozenset[int]]
"""The requests that an engine was given and has not finished, as of now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an engine takes of the host, all its processes together; None where it cannot be told."""

    memory_bytes: int | None = None
    """Now, the page cache and shared memory included."""
    cpu_s: float | None = None
    """Since the launch, of all cores together."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far an engine gets in truth; `network_note` says, as a sentence, why not as configured."""

    network: Literal["isolated", "host"]
    network_note: str = ""


PEER_HEADER = "X-LLM-Peer"
"""In requests of one llm-supervisor to another, which answers them by itself or not at all: so they end."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Where an engine serves HTTP: at a unix socket, a port of this host, or an address elsewhere."""

    socket: Path | None = None
    origin: str = "http://localhost"
    """Scheme, host and port."""
    base: str = "/v1"
    """What stands there for /v1."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What only it may see: the key of an API elsewhere."""
    elsewhere: bool = False
    """It is another's: it gets nothing that tells of our clients, and what it says is not believed."""
    is_peer: bool = False
    """Another llm-supervisor: what it refuses, it refuses as we do."""
    silence_s: float | None = None
    """For how long it may send nothing while it is to answer; None: the engine is asked for its progress."""

    def url(self, path: str) -> str:
        """The address of one of an engine's paths ("/v1/chat/completions", "/tokenize").

        Elsewhere it is below `base` whatever the path: beside it, the key is no longer for whoever answers.
        """
        if path.startswith("/v1/"):
            return self.origin + self.base + path.removeprefix("/v1")
        return self.origin + (self.base if self.elsewhere else "") + path


@dataclass(frozen=True, slots=True)
class Beginning:
    """How an answer of a backend began: with a status, or not at all and `why`, as a sentence."""

    status: int | None = None
    why: str = ""
    retry_after_s: float | None = None
    """When to come again, where it said so."""


class Provisioner(Protocol):
    """Makes what an engine needs before it can be launched."""

    async def prepare(self, model: str, report: Report) -> None:
        """Make the model's venv and weights present and look for mistakes a launch would find late.

        Called only while no engine of the model runs. Cheap when nothing is missing. Cancellation stops the
        work and leaves nothing half-made.

        Raises:
            ProvisionError: what is missing or wrong, in one sentence with a way out.
        """

    async def estimate(self, model: str) -> Estimate | None:
        """What the model will take of a GPU, from its own files or the hub's metadata; None: cannot be told.

        Quick once the weights are here. Never raises.
        """


class Engine(Protocol):
    """One launched engine, alive or not."""

    @property
    def backend(self) -> Backend:
        """Where it serves HTTP."""

    async def ready(self) -> None:
        """Return within 25 ms of the engine answering /health with 200. Never returns if it never does."""

    async def wait(self) -> Exit:
        """Return when the leader has ended, for whatever reason, and every process of its tree is reaped.

        What the leader left behind (grandchildren, other sessions) is killed first.
        """

    @property
    def kv_bytes(self) -> int | None:
        """The size of its KV cache on each GPU, once its log has told; None where it has not."""

    async def sleep(self, level: int) -> None:
        """Put it to sleep, having asked it for a few tokens first, to compare with when it wakes.

        Raises:
            EngineError: it would not, or did not in time.
        """

    async def wake(self, level: int) -> None:
        """Wake it and compare a few tokens with those before it slept.

        Raises:
            EngineError: it would not, did not in time, or answers otherwise than before.
        """

    async def progressing(self, in_flight: InFlight = frozenset) -> Progressing | None:
        """What it tells of its work; None where it has nothing to tell. Returns within 5 s.

        Raises:
            EngineError: it did tell before, and does not answer now.
        """

    async def stop(self, *, kill: bool, dump: bool = False) -> None:
        """End it: SIGTERM, a bounded wait, SIGKILL of the whole tree; with `kill` the tree is killed at once.

        With `dump` its processes first write their stacks to its log.

        Returns when every process is reaped, or when SIGKILL did not help for a while: then `wait` has not
        returned and the engine still holds its memory. Safe to call twice.
        """


class Launcher(Protocol):
    """Starts engine processes."""

    async def launch(self, order: StartEngine, report: Report) -> Engine:
        """Spawn the engine of `order.model` as ordered. `order.launch` tells two lives apart.

        `report` gets a Progress for each sign of life (recognised phase, or output at all with phase "").

        Raises:
            LaunchError: it could not be spawned.
        """


class Upstreams(Protocol):
    """The gateway's connections to engines, seen from the runtime."""

    async def close(self, model: str) -> None:
        """Close every connection to the model's engine, streams included.

        vLLM can hang for good on SIGTERM while a stream is open, so this precedes every stop.
        """

    async def retire(self, model: str) -> None:
        """Use these connections for nothing new; each is closed once what goes on there has ended."""


class Memory(Protocol):
    """Keeps what was learnt of models."""

    async def remember(self, model: str, signature: str, learnt: Learnt) -> None:
        """Write it down. Never raises: what cannot be written is learnt again."""
