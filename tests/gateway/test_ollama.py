"""Ollama's API <-> OpenAI's, as tables. What a client sees of it is in test_ollama_http.py."""

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.errors import Refused
from supervisord_llm.gateway.api.ollama import request
from supervisord_llm.gateway.api.ollama.answer import Embeddings, Talk, Timing
from supervisord_llm.gateway.api.ollama.events import Events
from supervisord_llm.gateway.api.ollama.messages import Message, translate
from supervisord_llm.gateway.translation import NDJSON

STREAM = "text/event-stream"
JSON = "application/json"


def chat(**fields: Any) -> dict[str, Any]:
    """What becomes of a chat's fields; without those that every stream gets."""
    body = request.chat(msgspec.convert({"model": "m", "messages": [], **fields}, request.Chat))
    plain = {"model": "m", "messages": [], "stream": True, "stream_options": {"include_usage": True}}
    return {key: value for key, value in body.items() if plain.get(key) != value}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {}),
        ({"stream": None, "options": None, "format": "", "tools": [], "keep_alive": "5m"}, {}),
        (
            {"options": {"num_predict": 5, "repeat_penalty": 1.1}},
            {"max_tokens": 5, "repetition_penalty": 1.1},
        ),
        ({"options": {"num_predict": -1, "num_ctx": 8192, "mirostat": 2, "seed": None}}, {}),
        ({"options": {"top_k": 4, "min_p": 0.1, "seed": 0}}, {"top_k": 4, "min_p": 0.1, "seed": 0}),
        ({"options": {"stop": ["x"], "temperature": 0}}, {"stop": ["x"], "temperature": 0}),
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        (
            {"format": {"type": "object"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
        ),
        ({"think": False}, {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        (
            {"think": "high"},
            {
                "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
                "reasoning_effort": "high",
            },
        ),
        ({"tools": [{"type": "function"}]}, {"tools": [{"type": "function"}]}),
    ],
)
def test_a_chat_asks_for_the_same_in_openais_words(asked: dict[str, Any], expected: dict[str, Any]) -> None:
    assert chat(**asked) == expected


def test_an_answer_in_one_piece_asks_for_one() -> None:
    body = request.chat(request.Chat(messages=[], stream=False))
    assert body == {"stream": False, "messages": []}, "no model: the default one is meant"


@pytest.mark.parametrize(
    ("asked", "path", "expected"),
    [
        ({"prompt": "hi"}, "chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        (
            {"prompt": "hi", "system": "be kind"},
            "chat/completions",
            {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]},
        ),
        ({"prompt": "<s>hi", "raw": True}, "completions", {"prompt": "<s>hi"}),
        ({"prompt": "hi", "context": [], "template": "", "suffix": ""}, "chat/completions", {}),
    ],
)
def test_a_generation_is_a_chat_of_one_turn_unless_it_is_raw(
    asked: dict[str, Any], path: str, expected: dict[str, Any]
) -> None:
    found, body = request.generate(msgspec.convert(asked, request.Generate))
    assert found == path
    assert body | expected == body


@pytest.mark.parametrize(
    "asked",
    [{"template": "{{ .Prompt }}"}, {"suffix": "}"}, {"context": [1, 2]}, {"raw": True, "images": ["aGk="]}],
)
def test_what_cannot_be_had_is_refused_and_not_left_out(asked: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=rf"cannot use `{next(reversed(asked))}`"):
        request.generate(msgspec.convert({"prompt": "x", **asked}, request.Generate))
    with pytest.raises(Refused, match="cannot use format"):
        chat(format="yaml")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"input": "x"}, {"input": "x", "truncate_prompt_tokens": -1}),
        ({"input": ["x", "y"], "truncate": False, "dimensions": 8}, {"input": ["x", "y"], "dimensions": 8}),
        ({"prompt": "x"}, {"input": "x", "truncate_prompt_tokens": -1}),
    ],
)
def test_embeddings(asked: dict[str, Any], expected: dict[str, Any]) -> None:
    assert request.embed(msgspec.convert(asked, request.Embed)) == expected


