"""What a request shows of what a route looks at before it chooses. Pure."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import msgspec

from supervisord_llm.config.model import Model
from supervisord_llm.core.routes.reach import models_of, routes_of
from supervisord_llm.core.routes.route import Choice, Route, Sticky
from supervisord_llm.core.routes.tokens import size_of
from supervisord_llm.gateway.policy import system, tools
from supervisord_llm.gateway.policy.fields import Fields, first_byte, given, items, members
from supervisord_llm.gateway.policy.policy import Policy

CONVERSATIONS: Mapping[str, tuple[str, ...]] = {
    "chat/completions": ("messages", "tools"),
    "messages": ("system", "messages", "tools"),
    "messages/count_tokens": ("system", "messages", "tools"),
    "responses": ("instructions", "input", "tools"),
}
"""Endpoint -> the fields that its prompt is made of, in their order."""

LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")

SESSION_HEADERS = ("X-Session-Id", "X-OpenWebUI-Chat-Id", "Session-Id", "X-LiteLLM-Session-Id")
SESSION_FIELDS = ("prompt_cache_key", "metadata", "user", "safety_identifier")
SESSION_METADATA = ("session_id", "chat_id", "conversation_id", "user_id")

BEGINNING_BYTES = 1024
"""How much of a prompt that is no conversation tells it apart from others."""

MOST_BEFORE = 32
"""Messages before the user's first one that are looked at."""

TOKEN_BYTES = 4
"""What a token counts that comes as a number."""

MEDIA = (
    b'_url"', b'_audio"', b'"image"', b'"input_image"',
    b'"document"', b'"file"', b'"input_file"', b";base64,",
)  # fmt: skip
"""Words of a body that has more than text. In a text their quotes would be escaped."""

