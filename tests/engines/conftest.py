"""Real launches of the fake vLLM, with a check that nothing of them is left."""

import asyncio
import ctypes
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from supervisord_llm.config.model import Model, Paths
from supervisord_llm.core.effects import StartEngine
from supervisord_llm.engines import records
from supervisord_llm.engines.adoption import adoptable
from supervisord_llm.engines.ask import ask
from supervisord_llm.engines.engine import LocalEngine
from supervisord_llm.engines.launcher import LocalLauncher
from supervisord_llm.engines.records import Record
from supervisord_llm.engines.tree import PR_SET_CHILD_SUBREAPER, become_subreaper, process_table
from supervisord_llm.runtime.ports import Progress
from tests.fakes import install_fake_vllm, make_weights


def make_model(name: str = "alpha", **fields: Any) -> Model:
    return Model(**({"name": name, "source": "/weights", "flags": {}, "env": {}} | fields))


class Fleet:
    """Launches fakes that behave as asked, and keeps what they report."""

    def __init__(self, root: Path, **options: Any) -> None:
        become_subreaper()
        self.paths = Paths(state=root / "state", cache=root / "cache", runtime=root / "run")
        self.models: dict[str, Model] = {}
        self.engines: list[LocalEngine] = []
        self.progress: list[Progress] = []
        self.venv = install_fake_vllm(root / "venv").parents[1]
        self.weights = make_weights(root / "weights")
        self.launcher = LocalLauncher(
            self.paths,
            model_of=lambda name: self.models[name],
            weights_of=lambda name: str(self.weights),
            venv_of=lambda name: self.venv,
            **{"term_timeout_s": 5.0, "kill_timeout_s": 5.0} | options,
        )
        self._launches = itertools.count()

    async def launch(
        self,
        behaviour: str = "",
        *,
        model: str = "alpha",
        config: dict[str, Any] | None = None,
        order: dict[str, Any] | None = None,
        **env: str,
    ) -> LocalEngine:
        """`config`: fields of the Model; `order`: fields of the StartEngine."""
        self.models[model] = make_model(model, **{"env": {"FAKE_VLLM": behaviour} | env, **(config or {})})
        start: dict[str, Any] = {"model": model, "launch": next(self._launches), "gpus": ()}
        engine = await self.launcher.launch(StartEngine(**start | (order or {})), self.progress.append)
        self.engines.append(engine)
        return engine

    async def ready(self, behaviour: str = "", **options: Any) -> LocalEngine:
        engine = await self.launch(behaviour, **options)
        await asyncio.wait_for(engine.ready(), 10)
        return engine

    async def said(self, text: str, model: str = "alpha") -> None:
        """Wait until the engine has written `text`."""
        deadline = time.monotonic() + 10
        while not any(text in line for line in self.launcher.tail(model).last(2000)):
            assert time.monotonic() < deadline, f"the engine never said {text!r}"
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        for engine in self.engines:
            await engine.stop(kill=True)
            assert engine.process.gone
            left = engine.process.tree.members()
            assert [each for each in left if not each.zombie or each.parent != 1] == []  # those init reaps
        assert zombies() == []


def zombies() -> list[int]:
    return [p.pid for p in process_table().values() if p.parent == os.getpid() and p.zombie]


async def stats_of(engine: LocalEngine) -> dict[str, Any]:
    answer = await ask(engine.backend, "GET", "/fake/stats")
    return dict(json.loads(answer.body))


class Successor(Fleet):
    """A daemon that comes after one that was killed. The engines are children of init then, as for real."""

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, **options)
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0
        self.root = root
        self.stats: dict[str, Any] = {}
        """What each engine told its first daemon, by model."""

    async def inherit(self, *orders: dict[str, Any], cgroup_root: Path | None = None) -> None:
        """Have another process launch engines as its Fleet would (see predecessor.py), and SIGKILL it."""
        told = json.dumps({"root": str(self.root), "cgroup_root": cgroup_root, "orders": orders}, default=str)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.engines.predecessor", told), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            self.stats |= json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
        finally:
            process.kill()
            await process.wait()

    def record(self, model: str = "alpha") -> Record:
        return Record.parse(records.record_path(self.paths.engines, model).read_text())

    async def sweep(self, *keep: str, root: Path | None = None) -> list[str]:
        return await asyncio.to_thread(records.sweep, self.paths.engines, keep, root)

    async def adopt(self, model: str = "alpha") -> LocalEngine:
        """As the daemon does: survey, question, sweep, adopt."""
        [record] = [each for each in records.survey(self.paths.engines).alive if each.model == model]
        verdict = await adoptable(record)
        assert verdict.state is not None, verdict.reason
        await self.sweep(record.marker)
        self.models.setdefault(model, make_model(model))
        engine = await self.launcher.adopt(record, self.progress.append)
        self.engines.append(engine)
        return engine

    async def end(self) -> None:
        try:
            await super().end()
        finally:
            await self.sweep()


@pytest.fixture
async def successor(tmp_path: Path) -> AsyncIterator[Successor]:
    successor = Successor(tmp_path)
    yield successor
    await successor.end()


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    await fleet.end()
