"""A tiny Llama that answers one phrase to any prompt, made from nothing in a tenth of a second.

For a machine without a way to a model hub, and for tests that must see which model answered. vLLM loads and
runs it like any other model. How it works: attention and MLP add nothing, so the network is a table of
bigrams. The embedding of a token is one unit: unit k for the k-th token of the phrase, unit 0 for everything
else; the output layer maps unit k to the next token of the phrase, and the last one to the end of the text.

Standard library only.
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIALS = (BOS, EOS, PAD, *ROLES)
MAX_TOKENS = 4096
LAYERS = 2
HEAD_SIZE = 32

CHAT_TEMPLATE = (
    f"{{{{ '{BOS}' }}}}"
    "{% for message in messages %}"
    "{{ '<|' + (message['role'] if message['role'] in ('system', 'assistant') else 'user') + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part.get('text', '') }}{% endfor %}{% endif %}"
    f"{{{{ '{EOS}' }}}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

Tensor = tuple[list[int], bytes]
"""Shape, and bfloat16 values, little-endian."""


def write_tiny_model(directory: Path, phrase: str) -> None:
    """Write the model into `directory`: about 0.3 MiB. Each reply is `phrase`, then the end of the text.

    Raises:
        ValueError: the phrase has fewer than two bytes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    byte_names = _byte_names()
    words = ["".join(byte_names[byte] for byte in part.encode()) for part in fragments(phrase)]
    tokens = [*SPECIALS, *byte_names, *words]
    tokens += [f"<|unused{number}|>" for number in range(-len(tokens) % 64)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    hidden = 64 * math.ceil((len(words) + 1) / 64)
    files = {
        "config.json": _config(vocabulary, hidden),
        "generation_config.json": {"bos_token_id": vocabulary[BOS], "eos_token_id": vocabulary[EOS]},
        "tokenizer.json": _tokenizer(vocabulary),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "model_max_length": MAX_TOKENS,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    _write_safetensors(directory / "model.safetensors", _tensors(vocabulary, words, hidden))


def fragments(phrase: str) -> list[str]:
    """The phrase in pieces of two bytes or more, all different: one token each.

    A word that repeats is joined to the next, since a table of bigrams knows one successor per token. Single
    bytes are what prompts are made of.
    """
    if len(phrase.encode()) < 2:
        raise ValueError("a phrase needs two bytes or more")
    found: list[str] = []
    rest = ""
    for word in re.findall(r"\s*\S+\s*$|\s*\S+|\s+", phrase):
        rest += word
        if len(rest.encode()) > 1 and rest not in found:
            found.append(rest)
            rest = ""
    while rest:  # the end repeats something: join it to what is before it
        rest = found.pop() + rest
        if rest not in found:
            found.append(rest)
            rest = ""
    return found


def _byte_names() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE vocabularies (as in GPT-2)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _tensors(vocabulary: Mapping[str, int], words: list[str], hidden: int) -> dict[str, Tensor]:
    size = len(vocabulary)
    phrase = [vocabulary[word] for word in words]
    unit_of = {token: unit for unit, token in enumerate(phrase, start=1)}
    predicted_by = {token: unit for unit, token in enumerate([*phrase, vocabulary[EOS]])}
    one, confident = _bfloat16(1.0), _bfloat16(4.0)  # after the norm, a logit of 4 x sqrt(hidden) against 0
    nothing = bytes(2 * hidden)
    embeddings = b"".join(_row(unit_of.get(token, 0), one, hidden) for token in range(size))
    output = b"".join(
        _row(predicted_by[token], confident, hidden) if token in predicted_by else nothing
        for token in range(size)
    )
    norm: Tensor = ([hidden], one * hidden)
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": ([size, hidden], embeddings),
        "model.norm.weight": norm,
        "lm_head.weight": ([size, hidden], output),
    }
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "self_attn.k_proj": (HEAD_SIZE, hidden),
        "self_attn.v_proj": (HEAD_SIZE, hidden),
        "mlp.gate_proj": (2 * hidden, hidden),
        "mlp.up_proj": (2 * hidden, hidden),
        "mlp.down_proj": (hidden, 2 * hidden),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = norm
        for name, (rows, columns) in shapes.items():
            tensors[f"{prefix}{name}.weight"] = ([rows, columns], bytes(2 * rows * columns))
    return tensors


def _row(unit: int, value: bytes, hidden: int) -> bytes:
    return bytes(2 * unit) + value + bytes(2 * (hidden - unit - 1))


def _bfloat16(value: float) -> bytes:
    """The upper half of a float32; exact for the small whole numbers used here."""
    return struct.pack("<f", value)[2:]


def _write_safetensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """The length of the header (8 bytes), the header (JSON, padded to 8), then the tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values()))


def _config(vocabulary: Mapping[str, int], hidden: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": len(vocabulary),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": hidden // HEAD_SIZE,
        "num_key_value_heads": 1,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": MAX_TOKENS,
        "tie_word_embeddings": False,
        "bos_token_id": vocabulary[BOS],
        "eos_token_id": vocabulary[EOS],
        "pad_token_id": vocabulary[PAD],
    }


def _tokenizer(vocabulary: Mapping[str, int]) -> dict[str, object]:
    """Byte-level BPE without merges: a prompt becomes bytes, and only replies hold the phrase's tokens."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[token], "content": token, **plain} for token in SPECIALS],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }
