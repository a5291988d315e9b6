"""A JSON object as its top-level keys with the bytes of their values, and the looks taken at such bytes."""

from typing import Any

import msgspec

from supervisord_llm.errors import Refused

Fields = dict[str, msgspec.Raw]

_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))


def encoded(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def first_byte(raw: msgspec.Raw) -> bytes:
    """What kind of value it is: { [ " t f n, or else a number."""
    return bytes(memoryview(raw)[:1])


def is_null(raw: msgspec.Raw) -> bool:
    return first_byte(raw) == b"n"


def given(fields: Fields, name: str) -> msgspec.Raw | None:
    """The field's value; None where it is absent or null, which mean the same to engines."""
    raw = fields.get(name)
    return None if raw is None or is_null(raw) else raw


def items(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """The items of a list, undecoded; none of anything else."""
    return msgspec.json.decode(raw, type=list[msgspec.Raw]) if first_byte(raw) == b"[" else []


def members(raw: msgspec.Raw) -> Fields:
    """The members of an object, undecoded; none of anything else."""
    return msgspec.json.decode(raw, type=Fields) if first_byte(raw) == b"{" else {}


def number(raw: msgspec.Raw, name: str) -> int | float:
    """
    Raises:
        Refused: it is none. Engines take "99" and true for numbers, which would get around every limit.
    """
    try:
        found = msgspec.json.decode(raw, type=int | float)
        float(found)  # JSON's integers have no end
        return found
    except (msgspec.ValidationError, OverflowError):
        raise refusal(name, f"cannot use this `{name}`: it must be a number") from None


def is_deeper_than(fields: Fields, most: int) -> bool:
    """Whether an object of these fields nests lists and objects more than `most` deep. Builds none."""
    for raw in fields.values():
        if _opened(bytes(raw)) < most:
            continue
        # A list of many small things, most of the time: each by itself cannot be deep.
        inner = (bytes(part) for part in (*items(raw), *members(raw).values()))
        if any(_opened(part) > most - 2 and _is_deeper(part, most - 2) for part in inner):
            return True
    return False


def _opened(json: bytes) -> int:
    """No less than how deep it is: brackets in strings count, too."""
    return json.count(b"[") + json.count(b"{")


def _is_deeper(json: bytes, most: int) -> bool:
    """What is left of it without strings are brackets, of which every round closes the innermost."""
    outside = json.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    brackets = b"".join(outside).translate(_BRACKETS, _NOT_STRUCTURE)
    for _ in range(most):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def refusal(name: str, message: str) -> Refused:
    """400 that blames the field `name`."""
    return Refused("invalid_request", message, param=name)
