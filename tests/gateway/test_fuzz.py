"""Anything at all into what reads requests and answers; real requests, broken at random, into a live gateway.

`scripts/bench fuzz` does the latter for as long as one likes.
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
import random
import re
from collections.abc import Iterator
from email.message import Message
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from supervisord_llm.config.keys.doors import read_network
from supervisord_llm.config.keys.requests import CLOSED, TOKEN_LIMIT_NAMES
from supervisord_llm.config.model import RequestPolicy, Site
from supervisord_llm.errors import Refused
from supervisord_llm.gateway.api import ollama
from supervisord_llm.gateway.api.ollama import request as asked
from supervisord_llm.gateway.api.ollama.answer import Embeddings, Talk, Timing
from supervisord_llm.gateway.app import WORDS
from supervisord_llm.gateway.body import peek, rename
from supervisord_llm.gateway.browser import cors
from supervisord_llm.gateway.doors.address import client_address, forwarded_for
from supervisord_llm.gateway.inference.waiting import patience
from supervisord_llm.gateway.policy.guard import CONVERSATIONS, NOTHING
from supervisord_llm.gateway.policy.policy import policy_of, shape
from supervisord_llm.gateway.policy.usage import UsageFilter
from supervisord_llm.gateway.sites import sites
from supervisord_llm.gateway.target import (
    AT_ROOT,
    POSTED,
    Listing,
    Upstream,
    choose,
    parse,
    shown,
    split_target,
)
from tests.gateway.conftest import Build, client, config, model
from tests.gateway.mutator import Fuzz
from tests.gateway.wire import JSON as JSON_TYPE
from tests.gateway.wire import KEY, NotingEngine, post, replies

JSON = "application/json"
fuzz = settings(deadline=None, max_examples=100)

LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.text(max_size=8)),
    st.sampled_from(
        ["http://a/b.png", "data:,x", "DATA:,", "file:///etc/passwd", "alpha", "beta", "1", 0, -1]
    ),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def spelled(draw: st.DrawFn, name: str) -> str:
    """A key or text of JSON, each character as it is or as an escape."""
    how = draw(
        st.lists(st.sampled_from(["%s", "\\u%04x", "\\u%04X"]), min_size=len(name), max_size=len(name))
    )
    pieces = (
        form % (json.dumps(letter)[1:-1] if form == "%s" else ord(letter))
        for letter, form in zip(name, how, strict=True)
    )
    return f'"{"".join(pieces)}"'


@st.composite
def objects(draw: st.DrawFn, names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> str:
    """The text of an object: keys in any spelling, some of them more than once, white space anywhere."""
    space = st.sampled_from(["", " ", "\r\n", "\t"])
    members = [
        f"{draw(space)}{draw(spelled(draw(names)))}{draw(space)}:{draw(space)}{draw(values)}{draw(space)}"
        for _ in range(draw(st.integers(0, 6)))
    ]
    return "{" + ",".join(members) + "}"


def written(values: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    return st.builds(lambda value, plain: json.dumps(value, ensure_ascii=plain), values, st.booleans())


# --- paths ----------------------------------------------------------------------------------------

TARGETS = st.text(st.characters(max_codepoint=0x17F), max_size=30) | st.lists(
    st.sampled_from([
        *("v1", "coder", "chat", "completions", "models", "responses", "sleep", "..", ".", "%2e%2e", "..;"),
        *("%2f", "\\", "", "?", "#", "http:", "x", "api", "admin", "realtime", "%00", "é", "score2", "files"),
    ]),
    max_size=7,
).map("/".join)  # fmt: skip


OPENED = {None: {"POST /v1/score2", "GET /files"}, "coder": {"POST /v1/score2"}}


@fuzz
@given(target=TARGETS, method=st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "CONNECT", "gEt"]))
def test_a_target_is_of_the_list_or_refused_and_the_log_knows_its_words(target: str, method: str) -> None:
    with contextlib.suppress(Refused):
        path, query = split_target(target)
        assert set(shown(path, WORDS).split("/")) <= WORDS | {"*"}
        found = parse(method, path, query, {"/coder": "coder"}, OPENED)
        assert isinstance(found, Listing | Upstream)
        if isinstance(found, Upstream) and not found.is_listed:
            assert f"{method} {found.path}" in OPENED[found.model]
        elif isinstance(found, Upstream) and found.method == "POST":
            assert found.tail in POSTED or re.fullmatch(r"responses/[^/?]+/cancel", found.tail)


SITE = Site(name="graphs", upstream="http://127.0.0.1:3000/part", path="/grafana")
STEPS = st.sampled_from([
    *("..", ".", "%2e%2e", "%2E.", "..;", "..;a=b", ".;", "%252e%252e", "..%2f..", "..%5c", "..\\", "a", ""),
    *("%2f", "%5c%2e%2e", "...", "a..b", "%", "%zz", "%c0%ae%c0%ae", "?", "#"),
])  # fmt: skip


def climbs(path: str) -> bool:
    """Whether a server that decodes, and takes more for a slash than we do, leaves the folder."""
    depth = 0
    for step in re.split(r"[/\\]", unquote(unquote(unquote(path)))):
        step = step.partition(";")[0]
        depth += {"": 0, ".": 0, "..": -1}.get(step, 1)
        if depth < 1:  # of /part
            return True
    return False


@fuzz
@given(st.lists(STEPS, max_size=6).map("/".join))
def test_no_path_leads_out_of_a_site(rest: str) -> None:
    path = "/grafana/" + rest.partition("?")[0].partition("#")[0]
    with contextlib.suppress(Refused):
        url = sites.target(SITE, path, "")
        assert str(url).startswith("http://127.0.0.1:3000/part/")
        assert not climbs(url.raw_path.removeprefix("/"))


# --- bodies ---------------------------------------------------------------------------------------

FIELDS = st.sampled_from(["model", "stream", "x", "Model", "mode", "n"])
TEXTS = objects(FIELDS, written(VALUES))


@fuzz
@given(
    text=TEXTS, at=st.integers(0, 60), junk=st.sampled_from([b"", b"\x00", b"\xff", b'"', b"{", b"}", b"\\"])
)
@example(text='{"model":"\\ud800"}', at=100, junk=b"")
def test_what_is_peeked_at_is_what_an_engine_reads(text: str, at: int, junk: bytes) -> None:
    body = text.encode()
    body = body[:at] + junk + body[at:]
    try:
        found = peek(JSON, body)
    except Refused:
        return
    read = json.loads(body)
    assert found.model == read.get("model")
    assert found.stream is bool(read.get("stream"))


BOUNDARY = "bound"
PARTS = st.lists(
    st.tuples(
        st.sampled_from([
            *('name="model"', "name=model", 'name="file"; filename="a"', 'name="model"; filename="a"'),
            *('name="x"\r\nX-Y: content-disposition: form-data; name="model"', 'name="model_name"'),
        ]),
        st.binary(max_size=12) | st.sampled_from([b"alpha", b"beta", b"\r\n--", b"\r\n--boun", b"\r\n\r\n"]),
    ),
    max_size=4,
)  # fmt: skip


def form(parts: list[tuple[str, bytes]]) -> bytes:
    head = b"--bound\r\nContent-Disposition: form-data; "
    return (
        b"".join(head + name.encode() + b"\r\n\r\n" + value + b"\r\n" for name, value in parts)
        + b"--bound--\r\n"
    )


@fuzz
@given(PARTS)
def test_the_model_of_a_form_is_the_last_field_of_that_name(parts: list[tuple[str, bytes]]) -> None:
    names = [value for head, value in parts if head in ('name="model"', "name=model")]
    kind = f"multipart/form-data; xboundary=x; boundary={BOUNDARY}"
    try:
        found = peek(kind, form(parts)).model
    except Refused:
        assert names
        names[-1].decode("utf-8", "strict") if names[-1].isascii() else None
        return
    assert found == (names[-1].decode() if names else None)
    if names:
        renamed = rename(kind, form(parts), "new")
        assert peek(kind, renamed).model == "new"
        assert len(renamed) == len(form(parts)) - len(names[-1]) + len("new")


@fuzz
@given(kind=st.text(max_size=20), boundary=st.text(max_size=5), body=st.binary(max_size=120))
def test_no_type_and_no_bytes_surprise_the_peek(kind: str, boundary: str, body: bytes) -> None:
    for content_type in (
        kind,
        JSON,
        f"multipart/form-data; boundary={boundary}",
        f"{kind}; boundary={boundary}",
    ):
        with contextlib.suppress(Refused):
            found = peek(content_type, body)
            choose(Upstream("POST", "/v1/score", "", None), found.model, {"alpha": "alpha"}, "alpha")


# --- policy ---------------------------------------------------------------------------------------

ENDPOINTS = st.sampled_from(sorted(POSTED - {"audio/speech"}))
GUARDED = sorted(CLOSED.keys() - {"media_urls", "chat_template_kwargs"})
SOMETHING = written(st.sampled_from(["x", 1, True, ["x"], {"x": 1}, None, {}, [], "", 0, False]))


@fuzz
@given(endpoint=ENDPOINTS, text=objects(st.sampled_from([*GUARDED, "x"]), SOMETHING))
def test_a_closed_field_does_not_pass_however_it_is_spelled(endpoint: str, text: str) -> None:
    for name, value in seen_by_engine(endpoint, text, RequestPolicy()).items():
        assert name not in GUARDED or json.dumps(value).encode() in NOTHING


URLS = written(
    st.sampled_from(["http://a", "HTTPS://a", "file:///a", "//a", " data:,", "data:,x", "Data:,x", ""])
)
PART = st.one_of(
    objects(st.sampled_from(["type", "text", "image_url", "video_url", "audio_url", "file_url"]), URLS),
    URLS.map(lambda url: f'{{"image_url": {{"detail": "low", "url": {url}}}}}'),
    URLS.map(lambda url: f'{{"type": "image", "source": {{"type": "url", "url": {url}}}}}'),
)


@st.composite
def conversations(draw: st.DrawFn) -> str:
    """Messages with parts with media, some of them not as they should be."""
    odd = st.sampled_from(['"odd"', "1", "null", "[]", '{"content": null}', '{"content": "text"}'])
    nested = PART | PART.map(lambda part: f'{{"type": "tool_result", "content": [{part}]}}')
    content = st.lists(nested | odd, min_size=1, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
    message = objects(st.sampled_from(["role", "content", "output"]), content | URLS) | odd | PART
    return "[" + ", ".join(draw(st.lists(message, max_size=3))) + "]"


def fetched(value: Any) -> Iterator[str]:
    """Every URL that an engine may fetch in a conversation as it parsed it."""
    if isinstance(value, list):
        for item in value:
            yield from fetched(item)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name.endswith("_url") or name == "source":
                url = inner.get("url") if isinstance(inner, dict) else inner if name != "source" else None
                if isinstance(url, str):
                    yield url
            elif name in ("content", "output"):
                yield from fetched(inner)


@fuzz
@given(endpoint=ENDPOINTS, text=objects(st.sampled_from(CONVERSATIONS), conversations()))
def test_no_url_that_an_engine_would_fetch_passes(endpoint: str, text: str) -> None:
    seen = seen_by_engine(endpoint, text, RequestPolicy())
    if isinstance(seen.get("messages"), list):  # of which engines read the content alone
        seen["messages"] = [one.get("content") for one in seen["messages"] if isinstance(one, dict)]
    for url in fetched([seen.get(name) for name in CONVERSATIONS]):
        assert url == "" or url.lower().startswith("data:")


RULES = RequestPolicy(
    force={"temperature": 0.5, "stop": ["x"], "chat_template_kwargs": {"enable_thinking": False}},
    strip=("logit_bias", "seed"),
    max={"max_tokens": 100, "n": 2, "top_k": 9},
    min={"top_k": 3},
)
RULED = (
    "temperature",
    "stop",
    "chat_template_kwargs",
    "logit_bias",
    "seed",
    "n",
    "top_k",
    *TOKEN_LIMIT_NAMES,
)
NUMBERS = st.sampled_from(
    [
        "1",
        "0",
        "-1",
        "1e3",
        "1e999",
        "-1e999",
        "9" * 30,
        "9" * 400,
        "9" * 5000,
        '"7"',
        "true",
        "null",
        "[1]",
        "2.5",
    ]
)
KWARGS = objects(st.sampled_from(["enable_thinking", "x"]), NUMBERS)


@fuzz
@given(endpoint=ENDPOINTS, text=objects(st.sampled_from(RULED), NUMBERS | KWARGS))
def test_the_operators_rules_hold_whatever_the_client_writes(endpoint: str, text: str) -> None:
    seen = seen_by_engine(endpoint, text, RULES)
    if not seen or endpoint in ("tokenize", "detokenize", "messages/count_tokens"):
        return
    assert seen["temperature"] == 0.5
    assert seen["stop"] == ["x"]
    assert seen["chat_template_kwargs"]["enable_thinking"] is False
    assert not seen.keys() & {"logit_bias", "seed"}
    for name, least, most in (
        ("n", -1e300, 2),
        ("top_k", 3, 9),
        *((each, -1e300, 100) for each in TOKEN_LIMIT_NAMES),
    ):
        assert seen.get(name) is None or least <= seen[name] <= most


def seen_by_engine(endpoint: str, text: str, rules: RequestPolicy) -> dict[str, Any]:
    """The body that an engine parses; nothing where it gets none."""
    body = text.encode()
    policy = policy_of(model("alpha", request=rules, system_prompt="P", system_prompt_mode="always"))
    try:
        fields = peek(JSON, body).fields
        assert fields is not None
        sent = shape(policy, endpoint, fields, {"model": msgspec.Raw(b'"alpha"')}).bodies(body)
    except Refused:
        return {}
    (only,) = sent
    found: dict[str, Any] = json.loads(only, parse_int=lambda digits: int(digits[:4000]))
    assert found["model"] == "alpha"
    return found


# --- Ollama ---------------------------------------------------------------------------------------

OLLAMA_NAMES = st.sampled_from([
    *("model", "messages", "prompt", "stream", "options", "format", "think", "keep_alive", "images", "raw"),
    *("system", "suffix", "template", "context", "input", "truncate", "dimensions", "tools"),
])  # fmt: skip
MESSAGES = objects(
    st.sampled_from(["role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"]),
    written(VALUES)
    | st.sampled_from(['"user"', '"tool"', '[{"function": {"name": "f", "arguments": {"a": 1}}}]']),
)
OPTIONS = objects(st.sampled_from(sorted(asked.PARAMETERS)), NUMBERS | written(VALUES))


@fuzz
@given(
    objects(
        OLLAMA_NAMES,
        written(VALUES) | OPTIONS | st.lists(MESSAGES, max_size=3).map(lambda x: f"[{','.join(x)}]"),
    )
)
def test_every_body_of_ollamas_is_refused_or_becomes_one_of_openais(text: str) -> None:
    read = ollama.endpoints._decode
    for kind, translated in (
        (asked.Chat, lambda chat: ("chat/completions", asked.chat(chat))),
        (asked.Generate, asked.generate),
        (asked.Embed, lambda embed: ("embeddings", asked.embed(embed))),
    ):
        with contextlib.suppress(Refused):
            tail, body = translated(read(text.encode(), kind))  # type: ignore[operator]
            json.loads(msgspec.json.encode(body))
            assert tail in POSTED


CALLED = [
    b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{\\"a\\":[\\n1]}"}}]}}]}\n\n',
    b"data: [DONE]\n\n",
]
SPOKEN = st.sampled_from([
    b'data: {"choices":[{"delta":{"content":"a\\nb"}}]}\n\n',
    CALLED[0],
    b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"' + b"[" * 3000 + b'"}}]}}]}\n\n',
    b'data: {"choices":[{"finish_reason":"length"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
    b'data: {"error":{"message":"no"}}\n\n', b'data: {"error":' + b"[" * 3000 + b"\n\n", b"data: [DONE]\n\n",
    b": keep-alive\n\n", b"data: {", b'data: {"choices":null}\n\n', b"\xff\n\n", b"\r\n", b"event: x\n",
])  # fmt: skip


@fuzz
@given(
    pieces=st.lists(SPOKEN | st.binary(max_size=20), max_size=8),
    step=st.integers(1, 40),
    status=st.sampled_from([200, 400, 500]),
    content_type=st.sampled_from(["text/event-stream", JSON, "text/plain"]),
    streams=st.booleans(),
    kind=st.sampled_from(["chat", "generate"]),
)
@example(pieces=CALLED, step=900, status=200, content_type="text/event-stream", streams=True, kind="chat")
def test_whatever_an_engine_says_ollamas_clients_read_json(
    pieces: list[bytes], step: int, status: int, content_type: str, streams: bool, kind: Any
) -> None:
    said = b"".join(pieces)

    def told(places: list[int]) -> bytes:
        one = Talk("m", kind, Timing(0.0, lambda: 0.0, lambda: 1.0), streams=streams)
        one.begin(status, content_type)
        return b"".join(one.feed(said[a:b]) for a, b in pairwise(places)) + one.end()

    whole = told([0, len(said)])
    in_pieces = told([*range(0, len(said), step), len(said)])
    for answer in (whole, in_pieces):
        for line in answer.splitlines():
            assert isinstance(json.loads(line), dict)
    clock = re.compile(rb'"created_at":"[^"]*"')
    assert clock.sub(b"", in_pieces) == clock.sub(b"", whole)


@fuzz
@given(body=st.binary(max_size=60) | written(VALUES).map(str.encode), status=st.sampled_from([200, 500]))
@example(body=b'{"data":[{"embedding":' + b"[" * 5000, status=200)
@example(body=b'{"error":' + b"[" * 5000, status=500)
def test_whatever_an_engine_says_vectors_are_json(body: bytes, status: int) -> None:
    for is_old in (True, False):
        one = Embeddings("m", Timing(0.0, lambda: 0.0, lambda: 1.0), is_old=is_old)
        one.begin(status, JSON)
        assert isinstance(json.loads(one.feed(body) + one.end()), dict)


# --- streams and headers --------------------------------------------------------------------------

CRUMBS = st.sampled_from([
    *(b"data: {", b"data:{", b'"usage"', b'"choices":[]', b'"choices":[{', b":{}", b"}", b"\n", b"\n\n"),
    *(b'data: {"choices":[],"usage":{"total_tokens":1}}\n\n', b'data: {"choices":[{"a":"\n"}]}\n', b"\r\n"),
    b'{"choices":[],"usage":{}}',
])  # fmt: skip


@fuzz
@given(crumbs=st.lists(CRUMBS | st.binary(max_size=4), max_size=14), step=st.integers(1, 20))
def test_it_does_not_matter_where_a_stream_is_cut(crumbs: list[bytes], step: int) -> None:
    stream = b"".join(crumbs)

    def passed(places: list[int]) -> bytes:
        usage = UsageFilter(drops=True)
        return b"".join(usage.feed(stream[a:b]) for a, b in pairwise(places)) + usage.end()

    assert passed([*range(0, len(stream), step), len(stream)]) == passed([0, len(stream)])


TRUSTED = tuple(map(read_network, ("127.0.0.1", "10.0.0.0/8", "fd00::/8")))
HOPS = st.sampled_from(
    ["10.0.0.1", "6.6.6.6", "6.6.6.6:80", "[fd00::1]:1", "fd00::2", "2001:db8::1", "unknown"]
)


@fuzz
@given(
    peer=st.sampled_from(["127.0.0.1", "10.9.9.9", "192.0.2.1", "unix"]),
    values=st.lists(st.lists(HOPS | st.text(max_size=8), max_size=4).map(", ".join), max_size=3),
)
@example(peer="127.0.0.1", values=["fe80::1%\x1b[31m" + "x" * 5000])
def test_the_address_of_a_client_is_an_address_and_not_of_its_own_making(
    peer: str, values: list[str]
) -> None:
    headers = CIMultiDictProxy(CIMultiDict([("X-Forwarded-For", value) for value in values]))
    found = client_address(peer, headers, TRUSTED)
    if peer in ("192.0.2.1", "unix"):
        assert found == peer
        return
    assert str(ipaddress.ip_address(found)) == found
    assert "%" not in found
    last = next((hop for hop in reversed(forwarded_for(headers)) if not hop.startswith("10.")), None)
    assume(last is not None and last.startswith("6.6.6.6"))
    assert found == "6.6.6.6"


@fuzz
@given(st.dictionaries(st.sampled_from(["Origin", "Access-Control-Request-Headers"]), st.text(max_size=40)))
def test_what_browsers_are_told_is_one_line(headers: dict[str, str]) -> None:
    rules = cors(("http://a.lan", "https://*.b.lan"))
    assert rules is not None
    sent = CIMultiDictProxy(CIMultiDict(headers))
    for value in (rules.headers(sent) | rules.preflight(sent)).values():  # type: ignore[operator]
        assert re.fullmatch(r"[ -~]+", value)


@fuzz
@given(st.dictionaries(
    st.sampled_from(["x-stainless-read-timeout", "x-stainless-retry-count", "x-stainless-lang"]),
    st.text(max_size=8) | st.sampled_from(["nan", "inf", "1e999", "-1", "9" * 5000, "1_0", "js", "0x1"]),
))  # fmt: skip
def test_no_patience_surprises(headers: dict[str, str]) -> None:
    found = patience(headers)
    assert found is None or found > 0


def test_the_boundary_is_that_of_the_standard_library() -> None:
    """Python's own reader agrees on what the Content-Type says."""
    message = Message()
    message["Content-Type"] = f"multipart/form-data; xboundary=x; boundary={BOUNDARY}"
    assert message.get_boundary() == BOUNDARY
    assert peek(message["Content-Type"], form([("name=model", b"alpha")])).model == "alpha"


# --- a live gateway -------------------------------------------------------------------------------

ENDPOINT = "|".join(sorted(map(re.escape, POSTED - AT_ROOT)))
SAFE_LINE = re.compile(
    rf"POST (/v1/({ENDPOINT})|/({'|'.join(sorted(AT_ROOT))}))(\?[!-~]*)? HTTP/1\.1"
    r"|POST /v1/responses/[\w.:@~+=,-]+/cancel(\?[!-~]*)? HTTP/1\.1"
    r"|(GET|HEAD|DELETE) /v1/responses/[\w.:@~+=,-]+(\?[!-~]*)? HTTP/1\.1"
    r"|GET /v1/realtime(\?[!-~]*)? HTTP/1\.1"
    r"|POST /v1/score2(\?[!-~]*)? HTTP/1\.1",
    re.ASCII,
)
SECONDS = 10.0


async def test_requests_broken_at_random_break_nothing(
    build: Build, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Every answer is one, none says that we failed, and the engine sees whole and allowed requests alone."""
    caplog.set_level(logging.INFO)
    seed = random.randrange(2**32)
    engine, site = NotingEngine(), NotingEngine()
    listening = await asyncio.start_server(site, "127.0.0.1", unused_tcp_port)
    settings = config(
        model("alpha", request=RequestPolicy(allow=("POST /v1/score2",))),
        clients=(client("a"), client("admin", admin=True)),
        cors_origins=("http://o",),
        sites=(Site(name="site", upstream=f"http://127.0.0.1:{unused_tcp_port}", path="/site"),),
    )
    async with build(settings, scripts={"alpha": engine}) as house:
        fuzz = Fuzz(house.port, seed)
        await fuzz.run(SECONDS)
        await house.until(lambda: not house.runtime.fleet.engines["alpha"].leases)
        after = replies(await house.raw(post(headers=KEY + JSON_TYPE)))
    listening.close()
    assert not fuzz.wrong, f"seed {seed}: {fuzz.wrong[:3]}"
    assert fuzz.sent > 100
    assert [reply.status for reply in after] == [200]
    for head, body in engine.seen:
        line, *headers = head.decode().split("\r\n")[:-2]
        assert SAFE_LINE.fullmatch(line), head
        names = {header.partition(":")[0].lower() for header in headers}
        assert not names & {"authorization", "x-api-key", "cookie", "transfer-encoding"}, head
        if body and b"multipart" not in head:
            json.loads(body, parse_int=lambda digits: int(digits[:4000]))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], f"seed {seed}"
