"""A directory that looks like the weights of a small Llama: whole, but of no use to a real engine."""

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
}


def safetensors(tensors: dict[str, int]) -> bytes:
    """A whole safetensors file of float32 vectors: {name: number of values}."""
    header: dict[str, Any] = {}
    offset = 0
    for name, count in tensors.items():
        header[name] = {"dtype": "F32", "shape": [count], "data_offsets": [offset, offset + 4 * count]}
        offset += 4 * count
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(offset)


def make_weights(directory: Path, *, shards: int = 1, **config: Any) -> Path:
    """Write config.json (with `config` on top), safetensors in `shards` files and a tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    tokenizer = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    if shards == 1:
        (directory / "model.safetensors").write_bytes(safetensors({"lm_head.weight": 16}))
        return directory
    weight_map = {}
    for shard in range(1, shards + 1):
        file = f"model-{shard:05}-of-{shards:05}.safetensors"
        (directory / file).write_bytes(safetensors({f"layer.{shard}": 16}))
        weight_map[f"layer.{shard}"] = file
    index = {"metadata": {"total_size": 64 * shards}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def make_adapter(directory: Path, *, rank: int = 8, **config: Any) -> Path:
    """Write a LoRA adapter as PEFT saves them, whole, but of no use to a real engine."""
    directory.mkdir(parents=True, exist_ok=True)
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"], **config}
    (directory / "adapter_config.json").write_text(json.dumps(told))
    (directory / "adapter_model.safetensors").write_bytes(safetensors({"q_proj.lora_A.weight": 16}))
    return directory
