"""Files of weights, looked at from outside: are they there, and whole? No tensor is read."""

import json
from pathlib import Path
from typing import Any

from supervisord_llm.errors import ProvisionError

LFS_POINTER = b"version https://git-lfs"
MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        ProvisionError: unreadable, a pointer of git-lfs, or not a JSON object.
    """
    try:
        raw = path.read_bytes()
        check_pointer(raw, path)
        value = json.loads(raw)
    except OSError as why:
        raise ProvisionError(f"cannot read {path}: {why.strerror}; check its owner and mode") from why
    except (ValueError, RecursionError) as why:
        raise ProvisionError(f"cannot read {path}: not JSON ({why}); fetch the weights again") from why
    if not isinstance(value, dict):
        raise ProvisionError(f"cannot read {path}: not a JSON object; fetch the weights again")
    return value


def check_weights(weights: Path) -> None:
    """Refuse missing shards, pointers of git-lfs and broken or truncated safetensors."""
    if (weights / INDEX).exists():
        weight_map = read_json(weights / INDEX).get("weight_map")
        shards = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        missing = [name for name in shards if not (weights / name).exists()]
        if missing:
            raise ProvisionError(
                f"cannot use {weights}: {len(missing)} of {len(shards)} shards are missing, the first is "
                f"{missing[0]}; fetch them with `llm-supervisor pull`"
            )
        paths = [weights / name for name in shards]
    else:
        found = [path for pattern in WEIGHT_PATTERNS for path in sorted(weights.glob(pattern))]
        if not found:
            raise ProvisionError(f"cannot find weights in {weights}: no {', '.join(WEIGHT_PATTERNS)}")
        safetensors = [path for path in found if path.suffix == ".safetensors"]
        paths = [path for path in safetensors if path.name.startswith("model")] or safetensors or found
    for path in paths:
        check_weight_file(path)


def check_weight_file(path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
            check_pointer(start, path)
            if path.suffix == ".safetensors":
                file.seek(0)
                check_safetensors(path, file.read(8), size)
    except OSError as why:
        raise ProvisionError(f"cannot read {path}: {why.strerror}; check its owner and mode") from why


def check_pointer(raw: bytes, path: Path) -> None:
    if raw.startswith(LFS_POINTER):
        raise ProvisionError(
            f"cannot use {path}: it is a pointer of git-lfs, not the file; run `git lfs pull`"
        )


def check_safetensors(path: Path, length: bytes, size: int) -> None:
    """Format: 8 bytes of header length, little-endian; the header, JSON; the tensors, without gaps."""
    header_bytes = int.from_bytes(length, "little")
    if len(length) < 8 or header_bytes > min(MAX_HEADER_BYTES, size - 8):
        raise broken(path, f"{size} bytes are too few for its header")
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(header_bytes))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as why:
            raise broken(path, "its header is not readable") from why
    expected = 8 + header_bytes + end
    if size != expected:
        raise broken(path, f"it has {size} bytes and should have {expected}")


def broken(path: Path, why: str) -> ProvisionError:
    return ProvisionError(f"cannot use {path}: {why}; fetch it again with `llm-supervisor pull`")
