"""What the gateway asks of the rooms around it; daemon.py joins them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from supervisord_llm.config.model import Model
from supervisord_llm.core.card import Card
from supervisord_llm.core.events import Event
from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.planning.suggest import LongestContext
from supervisord_llm.runtime.lease import Lease
from supervisord_llm.runtime.ports import Backend, Reach, Usage


class Entry(Protocol):
    """One decision, as a sentence. `at` is Unix time in seconds."""

    @property
    def at(self) -> float: ...
    @property
    def model(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def is_bad(self) -> bool: ...


class EventLog(Protocol):
    """The supervisor's decisions."""

    def recent(self, n: int) -> Sequence[Entry]:
        """The last `n`, oldest first."""

    def follow(self) -> AsyncIterator[Entry]:
        """Those that come from the first `anext` on."""


class Tail(Protocol):
    """The output of one engine, as lines without their newline."""

    def last(self, n: int) -> Sequence[str]:
        """The last `n`, oldest first."""

    def follow(self) -> AsyncIterator[str]:
        """Those that come from the first `anext` on."""


class Runtime(Protocol):
    """The one way to the fleet: leases, orders, and a snapshot to look at."""

    @property
    def fleet(self) -> Fleet: ...
    @property
    def events(self) -> EventLog: ...
    @property
    def observers(self) -> list[Callable[[Event, Fleet], None]]:
        """Told after each step; for who takes itself off the list again."""

    def backend(self, model: str) -> Backend | None:
        """Where its engine serves, for a question that takes no lease; None unless it is ready."""

    def lease(
        self, model: str, *, source: str = "", priority: int = 0
    ) -> AbstractAsyncContextManager[Lease]: ...

    async def start(self, model: str) -> Engine: ...
    async def stop(self, model: str) -> Engine: ...
    async def restart(self, model: str) -> Engine: ...
    async def sleep(self, model: str) -> Engine: ...
    async def wake(self, model: str) -> Engine: ...
    async def switch(self, model: str) -> Engine:
        """Stop the other engines, then start this one."""


Logs = Callable[[str], Tail]
"""Model name -> output of its engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What others know of a model, which each is asked for by its name, and of peers."""

    context_length: Callable[[str], int | None] = lambda model: None
    """Tokens its weights are made for; None where they are not there or do not say."""
    card: Callable[[str], Card | None] = lambda model: None
    """What it is for; None where its weights are not there."""
    longest_context: LongestContext | None = None
    usage: Callable[[str], Usage | None] = lambda model: None
    """What its engine takes of the host; None where there is no engine."""
    tool_parser: Callable[[str], str] = lambda model: "unknown"
    """The parser of tool calls that its engine runs with; "" where it has none."""
    fallback: Callable[[str], str | None] = lambda model: None
    """The model or route that answers in its place while the schedule does not let it run; None: it may run,
    or nothing does."""
    peers: Callable[[], dict[str, Any]] = dict
    """What is to be said of each of them."""
    reach: Callable[[Model], Reach] = lambda model: Reach(model.network)
    """How far its engine gets in the network."""


class Timetable(Protocol):
    """The schedule as it stands."""

    def describe(self) -> dict[str, Any]:
        """What is in force, until when, and what comes."""

    async def override(self, window: str | None, for_s: float | None) -> None:
        """Put a window in force by hand (None: none; "auto": what the hours say). Raises Refused."""


Reload = Callable[[], Awaitable[dict[str, object]]]
"""Reads the configuration again and says what changed; raises ConfigError and then nothing changed."""

Upgrade = Callable[[], Awaitable[dict[str, object]]]
"""Has the program as it is installed now take over; raises Refused, and then nothing changed."""
