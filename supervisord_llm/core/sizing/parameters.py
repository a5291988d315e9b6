"""Weights counted from config.json alone, for a model whose files are not here. Pure.

Within a percent or two for decoders in the manner of Llama, with or without experts, MLA or linear attention.
"""

from collections.abc import Mapping
from typing import Any

from supervisord_llm.core.sizing.fields import Fields, UnknownArchitecture, quantization_of, usual_form
from supervisord_llm.core.sizing.layers import LayerKind, kinds
from supervisord_llm.core.sizing.weights import CASTABLE, Group, Role, Weights

_TWO_MATRICES = (
    *("falcon", "gpt2", "gpt_neox", "gptj", "gpt_bigcode", "opt", "phi", "starcoder2", "bloom", "mpt"),
    *("nemotron", "nemotron_h", "bert", "roberta", "xlm-roberta", "codegen"),
)
"""Families whose MLP has no gate: up and down."""
_LEARNT_POSITIONS = ("gpt2", "gpt_bigcode", "opt", "bert", "roberta", "xlm-roberta")

_SAFETENSORS_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "half": "F16", "float": "F32"}


def count(config: Mapping[str, Any]) -> Weights:
    """What a checkpoint with this config.json has stored.

    Raises:
        UnknownArchitecture: it does not say enough, or is quantised in a way unknown here.
    """
    with usual_form():
        return _count(config)


def _count(config: Mapping[str, Any]) -> Weights:
    fields = Fields(config)
    dtype = str(fields.get("torch_dtype", "dtype") or "bfloat16").removeprefix("torch.")
    stored = _SAFETENSORS_NAMES.get(dtype, "BF16")
    found = kinds(fields.values, fields.model_type, fields.layers)
    linear = sum(_attention(fields, kind) for kind in found)
    linear += sum(_dense_mlp(fields, layer) for layer in range(fields.layers))
    experts = sum(_experts(fields, layer) for layer in range(fields.layers))
    dense = fields.vocab * fields.hidden * (1 if fields.tied else 2) + (2 * fields.layers + 1) * fields.hidden
    if fields.model_type in _LEARNT_POSITIONS:
        dense += fields.whole("max_position_embeddings", "n_positions", default=0) * fields.hidden
    vision = _vision(config)
    quantized = quantization_of(config)
    width = _quantized_width(quantized)
    experts_only = quantized.get("quant_method") == "mxfp4"
    return (
        Group(Role.DENSE, stored, dense, dense * CASTABLE[stored]),
        _group(linear, stored, None if experts_only else width),
        _group(experts, stored, width),
        _group(vision, stored, None),
    )


def _group(parameters: int, stored: str, width: float | None) -> Group:
    """Of linear layers: plain, or quantised to `width` bytes a parameter."""
    if width is None:
        return Group(Role.LINEAR, stored, parameters, parameters * CASTABLE[stored])
    return Group(Role.FIXED, "packed", parameters, int(parameters * width))


def _attention(fields: Fields, kind: LayerKind) -> int:
    hidden, heads = fields.hidden, fields.heads
    total = _mixer(fields) if kind.has_state else 0
    if not kind.attends:
        return total
    if fields.is_latent:
        rank, rope = fields.whole("kv_lora_rank"), fields.whole("qk_rope_head_dim")
        nope, value = fields.whole("qk_nope_head_dim"), fields.whole("v_head_dim")
        query = heads * (nope + rope)
        query_rank = fields.whole("q_lora_rank", default=0)
        total += query_rank * (hidden + query) if query_rank else hidden * query
        return total + hidden * (rank + rope) + rank * heads * (nope + value) + heads * value * hidden
    size, kv_heads = fields.head_size, fields.kv_heads
    gate = 2 if fields.get("attn_output_gate") or fields.model_type == "qwen3_next" else 1
    return total + hidden * size * (gate * heads + 2 * kv_heads) + heads * size * hidden


