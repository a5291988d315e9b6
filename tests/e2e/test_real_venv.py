"""The venv that our provisioning builds holds a vLLM that runs."""

import subprocess

import pytest

from supervisord_llm.config.model import Model, Paths
from supervisord_llm.provision.venvs import Venvs
from tests.e2e.real_engine import RealEngine, real_engine

__all__ = ["real_engine"]


@pytest.mark.slow
def test_the_vllm_of_the_recipe_knows_its_version(real_engine: RealEngine) -> None:
    """`vllm --version` imports torch and all of vLLM, and asks for the distribution "vllm"."""
    paths = Paths(state=real_engine.state, cache=real_engine.cache, runtime=real_engine.state / "run")
    model = Model(name="tiny", source=str(real_engine.model), venv=real_engine.venv, flags={}, env={})
    build = Venvs(paths, cuda=False, environ={}).find(model)
    assert build is not None
    done = subprocess.run([build / "bin/vllm", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("0.32.0+cpu")
    installed = {path.name.partition("-")[0] for path in build.glob("lib/python*/site-packages/*.dist-info")}
    assert not installed & {"torchvision", "torchaudio", "torchcodec", "triton"}
