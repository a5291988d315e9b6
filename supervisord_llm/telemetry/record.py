"""One finished request, as the gateway reports it. Never a prompt, never a key, never a query string."""

import re
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    INVALID = "invalid"
    REFUSED = "refused"
    FAILED = "failed"
    LEFT = "left"

    @classmethod
    def of(cls, status: int, refusal: str) -> "Outcome":
        """From what was sent. `refusal`: the error it ended with, which a stream tells after its 200."""
        if status in (429, 503):
            return cls.REFUSED
        if status >= 500 or (refusal and status < 400):
            return cls.FAILED
        return cls.OK if status < 400 else cls.INVALID


class Classified(StrEnum):
    """What became of asking a route's classifier."""

    LABELLED = "labelled"
    CACHED = "cached"
    """It was asked the same before, or by somebody else just then."""
    EMPTY = "empty"
    """There was no text to label."""
    COLD = "cold"
    """Its engine could not be up in time; it was told to start."""
    LATE = "late"
    FAILED = "failed"
    UNCLEAR = "unclear"
    """It answered with none of the labels."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the engine counted them."""

    prompt: int
    completion: int
    total: int
    is_estimated: bool = False
    """Counted in events of a stream that broke off before the engine told: about one a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """Times in seconds. `status` is 499 where the client left before one was sent."""

    request_id: str
    method: str
    path: str
    model: str | None
    """The model of the configuration that served it; None for every other request."""
    source: str
    status: int
    outcome: Outcome
    refusal: str = ""
    latency_s: float = 0.0
    wait_s: float = 0.0
    first_byte_s: float | None = None
    usage: Usage | None = None


USAGE_BYTES = 1024
"""More than an object of token counts takes."""

# A quote inside a string of the answer is escaped, so these match keys only.
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d{1,12})')
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,12})')
_CACHED = re.compile(rb'"cache_(?:read|creation)_input_tokens"\s*:\s*(\d{1,12})')
"""Of Anthropic's API, whose `input_tokens` are without them."""
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,12})')


def usage_in(piece: bytes, told: Usage | None = None) -> Usage | None:
    """The last token counts that begin in a piece of an answer, JSON or events, OpenAI's or Anthropic's.

    `told` are those of what came before: they hold where there are no new ones, and the prompt's where only
    those of the completion are new, as in the last event of `messages`.
    """
    if b"_tokens" in piece:
        for begin in _USAGE.finditer(piece):
            told = _counts(piece[begin.end() : begin.end() + USAGE_BYTES], told)
    return told


def _counts(raw: bytes, told: Usage | None) -> Usage | None:
    prompt, completion, total = (_first(pattern, raw) for pattern in (_PROMPT, _COMPLETION, _TOTAL))
    if prompt is None and completion is None and total is None:
        return told
    if prompt is None:
        read = 0 if told is None else told.prompt
    else:
        read = prompt + sum(map(int, _CACHED.findall(raw[: raw.find(b"}")])))
    return Usage(read, completion or 0, read + (completion or 0) if total is None else total)


@dataclass(slots=True)
class UsageReader:
    """Finds the last token counts of an answer that passes in pieces cut anywhere.

    They may stand at its beginning (rerank) as well as before all of the prompt (`return_token_ids`).
    """

    found: Usage | None = None
    end: bytes = b""
    """The last of what has passed, in which counts may have begun."""

    def feed(self, piece: bytes) -> None:
        seen = self.end + piece
        self.found = usage_in(seen, self.found)
        self.end = seen[-USAGE_BYTES:]


def _first(pattern: re.Pattern[bytes], raw: bytes) -> int | None:
    found = pattern.search(raw)
    return int(found[1]) if found else None
