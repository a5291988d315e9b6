"""How much KV cache a sequence takes on each GPU, as vLLM lays it out. Pure; sizes in bytes."""

from collections.abc import Mapping
from math import ceil

from supervisord_llm.core.sizing.architecture import Architecture, Attention
from supervisord_llm.core.sizing.serving import Serving

_WIDTHS: Mapping[str, float] = {
    "bfloat16": 2,
    "float16": 2,
    "half": 2,
    "float": 4,
    "float32": 4,
    "nvfp4": 0.5 + 1 / 16,
}
_SCALED_PER_HEAD = ("fp8_per_token_head", "int8_per_token_head")


def dtype_bytes(architecture: Architecture, serving: Serving) -> int:
    """Width of what vLLM computes in: asked for, else the checkpoint's, where float32 becomes 16 bits."""
    return 4 if serving.dtype in ("float", "float32") else 2


def bytes_per_token(architecture: Architecture, serving: Serving) -> int:
    """What one more token takes while every window is still open: all layers that attend."""
    return ceil(sum(_of_token(attention, architecture, serving) for attention in architecture.attention))


def sequence_bytes(architecture: Architecture, serving: Serving, length: int) -> int:
    """What one sequence of `length` tokens takes at most."""
    total = 0.0
    group = _group_size(architecture, serving)
    for attention in architecture.attention:
        blocks = ceil(_tokens(attention, serving, length) / serving.block_tokens)
        if _is_bounded(attention, serving):
            blocks += 1  # a window seldom begins where a block does
        padded = ceil(attention.layers / group) * group / attention.layers
        each = _of_token(attention, architecture, serving) * serving.block_tokens
        total += blocks * each * padded
    ranks = serving.tensor_parallel * serving.pipeline_parallel
    return ceil(total + architecture.state_bytes / ranks)


def block_bytes(architecture: Architecture, serving: Serving) -> int:
    """The one block that vLLM keeps empty."""
    return bytes_per_token(architecture, serving) * serving.block_tokens


def _of_token(attention: Attention, architecture: Architecture, serving: Serving) -> float:
    """All layers of the group that are on one GPU."""
    heads = 1 if attention.latent else max(1, ceil(attention.kv_heads / serving.tensor_parallel))
    kept = serving.kv_cache_dtype
    if kept.startswith(("fp8", "int8")):
        width: float = 1
    else:
        width = _WIDTHS.get(kept, dtype_bytes(architecture, serving))
    head_bytes = attention.values * width
    if kept in _SCALED_PER_HEAD:
        head_bytes += 2 * 4
    return attention.layers / serving.pipeline_parallel * heads * head_bytes


def _is_bounded(attention: Attention, serving: Serving) -> bool:
    return attention.window is not None and serving.bounds_windows


def _tokens(attention: Attention, serving: Serving, length: int) -> int:
    """The tokens that are kept: a window, and what one step adds before the oldest are dropped."""
    if attention.window is None or not serving.bounds_windows:
        return length
    return min(length, attention.window - 1 + serving.max_num_batched_tokens)


def _group_size(architecture: Architecture, serving: Serving) -> int:
    """Layers that share their blocks.

    vLLM cuts layers of different kinds into groups of one size, the least number of a kind (the greatest, if
    that is less than half as much again); the last group of a kind may be partly empty.
    """
    numbers = [attention.layers for attention in architecture.attention]
    if len(numbers) < 2 or not serving.bounds_windows:
        return 1
    least, most = min(numbers), max(numbers)
    return most if most < 1.5 * least else least
