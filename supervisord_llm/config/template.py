"""Words with placeholders, as the command of `engine = "command"` has them: {port} is one, {{ a brace."""

from collections.abc import Iterable, Mapping
from string import Formatter

from supervisord_llm.config.kinds import Unreadable
from supervisord_llm.config.problem import did_you_mean, listing

PLACEHOLDERS = ("port", "socket", "model", "gpus")
DOUBLE_THEM = "write {{ and }} for braces"


def placeholders(words: Iterable[str]) -> frozenset[str]:
    """The names that stand in `words`, which read_word has found to be right."""
    return frozenset(name for word in words for _, name in _parts(word) if name is not None)


def fill(word: str, values: Mapping[str, str]) -> str:
    """The word with each placeholder's value in its place."""
    return "".join(text + (values[name] if name is not None else "") for text, name in _parts(word))


def read_word(raw: object) -> str:
    """The word as it is.

    Raises:
        Unreadable: no text, or with a placeholder that nobody fills.
    """
    if not isinstance(raw, str) or "\0" in raw:
        raise Unreadable
    try:
        parts = _parts(raw)
    except ValueError as why:
        raise Unreadable("it has a brace that is no placeholder's", DOUBLE_THEM) from why
    for _, name in parts:
        if name is None or name in PLACEHOLDERS:
            continue
        known = listing((f"{{{each}}}" for each in PLACEHOLDERS), "and")
        if not name.isidentifier():  # more like JSON, which may hold a secret
            raise Unreadable("it has a brace that is no placeholder's", f"known: {known}; {DOUBLE_THEM}")
        near = did_you_mean(name, PLACEHOLDERS)
        raise Unreadable(f"{{{name}}} is no placeholder", near or f"known: {known}; {DOUBLE_THEM}")
    return raw


def _parts(word: str) -> list[tuple[str, str | None]]:
    """Text, and the name of the placeholder behind it; what a format would add to a name is part of it here.

    Raises:
        ValueError: a brace that is neither a placeholder's nor doubled.
    """
    return [
        (text, None if name is None else name + (f"!{how}" if how else "") + (f":{more}" if more else ""))
        for text, name, more, how in Formatter().parse(word)
    ]