def test_images_become_data_urls_of_their_type() -> None:
    images = ["iVBORw0KG", "/9j/4AAQ", "UklGRiQ", "R0lGODlh", "data:image/png;base64,xy"]
    (found,) = translate([Message("user", "look", images=images)])
    urls = [part["image_url"]["url"] for part in found["content"][1:]]
    assert found["content"][0] == {"type": "text", "text": "look"}
    assert [url.partition(";")[0][11:] for url in urls] == ["png", "jpeg", "webp", "gif", "png"]
    assert urls[1] == "data:image/jpeg;base64,/9j/4AAQ"


def test_answers_of_tools_find_their_calls() -> None:
    def call(name: str, **arguments: Any) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": arguments}}

    conversation = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "thinking": "hm", "tool_calls": [call("weather", city="Bonn"), call("time")]},
        {"role": "tool", "content": "noon", "tool_name": "time"},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "tool_calls": [call("time") | {"id": "mine"}]},
        {"role": "tool", "content": "one", "tool_call_id": "mine"},
        {"role": "tool", "content": "of nobody"},
    ]
    found = translate(msgspec.convert(conversation, list[Message]))
    first, second = found[1]["tool_calls"]
    assert first == {
        "id": "call_0",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Bonn"}'},
    }
    assert second["function"] == {"name": "time", "arguments": "{}"}
    assert found[1]["reasoning"] == "hm"
    ids = [message["tool_call_id"] for message in found if message["role"] == "tool"]
    assert ids == ["call_1", "call_0", "mine", "call_0"]


def talk(kind: Any = "chat", *, streams: bool = True, ticks: int = 0) -> Talk:
    clock = iter(range(10, 10_000))
    return Talk("m", kind, Timing(4.0, lambda: 5.0, lambda: float(next(clock))), streams=streams)


def sse(*events: Any) -> bytes:
    return b"".join(
        b"data: %s\n\n" % (event if isinstance(event, bytes) else json.dumps(event).encode())
        for event in events
    )


def said(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def lines(raw: bytes) -> list[dict[str, Any]]:
    """Without the clock's reading."""
    found = [json.loads(line) for line in raw.splitlines()]
    for line in found:
        assert line.pop("created_at").endswith("Z")
        assert line.pop("model") == "m"
    return found


ANSWER = sse(
    said(role="assistant", content=""),
    said(reasoning="hm"),
    said(content="It "),
    said(content="räins.\n"),
    said("length"),
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}},
    b"[DONE]",
)
CALLS = [
    {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"city": "Bo'}},
    {"index": 1, "id": "c2", "function": {"name": "odd", "arguments": "no json"}},
    {"index": 0, "function": {"arguments": 'nn"}'}},
]


def test_a_stream_becomes_lines_with_the_figures_last() -> None:
    one = talk()
    assert one.begin(200, STREAM) == NDJSON
    *parts, last = lines(one.feed(ANSWER) + one.end())
    assert parts == [
        {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        {"message": {"role": "assistant", "content": "It "}, "done": False},
        {"message": {"role": "assistant", "content": "räins.\n"}, "done": False},
    ]
    assert last == {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "length",
        "total_duration": 7 * 10**9,  # from 4 to 11, of which 5 waiting and 1 reading the prompt
        "load_duration": 5 * 10**9,
        "prompt_eval_count": 7,
        "prompt_eval_duration": 1 * 10**9,
        "eval_count": 3,
        "eval_duration": 1 * 10**9,
    }


@given(st.lists(st.integers(0, len(ANSWER)), max_size=20))
def test_it_does_not_matter_where_the_stream_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(ANSWER)]
    one, whole = talk(), talk()
    one.begin(200, STREAM)
    whole.begin(200, STREAM)
    found = b"".join(one.feed(ANSWER[a:b]) for a, b in itertools.pairwise(edges)) + one.end()
    assert lines(found) == lines(whole.feed(ANSWER) + whole.end())


def test_tool_calls_come_whole() -> None:
    one = talk()
    one.begin(200, STREAM)
    events = sse(*(said(tool_calls=[call]) for call in CALLS), said("tool_calls"), b"[DONE]")
    calls, last = lines(one.feed(events) + one.end())
    assert calls["message"]["tool_calls"] == [
        {"id": "c1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Bonn"}}},
        {"id": "c2", "function": {"index": 1, "name": "odd", "arguments": {"arguments": "no json"}}},
    ]
    assert (last["done"], last["done_reason"]) == (True, "stop")


