"""Mistakes are found before the launch, and nothing is refused on doubt."""

import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from supervisord_llm.engines import installed
from supervisord_llm.engines.preflight import preflight
from supervisord_llm.errors import ProvisionError
from tests.engines.conftest import make_model
from tests.fakes import install_fake_vllm, make_weights

REGISTRY = """
_TEXT_GENERATION_MODELS = {"LlamaForCausalLM": ("llama", "LlamaForCausalLM")}
_EMBEDDING_MODELS: dict = {"BertModel": ("bert", "BertModel")}
_VLLM_MODELS = {**_TEXT_GENERATION_MODELS, **_EMBEDDING_MODELS}
_PREVIOUSLY_SUPPORTED_MODELS = {"OldForCausalLM": "0.10.2"}
"""
POINTER = "version https://git-lfs.github.com/spec/v1\n"
ARGUMENTS = """
class EngineArgs:
    max_model_len: int | None = None
    trust_remote_code: bool = False
    hf_overrides: dict = {}
    load_format: str = "auto"
    def add(parser): parser.add_argument("--quantization", "-q")
"""


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A fake vLLM with as much of the real one's source as preflight reads."""
    venv = tmp_path / "venv"
    install_fake_vllm(venv)
    packages = venv / "lib/python3.11/site-packages"
    for name, text in {
        "vllm/__init__.py": "",
        "vllm/model_executor/models/registry.py": REGISTRY,
        "vllm/engine/arg_utils.py": ARGUMENTS,
        "transformers/models/novel/modeling_novel.py": "class NovelForCausalLM(PreTrainedModel): ...",
    }.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(text)
    return venv


def check(venv: Path, weights: Path, **fields: Any) -> None:
    preflight(make_model(**fields), weights, venv, venv.parent / "cache")


def index_of(weights: Path) -> Path:
    return weights / "model.safetensors.index.json"


def unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


def first(weights: Path) -> Path:
    return weights / "model-00001-of-00003.safetensors"


