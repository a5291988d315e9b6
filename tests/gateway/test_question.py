"""What a classifier is asked, and which answers are labels."""

from typing import Any, Literal

import msgspec
import pytest

from supervisord_llm.core.routes.route import Classifier
from supervisord_llm.gateway.choosing.classifier.question import (
    MAX_BYTES,
    instructions,
    label_in,
    question,
    room_bytes,
)

LABELS = {"simple": "small", "hard": "big", "hard-math": "big"}
CLASSIFIER = Classifier(model="tiny", labels=LABELS, fallback="small")


def asked(engine: Literal["vllm", "command", "remote"] = "vllm", **changes: Any) -> Any:
    classifier = Classifier(**{"model": "tiny", "labels": LABELS, "fallback": "small"} | changes)
    fields = question(classifier, engine, "<user>\nhi\n</user>\n")
    return {name: msgspec.json.decode(raw) for name, raw in fields.items()}


def test_vllm_is_held_to_the_labels_by_its_own_field() -> None:
    body = asked("vllm")
    assert body["structured_outputs"] == {"choice": list(LABELS)}
    assert body["temperature"] == 0
    assert body["max_tokens"] < 64
    assert "response_format" not in body


@pytest.mark.parametrize("engine", ["command", "remote"])
def test_others_are_held_to_them_by_a_schema(engine: Literal["command", "remote"]) -> None:
    body = asked(engine)
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["label"]["enum"] == list(LABELS)
    assert not body.keys() & {"structured_outputs", "chat_template_kwargs"}


def test_the_operators_prompt_comes_first_and_the_rules_after_it() -> None:
    system, user = asked(prompt="Hard is what needs a proof.")["messages"]
    assert system["content"].startswith("Hard is what needs a proof.\n\n")
    assert "simple, hard, hard-math" in system["content"]
    assert user["content"].startswith("<conversation>\n<user>\nhi\n</user>\n</conversation>\n")
    assert user["content"].endswith("simple, hard, hard-math:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hard", "hard"),
        (" hard\n", "hard"),
        ("Hard.", "hard"),
        ('"hard"', "hard"),
        ("**simple** because", "simple"),
        ("hard-math", "hard-math"),
        ("hard-maths", None),
        ("hardly", None),
        ("It is hard", None),
        ('{"label": "hard"}', "hard"),
        ('```json\n{"label": "simple"}\n```', "simple"),
        ("<think>\n\n</think>\n\nhard", "hard"),
        ("<think>hard", None),
        ('{"label": "easy"}', None),
        ('{"label": 1}', None),
        ("", None),
        (None, None),
    ],
)
def test_which_label_an_answer_is(text: str | None, expected: str | None) -> None:
    answer = msgspec.json.encode({"choices": [{"message": {"content": text}}]})
    assert label_in(answer, tuple(LABELS)) == expected


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"\xff", b'{"choices": []}', b'{"choices": [{}]}', b"[" * 5000]
)
def test_what_is_no_chat_completion_has_no_label(raw: bytes) -> None:
    assert label_in(raw, tuple(LABELS)) is None


@pytest.mark.parametrize("context", [1024, 2048, 4096, 32768])
def test_question_and_answer_fit_the_context_in_any_language(context: int) -> None:
    room = room_bytes(CLASSIFIER, context)
    body = question(CLASSIFIER, "vllm", "x" * room)
    messages = msgspec.json.decode(body["messages"])
    taken = sum(len(each["content"].encode()) for each in messages)
    assert taken + msgspec.json.decode(body["max_tokens"], type=int) < context
    assert 256 < room <= MAX_BYTES


def test_a_context_that_is_not_known_is_taken_for_large_enough() -> None:
    assert room_bytes(CLASSIFIER, None) == MAX_BYTES
    assert "simple" in instructions(CLASSIFIER)
