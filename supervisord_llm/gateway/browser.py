"""What browsers are told: which pages may read our answers, and what may be done with them. Pure.

Credentials are never allowed: pages send a key in a header, and there is no cookie of ours to abuse.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDictProxy

from supervisord_llm.errors import Refused

SECURITY: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-XSS-Protection": "1; mode=block",
    "Referrer-Policy": "no-referrer",
}
HSTS: Mapping[str, str] = {"Strict-Transport-Security": "max-age=31536000"}
"""For answers over TLS."""

METHODS = "GET, HEAD, POST, DELETE"
READABLE = (
    "X-Request-Id, Request-Id, X-LLM-Model, X-LLM-Route-Reason, X-LLM-Wait-Ms, Retry-After, X-Should-Retry, "
    "X-RateLimit-Limit-Requests, X-RateLimit-Remaining-Requests, X-RateLimit-Reset-Requests, "
    "X-RateLimit-Limit-Tokens, X-RateLimit-Remaining-Tokens, X-RateLimit-Reset-Tokens"
)
"""Headers of answers that pages may read."""

USUAL = "Authorization, Content-Type, X-API-Key"
"""Headers of requests, where a preflight asks for none."""

PREFLIGHT_S = 7200
"""How long a browser may remember; none does for longer."""

MAX_ASKED_BYTES = 4096

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CLAIMS = (
    "forwarded", "x-forwarded-", "x-http-method-override", "x-original-url", "x-real-ip", "x-rewrite-url",
)  # fmt: skip
"""Headers that only a proxy has a right to; a page that sends one means to deceive."""


@dataclass(frozen=True, slots=True)
class Cors:
    """Origins whose pages may call the API."""

    everybody: bool
    origins: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]

    def allows(self, origin: str) -> bool:
        """Whether pages of the origin may."""
        return (
            self.everybody
            or origin in self.origins
            or any(pattern.fullmatch(origin) for pattern in self.patterns)
        )

    def headers(self, headers: CIMultiDictProxy[str]) -> Mapping[str, str]:
        """What an answer carries, errors included, so that the page can read them."""
        origin = headers.get("Origin")
        if self.everybody:
            return _FOR_EVERYBODY if origin is not None else {}
        if origin is None or not self.allows(origin):
            return _VARIES  # a cache must not hand this answer to a page that may read it
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": READABLE,
            "Vary": "Origin",
        }

    def preflight(self, headers: CIMultiDictProxy[str]) -> Mapping[str, str]:
        """What the answer to a preflight carries besides `headers`: nothing for pages that may not."""
        if not self.allows(headers.get("Origin", "")):
            return {}
        allowed = {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": _askable(headers.get("Access-Control-Request-Headers", "")),
            "Access-Control-Max-Age": str(PREFLIGHT_S),
            "Vary": "Origin, Access-Control-Request-Headers",
        }
        if headers.get("Access-Control-Request-Private-Network") == "true":
            allowed["Access-Control-Allow-Private-Network"] = "true"
        return allowed


_VARIES: Mapping[str, str] = {"Vary": "Origin"}
_FOR_EVERYBODY: Mapping[str, str] = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": READABLE,
}


def cors(origins: tuple[str, ...]) -> Cors | None:
    """The rules of [cors] allow_origins; None where there are none."""
    if not origins:
        return None
    patterns = [origin for origin in origins if "*" in origin and origin != "*"]
    return Cors(
        everybody="*" in origins,
        origins=frozenset(origins).difference(patterns),
        patterns=tuple(re.compile(re.escape(pattern).replace(r"\*", "[a-z0-9.-]+")) for pattern in patterns),
    )


@dataclass(frozen=True, slots=True)
class Browsers:
    """What browsers are told. `headers` are of every answer, `tls_headers` of every one over TLS."""

    headers: Mapping[str, str]
    tls_headers: Mapping[str, str]
    cors: Cors | None

    def of(self, request: web.BaseRequest) -> Mapping[str, str]:
        """Those of the answer to a request, CORS apart."""
        return self.tls_headers if request.secure else self.headers


def browsers(origins: tuple[str, ...], *, security: bool) -> Browsers:
    """As [cors] allow_origins and [server] security_headers say."""
    headers = SECURITY if security else {}
    return Browsers(headers, {**headers, **HSTS} if security else {}, cors(origins))


def is_preflight(method: str, headers: CIMultiDictProxy[str]) -> bool:
    """Whether a browser asks what a page may do."""
    return method == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers


def is_same_origin(headers: CIMultiDictProxy[str]) -> bool:
    """Whether a request comes from a page of this very host, or from no page."""
    origin = headers.get("Origin")
    return origin is None or origin.partition("://")[2].lower() == headers.get("Host", "").lower()


def check_origin(headers: CIMultiDictProxy[str], cors: Cors | None, what: str) -> None:
    """For what a page could have a browser send without a preflight: a websocket, or a form.

    Raises:
        Refused: `origin_forbidden`, `what` comes from a page of another origin that is not listed.
    """
    if not is_same_origin(headers) and not (cors is not None and cors.allows(headers["Origin"])):
        raise Refused(
            "origin_forbidden",
            f"cannot {what} for a page of another origin: add it to `allow_origins` in [cors]",
        )


def _askable(asked: str) -> str:
    """The headers a page asks to send, but for those that are not for pages to send."""
    names = [name.strip() for name in asked[:MAX_ASKED_BYTES].split(",")]
    fine = [name for name in names if _TOKEN.fullmatch(name) and not name.lower().startswith(_CLAIMS)]
    return ", ".join(fine) or USUAL
