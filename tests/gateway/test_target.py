"""Which request line leads where. Pure."""

import contextlib
import re
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisord_llm.errors import Refused
from supervisord_llm.gateway.errors import MethodNotAllowed, Shape
from supervisord_llm.gateway.target import (
    AT_ROOT,
    POSTED,
    Listing,
    Opened,
    Target,
    Upstream,
    choose,
    parse,
    shape_of,
    split_target,
)

PREFIXES = {
    "/coder": "coder", "/team/chat": "chat", "/qwen2.5:7b": "qwen2.5:7b", "/chat": "chat", "/v2": "v2",
}  # fmt: skip


CODERS, CHATS = {"POST /v1/score2", "GET /v1/files"}, {"POST /infill", "PUT /v1/score", "GET /a/b.c"}
NOTHING: Opened = dict.fromkeys((None, *PREFIXES.values()), ())
OPENED: Opened = {**NOTHING, "coder": CODERS, "chat": CHATS, None: CODERS | CHATS}


def route(method: str, target: str) -> Listing | Upstream:
    path, query = split_target(target)
    return parse(method, path, query, PREFIXES, NOTHING)


def route_with_opened(method: str, target: str) -> Listing | Upstream:
    path, query = split_target(target)
    return parse(method, path, query, PREFIXES, OPENED)


@pytest.mark.parametrize(
    ("target", "path", "model"),
    [
        ("/v1/chat/completions", "/v1/chat/completions", None),
        ("/chat/completions", "/v1/chat/completions", None),
        ("/v1/v1/chat/completions", "/v1/chat/completions", None),
        ("/v1/chat/completions/", "/v1/chat/completions", None),
        ("http://host:8000/v1/chat/completions", "/v1/chat/completions", None),
        ("/coder/v1/chat/completions", "/v1/chat/completions", "coder"),
        ("/coder/chat/completions", "/v1/chat/completions", "coder"),
        ("/coder/v1/v1/completions", "/v1/completions", "coder"),
        ("/team/chat/v1/embeddings", "/v1/embeddings", "chat"),
        ("/chat/v1/completions", "/v1/completions", "chat"),
        ("/chat/chat/completions", "/v1/chat/completions", "chat"),
        ("/v2/v2/rerank", "/v2/rerank", "v2"),
        ("/qwen2.5:7b/v1/rerank", "/v1/rerank", "qwen2.5:7b"),
        ("/v1/tokenize", "/tokenize", None),
        ("/tokenize", "/tokenize", None),
        ("/coder/v1/classify", "/classify", "coder"),
        ("/pooling", "/pooling", None),
        ("/v1/messages/count_tokens", "/v1/messages/count_tokens", None),
        ("/v2/rerank", "/v2/rerank", None),
        ("/coder/v2/rerank", "/v2/rerank", "coder"),
        ("/v1/responses/r_1/cancel", "/v1/responses/r_1/cancel", None),
        ("/v1/audio/transcriptions", "/v1/audio/transcriptions", None),
    ],
)
def test_paths_of_engines(target: str, path: str, model: str | None) -> None:
    found = route("POST", target)
    assert isinstance(found, Upstream)
    assert (found.path, found.model) == (path, model)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("http://host", ("/", "")),
        ("http://host?a=1", ("/", "a=1")),
        ("http://host?a=/healthz", ("/", "a=/healthz")),
        ("/v1/models?next=http://host/x", ("/v1/models", "next=http://host/x")),
    ],
)
def test_a_target_has_one_path_and_one_query(target: str, parts: tuple[str, str]) -> None:
    assert split_target(target) == parts


def test_the_query_is_kept_as_it_is() -> None:
    found = route("GET", "/v1/responses/r_1?stream=true&x=%2e%2e")
    assert isinstance(found, Upstream)
    assert found.query == "stream=true&x=%2e%2e"


@pytest.mark.parametrize(
    ("target", "listing"),
    [
        ("/v1/models", Listing(None, None)),
        ("/models", Listing(None, None)),
        ("/v1/models/", Listing(None, None)),
        ("/coder/v1/models", Listing("coder", None)),
        ("/v1/models/Qwen/Qwen2.5-7B", Listing(None, "Qwen/Qwen2.5-7B")),
        ("/v1/models/Qwen%2FQwen2.5-7B", Listing(None, "Qwen/Qwen2.5-7B")),
        ("/coder/models/coder", Listing("coder", "coder")),
    ],
)
def test_model_lists(target: str, listing: Listing) -> None:
    assert route("GET", target) == listing


