"""The tiny model: well-formed, and its table of bigrams says the phrase.

Real vLLM serves it in tests/e2e.
"""

import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.provision.tiny_model import EOS, fragments, write_tiny_model

PHRASE = "I am alpha, and I am not beta. Grüße!"


def read_safetensors(file: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def matrix(header: dict[str, dict[str, object]], data: bytes, name: str) -> list[list[float]]:
    entry = header[name]
    begin, end = entry["data_offsets"]  # type: ignore[misc]
    rows, columns = entry["shape"]  # type: ignore[misc]
    halves = struct.unpack(f"<{(end - begin) // 2}H", data[begin:end])
    values = struct.unpack(f"<{len(halves)}f", b"".join(struct.pack("<HH", 0, half) for half in halves))
    return [list(values[row * columns : (row + 1) * columns]) for row in range(rows)]


def test_every_tensor_is_there_whole_and_in_order(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, PHRASE)
    header, data = read_safetensors(tmp_path / "model.safetensors")
    header.pop("__metadata__")
    end = 0
    for entry in header.values():
        assert entry["dtype"] == "BF16"
        assert entry["data_offsets"] == [end, end := end + 2 * math.prod(entry["shape"])]  # type: ignore[arg-type]
    assert end == len(data)
    config = json.loads((tmp_path / "config.json").read_text())
    size = [config["vocab_size"], config["hidden_size"]]
    assert header["model.embed_tokens.weight"]["shape"] == header["lm_head.weight"]["shape"] == size
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(config["vocab_size"]))


@pytest.mark.parametrize("begin", ["<|assistant|>", EOS, "a", "!"])
def test_greedy_decoding_from_any_prompt_says_the_phrase_and_ends(tmp_path: Path, begin: str) -> None:
    write_tiny_model(tmp_path, PHRASE)
    header, data = read_safetensors(tmp_path / "model.safetensors")
    embeddings = matrix(header, data, "model.embed_tokens.weight")
    output = matrix(header, data, "lm_head.weight")
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    names = {number: token for token, number in vocabulary.items()}
    said, token = [], vocabulary[begin]
    for _ in range(100):
        unit = embeddings[token].index(1.0)
        token = max(range(len(output)), key=lambda candidate: output[candidate][unit])
        if names[token] == EOS:
            break
        said.append(names[token])
    assert len(said) == len(fragments(PHRASE))
    assert "".join(said).replace("Ġ", " ").startswith("I am alpha, and I am not beta. Gr")


@given(st.text(min_size=2, max_size=60))
def test_the_pieces_are_the_phrase_and_all_differ(phrase: str) -> None:
    pieces = fragments(phrase)
    assert "".join(pieces) == phrase
    assert len(set(pieces)) == len(pieces)
    assert all(len(piece.encode()) > 1 for piece in pieces)


def test_a_phrase_too_short_to_be_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="two bytes"):
        fragments("a")
