"""Token counts: asked for, taken out of streams, found in answers; and answers in parts made one. Pure."""

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.gateway.policy.batches import merge, split
from supervisord_llm.gateway.policy.fields import Fields
from supervisord_llm.gateway.policy.usage import UsageFilter, ask
from supervisord_llm.telemetry.record import Usage, UsageReader, usage_in


def fields(body: Any) -> Fields:
    return msgspec.json.decode(json.dumps(body).encode(), type=Fields)


@pytest.mark.parametrize(
    ("options", "hides", "sent"),
    [
        (None, True, {"include_usage": True}),
        ({}, True, {"include_usage": True}),
        ({"include_usage": False}, True, {"include_usage": True}),
        ({"continuous_usage_stats": True}, True, {"include_usage": True}),
        ({"x": 1}, True, {"x": 1, "include_usage": True}),
        ({"include_usage": True}, False, {"include_usage": True}),
        ("odd", False, "odd"),
    ],
)
def test_usage_is_asked_for_where_the_client_does_not(options: Any, hides: bool, sent: Any) -> None:
    found = fields({"stream_options": options})
    assert ask(found) is hides
    assert msgspec.json.decode(found["stream_options"]) == sent


CONTENT = [
    b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n',
    b'data: {"choices": [{"delta": {"content": "\\"usage\\": {}"}}], "usage": null}\n\n',
    b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
    b'data: {"choices":[{"delta":{}}],"usage":{"total_tokens":3}}\n\n',
    b": keep-alive\n\n",
    b'event: odd\r\ndata: {"usage":{}}\r\n\r\n',
    b'data: {"broken "usage"\n\n',
    b"data: [DONE]\n\n",
]
USAGE = [
    b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1,"total_tokens":2}}\n\n',
    b'data:{"usage": {"total_tokens": 2}, "choices": []}\r\n\r\n',
]


@given(
    events=st.lists(st.sampled_from(CONTENT + USAGE), max_size=12),
    cuts=st.lists(st.integers(0, 900), max_size=12),
)
def test_usage_alone_is_taken_out_wherever_the_stream_is_cut(events: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(events)
    places = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    usage = UsageFilter(drops=True)
    got = b"".join(usage.feed(stream[a:b]) for a, b in pairwise(places)) + usage.end()
    assert got == b"".join(event for event in events if event not in USAGE)


@given(cuts=st.lists(st.integers(0, 400), max_size=6))
def test_a_stream_that_tells_what_it_was_asked_passes(cuts: list[int]) -> None:
    stream = b"".join(CONTENT + USAGE)
    places = sorted({0, *cuts, len(stream)})
    usage = UsageFilter(drops=False)
    assert b"".join(usage.feed(stream[a:b]) for a, b in pairwise(places)) == stream


def test_only_what_may_be_the_usage_is_held() -> None:
    usage = UsageFilter(drops=True)
    assert usage.feed(b'data: {"id":"x",') == b""
    assert usage.feed(b'"choices":[{"delta"') == b'data: {"id":"x","choices":[{"delta"'
    assert usage.feed(b":{}}]}\n") == b":{}}]}\n"
    assert usage.feed(b"\n: comm") == b"\n: comm"
    assert usage.feed(b"data: [DO") == b"data: [DO"


def test_a_long_line_passes_in_pieces() -> None:
    usage = UsageFilter(drops=True)
    piece = b'data: {"x": "' + b"y" * 70_000
    assert usage.feed(piece) == piece
    assert usage.feed(b'"}\n\n') == b'"}\n\n'


@pytest.mark.parametrize(
    ("tail", "usage"),
    [
        (b'"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}', Usage(3, 2, 5)),
        (b'{"usage": {"prompt_tokens": 4, "total_tokens": 4}}', Usage(4, 0, 4)),
        (b'"usage":{"input_tokens":3,"output_tokens":9},"x":1', Usage(3, 9, 12)),
        (
            b'"usage":{"input_tokens":3,"cache_read_input_tokens":20,"output_tokens":9}',
            Usage(23, 9, 32),
        ),
        (
            b'"usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":2},"total_tokens":8}',
            Usage(3, 0, 8),
        ),
        (b'{"content": "\\"total_tokens\\": 7"}', None),
    ],
)
def test_usage_in_the_end_of_an_answer(tail: bytes, usage: Usage | None) -> None:
    assert usage_in(tail) == usage


@given(cuts=st.lists(st.integers(min_value=1, max_value=2000), min_size=1), behind=st.integers(0, 3000))
def test_usage_is_found_in_pieces_cut_anywhere(cuts: list[int], behind: int) -> None:
    answer = b"".join(
        (
            b'data: {"usage":{"input_tokens":30,"output_tokens":0}}\n\ndata: {"usage":null}\n\n',
            b'data: {"text":"%s"}\n\n' % (b"x" * 1500),
            b'data: {"usage":{"output_tokens":12}}\n\n%s' % (b"y" * behind),
        )
    )
    reader = UsageReader()
    while answer:
        cut = cuts[len(answer) % len(cuts)]
        reader.feed(answer[:cut])
        answer = answer[cut:]
    assert reader.found == Usage(30, 12, 42)


# --- batches ----------------------------------------------------------


def test_long_lists_are_split_and_the_rest_is_in_every_part() -> None:
    parts = split(fields({"model": "m", "input": ["a", "b", "c", "d", "e"], "dimensions": 8}), 2)
    assert [json.loads(part) for part in parts] == [
        {"model": "m", "input": inputs, "dimensions": 8} for inputs in (["a", "b"], ["c", "d"], ["e"])
    ]
    assert len(split(fields({"input": [[1, 2], [3], [4]]}), 2)) == 2


@pytest.mark.parametrize(
    "body",
    [
        {"input": ["a", "b"]},
        {"input": "a long text"},
        {"input": [1, 2, 3, 4]},
        {"input": [{"role": "user"}] * 4},
        {"input": []},
        {"input": None},
        {"messages": [{}] * 4},
        {"input": ["a"] * 4, "encoding_format": "bytes"},
    ],
)
def test_what_is_short_or_one_is_not_split(body: Any) -> None:
    assert split(fields(body), 2) == []


def test_answers_become_one() -> None:
    vectors = ["[0.10, 1e-3]", '"mpkZPw=="', "[2]"]
    parts = [
        b'{"id":"e1","object":"list","data":[{"index":0,"embedding":%s},{"index":1,"embedding":%s}],'
        b'"usage":{"prompt_tokens":3,"total_tokens":3,"prompt_tokens_details":null}}'
        % (vectors[0].encode(), vectors[1].encode()),
        b'{"id":"e2","object":"list","data":[{"index":0,"embedding":%s}],"usage":{"prompt_tokens":2,"total_tokens":2}}'
        % vectors[2].encode(),
    ]
    whole = merge(parts)
    assert json.loads(whole) == {
        "id": "e1",
        "object": "list",
        "data": [{"index": index, "embedding": json.loads(vector)} for index, vector in enumerate(vectors)],
        "usage": {"prompt_tokens": 5, "total_tokens": 5, "prompt_tokens_details": None},
    }
    assert all(vector.encode() in whole for vector in vectors), "vectors keep their bytes"


@pytest.mark.parametrize("part", [b"[]", b"{}", b'{"data": [{}]}', b'{"data": 1}', b"x"])
def test_what_is_no_answer_cannot_be_merged(part: bytes) -> None:
    with pytest.raises(ValueError):
        merge([part, part])
