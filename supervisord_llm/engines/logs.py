"""What an engine says: one bounded file a model, tailed into a bounded buffer, callbacks and our own log.

The engine writes to the file itself, not to a pipe of ours: it must neither block nor die when the daemon
does. So nothing here can slow an engine down; when it writes faster than we care to read, we skip.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from supervisord_llm.engines.logfile import MAX_FILE_BYTES, LogFile, older

SLICE_BYTES = 64 * 1024
MAX_BEHIND_BYTES = 1024 * 1024
MAX_LINE_BYTES = 4096
KEPT_LINES = 2000
BATCH_LINES = 64  # handled between two turns of the loop: below a millisecond
BUSY_POLL_S, QUIET_POLL_S, QUIET_AFTER_S = 0.05, 0.25, 2.0
LOGGED_LINES_PER_S = 200
WAITING_LINES = 1000

ENGINE_LOG = logging.getLogger("llm_supervisor.engine")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
LEVEL = re.compile(r"^(?:\(\w+ pid=\d+\) )?(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")


class LogTail:
    """Follows the log file of one model. It outlives the model's engines, and so do their last words."""

    def __init__(
        self, model: str, path: Path, elsewhere: Path | None = None, *, max_bytes: int = MAX_FILE_BYTES
    ) -> None:
        """`elsewhere`: where an engine writes that is launched while the disk of `path` is full."""
        self.model = model
        self.lines_seen = 0
        self.on_line: Callable[[str], None] = lambda line: None
        self._file = LogFile(path, elsewhere, max_bytes=max_bytes)
        self._ring: deque[str] = deque(maxlen=KEPT_LINES)
        self._splitter = LineSplitter()
        self._followers: set[asyncio.Queue[str]] = set()
        self._forward = RateLimitedLog(model)
        self._offset = 0
        self._task: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()
        """Held from a read until its lines are handed on: they stay in order, and none is lost."""
        self._load_past()

    def _load_past(self) -> None:
        """Fill the buffer with the end of what an earlier life left in the file."""
        with contextlib.suppress(OSError):
            start = max(0, self._file.size - SLICE_BYTES)
            self._ring.extend(LineSplitter().feed(self._file.read(start, SLICE_BYTES)))

    @property
    def path(self) -> Path:
        """The file that the present engine writes to, or the last one did."""
        return self._file.path

    def last(self, count: int) -> list[str]:
        """The last `count` lines, oldest first."""
        return list(self._ring)[-count:] if count > 0 else []

    def since(self, mark: int) -> list[str]:
        """The lines after the one that was number `mark` of `lines_seen`, as far as they are still kept."""
        return self.last(min(self.lines_seen - mark, KEPT_LINES))

    async def follow(self, count: int = 0) -> AsyncIterator[str]:
        """The last `count` lines, then each new one, for ever. A reader that is too slow misses lines."""
        queue: asyncio.Queue[str] = asyncio.Queue(WAITING_LINES)
        self._followers.add(queue)
        try:
            for line in self.last(count):
                yield line
            while True:
                yield await queue.get()
        finally:
            self._followers.discard(queue)

    # ---- while an engine writes ----------------------------------------------------------------------------

    def start(self) -> int:
        """Begin to follow from the present end of the file, and return it in bytes.

        Call it before the engine is spawned: `path` is chosen here.
        """
        self._file.begin()
        begun = self._offset = self._file.size
        self._splitter = LineSplitter()
        self._begin()
        return begun

    def resume(self, begun: int, path: Path | None = None) -> int:
        """Begin to follow an engine that wrote from byte `begun` of `path` on while we were not there.

        What it has written is kept as far as there is room, and told to nobody: the daemon before us did so
        with most of it. Returns what `lines_seen` was before its first line. Blocks for a read of 64 KiB.
        """
        if path is not None:
            self._file.resume(path)
        self._ring.clear()
        self._splitter = LineSplitter()
        mark = self.lines_seen
        with contextlib.suppress(OSError):
            end = self._file.size
            if begun > end:  # it was rotated since
                begun = 0
            start = max(0, end - SLICE_BYTES)
            data = self._file.read(start, end - start)
            self._offset = start + len(data)
            before = max(0, begun - start)
            self._ring.extend(LineSplitter(in_line=start > 0).feed(data[:before]))
            self._splitter = LineSplitter(in_line=start > begun)
            lines = self._splitter.feed(data[before:])
            self._ring.extend(lines)
            self.lines_seen += len(lines)
        self._begin()
        return mark

    def _begin(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._poll(), name=f"log of {self.model}")
        self._task.add_done_callback(self._report_death)

    def _report_death(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (why := task.exception()) is not None:
            logging.getLogger(__name__).error("cannot follow %s any more", self.path, exc_info=why)

    async def finish(self) -> None:
        """Read what the engine, which is dead now, wrote last; then follow no longer."""
        await self.leave()
        while await self._read_slice():
            pass
        for line in self._splitter.flush():
            self._emit(line)

    async def leave(self) -> None:
        """Follow no longer."""
        if self._task is not None:
            async with self._reading:
                self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def catch_up(self) -> None:
        """Hand on all that is written by now, without waiting for the next look."""
        end = self._file.size
        while self._offset < end and await self._read_slice():
            pass

    async def _poll(self) -> None:
        busy_until = time.monotonic() + QUIET_AFTER_S
        while True:
            now = time.monotonic()
            if await self._read_slice():
                busy_until = now + QUIET_AFTER_S
            elif now < busy_until:
                for line in self._splitter.flush_bar():
                    self._emit(line)
            if self._file.is_full():
                await self._rotate()
            await asyncio.sleep(BUSY_POLL_S if now < busy_until else QUIET_POLL_S)

    async def _read_slice(self) -> bool:
        """Read and hand on at most 64 KiB; False at the end of the file."""
        async with self._reading:
            return await self._hand_on_slice()

    async def _hand_on_slice(self) -> bool:
        size = self._file.size
        if size < self._offset:  # truncated by somebody else
            self._offset = 0
        behind = size - self._offset
        if behind == 0:
            return False
        if behind > MAX_BEHIND_BYTES:
            self._offset = size - SLICE_BYTES
            self._leave_out(behind - SLICE_BYTES, self.path)
        try:
            data = self._file.read(self._offset, SLICE_BYTES)
        except OSError:
            return False
        self._offset += len(data)
        for index, line in enumerate(self._splitter.feed(data)):
            self._emit(line)
            if index % BATCH_LINES == BATCH_LINES - 1:
                await asyncio.sleep(0)
        return bool(data)

    def _leave_out(self, count: int, where: Path) -> None:
        """Say that `count` bytes are not read."""
        self._splitter = LineSplitter(in_line=True)
        self._emit(f"[{count} bytes of output left out here: see {where}]")

    def _emit(self, line: str) -> None:
        self.lines_seen += 1
        self._ring.append(line)
        self.on_line(line)
        self._forward(line)
        for queue in self._followers:
            if not queue.full():
                queue.put_nowait(line)

    async def _rotate(self) -> None:
        async with self._reading:
            unread = await asyncio.to_thread(self._file.rotate, self._offset, SLICE_BYTES)
            if unread is None:
                return
            self._offset = 0
            if unread.left_out > 0:
                self._leave_out(unread.left_out, older(self.path))
            for line in self._splitter.feed(unread.last):
                self._emit(line)


class LineSplitter:
    """Bytes to clean lines: split at \\n and \\r (progress bars), colours and control bytes gone, capped."""

    def __init__(self, *, in_line: bool = False) -> None:
        self._partial = b""
        self._after_return = False
        self._overlong = in_line
        """The rest of this line is dropped."""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        pieces = (self._partial + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n\r").split(b"\n")
        self._partial = pieces.pop()
        lines: list[str] = []
        for piece in pieces:
            if self._overlong:
                self._overlong = False
            elif text := clean(piece):
                lines.append(text)
        if len(self._partial) > MAX_LINE_BYTES:
            if not self._overlong and (text := clean(self._partial)):
                lines.append(text)
            self._overlong = True
            self._partial = b""
        return lines

    def flush_bar(self) -> list[str]:
        """A progress bar has no end of its own until the next one: give it once the output pauses."""
        return self.flush() if self._partial.startswith(b"\r") else []

    def flush(self) -> list[str]:
        """What is left without an end of line."""
        text = "" if self._overlong else clean(self._partial)
        self._partial, self._overlong = b"", False
        return [text] if text else []


def clean(raw: bytes) -> str:
    return ANSI.sub("", raw[:MAX_LINE_BYTES].decode(errors="replace")).rstrip()


class RateLimitedLog:
    """Hands an engine's lines to the daemon's own log, at most 200 a second; says how many it left out."""

    def __init__(self, model: str) -> None:
        self._extra = {"model": model}
        self._second = 0
        self._count = 0

    def __call__(self, line: str) -> None:
        second = int(time.monotonic())
        if second != self._second:
            if self._count > LOGGED_LINES_PER_S:
                left_out = self._count - LOGGED_LINES_PER_S
                ENGINE_LOG.warning("%d lines of output left out here", left_out, extra=self._extra)
            self._second, self._count = second, 0
        self._count += 1
        if self._count <= LOGGED_LINES_PER_S:
            ENGINE_LOG.log(level_of(line), "%s", line, extra=self._extra)


def level_of(line: str) -> int:
    """The logging level that vLLM gave the line; INFO where it gave none."""
    found = LEVEL.match(line)
    return getattr(logging, found[1]) if found else logging.INFO
