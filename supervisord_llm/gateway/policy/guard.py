"""What no client may ask for unless the model's `request` allows it: harm to engines or to other clients."""

import contextlib

import msgspec

from supervisord_llm.config.keys.requests import CLOSED, LIMITS, Limit, Measure
from supervisord_llm.config.model import RequestPolicy
from supervisord_llm.gateway.policy.fields import (
    Fields,
    first_byte,
    given,
    is_null,
    items,
    members,
    number,
    refusal,
)
from supervisord_llm.gateway.target import STREAMING

NOTHING = frozenset({b"null", b"{}", b"[]", b'""', b"0", b"false"})
"""Values of a closed field that ask for nothing."""

CONVERSATIONS = (
    *("messages", "input", "system", "prompt"),
    *("documents", "query", "queries", "items", "data_1", "data_2", "text_1", "text_2"),
)
"""Where pictures, sound and films come in."""

_CLOSED_FIELDS = CLOSED.keys() - {"media_urls", "chat_template_kwargs"}


def check(fields: Fields, endpoint: str, rules: RequestPolicy) -> None:
    """
    Raises:
        Refused: `invalid_request`, which blames the field and tells the way out.
    """
    for name in fields.keys() & _CLOSED_FIELDS:
        if name not in rules.allow and bytes(fields[name]) not in NOTHING:
            raise _closed(name, name)
    if (settings := given(fields, "chat_template_kwargs")) is not None:
        _check_template_settings(settings, rules)
    if "media_urls" not in rules.allow:
        for name in CONVERSATIONS:
            if name in fields:
                _check_media(fields[name], name)
    for name in fields.keys() & LIMITS.keys():
        limit = LIMITS[name]
        if limit.measure is Measure.BYTES and endpoint not in STREAMING:
            continue  # no schema there
        if not is_null(fields[name]):
            _check_limit(fields[name], name, limit, rules.max.get(name))


def _closed(field: str, key: str) -> Exception:
    way_out = f'leave it out, or have the operator add allow = ["{key}"] to the model\'s `request`'
    return refusal(field, f"cannot take `{field}`: {CLOSED[key]}; {way_out}")


def _check_template_settings(raw: msgspec.Raw, rules: RequestPolicy) -> None:
    """Of Qwen's `enable_thinking` and the like: plain values alone, and no template by the back door."""
    settings = members(raw)
    if "chat_template" in settings and "chat_template" not in rules.allow:
        raise _closed("chat_template_kwargs", "chat_template")
    if "chat_template_kwargs" not in rules.allow and any(
        first_byte(value) in (b"{", b"[") for value in settings.values()
    ):
        raise _closed("chat_template_kwargs", "chat_template_kwargs")


def _check_limit(raw: msgspec.Raw, name: str, limit: Limit, own_max: float | None) -> None:
    most = limit.most if own_max is None else own_max
    if limit.measure is Measure.VALUE:
        if own_max is not None or first_byte(raw) in (b"t", b"f"):
            return  # it is lowered, not refused; or it is the `logprobs` of a chat: whether, not how many
        found = number(raw, name)
        if found < 0:  # vLLM's -1: all there are
            raise refusal(name, f"cannot take {found:g} as `{name}`: ask for {most:g} at most")
    else:
        found = _count(raw, name, most) if limit.measure is Measure.ITEMS else len(memoryview(raw))
    if found > most:
        unit = "" if limit.measure is Measure.VALUE else f" {limit.measure}"
        way_out = f"send less, or have the operator set max = {{ {name} = … }} in the model's `request`"
        raise refusal(name, f"cannot take {found:g}{unit} as `{name}`: {most:g} is the most; {way_out}")


def _count(raw: msgspec.Raw, name: str, most: float) -> int:
    """Items of a list or table. Numbers in a prompt are the tokens of one, and are not counted."""
    view = memoryview(raw)
    if len(view) <= most:
        return 0
    if bytes(view[:1]) == b"{":
        return len(members(raw))
    if name in ("prompt", "input") and bytes(view[1:32]).lstrip()[:1].isdigit():
        return 0
    return len(items(raw))


# --- media ----------------------------------------------------------


class _Message(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw(b"null")


_MESSAGES = msgspec.json.Decoder(list[_Message])


def _check_media(raw: msgspec.Raw, field: str) -> None:
    if field == "messages":  # the long one, whose messages are mostly text
        with contextlib.suppress(msgspec.ValidationError):
            for message in _MESSAGES.decode(raw):
                _look_at(message.content, field)
            return
    _look_at(raw, field)


def _look_at(raw: msgspec.Raw, field: str) -> None:
    """A conversation, a message or a part of one: into its parts, not into the arguments of tools."""
    kind = first_byte(raw)
    if kind == b"[":
        for item in items(raw):
            _look_at(item, field)
    for name, value in members(raw).items() if kind == b"{" else ():
        if name.endswith("_url"):  # image_url, as in every API; either the URL or {"url": …}
            _check_url(members(value).get("url", value), field)
        elif name == "source":  # Anthropic's
            _check_url(members(value).get("url"), field)
        elif name in ("content", "output"):
            _look_at(value, field)


def _check_url(url: msgspec.Raw | None, field: str) -> None:
    if url is None or first_byte(url) != b'"':
        return
    start = bytes(memoryview(url)[1:6]).lower()
    if start != b"data:" and start[:1] != b'"':
        message = f"cannot fetch media by URL: {CLOSED['media_urls']}; send it as `data:…;base64,…`, or have "
        raise refusal(field, message + 'the operator add allow = ["media_urls"] to the model\'s `request`')
