"""What differs where an API elsewhere answers: what it learns of our clients, and what they learn of it.

Both ways only what is listed passes: a header nobody thought of may be a name, a cookie or a key.
"""

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import Mapping

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import errors
from supervisord_llm.gateway.inference.overture import refusal
from supervisord_llm.outage import complaint
from supervisord_llm.runtime.ports import Backend
from supervisord_llm.telemetry.logging import redact

log = logging.getLogger("llm_supervisor.elsewhere")

FOR_THEM = ("Accept", "Content-Type", "Anthropic-Version", "Anthropic-Beta", "OpenAI-Beta")
"""Request headers that they get: what is asked for, and in which version of which API."""

FOR_US = (
    *("Content-Type", "Content-Length", "Content-Encoding", "Content-Disposition"),
    *("Retry-After", "Retry-After-Ms", "X-Should-Retry"),
)
"""Response headers that clients get."""

HOPS_HEADER = "X-LLM-Hops"
MOST_HOPS = 4
"""Through so many machines with a daemon such as this one a request may go: one in a circle ends."""

KEY_FIELDS = frozenset({"access_token", "api-key", "api_key", "apikey", "key", "token"})
"""Fields of a query string in which clients send keys."""

IDLE_S = 4.0
"""Below the 5 s after which servers without a front end close an idle connection."""
IDLE_TLS_S = 30.0
"""A front end keeps one for a minute or more, and a handshake with it takes some round trips."""

PEER_STATUSES = frozenset({429, 502, 503})
"""With which a peer tells of its engines, not of itself."""

MAX_REFUSAL_BYTES = 64 * 1024
LEAST_KEY = 16
LOGGED_BYTES = 2000
READ_S = 2.0


def connector(backend: Backend) -> aiohttp.TCPConnector:
    """Certificates are verified by the host's authorities, or those of SSL_CERT_FILE."""
    is_tls = backend.origin.startswith("https:")
    return aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_TLS_S if is_tls else IDLE_S)


def request_headers(headers: CIMultiDictProxy[str], request_id: str) -> CIMultiDict[str]:
    """What it gets of a client's headers.

    Raises:
        Refused: `engine_crashed`, the request goes round in a circle.
    """
    told = headers.get(HOPS_HEADER, "")
    hops = int(told) if told.isascii() and told.isdecimal() and len(told) < 4 else 0
    if hops >= MOST_HOPS:
        raise Refused(
            "engine_crashed",
            f"cannot send this on: it came through {hops} daemons such as this one; have the operators look "
            'for models with engine = "remote" that lead to each other',
        )
    kept = CIMultiDict((name, headers[name]) for name in FOR_THEM if name in headers)
    kept["X-Request-Id"] = request_id
    kept[HOPS_HEADER] = str(hops + 1)
    kept["Accept-Encoding"] = "identity"
    return kept


def response_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """What the client gets of its headers. A body that came compressed all the same is unpacked by then."""
    kept = CIMultiDict((name, headers[name]) for name in FOR_US if name in headers)
    if kept.pop("Content-Encoding", None) is not None:
        kept.pop("Content-Length", None)
    return kept


def query(raw: str) -> str:
    """A query string without keys."""
    return "&".join(field for field in raw.split("&") if field.partition("=")[0].lower() not in KEY_FIELDS)


def unreachable(model: str, backend: Backend, why: str) -> Refused:
    """`engine_crashed`: no answer began."""
    return Refused("engine_crashed", f"cannot reach {model} at {backend.origin}: {why}")


def unusable(model: str, backend: Backend, why: str) -> Refused:
    """`engine_crashed`: what it answers is no answer."""
    return Refused("engine_crashed", f"cannot use {model} at {backend.origin}: {why}")


async def check(model: str, backend: Backend, reply: aiohttp.ClientResponse) -> None:
    """Keep answers that are no concern of the client's from it; what they say goes to the log alone.

    Raises:
        Refused: `engine_crashed`, the API is in trouble, elsewhere, or does not take our key;
            `rate_limit_exceeded`, it takes no more requests for now.
    """
    refused = trouble(model, backend, reply.status, reply.headers)
    if refused is not None:
        said = _shown(await _beginning(reply, LOGGED_BYTES), backend)
        extra = {"model": model}
        log.warning("%s at %s answers %d: %s", model, backend.origin, reply.status, said, extra=extra)
        raise refused


def trouble(model: str, backend: Backend, status: int, headers: Mapping[str, str]) -> Refused | None:
    """What an answer comes to that is no concern of the client's; None: it is the client's to hear."""
    if why := complaint(status, headers.get("Location", "")):
        return unusable(model, backend, why)
    if status != 429:
        return None
    return Refused(
        "rate_limit_exceeded",
        f"cannot take more requests for {model} now: {backend.origin} says that there are too many (429); "
        "try again later, or raise the limit there",
        retry_after_s=retry_after_s(headers),
    )


async def check_peer(reply: aiohttp.ClientResponse) -> None:
    """Where another llm-supervisor refuses for a reason of its engine's, so do we. The way there is good.

    Raises:
        Refused: as it did.
    """
    if reply.status not in PEER_STATUSES or reply.content_type != "application/json":
        return
    try:
        said = json.loads(await _beginning(reply, MAX_REFUSAL_BYTES))
    except (ValueError, RecursionError):
        return
    refused = refusal(said, retry_after_s(reply.headers))
    if refused is not None and errors.row(refused).status == reply.status:
        raise refused


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds until it wants to be asked again, where it told them as a number."""
    with contextlib.suppress(ValueError):
        if (found := float(headers.get("Retry-After", ""))) >= 0 and math.isfinite(found):
            return found
    return None


async def _beginning(reply: aiohttp.ClientResponse, most: int) -> bytes:
    """What comes of a body within a moment: all of it, or `most` bytes and the rest of a chunk."""
    raw = b""
    with contextlib.suppress(aiohttp.ClientError, OSError):  # a TimeoutError is an OSError
        async with asyncio.timeout(READ_S):
            while len(raw) < most and (chunk := await reply.content.readany()):
                raw += chunk
    return raw


def _shown(raw: bytes, backend: Backend) -> str:
    """For the log: on one line, and without our key should it quote that."""
    text = " ".join(raw.decode(errors="replace").split())
    if key := _key(backend):
        text = text.replace(key, "[redacted]")
    return redact(text)[:LOGGED_BYTES]


def secret(backend: Backend, status: int) -> bytes:
    """Our key, where an answer with `status` may quote it. A word such as "none" is no secret."""
    key = _key(backend)
    return key.encode() if status >= 400 and len(key) >= LEAST_KEY else b""


def _key(backend: Backend) -> str:
    return backend.headers.get("Authorization", "").removeprefix("Bearer ")
