"""What a peer sends in a stream before its answer: what keeps a client patient, and perhaps a refusal.

That is no answer yet, so another member of a route may still give one.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import errors
from supervisord_llm.gateway.exchange import Exchange

MAX_EVENT_BYTES = 64 * 1024
PINGS = (b":", b"event: ping\n")
EARLY = (*PINGS, b"event: error\n", b'data: {"error"')
"""How that begins which is no answer."""

CODES_BY_TYPE: Mapping[str, str] = {
    "rate_limit_error": "rate_limit_exceeded",
    "overloaded_error": "start_failed",
    "api_error": "engine_crashed",
}
"""What a peer's error is where its shape, Anthropic's, has no code."""

_END = re.compile(rb"\n\n")


async def overture(
    exchange: Exchange, read: Callable[[], Awaitable[bytes]], hold: Callable[[], Awaitable[None]]
) -> bytes:
    """Pass on what comes before the answer; returns how that begins, b"" at the end of the stream.

    `read` gives the next bytes of the stream, `hold` the client its head if it has none.

    Raises:
        Refused: as the peer did. Nothing of an answer has reached the client.
    """
    rest = b""
    while True:
        chunk = await read()
        rest += chunk
        while rest.startswith(EARLY) and (end := _END.search(rest)):
            event, rest = rest[: end.end()], rest[end.end() :]
            if not event.startswith(PINGS):
                if (refused := _refusal(event)) is not None:
                    raise refused
                return event + rest
            await hold()
            await exchange.beat(event)
        if not chunk or len(rest) > MAX_EVENT_BYTES or (rest and not _may_be_early(rest)):
            return rest


def _may_be_early(rest: bytes) -> bool:
    return any(rest.startswith(begin) or begin.startswith(rest) for begin in EARLY)


def _refusal(event: bytes) -> Refused | None:
    line = next((line for line in event.splitlines() if line.startswith(b"data:")), b"")
    try:
        return refusal(json.loads(line.removeprefix(b"data:")))
    except (ValueError, RecursionError):
        return None


def refusal(body: Any, retry_after_s: float | None = None) -> Refused | None:
    """A peer's error as our own; None where it is none that we know."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(message := error.get("message"), str):
        return None
    code = error.get("code") or CODES_BY_TYPE.get(str(error.get("type")))
    if not isinstance(code, str) or code not in errors.TABLE:
        return None
    param = error.get("param") if isinstance(error.get("param"), str) else None
    return Refused(code, message, retry_after_s=retry_after_s, param=param)