def truncate(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (lambda w: w.rename(w.parent / "elsewhere"), "cannot find the weights"),
    "no config": (lambda w: (w / "config.json").unlink(), "cannot find .*config.json"),
    "config is no JSON": (lambda w: (w / "config.json").write_text("{"), "not JSON"),
    "config is a list": (lambda w: (w / "config.json").write_text("[]"), "not a JSON object"),
    "config in UTF-16": (lambda w: (w / "config.json").write_bytes(b"\xff\xfe\xff"), "not JSON"),
    "config is a pointer": (
        lambda w: (w / "config.json").write_text(POINTER), "git lfs pull"),
    "shard missing": (
        lambda w: (w / "model-00002-of-00003.safetensors").unlink(), "1 of 3 shards are missing, .*00002-of"),
    "shard truncated": (
        lambda w: truncate(w / "model-00002-of-00003.safetensors", 1), "00002.* bytes and should have"),
    "shard empty": (lambda w: first(w).write_bytes(b""), "too few"),
    "header too large": (
        lambda w: first(w).write_bytes(b"\xff" * 64), "too few for its header"),
    "header is no JSON": (
        lambda w: first(w).write_bytes(b"\x02" + bytes(7) + b"{]"), "not readable"),
    "shard is a pointer": (
        lambda w: first(w).write_text(POINTER),
        "git lfs pull"),
    "index is no JSON": (lambda w: index_of(w).write_text("{"), "not JSON"),
    "no weights": (lambda w: unlink(w.glob("model*")), "cannot find weights"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_weights_is_refused(tmp_path: Path, venv: Path, mistake: str) -> None:
    weights = make_weights(tmp_path / "weights", shards=3)
    check(venv, weights)  # whole before
    make, message = MISTAKES[mistake]
    make(weights)
    with pytest.raises(ProvisionError, match=message) as refusal:
        check(venv, weights)
    assert not refusal.value.temporary
    assert str(refusal.value).startswith("cannot ")


def test_a_file_is_no_directory_of_weights(tmp_path: Path, venv: Path) -> None:
    (tmp_path / "weights").touch()
    with pytest.raises(ProvisionError, match="not a directory"):
        check(venv, tmp_path / "weights")


def test_a_venv_without_vllm_is_refused(tmp_path: Path, venv: Path) -> None:
    (venv / "bin" / "vllm").unlink()
    with pytest.raises(ProvisionError, match=r"cannot find .*bin/vllm"):
        check(venv, make_weights(tmp_path / "weights"))


@pytest.mark.parametrize("architecture", ["OldForCausalLM", "LlamaFromTheFutureForCausalLM"])
def test_an_unknown_architecture_is_refused(tmp_path: Path, venv: Path, architecture: str) -> None:
    weights = make_weights(tmp_path / "weights", architectures=[architecture])
    with pytest.raises(ProvisionError, match=f"cannot serve {architecture}: "):
        check(venv, weights)
    check(venv, weights, flags={"trust-remote-code": True})
    check(venv, weights, flags={"hf-overrides": {"architectures": ["LlamaForCausalLM"]}})
    plugin = venv / "lib/python3.11/site-packages/my_plugin-1.dist-info/entry_points.txt"
    plugin.parent.mkdir()
    plugin.write_text("[vllm.general_plugins]\nmine = my_plugin:register\n")
    check(venv, weights)


@pytest.mark.parametrize("config", [
    {"architectures": ["NovelForCausalLM"]},  # by way of transformers
    {"architectures": ["LlamaForSequenceClassification"]},  # converted from LlamaForCausalLM
    {"architectures": ["FutureForCausalLM"], "auto_map": {"AutoModel": "modeling.Future"}},
    {"architectures": []},
    {"architectures": None},
])  # fmt: skip
def test_an_architecture_is_not_refused_on_doubt(tmp_path: Path, venv: Path, config: dict[str, Any]) -> None:
    check(venv, make_weights(tmp_path / "weights", **config))


def test_a_registry_that_is_not_understood_refuses_nobody(tmp_path: Path, venv: Path) -> None:
    (venv / "lib/python3.11/site-packages/vllm/model_executor/models/registry.py").write_text(
        "MODELS = load()"
    )
    check(venv, make_weights(tmp_path / "weights", architectures=["FutureForCausalLM"]))


def test_a_max_model_len_above_the_weights_own_is_refused(tmp_path: Path, venv: Path) -> None:
    weights = make_weights(tmp_path / "weights", max_position_embeddings=4096)
    with pytest.raises(ProvisionError, match=r"max-model-len = 4097.*end at 4096"):
        check(venv, weights, flags={"max-model-len": 4097})
    check(venv, weights, flags={"max-model-len": 4096})
    check(venv, weights, flags={"max-model-len": "8k"})
    check(venv, weights, flags={"max-model-len": 9999}, env={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"})


@pytest.mark.parametrize("config", [
    {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4}},
    {"rope_scaling": {"type": "linear", "factor": 2}},
    {"max_position_embeddings": None},
    {"model_max_length": 32768},
])  # fmt: skip
def test_a_length_that_may_be_stretched_is_not_refused(
    tmp_path: Path, venv: Path, config: dict[str, Any]
) -> None:
    check(venv, make_weights(tmp_path / "weights", **config), flags={"max-model-len": 8192})


def test_an_unknown_flag_is_confirmed_by_the_help_and_refused(tmp_path: Path, venv: Path) -> None:
    weights = make_weights(tmp_path / "weights")
    with pytest.raises(ProvisionError, match=r"--max-modle-len: .*did you mean max-model-len\?"):
        check(venv, weights, flags={"max-modle-len": 1})
    [kept] = (tmp_path / "cache").iterdir()
    assert "served-model-name" in json.loads(kept.read_text())
    (venv / "bin" / "vllm").write_text("#!/bin/false\n")  # asked once a venv
    with pytest.raises(ProvisionError, match="--zzz: this vLLM has no such flag; see"):
        check(venv, weights, flags={"zzz": 1})


@pytest.mark.parametrize("flag", [
    "max_model_len", "trust-remote-code", "no-trust-remote-code", "quantization", "max-model-len.x", "quant",
    "enforce-eager",  # in the help alone
])  # fmt: skip
def test_a_known_flag_passes(tmp_path: Path, venv: Path, flag: str) -> None:
    check(venv, make_weights(tmp_path / "weights"), flags={flag: "1"})


def test_a_help_that_fails_refuses_nobody(tmp_path: Path, venv: Path) -> None:
    (venv / "bin" / "vllm").write_text("#!/bin/false\n")
    check(venv, make_weights(tmp_path / "weights"), flags={"zzz": 1})


def test_a_help_that_is_abandoned_is_not_waited_for(
    tmp_path: Path, venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "abandoned", threading.Event())
    told = tmp_path / "pid"
    script = f"#!/bin/sh\necho $$ >{told}.new\nmv {told}.new {told}\nexec sleep 60\n"
    (venv / "bin" / "vllm").write_text(script)
    weights = make_weights(tmp_path / "weights")
    asking = threading.Thread(target=check, args=(venv, weights), kwargs={"flags": {"zzz": 1}})
    asking.start()
    deadline = time.monotonic() + 10
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    installed.abandon()
    asking.join(5)
    assert not asking.is_alive()
    assert not Path("/proc", told.read_text().strip()).exists()


def test_a_vllm_of_unknown_make_refuses_nobody(tmp_path: Path) -> None:
    install_fake_vllm(tmp_path / "venv")
    assert installed.flags_in_source(tmp_path / "venv") is None
    weights = make_weights(tmp_path / "weights", architectures=["FutureForCausalLM"])
    check(tmp_path / "venv", weights, flags={"zzz": 1})


def test_weights_that_vllm_finds_elsewhere_are_not_looked_for(tmp_path: Path, venv: Path) -> None:
    weights = make_weights(tmp_path / "weights")
    (weights / "model.safetensors").unlink()
    check(venv, weights, flags={"load-format": "dummy"})
    (weights / "params.json").write_text("{}")
    (weights / "config.json").unlink()
    check(venv, weights, flags={"load-format": "dummy"})
