"""Tokens that clients have used in this hour and on this day: in memory, and in SQLite for the next start.

Windows are fixed: an hour of the clock, and a calendar day of the host's time zone.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

log = logging.getLogger("llm_supervisor.usage")

WRITE_EVERY_S = 2.0
"""What a power failure may lose."""

BUSY_S = 2.0
HOUR_S = 3600.0

SCHEMA = """\
CREATE TABLE IF NOT EXISTS tokens (
    client TEXT NOT NULL, period TEXT NOT NULL, starts_at REAL NOT NULL, ends_at REAL NOT NULL,
    tokens INTEGER NOT NULL, PRIMARY KEY (client, period)
)"""

SELECT = "SELECT client, period, starts_at, ends_at, tokens FROM tokens"

# A count of one window only grows, so it does not matter which of two writers comes first.
UPSERT = """\
INSERT INTO tokens VALUES (?, ?, ?, ?, ?) ON CONFLICT (client, period) DO UPDATE SET
    tokens = CASE WHEN starts_at = excluded.starts_at THEN max(tokens, excluded.tokens)
                  ELSE excluded.tokens END,
    starts_at = excluded.starts_at, ends_at = excluded.ends_at"""


class Period(StrEnum):
    """What a quota is for."""

    HOUR = "hour"
    DAY = "day"


@dataclass(slots=True)
class Window:
    """Tokens of one client from `starts_at` to `ends_at`, Unix time in seconds; then it begins anew."""

    period: Period
    starts_at: float = 0.0
    ends_at: float = 0.0
    tokens: int = 0

    def at(self, now: float) -> "Window":
        """The window that `now` is in: this one, begun anew if need be."""
        if not self.starts_at <= now < self.ends_at:
            self.starts_at, self.ends_at = bounds(self.period, now)
            self.tokens = 0
        return self


def bounds(period: Period, now: float) -> tuple[float, float]:
    """Beginning and end of the hour or day that `now` is in."""
    begin = datetime.fromtimestamp(now).replace(minute=0, second=0, microsecond=0)
    if period is Period.HOUR:
        starts_at = begin.timestamp()
        ends_at = starts_at + HOUR_S
    else:  # of 23 or 25 hours where the clocks change
        midnight = begin.replace(hour=0, fold=0)
        starts_at, ends_at = midnight.timestamp(), (midnight + timedelta(days=1)).timestamp()
    return min(starts_at, now), max(ends_at, now + 1.0)


class UsageStore:
    """Every client's windows. Without a `path` they are kept in memory alone.

    Nothing here raises for a disk that is full or a file that is broken: serving goes on, and the log says
    once that counts will not outlive a restart.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._windows: dict[str, tuple[Window, ...]] = {}
        """By client, one for each period."""
        self._unwritten: set[str] = set()
        self._is_failing = False

    def windows(self, client: str) -> tuple[Window, ...]:
        """The client's windows, one for each period; they stay the same objects."""
        found = self._windows.get(client)
        if found is None:
            found = self._windows[client] = tuple(Window(period) for period in Period)
        return found

    def now(self) -> float:
        """Unix time, seconds."""
        return self._clock()

    def add(self, client: str, tokens: int) -> None:
        """Count tokens of a client; they are written with the next batch."""
        now = self._clock()
        for window in self.windows(client):
            window.at(now).tokens += tokens
        self._unwritten.add(client)

    async def run(self) -> None:
        """Write what is new, again and again."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            await self.write()

    async def write(self) -> None:
        """Write what is new."""
        if self._path is None or not self._unwritten:
            return
        batch, self._unwritten = self._unwritten, set()
        rows = [
            (client, window.period.value, window.starts_at, window.ends_at, window.tokens)
            for client in batch
            for window in self._windows[client]
        ]
        if not await asyncio.to_thread(self._write, self._path, rows):
            self._unwritten |= batch

    def load(self) -> None:
        """Read what an earlier run has written. Blocks."""
        if self._path is None or not self._path.exists():
            return
        try:
            with closing(sqlite3.connect(self._path, timeout=BUSY_S)) as database:
                database.execute(SCHEMA)
                rows = database.execute(SELECT).fetchall()
            for client, period, starts_at, ends_at, tokens in rows:
                for window in self.windows(str(client)):
                    if window.period == period:
                        window.starts_at, window.ends_at = float(starts_at), float(ends_at)
                        window.tokens = max(0, int(tokens))
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            self._failed(self._path, error)

    def _write(self, path: Path, rows: list[tuple[str, str, float, float, int]]) -> bool:
        try:
            with closing(sqlite3.connect(path, timeout=BUSY_S)) as database, database:
                database.execute(SCHEMA)
                database.executemany(UPSERT, rows)
                database.execute("DELETE FROM tokens WHERE ends_at <= ?", (self._clock(),))
        except (sqlite3.Error, OSError) as error:
            self._failed(path, error)
            return False
        if self._is_failing:
            log.info("%s can be written again", path)
        self._is_failing = False
        return True

    def _failed(self, path: Path, error: Exception) -> None:
        """Say so once. A file that is no database is put aside, so that the next write makes a new one."""
        if not self._is_failing:
            log.warning(
                "cannot keep token counts in %s: %s; quotas are counted on in memory, and begin at zero "
                "after a restart: free some space, or make it writable",
                path,
                error,
            )
        self._is_failing = True
        if type(error) is sqlite3.DatabaseError:
            aside = path.with_name(f"{path.name}.broken")
            try:
                path.replace(aside)
            except OSError:
                return
            log.warning("put the broken file aside as %s", aside)
