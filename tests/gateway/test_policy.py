"""What the rules of a model make of the body of a request. Pure."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisord_llm.config.model import RequestPolicy
from supervisord_llm.errors import Refused
from supervisord_llm.gateway.body import MAX_DEPTH, peek
from supervisord_llm.gateway.policy.fields import Fields, is_deeper_than
from supervisord_llm.gateway.policy.policy import Shaped, policy_of, shape
from tests.gateway.conftest import model

CHAT = "chat/completions"
USER = {"role": "user", "content": "hi"}


def fields(body: Any) -> Fields:
    return msgspec.json.decode(json.dumps(body).encode(), type=Fields)


def shaped(body: Any, *, endpoint: str = CHAT, prompt: str | None = None, **rules: Any) -> Any:
    """The body as the engine gets it."""
    own = {name: rules.pop(name) for name in ("system_prompt_mode", "tools", "flags") if name in rules}
    policy = policy_of(model("alpha", request=RequestPolicy(**rules), system_prompt=prompt, **own))
    (sent,) = shape(policy, endpoint, fields(body), {}).bodies(json.dumps(body).encode())
    return json.loads(sent)


def refused(body: Any, **rules: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        shaped(body, **rules)
    assert caught.value.code == "invalid_request"
    assert caught.value.message.startswith("cannot ")
    return caught.value


# --- values ----------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "body", "sent"),
    [
        ({"default": {"temperature": 0.2}}, {}, {"temperature": 0.2}),
        ({"default": {"temperature": 0.2}}, {"temperature": None}, {"temperature": 0.2}),
        ({"default": {"temperature": 0.2}}, {"temperature": 0}, {"temperature": 0}),
        ({"force": {"temperature": 0.2}}, {"temperature": 9}, {"temperature": 0.2}),
        ({"force": {"seed": 7}}, {}, {"seed": 7}),
        ({"strip": ("logit_bias",)}, {"logit_bias": {"1": 2}, "seed": 1}, {"seed": 1}),
        ({"min": {"temperature": 0.5}}, {"temperature": 0.1}, {"temperature": 0.5}),
        ({"max": {"temperature": 1}}, {"temperature": 1.5}, {"temperature": 1}),
        ({"max": {"temperature": 1}}, {"temperature": 0.7}, {"temperature": 0.7}),
        ({"max": {"temperature": 1}}, {}, {}),
        ({"max": {"n": 64}}, {"n": 100}, {"n": 64}),
        ({"max": {"top_logprobs": 5}}, {"top_logprobs": -1}, {"top_logprobs": 5}),
        ({"max": {"logprobs": 5}}, {"logprobs": True}, {"logprobs": True}),
        # tables merge
        (
            {"default": {"chat_template_kwargs": {"enable_thinking": False, "a": 1}}},
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": {"enable_thinking": True, "a": 1}},
        ),
        (
            {"force": {"chat_template_kwargs": {"enable_thinking": False}}},
            {"chat_template_kwargs": {"enable_thinking": True, "b": 2}},
            {"chat_template_kwargs": {"enable_thinking": False, "b": 2}},
        ),
        # forced and stripped fields may be closed ones: the client's is dropped, not refused
        ({"force": {"priority": 3}}, {"priority": 9}, {"priority": 3}),
        ({"strip": ("chat_template",)}, {"chat_template": "{{ x }}"}, {}),
    ],
)
def test_values(rules: dict[str, Any], body: dict[str, Any], sent: dict[str, Any]) -> None:
    assert shaped(body, **rules) == sent


@pytest.mark.parametrize(
    ("endpoint", "rules", "body", "sent"),
    [
        (CHAT, {"max": {"max_tokens": 100}}, {}, {"max_tokens": 100}),
        (CHAT, {"max": {"max_tokens": 100}}, {"max_tokens": 32_000}, {"max_tokens": 100}),
        (CHAT, {"max": {"max_tokens": 100}}, {"max_completion_tokens": 200}, {"max_completion_tokens": 100}),
        (CHAT, {"max": {"max_tokens": 100}}, {"max_completion_tokens": 50}, {"max_completion_tokens": 50}),
        ("responses", {"max": {"max_tokens": 100}}, {}, {"max_output_tokens": 100}),
        ("responses", {"default": {"max_tokens": 100}}, {}, {"max_output_tokens": 100}),
        ("responses", {"max": {"max_tokens": 9}}, {"max_output_tokens": 10}, {"max_output_tokens": 9}),
        ("completions", {"max": {"max_tokens": 100}}, {}, {}),  # means 16
        ("completions", {"max": {"max_tokens": 10}}, {}, {"max_tokens": 10}),
        ("completions", {"max": {"max_tokens": 100}}, {"max_tokens": None}, {"max_tokens": 100}),  # no limit
        ("messages", {"max": {"max_tokens": 10}}, {"max_tokens": 11}, {"max_tokens": 10}),
        (CHAT, {"default": {"max_tokens": 10}}, {"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        (CHAT, {"force": {"max_tokens": 10}}, {"max_completion_tokens": 5}, {"max_tokens": 10}),
        (CHAT, {"strip": ("max_tokens",)}, {"max_completion_tokens": 5, "max_tokens": 6}, {}),
        (CHAT, {"max": {"max_tokens": 100}, "flags": {"max-model-len": 64}}, {}, {"max_tokens": 64}),
        ("embeddings", {"max": {"max_tokens": 100}}, {"input": "x"}, {"input": "x"}),
        ("embeddings", {"default": {"dimensions": 8}}, {"input": "x"}, {"input": "x", "dimensions": 8}),
        ("tokenize", {"default": {"temperature": 1}}, {"prompt": "x"}, {"prompt": "x"}),
    ],
)
def test_max_tokens_is_what_each_endpoint_calls_it(
    endpoint: str, rules: dict[str, Any], body: Any, sent: Any
) -> None:
    assert shaped(body, endpoint=endpoint, **rules) == sent


@pytest.mark.parametrize(("length", "most"), [(2048, 2048), ("2k", 2000), ("auto", 4096), (8192, 4096)])
def test_no_more_tokens_are_asked_for_than_the_context_has(length: Any, most: int) -> None:
    rules = RequestPolicy(max={"max_tokens": 4096})
    assert policy_of(model("alpha", request=rules, flags={"max-model-len": length})).rules.max == {
        "max_tokens": most
    }


@pytest.mark.parametrize("value", ["99999", True, [1], {}])
def test_a_bounded_field_must_be_a_number(value: Any) -> None:
    """vLLM would take "99999" for one."""
    found = refused({"max_completion_tokens": value}, max={"max_tokens": 10})
    assert found.param == "max_completion_tokens"


# --- the system prompt ----------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "messages", "sent"),
    [
        ("default", [USER], [{"role": "system", "content": "P"}, USER]),
        ("default", [{"role": "system", "content": "S"}, USER], [{"role": "system", "content": "S"}, USER]),
        ("default", [{"role": "developer", "content": "S"}], [{"role": "developer", "content": "S"}]),
        ("always", [USER], [{"role": "system", "content": "P"}, USER]),
        (
            "always",
            [{"role": "system", "content": "S"}, USER],
            [{"role": "system", "content": "P\n\nS"}, USER],
        ),
        (
            "always",
            [USER, {"role": "system", "content": "S"}],
            [{"role": "system", "content": "P\n\nS"}, USER],
        ),
        ("always", [{"role": "system", "content": ""}], [{"role": "system", "content": "P"}]),
        (
            "always",
            [{"role": "developer", "name": "x", "content": [{"type": "text", "text": "S"}]}],
            [
                {
                    "role": "developer",
                    "name": "x",
                    "content": [{"type": "text", "text": "P\n\n"}, {"type": "text", "text": "S"}],
                }
            ],
        ),
    ],
)
def test_the_system_prompt_of_a_chat(mode: str, messages: list[Any], sent: list[Any]) -> None:
    once = shaped({"messages": messages}, prompt="P", system_prompt_mode=mode)
    assert once == {"messages": sent}
    assert shaped(once, prompt="P", system_prompt_mode=mode) == once


@pytest.mark.parametrize(
    ("endpoint", "mode", "body", "sent"),
    [
        ("messages", "default", {}, {"system": "P"}),
        ("messages", "default", {"system": "S"}, {"system": "S"}),
        ("messages", "always", {"system": "S"}, {"system": "P\n\nS"}),
        (
            "messages/count_tokens",
            "always",
            {"system": [{"type": "text", "text": "S"}]},
            {"system": [{"type": "text", "text": "P\n\n"}, {"type": "text", "text": "S"}]},
        ),
        ("responses", "default", {"input": "x"}, {"input": "x", "instructions": "P"}),
        ("responses", "default", {"input": [{"role": "developer", "content": "S"}]}, None),
        ("responses", "default", {"instructions": "S"}, None),
        ("responses", "always", {"instructions": "S"}, {"instructions": "P\n\nS"}),
        ("completions", "always", {"prompt": "x"}, None),
        ("embeddings", "always", {"input": "x"}, None),
    ],
)
def test_the_system_prompt_of_other_endpoints(endpoint: str, mode: str, body: Any, sent: Any) -> None:
    found = shaped(body, endpoint=endpoint, prompt="P", system_prompt_mode=mode)
    assert found == (body if sent is None else sent)


# --- what is refused ----------------------------------------------------------

PICTURE = {"type": "image_url", "image_url": {"url": "https://10.0.0.1/admin"}}
INLINE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def asks(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (CHAT, {"n": 17}, "n"),
        (CHAT, {"n": "17"}, "n"),
        (CHAT, {"n": 1e300}, "n"),
        ("completions", {"best_of": 100}, "best_of"),
        ("completions", {"logprobs": 21}, "logprobs"),
        (CHAT, {"top_logprobs": -1}, "top_logprobs"),
        (CHAT, {"stop": ["x"] * 17}, "stop"),
        (CHAT, {"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        (CHAT, {"messages": [{}] * 10_001}, "messages"),
        (CHAT, {"tools": [{}] * 513}, "tools"),
        ("completions", {"prompt": ["x"] * 129}, "prompt"),
        ("completions", {"prompt": [[1, 2]] * 129}, "prompt"),
        (CHAT, {"response_format": {"x": "y" * 65_536}}, "response_format"),
        (CHAT, {"guided_regex": "y" * 20_000}, "guided_regex"),
        (CHAT, {"chat_template": "{{ x }}"}, "chat_template"),
        (CHAT, {"chat_template_kwargs": {"chat_template": "{{ x }}"}}, "chat_template_kwargs"),
        (CHAT, {"chat_template_kwargs": {"x": {"y": 1}}}, "chat_template_kwargs"),
        (CHAT, {"mm_processor_kwargs": {"x": 1}}, "mm_processor_kwargs"),
        (CHAT, {"kv_transfer_params": {"remote_host": "10.0.0.1"}}, "kv_transfer_params"),
        (CHAT, {"priority": -5}, "priority"),
        (CHAT, asks(PICTURE), "messages"),
        (CHAT, asks({"image_url": "http://10.0.0.1"}), "messages"),
        (CHAT, asks({"type": "image_url", "image_url": {"url": " http://x"}}), "messages"),
        (CHAT, asks({"type": "video_url", "video_url": {"url": "file:///etc/passwd"}}), "messages"),
        ("messages", asks({"type": "image", "source": {"type": "url", "url": "http://x"}}), "messages"),
        ("messages", asks({"type": "tool_result", "content": [PICTURE]}), "messages"),
        ("responses", {"input": [{"content": [{"type": "input_image", "image_url": "http://x"}]}]}, "input"),
        ("responses", {"input": [{"output": [{"type": "input_file", "file_url": "http://x"}]}]}, "input"),
        ("embeddings", {"messages": [asks(PICTURE)["messages"]]}, "messages"),
        ("rerank", {"documents": [{"content": [PICTURE]}]}, "documents"),
    ],
)
def test_what_endangers_others_is_refused(endpoint: str, body: Any, param: str) -> None:
    found = refused(body, endpoint=endpoint)
    assert found.param == param


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, {"n": 16, "logprobs": True, "top_logprobs": 20, "stop": ["a", "b"]}),
        (CHAT, {"stop": "a long one " * 10, "n": None, "priority": 0, "mm_processor_kwargs": {}}),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False, "x": "y"}, "cache_salt": "s"}),
        (CHAT, asks(INLINE, {"type": "text", "text": "see https://example.org image_url"})),
        (CHAT, asks({"type": "image_url", "image_url": {"url": "DATA:image/png;base64,AAAA"}})),
        (
            "messages",
            asks({"type": "tool_use", "name": "get", "input": {"url": "http://x", "image_url": "y"}}),
        ),
        (CHAT, {"messages": [{"role": "user", "content": '{"image_url": "http://x"}'}]}),
        (CHAT, {"messages": "nonsense"}),
        (CHAT, {"messages": [1, None, "x"]}),
        ("completions", {"prompt": list(range(10_000))}),
        ("embeddings", {"input": ["x"] * 5000}),
        ("tokenize", {"prompt": "x", "text": "y" * 100_000}),
    ],
)
def test_what_clients_really_send_passes(endpoint: str, body: Any) -> None:
    assert shaped(body, endpoint=endpoint) == body


@pytest.mark.parametrize(
    ("rules", "body"),
    [
        ({"allow": ("media_urls",)}, asks(PICTURE)),
        (
            {"allow": ("chat_template",)},
            {"chat_template": "x", "chat_template_kwargs": {"chat_template": "y"}},
        ),
        ({"allow": ("chat_template_kwargs",)}, {"chat_template_kwargs": {"x": [1]}}),
        ({"allow": ("priority",)}, {"priority": 5}),
        ({"max": {"n": 64}}, {"n": 64}),
        ({"max": {"stop": 100}}, {"stop": ["x"] * 100}),
        ({"max": {"response_format": 100_000}}, {"response_format": {"x": "y" * 70_000}}),
    ],
)
def test_each_is_opened_by_its_name(rules: dict[str, Any], body: Any) -> None:
    assert refused(body).param is not None
    assert shaped(body, **rules) == body


def test_a_limit_of_your_own_refuses_above_it_too() -> None:
    assert refused({"messages": [{}] * 6}, max={"messages": 5}).param == "messages"


def test_a_hidden_key_is_still_a_key() -> None:
    body = b'{"messages": [{"content": [{"image_\\u0075rl": {"\\u0075rl": "http://10.0.0.1"}}]}]}'
    given = msgspec.json.decode(body, type=Fields)
    with pytest.raises(Refused):
        shape(policy_of(model("alpha")), CHAT, given, {})


# --- tools ----------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def test_an_empty_list_of_tools_is_none() -> None:
    body = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "seed": 1}
    assert shaped(body) == {"seed": 1}
    assert refused({"tools": [], "tool_choice": "required"}).param == "tool_choice"


@pytest.mark.parametrize("choice", [None, "auto", "none", {"type": "auto"}, {"type": "none"}])
def test_tools_are_stripped(choice: Any) -> None:
    assert shaped({"tools": [TOOL], "tool_choice": choice, "seed": 1}, tools="strip") == {"seed": 1}


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "function": {"name": "f"}},
        {"type": "any"},
        {"type": "tool", "name": "f"},
        {"type": "allowed_tools", "mode": "required", "tools": []},
    ],
)
def test_who_insists_on_a_call_is_told_why_there_is_none(choice: Any) -> None:
    found = refused({"tools": [TOOL], "tool_choice": choice}, tools="strip")
    assert found.param == "tool_choice"
    assert "tools are dropped for 'alpha'" in found.message


# --- what always holds ----------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        *("messages", "input", "prompt", "system", "instructions", "tools", "tool_choice", "stream", "n"),
        *("stream_options", "max_tokens", "max_completion_tokens", "temperature", "stop", "logit_bias"),
        *("chat_template_kwargs", "response_format", "logprobs"),
    ]
)
BODIES = st.dictionaries(NAMES | st.text(max_size=6), VALUES, max_size=8)
RULES: list[dict[str, Any]] = [
    {},
    {"default": {"temperature": 0.3, "max_tokens": 9}, "max": {"max_tokens": 10, "n": 2}},
    {"force": {"temperature": 1, "chat_template_kwargs": {"a": 1}}, "strip": ("logit_bias",)},
    {"min": {"temperature": 0.1}, "max": {"temperature": 0.9}},
]


@settings(deadline=None, max_examples=300)
@given(
    body=BODIES,
    endpoint=st.sampled_from([CHAT, "completions", "responses", "messages", "embeddings", "tokenize"]),
    rules=st.sampled_from(RULES),
    prompt=st.sampled_from([None, "P"]),
    mode=st.sampled_from(["default", "always"]),
    tools=st.sampled_from(["auto", "strip", "pass"]),
)
def test_json_stays_json_the_rest_as_it_was_and_twice_is_once(
    body: dict[str, Any], endpoint: str, rules: Any, prompt: str | None, mode: str, tools: str
) -> None:
    policy = policy_of(
        model(
            "alpha",
            request=RequestPolicy(**rules),
            system_prompt=prompt,
            system_prompt_mode=mode,
            tools=tools,
        )
    )
    original = json.dumps(body).encode()
    given = msgspec.json.decode(original, type=Fields)
    try:
        once = shape(policy, endpoint, given, {})
    except Refused:
        return
    (sent,) = once.bodies(original)
    assert isinstance(json.loads(sent), dict)
    touched = {"messages", "system", "instructions", "tools", "tool_choice", "parallel_tool_calls"}
    touched |= {"stream_options", "max_completion_tokens", "max_output_tokens", "max_tokens"}
    touched |= {name for rule in rules.values() for name in rule}
    after = msgspec.json.decode(sent, type=Fields)
    for name, raw in given.items():
        if name not in touched:
            assert bytes(after[name]) == bytes(raw)
    if not once.is_changed:
        assert sent == original
    (again,) = shape(policy, endpoint, after, {}).bodies(sent)
    assert json.loads(again) == json.loads(sent)


def test_without_rules_the_body_passes_as_it_came() -> None:
    raw = b'{ "messages" : [ {"role":"user","content":"h\\u00e9"} ], "temperature": 1.0e0 }'
    found: Shaped = shape(policy_of(model("a")), CHAT, msgspec.json.decode(raw, type=Fields), {})
    assert found.bodies(raw) == [raw]


@pytest.mark.parametrize("depth", [2, 50, MAX_DEPTH, MAX_DEPTH + 1, 300])
@pytest.mark.parametrize("pattern", ["[%s]", '{"k]\\\\\\"[": %s}', '{"a": "}}", "b": [%s, {}]}'])
def test_the_depth_of_json(depth: int, pattern: str) -> None:
    levels = 2 if "b" in pattern else 1
    inner = "1"
    for _ in range((depth - 1) // levels):
        inner = pattern.replace("%s", inner)
    found = 1 + (depth - 1) // levels * levels
    clutter = ", ".join('["]}\\\\", "{"]' for _ in range(300))
    body = f'{{"x": {inner}, "y": [{clutter}]}}'.encode()
    json.loads(body)
    assert is_deeper_than(msgspec.json.decode(body, type=Fields), MAX_DEPTH) is (found > MAX_DEPTH)
    if found > MAX_DEPTH:
        with pytest.raises(Refused, match="nested deeper than 100 levels"):
            peek("application/json", body)
