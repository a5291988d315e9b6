"""A runtime on fakes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from supervisord_llm.core.events import ConfigChanged
from supervisord_llm.core.fleet import ModelSpec
from supervisord_llm.core.state import State
from supervisord_llm.runtime.loop import Runtime
from tests.fakes.ports import FakeLauncher, FakeMemory, FakeProvisioner, FakeUpstreams


@dataclass
class House:
    """A runtime and the fakes it runs on."""

    runtime: Runtime
    launcher: FakeLauncher
    provisioner: FakeProvisioner
    upstreams: FakeUpstreams
    memory: FakeMemory

    def state(self, model: str = "a") -> State:
        return self.runtime.fleet.engines[model].state

    async def until(self, state: State, model: str = "a") -> None:
        async with asyncio.timeout(5):
            while self.state(model) is not state:
                await asyncio.sleep(0.001)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    launcher, provisioner = FakeLauncher(), FakeProvisioner()
    upstreams, memory = FakeUpstreams(), FakeMemory()
    runtime = Runtime(launcher, provisioner, upstreams, memory)
    spec = ModelSpec(name="a", backoff_s=(0.01, 0.01), restart_tries=2)
    runtime.dispatch(ConfigChanged(specs=(spec, ModelSpec(name="b"))))
    yield House(runtime, launcher, provisioner, upstreams, memory)
    for engine in launcher.engines:
        engine.obeys = True
        await engine.stop(kill=True)
    assert await runtime.shutdown(5)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "a task leaked"
