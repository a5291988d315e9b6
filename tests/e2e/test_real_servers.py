"""Real servers that are not launched as vLLM: each is one more model with a command, behind the daemon.

vLLM itself at a TCP port, `transformers serve`, and llama.cpp's server where scripts/llama-server has built
it or the PATH has one.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import uv

from supervisord_llm.config.model import Venv
from supervisord_llm.engines import listening
from supervisord_llm.provision.uv import environment
from tests.e2e.house import House, running
from tests.e2e.real_engine import ENV, RealEngine
from tests.engines.test_process import alive
from tests.fakes.gguf import write_gguf

pytestmark = pytest.mark.slow

Settings = Callable[[RealEngine, House], dict[str, object]]
LISTENS = ["--host", "127.0.0.1", "--port", "{port}"]


def vllm(real: RealEngine, house: House) -> dict[str, object]:
    flags = ["--max-model-len", "2048", "--enforce-eager", "--kv-cache-memory-bytes", str(64 * 1024**2)]
    return {
        "command": [
            *(str(programs(real) / "vllm"), "serve", str(real.model), *LISTENS),
            *("--served-model-name", "{model}", "--distributed-executor-backend", "uni", *flags),
        ],
        "max_model_len": 2048,
        "env": ENV,
    }


def transformers(real: RealEngine, house: House) -> dict[str, object]:
    """It wants accelerate, which vLLM does not, and the model called by its directory."""
    extra, python = house.root / "accelerate", programs(real) / "python"
    environ = environment(os.environ, Venv(), real.cache / "uv", real.state / "pythons")
    install = ("pip", "install", "--quiet", "--no-deps", "--python", str(python), "--target", str(extra))
    subprocess.run([uv.find_uv_bin(), *install, "accelerate"], check=True, timeout=120, env=environ)
    return {
        "command": [
            str(programs(real) / "transformers"),
            "serve",
            str(real.model),
            *LISTENS,
            "--device",
            "cpu",
        ],
        "source": str(real.model),
        "env": {"PYTHONPATH": str(extra), "OMP_NUM_THREADS": "1"},
    }


def llama_server(real: RealEngine, house: House, *listens: str) -> dict[str, object]:
    built = real.cache.parent / "llama.cpp" / "llama-server"
    program = str(built) if built.exists() else shutil.which("llama-server")
    if program is None:
        pytest.skip("there is no llama-server here: scripts/llama-server builds it in about 8 minutes")
    write_gguf(house.root / "tiny.gguf", real.model)
    return {
        "command": [program, "-m", str(house.root / "tiny.gguf"), "-c", "512", *(listens or LISTENS)],
        "max_model_len": 512,
    }


def llama_server_at_a_socket(real: RealEngine, house: House) -> dict[str, object]:
    return llama_server(real, house, "--host", "{socket}")


def programs(real: RealEngine) -> Path:
    return real.state / "venvs" / "tiny" / "bin"


@pytest.fixture
def sdk(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(sdk: openai.OpenAI, **more: Any) -> Any:
    messages = [{"role": "user", "content": "hi"}]
    asked: dict[str, Any] = {"model": "other", "messages": messages, "max_tokens": 20, "temperature": 0}
    return sdk.chat.completions.create(**asked | more)


def record(house: House) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((house.root / "runtime" / "engines" / "other.json").read_text())
    return found


@pytest.mark.parametrize(
    "settings",
    [vllm, transformers, llama_server, llama_server_at_a_socket],
    ids=lambda settings: settings.__name__,
)
async def test_a_real_server_lives_as_any_engine(
    settings: Settings, house: House, sdk: openai.OpenAI, real_engine: RealEngine
) -> None:
    """Started by its first request, streaming, adopted by the next daemon, stopped, started again."""

    async def says(**more: Any) -> str | None:
        text: str | None = (await asyncio.to_thread(ask, sdk, **more)).choices[0].message.content
        return text

    model = {"engine": "command", "gpus": [], **settings(real_engine, house)}
    house.configure({"other": model}, paths={"cache": str(real_engine.cache)})
    async with running(house):
        assert await says() == real_engine.phrase
        chunks = [chunk.choices[0].delta.content or "" for chunk in ask(sdk, stream=True) if chunk.choices]
        assert "".join(chunks) == real_engine.phrase
        assert len(chunks) > 2
        first = record(house)
        if first["port"] is not None:
            assert {each.address for each in listening.listeners(first["port"])} == {"127.0.0.1"}

        await house.stop(signal.SIGKILL)
        await house.start()
        assert house.status()["models"]["other"]["state"] == "ready"
        assert await says() == real_engine.phrase
        assert record(house)["pid"] == first["pid"]

        house.cli("stop", "other")
        assert not alive(first["pid"])
        assert await says() == real_engine.phrase
        assert record(house)["marker"] != first["marker"]
        assert "others reach" not in house.log
