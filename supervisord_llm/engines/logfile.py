"""The file that an engine writes to: bounded, with an older one beside it, and with room of its own.

The engine appends to it whatever we do. On a full disk old output is what goes: the room that was set aside
is for what comes next, since the last words of an engine tell why it ended.
"""

import contextlib
import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from supervisord_llm.engines.reserve import reserve

MAX_FILE_BYTES = 16 * 1024 * 1024
MARGIN_BYTES = 1024 * 1024
"""Beyond the largest size: an engine goes on writing until the file is rotated."""

LAST_WORDS_BYTES = 512 * 1024
"""The least room that there should be: tracebacks of every process of an engine."""

log = logging.getLogger("llm_supervisor.engines")


@dataclass(frozen=True, slots=True)
class Unread:
    """Output that had not been read when its file was emptied: `left_out` bytes, then the `last` ones."""

    left_out: int
    last: bytes


class LogFile:
    """One of a model. `path` is where its present engine writes, or its last one did."""

    def __init__(self, path: Path, elsewhere: Path | None = None, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        """`elsewhere`: where an engine writes that is launched while the disk of `path` is full."""
        self.path = path
        self._places = (path,) if elsewhere is None else (path, elsewhere)
        self._max_bytes = max_bytes
        self._room_bytes = 0
        """How large the file may grow, by our last look."""
        self._dropped_bytes = 0
        """Output that nobody can read any more, since the disk became full."""

    @property
    def size(self) -> int:
        """In bytes; 0 where there is no such file."""
        return size_of(self.path)

    def begin(self) -> None:
        """Choose where the engine that is about to be spawned writes."""
        home, *others = self._places
        for place in self._places:
            self.path, self._room_bytes = place, reserve(place, self._max_bytes + MARGIN_BYTES)
            if self.size + LAST_WORDS_BYTES <= self._room_bytes:
                break
        else:
            self.path = home
        if self.path != home:
            log.warning(
                "cannot write to %s: the disk is full; the output goes to %s until the next start: "
                "free some space",
                home,
                self.path,
            )
        else:
            for other in others:
                with contextlib.suppress(OSError):
                    other.unlink(missing_ok=True)
                    older(other).unlink(missing_ok=True)

    def resume(self, path: Path) -> None:
        """An engine that was launched by an earlier run of the daemon writes to `path`."""
        self.path, self._room_bytes = path, reserve(path, self._max_bytes + MARGIN_BYTES)

    def read(self, start: int, count: int) -> bytes:
        """Up to `count` bytes from `start` on.

        Raises:
            OSError: it cannot be read.
        """
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(count)

    # ---- when it is full -----------------------------------------------------------------------------------

    def is_full(self) -> bool:
        """Whether `rotate` is due. One system call."""
        return self._is_full(self.size)

    def _is_full(self, size: int) -> bool:
        is_cramped = size + LAST_WORDS_BYTES > self._room_bytes
        return size > self._max_bytes or (is_cramped and size > LAST_WORDS_BYTES)

    def rotate(self, done: int, most: int) -> Unread | None:
        """Keep its end beside it and empty it in place, or drop the old output where there is no room for it.

        Returns what came after byte `done`, up to which it was read, at `most` so many bytes of it; None
        where it turned out to have room. Blocks for as long as the copy takes.
        """
        self._room_bytes = reserve(self.path, self._max_bytes + MARGIN_BYTES)
        if not self._is_full(self.size):
            return None
        try:
            self._keep_end()
        except OSError as why:
            self._drop_old(why)
        else:
            self._tell_dropped()
        unread = self._unread(done, most)
        with contextlib.suppress(OSError):
            os.truncate(self.path, 0)
        self._room_bytes = reserve(self.path, self._max_bytes + MARGIN_BYTES)
        return unread

    def _unread(self, done: int, most: int) -> Unread:
        start = max(done, self.size - most)
        try:
            return Unread(start - done, self.read(start, 2 * most))  # and what is written meanwhile
        except OSError:
            return Unread(self.size - done, b"")

    def _keep_end(self) -> None:
        with self.path.open("rb") as source, open(older(self.path), "wb", opener=private) as kept:
            start = max(0, self.size - self._max_bytes)
            copy(source.fileno(), kept.fileno(), start, self._max_bytes)

    def _drop_old(self, why: OSError) -> None:
        if self._dropped_bytes == 0:
            what = os.strerror(why.errno or errno.EIO)
            log.warning("cannot keep old output of %s: %s; free some space", self.path, what)
        self._dropped_bytes += self.size
        older(self.path).unlink(missing_ok=True)

    def _tell_dropped(self) -> None:
        if self._dropped_bytes:
            log.warning("%d bytes of old output of %s were dropped", self._dropped_bytes, self.path)
        self._dropped_bytes = 0


def older(path: Path) -> Path:
    """Where the output before that in `path` is."""
    return path.with_name(path.name + ".1")


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def private(path: str, flags: int) -> int:
    """An opener: a new file is for us alone."""
    return os.open(path, flags, 0o600)


def copy(source: int, target: int, start: int, count: int) -> None:
    """Copy up to `count` bytes between files without holding the interpreter."""
    while count > 0 and (sent := os.sendfile(target, source, start, count)):
        start += sent
        count -= sent
