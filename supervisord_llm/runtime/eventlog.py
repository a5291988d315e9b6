"""The decisions of the daemon, as sentences: the last thousand, and those to come."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

log = logging.getLogger("llm_supervisor.fleet")

KEPT = 1000
FOLLOWER_BACKLOG = 1000
"""A follower that lags this far behind misses entries instead of growing memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision. `at` is unix time, seconds; `model` is "" where it concerns the whole fleet."""

    at: float
    model: str
    text: str
    is_bad: bool = False


class EventLog:
    """Ring of entries with live followers; each entry also goes to the daemon's log."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._followers: set[asyncio.Queue[Entry]] = set()

    def add(self, model: str, text: str, *, is_bad: bool = False) -> None:
        entry = Entry(time.time(), model, text, is_bad)
        self._entries.append(entry)
        log.log(logging.WARNING if is_bad else logging.INFO, "%s", text, extra={"model": model or None})
        for follower in self._followers:
            if not follower.full():
                follower.put_nowait(entry)

    def recent(self, n: int) -> list[Entry]:
        """The last `n`, oldest first."""
        return list(self._entries)[-n:] if n > 0 else []

    async def follow(self) -> AsyncIterator[Entry]:
        """Entries from now on, until the caller stops asking."""
        follower: asyncio.Queue[Entry] = asyncio.Queue(FOLLOWER_BACKLOG)
        self._followers.add(follower)
        try:
            while True:
                yield await follower.get()
        finally:
            self._followers.discard(follower)
