"""Models that another server than vLLM serves: what of the configuration is theirs."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from supervisord_llm.config.model import Limits, Model
from supervisord_llm.config.signature import signature
from tests.config.conftest import Load

TEXT = """\
[defaults]
venv = { path = "/v" }
revision = "main"
flags = { max-model-len = 8192 }
env = { A = "1" }
health = "/ready"
idle = { stop_after = "9m", sleep_after = "5m", sleep_level = 2 }
[models.gguf]
engine = "command"
command = ["llama-server", "--port", "{port}"]
max_model_len = 4096
env = { B = "2" }
[models.chat]
source = "org/chat"
"""


def test_what_is_about_vllm_passes_it_by(loaded: Load) -> None:
    """And what is about it passes vLLM by: only a model's own table is blamed."""
    models = loaded(TEXT).models
    other, chat = models["gguf"], models["chat"]
    assert (other.engine, other.command) == ("command", ("llama-server", "--port", "{port}"))
    assert (other.flags, other.venv, other.revision, other.sleep_level) == ({}, None, None, 0)
    assert (other.idle_stop_after_s, other.idle_sleep_after_s) == (540.0, None)
    assert (other.env, other.health, other.max_model_len) == ({"A": "1", "B": "2"}, "/ready", 4096)
    assert other.source == "gguf"
    assert (chat.engine, chat.sleep_level, chat.flags) == ("vllm", 2, {"max-model-len": 8192})


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("llama-server", "llama-server"),
        ("/opt/x", "/opt/x"),
        ("./x", "{folder}/x"),
        ("bin/x", "{folder}/bin/x"),
    ],
)
def test_a_relative_program_begins_in_the_folder_of_the_file(
    program: str, found: str, loaded: Load, tmp_path: Path
) -> None:
    text = f'[models.a]\nengine = "command"\ncommand = ["{program}", "{{port}}"]'
    assert loaded(text).models["a"].command[0] == found.format(folder=tmp_path)


def test_what_the_server_calls_the_model_is_any_text(loaded: Load) -> None:
    text = TEXT.replace("max_model_len", 'source = "llama3.2:3b q4"\nmax_model_len')
    assert loaded(text).models["gguf"].source == "llama3.2:3b q4"


def test_only_what_shapes_its_process_makes_it_another(loaded: Load) -> None:
    model = loaded(TEXT).models["gguf"]
    same = replace(model, source="x", health="/", max_model_len=1, aliases=("a",), tools="strip")
    assert signature(same) == signature(model)
    for changed in (
        replace(model, command=("llama-server", "--port", "{port}", "-c", "512")),
        replace(model, env={}),
        replace(model, gpus=()),
        replace(model, vram=2**30),
        replace(model, network="host"),
        replace(model, limits=Limits(pids=9)),
        replace(model, engine="vllm"),
    ):
        assert signature(changed) != signature(model)


def test_vllms_signature_is_that_of_earlier_versions() -> None:
    """So that an upgrade keeps what runs and what was learnt."""
    shape = {
        "source": "s",
        "revision": None,
        "venv": None,
        "flags": {"a": 1},
        "env": {},
        "gpus": "auto",
        "tensor_parallel": 1,
        "vram": "auto",
        "aliases": ["b"],
        "sleep_level": 0,
    }
    model = Model(name="m", source="s", flags={"a": 1}, env={}, aliases=("b",))
    assert signature(model) == hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
