"""Which of vLLM's parsers reads the tool calls of a model: by its family and what its chat template writes.

The two together, since a family changes its ways (Qwen3 and Qwen3-Coder) and others fine-tune it to theirs.
What is in doubt has none: a wrong parser would lose calls, or keep the engine from answering.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from supervisord_llm.config.model import FlagValue, Model
from supervisord_llm.engines import installed
from supervisord_llm.engines.command import kebab

MAX_FILE_BYTES = 16 << 20
PARSER_FLAG, ENABLE_FLAG = "tool-call-parser", "enable-auto-tool-choice"


class Family(NamedTuple):
    """Architectures whose template has `sign` in it, and the parser of their calls."""

    architectures: str
    sign: str
    parser: str


FAMILIES = (
    Family("Qwen", "<function=", "qwen3_coder"),
    Family("Qwen|Llama|Mistral|Mixtral|SmolLM3", "<function-name>", "hermes"),
    Family("DeepseekV3|Kimi", "<|tool_calls_section_begin|>", "kimi_k2"),
    Family("DeepseekV3", "```json", "deepseek_v3"),
    Family("DeepseekV3", "<｜tool▁calls▁begin｜>", "deepseek_v31"),  # noqa: RUF001 - so it is written
    Family("Glm", "<arg_key>", "glm45"),
    Family("GptOss", "<|channel|>", "openai"),
    Family("Llama", '"parameters": dictionary of argument name', "llama3_json"),
    Family("Mistral|Mixtral|Ministral|Pixtral", "[TOOL_CALLS]", "mistral"),
    Family("Granite", "<|tool_call|>", "granite"),
    Family("Granite", "<tool_call>", "granite4"),
    Family("Gemma4", "<|tool_call>", "gemma4"),
    Family("MiniMaxM2", "<minimax:tool_call>", "minimax_m2"),
    Family("SeedOss", "<seed:tool_call>", "seed_oss"),
    Family("Lfm2", "<|tool_call_start|>", "lfm2"),
    Family("Olmo", "<function_calls>", "olmo3"),
    Family("Apertus", "<|tools_prefix|>", "apertus"),
    Family("InternLM2", "<|action_start|>", "internlm"),
    Family("Jamba", "<tool_calls>", "jamba"),
    Family("HunYuan", "<tool_calls>", "hunyuan_a13b"),
    Family("LongcatFlash", "<longcat_tool_call>", "longcat"),
    Family("Cohere2", "<|START_ACTION|>", "cohere_command3"),
)
"""In this order; the first that fits."""


def parser_for(architecture: str, template: str) -> str:
    """The parser's name; "" where none is certain."""
    written = template.replace("\\", "")  # of quotes within strings
    for family in FAMILIES:
        if re.match(family.architectures, architecture, re.IGNORECASE) and family.sign in written:
            return family.parser
    return ""


def flags_for(model: Model, weights: Path, venv: Path) -> dict[str, FlagValue]:
    """What the launch of `model` adds to its own flags, which win. Reads a few files, never raises."""
    flags = {kebab(name): value for name, value in model.flags.items()}
    if model.tools != "auto" or flags.get(ENABLE_FLAG) is False:
        return {}
    if PARSER_FLAG in flags:
        return {ENABLE_FLAG: True}
    names = _json(weights / "config.json").get("architectures")
    parser = parser_for(str(names[0]), chat_template(weights)) if isinstance(names, list) and names else ""
    return {ENABLE_FLAG: True, PARSER_FLAG: parser} if parser and _is_known(parser, venv) else {}


def _is_known(parser: str, venv: Path) -> bool:
    """Whether the vLLM of the venv has it; where its source does not tell, it is taken at its word."""
    try:
        known = installed.tool_parsers(venv)
    except OSError:
        return True
    return known is None or parser in known


def parser_in(command: str) -> str:
    """The parser that a command line names, where it also lets the model choose to call; else ""."""
    if f"--{ENABLE_FLAG}" not in command:
        return ""
    found = re.search(rf"--{PARSER_FLAG}[= ](\S+)", command)
    return found[1] if found else ""


def chat_template(weights: Path) -> str:
    """All templates that come with the weights; "" where none does."""
    texts = [_text(path) for path in (weights / "chat_template.jinja", weights / "chat_template.json")]
    told = _json(weights / "tokenizer_config.json").get("chat_template")
    named = told if isinstance(told, list) else [told]
    texts += [str(one.get("template", "")) if isinstance(one, dict) else str(one or "") for one in named]
    return "\n".join(texts)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode(errors="replace")
    except OSError:
        return ""
