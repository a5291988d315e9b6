"""The runtime's Engine: joins process, log, probe, sleep mode and metrics into one life."""

import asyncio
import errno
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp

from supervisord_llm.config.model import Model
from supervisord_llm.core.events import Cause
from supervisord_llm.engines import counters, listening, oom, probe
from supervisord_llm.engines.ask import ask
from supervisord_llm.engines.diagnose import diagnose, diagnose_other
from supervisord_llm.engines.kv_cache import KvCacheSize
from supervisord_llm.engines.logs import LogTail
from supervisord_llm.engines.process import EngineProcess
from supervisord_llm.engines.progress import SIGN_OF_LIFE, progress_of
from supervisord_llm.engines.records import RecordFile
from supervisord_llm.engines.sleep import Sleeper
from supervisord_llm.errors import EngineError
from supervisord_llm.runtime.ports import Backend, Exit, InFlight, Progressing, Report, Usage

TAIL_LINES = 20
SIGN_OF_LIFE_S = 1.0
METRICS_S = 5.0
AFTERMATH_S = 0.1
"""Within which it is known here that a request has ended."""


class LocalEngine:
    """One vLLM, or other server of a command, launched or adopted, alive or not."""

    def __init__(
        self,
        process: EngineProcess,
        tail: LogTail,
        file: RecordFile,
        report: Report,
        model: Model,
        warn: Callable[[str], None],
        *,
        first_line: int,
        term_timeout_s: float,
        kill_timeout_s: float,
    ) -> None:
        """
        Args:
            model: as configured; it tells vLLM from other servers, and where those tell their health.
            warn: takes a sentence that is to be logged once.
            first_line: what `tail.lines_seen` was before the launch.
        """
        self.process = process
        self._tail = tail
        self._first_line = first_line
        self.file = file
        self._report = report
        self._reported_at = 0.0
        self._kv_cache = KvCacheSize()
        self._is_vllm = model.engine == "vllm"
        self._health = model.health
        self._warn = warn
        record = file.record
        self._sleeper = Sleeper(
            record.model, record.backend, record.canary, lambda canary: file.keep(canary=canary)
        )
        self._fault = ""
        """Why we ended it, where it could not know."""
        self._minding: asyncio.Task[None] | None = None
        """Sees that its port stays its own."""
        self._has_told = False
        """Its metrics were read once, so that their absence is news."""
        self._has_no_metrics = False
        """Another server than vLLM, without vLLM's metrics: its health is asked in their place."""
        self._answers = 0
        self._asked_with: frozenset[int] = frozenset()
        """What was in flight when its health was asked last."""
        self._answers_beside = 0
        """While it worked on so many requests it answered, so that silence is news."""
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
        return self.file.record.backend

    @property
    def kv_bytes(self) -> int | None:
        """The size of its KV cache on each GPU: as ordered, else as its log has told."""
        record = self.file.record
        if not record.gpus or not self._is_vllm:
            return None
        return self._kv_cache.bytes if record.kv_bytes is None else record.kv_bytes

    def usage(self) -> Usage:
        """What it takes of the host, as its cgroup tells."""
        leaf = self.process.tree.leaf
        return Usage() if leaf is None else leaf.usage()

    async def ready(self) -> None:
        """Return within 25 ms of /health answering 200. Never returns if it never does.

        Other servers than vLLM, which may answer before that, are asked less often, and at a port nobody's
        answer counts but the engine's own; one whose port is a stranger's is ended.
        """
        await probe.wait_ready(self.backend, self._health)
        if self.file.record.port is not None:
            await self._claim(self.file.record.port)
        if self._is_vllm and self.file.record.gpus and self.file.record.kv_bytes is None:
            await self._tail.catch_up()  # kv_bytes is asked for next
            self.file.keep(kv_bytes=self.kv_bytes)

    async def _claim(self, port: int) -> None:
        """Return once it is the engine itself that answers at its port, and mind that it stays so."""
        while (found := await listening.looked(port, self.process.tree)).why_not:
            if found.strangers:
                await self._rob(found)
                await asyncio.Event().wait()  # for ever: `wait` tells of its end
            await probe.wait_ready(self.backend, self._health)
        if found.exposed:
            where = " and ".join(found.exposed)
            self._warn(
                f"models.{self.file.record.model}.command: its server listens on {where}, where others reach "
                "it past all keys; have it listen on 127.0.0.1 or on {socket}"
            )
        if self._minding is None:
            self._minding = asyncio.create_task(self._mind(port), name=f"port of engine {self.process.pid}")

    async def _mind(self, port: int) -> None:
        """End it where its server is gone under a leader that lives: nobody else would notice."""
        found = await listening.lost(port, self.process.tree)
        if not self.process.asked_to_stop:
            await self._rob(found)

    async def _rob(self, found: listening.Listening) -> None:
        self._fault = (
            f"cannot use the port {self.file.record.port}: {found.why_not}; the next start has another"
        )
        await self.stop(kill=True)

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

    async def progressing(self, in_flight: InFlight = frozenset) -> Progressing | None:
        """What its metrics say of its work, or else, that it answers; None where neither has ever told.

        Raises:
            EngineError: it did before, and does not within 5 s now.
        """
        try:
            async with asyncio.timeout(METRICS_S):
                return await self._told(in_flight)
        except (aiohttp.ClientError, OSError) as why:
            is_ours = getattr(why, "errno", None) in (errno.EMFILE, errno.ENFILE)  # a fault of the daemon
            if is_ours or not (self._has_told or self._answers_beside):
                return None
            if not self._has_told and len(in_flight()) > self._answers_beside:
                return self._alive(in_flight)  # for all that is known
            reason = f"no answer within {METRICS_S:g} s" if isinstance(why, TimeoutError) else str(why)
            model = self.file.record.model
            raise EngineError(
                f"cannot tell how far {model} is: {reason}; see `llm-supervisor logs {model}`"
            ) from why

    async def _told(self, in_flight: InFlight) -> Progressing | None:
        if not self._has_no_metrics:
            try:
                found = await counters.progressing(self.backend)
            except EngineError:
                if self._is_vllm or self._has_told:
                    raise
                found = None  # it has something else there
            if found is not None or self._is_vllm or self._has_told:
                self._has_told |= found is not None
                return found
            self._has_no_metrics = True
        return await self._answered(in_flight)

    async def _answered(self, in_flight: InFlight) -> Progressing:
        """A sign of life, whatever it answers.

        Many a server cannot answer while it works, or not beside so many requests, and its silence then says
        nothing. That it can is known once it has answered while the same requests were in flight since the
        time before: had it been between two of them, one would have ended.
        """
        before, self._asked_with = self._asked_with, in_flight()
        await ask(self.backend, "GET", self._health)
        await asyncio.sleep(AFTERMATH_S)
        if before == in_flight():
            self._answers_beside = max(self._answers_beside, len(before))
        return self._alive(in_flight)

    def _alive(self, in_flight: InFlight) -> Progressing:
        self._answers += 1
        return Progressing(len(in_flight()), self._answers)

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
        if self._minding is not None:
            self._minding.cancel()
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
        if self._minding is not None:
            self._minding.cancel()
        await self._tail.finish()
        self._tail.on_line = lambda line: None
        lines = self._tail.since(self._first_line)
        asked = self.process.asked_to_stop
        cause = oom.cause_of(
            lines, code, self._killed_by_kernel(), term=asked, kill=asked and self._was_killed
        )
        if self._is_vllm:
            reason = "stopped as asked" if asked else diagnose(lines, code, cause)
        else:
            reason = self._fault or ("stopped as asked" if asked else diagnose_other(lines, code, cause))
            if cause is Cause.GPU_OOM:  # no flag of it is ours to change
                cause = Cause.OTHER
        command = self.file.record.command
        return Exit(code, reason, tail=tuple(lines[-TAIL_LINES:]), command=command, cause=cause)

    def _killed_by_kernel(self) -> oom.KernelCount:
        now = oom.kills_on_host()
        grown = None if now is None or self._kills_before is None else now - self._kills_before
        return oom.KernelCount(of_engine=self.process.oom_kills, on_host=grown)
