"""Request line and the body's model -> which model or route, and which path of an engine. Pure.

What reaches an engine is in a list of methods and paths, or opened by the model asked; everything else is
not found, whatever a version of vLLM may serve there. The raw target is read, never a decoded one, so that no
encoding, dot segment or double slash can stand for another path.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from supervisord_llm.errors import Refused
from supervisord_llm.gateway.errors import MethodNotAllowed, Shape

STREAMING = frozenset({"chat/completions", "completions", "responses", "messages"})
"""Endpoints whose clients read server-sent events, so that a comment can keep them waiting."""

AT_ROOT = frozenset({"tokenize", "detokenize", "classify", "pooling", "v2/embed", "v2/rerank"})
"""Endpoints that vLLM serves beside /v1, not under it."""

FORMS = frozenset({"audio/transcriptions", "audio/translations"})
"""Endpoints that take a file, and so a form. What a policy is about comes as JSON alone."""

POSTED = (
    STREAMING
    | AT_ROOT
    | FORMS
    | {
        "audio/speech",
        "embeddings",
        "messages/count_tokens",
        "rerank",
        "score",
    }
)
"""Endpoints that take a body that names a model, and nothing else."""

Opened = Mapping[str | None, Collection[str]]
"""What each model or route opens beside the list, such as "POST /v1/score2"; None: what any of them does."""

MAX_PREFIX_SEGMENTS = 8

_SEGMENT = re.compile(r"[A-Za-z0-9._~:@+=,-]+")
_TARGET = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"^https?://[^/?#]*")


@dataclass(frozen=True, slots=True)
class Listing:
    """GET models, or one of them. `model`: the path prefix's model or route; `id`: as it came, decoded."""

    model: str | None
    id: str | None


@dataclass(frozen=True, slots=True)
class Upstream:
    """A path of an engine. `model`: the path prefix's model or route."""

    method: str
    path: str
    query: str
    model: str | None
    unlisted: Refused | None = field(default=None, compare=False)
    """What to answer where the model does not open the path; None: every model does."""

    @property
    def tail(self) -> str:
        return self.path.removeprefix("/v1/").removeprefix("/")

    @property
    def is_listed(self) -> bool:
        """Whether every model may be asked this."""
        return self.unlisted is None

    def check_opened(self, opened: Collection[str]) -> None:
        """
        Raises:
            Refused: `not_found`, `method_not_allowed`: it is not listed, nor among what the model opens.
        """
        if self.unlisted is not None and f"{self.method} {self.path}" not in opened:
            raise self.unlisted


@dataclass(frozen=True, slots=True)
class Target:
    """The model or route that a request is for. `rename`: engines do not know the body's name of it."""

    name: str
    rename: bool = False


def split_target(target: str) -> tuple[str, str]:
    """(path, query) of a raw request target; an absolute one loses its scheme and host.

    Raises:
        Refused: `invalid_request`, bytes that no target has.
    """
    if not _TARGET.fullmatch(target):
        raise Refused("invalid_request", "cannot read the path: it holds bytes that must be percent-encoded")
    path, _, query = _ORIGIN.sub("", target).partition("?")
    return path or "/", query


def parse(
    method: str, path: str, query: str, prefixes: Mapping[str, str], opened: Opened
) -> Listing | Upstream:
    """What a path asks for.

    Raises:
        Refused: `not_found`, `method_not_allowed`.
    """
    segments = path.removesuffix("/").split("/")[1:] if path.startswith("/") else []
    model, rest = _strip_prefix(segments, prefixes)
    asked = "/".join(rest)
    while rest[:1] == ["v1"]:  # a base URL that ends in /v1, given to a client that adds it
        rest = rest[1:]
    if rest[:1] == ["models"]:
        return _listing(method, path, model, rest[1:])
    tail = "/".join(rest)
    allow = _methods(rest, tail)
    if method in allow:
        return Upstream(method, f"/{tail}" if tail in AT_ROOT else f"/v1/{tail}", query, model)
    unlisted = MethodNotAllowed(method, path, allow) if allow else _not_found(path)
    for at in (f"/{asked}", f"/v1/{tail}", f"/{tail}"):  # as it is written, then as clients may mean it
        if f"{method} {at}" in opened[model]:
            return Upstream(method, at, query, model, unlisted)
    raise unlisted


