"""The runtime's Launcher for vLLM: joins command, process, log, probe and record into one Engine."""

import asyncio
import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from supervisord_llm.config.model import Model, Paths
from supervisord_llm.engines import probe, records
from supervisord_llm.engines.cgroup import Leaf
from supervisord_llm.engines.command import Place, shell_line, vllm_command
from supervisord_llm.engines.diagnose import diagnose
from supervisord_llm.engines.logs import LogTail
from supervisord_llm.engines.process import EngineProcess, spawn
from supervisord_llm.engines.progress import SIGN_OF_LIFE, progress_of
from supervisord_llm.errors import LaunchError
from supervisord_llm.runtime.ports import Exit, Report

TAIL_LINES = 20
SIGN_OF_LIFE_S = 1.0


class VllmLauncher:
    """Launches `vllm serve` for the models of the config; what a launch needs to know is looked up then."""

    def __init__(
        self,
        paths: Paths,
        *,
        model_of: Callable[[str], Model],
        weights_of: Callable[[str], str],
        venv_of: Callable[[str], Path],
        grant_of: Callable[[str, tuple[int, ...]], float | None],
        hub: Path | None = None,
        cgroup_root: Path | None = None,
        base_env: Mapping[str, str] | None = None,
        term_timeout_s: float = 10.0,
        kill_timeout_s: float = 10.0,
    ) -> None:
        """
        Args:
            weights_of: the local directory of a model's weights.
            venv_of: the directory of a model's virtual environment.
            grant_of: the fraction of each GPU's memory that the model may take; None: vLLM's default.
            hub: the Hugging Face cache; `paths.hub` unless given.
            cgroup_root: a delegated cgroup (cgroup.delegated_root()) to make a leaf per launch in.
            base_env: what engines may inherit a part of; our own environment unless given.
        """
        self._paths = paths
        self._model_of = model_of
        self._weights_of = weights_of
        self._venv_of = venv_of
        self._grant_of = grant_of
        self._hub = hub or paths.hub
        self._cgroup_root = cgroup_root
        self._base_env = os.environ if base_env is None else base_env
        self._wsl = "microsoft" in os.uname().release.lower()
        self._term_timeout_s = term_timeout_s
        self._kill_timeout_s = kill_timeout_s
        self._tails: dict[str, LogTail] = {}

    def tail(self, model: str) -> LogTail:
        """The model's output, of this launch and of those before."""
        if model not in self._tails:
            make_private(self._paths.logs)
            self._tails[model] = LogTail(model, self._paths.logs / f"{model}.log")
        return self._tails[model]

    async def launch(self, model: str, launch: int, gpus: tuple[int, ...], report: Report) -> "VllmEngine":
        """Spawn the engine of `model` on `gpus` (indices; () is CPU).

        Raises:
            LaunchError: it could not be spawned.
        """
        marker = f"{launch}-{uuid.uuid4().hex[:16]}"
        cache = self._paths.cache / "engines" / model
        socket = self._paths.engines / f"{model}.sock"
        scratch = self._paths.engines / f"{records.SCRATCH}{marker[-8:]}"
        place = Place(
            weights=self._weights_of(model),
            executable=self._venv_of(model) / "bin" / "vllm",
            socket=socket,
            hub=self._hub,
            cache=cache,
            scratch=scratch,
            gpus=gpus,
            gpu_memory_utilization=self._grant_of(model, gpus) if gpus else None,
            marker=marker,
            wsl=self._wsl,
        )
        command = vllm_command(self._model_of(model), place, self._base_env)
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(shutil.rmtree, scratch, ignore_errors=True)
            try:
                make_private(self._paths.engines)
                make_private(scratch)
                cache.mkdir(parents=True, exist_ok=True)
                tail = self.tail(model)
            except OSError as why:
                raise LaunchError(f"cannot launch {model}: {why}; check [paths] and their owner") from why
            leaf = self._make_leaf(model, marker)
            if leaf is not None:
                undo.callback(leaf.remove)
            tail.start()
            undo.push_async_callback(tail.finish)
            process = spawn(command, socket=socket, log=tail.path, leaf=leaf)
            undo.pop_all()  # it is for the engine's end to do all that
        engine = VllmEngine(
            process,
            tail,
            shell_line(command),
            report,
            term_timeout_s=self._term_timeout_s,
            kill_timeout_s=self._kill_timeout_s,
        )
        engines = self._paths.engines

        def forget() -> None:
            records.remove_record(engines, model)
            shutil.rmtree(scratch, ignore_errors=True)

        process.on_gone = forget
        with contextlib.suppress(OSError):  # a full disk must not leave an engine that nobody owns
            records.write_record(engines, records.Record.of(model, process.tree, socket, command.argv))
        return engine

    def _make_leaf(self, model: str, marker: str) -> Leaf | None:
        if self._cgroup_root is None:
            return None
        try:
            return Leaf.create(self._cgroup_root, records.leaf_name(model, marker))
        except OSError:
            return None  # the tree is found without it, too


class VllmEngine:
    """One launched vLLM, alive or not. Implements the runtime's Engine."""

    def __init__(
        self,
        process: EngineProcess,
        tail: LogTail,
        command: str,
        report: Report,
        *,
        term_timeout_s: float,
        kill_timeout_s: float,
    ) -> None:
        self.process = process
        self._tail = tail
        self._first_line = tail.lines_seen
        self._command = command
        self._report = report
        self._reported_at = 0.0
        self._term_timeout_s = term_timeout_s
        self._kill_timeout_s = kill_timeout_s
        tail.on_line = self._on_line
        self._exit = asyncio.create_task(self._conclude(), name=f"end of engine {process.pid}")

    @property
    def socket(self) -> Path:
        return self.process.socket

    async def ready(self) -> None:
        """Return within 25 ms of /health answering 200. Never returns if it never does."""
        await probe.wait_ready(self.socket)

    async def wait(self) -> Exit:
        """Return once every process is reaped, with the reason and the last lines."""
        return await asyncio.shield(self._exit)

    async def stop(self, *, kill: bool) -> None:
        """End it; see EngineProcess.stop."""
        await self.process.stop(
            term_timeout_s=0 if kill else self._term_timeout_s, kill_timeout_s=self._kill_timeout_s
        )
        if self.process.gone:
            await self.wait()

    def _on_line(self, line: str) -> None:
        """Report every phase, and that there is life at all once a second."""
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
        reason = "stopped as asked" if self.process.asked_to_stop else diagnose(lines, code)
        return Exit(code, reason, tail=tuple(lines[-TAIL_LINES:]), command=self._command)


def make_private(directory: Path) -> None:
    """Make it for us alone, or make ours so: who reaches an engine's socket or log reaches its prompts."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = directory.stat()
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        directory.chmod(0o700)