def test_a_whole_answer_is_one_object() -> None:
    body = {
        "choices": [{"message": {"content": "hi", "tool_calls": CALLS[2:3]}, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    one = talk(streams=False)
    assert one.begin(200, JSON) == JSON
    raw = json.dumps(body).encode()
    assert one.feed(raw[:9]) + one.feed(raw[9:]) == b""
    (found,) = lines(one.end())
    assert found["message"]["content"] == "hi"
    assert found["message"]["tool_calls"][0]["function"]["name"] == "odd"
    assert (found["done"], found["done_reason"], found["eval_count"]) == (True, "stop", 2)


def test_generate_says_response_for_chats_and_completions_alike() -> None:
    one = talk("generate")
    one.begin(200, STREAM)
    events = sse(said(content="a"), {"choices": [{"text": "b", "finish_reason": "stop"}]}, b"[DONE]")
    found = lines(one.feed(events) + one.end())
    assert [line["response"] for line in found] == ["a", "b", ""]
    assert all("message" not in line for line in found)


@pytest.mark.parametrize(
    ("status", "kind", "body", "message"),
    [
        (400, JSON, b'{"error": {"message": "too long", "code": 400}}', "too long"),
        (400, JSON, b'{"error": "plain"}', "plain"),
        (404, JSON, b'{"detail": "Not Found"}', "Not Found"),
        (500, "text/plain", b"Internal Server Error", "Internal Server Error"),
        (502, "text/plain", b"", "cannot finish this answer: the engine ended it early; try again"),
        (200, STREAM, sse({"error": {"message": "it broke"}}, said(content="no")), "it broke"),
        (200, STREAM, sse(b"gibberish"), "gibberish"),
        (200, STREAM, b"", "cannot finish this answer: the engine ended it early; try again"),
        (200, JSON, b'{"choices": [', "cannot finish this answer: the engine ended it early; try again"),
    ],
)
def test_what_goes_wrong_at_the_engine_is_an_error_of_ollamas(
    status: int, kind: str, body: bytes, message: str
) -> None:
    one = talk()
    one.begin(status, kind)
    assert json.loads(one.feed(body) + one.end()) == {"error": message}


def test_a_stream_without_its_last_word_is_whole_if_it_said_why_it_ends() -> None:
    one = talk()
    one.begin(200, STREAM)
    assert lines(one.feed(sse(said("stop", content="x"))) + one.end())[-1]["done"]


@pytest.mark.parametrize("is_old", [False, True])
def test_vectors_pass_unread(is_old: bool) -> None:
    clock = iter(range(10, 20))
    one = Embeddings("m", Timing(4.0, lambda: 5.0, lambda: float(next(clock))), is_old=is_old)
    one.begin(200, JSON)
    one.feed(b'{"data": [{"embedding": [0.10, 1e3]}, {"embedding": []}], "usage": {"prompt_tokens": 2}}')
    expected = (
        b'{"embedding":[0.10, 1e3]}'
        if is_old
        else b'{"model":"m","embeddings":[[0.10, 1e3],[]],"total_duration":6000000000,'
        b'"load_duration":5000000000,"prompt_eval_count":2}'
    )
    assert one.end() == expected


def test_events_of_every_spelling() -> None:
    raw = b": hello\n\nevent: x\r\ndata: a\r\ndata:b\r\n\r\nid: 3\n\ndata: c\n\ndata: cut"
    assert Events().feed(raw) == [b"a\nb", b"c"]
