"""What the config.json of a model says of its shape. Pure, and tolerant: other people wrote those files.

The rules are vLLM's (`ModelArchConfigConvertorBase`, `ModelConfig._get_and_verify_max_len`).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supervisord_llm.core.sizing.fields import Fields, UnknownArchitecture, quantization_of, usual_form
from supervisord_llm.core.sizing.layers import LayerKind, kinds, state_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Layers that keep the same of each token."""

    layers: int
    kv_heads: int
    values: int
    """Elements that one head keeps of a token: key and value together."""
    window: int | None = None
    """Tokens back that a layer looks at; None: all of them."""
    latent: bool = False
    """MLA: the one head is a compressed mixture, whole on every GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The shape of a model, as far as memory goes. Sizes are numbers of elements."""

    model_type: str
    hidden: int
    vocab: int
    layers: int
    mlp_width: int
    """Of a dense MLP; of one expert where there are experts."""
    experts: int
    """In each layer; 0 where the MLPs are dense."""
    experts_per_token: int
    max_model_len: int
    dtype: str
    """As the config names it ("bfloat16"); "" where it does not."""
    quantization: str
    """How the checkpoint is quantised ("fp8", "awq", …); "" where it is not."""
    tied: bool
    """The output layer is the embedding."""
    drafts: bool
    """The checkpoint has layers after the last that only speculative decoding loads."""
    attention: tuple[Attention, ...]
    state_bytes: int
    """What all linear-attention and Mamba layers keep of a sequence, whatever its length."""


UNKNOWN_LENGTH = 2048
"""vLLM's own, for a config that tells no length."""

_LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
_ENCODERS = ("bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert", "distilbert", "camembert", "new")


def parse(config: Mapping[str, Any]) -> Architecture:
    """The shape that a parsed config.json describes.

    Raises:
        UnknownArchitecture: what it does not say.
    """
    with usual_form():
        return _parse(config)


def _parse(config: Mapping[str, Any]) -> Architecture:
    fields = Fields(config)
    if fields.get("is_encoder_decoder") is True:
        raise UnknownArchitecture("it is an encoder with a decoder")
    if fields.get("compress_ratios") is not None:
        raise UnknownArchitecture("its attention compresses the past layer by layer")
    found = kinds(fields.values, fields.model_type, fields.layers)
    if fields.model_type in _ENCODERS:
        found = []
    return Architecture(
        model_type=fields.model_type,
        hidden=fields.hidden,
        vocab=fields.vocab,
        layers=fields.layers,
        mlp_width=fields.expert_width if fields.experts else fields.mlp_width,
        experts=fields.experts,
        experts_per_token=fields.whole(
            *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts"),
            default=2 if fields.experts else 0,
        ),
        max_model_len=_max_model_len(fields),
        dtype=str(fields.get("torch_dtype", "dtype") or "").removeprefix("torch."),
        quantization=quantization_of(config).get("quant_method", ""),
        tied=fields.tied,
        drafts=bool(fields.get("num_nextn_predict_layers")),
        attention=_attention(fields, found),
        state_bytes=_state_bytes(fields, found),
    )


def _attention(fields: Fields, found: list[LayerKind]) -> tuple[Attention, ...]:
    if fields.is_latent:
        values = fields.whole("kv_lora_rank") + fields.whole("qk_rope_head_dim")
        layers = sum(kind.attends for kind in found)
        return (Attention(layers=layers, kv_heads=1, values=values, latent=True),) if layers else ()
    shared = fields.whole("num_kv_shared_layers", default=0)  # the last layers read what others keep
    windows = Counter(kind.window for kind in found[: len(found) - shared] if kind.attends)
    return tuple(
        Attention(layers=layers, kv_heads=heads, values=values, window=window)
        for window, layers in windows.items()
        for heads, values in [_head(fields, is_global=window is None)]
    )


def _head(fields: Fields, *, is_global: bool) -> tuple[int, int]:
    """KV heads and the elements each keeps of a token; Gemma 4's global layers have sizes of their own."""
    if is_global and fields.get("global_head_dim"):
        heads = fields.whole("num_global_key_value_heads", default=fields.kv_heads)
        return heads, 2 * fields.whole("global_head_dim")
    value = fields.whole("v_head_dim", default=0)
    return fields.kv_heads, fields.head_size + (value or fields.head_size)


def _state_bytes(fields: Fields, found: list[LayerKind]) -> int:
    layers = sum(kind.has_state for kind in found)
    if not layers:
        return 0
    size = state_size(fields.values, fields.hidden)
    if size is None:
        raise UnknownArchitecture(
            f"what its {layers} layers without attention keep of a sequence is not said"
        )
    return layers * size


def _max_model_len(fields: Fields) -> int:
    """The context that vLLM serves unless told otherwise."""
    told = [length for name in _LENGTHS if type(length := fields.get(name)) is int and length > 0]
    if type(longest := fields.get("model_max_length")) is int and longest > 0:
        told = [longest]
    length = min(told, default=UNKNOWN_LENGTH)
    rope = fields.get("rope_scaling", "rope_parameters")
    if not isinstance(rope, Mapping) or "gemma3" in fields.model_type:  # whose length is scaled already
        return length
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor", 1.0)
    original = rope.get("original_max_position_embeddings") or fields.get("original_max_position_embeddings")
    if kind in ("longrope", "su"):
        return original if kind == "longrope" and type(original) is int else length
    if kind in (None, "default", "llama3", "mrope") or not isinstance(factor, int | float):
        return length
    if kind == "yarn" and type(original) is int:
        length = original
    return int(length * factor)
