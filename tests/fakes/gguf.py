"""The tiny model as one file in llama.cpp's format, GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

Standard library only.
"""

import json
import struct
from pathlib import Path
from typing import Any

ALIGNMENT = 32
UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32 = 4, 6, 7, 8, 9, 5
"""Kinds of values. A tensor of kind 0 is float32."""

NORMAL, CONTROL = 1, 3
"""Kinds of tokens."""

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(file: Path, model: Path) -> None:
    """Write what tiny_model.write_tiny_model put into the directory `model`."""
    config = json.loads((model / "config.json").read_text())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    told = json.loads((model / "tokenizer_config.json").read_text())
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    values: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, "llama"),
        "general.name": (STRING, "tiny"),
        "llama.context_length": (UINT32, config["max_position_embeddings"]),
        "llama.embedding_length": (UINT32, config["hidden_size"]),
        "llama.block_count": (UINT32, config["num_hidden_layers"]),
        "llama.feed_forward_length": (UINT32, config["intermediate_size"]),
        "llama.attention.head_count": (UINT32, config["num_attention_heads"]),
        "llama.attention.head_count_kv": (UINT32, config["num_key_value_heads"]),
        "llama.attention.layer_norm_rms_epsilon": (FLOAT32, config["rms_norm_eps"]),
        "llama.rope.freq_base": (FLOAT32, config["rope_theta"]),
        "llama.rope.dimension_count": (UINT32, config["head_dim"]),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.token_type": (
            ARRAY,
            (INT32, [CONTROL if token in special else NORMAL for token in tokens]),
        ),
        "tokenizer.ggml.merges": (ARRAY, (STRING, [])),
        "tokenizer.ggml.bos_token_id": (UINT32, config["bos_token_id"]),
        "tokenizer.ggml.eos_token_id": (UINT32, config["eos_token_id"]),
        "tokenizer.ggml.padding_token_id": (UINT32, config["pad_token_id"]),
        "tokenizer.ggml.add_bos_token": (BOOL, False),
        "tokenizer.chat_template": (STRING, told["chat_template"]),
    }
    tensors = read_tensors(model / "model.safetensors")
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for name, (kind, value) in values.items():
        head += text(name) + struct.pack("<I", kind) + encoded(kind, value)
    data = b""
    for name, (shape, content) in tensors.items():
        data += bytes(-len(data) % ALIGNMENT)
        sizes = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += text(renamed(name)) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", 0, len(data))
        data += content
    file.write_bytes(head + bytes(-len(head) % ALIGNMENT) + data)


def read_tensors(file: Path) -> dict[str, tuple[list[int], bytes]]:
    """Shape and float32 values of each; the file has bfloat16."""
    raw = file.read_bytes()
    begin = 8 + struct.unpack("<Q", raw[:8])[0]
    found = {}
    for name, entry in json.loads(raw[8:begin]).items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            halves = raw[begin + first : begin + end]
            wide = bytearray(2 * len(halves))
            wide[2::4], wide[3::4] = halves[0::2], halves[1::2]
            found[name] = entry["shape"], bytes(wide)
    return found


def renamed(name: str) -> str:
    bare = name.removesuffix(".weight")
    if bare.startswith("model.layers."):
        _, _, layer, part = bare.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return f"{NAMES[bare]}.weight"


def encoded(kind: int, value: Any) -> bytes:
    match kind:
        case 4:
            return struct.pack("<I", value)
        case 5:
            return struct.pack("<i", value)
        case 6:
            return struct.pack("<f", value)
        case 7:
            return struct.pack("<?", value)
        case 8:
            return text(value)
        case _:
            inner, items = value
            return struct.pack("<IQ", inner, len(items)) + b"".join(encoded(inner, item) for item in items)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw
