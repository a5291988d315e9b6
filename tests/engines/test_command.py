"""The command line and environment of an engine, word for word."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisord_llm.config.model import FlagValue, Share
from supervisord_llm.engines.command import MARKER, Command, Place, flag_words, shell_line, vllm_command
from tests.engines.conftest import make_model

PLACE: dict[str, Any] = {
    "weights": "/w/alpha",
    "executable": Path("/v/bin/vllm"),
    "socket": Path("/r/alpha.sock"),
    "hub": Path("/s/hub"),
    "cache": Path("/c/alpha"),
    "scratch": Path("/r/ipc-1"),
    "marker": "m1",
}
BASE = {
    "PATH": "/usr/bin",
    "HOME": "/home/x",
    "LC_ALL": "C.UTF-8",
    "PYTHONPATH": "/ours",
    "VIRTUAL_ENV": "/ours",
    "HF_TOKEN": "secret",
    "VLLM_SERVER_DEV_MODE": "1",
    "NOTIFY_SOCKET": "/run/systemd/notify",
}


def test_a_gpu_engine_word_for_word() -> None:
    model = make_model(
        aliases=("a1",), tensor_parallel=2, flags={"max_model_len": 8192, "enforce-eager": True}
    )
    command = vllm_command(model, Place(**PLACE, gpus=(0, 1), gpu_memory_utilization=0.56789), BASE)
    assert shlex.join(command.argv) == (
        "/v/bin/vllm serve /w/alpha --uds /r/alpha.sock --served-model-name alpha a1 "
        "--tensor-parallel-size 2 --gpu-memory-utilization 0.5678 --max-model-len 8192 --enforce-eager"
    )
    assert command.env == {
        "PATH": "/v/bin:/usr/bin",
        "HOME": "/home/x",
        "LC_ALL": "C.UTF-8",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": "/s/hub",
        "HF_HOME": "/c/alpha/huggingface",
        "VLLM_CACHE_ROOT": "/c/alpha/vllm",
        "TRITON_CACHE_DIR": "/c/alpha/triton",
        "TORCHINDUCTOR_CACHE_DIR": "/c/alpha/inductor",
        "FLASHINFER_WORKSPACE_BASE": "/c/alpha/flashinfer",
        "XDG_CACHE_HOME": "/c/alpha",
        "VLLM_RPC_BASE_PATH": "/r/ipc-1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        MARKER: "m1",
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "--kv-cache-memory-bytes 1073741824"),
        ({"vram": 64 * 2**20}, "--kv-cache-memory-bytes 67108864"),
        ({"vram": Share(0.5)}, "--kv-cache-memory-bytes 1073741824"),
        ({"flags": {"kv_cache_memory_bytes": "2G", "distributed-executor-backend": "mp"}},
         "--kv-cache-memory-bytes 2G --distributed-executor-backend mp"),
        ({"flags": {"gpu-memory-utilization": 0.5}},
         "--gpu-memory-utilization 0.5"),
        ({"env": {"VLLM_CPU_KVCACHE_SPACE": "4"}}, ""),
        ({"tensor_parallel": 2}, "--tensor-parallel-size 2 --kv-cache-memory-bytes 1073741824"),
    ],
)  # fmt: skip
def test_a_cpu_engine_gets_defaults_that_the_config_overrides(fields: dict[str, Any], expected: str) -> None:
    command = vllm_command(make_model(**fields), Place(**PLACE), BASE)
    assert shlex.join(command.argv[7:]) == expected
    assert command.env["CUDA_VISIBLE_DEVICES"] == ""


def test_the_models_env_wins_and_wsl_gets_pinned_memory() -> None:
    model = make_model(env={"HF_HUB_OFFLINE": "0", "MINE": "1"})
    env = vllm_command(model, Place(**PLACE, wsl=True), BASE).env
    assert (env["HF_HUB_OFFLINE"], env["MINE"], env["VLLM_WSL2_ENABLE_PIN_MEMORY"]) == ("0", "1", "1")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, ["--x"]),
        (False, ["--no-x"]),
        (1, ["--x", "1"]),
        (0.5, ["--x", "0.5"]),
        (-1, ["--x=-1"]),
        ("a b", ["--x", "a b"]),
        (["a", 1, {"k": True}], ["--x", "a", "1", '{"k": true}']),
        ({"k": [1, {"n": "v"}]}, ["--x", '{"k": [1, {"n": "v"}]}']),
    ],
)
def test_flags_as_words(value: FlagValue, words: list[str]) -> None:
    assert flag_words("x", value) == words


def test_the_shell_line_runs_the_same_command(tmp_path: Path) -> None:
    show = "import os, sys; print(sys.argv[1:], os.environ['ODD'])"
    argv = (sys.executable, "-c", show, "it's", "$HOME", "a b")
    command = Command(argv, {"ODD": "x 'y'"}, settings=("ODD",))
    shown = subprocess.run(shell_line(command), shell=True, capture_output=True, text=True, check=True)
    assert shown.stdout == """["it's", '$HOME', 'a b'] x 'y'\n"""


def test_the_shell_line_holds_no_secret() -> None:
    flags = {"api-key": ["s3cret", "s3cret2"], "hf-token": "-s3cret", "max-num-batched-tokens": 9}
    env = {"VLLM_API_KEY": "s3cret", "DB_PASS": "s3cret", "DB": "pg://ann:s3cret@db/x"}
    model = make_model(flags=flags, env=env)
    line = shell_line(vllm_command(model, Place(**PLACE), BASE))
    assert "s3cret" not in line
    assert "DB=pg://***@db/x" in line
    assert line.endswith("--api-key *** *** --hf-token=*** --max-num-batched-tokens 9")
    assert MARKER not in line
    assert "VLLM_RPC_BASE_PATH" not in line, "a directory that ends with the launch"
    assert line.startswith("CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES='' ")


def test_what_is_ordered_wins_over_the_models_flags() -> None:
    """In whichever way the config writes them."""
    model = make_model(flags={"max_num_seqs": 256, "dtype": "half"})
    place = Place(
        **PLACE, gpus=(1,), gpu_memory_utilization=0.5, kv_bytes=2**30, adjusted={"max_num_seqs": 128}
    )
    assert shlex.join(vllm_command(model, place, BASE).argv[7:]) == (
        "--gpu-memory-utilization 0.5000 --kv-cache-memory-bytes 1073741824 --max-num-seqs 128 --dtype half"
    )
    new = Place(**PLACE, adjusted={"max-model-len": 4096})
    assert vllm_command(model, new, BASE).argv[-2:] == ("--max-model-len", "4096")


@pytest.mark.parametrize(
    ("fields", "gpus", "flag", "mode"),
    [
        ({"sleep_level": 1}, (0,), ["--enable-sleep-mode"], "1"),
        ({"sleep_level": 2, "flags": {"enable_sleep_mode": False}}, (0,), ["--no-enable-sleep-mode"], "1"),
        ({"sleep_level": 1}, (), [], "1"),
        ({"sleep_level": 0}, (0,), [], None),
        ({"sleep_level": 0, "env": {"VLLM_SERVER_DEV_MODE": "1"}}, (), [], "1"),
    ],
)
def test_only_what_is_to_sleep_gets_the_endpoints_for_it(
    fields: dict[str, Any], gpus: tuple[int, ...], flag: list[str], mode: str | None
) -> None:
    """And nothing by inheritance: BASE has the mode on. On the CPU vLLM refuses the flag."""
    command = vllm_command(make_model(**fields), Place(**PLACE, gpus=gpus), BASE)
    assert [word for word in command.argv if "sleep" in word] == flag
    assert command.env.get("VLLM_SERVER_DEV_MODE") == mode