@pytest.mark.parametrize(
    "target",
    [
        "/v1",
        "/v1/",
        "/coder",
        "/coder/v1",
        "/nothing/v1/chat/completions",
        "/unknown",
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/./chat/completions",
        "/v1/../sleep",
        "/v1/%2e%2e/sleep",
        "/coder/../admin/status",
        "/coder/..;/admin/status",
        "/v1/chat%2fcompletions",
        "/v1/chat%5ccompletions",
        "/v1/chat\\completions",
        "/v1/%73leep",
        "/v1/%252e%252e/sleep",
        "/v1/...",
        "*",
        "/sleep",
        "/v1/sleep",
        "/v1/SLEEP",
        "/coder/sleep",
        "/coder/v1/sleep",
        "/coder/v1/chat/sleep",
        "/v1/load_lora_adapter",
        "/coder/metrics",
        "/coder/health",
        "/invocations",
        "/v1/something/new",
        "/v1/files",
        "/coder/v1/files",
        "/v1/chat/completions/render",
        "/v1/responses/r_1/../../sleep",
        "/v1/responses/r_1/sleep",
        "/v1/responses/..",
        "/v1/responses/../../sleep",
        "/v1/audio/%2e%2e/%2e%2e/collective_rpc",
    ],
)
def test_what_is_not_offered_is_not_found(target: str) -> None:
    for method in ("GET", "POST"):
        with pytest.raises(Refused) as refused:
            route(method, target)
        assert refused.value.code == "not_found"


@pytest.mark.parametrize("target", ["/v1/a b", "/v1/a\x00", "/v1/\xe9", "/v1/a\r\nX: 1", ""])
def test_bytes_that_no_target_has_are_refused(target: str) -> None:
    with pytest.raises(Refused) as refused:
        split_target(target)
    assert refused.value.code == "invalid_request"


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("GET", "/v1/chat/completions", ("POST",)),
        ("OPTIONS", "/v1/chat/completions", ("POST",)),
        ("PUT", "/v1/responses/r1", ("GET", "HEAD", "DELETE")),
        ("GET", "/v1/responses/r1/cancel", ("POST",)),
        ("POST", "/v1/realtime", ("GET",)),
        ("POST", "/v1/models", ("GET", "HEAD")),
        ("DELETE", "/v1/models/coder", ("GET", "HEAD")),
    ],
)
def test_wrong_methods_tell_the_right_ones(method: str, target: str, allow: tuple[str, ...]) -> None:
    with pytest.raises(MethodNotAllowed) as refused:
        route(method, target)
    assert refused.value.allow == allow


NAMES = {"coder": "coder", "c3b": "coder", "chat": "chat"}
CHAT = Upstream("POST", "/v1/chat/completions", "", None)


def test_the_body_names_the_model() -> None:
    assert choose(CHAT, "coder", NAMES, "chat") == Target("coder")
    assert choose(CHAT, "c3b", NAMES, "chat") == Target("coder")
    assert choose(CHAT, None, NAMES, "chat") == Target("chat")
    assert choose(CHAT, "", NAMES, "chat") == Target("chat", rename=True)


def test_the_path_wins_and_its_engine_gets_a_name_it_knows() -> None:
    prefixed = Upstream("POST", "/v1/chat/completions", "", "coder")
    assert choose(prefixed, None, NAMES, "chat") == Target("coder")
    assert choose(prefixed, "c3b", NAMES, "chat") == Target("coder")
    assert choose(prefixed, "chat", NAMES, "chat") == Target("coder", rename=True)
    assert choose(prefixed, "gpt-5", NAMES, None) == Target("coder", rename=True)


def test_an_unknown_model_is_told_the_names_that_look_alike() -> None:
    with pytest.raises(Refused, match="did you mean coder"):
        choose(CHAT, "codr", NAMES, "chat", visible=list(NAMES))
    with pytest.raises(Refused, match="there is chat") as refused:
        choose(CHAT, "codr", NAMES, "chat", visible=["chat"])
    assert refused.value.code == "model_not_found"
    assert choose(CHAT, "codr", NAMES, "chat", unknown_to_default=True) == Target("chat", rename=True)


def test_without_a_model_and_a_default_one_must_be_named() -> None:
    with pytest.raises(Refused, match="name one as `model`: coder, chat") as refused:
        choose(CHAT, None, NAMES, None, visible=["coder", "chat"])
    assert refused.value.code == "invalid_request"


