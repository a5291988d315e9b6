"""A parsed config.json, read by any of the names that a thing has in different families. Pure."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class UnknownArchitecture(ValueError):
    """The config does not say what an estimate needs; the message ends a sentence "cannot be told: …"."""


@contextmanager
def usual_form() -> Iterator[None]:
    """Whatever an odd config makes of arithmetic, as an UnknownArchitecture."""
    try:
        yield
    except UnknownArchitecture:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as why:
        raise UnknownArchitecture("its config.json has values of an unusual form") from why


LARGEST = 10**9
"""No size or number in a config is larger; one that is was not meant."""
MOST_LAYERS = 4096

TIED_FAMILIES = (
    *("gemma", "falcon", "gpt2", "gpt_bigcode", "opt", "bloom", "mpt", "cohere", "starcoder2"),
    *("bert", "roberta", "xlm-roberta", "modernbert", "t5gemma"),
)
"""Whose `tie_word_embeddings` is true where config.json does not mention it."""

_LEFT_OUT: Mapping[str, Mapping[str, int]] = {
    "gemma3_text": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    },
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
}
"""Defaults of the classes in transformers, which multimodal configs leave out of their `text_config`."""

_PLAIN_HEADS = ("minicpm3",)
"""Have a low rank for keys and values, and keep them at full width all the same."""


class Fields:
    """A config of the text part, by any of the names that a thing has in different families."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        text = config
        for name in ("thinker_config", "text_config", "language_config", "llm_config"):
            if isinstance(inner := text.get(name), Mapping):
                text = {**text, **inner}
        self.values: Mapping[str, Any] = {**_LEFT_OUT.get(str(text.get("model_type")), {}), **text}
        self.model_type = str(text.get("model_type", ""))

    def get(self, *names: str) -> Any:
        """The first that is there and not null."""
        return next((found for name in names if (found := self.values.get(name)) is not None), None)

    def whole(self, *names: str, default: int | None = None) -> int:
        """The first of them that is a whole number, or of a list its largest.

        Raises:
            UnknownArchitecture: none is, and there is no default.
        """
        for name in names:
            found = self.values.get(name)
            if isinstance(found, list) and found and all(type(each) is int for each in found):
                found = max(found)
            if type(found) is int and 0 <= found <= LARGEST:
                return found
        if default is None:
            raise UnknownArchitecture(f"its config.json has no {names[0]}")
        return default

    @property
    def hidden(self) -> int:
        return self.whole("hidden_size", "n_embd", "d_model")

    @property
    def layers(self) -> int:
        return min(self.whole("num_hidden_layers", "n_layer", "num_layers", "n_layers"), MOST_LAYERS)

    @property
    def heads(self) -> int:
        return self.whole("num_attention_heads", "n_head", "n_heads")

    @property
    def vocab(self) -> int:
        return self.whole("vocab_size")

    @property
    def kv_heads(self) -> int:
        """Falcon's first generation says only that it shares one; MPT and DBRX nest the number."""
        if self.get("multi_query") is True and self.get("new_decoder_architecture") is not True:
            return 1
        nested = self.get("attn_config")
        if isinstance(nested, Mapping) and type(found := nested.get("kv_n_heads")) is int:
            return found
        names = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num")
        return self.whole(*names, "num_attention_groups", default=self.heads)

    @property
    def head_size(self) -> int:
        if self.get("head_dim") or self.get("hidden_size_per_head"):
            return self.whole("head_dim", "hidden_size_per_head")
        if self.model_type in _PLAIN_HEADS:
            return self.whole("qk_nope_head_dim") + self.whole("qk_rope_head_dim")
        return self.hidden // max(self.heads, 1)

    @property
    def is_latent(self) -> bool:
        return bool(self.get("kv_lora_rank")) and self.model_type not in _PLAIN_HEADS

    @property
    def experts(self) -> int:
        return self.whole(
            *("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), default=0
        )

    @property
    def expert_width(self) -> int:
        return self.whole("moe_intermediate_size", "expert_ffn_hidden_size", default=self.mlp_width)

    @property
    def mlp_width(self) -> int:
        names = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
        return self.whole(*names, default=4 * self.hidden)

    @property
    def tied(self) -> bool:
        told = self.get("tie_word_embeddings")
        return self.model_type.startswith(TIED_FAMILIES) if told is None else told is True


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that tells how the checkpoint is quantised; empty where it is not."""
    for holder in (config, config.get("text_config")):
        if isinstance(holder, Mapping):
            for name in ("quantization_config", "compression_config"):
                if isinstance(found := holder.get(name), Mapping):
                    return {**found, "quant_method": str(found.get("quant_method", name)).lower()}
    return {}
