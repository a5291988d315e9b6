"""A real gateway on a real runtime behind a control socket, and the command line in a process of its own."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from supervisord_llm.config.load import load
from supervisord_llm.config.problem import Problem
from supervisord_llm.core.events import ConfigChanged
from supervisord_llm.core.fleet import Gpu, ModelSpec
from supervisord_llm.errors import ConfigError
from supervisord_llm.gateway.app import Gateway, build_control_app
from supervisord_llm.gateway.inference.relay import Upstreams
from supervisord_llm.runtime.loop import Runtime
from supervisord_llm.telemetry.recorder import Recorder
from tests.fakes.ports import FakeLauncher, FakeMemory, FakeProvisioner

GIB = 1024**3

CONFIG = """\
[server]
listen = ["127.0.0.1:0"]
[paths]
state = "state"
cache = "cache"
runtime = "run"
[auth]
required = false
[models.coder]
source = "org/coder"
aliases = ["coder3b"]
[models.chat]
source = "org/chat"
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Cli:
    """Runs `llm-supervisor` with the configuration in `folder`."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    async def start(self, *args: str) -> asyncio.subprocess.Process:
        """Begin a command, with its output in pipes."""
        environ = {**os.environ, "LLM_SUPERVISOR_CONFIG": str(self.config)}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "supervisord_llm", *args),
            env=environ,
            stdout=-1,
            stderr=-1,
            # As in a terminal, even if we were started in the background of a script, which ignores it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    async def __call__(self, *args: str) -> Done:
        process = await self.start(*args)
        out, err = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())


@dataclass
class Tail:
    """Five lines of engine output, and those that come."""

    coming: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    def last(self, n: int) -> list[str]:
        return [f"line {number}" for number in range(5)][-n:]

    async def follow(self) -> AsyncIterator[str]:
        while True:
            yield await self.coming.get()


@dataclass
class House:
    """What stands behind the control socket."""

    runtime: Runtime
    launcher: FakeLauncher
    provisioner: FakeProvisioner
    tail: Tail
    gateway: Gateway
    problems: list[Problem] = field(default_factory=list)
    """What the next reload finds wrong."""


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "config.toml").write_text(CONFIG)
    return Cli(tmp_path)


@pytest.fixture
async def house(cli: Cli) -> AsyncIterator[House]:
    config = load(cli.config)
    launcher, provisioner, tail = FakeLauncher(), FakeProvisioner(), Tail()
    upstreams = Upstreams()
    runtime = Runtime(launcher, provisioner, upstreams, FakeMemory())

    async def reload() -> dict[str, object]:
        if house.problems:
            raise ConfigError(house.problems)
        return {"added": ["chat"], "removed": [], "changed": [], "needs_restart": []}

    gateway = Gateway(
        runtime,
        upstreams,
        recorder=Recorder(lambda: runtime.fleet),
        logs=lambda _: tail,
        reload=reload,
    )
    house = House(runtime, launcher, provisioner, tail, gateway)
    gateway.configure(config)
    gpu = Gpu(index=0, uuid="GPU-a", name="Card", total_bytes=24 * GIB, budget_bytes=20 * GIB)
    specs = tuple(ModelSpec(name=name, pinned=None, grant=5 * GIB, sleep_level=1) for name in config.models)
    runtime.dispatch(ConfigChanged(specs=specs, gpus=(gpu,)))
    runner = web.ServerRunner(build_control_app(gateway))
    await runner.setup()
    config.paths.runtime.mkdir()
    await web.UnixSite(runner, str(config.paths.control_socket)).start()
    yield house
    assert await runtime.shutdown(5)
    await gateway.close()
    await runner.cleanup()
