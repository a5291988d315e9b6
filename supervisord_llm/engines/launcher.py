"""The runtime's Launcher: from an order to a process with a log, a record and a place of its own.

Or from the record that an earlier run of the daemon left to the process that outlived it.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from supervisord_llm.config.model import FlagValue, Model, Paths
from supervisord_llm.core.effects import StartEngine
from supervisord_llm.engines import adapters, listening, ownership, records, tool_parsers
from supervisord_llm.engines.cgroup import Leaf, no_leaf
from supervisord_llm.engines.command import Place, shell_line, vllm_command
from supervisord_llm.engines.engine import LocalEngine
from supervisord_llm.engines.logs import LogTail
from supervisord_llm.engines.network import OPEN, Network
from supervisord_llm.engines.process import EngineProcess, spawn, take_over
from supervisord_llm.engines.records import Record, RecordFile
from supervisord_llm.engines.template import find_program, takes_port, template_command
from supervisord_llm.errors import LaunchError
from supervisord_llm.runtime.ports import Report, Usage

log = logging.getLogger("llm_supervisor.engines")


class LocalLauncher:
    """Launches `vllm serve`, or a model's own command; what a launch needs to know is looked up then."""

    def __init__(
        self,
        paths: Paths,
        *,
        model_of: Callable[[str], Model],
        weights_of: Callable[[str], str],
        venv_of: Callable[[str], Path],
        hub: Path | None = None,
        cgroup_root: Path | None = None,
        network: Network = OPEN,
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
            network: what keeps engines from the network here (network.look()).
            base_env: what engines may inherit a part of; our own environment unless given.
        """
        self._paths = paths
        self._model_of = model_of
        self._weights_of = weights_of
        self._venv_of = venv_of
        self._hub = hub or paths.hub
        self._cgroup_root = cgroup_root
        self._network = network
        self._base_env = os.environ if base_env is None else base_env
        self._wsl = "microsoft" in os.uname().release.lower()
        self._term_timeout_s = term_timeout_s
        self._kill_timeout_s = kill_timeout_s
        self._tails: dict[str, LogTail] = {}
        self._live: dict[str, LocalEngine] = {}
        """By model; from launch or adoption until every process is reaped."""
        self._told: set[str] = set()
        """Limits that do not hold, and servers that all can reach, as logged."""

    def tail(self, model: str) -> LogTail:
        """The model's output, of this launch and of those before."""
        if model not in self._tails:
            make_private(self._paths.logs)
            name = f"{model}.log"
            self._tails[model] = LogTail(model, self._paths.logs / name, self._paths.engines / name)
        return self._tails[model]

    def owners(self, pids: Iterable[int]) -> dict[int, str]:
        """The model whose engine each of `pids` belongs to; others are left out. From any thread."""
        return ownership.owners(pids, {model: engine.process.tree for model, engine in [*self._live.items()]})

    def usage(self, model: str) -> Usage | None:
        """What the model's engine takes of the host; None where it has no engine. Reads two small files."""
        engine = self._live.get(model)
        return None if engine is None else engine.usage()

    def tool_parser(self, model: str) -> str:
        """The parser of tool calls that the model's engine was launched with; "" where it has none."""
        engine = self._live.get(model)
        return "" if engine is None else tool_parsers.parser_in(engine.file.record.command)

    def write_records(self) -> None:
        """Try again where a full disk was in the way."""
        for engine in self._live.values():
            engine.file.retry()

    async def launch(self, order: StartEngine, report: Report) -> LocalEngine:
        """Spawn the engine of `order.model` as ordered.

        Raises:
            LaunchError: it could not be spawned.
            ProvisionError: what it takes is not there any more.
        """
        model = order.model
        marker = f"{order.launch}-{uuid.uuid4().hex[:16]}"
        config = self._model_of(model)
        place = await self._place(config, order, marker)
        words = template_command if config.engine == "command" else vllm_command
        command = words(config, place, self._base_env)
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(shutil.rmtree, place.scratch, ignore_errors=True)
            try:
                make_private(self._paths.engines)
                make_private(place.scratch)
                place.cache.mkdir(parents=True, exist_ok=True)
                tail = self.tail(model)
            except OSError as why:
                raise LaunchError(f"cannot launch {model}: {why}; check [paths] and their owner") from why
            leaf = self._make_leaf(model, marker)
            if leaf is not None:
                undo.callback(leaf.remove)
            self._limit(config, leaf)
            first_line, log_begun = tail.lines_seen, tail.start()
            undo.push_async_callback(tail.finish)
            try:
                isolated = self._network.enters(config)
                process = spawn(command, socket=place.socket, log=tail.path, leaf=leaf, isolated=isolated)
            except OSError as why:
                raise LaunchError(f"cannot launch {model}: {why.strerror}; see `ulimit -a`") from why
            undo.pop_all()  # it is for the engine's end to do all that
        record = Record(
            model=model,
            marker=marker,
            pid=process.pid,
            start_time=process.tree.start_time,
            boot_id=records.boot_id(),
            socket=str(place.socket),
            port=place.port,
            leaf=None if leaf is None else str(leaf.path),
            started_at=time.time(),
            log=str(tail.path),
            log_begun=log_begun,
            launch=order.launch,
            gpus=order.gpus,
            granted_bytes=order.granted_bytes,
            kv_bytes=order.kv_bytes,
            signature=order.signature,
            sleep_level=config.sleep_level,
            adjusted=order.adjusted,
            command=shell_line(command),
        )
        return self._own(config, process, tail, record, report, first_line)

    async def _place(self, config: Model, order: StartEngine, marker: str) -> Place:
        model, weights, extra_flags = config.name, "", dict[str, FlagValue]()
        if config.engine == "command":
            executable = find_program(config, self._base_env)
        else:
            weights, venv = self._weights_of(model), self._venv_of(model)
            executable = venv / "bin" / "vllm"
            extra_flags |= await asyncio.to_thread(tool_parsers.flags_for, config, Path(weights), venv)
            places = {each.name: self._weights_of(each.name) for each in config.adapters}
            extra_flags |= await asyncio.to_thread(adapters.flags_for, config, places)
        # From here to the engine nothing waits, so that no other launch gets the same port.
        taken = {port for engine in self._live.values() if (port := engine.file.record.port) is not None}
        return Place(
            executable=executable,
            socket=records.socket_path(self._paths.engines, model),
            port=listening.free_port(taken) if takes_port(config) else None,
            weights=weights,
            hub=self._hub,
            cache=self._paths.cache / "engines" / model,
            scratch=records.scratch_path(self._paths.engines, marker),
            gpus=order.gpus,
            gpu_memory_utilization=order.memory_fraction,
            kv_bytes=order.kv_bytes,
            adjusted=order.adjusted,
            extra_flags=extra_flags,
            marker=marker,
            wsl=self._wsl,
            isolated="isolated" in (config.network, self._network.reach(config).network),
        )

    async def adopt(self, record: Record, report: Report) -> LocalEngine:
        """Take over the engine of `record`, which an earlier run of the daemon launched, as it is.

        Only what adoption.adoptable() found fit, and what records.sweep() was told to keep.

        Raises:
            LaunchError: it has ended meanwhile, or cannot be watched; what was left of it is ended, too.
        """
        tree = record.tree()
        await asyncio.to_thread(tree.members)  # remembers who is who, for the day that parents die
        try:
            tail = self.tail(record.model)
            process = take_over(tree, Path(record.socket))
        except (LaunchError, OSError) as why:
            is_gone, sentence = await asyncio.to_thread(records.end, record)
            if is_gone:
                RecordFile(self._paths.engines, record).remove()
                Path(record.socket).unlink(missing_ok=True)
            raise LaunchError(f"{why}; {sentence}") from why
        # Those it was launched with; lost if the unit turned controllers off for the restart.
        config = self._model_of(record.model)
        await asyncio.to_thread(self._limit, config, tree.leaf)
        log_path = Path(record.log) if record.log else None
        first_line = tail.resume(record.log_begun, log_path)
        return self._own(config, process, tail, record, report, first_line)

    async def leave(self) -> None:
        """Let go of the engines, which run on: another launcher may adopt them, in this process, too."""
        for engine in [*self._live.values()]:
            await engine.leave()
        self._live.clear()

    def _own(
        self,
        config: Model,
        process: EngineProcess,
        tail: LogTail,
        record: Record,
        report: Report,
        first_line: int,
    ) -> LocalEngine:
        """Make an engine of a process, remember it on disk, and forget it when it is gone."""
        model = record.model
        file = RecordFile(self._paths.engines, record)
        engine = self._live[model] = LocalEngine(
            process,
            tail,
            file,
            report,
            config,
            self._warn_once,
            first_line=first_line,
            term_timeout_s=self._term_timeout_s,
            kill_timeout_s=self._kill_timeout_s,
        )

        def forget() -> None:
            if self._live.get(model) is engine:
                del self._live[model]
            file.remove()

        process.on_gone = forget
        file.keep()
        return engine

    def _make_leaf(self, model: str, marker: str) -> Leaf | None:
        if self._cgroup_root is None:
            return None
        try:
            return Leaf.create(self._cgroup_root, records.leaf_name(model, marker))
        except OSError:
            return None  # the tree is found without it, too

    def _limit(self, config: Model, leaf: Leaf | None) -> None:
        """Limit the engine of a model; what cannot be is told once."""
        told = no_leaf(config.limits) if leaf is None else leaf.limit(config.limits)
        for sentence in told:
            self._warn_once(f"models.{config.name}.limits: {sentence}")

    def _warn_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            log.warning("%s", line)


def make_private(directory: Path) -> None:
    """Make it for us alone, or make ours so: who reaches an engine's socket or log reaches its prompts."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = directory.stat()
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        directory.chmod(0o700)
