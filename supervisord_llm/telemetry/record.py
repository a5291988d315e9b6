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


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the engine counted them."""

    prompt: int
    completion: int
    total: int


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


# A quote inside a string of the answer is escaped, so these match keys only.
_TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d{1,12})')
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,12})')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,12})')


def usage_in(tail: bytes) -> Usage | None:
    """The last token counts in the end of an answer, JSON or events, OpenAI's names or Anthropic's."""
    if b"_tokens" not in tail:
        return None
    prompt, completion, total = (_last(pattern, tail) for pattern in (_PROMPT, _COMPLETION, _TOTAL))
    if prompt is None and completion is None and total is None:
        return None
    known = (prompt or 0) + (completion or 0)
    return Usage(prompt or 0, completion or 0, known if total is None else total)


def _last(pattern: re.Pattern[bytes], tail: bytes) -> int | None:
    found = pattern.findall(tail)
    return int(found[-1]) if found else None
