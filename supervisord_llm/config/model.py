"""The configuration as frozen values: what the TOML means once every default is filled in.

Sizes are bytes, durations are seconds, shares are fractions of 1. Names with `_s` or `_bytes` differ from
their TOML key only in that suffix (`heartbeat = "10s"` -> `heartbeat_s = 10.0`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final, Literal

from supervisord_llm.core.calendar import Schedule
from supervisord_llm.core.routes.route import Route

MIB = 1024**2
SECONDS = 1.0
MINUTES = 60.0

UNIX: Final = "unix"
"""Among networks: whoever comes by a unix socket."""

Network = IPv4Network | IPv6Network | Literal["unix"]
FlagValue = str | int | float | bool | list["FlagValue"] | dict[str, "FlagValue"]


@dataclass(frozen=True, slots=True)
class Share:
    """A fraction of a GPU's memory: `"90%"` is Share(0.9)."""

    fraction: float


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so much time: `"60/m"` is Rate(60, 60.0)."""

    count: int
    per_s: float

    def __str__(self) -> str:
        units = {1.0: "s", MINUTES: "m", 60 * MINUTES: "h", 24 * 60 * MINUTES: "d"}
        return f"{self.count}/{units.get(self.per_s, f'{self.per_s:g}s')}"


@dataclass(frozen=True, slots=True)
class Address:
    """One place to listen: host and port, or the path of a unix socket (then host is "" and port 0)."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """[server] tls: files in PEM."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """[server]"""

    listen: tuple[Address, ...] = (Address("0.0.0.0", 8000),)  # noqa: S104 - a LAN server; keys are on by default
    default_model: str | None = None
    unknown_model: Literal["reject", "default"] = "reject"
    preload: tuple[str, ...] = ()
    max_body_bytes: int = 32 * MIB
    heartbeat_s: float = 10 * SECONDS
    drain_timeout_s: float = 30 * SECONDS
    on_stop: Literal["stop", "keep"] = "stop"
    security_headers: bool = True
    tls: Tls | None = None
    trusted_proxies: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where things live, resolved: [paths], else systemd's directories, else /var or XDG."""

    state: Path
    cache: Path
    runtime: Path

    @property
    def venvs(self) -> Path:
        return self.state / "venvs"

    @property
    def hub(self) -> Path:
        """The Hugging Face cache; HF_HUB_CACHE and HF_HOME in the environment win over it (see weights)."""
        return self.state / "hub"

    @property
    def logs(self) -> Path:
        """Engine output, one rotated file a model."""
        return self.state / "logs"

    @property
    def learnt(self) -> Path:
        """What was measured of each model, one file a model."""
        return self.state / "learnt"

    @property
    def usage(self) -> Path:
        """Tokens that clients with a quota have used."""
        return self.state / "usage.sqlite"

    @property
    def schedule(self) -> Path:
        """What an operator put in force by hand, and until when."""
        return self.state / "schedule.json"

    @property
    def engines(self) -> Path:
        """Engine sockets and runtime records; mode 0700, since who reaches a socket reaches the engine."""
        return self.runtime / "engines"

    @property
    def control_socket(self) -> Path:
        return self.runtime / "control.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """[clients.NAME]: its keys, known only by their SHA-256, and what it may do with them."""

    name: str
    key_digests: tuple[bytes, ...]
    models: tuple[str, ...] = ("*",)
    endpoints: tuple[str, ...] = ("*",)
    rate: Rate | None = None
    burst: int | None = None
    """None: `rate.count`."""
    max_concurrent: int | None = None
    tokens_per_hour: int | None = None
    tokens_per_day: int | None = None
    priority: int = 0
    admin: bool = False
    while_waiting: tuple[Literal["progress", "white-space"], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """[sites.NAME]: another web service behind the same door, found by `hosts`, `path` or both."""

    name: str
    upstream: str
    """URL without a slash at its end; its path takes the place of `path`."""
    hosts: tuple[str, ...] = ()
    path: str | None = None
    max_body_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """[rate_limit]: what one address may send."""

    per_ip: Rate | None = None
    burst: int | None = None
    """None: `per_ip.count`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vram:
    """[vram]: the part of each GPU that engines may hold."""

    budget: int | Share = Share(0.9)
    reserve_bytes: int = 0
    enforce: Literal["observe", "restart", "stop"] = "restart"
    tolerance: Share = Share(0.05)
    """Of the grant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """[host]: main memory that sleeping engines may hold together."""

    ram_budget: int | Share = Share(0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Venv:
    """One Python environment: an existing `path`, or what to build one from."""

    path: Path | None = None
    requirements: tuple[str, ...] = ()
    python: str | None = None
    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """How many requests may wait for a model, and for how long."""

    size: int = 1000
    timeout_s: float = 10 * MINUTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """How often a model that failed is tried again: `tries` within `window_s`, then it counts as failed."""

    tries: int = 3
    window_s: float = 10 * MINUTES
    backoff_s: tuple[float, float] = (2 * SECONDS, 60 * SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that an engine may take of the host; None: no limit of its own."""

    memory_bytes: int | None = None
    cpu: float | None = None
    """Cores: 0.5 is half the time of one."""
    pids: int | None = None
    """Processes and threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPolicy:
    """[models.NAME] request: what is changed in a model's requests, and what they may not ask for."""

    default: Mapping[str, FlagValue] = field(default_factory=dict)
    force: Mapping[str, FlagValue] = field(default_factory=dict)
    strip: tuple[str, ...] = ()
    min: Mapping[str, float] = field(default_factory=dict)
    max: Mapping[str, float] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    """Fields, and paths of the engine with their method: "POST /v1/score2"."""
    max_batch: int | None = None
    """Inputs of one `embeddings` request that the engine gets at once."""

    @property
    def opened(self) -> frozenset[str]:
        """The paths in `allow`."""
        return frozenset(entry for entry in self.allow if "/" in entry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """[models.NAME], with [defaults] and [venvs] merged in."""

    name: str
    source: str
    """Hub id or directory of the weights; for other engines than vLLM, what they call the model."""
    engine: Literal["vllm", "command", "remote"] = "vllm"
    command: tuple[str, ...] = ()
    """engine = "command": its argv, with placeholders."""
    health: str = "/health"
    """engine = "command": where it answers 2xx once it is ready."""
    max_model_len: int | None = None
    """Tokens of context, for other engines than vLLM; there the flag max-model-len says it."""
    url: str = ""
    """engine = "remote": what stands there for /v1, without a slash at its end."""
    key: str | None = field(default=None, repr=False)
    """engine = "remote": the API key that goes there, and nowhere else."""
    no_key: str = ""
    """engine = "remote": why the key that it is to have cannot be had, and a way out."""
    rate: Rate | None = None
    """engine = "remote": what may be sent there."""
    peer: str = ""
    """engine = "remote": the [peers] table that it was found by; "" for one of the configuration."""
    adapter_of: str | None = None
    """The model whose engine serves it, with the LoRA adapter in `source`; None: it has its own engine."""
    adapters: tuple["Model", ...] = ()
    """The LoRA adapters that its engine serves beside it."""
    revision: str | None = None
    path: str | None = None
    """Path prefix with its slash ("/coder"); None where the config says false."""
    aliases: tuple[str, ...] = ()
    gpus: Literal["auto"] | tuple[int | str, ...] = "auto"
    """"auto", or GPU indices (PCI order) or UUIDs; () is CPU only."""
    is_numbered: bool = False
    """A replica whose `gpus` follow from its number: without GPUs it runs on the CPU, as with "auto"."""
    tensor_parallel: int = 1
    vram: Literal["auto"] | int | Share = "auto"
    venv: Venv | None = None
    """None: the default environment of this host (CUDA or CPU vLLM)."""
    flags: Mapping[str, FlagValue]
    env: Mapping[str, str]
    start_timeout_s: float = 5 * MINUTES
    stall_timeout_s: float = 2 * MINUTES
    max_concurrent: int | None = None
    queue: Queue | None = None
    """None: no queue above max_concurrent; waiting for a start is bounded by Queue()."""
    idle_stop_after_s: float | None = 30 * MINUTES
    """[idle] stop_after; None (written "0s") means never."""
    idle_sleep_after_s: float | None = None
    """[idle] sleep_after; None (not set, or "0s"): not for being idle."""
    sleep_level: int = 0
    """[idle] sleep_level, 1 where only sleep_after is set; 0: the engine is not launched to be able to."""
    keep: bool = False
    min_residency_s: float = 30 * SECONDS
    restart: Restart = Restart()
    limits: Limits = Limits()
    network: Literal["isolated", "host"] = "isolated"
    system_prompt: str | None = None
    system_prompt_mode: Literal["default", "always"] = "default"
    request: RequestPolicy = RequestPolicy()
    tools: Literal["auto", "strip", "pass"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """[peers.NAME]: another llm-supervisor, whose models are served here as well."""

    name: str
    url: str
    """Its address without /v1 and without a slash at its end."""
    key: str | None = field(default=None, repr=False)
    no_key: str = ""
    """Why the key that it is to have cannot be had, and a way out; it is not asked then."""
    models: tuple[str, ...] = ("*",)
    """Patterns over the names that it lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything, resolved. Frozen, so that a reload is a comparison of two of them."""

    files: tuple[Path, ...]
    server: Server
    paths: Paths
    auth_required: bool
    clients: tuple[Client, ...]
    rate_limit: RateLimit = RateLimit()
    vram: Vram
    gpu_budgets: Mapping[str, int | Share]
    """[gpus.KEY] budget, by index (as a string) or UUID."""
    host: Host = Host()
    models: Mapping[str, Model]
    cors_origins: tuple[str, ...] = ()
    """[cors] allow_origins"""
    sites: tuple[Site, ...] = ()
    routes: Mapping[str, Route] = field(default_factory=dict)
    schedule: Schedule | None = None
    local_zone: tzinfo = UTC
    """The host's."""
    peers: tuple[Peer, ...] = ()
    metrics_enabled: bool = True
    metrics_public: bool = False
    log_format: Literal["auto", "json", "text"] = "auto"

    @property
    def with_engines(self) -> tuple[Model, ...]:
        """The models that have an engine of their own: all but adapters."""
        return tuple(model for model in self.models.values() if model.adapter_of is None)

    def engine_of(self, name: str) -> str:
        """The model whose engine serves the model `name`; itself, unless that is an adapter."""
        return (self.models[name].adapter_of if name in self.models else None) or name

    @property
    def names(self) -> dict[str, str]:
        """Name or alias -> model or route."""
        offers: tuple[Model | Route, ...] = (*self.models.values(), *self.routes.values())
        aliases = {alias: offer.name for offer in offers for alias in offer.aliases}
        return aliases | {offer.name: offer.name for offer in offers}
