"""What a model can do, as far as its configuration and its files tell, without starting it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from supervisord_llm.config.model import Model
from supervisord_llm.core.card import Card, Task
from supervisord_llm.core.fleet import Engine
from supervisord_llm.core.sizing.serving import whole
from supervisord_llm.core.state import RESTS

_TASKS: Mapping[str, Task] = {
    "generate": "generate",
    "embed": "embed",
    "embedding": "embed",
    "pooling": "embed",
    "classify": "classify",
    "score": "classify",
    "reward": "classify",
}
"""Values of vLLM's flags `convert`, `task` and `runner` -> what the model is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """One model's."""

    task: Task
    inputs: tuple[str, ...]
    """"text" and what it takes beside it: "image", "video", "audio"."""
    tools: bool | None
    """Whether tools that a client offers reach it; None where that is known once it runs."""
    thinking: bool
    """Whether its thinking is told apart from its answer."""
    max_model_len: int | None
    """Tokens of context; None where nothing tells."""

    @property
    def words(self) -> list[str]:
        """What sets it apart from a model that chats, for lists."""
        beside = {"embedding": self.task == "embed", "reranking": self.task == "classify"}
        beside |= {"vision": "image" in self.inputs, "audio": "audio" in self.inputs}
        beside |= {"tools": self.tools is True, "thinking": self.thinking}
        return [word for word, applies in beside.items() if applies]


def capabilities(
    model: Model,
    engine: Engine | None,
    card: Card | None,
    context_length: int | None,
    tool_parser: str,
) -> Capabilities:
    """Flags win over what the weights say of themselves (`card`, `context_length`).

    `tool_parser` is the one that its engine runs with, "" where it has none or does not run.
    """
    flags, card = model.flags, card or Card()
    told = (_TASKS.get(str(flags.get(name))) for name in ("convert", "task", "runner"))
    task: Task = next((each for each in told if each is not None), card.task)
    return Capabilities(
        task=task,
        inputs=card.inputs,
        tools=task == "generate"
        and _tools(model, engine, tool_parser or flags.get("enable-auto-tool-choice")),
        thinking=task == "generate" and bool(flags.get("reasoning-parser")),
        max_model_len=_max_model_len(flags, engine) or context_length,
    )


def _tools(model: Model, engine: Engine | None, parser: object) -> bool | None:
    if model.tools != "auto":
        return model.tools == "pass"
    if model.engine != "vllm":  # nothing is dropped, since nothing is known of a parser
        return True
    is_up = engine is not None and engine.state in RESTS
    return True if parser else False if is_up else None


def _max_model_len(flags: Mapping[str, object], engine: Engine | None) -> int | None:
    """As changed after it ran out of memory, else as the flag says it; None leaves it to the weights."""
    adjusted = dict(engine.learnt.adjusted) if engine is not None else {}
    return adjusted.get("max-model-len") or whole(flags.get("max-model-len"))
