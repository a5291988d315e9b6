"""A LoRA adapter for the tiny model, of numbers that one can follow: it leaves out every other word.

The tiny model is a table of bigrams: the k-th word of its phrase is unit k, from which the output layer makes
the next word. The adapter's MLP adds unit k + 1 to unit k, sixty-four times as strong.
"""

import json
from array import array
from pathlib import Path

from supervisord_llm.provision.tiny_model import fragments

Matrix = list[list[float]]


def write_tiny_adapter(directory: Path, model: Path, phrase: str) -> Path:
    """Write the adapter of the tiny model at `model`, whose phrase it is."""
    config = json.loads((model / "config.json").read_text())
    hidden, width, rank = config["hidden_size"], config["intermediate_size"], len(fragments(phrase))
    into, ahead = eye(rank, hidden), eye(hidden, rank, down=1)
    tensors = {
        "gate_proj": (into, eye(width, rank)),
        "up_proj": (into, eye(width, rank)),
        "down_proj": (eye(rank, width), ahead),
    }
    directory.mkdir(parents=True, exist_ok=True)
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(tensors)}
    (directory / "adapter_config.json").write_text(json.dumps(told))
    prefix = "base_model.model.model.layers.0.mlp"
    named = {
        f"{prefix}.{name}.lora_{side}.weight": matrix
        for name, pair in tensors.items()
        for side, matrix in zip("AB", pair, strict=True)
    }
    write_safetensors(directory / "adapter_model.safetensors", named)
    return directory


def said_by_adapter(phrase: str) -> str:
    """What it makes of the model's phrase."""
    return "".join(fragments(phrase)[1::2])


def eye(rows: int, columns: int, down: int = 0) -> Matrix:
    """Ones on the diagonal, or `down` below it."""
    return [[float(row == column + down) for column in range(columns)] for row in range(rows)]


def write_safetensors(file: Path, tensors: dict[str, Matrix]) -> None:
    header, data = {}, b""
    for name, matrix in tensors.items():
        raw = array("f", [value for row in matrix for value in row]).tobytes()
        shape = [len(matrix), len(matrix[0])]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
