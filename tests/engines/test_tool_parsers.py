"""Which parser of tool calls a launch gets, and how it is read back from the command."""

import json
from pathlib import Path
from typing import Any

import pytest

from supervisord_llm.engines.command import Place, shell_line, vllm_command
from supervisord_llm.engines.tool_parsers import FAMILIES, chat_template, flags_for, parser_for, parser_in
from tests.engines.conftest import make_model
from tests.engines.test_command import BASE, PLACE
from tests.fakes.weights import make_weights

QWEN = r'{{- "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>" }}'
LLAMA = 'format {"name": function name, "parameters": dictionary of argument name'
DEEPSEEK = "<｜tool▁calls▁begin｜>"  # noqa: RUF001
HERMES = {"enable-auto-tool-choice": True, "tool-call-parser": "hermes"}


@pytest.mark.parametrize(
    ("architecture", "template", "parser"),
    [
        ("Qwen2ForCausalLM", QWEN, "hermes"),
        ("Qwen3MoeForCausalLM", QWEN, "hermes"),
        ("Qwen3MoeForCausalLM", "<tool_call>\n<function=example>", "qwen3_coder"),
        ("Qwen2ForCausalLM", DEEPSEEK, ""),  # a distillation of another family
        ("LlamaForCausalLM", LLAMA, "llama3_json"),
        ("LlamaForCausalLM", "{{ messages }}", ""),
        ("LlamaForCausalLM", QWEN, "hermes"),  # fine-tuned by Nous
        ("MistralForCausalLM", '{{ "[TOOL_CALLS]" }}', "mistral"),
        ("DeepseekV3ForCausalLM", DEEPSEEK + "'\\n' + '```json'", "deepseek_v3"),
        ("DeepseekV3ForCausalLM", DEEPSEEK, "deepseek_v31"),
        ("DeepseekV3ForCausalLM", "<|tool_calls_section_begin|>", "kimi_k2"),
        ("Glm4MoeForCausalLM", "<tool_call>{name}\n<arg_key>", "glm45"),
        ("GptOssForCausalLM", "<|channel|>analysis", "openai"),
        ("Gemma3ForConditionalGeneration", "<start_of_turn>", ""),
        ("UnheardOfForCausalLM", QWEN, ""),
    ],
)  # fmt: skip
def test_family_and_template_make_the_parser(architecture: str, template: str, parser: str) -> None:
    assert parser_for(architecture, template) == parser


def weights(directory: Path, template: Any = QWEN, **config: Any) -> Path:
    made = make_weights(directory, **{"architectures": ["Qwen2ForCausalLM"]} | config)
    (made / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return made


def test_a_launch_gets_the_flags_where_nobody_says_otherwise(tmp_path: Path) -> None:
    there, venv = weights(tmp_path / "w"), tmp_path / "venv"
    assert flags_for(make_model(), there, venv) == HERMES
    assert flags_for(make_model(tools="strip"), there, venv) == {}
    assert flags_for(make_model(tools="pass"), there, venv) == {}
    assert flags_for(make_model(flags={"enable_auto_tool_choice": False}), there, venv) == {}
    own = make_model(flags={"tool_call_parser": "xlam"})
    assert flags_for(own, there, venv) == {"enable-auto-tool-choice": True}
    command = vllm_command(own, Place(**PLACE, extra_flags=HERMES), BASE)
    assert "hermes" not in command.argv
    assert parser_in(shell_line(command)) == "xlam"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"architectures": 1}', '{"architectures": []}', "[" * 9999]
)
def test_weights_that_do_not_tell_get_none(tmp_path: Path, content: str) -> None:
    there = weights(tmp_path / "w")
    (there / "config.json").write_text(content)
    assert flags_for(make_model(), there, tmp_path) == {}
    assert flags_for(make_model(), tmp_path / "nowhere", tmp_path) == {}


def test_templates_are_found_wherever_they_are(tmp_path: Path) -> None:
    named = weights(
        tmp_path / "a", [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "yes"}]
    )
    assert "yes" in chat_template(named)
    (named / "tokenizer_config.json").unlink()
    (named / "chat_template.jinja").write_text("of its own")
    assert "of its own" in chat_template(named)


def test_a_vllm_without_the_parser_is_not_given_it(tmp_path: Path) -> None:
    there, venv = weights(tmp_path / "w"), tmp_path / "venv"
    package = venv / "lib/python3.11/site-packages/vllm"
    (package / "engine").mkdir(parents=True)
    (package / "tool_parsers").mkdir()
    for file in ("__init__.py", "engine/arg_utils.py"):
        (package / file).touch()
    names = package / "tool_parsers/__init__.py"
    names.write_text('_TOOL_PARSERS_TO_REGISTER = {"hermes": ("a", "A"), "openai": ("b", "B")}\n')
    assert flags_for(make_model(), there, venv) == HERMES
    coder = weights(tmp_path / "c", "<function=f>")
    assert flags_for(make_model(), coder, venv) == {}


def test_the_parser_is_read_back_from_a_command() -> None:
    command = vllm_command(make_model(), Place(**PLACE, extra_flags=HERMES), BASE)
    assert command.argv[-3:] == ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    assert parser_in(shell_line(command)) == "hermes"
    assert parser_in(shell_line(vllm_command(make_model(), Place(**PLACE), BASE))) == ""
    assert parser_in("vllm serve x --tool-call-parser hermes") == "", "a model may not choose to call then"


def test_no_family_hides_another() -> None:
    assert len({(family.architectures, family.sign) for family in FAMILIES}) == len(FAMILIES)