@pytest.mark.parametrize(
    "path", ["/v1/messages", "/messages", "/coder/v1/messages/count_tokens", "/v1/messages/"]
)
def test_errors_of_messages_are_anthropics(path: str) -> None:
    assert shape_of(path) is Shape.ANTHROPIC
    assert shape_of(path.replace("messages", "responses")) is Shape.OPENAI


@pytest.mark.parametrize(
    ("method", "target", "path", "model"),
    [
        ("POST", "/v1/score2", "/v1/score2", None),
        ("POST", "/score2/", "/v1/score2", None),
        ("POST", "/coder/v1/v1/score2", "/v1/score2", "coder"),
        ("POST", "/infill", "/infill", None),
        ("POST", "/v1/infill", "/infill", None),
        ("GET", "/team/chat/a/b.c", "/a/b.c", "chat"),
        ("PUT", "/chat/score", "/v1/score", "chat"),
    ],
)
def test_what_some_model_opens_is_for_that_model_alone(
    method: str, target: str, path: str, model: str | None
) -> None:
    found = route_with_opened(method, target)
    assert isinstance(found, Upstream)
    assert (found.path, found.model) == (path, model)
    assert not found.is_listed
    found.check_opened({f"{method} {path}"})
    for others in (set[str](), {f"{method} {path}/x"}, {path}, {f"DELETE {path}"}):
        with pytest.raises(Refused) as refused:
            found.check_opened(others)
        assert refused.value.code == ("method_not_allowed" if method == "PUT" else "not_found")
        with pytest.raises(Refused, match=re.escape(refused.value.message)):
            route(method, target)


@pytest.mark.parametrize("target", ["/v2/score2", "/v2/v1/score2", "/chat/score2", "/coder/infill"])
def test_below_a_path_it_is_as_if_nobody_opened_it(target: str) -> None:
    with pytest.raises(Refused) as refused:
        route_with_opened("POST", target)
    assert refused.value.code == "not_found"


def test_what_is_listed_stays_as_it_is() -> None:
    opened: Opened = {**NOTHING, None: {"POST /embeddings", "GET /v1/realtime", "POST /v1/tokenize"}}
    for method, path in (("POST", "/embeddings"), ("GET", "/realtime"), ("POST", "/v1/tokenize")):
        assert parse(method, path, "", PREFIXES, opened) == route(method, path)


OPERATORS = (
    *("abort_requests", "collective_rpc", "docs", "health", "inference", "invocations", "is_sleeping"),
    *("load", "load_lora_adapter", "metrics", "pause", "reset_prefix_cache", "scale_elastic_ep"),
    *("server_info", "sleep", "start_profile", "unload_lora_adapter", "update_weights", "wake_up"),
)
"""Endpoints of vLLM that are for its operator."""
TRICKS = (
    *("", ".", "..", "..;", "%2e%2e", "%2f", "%00", "%252e", "a%0d%0a", "#", "@", "*", "\\"),
    *("v1", "V1", "coder", "team", "chat", "models", "completions", "responses", "audio"),
    *("score2", "files", "infill", "a", "b.c", "B.c"),
    *sorted(OPERATORS),
    *sorted(AT_ROOT),
)
PIECES = st.one_of(
    st.sampled_from(TRICKS),
    st.sampled_from(sorted(OPERATORS)).map(lambda name: quote(name, safe="").replace("e", "%65")),
    st.sampled_from(sorted(OPERATORS)).map(str.upper),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?"), max_size=8),
)


@settings(deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "DELETE", "HEAD"]),
    pieces=st.lists(PIECES, max_size=6),
    start=st.sampled_from(["/", "", "/v1/", "/coder/", "/coder/v1/", "http://h/"]),
)
def test_no_path_reaches_what_is_not_offered(method: str, pieces: list[str], start: str) -> None:
    """Whatever is asked, an engine sees an endpoint of the list, never an operator's."""
    found = None
    with contextlib.suppress(Refused):
        found = route_with_opened(method, start + "/".join(pieces))
    if not isinstance(found, Upstream):
        return
    assert unquote(found.path) == found.path
    if not found.is_listed:
        assert f"{method} {found.path}" in OPENED[found.model]
        return
    if re.fullmatch(r"/v1/responses/[A-Za-z0-9._~:@+=,-]+", found.path):
        assert method in ("GET", "HEAD", "DELETE")
    elif re.fullmatch(r"/v1/responses/[A-Za-z0-9._~:@+=,-]+/cancel", found.path):
        assert method == "POST"
    elif found.path != "/v1/realtime":
        assert found.tail in POSTED
        assert method == "POST"
    assert not {".", ".."} & set(found.path.split("/"))
