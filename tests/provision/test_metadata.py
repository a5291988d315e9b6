"""What files and the hub tell of a model, and the estimates made of it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supervisord_llm.config.model import Config, Model, Server, Vram
from supervisord_llm.core.sizing.weights import Group, Role
from supervisord_llm.provision import metadata
from supervisord_llm.provision.metadata import MAX_HEADER_BYTES, UnreadableMetadata, read_local
from supervisord_llm.provision.provisioner import Provisioner
from supervisord_llm.provision.tiny_model import write_tiny_model
from tests.fakes.weights import make_weights, safetensors
from tests.provision.hub import FIRST, REPO, Hub, serving
from tests.provision.wheels import environ, make_paths

TINY_KV_BYTES = 256
"""A token's, as real vLLM logged for this very model: 64 MiB held 262,144 tokens."""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path / "tiny", "I am a model.")
    return tmp_path / "tiny"


@pytest.fixture
def hub(tiny: Path) -> Iterator[Hub]:
    """Its repository is the tiny model."""
    with serving() as served:
        served.commits[FIRST] = {file.name: file.read_bytes() for file in tiny.iterdir()}
        yield served


def provisioner(
    tmp_path: Path, source: str, *, cuda: bool = True, env: dict[str, str] | None = None, **model: Any
) -> Provisioner:
    settings: dict[str, Any] = {"flags": {}, "env": {}} | model
    config = Config(
        files=(),
        server=Server(),
        paths=make_paths(tmp_path),
        auth_required=False,
        clients=(),
        vram=Vram(),
        gpu_budgets={},
        models={"chat": Model(name="chat", source=source, **settings)},
    )
    return Provisioner(config, cuda=cuda, environ=environ(**(env or {})))


def weight_bytes(directory: Path) -> int:
    return sum(group.stored_bytes for group in read_local(directory).weights)


# --- files ------------------------------------------------------------------------------------


async def test_the_tiny_model_is_estimated_as_real_vllm_found_it(tiny: Path, tmp_path: Path) -> None:
    found = await provisioner(tmp_path, str(tiny), flags={"max-model-len": "2K"}).estimate("chat")
    assert found is not None
    assert found.kv_bytes_per_token == TINY_KV_BYTES
    assert found.max_model_len == 2048
    assert found.least_kv_bytes == (2048 + 16) * TINY_KV_BYTES
    header = int.from_bytes((tiny / "model.safetensors").read_bytes()[:8], "little") + 8
    assert found.weights_bytes == (tiny / "model.safetensors").stat().st_size - header


async def test_the_least_cache_is_what_real_vllm_asked_for_on_the_cpu(tiny: Path, tmp_path: Path) -> None:
    """With 256 KiB it offered a length of 896: seven blocks of 128 tokens, and the one it keeps empty."""
    asked = provisioner(tmp_path, str(tiny), gpus=(), flags={"max-model-len": 896})
    found = await asked.estimate("chat")
    assert found is not None
    assert found.least_kv_bytes == 256 * 1024


def test_copies_and_other_formats_are_not_counted_twice(tiny: Path) -> None:
    alone = weight_bytes(tiny)
    (tiny / "original").mkdir()
    for copy in ("consolidated.safetensors", "original/model.safetensors"):
        shutil.copy(tiny / "model.safetensors", tiny / copy)
    (tiny / "pytorch_model.bin").write_bytes(bytes(4096))
    (tiny / "model-q4.gguf").write_bytes(bytes(4096))
    assert weight_bytes(tiny) == alone


def test_shards_are_added_up_and_leftovers_are_not(tmp_path: Path) -> None:
    directory = make_weights(tmp_path / "w", shards=3)
    (directory / "adapter_model.safetensors").write_bytes(safetensors({"lora": 1000}))
    assert weight_bytes(directory) == 3 * 64
    assert not read_local(directory).is_counted


def test_with_a_shard_missing_the_weights_are_counted_from_the_config(tmp_path: Path) -> None:
    directory = make_weights(tmp_path / "w", shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    found = read_local(directory)
    assert found.is_counted
    assert sum(group.stored_bytes for group in found.weights) > 3 * 64


def test_pickles_count_by_their_size_where_there_is_nothing_better(tmp_path: Path) -> None:
    directory = make_weights(tmp_path / "w")
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(bytes(4000))
    (directory / "optimizer.pt").mkdir()
    assert read_local(directory).weights == (Group(Role.DENSE, "F32", 1000, 4000),)


@pytest.mark.parametrize("named", ["file", "directory"])
def test_a_gguf_takes_what_its_file_does(tmp_path: Path, named: str) -> None:
    directory = make_weights(tmp_path / "w")
    (directory / "model.safetensors").unlink()
    file = directory / "model-q4.gguf"
    file.write_bytes(bytes(5000))
    place = file if named == "file" else directory
    assert read_local(place).weights == (Group(Role.DENSE, "GGUF", 5000, 5000),)


def header(length: int, content: bytes) -> bytes:
    return length.to_bytes(8, "little") + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1",
        header(MAX_HEADER_BYTES + 1, b"{}"),
        header(100, b"{}"),
        header(2, b"[]"),
        header(4, b"null"),
        header(3, b"\xff\xfe{"),
        header(9, b'{"a": {}}'),
        header(64, b'{"a":{"dtype":"F32","shape":["x"],"data_offsets":[0,4]}}        '),
        header(48, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":1'),
        header(20000, b"[" * 20000),
    ],
)
def test_damaged_weights_are_a_reason_and_no_crash(tmp_path: Path, content: bytes) -> None:
    directory = make_weights(tmp_path / "w")
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(UnreadableMetadata, match=r"model\.safetensors"):
        read_local(directory)


ODD_CONFIGS = [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"{}", b'{"num_hidden_layers": "x"}']


@pytest.mark.parametrize("content", ODD_CONFIGS)
async def test_a_damaged_config_is_a_reason_and_no_crash(tmp_path: Path, content: bytes) -> None:
    directory = make_weights(tmp_path / "w")
    (directory / "config.json").write_bytes(content)
    asked = provisioner(tmp_path, str(directory))
    assert await asked.estimate("chat") is None
    note = asked.estimate_note("chat")
    assert note.startswith("what chat will take of a GPU cannot be told before it ran: ")
    assert "config.json" in note
    assert asked.max_model_len("chat") is None
    assert asked.suggest_max_model_len("chat", 1 << 40) is None


async def test_what_is_not_there_is_named_and_forgotten_once_it_is(tmp_path: Path) -> None:
    asked = provisioner(tmp_path, str(tmp_path / "later"))
    assert await asked.estimate("chat") is None
    assert str(tmp_path / "later") in asked.estimate_note("chat")
    make_weights(tmp_path / "later")
    assert await asked.estimate("chat") is not None
    assert asked.estimate_note("chat") == ""


