"""LoRA adapters at launch: the flags that have vLLM load them, and what would make it fail to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisord_llm.config.model import FlagValue, Model
from supervisord_llm.core.sizing.lora import CONFIG, RANKS, flags_of, rank_of
from supervisord_llm.core.sizing.serving import whole
from supervisord_llm.engines.command import kebab
from supervisord_llm.engines.weight_files import check_weight_file, read_json
from supervisord_llm.errors import ProvisionError

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")


def flags_for(model: Model, directories: Mapping[str, str]) -> dict[str, FlagValue]:
    """What the launch of `model` adds to its own flags for its adapters. Reads a small file of each.

    Args:
        directories: adapter -> where its files are.

    Raises:
        ProvisionError: an adapter's configuration cannot be read.
    """
    if not model.adapters:
        return {}
    flags = {kebab(name): value for name, value in model.flags.items()}
    ranks = [_rank(each.name, Path(directories[each.name])) for each in model.adapters]
    modules: list[FlagValue] = [
        {"name": each.name, "path": directories[each.name], "base_model_name": model.name}
        for each in model.adapters
    ]
    return {**flags_of(ranks, flags), "lora-modules": modules}


def check_adapters(model: Model, flags: Mapping[str, FlagValue]) -> None:
    """Look for what would make vLLM fail to load the adapters of `model`, whose `source` are directories.

    Raises:
        ProvisionError: what is wrong and what to do; never temporary.
    """
    for adapter in model.adapters:
        directory = Path(adapter.source)
        rank, most = _rank(adapter.name, directory), whole(flags.get("max-lora-rank")) or RANKS[-1]
        if rank > most:
            way_out = "raise the flag max-lora-rank" if most < RANKS[-1] else "use another adapter"
            raise ProvisionError(
                f"cannot load the adapter {adapter.name}: its rank is {rank}, above the {most} that may be; "
                f"{way_out}"
            )
        found = [directory / name for name in WEIGHTS if (directory / name).exists()]
        if not found:
            raise ProvisionError(
                f"cannot find the weights of the adapter {adapter.name}: no {WEIGHTS[0]} in {directory}; "
                f"correct `source` of models.{adapter.name}"
            )
        check_weight_file(found[0])


def _rank(name: str, directory: Path) -> int:
    config = _config(name, directory)
    kind, rank = config.get("peft_type", "LORA"), rank_of(config)
    if kind != "LORA" or rank is None:
        why = f"its peft_type is {kind}, not LORA" if kind != "LORA" else "its configuration tells no rank"
        raise ProvisionError(f"cannot load the adapter {name}: {why}; correct `source` of models.{name}")
    return rank


def _config(name: str, directory: Path) -> dict[str, Any]:
    if not (directory / CONFIG).exists():
        raise ProvisionError(
            f"cannot find {directory / CONFIG}: `source` of models.{name} must be a LoRA adapter, as PEFT "
            "saves it"
        )
    return read_json(directory / CONFIG)
