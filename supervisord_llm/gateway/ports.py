"""What the gateway asks of the rooms around it; daemon.py joins them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.runtime.lease import Lease
from supervisord_llm.runtime.ports import Usage


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

ContextLength = Callable[[str], int | None]
"""Model name -> tokens its weights are made for; None where they are not there or do not say."""

UsageOf = Callable[[str], Usage | None]
"""Model name -> what its engine takes of the host; None where there is no engine."""

Reload = Callable[[], Awaitable[dict[str, object]]]
"""Reads the configuration again and says what changed; raises ConfigError and then nothing changed."""
