"""A real vLLM for the tests that need one, installed by our own provisioning.

The venv (2.4 GB, about a minute) stays in `$LLM_SUPERVISOR_TEST_CACHE`, by default
~/.cache/llm-supervisor-test, for the next run of the tests.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from supervisord_llm.config.model import Model, Paths, Venv
from supervisord_llm.provision import recipes
from supervisord_llm.provision.tiny_model import write_tiny_model
from supervisord_llm.provision.venvs import Venvs
from tests.e2e.house import House

CONTEXT = 2048
ENV = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
PHRASE = "I am a tiny test model."


@dataclass(frozen=True)
class RealEngine:
    """`state` can be `[paths] state` of a daemon whose models use `venv`'s requirements: nothing is built
    again, a second model's venv is a clone. `model` is a tiny model that answers `phrase` to any prompt."""

    state: Path
    cache: Path
    venv: Venv
    model: Path
    phrase: str = PHRASE

    @property
    def paths(self) -> dict[str, str]:
        """[paths] of such a daemon."""
        return {"state": str(self.state), "cache": str(self.cache)}

    def tiny(self, context: int = CONTEXT) -> dict[str, object]:
        """[models.NAME] of the tiny model."""
        flags = {
            "max-model-len": context, "enforce-eager": True, "distributed-executor-backend": "uni",
        }  # fmt: skip
        return {"source": str(self.model), "gpus": [], "vram": "64MiB", "flags": flags, "env": ENV}

    @contextlib.contextmanager
    def serving(
        self,
        models: Mapping[str, Mapping[str, object]],
        environ: Mapping[str, str] | None = None,
        **tables: Mapping[str, object],
    ) -> Iterator[House]:
        """A daemon for all tests of a module, each of which has an event loop of its own."""
        with tempfile.TemporaryDirectory(prefix="llms-") as root:
            house = House(Path(root), environ=dict(environ or {}))
            house.configure(models, paths=self.paths, **tables)
            asyncio.run(house.start())
            try:
                yield house
            finally:
                code = asyncio.run(house.stop())
                left = house.engines()
                for process in left:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                assert (code, left) == (0, []), house.log


@pytest.fixture(scope="session")
def real_engine() -> RealEngine:
    """CPU vLLM, built if this is the first run, and the tiny model."""
    folder = Path(os.environ.get("LLM_SUPERVISOR_TEST_CACHE") or "~/.cache/llm-supervisor-test").expanduser()
    paths = Paths(state=folder / "state", cache=folder / "cache", runtime=folder / "run")
    paths.state.mkdir(parents=True, exist_ok=True)
    venv = recipes.CPU_VENV
    model = Model(name="tiny", source=str(folder / "tiny-model"), venv=venv, flags={}, env={})
    venvs = Venvs(paths, cuda=False, environ=os.environ)
    asyncio.run(venvs.build(model, lambda step: print(f"venv: {step.phase}")))
    asyncio.run(venvs.collect(model.name, lambda _: None))
    write_tiny_model(folder / "tiny-model", PHRASE)
    return RealEngine(paths.state, paths.cache, venv, folder / "tiny-model")
