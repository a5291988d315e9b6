"""A long list of embedding inputs as several requests, and their answers as one."""

from collections.abc import Sequence

import msgspec

from supervisord_llm.gateway.policy.fields import Fields, encoded, first_byte, given, items

FORMATS = (b'"float"', b'"base64"')
"""Encodings whose answers are JSON."""


class _Answer(msgspec.Struct):
    data: list[Fields]
    usage: dict[str, msgspec.Raw] = {}


_DECODER = msgspec.json.Decoder(_Answer)


def split(fields: Fields, max_batch: int) -> list[bytes]:
    """The bodies to send one after the other; none where the request fits, or cannot be split."""
    raw, encoding = given(fields, "input"), given(fields, "encoding_format")
    if raw is None or (encoding is not None and bytes(encoding) not in FORMATS):
        return []
    inputs = items(raw)
    if len(inputs) <= max_batch or first_byte(inputs[0]) not in (b'"', b"["):
        return []  # few, or one: the tokens of a text, or the messages of a conversation
    return [
        msgspec.json.encode({**fields, "input": encoded(inputs[at : at + max_batch])})
        for at in range(0, len(inputs), max_batch)
    ]


def merge(answers: Sequence[bytes]) -> bytes:
    """One answer: vectors untouched and numbered through, counts of tokens added up.

    Raises:
        ValueError: an answer has not the shape of one.
    """
    try:
        return _merge(answers)
    except (msgspec.MsgspecError, KeyError) as why:
        raise ValueError(str(why)) from why


def _merge(answers: Sequence[bytes]) -> bytes:
    whole = msgspec.json.decode(answers[0], type=Fields)
    data: list[Fields] = []
    counts: dict[str, int] = {}
    others: Fields = {}
    for answer in answers:
        part = _DECODER.decode(answer)
        before = len(data)
        for entry in part.data:
            index = msgspec.json.decode(entry["index"], type=int)
            data.append({**entry, "index": encoded(before + index)})
        for name, raw in part.usage.items():
            if first_byte(raw).isdigit():
                counts[name] = counts.get(name, 0) + msgspec.json.decode(raw, type=int)
            else:
                others[name] = raw
    whole["data"] = encoded(data)
    if counts or others:
        whole["usage"] = encoded({**others, **counts})
    return msgspec.json.encode(whole)
