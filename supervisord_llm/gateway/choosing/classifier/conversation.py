"""What people and models said in a request, as text for a model that is to judge it. Pure.

Every API writes it down otherwise. What is malformed is skipped here, for the engine to refuse.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from supervisord_llm.gateway.policy.fields import Fields, first_byte, given, items, members

ROLES = ("system", "user", "assistant")
NAMES = {"developer": "system"}

_PLACEHOLDERS = {"image": "[image]", "input_image": "[image]", "image_url": "[image]", "audio": "[audio]",
                 "input_audio": "[audio]", "audio_url": "[audio]", "video_url": "[video]", "file": "[file]",
                 "input_file": "[file]", "document": "[file]"}  # fmt: skip
_TEXTS = ("text", "input_text", "output_text")

_MARKUP = re.compile(r"<(?=\S)|\[(?=/?[A-Z_]+\])")
"""How the tokens begin that mark turns in the templates of chats, and how our own tags do."""

ELLIPSIS = " … "
MOST_ITEMS = 2000
"""Messages that are looked at, from the last one on, and parts of one: a few milliseconds."""

LEAST_BYTES = 32
"""Less of a message says nothing."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one of ROLES said; pictures and files in it are named, not shown."""

    role: str
    text: str

    def __str__(self) -> str:
        return f"<{self.role}>\n{self.text}\n</{self.role}>\n"


def excerpt(endpoint: str, fields: Fields, most_bytes: int) -> list[Turn]:
    """What the user of a request said last, and before it as much of what came before as fits.

    `most_bytes` bounds the turns as strings, in UTF-8. Of a message that is too long its beginning and its
    end are kept. What followed, the calls of tools and their results, is left out: it is the same question.
    Nothing, where no user said anything.
    """
    turns: list[Turn] = []
    left = most_bytes
    for role, content in _latest(endpoint, fields):
        if not (turns or role == "user"):
            continue
        text = _text(content)
        if not (turns or text):
            continue
        left -= len(str(Turn(role, "")))
        if left < LEAST_BYTES:
            break
        if text:
            kept = shortened(_MARKUP.sub(r"\g<0> ", text), left)
            left -= len(kept.encode())
            turns.append(Turn(role, kept))
    return turns[::-1]


def shortened(text: str, most_bytes: int) -> str:
    """Its beginning and its end, where it has more bytes than that."""
    if len(text) <= most_bytes and len(text.encode()) <= most_bytes:
        return text
    half = (most_bytes - len(ELLIPSIS.encode())) // 2
    head, tail = text[:half].encode()[:half], text[-half:].encode()[-half:]
    return head.decode(errors="ignore") + ELLIPSIS + tail.decode(errors="ignore")


def _latest(endpoint: str, fields: Fields) -> Iterator[tuple[str, msgspec.Raw]]:
    """(role, content) of each message, from the last one to the first."""
    match endpoint:
        case "chat/completions":
            yield from _listed(given(fields, "messages"))
        case "messages" | "messages/count_tokens":
            yield from _listed(given(fields, "messages"))
            yield from _alone("system", given(fields, "system"))
        case "responses":
            asked = given(fields, "input")
            is_text = asked is not None and first_byte(asked) == b'"'
            yield from _alone("user", asked) if is_text else _listed(asked)
            yield from _alone("system", given(fields, "instructions"))
        case "completions":
            asked = given(fields, "prompt")
            is_text = asked is None or first_byte(asked) == b'"'
            for prompt in [asked] if is_text else reversed(items(asked)[-MOST_ITEMS:]):  # type: ignore[arg-type]
                yield from _alone("user", prompt)
        case _:
            pass


def _alone(role: str, content: msgspec.Raw | None) -> Iterator[tuple[str, msgspec.Raw]]:
    if content is not None:
        yield role, content


def _listed(messages: msgspec.Raw | None) -> Iterator[tuple[str, msgspec.Raw]]:
    for message in () if messages is None else reversed(items(messages)[-MOST_ITEMS:]):
        found = members(message)
        role = _string(found.get("role"))
        role = NAMES.get(role, role)
        content = given(found, "content")
        if role in ROLES and content is not None:
            yield role, content


def _text(content: msgspec.Raw) -> str:
    """The text of a message's content: a string, or a list of parts."""
    parts = items(content)
    if len(parts) > MOST_ITEMS:
        parts = parts[: MOST_ITEMS // 2] + parts[-MOST_ITEMS // 2 :]
    return (_string(content) or "\n".join(filter(None, map(_part, parts)))).strip()


def _part(part: msgspec.Raw) -> str:
    found = members(part)
    kind = _string(found.get("type"))
    return _string(found.get("text")) if kind in _TEXTS else _PLACEHOLDERS.get(kind, "")


def _string(raw: msgspec.Raw | None) -> str:
    """A string; "" for anything else, and for one that is no Unicode."""
    if raw is None or first_byte(raw) != b'"':
        return ""
    try:
        return msgspec.json.decode(raw, type=str)
    except ValueError:
        return ""
