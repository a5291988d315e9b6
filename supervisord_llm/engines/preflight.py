"""Finds, in milliseconds and before the launch, the mistakes that vLLM takes 12 to 25 s to report.

It refuses only what it is certain of. Where it does not understand, vLLM has the word.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisord_llm.config.model import FlagValue, Model
from supervisord_llm.engines import installed
from supervisord_llm.engines.command import kebab
from supervisord_llm.errors import ProvisionError

LFS_POINTER = b"version https://git-lfs"
MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
INDEX = "model.safetensors.index.json"


def preflight(model: Model, weights: Path, venv: Path, cache: Path) -> None:
    """Look for what would make the launch of `model` fail. Blocks: milliseconds, or the time of one
    `vllm serve --help=all` (kept under `cache`) when a flag looks unknown.

    Raises:
        ProvisionError: what is wrong and what to do; never temporary.
    """
    flags = {kebab(name): value for name, value in model.flags.items()}
    check_executable(venv)
    check_flags(flags, venv, cache)
    if weights.suffix == ".gguf":
        return  # a single file, for vLLMs that load it
    check_directory(weights)
    config = read_config(weights, flags)
    if config is not None:
        check_architecture(config, flags, venv)
        check_max_model_len(config, flags, model.env)
    if flags.get("load-format", "auto") in ("auto", "hf", "safetensors"):
        check_weights(weights)


def check_executable(venv: Path) -> None:
    executable = venv / "bin" / "vllm"
    if not executable.is_file():
        raise ProvisionError(f"cannot find {executable}: build the venv with `llm-supervisor pull`")


def check_directory(weights: Path) -> None:
    if not weights.exists():
        raise ProvisionError(f"cannot find the weights {weights}: correct `source`, or `llm-supervisor pull`")
    if not weights.is_dir():
        raise ProvisionError(f"cannot use {weights} as weights: it is not a directory; correct `source`")


# ---- flags -------------------------------------------------------------------------------------------------


def check_flags(flags: Mapping[str, FlagValue], venv: Path, cache: Path) -> None:
    """Refuse a flag that neither vLLM's source nor its help knows."""
    known = installed.flags_in_source(venv)
    if known is None or all(is_known(name, known) for name in flags):
        return
    shown = installed.flags_in_help(venv, cache)
    if shown is None:
        return
    known |= shown
    unknown = [name for name in flags if not is_known(name, known)]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; see {venv}/bin/vllm serve --help=all"
        raise ProvisionError(f"cannot pass --{unknown[0]}: this vLLM has no such flag{hint}")


def is_known(name: str, known: frozenset[str]) -> bool:
    """As argparse and vLLM see it: whole, abbreviated, negated, or with a JSON path after a dot."""
    name = name.partition(".")[0]
    return any(flag.startswith((name, name.removeprefix("no-"))) for flag in known)


# ---- config.json -------------------------------------------------------------------------------------------


def read_config(weights: Path, flags: Mapping[str, FlagValue]) -> dict[str, Any] | None:
    """config.json, or None where vLLM is told to find the configuration elsewhere."""
    if flags.keys() & {"hf-config-path", "hf-overrides", "config-format", "config"}:
        return None
    path = weights / "config.json"
    if not path.exists():
        if (weights / "params.json").exists():  # Mistral's own format
            return None
        raise ProvisionError(f"cannot find {path}: `source` must be a directory of Hugging Face weights")
    return read_json(path)


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
    except ValueError as why:
        raise ProvisionError(f"cannot read {path}: not JSON ({why}); fetch the weights again") from why
    if not isinstance(value, dict):
        raise ProvisionError(f"cannot read {path}: not a JSON object; fetch the weights again")
    return value


def check_architecture(config: Mapping[str, Any], flags: Mapping[str, FlagValue], venv: Path) -> None:
    """Refuse an architecture that is neither in vLLM nor in transformers nor brought by the weights."""
    names = config.get("architectures")
    elsewhere = config.get("auto_map") or flags.keys() & {"model-impl", "trust-remote-code", "tokenizer-mode"}
    if not isinstance(names, list) or not names or elsewhere:
        return
    if all(installed.knows_architecture(venv, str(name)) is False for name in names):
        raise ProvisionError(
            f"cannot serve {names[0]}: this vLLM does not know that architecture; "
            "use a newer vLLM in the model's `venv`, or other weights"
        )


def check_max_model_len(
    config: Mapping[str, Any], flags: Mapping[str, FlagValue], env: Mapping[str, str]
) -> None:
    """Refuse a max-model-len above the weights' own, except where scaling makes that arguable."""
    asked = flags.get("max-model-len")
    text_config = config.get("text_config")
    config = {**config, **text_config} if isinstance(text_config, dict) else config
    limit = config.get("max_position_embeddings")
    stretchable = (
        "model_max_length" in config or "dual_chunk_attention_config" in config or scales_rope(config)
    )
    if type(asked) is not int or type(limit) is not int or stretchable:
        return
    if asked > limit and env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") in ("", "0"):
        raise ProvisionError(
            f"cannot serve with max-model-len = {asked}: these weights end at {limit} tokens; lower it"
        )


def scales_rope(config: Mapping[str, Any]) -> bool:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default"


# ---- weights -----------------------------------------------------------------------------------------------


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