def _mixer(fields: Fields) -> int:
    """A layer of linear attention or Mamba."""
    hidden = fields.hidden
    if value_heads := fields.whole("linear_num_value_heads", default=0):
        keys = fields.whole("linear_num_key_heads") * fields.whole("linear_key_head_dim")
        values = value_heads * fields.whole("linear_value_head_dim")
        return hidden * (2 * keys + 2 * values + 2 * value_heads) + values * hidden
    depth = fields.whole("mamba_d_state", "ssm_state_size", "state_size", default=0)
    if heads := fields.whole("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", default=0):
        size = fields.whole("mamba_d_head", "mamba_head_dim", "mamba_headdim")
        groups = fields.whole("mamba_n_groups", "n_groups", "mamba_ngroups", default=1)
        return hidden * (2 * heads * size + 2 * groups * depth + heads) + heads * size * hidden
    if not depth:
        raise UnknownArchitecture("the size of its layers without attention is not said")
    inner = fields.whole("mamba_expand", "expand", default=2) * hidden
    rank = fields.whole("mamba_dt_rank", "time_step_rank", default=-(-hidden // 16))
    return 3 * hidden * inner + inner * (2 * rank + 3 * depth)


def _matrices(fields: Fields) -> int:
    return 2 if fields.model_type in _TWO_MATRICES else 3


def _dense_mlp(fields: Fields, layer: int) -> int:
    """The MLP that every token goes through: all of a plain layer, the shared part beside experts."""
    each = _matrices(fields) * fields.hidden
    if not _is_sparse(fields, layer):
        return each * fields.whole("intermediate_size_mlp", default=fields.mlp_width)
    if shared := fields.whole("shared_expert_intermediate_size", "shared_intermediate_size", default=0):
        return each * shared
    number = fields.whole("n_shared_experts", "num_shared_experts", default=0)
    if fields.model_type.startswith("llama4"):
        number = 1
    return each * number * fields.expert_width


def _experts(fields: Fields, layer: int) -> int:
    if not _is_sparse(fields, layer):
        return 0
    return fields.experts * _matrices(fields) * fields.hidden * fields.expert_width


def _is_sparse(fields: Fields, layer: int) -> bool:
    """Whether the layer has experts."""
    if not fields.experts:
        return False
    if layer < fields.whole("first_k_dense_replace", default=0):
        return False
    if layer in (fields.get("mlp_only_layers") or ()):
        return False
    if period := fields.whole("expert_layer_period", default=0):  # Jamba
        return layer % period == fields.whole("expert_layer_offset", default=0)
    every = fields.whole("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", default=1)
    return every > 0 and (layer + 1) % every == 0


def _vision(config: Mapping[str, Any]) -> int:
    """The encoder of images: a plain transformer."""
    inner = config.get("vision_config")
    if not isinstance(inner, Mapping):
        return 0
    vision = Fields(inner)
    try:
        layers, hidden = vision.whole("num_hidden_layers", "depth"), vision.whole("embed_dim", "hidden_size")
    except UnknownArchitecture:
        return 0
    ratio = vision.get("mlp_ratio")
    width = vision.whole("intermediate_size", default=int(hidden * ratio) if ratio else 4 * hidden)
    gated = 3 if vision.get("hidden_act") == "silu" else 2
    return layers * hidden * (4 * hidden + gated * width)


def _quantized_width(quantized: Mapping[str, Any]) -> float | None:
    """Bytes of a parameter of a quantised linear layer with its share of the scales; None: not quantised.

    Raises:
        UnknownArchitecture: the method is unknown here.
    """
    method = quantized.get("quant_method")
    match method:
        case None:
            return None
        case "fp8" | "fbgemm_fp8" | "ptpc_fp8":
            return 1 + (4 / 128**2 if quantized.get("weight_block_size") else 0)
        case "awq" | "gptq" | "awq_marlin" | "gptq_marlin" | "auto-round":
            return _grouped(quantized.get("bits", quantized.get("w_bit")), quantized, zeros=True)
        case "bitsandbytes" if quantized.get("load_in_8bit") or quantized.get("_load_in_8bit"):
            return 1.0
        case "bitsandbytes":
            # A scale for each 64: float32, or a byte where the scales are quantised, too.
            return 0.5 + (1 if quantized.get("bnb_4bit_use_double_quant") else 4) / 64
        case "mxfp4":
            return 0.5 + 1 / 32
        case "modelopt_fp4" | "nvfp4":
            return 0.5 + 1 / 16
        case "compressed-tensors" | "compression_config":
            groups = quantized.get("config_groups")
            first: object = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
            if isinstance(first, Mapping) and isinstance(told := first.get("weights"), Mapping):
                return _grouped(told.get("num_bits"), told, zeros=told.get("symmetric") is False)
        case _:
            pass
    raise UnknownArchitecture(f"it is quantised in a way unknown here ({method})")


def _grouped(bits: object, told: Mapping[str, Any], *, zeros: bool) -> float:
    if not isinstance(bits, int):
        raise UnknownArchitecture("its quantization_config tells no bits")
    size = told.get("group_size", told.get("q_group_size"))
    if not isinstance(size, int) or size <= 0:
        return bits / 8
    return bits / 8 + (2 + (bits / 8 if zeros else 0)) / size
