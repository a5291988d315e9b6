"""strip, default, force, min and max of a model's `request`."""

from collections.abc import Iterator

import msgspec

from supervisord_llm.config.keys.requests import LIMITS, TOKEN_LIMIT, TOKEN_LIMIT_NAMES, TOOLS, Measure
from supervisord_llm.config.model import FlagValue, RequestPolicy
from supervisord_llm.gateway.policy import tools
from supervisord_llm.gateway.policy.fields import Fields, encoded, first_byte, given, members, number

OPEN_ENDED = frozenset({"chat/completions", "responses"})
"""Endpoints whose answers are as long as fits where the request names no limit."""

DEFAULT_COMPLETION_TOKENS = 16
"""What `completions` takes where the limit is left out, in OpenAI's API and in vLLM."""


def names_of(field: str) -> tuple[str, ...]:
    """All that a rule about `field` is about."""
    return TOKEN_LIMIT_NAMES if field == TOKEN_LIMIT else (field,)


def name_at(endpoint: str, field: str) -> str:
    """What an endpoint calls `field`."""
    return "max_output_tokens" if field == TOKEN_LIMIT and endpoint == "responses" else field


def drop(fields: Fields, rules: RequestPolicy) -> None:
    """Take out what is stripped, and what is forced to a value of our own."""
    for rule in (*rules.strip, *rules.force):
        # Tools and tables are joined with the client's.
        if rule != TOOLS and not isinstance(rules.force.get(rule), dict):
            for name in names_of(rule):
                fields.pop(name, None)


def set_values(fields: Fields, endpoint: str, rules: RequestPolicy) -> None:
    """Put in what is missing and what is forced, then hold numbers within their bounds.

    Raises:
        Refused: `invalid_request`, a bounded field is no number.
    """
    for field, value in rules.default.items():
        if (name := _present(fields, field)) is None:
            fields[name_at(endpoint, field)] = encoded(value)
        elif isinstance(value, dict):
            fields[name] = _laid(fields[name], value, wins=False)
    for field, value in rules.force.items():
        if field == TOOLS and isinstance(value, list):
            if endpoint in tools.ENDPOINTS:
                tools.add(fields, value)
            continue
        name = name_at(endpoint, field)
        fields[name] = _laid(fields.get(name), value, wins=True)
    _bound(fields, endpoint, rules)


def _present(fields: Fields, field: str) -> str | None:
    return next((name for name in names_of(field) if given(fields, name) is not None), None)


def _laid(theirs: msgspec.Raw | None, ours: FlagValue, *, wins: bool) -> msgspec.Raw:
    """Our value with theirs; tables merge, and of two values for one key ours counts if it `wins`."""
    if not isinstance(ours, dict) or theirs is None or first_byte(theirs) != b"{":
        return encoded(ours) if wins or theirs is None else theirs
    merged = members(theirs)
    for key, value in ours.items():
        merged[key] = _laid(merged.get(key), value, wins=wins)
    return encoded(merged)


def _bound(fields: Fields, endpoint: str, rules: RequestPolicy) -> None:
    for field in _numbers(rules):
        least, most = rules.min.get(field), rules.max.get(field)
        found = [name for name in names_of(field) if given(fields, name) is not None]
        for name in found:
            if first_byte(fields[name]) in (b"t", b"f") and name == "logprobs":
                continue  # of a chat: whether, not how many
            value = number(fields[name], name)
            held = most if most is not None and (value > most or _is_all(name, value)) else value
            held = least if least is not None and held < least else held
            if held != value:
                fields[name] = encoded(held)
        if not found and field == TOKEN_LIMIT and most is not None:
            # Left out, completions take 16; null is as long as fits.
            is_above = endpoint == "completions" and (field in fields or most < DEFAULT_COMPLETION_TOKENS)
            if endpoint in OPEN_ENDED or is_above:
                fields[name_at(endpoint, field)] = encoded(most)


def _numbers(rules: RequestPolicy) -> Iterator[str]:
    """Fields whose value is bounded, not their size."""
    for field in dict.fromkeys((*rules.min, *rules.max)):
        if field not in LIMITS or LIMITS[field].measure is Measure.VALUE:
            yield field


def _is_all(name: str, value: float) -> bool:
    """vLLM's -1."""
    return value < 0 and "logprobs" in name