async def test_changed_files_are_read_again(tiny: Path, tmp_path: Path) -> None:
    asked = provisioner(tmp_path, str(tiny))
    before = await asked.estimate("chat")
    assert before is not None
    assert asked.max_model_len("chat") == 4096
    config = json.loads((tiny / "config.json").read_text())
    time.sleep(0.01)  # a file system tells times apart by 4 ms
    (tiny / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    after = await asked.estimate("chat")
    assert after is not None
    assert after.max_model_len == 512
    assert asked.max_model_len("chat") == 512


async def test_a_second_look_reads_no_weights(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = provisioner(tmp_path, str(tiny))
    first = await asked.estimate("chat")
    monkeypatch.setattr(metadata, "read_header", None)
    assert await asked.estimate("chat") == first == asked.estimate_local("chat")


async def test_flags_and_overrides_count(tiny: Path, tmp_path: Path) -> None:
    flags = {"hf_overrides": {"max_position_embeddings": 1024}, "max-num-seqs": 3, "kv-cache-dtype": "fp8"}
    asked = provisioner(tmp_path, str(tiny), flags=flags)
    found = await asked.estimate("chat")
    assert found is not None
    assert (found.max_model_len, found.sequences) == (1024, 3)
    assert found.kv_bytes_per_token == TINY_KV_BYTES / 2
    assert asked.max_model_len("chat") == 1024


async def test_a_cpu_engine_has_no_cuda_context(tiny: Path, tmp_path: Path) -> None:
    on_gpu = await provisioner(tmp_path, str(tiny)).estimate("chat")
    on_cpu = await provisioner(tmp_path, str(tiny), gpus=()).estimate("chat")
    without = await provisioner(tmp_path, str(tiny), cuda=False).estimate("chat")
    assert on_gpu is not None
    assert on_cpu is not None
    assert on_cpu == without
    assert on_gpu.overhead_bytes > on_cpu.overhead_bytes + (512 << 20)


def test_a_context_is_suggested_from_the_files(tiny: Path, tmp_path: Path) -> None:
    asked = provisioner(tmp_path, str(tiny), flags={"enforce-eager": True})
    assert asked.suggest_max_model_len("chat", 8 << 30) == 4096
    found = asked.estimate_local("chat")
    assert found is not None
    assert asked.suggest_max_model_len("chat", found.least_bytes - 1) == 3072


# --- the hub ----------------------------------------------------------------------------------


def pinned(tmp_path: Path, hub: Hub, **env: str) -> Provisioner:
    return provisioner(tmp_path, REPO, revision=FIRST, env=hub.environ | env)


async def test_the_hub_tells_what_the_files_would_without_sending_weights(
    hub: Hub, tiny: Path, tmp_path: Path
) -> None:
    asked = pinned(tmp_path, hub)
    assert asked.estimate_local("chat") is None
    assert "llm-supervisor pull chat" in asked.estimate_note("chat")
    told = await asked.estimate("chat")
    assert told == await provisioner(tmp_path, str(tiny)).estimate("chat")
    assert asked.estimate_note("chat") == ""
    assert "bytes=0-100000" in hub.ranges
    hub.requests.clear()
    assert await asked.estimate("chat") == told == asked.estimate_local("chat")
    assert hub.requests == []


async def test_a_model_without_a_revision_is_asked_for_at_its_newest(hub: Hub, tmp_path: Path) -> None:
    asked = provisioner(tmp_path, REPO, env=hub.environ)
    assert await asked.estimate("chat") is not None


async def test_without_headers_the_weights_are_counted(hub: Hub, tmp_path: Path) -> None:
    del hub.commits[FIRST]["model.safetensors"]
    hub.commits[FIRST]["pytorch_model.bin"] = b"weights"
    told = await pinned(tmp_path, hub).estimate("chat")
    assert told is not None
    assert told.weights_bytes > 10_000


async def test_a_hub_that_is_down_is_a_reason(hub: Hub, tmp_path: Path) -> None:
    hub.faults = {"gated"}
    asked = pinned(tmp_path, hub)
    assert await asked.estimate("chat") is None
    assert "gated" in asked.estimate_note("chat")
    hub.faults = set()
    assert await asked.estimate("chat") is not None


async def test_a_hub_that_hangs_is_given_up(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child ends with it: conftest looks for processes that are left."""
    monkeypatch.setattr(metadata, "ASK_TIMEOUT_S", 0.0)
    asked = pinned(tmp_path, hub)
    assert await asked.estimate("chat") is None
    assert "did not answer in 0 s" in asked.estimate_note("chat")


async def test_offline_no_process_is_started(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pinned(tmp_path, hub, HF_HUB_OFFLINE="1")
    monkeypatch.setattr("asyncio.create_subprocess_exec", None)
    assert await asked.estimate("chat") is None
    assert "HF_HUB_OFFLINE is set" in asked.estimate_note("chat")


async def test_the_cache_of_other_tools_is_used(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "shared" / "hub" / "models--acme--tiny"
    shutil.copytree(tiny, cache / "snapshots" / FIRST)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(FIRST)
    for revision in (FIRST, None):
        env = hub.environ | {"HF_HOME": str(tmp_path / "shared")}
        asked = provisioner(tmp_path, REPO, revision=revision, env=env)
        assert await asked.estimate("chat") == await provisioner(tmp_path, str(tiny)).estimate("chat")
    assert hub.requests == []


async def test_a_cache_with_the_config_alone_is_better_than_nothing(
    hub: Hub, tiny: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "state" / "hub" / "models--acme--tiny" / "snapshots" / FIRST
    snapshot.mkdir(parents=True)
    shutil.copy(tiny / "config.json", snapshot)
    hub.faults = {"down"}
    told = await pinned(tmp_path, hub, HF_HUB_OFFLINE="1").estimate("chat")
    exact = await provisioner(tmp_path, str(tiny)).estimate("chat")
    assert told is not None
    assert exact is not None
    assert told.weights_bytes == pytest.approx(exact.weights_bytes, rel=0.05)


def test_the_hubs_client_is_not_imported_here() -> None:
    """It costs 0.3 s of a daemon's start."""
    code = "import sys, supervisord_llm.provision.provisioner; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0


def test_a_reload_gives_other_flags(tiny: Path, tmp_path: Path) -> None:
    asked = provisioner(tmp_path, str(tiny))
    config = asked._config
    model = replace(config.models["chat"], flags={"max-model-len": 100})
    assert asked.max_model_len("chat") == 4096
    asked.configure(replace(config, models={"chat": model}))
    assert asked.max_model_len("chat") == 100
