"""What is told of a model before it runs: by its flags, and by the files of its weights."""

from typing import Any

import pytest

from supervisord_llm.core.card import Card, read_card
from supervisord_llm.core.fleet import Engine, ModelSpec
from supervisord_llm.core.state import State
from supervisord_llm.gateway.api.capabilities import Capabilities, capabilities
from tests.gateway.conftest import model


def of(
    flags: dict[str, Any] | None = None, *, state: State = State.STOPPED, parser: str = "", **fields: Any
) -> Capabilities:
    card = fields.pop("card", None)
    engine = Engine(spec=ModelSpec(name="m"), state=state)
    return capabilities(model("m", flags=flags or {}, **fields), engine, card, 4096, parser)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (of(), ("generate", None, False, 4096)),
        (of({"max-model-len": "8k"}), ("generate", None, False, 8000)),
        (of({"enable-auto-tool-choice": True}), ("generate", True, False, 4096)),
        (of({"reasoning-parser": "qwen3"}, parser="hermes"), ("generate", True, True, 4096)),
        (of(state=State.READY), ("generate", False, False, 4096)),
        (of({"enable-auto-tool-choice": True}, tools="strip"), ("generate", False, False, 4096)),
        (of(tools="pass", state=State.READY), ("generate", True, False, 4096)),
        (of({"runner": "pooling"}, tools="pass"), ("embed", False, False, 4096)),
        (of({"convert": "classify", "runner": "pooling"}), ("classify", False, False, 4096)),
        (of({"task": "generate"}, card=Card(task="embed")), ("generate", None, False, 4096)),
        (of(card=Card(task="classify")), ("classify", False, False, 4096)),
    ],
)
def test_tasks_tools_thinking_and_context(found: Capabilities, expected: tuple[object, ...]) -> None:
    assert (found.task, found.tools, found.thinking, found.max_model_len) == expected


def test_words_are_for_what_is_special() -> None:
    assert of().words == []
    sees = Card(inputs=("text", "image"))
    assert of({"reasoning-parser": "x"}, parser="hermes", card=sees).words == ["vision", "tools", "thinking"]
    assert of({"runner": "pooling"}).words == ["embedding"]


@pytest.mark.parametrize(
    ("config", "card"),
    [
        ({}, Card()),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"},
            Card(model_type="llama", precision="bfloat16"),
        ),
        (
            {"quantization_config": {"quant_method": "AWQ"}, "text_config": {"dtype": "torch.float16"}},
            Card(precision="awq"),
        ),
        (
            {
                "architectures": ["Qwen2_5_VLForConditionalGeneration"],
                "vision_config": {},
                "video_token_id": 3,
            },
            Card(inputs=("text", "image", "video")),
        ),
        ({"architectures": ["BertModel"]}, Card(task="embed")),
        ({"architectures": ["InternVLChatModel"]}, Card()),
        ({"architectures": ["GPT2LMHeadModel"]}, Card()),
        ({"architectures": ["Qwen2_5OmniModel"]}, Card()),
        ({"architectures": ["Qwen2ForRewardModel"]}, Card(task="classify")),
        ({"architectures": ["BertForTokenClassification"]}, Card(task="classify")),
        ({"architectures": ["XLMRobertaForSequenceClassification"]}, Card(task="classify")),
        ({"architectures": "odd", "text_config": [], "model_type": None}, Card()),
    ],
)
def test_a_config_tells_what_a_model_is_for(config: dict[str, Any], card: Card) -> None:
    assert read_card(config) == card


def test_a_sentence_transformer_embeds_whatever_it_is_made_of() -> None:
    assert read_card({"architectures": ["Qwen3ForCausalLM"]}, is_sentence_transformer=True).task == "embed"
