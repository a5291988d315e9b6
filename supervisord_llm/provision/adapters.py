"""What the files of a LoRA adapter say of it: adapter_config.json, as PEFT writes it."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisord_llm.config.model import Model
from supervisord_llm.core.sizing.lora import CONFIG
from supervisord_llm.provision.metadata import UnreadableMetadata, read_config
from supervisord_llm.provision.weights import local_path


def read_adapter(directory: Path | None) -> Mapping[str, Any]:
    """Empty where the adapter is not here, or its file is none: the launch tells."""
    if directory is not None:
        with contextlib.suppress(UnreadableMetadata):
            return read_config(directory, CONFIG)
    return {}


def made_for_another(adapter: Model, base: Model, directory: Path | None) -> str:
    """That an adapter was trained on another model than its base, as a sentence; "" where nothing says so.

    Only hub ids can be compared: a directory says nothing of what is in it.
    """
    trained_on = str(read_adapter(directory).get("base_model_name_or_path"))
    is_id = trained_on.count("/") == 1 and not trained_on.startswith((".", "/"))
    if not is_id or local_path(base) is not None or trained_on.lower() == base.source.lower():
        return ""
    return (
        f"the adapter {adapter.name} was trained on {trained_on}, and models.{base.name} is {base.source}: "
        "see that they are of one shape"
    )
