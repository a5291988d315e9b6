"""The whole world as one frozen value. Every decision reads it; only `step` makes the next one."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.frozen import replace
from supervisord_llm.core.state import HAS_PROCESS, RESTS, State, check_transition

Grant = int | float | None
"""Memory asked of each GPU: bytes (int), a share of its total (float), or None: measured, else estimated."""


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """What earlier launches with the same signature taught. Kept on disk; None is not known."""

    footprint_bytes: int | None = None
    """The most it held of any of its GPUs while it was awake."""
    kv_bytes: int | None = None
    """The KV cache it had on each GPU, as its log told."""
    start_s: float | None = None
    """From launch to ready, the last time."""
    wake_s: float | None = None
    residue_bytes: int | None = None
    """What it held of each GPU while asleep."""
    adjusted: tuple[tuple[str, int], ...] = ()
    """Flags of vLLM that were changed because it ran out of GPU memory, and their values."""
    is_exhausted: bool = False
    """It ran out of GPU memory with all that could be adjusted: not started again by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What the core knows of a model. Times in seconds, memory in bytes."""

    name: str
    signature: str = ""
    """Hash of everything that shapes the process: when it changes, a running engine is out of date."""
    disabled: str = ""
    """Why it cannot run on this host, as a sentence; "" where nothing is known against it."""
    closed: str = ""
    """Why the schedule does not let it run now, without its name; "": it does."""
    opens_at: float | None = None
    """When the schedule lets a closed one run again; None: that is not known."""
    closes_at: float = 0.0
    """Until when a closed one may finish what is in flight, whatever `drain_timeout_s` says."""
    pinned: tuple[int, ...] | None = ()
    """GPU indices; () is CPU only; None lets the scheduler choose."""
    gpu_count: int = 1
    """How many GPUs it takes together where the scheduler chooses (tensor parallel size)."""
    grant: Grant = None
    keep: bool = False
    max_concurrent: int | None = None
    queue_when_busy: bool = False
    """Above max_concurrent: True waits in the queue, False is refused at once."""
    queue_size: int = 1000
    queue_timeout_s: float = 600.0
    stop_after_s: float | None = 1800.0
    sleep_after_s: float | None = None
    sleep_level: int = 0
    """vLLM's sleep level, 1 or 2; 0: it was not launched to be able to."""
    max_num_seqs: int = 256
    """Sequences in one batch: what is halved first when GPU memory runs out."""
    max_model_len: int | None = None
    """The context length in force, where it is known."""
    elsewhere: bool = False
    """It runs on another machine: ending it frees nothing here, no number of failures makes it FAILED, and
    while it is out of reach who asks is refused at once."""
    comes_back: bool = False
    """Having made room for others, it returns once they are idle: the default model."""
    learnt: Learnt = Learnt()
    """What is on disk; the engine's own `learnt` is newer."""
    min_residency_s: float = 30.0
    start_timeout_s: float = 300.0
    stall_timeout_s: float = 120.0
    drain_timeout_s: float = 30.0
    restart_tries: int = 3
    restart_window_s: float = 600.0
    backoff_s: tuple[float, float] = (2.0, 60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU and its budget."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    budget_bytes: int
    """All that grants together may hold: the configured budget less the reserve."""
    reserve_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """A process that holds GPU memory and is not ours."""

    pid: int
    name: str
    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One look at one GPU. None is "cannot be learnt", never 0."""

    index: int
    at: float
    """When the look began, monotonic seconds: what ended later may still be in the figures."""
    used_bytes: int | None = None
    engines: Mapping[str, int] | None = None
    """Bytes by model of the processes of our engines; None where the driver tells none (WSL2)."""
    strangers: tuple[Stranger, ...] = ()
    utilization: float | None = None
    """Of 1."""
    temperature_c: int | None = None
    lost: str = ""
    """Why it cannot be used any more, as a sentence ("fell off the bus"); "" while it answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the configuration says of memory for the fleet as a whole."""

    enforce: Literal["observe", "restart", "stop"] = "restart"
    """What happens to an engine that holds more than its grant."""
    tolerance: float = 0.05
    """How far above its grant it may be, as a share of the grant."""
    host_budget_bytes: int | None = None
    """RAM that sleeping engines may hold together; None: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A request that waits for an engine."""

    request: int
    source: str
    priority: int
    since: float


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One model's engine: its state, who uses it, who waits for it. Times are monotonic seconds."""

    spec: ModelSpec
    state: State = State.STOPPED
    since: float = 0.0
    """When it entered the state."""
    launch: int = 0
    """Number of the current or last life; news of another one is stale."""
    gpus: tuple[int, ...] = ()
    """Where it runs, while it holds a grant."""
    granted_bytes: tuple[int, ...] = ()
    """What it may hold of each of `gpus`: as granted at launch, and less once it is seen to sleep."""
    awake_bytes: tuple[int, ...] = ()
    """What it was granted at launch and needs again to wake."""
    used_bytes: tuple[int, ...] | None = None
    """What it was last seen to hold of each of `gpus`; None where that cannot be told."""
    before_bytes: tuple[int | None, ...] = ()
    """What everybody held of each of `gpus` just before its launch or sleep: where the driver does not tell
    what is whose, the difference is."""
    kv_bytes: int | None = None
    """The KV cache it was launched with, where it was told a size."""
    over_since: float | None = None
    """Since when it holds more than it may."""
    waiting: tuple[Waiting, ...] = ()
    """Highest priority first, then oldest."""
    leases: frozenset[int] = frozenset()
    last_used: float = 0.0
    last_priority: int = 0
    """Of the client that used it last."""
    visits: float = 0.0
    """How often it was used lately, at `visited_at`: halved every VISITS_HALVE_S since."""
    visited_at: float = -math.inf
    last_sign: float = 0.0
    """Last sign of life while preparing or starting: what the stall timeout measures."""
    phase: str = ""
    fraction: float | None = None
    told: frozenset[str] = frozenset()
    """What was said of its progress in this state, so that nothing is said twice."""
    failures: tuple[float, ...] = ()
    """When it failed, within the restart window."""
    retry_at: float = 0.0
    """When BACKOFF ends, or when FAILED lets a request try again."""
    last_error: str = ""
    wanted: bool = False
    """Someone asked for it without a request: start, preload, keep or restart."""
    wanted_since: float = 0.0
    """When that was."""
    kill_reason: str = ""
    """It is being ended because something went wrong (timeout, hang): what to tell once it is reaped."""
    estimate: Estimate | None = None
    """What it is expected to take; None until that is known, or where it cannot be."""
    learnt: Learnt = Learnt()
    launched_as: str = ""
    """The signature it was launched with: what is learnt of it is true of that."""
    is_looked_at: bool = False
    """Its GPUs were looked at since it is awake."""
    is_invisible: bool = False
    """Its launch never showed in the figures of its GPUs: neither can its end or its sleep."""
    returns: bool = False
    """It was ended for what it did, not because nobody wanted it: it comes back where there is room."""
    to_sleep: bool = False
    """DRAINING in order to sleep."""
    hangs: bool = False
    """DRAINING since it makes no progress: to be killed, and its stacks kept."""
    asleep_at: float | None = None
    """SLEEPING, and since when it says so; None: it falls asleep."""
    gave_back: bool = False
    """SLEEPING, and its memory is free: seen to be, or taken to be where none can see."""
    sleepless: str = ""
    """Why it is not put to sleep any more."""
    yields_to: str = ""
    """The model that has waited too long for its room: it takes no new requests and gives way once idle."""
    hopeless_since: float | None = None
    """Since when nothing that could make room is in its way: strangers, or what is kept."""
    tokens: float | None = None
    """What its token counters said last, None: nothing yet since it became busy."""
    tokens_at: float = 0.0
    """When they last moved, or it had nothing to do."""
    counted_at: float = 0.0
    """When it was last asked for them."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_idle(self) -> bool:
        """Ready or asleep, nobody uses it and nobody waits: may be stopped or evicted."""
        return not self.leases and not self.waiting and self.state in RESTS

    @property
    def is_wanted(self) -> bool:
        """Someone waits for it, or it was asked for."""
        return self.wanted or bool(self.waiting)

    def to(self, state: State, now: float, **changes: Any) -> "Engine":
        """The engine in a new state; the move must be in the table."""
        check_transition(self.state, state)
        if state not in HAS_PROCESS:
            changes |= {"gpus": (), "granted_bytes": (), "awake_bytes": (), "used_bytes": None}
        fresh: dict[str, Any] = {
            "phase": "", "fraction": None, "told": frozenset(), "last_sign": now,
            "yields_to": "", "over_since": None, "hopeless_since": None, "asleep_at": None,
            "gave_back": False, "to_sleep": False, "hangs": False,
        }  # fmt: skip
        return replace(self, state=state, since=now, **(fresh | changes))


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All engines by model name in the config's order, and the GPUs by index."""

    engines: Mapping[str, Engine] = field(default_factory=lambda: MappingProxyType({}))
    gpus: Mapping[int, Gpu] = field(default_factory=lambda: MappingProxyType({}))
    samples: Mapping[int, GpuSample] = field(default_factory=lambda: MappingProxyType({}))
    """The last look at each GPU, by index; none where NVML was never asked."""
    freed_at: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    """When memory of a GPU was last given up: a look begun before says nothing of what is free now."""
    unexplained_bytes: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """What nobody was known to hold of it just before: more means that what was given up is not back yet."""
    policy: Policy = Policy()
    is_overfull: bool = False
    """Grants exceed a budget that was lowered: idle engines go until they do not."""
    displaced: str = ""
    """The default model, where it made room for others: it returns once they are idle."""
    preload: tuple[str, ...] = ()
    """Models still to be started at boot, one after the other."""
    preloading: str = ""
    """The one of them that is being started now."""
    removed: frozenset[str] = frozenset()
    """Models that left the config and go once their engine is reaped."""
    stopping: bool = False
    """The daemon shuts down: nothing starts any more."""
    active: tuple[Mapping[str, Engine], dict[str, None]] | None = field(
        default=None, compare=False, repr=False
    )
    """Engines, and the names, in their order, of those that do anything: a thousand are configured, and a few
    dozen do. It is true of the very `engines` it comes with; without it the names are derived from them."""

    def __iter__(self) -> Iterator[Engine]:
        return iter(self.engines.values())
