"""Request line and the body's model -> which model, and which path of its engine. Pure.

It reads the raw target, never a decoded one: what reaches an engine is a path that was looked up or is made
of plain segments, so that no encoding, dot segment or double slash can name an endpoint that is not offered.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from supervisord_llm.errors import Refused
from supervisord_llm.gateway.errors import MethodNotAllowed

STREAMING = frozenset({"chat/completions", "completions", "responses", "messages"})
"""Endpoints whose clients read server-sent events, so that a comment can keep them waiting."""

AT_ROOT = frozenset({"tokenize", "detokenize", "classify", "pooling"})
"""Endpoints that vLLM serves beside /v1, not under it."""

POSTED = (
    STREAMING
    | AT_ROOT
    | {
        "audio/speech",
        "audio/transcriptions",
        "audio/translations",
        "embeddings",
        "messages/count_tokens",
        "rerank",
        "score",
    }
)
"""Endpoints that take a body that names a model, and nothing else."""

SUBTREES = ("audio", "responses")
"""Known endpoints with something below them: responses/{id}, audio/voices."""

NEVER = frozenset({
    "abort_requests", "collective_rpc", "destroy_weight_transfer_engine", "docs", "get_world_size", "health",
    "inference", "init_weight_transfer_engine", "invocations", "is_paused", "is_scaling_elastic_ep",
    "is_sleeping", "load", "load_lora_adapter", "metrics", "openapi.json", "pause", "ping", "redoc",
    "release_kv_cache_memory", "reset_encoder_cache", "reset_mm_cache", "reset_prefix_cache", "resume",
    "scale_elastic_ep", "server_info", "sleep", "start_profile", "start_weight_update", "stop_profile",
    "unload_lora_adapter", "update_weights", "version", "wake_up",
})  # fmt: skip
"""vLLM's endpoints for its operator: refused as any segment, although none of them is under /v1 today."""

MAX_PREFIX_SEGMENTS = 8

_SEGMENT = re.compile(r"[A-Za-z0-9._~:@+=,-]+")
_TARGET = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Listing:
    """GET models, or one of them. `model`: the path prefix's; `id`: as the client wrote it, decoded."""

    model: str | None
    id: str | None


@dataclass(frozen=True, slots=True)
class Upstream:
    """A path of an engine. `model`: the path prefix's."""

    method: str
    path: str
    query: str
    model: str | None
    is_known: bool
    """A documented endpoint, so that it may go to the default model."""

    @property
    def tail(self) -> str:
        return self.path.removeprefix("/v1/").removeprefix("/")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes. `rename`: the engine does not know the body's model name and must get its own."""

    model: str
    rename: bool = False


def split_target(target: str) -> tuple[str, str]:
    """(path, query) of a raw request target; an absolute one loses its scheme and host.

    Raises:
        Refused: `invalid_request`, bytes that no target has.
    """
    if not _TARGET.fullmatch(target):
        raise Refused("invalid_request", "cannot read the path: it holds bytes that must be percent-encoded")
    if target.startswith(("http://", "https://")):
        target = "/" + target.split("/", 3)[3] if target.count("/") > 2 else "/"
    path, _, query = target.partition("?")
    return path, query


def parse(method: str, path: str, query: str, prefixes: Mapping[str, str]) -> Listing | Upstream:
    """What a path asks for.

    Raises:
        Refused: `not_found`, `method_not_allowed`.
    """
    segments = path.removesuffix("/").split("/")[1:] if path.startswith("/") else []
    model, rest = _strip_prefix(segments, prefixes)
    below_v1 = rest[:1] == ["v1"]
    while rest[:1] == ["v1"]:  # a base URL that ends in /v1, given to a client that adds it
        rest = rest[1:]
    if rest[:1] == ["models"]:
        return _listing(method, path, model, rest[1:])
    if not rest or not all(map(_is_plain, rest)):
        raise _not_found(path)
    tail = "/".join(rest)
    is_known = tail in POSTED or rest[0] in SUBTREES
    if not is_known and not below_v1:
        raise _not_found(path)
    allow = ("POST",) if tail in POSTED else ("GET", "HEAD", "POST", "DELETE")
    if method not in allow:
        raise MethodNotAllowed(method, path, allow)
    upstream = f"/{tail}" if tail in AT_ROOT else f"/v1/{tail}"
    return Upstream(method, upstream, query, model, is_known)


def choose(
    upstream: Upstream,
    asked: str | None,
    names: Mapping[str, str],
    default: str | None,
    *,
    unknown_to_default: bool = False,
    visible: Collection[str] = (),
) -> Route:
    """The model that serves the request: the path's, else the body's, else the default one.

    `visible` are the names that an error message may tell.

    Raises:
        Refused: `model_not_found`, `invalid_request` (no model named, none is the default), `not_found`.
    """
    if upstream.model is not None:
        return Route(upstream.model, rename=asked is not None and names.get(asked) != upstream.model)
    if asked is None:
        if not upstream.is_known:  # nothing names an engine, and the path says nothing to us
            raise _not_found(upstream.path)
        if default is None:
            known = ", ".join(visible) or "there is none"
            raise Refused("invalid_request", f"cannot tell which model to use: name one as `model`: {known}")
        return Route(default)
    if asked in names:
        return Route(names[asked])
    if unknown_to_default and default is not None:
        return Route(default, rename=True)
    raise model_not_found(asked, visible)


def model_not_found(asked: str, visible: Collection[str]) -> Refused:
    """The refusal, with the names that look alike, or else all of them."""
    near = difflib.get_close_matches(asked[:100], visible, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(visible) or 'none'}"
    shown = asked if len(asked) <= 100 else asked[:100] + "…"
    return Refused("model_not_found", f"cannot find the model {shown!r}: {hint}")


def is_anthropic(path: str) -> bool:
    """Whether errors on this path have Anthropic's shape."""
    return path.rstrip("/").endswith(("/messages", "/messages/count_tokens"))


def _strip_prefix(segments: list[str], prefixes: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """The model of the longest path prefix, and what is left."""
    if segments[:1] != ["v1"]:
        for length in range(min(len(segments), MAX_PREFIX_SEGMENTS), 0, -1):
            model = prefixes.get("/" + "/".join(segments[:length]))
            if model is not None:
                return model, segments[length:]
    return None, segments


def _is_plain(segment: str) -> bool:
    return (
        _SEGMENT.fullmatch(segment) is not None and segment.strip(".") != "" and segment.lower() not in NEVER
    )


def _listing(method: str, path: str, model: str | None, rest: list[str]) -> Listing:
    if method not in ("GET", "HEAD"):
        raise MethodNotAllowed(method, path, ("GET", "HEAD"))
    if not rest:
        return Listing(model, None)
    # Ids are looked up and never forwarded, so slashes in them are harmless, encoded or plain.
    return Listing(model, unquote("/".join(rest)))


def _not_found(path: str) -> Refused:
    return Refused("not_found", f"cannot find {path[:200]}: the API is at /v1, see GET /v1/models")
