"""What a model is for, as the files of its weights tell it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from supervisord_llm.core.sizing.fields import quantization_of

Task = Literal["generate", "embed", "classify"]

SIGNS: Mapping[str, tuple[str, ...]] = {
    "image": ("vision_config", "visual", "vision_tower", "mm_vision_tower", "image_token_id"),
    "video": ("video_token_id", "video_token_index"),
    "audio": ("audio_config", "audio_token_id", "audio_token_index"),
}
"""What a model takes beside text -> keys of config.json that give it away."""

TASKS: tuple[tuple[Task, tuple[str, ...]], ...] = (
    ("generate", ("ChatModel", "LMHeadModel", "LMModel", "ChatGLMModel", "OmniModel", "UltravoxModel")),
    ("classify", ("Classification", "ClassificationModel", "RewardModel", "RewardModeling")),
    ("embed", ("Model", "ForTextEncoding", "ForMaskedLM")),
)
"""How the names of architectures end, as vLLM sorts them: the first that fits; any other generates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One model's."""

    model_type: str = ""
    """The family, by its name in config.json: "qwen2"."""
    precision: str = ""
    """How the weights are quantised ("awq"), else their type ("bfloat16")."""
    inputs: tuple[str, ...] = ("text",)
    task: Task = "generate"


def read_card(config: Mapping[str, Any], *, is_sentence_transformer: bool = False) -> Card:
    """From a parsed config.json. A sentence transformer says that it is one in a file beside it."""
    text = config.get("text_config")
    fields = {**config, **(text if isinstance(text, Mapping) else {})}
    dtype = str(fields.get("torch_dtype") or fields.get("dtype") or "").removeprefix("torch.")
    return Card(
        model_type=str(config.get("model_type") or ""),
        precision=str(quantization_of(config).get("quant_method", "") or dtype),
        inputs=("text", *(kind for kind, signs in SIGNS.items() if any(sign in config for sign in signs))),
        task=_task(config.get("architectures"), is_sentence_transformer=is_sentence_transformer),
    )


def _task(architectures: object, *, is_sentence_transformer: bool) -> Task:
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    told: Task = next((task for task, ends in TASKS if name.endswith(ends)), "generate")
    return "embed" if is_sentence_transformer and told == "generate" else told