def _methods(segments: list[str], tail: str) -> tuple[str, ...]:
    """What an engine may be asked at this path; nothing where it may not be asked."""
    match segments:
        case ["responses", id] if _is_plain(id):
            return ("GET", "HEAD", "DELETE")
        case ["responses", id, "cancel"] if _is_plain(id):
            return ("POST",)
        case ["realtime"]:  # a websocket
            return ("GET",)
        case _:
            return ("POST",) if tail in POSTED else ()


def choose(
    upstream: Upstream,
    asked: str | None,
    names: Mapping[str, str],
    default: str | None,
    *,
    unknown_to_default: bool = False,
    visible: Collection[str] = (),
) -> Target:
    """The model or route that is asked for: the path's, else the body's, else the default one.

    `visible` are the names that an error message may tell.

    Raises:
        Refused: `model_not_found`, `invalid_request` (no model named, none is the default).
    """
    if upstream.model is not None:
        return Target(upstream.model, rename=asked is not None and names.get(asked) != upstream.model)
    if not asked:  # an empty name is none, to OpenAI's API and to vLLM
        if default is None:
            known = ", ".join(visible) or "there is none"
            raise Refused("invalid_request", f"cannot tell which model to use: name one as `model`: {known}")
        return Target(default, rename=asked is not None)
    if asked in names:
        return Target(names[asked])
    if unknown_to_default and default is not None:
        return Target(default, rename=True)
    raise model_not_found(asked, visible)


def model_not_found(asked: str, visible: Collection[str]) -> Refused:
    """The refusal, with the names that look alike, or else all of them."""
    near = difflib.get_close_matches(asked[:100], visible, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(visible) or 'none'}"
    shown = asked if len(asked) <= 100 else asked[:100] + "…"
    return Refused("model_not_found", f"cannot find the model {shown!r}: {hint}")


def words_of(paths: Iterable[str]) -> frozenset[str]:
    """What stands between their slashes."""
    return frozenset(word for path in paths for word in path.split("/"))


def shown(path: str, known: Collection[str]) -> str:
    """A path as the log may tell it: what stands at an unknown place may be a key, or what a key opens."""
    return "/".join(word if word in known else "*" for word in path.split("/"))


def shape_of(path: str) -> Shape:
    """The shape that errors on this path have."""
    if path.startswith("/api/"):
        return Shape.OLLAMA
    if path.rstrip("/").endswith(("/messages", "/messages/count_tokens")):
        return Shape.ANTHROPIC
    return Shape.OPENAI


def _strip_prefix(segments: list[str], prefixes: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """The model or route of the longest path prefix, and what is left.

    An endpoint is one, whatever models are called: /chat/completions is not `completions` of a model `chat`.
    """
    if segments[:1] != ["v1"] and "/".join(segments) not in POSTED:
        for length in range(min(len(segments), MAX_PREFIX_SEGMENTS), 0, -1):
            model = prefixes.get("/" + "/".join(segments[:length]))
            if model is not None:
                return model, segments[length:]
    return None, segments


def _is_plain(segment: str) -> bool:
    return _SEGMENT.fullmatch(segment) is not None and segment.strip(".") != ""


def _listing(method: str, path: str, model: str | None, rest: list[str]) -> Listing:
    if method not in ("GET", "HEAD"):
        raise MethodNotAllowed(method, path, ("GET", "HEAD"))
    if not rest:
        return Listing(model, None)
    # Ids are looked up and never forwarded, so slashes in them are harmless, encoded or plain.
    return Listing(model, unquote("/".join(rest)))


def _not_found(path: str) -> Refused:
    return Refused("not_found", f"cannot find {path[:200]}: the API is at /v1, see GET /v1/models")
