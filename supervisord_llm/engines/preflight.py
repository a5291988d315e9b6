"""Finds, in milliseconds and before the launch, the mistakes that vLLM takes 12 to 25 s to report.

It refuses only what it is certain of. Where it does not understand, vLLM has the word.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisord_llm.config.model import FlagValue, Model
from supervisord_llm.engines import installed
from supervisord_llm.engines.adapters import check_adapters
from supervisord_llm.engines.command import kebab
from supervisord_llm.engines.template import find_program
from supervisord_llm.engines.weight_files import check_weights, read_json
from supervisord_llm.errors import ProvisionError


def preflight(model: Model, weights: Path | None, venv: Path | None, cache: Path) -> None:
    """Look for what would make the launch of `model` fail. Blocks: milliseconds, or the time of one
    `vllm serve --help=all` (kept under `cache`) when a flag looks unknown.

    The `source` of each of the model's adapters is a directory by now.

    Raises:
        ProvisionError: what is wrong and what to do; never temporary.
    """
    if model.engine == "command":
        find_program(model)
    if weights is None or venv is None:
        return
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
    check_adapters(model, flags)


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
