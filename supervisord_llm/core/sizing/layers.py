"""Which layer of a model keeps what of a sequence: all tokens, the last few, or a fixed state. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LayerKind:
    """One layer: whether it attends to tokens and how far back, and whether it keeps a state (instead)."""

    attends: bool = True
    window: int | None = None
    has_state: bool = False


FULL = LayerKind()
STATE = LayerKind(attends=False, has_state=True)
BOTH = LayerKind(has_state=True)
NEITHER = LayerKind(attends=False)

_NAMED: Mapping[str, LayerKind] = {
    "full_attention": FULL,
    "attention": FULL,
    "global": FULL,
    "linear_attention": STATE,
    "mamba": STATE,
    "mamba2": STATE,
    "recurrent": STATE,
    "conv": STATE,
    "hybrid": BOTH,
    "mlp": NEITHER,
    "moe": NEITHER,
}
_LETTERS: Mapping[str, LayerKind] = {"*": FULL, "M": STATE, "-": NEITHER, "E": NEITHER}
"""Of Nemotron's `hybrid_override_pattern`."""

_STATE_WIDTH_BYTES = 4
"""A recurrent state is kept in float32 at most (`mamba_ssm_cache_dtype`)."""
_CONV_WIDTH_BYTES = 2


def kinds(config: Mapping[str, Any], model_type: str, layers: int) -> list[LayerKind]:
    """One kind for each layer, in order. What a config does not say is attention to everything."""
    window = _positive(config.get("sliding_window"))
    sliding = LayerKind(window=window)
    chunked = LayerKind(window=_positive(config.get("attention_chunk_size")))
    if isinstance(named := config.get("layer_types", config.get("layers_block_type")), list):
        table = {**_NAMED, "sliding_attention": sliding, "chunked_attention": chunked}
        return [table.get(str(name), FULL) for name in named[:layers]]
    if isinstance(pattern := config.get("hybrid_override_pattern"), str):
        return [_LETTERS.get(letter, FULL) for letter in pattern]
    if isinstance(linear := config.get("linear_attn_config"), Mapping):  # Kimi Linear counts from one
        attending = linear.get("full_attn_layers") or ()
        return [FULL if number in attending else STATE for number in range(1, layers + 1)]
    if every := _positive(config.get("full_attention_interval")):  # Qwen3-Next
        return [FULL if number % every == 0 else STATE for number in range(1, layers + 1)]
    if every := _positive(config.get("attn_layer_period")):  # Jamba
        offset = config.get("attn_layer_offset") or 0
        return [FULL if layer % every == offset else STATE for layer in range(layers)]
    if model_type in ("mamba", "mamba2", "falcon_mamba"):
        return [STATE] * layers
    if model_type == "falcon_h1":
        return [BOTH] * layers
    if model_type.startswith("llama4") and chunked.window:
        return [FULL if number % 4 == 0 else chunked for number in range(1, layers + 1)]
    return _sliding(config, model_type, layers, sliding)


def _sliding(config: Mapping[str, Any], model_type: str, layers: int, sliding: LayerKind) -> list[LayerKind]:
    """Configs written before `layer_types`: the pattern is the family's."""
    if sliding.window is None or config.get("use_sliding_window") is False:
        return [FULL] * layers
    if model_type.startswith("qwen"):
        first = config.get("max_window_layers")
        return [sliding if layer >= (first or 0) else FULL for layer in range(layers)]
    families = {"gemma2": 2, "gpt_oss": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4}
    every = _positive(config.get("sliding_window_pattern")) or families.get(model_type)
    if every is None:
        return [sliding] * layers
    return [FULL if number % every == 0 else sliding for number in range(1, layers + 1)]


def state_size(config: Mapping[str, Any], hidden: int) -> int | None:
    """Bytes that one layer without attention keeps of a sequence; None where the config does not tell."""

    def number(*names: str) -> int:
        return next((found for name in names if (found := _positive(config.get(name)))), 0)

    if heads := number("linear_num_value_heads"):  # gated delta net
        key, value = number("linear_key_head_dim"), number("linear_value_head_dim")
        mixed = 2 * number("linear_num_key_heads") * key + heads * value
        return _state(heads * key * value, mixed, number("linear_conv_kernel_dim"))
    conv = number("mamba_d_conv", "conv_kernel", "mamba_conv_kernel", "conv_kernel_size")
    depth = number("mamba_d_state", "ssm_state_size", "state_size")
    if heads := number("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"):  # Mamba 2
        size = number("mamba_d_head", "mamba_head_dim", "mamba_headdim")
        if not size:
            size = number("mamba_expand", "expand") * hidden // heads
        groups = number("mamba_n_groups", "n_groups", "mamba_ngroups") or 1
        return _state(heads * size * depth, heads * size + 2 * groups * depth, conv)
    if depth:  # Mamba 1
        inner = number("intermediate_size") if "state_size" in config else 0
        inner = inner or (number("mamba_expand", "expand") or 2) * hidden
        return _state(inner * depth, inner, conv)
    if short := number("conv_L_cache"):  # LFM2
        return _state(0, hidden, short)
    if isinstance(linear := config.get("linear_attn_config"), Mapping):
        heads, size = _positive(linear.get("num_heads")) or 0, _positive(linear.get("head_dim")) or 0
        return _state(heads * size * size, 3 * heads * size, linear.get("short_conv_kernel_size") or 4)
    return None


def _state(recurrent: int, mixed: int, conv_width: int) -> int:
    return recurrent * _STATE_WIDTH_BYTES + mixed * max(conv_width - 1, 0) * _CONV_WIDTH_BYTES


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
