"""One mistake in the configuration: where it is, what was found, what is accepted."""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KeyPath = tuple[str | int, ...]
"""A place in a TOML document: ("models", "coder", "aliases", 0)."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """Prints as one line: `FILE:LINE: dotted.path: cannot …; write …; hint`. Never holds a secret's value."""

    file: Path | None
    line: int | None
    path: str
    found: str
    """Begins with "cannot"."""
    accepted: str = ""
    hint: str = ""
    """A way out of its own: did you mean, not supported yet, remove it."""

    def __str__(self) -> str:
        place = "" if self.file is None else str(self.file)
        if place and self.line is not None:
            place += f":{self.line}"
        ways_out = (f"write {self.accepted}" if self.accepted else "", self.hint)
        sentence = "; ".join(part for part in (self.found, *ways_out) if part)
        return ": ".join(part for part in (place, self.path, sentence) if part)


class KeyUnavailable(LookupError):
    """A key cannot be had; the message says where it was looked for, never what was found."""


def dotted(path: KeyPath) -> str:
    """`models."qwen2.5".aliases[0]`: the path as one would write it in TOML."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE.fullmatch(part) else quoted(part))
    return text


def quoted(raw: object) -> str:
    """A TOML value for people: as written, on one line, cut when long."""
    text = json.dumps(raw, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:56] + " …" + text[-1]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean "vram"?`, or nothing if no known word is near."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f"did you mean {quoted(close[0])}?" if close else ""


def listing(words: Iterable[str], last: str = "or") -> str:
    """`a, b or c`"""
    *head, tail = list(words) or ["nothing"]
    return f"{', '.join(head)} {last} {tail}" if head else tail
