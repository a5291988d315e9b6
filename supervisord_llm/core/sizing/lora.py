"""LoRA adapters of an engine: what vLLM must be told of them, and what they take. Pure; sizes in bytes."""

from collections.abc import Collection, Mapping
from typing import Any

from supervisord_llm.core.sizing import kv_cache
from supervisord_llm.core.sizing.architecture import Architecture
from supervisord_llm.core.sizing.serving import Serving

CONFIG = "adapter_config.json"
"""The file beside an adapter's weights that PEFT writes."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM takes for `max-lora-rank`."""
AT_ONCE = 4
"""Adapters in one batch at most, unless flags say otherwise: requests for more of them take turns. Each takes
its room on the GPU all the time."""


def flags_of(ranks: Collection[int], flags: Mapping[str, object]) -> dict[str, Any]:
    """vLLM's flags for adapters of these ranks, where `flags` (in kebab case) do not say otherwise."""
    at_once = flags.get("max-loras", min(len(ranks), AT_ONCE))
    in_memory = max(len(ranks), at_once) if isinstance(at_once, int) else len(ranks)
    chosen = {
        "enable-lora": True,
        "max-loras": at_once,
        "max-lora-rank": min((rank for rank in RANKS if rank >= max(ranks)), default=RANKS[-1]),
        "max-cpu-loras": in_memory,
    }
    return {name: value for name, value in chosen.items() if name not in flags}


def rank_of(config: Mapping[str, Any]) -> int | None:
    """The highest rank in a CONFIG; None where it tells none."""
    pattern = config.get("rank_pattern")
    told = [config.get("r"), *(pattern.values() if isinstance(pattern, Mapping) else ())]
    return max((rank for rank in told if type(rank) is int and rank > 0), default=None)


def adapter_bytes(architecture: Architecture, serving: Serving) -> int:
    """What the adapters of one batch take of each GPU: vLLM keeps room for the highest rank in every layer.

    The in and the out of each linear layer, of which one is split between GPUs, and of the two embeddings.
    """
    if not serving.adapters:
        return 0
    kept = sum(each.layers * each.kv_heads * each.values for each in architecture.attention)
    mlp = max(architecture.experts, 1) * 3 * (architecture.hidden + architecture.mlp_width)
    layers = architecture.layers * (6 * architecture.hidden + mlp) + kept
    shared = layers * (1 + 1 / serving.tensor_parallel) / 2 / serving.pipeline_parallel
    elements = serving.adapters * serving.adapter_rank * (int(shared) + 2 * architecture.vocab)
    return elements * kv_cache.dtype_bytes(architecture, serving)
