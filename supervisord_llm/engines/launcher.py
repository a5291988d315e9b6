"""The runtime's Launcher for vLLM: from an order to a process with a log, a record and a place of its own."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from supervisord_llm.config.model import Model, Paths
from supervisord_llm.core.effects import StartEngine
from supervisord_llm.engines import ownership, records
from supervisord_llm.engines.cgroup import Leaf
from supervisord_llm.engines.command import Place, shell_line, vllm_command
from supervisord_llm.engines.engine import VllmEngine
from supervisord_llm.engines.logs import LogTail
from supervisord_llm.engines.process import spawn
from supervisord_llm.errors import LaunchError
from supervisord_llm.runtime.ports import Report


class VllmLauncher:
    """Launches `vllm serve` for the models of the config; what a launch needs to know is looked up then."""

    def __init__(
        self,
        paths: Paths,
        *,
        model_of: Callable[[str], Model],
        weights_of: Callable[[str], str],
        venv_of: Callable[[str], Path],
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
            hub: the Hugging Face cache; `paths.hub` unless given.
            cgroup_root: a delegated cgroup (cgroup.delegated_root()) to make a leaf per launch in.
            base_env: what engines may inherit a part of; our own environment unless given.
        """
        self._paths = paths
        self._model_of = model_of
        self._weights_of = weights_of
        self._venv_of = venv_of
        self._hub = hub or paths.hub
        self._cgroup_root = cgroup_root
        self._base_env = os.environ if base_env is None else base_env
        self._wsl = "microsoft" in os.uname().release.lower()
        self._term_timeout_s = term_timeout_s
        self._kill_timeout_s = kill_timeout_s
        self._tails: dict[str, LogTail] = {}
        self._live: dict[str, VllmEngine] = {}
        """By model; from launch until every process is reaped."""

    def tail(self, model: str) -> LogTail:
        """The model's output, of this launch and of those before."""
        if model not in self._tails:
            make_private(self._paths.logs)
            self._tails[model] = LogTail(model, self._paths.logs / f"{model}.log")
        return self._tails[model]

    def owners(self, pids: Iterable[int]) -> dict[int, str]:
        """The model whose engine each of `pids` belongs to; others are left out. From any thread."""
        return ownership.owners(pids, {model: engine.process.tree for model, engine in [*self._live.items()]})

    async def launch(self, order: StartEngine, report: Report) -> VllmEngine:
        """Spawn the engine of `order.model` as ordered.

        Raises:
            LaunchError: it could not be spawned.
        """
        model = order.model
        marker = f"{order.launch}-{uuid.uuid4().hex[:16]}"
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
            gpus=order.gpus,
            gpu_memory_utilization=order.memory_fraction,
            kv_bytes=order.kv_bytes,
            adjusted=order.adjusted,
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
        engine = self._live[model] = VllmEngine(
            process,
            tail,
            order,
            shell_line(command),
            report,
            term_timeout_s=self._term_timeout_s,
            kill_timeout_s=self._kill_timeout_s,
        )
        engines = self._paths.engines

        def forget() -> None:
            if self._live.get(model) is engine:
                del self._live[model]
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


def make_private(directory: Path) -> None:
    """Make it for us alone, or make ours so: who reaches an engine's socket or log reaches its prompts."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = directory.stat()
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        directory.chmod(0o700)
