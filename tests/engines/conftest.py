"""Real launches of the fake vLLM, with a check that nothing of them is left."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from supervisord_llm.config.model import Model, Paths
from supervisord_llm.core.effects import StartEngine
from supervisord_llm.engines.engine import VllmEngine
from supervisord_llm.engines.launcher import VllmLauncher
from supervisord_llm.engines.tree import become_subreaper, process_table
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
        self.engines: list[VllmEngine] = []
        self.progress: list[Progress] = []
        self.venv = install_fake_vllm(root / "venv").parents[1]
        self.weights = make_weights(root / "weights")
        self.launcher = VllmLauncher(
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
    ) -> VllmEngine:
        """`config`: fields of the Model; `order`: fields of the StartEngine."""
        self.models[model] = make_model(model, **{"env": {"FAKE_VLLM": behaviour} | env, **(config or {})})
        start: dict[str, Any] = {"model": model, "launch": next(self._launches), "gpus": ()}
        engine = await self.launcher.launch(StartEngine(**start | (order or {})), self.progress.append)
        self.engines.append(engine)
        return engine

    async def ready(self, behaviour: str = "", **options: Any) -> VllmEngine:
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
            assert engine.process.tree.members() == []
        assert zombies() == []


def zombies() -> list[int]:
    return [p.pid for p in process_table().values() if p.parent == os.getpid() and p.zombie]


async def stats_of(engine: VllmEngine) -> dict[str, Any]:
    connector = aiohttp.UnixConnector(str(engine.socket))
    async with aiohttp.ClientSession(connector=connector) as http, http.get("http://e/fake/stats") as reply:
        return dict(await reply.json())


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    await fleet.end()
