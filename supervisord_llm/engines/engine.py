"""The runtime's Engine for vLLM: joins process, log, probe, sleep mode and metrics into one life."""

import asyncio
import errno
import time
from pathlib import Path

import aiohttp

from supervisord_llm.engines import counters, oom, probe
from supervisord_llm.engines.diagnose import diagnose
from supervisord_llm.engines.kv_cache import KvCacheSize
from supervisord_llm.engines.logs import LogTail
from supervisord_llm.engines.process import EngineProcess
from supervisord_llm.engines.progress import SIGN_OF_LIFE, progress_of
from supervisord_llm.engines.records import RecordFile
from supervisord_llm.engines.sleep import Sleeper
from supervisord_llm.errors import EngineError
from supervisord_llm.runtime.ports import Backend, Exit, Progressing, Report, Usage

TAIL_LINES = 20
SIGN_OF_LIFE_S = 1.0
METRICS_S = 5.0


class VllmEngine:
    """One vLLM, launched or adopted, alive or not."""

    def __init__(
        self,
        process: EngineProcess,
        tail: LogTail,
        file: RecordFile,
        report: Report,
        *,
        first_line: int,
        term_timeout_s: float,
        kill_timeout_s: float,
    ) -> None:
        """`first_line`: what `tail.lines_seen` was before the launch."""
        self.process = process
        self._tail = tail
        self._first_line = first_line
        self.file = file
        self._report = report
        self._reported_at = 0.0
        self._kv_cache = KvCacheSize()
        record = file.record
        self._sleeper = Sleeper(
            record.model, process.socket, record.canary, lambda canary: file.keep(canary=canary)
        )
        self._has_told = False
        """Its metrics were read once, so that their absence is news."""
        self._was_killed = False
        self._kills_before = oom.kills_on_host()
        self._term_timeout_s = term_timeout_s
        self._kill_timeout_s = kill_timeout_s
        for line in tail.since(first_line):  # while nobody was there
            self._kv_cache.read(line)
        tail.on_line = self._on_line
        self._exit = asyncio.create_task(self._conclude(), name=f"end of engine {process.pid}")

    @property
    def socket(self) -> Path:
        return self.process.socket

    @property
    def backend(self) -> Backend:
        return Backend(self.socket)

    @property
    def kv_bytes(self) -> int | None:
        """The size of its KV cache on each GPU: as ordered, else as its log has told."""
        record = self.file.record
        if not record.gpus:
            return None
        return self._kv_cache.bytes if record.kv_bytes is None else record.kv_bytes

    def usage(self) -> Usage:
        """What it takes of the host, as its cgroup tells."""
        leaf = self.process.tree.leaf
        return Usage() if leaf is None else leaf.usage()

    async def ready(self) -> None:
        """Return within 25 ms of /health answering 200. Never returns if it never does."""
        await probe.wait_ready(self.socket)
        if self.file.record.gpus and self.file.record.kv_bytes is None:
            await self._tail.catch_up()  # kv_bytes is asked for next
            self.file.keep(kv_bytes=self.kv_bytes)

    async def wait(self) -> Exit:
        """Return once every process is reaped, with the reason and the last lines."""
        return await asyncio.shield(self._exit)

    async def sleep(self, level: int) -> None:
        """
        Raises:
            EngineError: it would not, or did not in time.
        """
        await self._sleeper.sleep(level)

    async def wake(self, level: int) -> None:
        """
        Raises:
            EngineError: it would not, did not in time, or answers otherwise than before it slept.
        """
        await self._sleeper.wake(level)

    async def progressing(self) -> Progressing | None:
        """What its metrics say of its work; None where they have never said anything.

        Raises:
            EngineError: they did before, and do not within 5 s now.
        """
        try:
            async with asyncio.timeout(METRICS_S):
                found = await counters.progressing(self.socket)
        except (aiohttp.ClientError, OSError) as why:
            is_ours = getattr(why, "errno", None) in (errno.EMFILE, errno.ENFILE)  # a fault of the daemon
            if not self._has_told or is_ours:
                return None
            reason = f"no answer within {METRICS_S:g} s" if isinstance(why, TimeoutError) else str(why)
            model = self.file.record.model
            raise EngineError(
                f"cannot read the metrics of {model}: {reason}; see `llm-supervisor logs {model}`"
            ) from why
        self._has_told |= found is not None
        return found

    async def stop(self, *, kill: bool, dump: bool = False) -> None:
        """End it; see EngineProcess.stop."""
        self._was_killed |= kill
        await self.process.stop(
            term_timeout_s=0 if kill else self._term_timeout_s,
            kill_timeout_s=self._kill_timeout_s,
            dump=dump,
        )
        if self.process.gone:
            await self.wait()

    async def leave(self) -> None:
        """Own it no longer; it runs on, to be taken over anew."""
        self.process.leave()
        if not self.process.gone:
            self._exit.cancel()
            await self._tail.leave()

    def _on_line(self, line: str) -> None:
        """Report every phase, and that there is life at all once a second."""
        self._kv_cache.read(line)
        progress = progress_of(line)
        now = time.monotonic()
        if progress != SIGN_OF_LIFE or now - self._reported_at >= SIGN_OF_LIFE_S:
            self._reported_at = now
            self._report(progress)

    async def _conclude(self) -> Exit:
        code = await self.process.wait()
        await self._tail.finish()
        self._tail.on_line = lambda line: None
        lines = self._tail.since(self._first_line)
        asked = self.process.asked_to_stop
        cause = oom.cause_of(
            lines, code, self._killed_by_kernel(), term=asked, kill=asked and self._was_killed
        )
        reason = "stopped as asked" if asked else diagnose(lines, code, cause)
        command = self.file.record.command
        return Exit(code, reason, tail=tuple(lines[-TAIL_LINES:]), command=command, cause=cause)

    def _killed_by_kernel(self) -> oom.KernelCount:
        now = oom.kills_on_host()
        grown = None if now is None or self._kills_before is None else now - self._kills_before
        return oom.KernelCount(of_engine=self.process.oom_kills, on_host=grown)
