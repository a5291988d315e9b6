"""From tensors as they are stored to the bytes they take once vLLM has loaded them. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import NamedTuple

from supervisord_llm.core.sizing.architecture import Architecture


class Tensor(NamedTuple):
    """One entry of a safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


class Role(StrEnum):
    """What loading may do to a tensor."""

    LINEAR = "linear"
    """Cast to the model's dtype, or quantised on the way in."""
    DENSE = "dense"
    """Cast, never quantised: embeddings, output layer, norms, routers."""
    FIXED = "fixed"
    """Stays as stored: packed integers, scales, GGUF."""


@dataclass(frozen=True, slots=True)
class Group:
    """All tensors of one role and dtype (as safetensors writes it, "BF16")."""

    role: Role
    dtype: str
    parameters: int
    stored_bytes: int


Weights = tuple[Group, ...]

CASTABLE: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of the dtypes that are cast to the model's; fp8 and integers stay."""

IN_FLIGHT: Mapping[str, float] = {
    "fp8": 1.0,
    "fp8_per_tensor": 1.0,
    "fp8_per_block": 1.0 + 4 / 128**2,
    "mxfp8": 1.0 + 1 / 32,
    "bitsandbytes": 0.5 + 4 / 64,
}
"""Bytes of a weight of a linear layer that vLLM quantises while it loads (bitsandbytes: NF4 and a float32
scale for each 64)."""

_SCALE = re.compile(r"scale|absmax|quant_map|quant_state|zero_point|qzeros|g_idx")
_EMBEDDING = re.compile(r"embed|(?:^|\.)(?:wte|wpe)\.|lm_head|(?:^|\.)output\.weight$")
_ROUTER = re.compile(r"(?:^|\.)(?:gate|router|shared_expert_gate)\.(?:weight|wg\.weight)$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.weight$")
_LAYER = re.compile(r"^(?:model\.|language_model\.|transformer\.)*(?:layers|h)\.(\d+)\.")
_DRAFT = re.compile(r"(?:^|\.)mtp\.")


def tally(tensors: Iterable[Tensor], architecture: Architecture) -> Weights:
    """Add up what vLLM will load of them.

    Left out are the output layer where it is the embedding, and the extra layers for speculative decoding.
    """
    totals: dict[tuple[Role, str], tuple[int, int]] = {}
    for tensor in tensors:
        if not _is_loaded(tensor.name, architecture):
            continue
        key = _role(tensor), tensor.dtype
        parameters, size = totals.get(key, (0, 0))
        totals[key] = parameters + prod(tensor.shape), size + tensor.size_bytes
    return tuple(Group(*key, *total) for key, total in totals.items())


def loaded_bytes(weights: Weights, dtype_bytes: int, quantized_by: str) -> int:
    """What they take of all GPUs together.

    Args:
        dtype_bytes: width of the dtype that vLLM runs the model in.
        quantized_by: vLLM's `quantization` for a checkpoint that is not quantised; "" for none.
    """
    return sum(_loaded(group, dtype_bytes, IN_FLIGHT.get(quantized_by)) for group in weights)


def _loaded(group: Group, dtype_bytes: int, linear_bytes: float | None) -> int:
    if group.role is Role.FIXED or group.dtype not in CASTABLE:
        return group.stored_bytes
    if group.role is Role.LINEAR and linear_bytes is not None:
        return int(group.parameters * linear_bytes)
    return group.parameters * dtype_bytes


def _is_loaded(name: str, architecture: Architecture) -> bool:
    if _DRAFT.search(name) or (architecture.tied and _HEAD.search(name)):
        return False
    if architecture.drafts and (found := _LAYER.match(name)):
        return int(found[1]) < architecture.layers
    return True


def _role(tensor: Tensor) -> Role:
    if _SCALE.search(tensor.name):
        return Role.FIXED
    if len(tensor.shape) < 2 or _EMBEDDING.search(tensor.name) or _ROUTER.search(tensor.name):
        return Role.DENSE
    return Role.LINEAR