_EMPTY = (b'""', b"[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What matters to a route, and to those it may lead through."""

    through: tuple[str, ...]
    """Itself and those."""
    models: tuple[str, ...]
    """Where it may lead."""
    session: bool
    hours: bool
    evictions: bool
    """Whether a member's start would cost another engine its place."""
    most_answer: int | None
    """What limits the tokens of an answer, whoever gives it; None: nothing does."""


@dataclass(frozen=True, slots=True)
class Features:
    """Those of one request."""

    size: int = 0
    """Of its prompt, as `size_of` counts; 0 where nobody has to hold it as a whole."""
    answer_tokens: int = 0
    tools: bool = False
    images: int = 0
    session: str = ""
    has_system: bool = False
    """A system prompt of its own."""
    is_plain: bool = True
    """One prompt of nothing but text: its size says how many tokens an engine finds in it."""


def needs_of(route: str, routes: Mapping[str, Route], models: Mapping[str, Model]) -> Needs:
    """What the configuration of a route asks for."""
    names, leads_to = routes_of(route, routes), models_of(route, routes)
    through = [routes[name] for name in names]
    rules = [rule for each in through for rule in each.rules]
    limits = [models[name].request.max.get("max_tokens") for name in leads_to]
    known = [int(limit) for limit in limits if limit is not None]
    return Needs(
        through=names,
        models=leads_to,
        session=any(each.sticky is Sticky.SESSION for each in through),
        hours=any(rule.hours is not None for rule in rules),
        evictions=any(each.policy is Choice.WARM or each.spillover is not None for each in through),
        most_answer=max(known) if known and len(known) == len(limits) else None,
    )


def features_of(headers: Mapping[str, str], endpoint: str, fields: Fields | None, needs: Needs) -> Features:
    """What a request shows. `fields` of a form are None: it has neither tokens nor a conversation."""
    session = _told_session(headers, fields or {}) if needs.session else ""
    if fields is None:
        return Features(session=session)
    found = ((name, given(fields, name)) for name in CONVERSATIONS.get(endpoint, ()))
    parts = {name: bytes(raw) for name, raw in found if raw is not None}
    said = [part for name, part in parts.items() if name != "tools"]
    typed = [part for part in said if b'"type"' in part]  # others have texts alone
    has_media = any(word in part for part in typed for word in MEDIA)
    if needs.session and not session:
        session = _beginning(endpoint, fields)
    prompts = [] if parts else _prompts(endpoint, fields)
    return Features(
        size=sum(map(size_of, parts.values())) if parts else max(map(_size, prompts), default=0),
        answer_tokens=_answer_tokens(fields, needs.most_answer) if endpoint != "messages/count_tokens" else 0,
        tools=tools.offered(fields) and not tools.is_empty(fields),
        images=sum(map(_images, typed)) if has_media else 0,
        session=session,
        has_system=any(name in parts and parts[name] not in _EMPTY for name in ("system", "instructions"))
        or any(role in part for part in said for role in system.SYSTEM_ROLES),
        is_plain=not has_media and (bool(parts) or [*map(first_byte, prompts)] == [b'"']),
    )


def own_bytes(policy: Policy, endpoint: str, features: Features) -> int:
    """What the model's own system prompt adds to the size."""
    is_put = endpoint in CONVERSATIONS and (policy.always or not features.has_system)
    return len(policy.prompt.encode()) if is_put and policy.prompt is not None else 0


def _images(part: bytes) -> int:
    """Each is named once, but in a chat, where its type and its URL have one name."""
    others = part.count(b'"image"') + part.count(b'"input_image"')
    return others + (max(0, part.count(b'"image_url"') - part.count(b'"input_image"')) + 1) // 2


def _prompts(endpoint: str, fields: Fields) -> list[msgspec.Raw]:
    """The one that there is, or several that are read one by one."""
    raw = given(fields, "prompt" if endpoint == "completions" else "input")
    if raw is None:
        return []
    several = items(raw)
    return several if several and first_byte(several[0]) in (b'"', b"[") else [raw]


def _size(raw: msgspec.Raw) -> int:
    """Of a text, or of a list of tokens."""
    return len(items(raw)) * TOKEN_BYTES if first_byte(raw) == b"[" else size_of(bytes(raw))


def _answer_tokens(fields: Fields, most: int | None) -> int:
    found = [raw for name in LIMITS if (raw := given(fields, name)) is not None]
    told = max((int(raw) for raw in map(bytes, found) if len(raw) < 10 and raw.isdigit()), default=0)
    return told if most is None else min(told, most)


# --- sessions -----------------------------------------------------------


def _told_session(headers: Mapping[str, str], fields: Fields) -> str:
    """The one that the client names; "" where it names none."""
    for name in SESSION_HEADERS:
        if value := headers.get(name):
            return _digest(value.encode("utf-8", "surrogateescape"))
    for name in SESSION_FIELDS:
        raw = given(fields, name)
        if raw is None:
            continue
        named = [raw] if name != "metadata" else [members(raw).get(each) for each in SESSION_METADATA]
        for word in named:
            if word is not None and first_byte(word) == b'"' and bytes(word) != b'""':
                return _digest(bytes(word))
    return ""


def _beginning(endpoint: str, fields: Fields) -> str:
    """A digest of what a conversation keeps as it grows: all up to the end of the user's first message."""
    found = hashlib.blake2b(digest_size=16)
    for part in _first_turns(endpoint, fields):
        found.update(part)
    return found.hexdigest()


def _first_turns(endpoint: str, fields: Fields) -> Iterator[bytes]:
    for name in CONVERSATIONS.get(endpoint, ("prompt", "input"))[:2]:
        raw = given(fields, name)
        if raw is None or name == "tools":
            continue
        if first_byte(raw) != b"[" or name == "prompt":
            yield bytes(raw)[:BEGINNING_BYTES]
            continue
        for item in islice(items(raw), MOST_BEFORE):
            yield bytes(item)
            if bytes(members(item).get("role", b"")) == b'"user"':
                break


def _digest(name: bytes) -> str:
    return hashlib.blake2b(name, digest_size=16).hexdigest()
