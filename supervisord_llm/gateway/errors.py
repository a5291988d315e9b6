"""Domain error -> HTTP answer. One table, in the shape of the API that the client speaks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

import msgspec
from aiohttp import web

from supervisord_llm.errors import Refused
from supervisord_llm.telemetry.logging import redact


class Shape(Enum):
    """What an error looks like: `{"error": {"message", …}}`, `{"type": "error", …}`, `{"error": "text"}`."""

    OPENAI = auto()
    ANTHROPIC = auto()
    OLLAMA = auto()


@dataclass(frozen=True, slots=True)
class Row:
    """What a code means over HTTP. `type` is OpenAI's, `param` the field of the request it blames."""

    status: int
    type: str
    param: str | None = None


_CLIENT = "invalid_request_error"
_SERVER = "server_error"
_RATE = "rate_limit_error"

TABLE: Mapping[str, Row] = {
    "invalid_json": Row(400, _CLIENT),
    "invalid_request": Row(400, _CLIENT),
    "invalid_config": Row(400, _CLIENT),
    "context_length_exceeded": Row(400, _CLIENT, "messages"),
    "invalid_api_key": Row(401, _CLIENT),
    "admin_required": Row(403, _CLIENT),
    "model_forbidden": Row(403, _CLIENT, "model"),
    "origin_forbidden": Row(403, _CLIENT),
    "not_found": Row(404, _CLIENT),
    "model_not_found": Row(404, _CLIENT, "model"),
    "method_not_allowed": Row(405, _CLIENT),
    "request_timeout": Row(408, _CLIENT),
    "not_possible": Row(409, _CLIENT),
    "body_too_large": Row(413, _CLIENT),
    "unsupported_media_type": Row(415, _CLIENT),
    "expectation_failed": Row(417, _CLIENT),
    "rate_limit_exceeded": Row(429, _RATE),
    "too_many_concurrent_requests": Row(429, _RATE),
    "internal_error": Row(500, _SERVER),
    "not_supported": Row(501, _CLIENT),
    "engine_crashed": Row(502, _SERVER),
    "site_unavailable": Row(502, _SERVER),
    "model_busy": Row(503, _SERVER),
    "no_vram": Row(503, _SERVER),
    "out_of_schedule": Row(503, _SERVER, "model"),
    "shutting_down": Row(503, _SERVER),
    "start_failed": Row(503, _SERVER),
    "start_timeout": Row(503, _SERVER),
}

ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""By status; other 4xx are invalid_request_error, other 5xx api_error."""

RETRY_AFTER_S = 5.0
"""Where the decision named no time. Clients give up on long ones, so it is never above a minute."""

PATIENCE_S = 60.0
"""A client that is to wait for longer is told not to try by itself: some would sleep for hours."""


class MethodNotAllowed(Refused):
    """405; `allow` lists what would have been right."""

    def __init__(self, method: str, path: str, allow: tuple[str, ...]) -> None:
        super().__init__("method_not_allowed", f"cannot {method} {path}: use {' or '.join(allow)}")
        self.allow = allow


def internal(request_id: str) -> Refused:
    """500, with nothing of the cause but where to find it."""
    return Refused("internal_error", f"cannot answer: see the server's log, request {request_id}")


def row(refused: Refused) -> Row:
    """The refusal's row; a code nobody declared is our mistake, not the client's."""
    return TABLE.get(refused.code, TABLE["internal_error"])


def body(refused: Refused, request_id: str, shape: Shape = Shape.OPENAI) -> bytes:
    """The error as JSON on one line. A failed start quotes what the engine printed, hence the redaction."""
    found = row(refused)
    message = redact(refused.message)
    if shape is Shape.OLLAMA:
        return msgspec.json.encode({"error": message})
    if shape is Shape.ANTHROPIC:
        kind = ANTHROPIC_TYPES.get(found.status, _CLIENT if found.status < 500 else "api_error")
        error: dict[str, str | None] = {"type": kind, "message": message}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})
    error = {
        "message": message,
        "type": found.type,
        "param": refused.param or found.param,
        "code": refused.code,
    }
    return msgspec.json.encode({"error": error})


def event(json: bytes, shape: Shape = Shape.OPENAI) -> bytes:
    """An error body as the last event of a stream, or the last line of one of Ollama's."""
    if shape is Shape.OLLAMA:
        return json + b"\n"
    return (b"event: error\n" if shape is Shape.ANTHROPIC else b"") + b"data: " + json + b"\n\n"


def response(refused: Refused, request_id: str, shape: Shape = Shape.OPENAI) -> web.Response:
    """The whole answer, with the headers its status calls for."""
    status = row(refused).status
    answer = web.Response(
        status=status,
        body=body(refused, request_id, shape),
        content_type="application/json",
    )
    if status == 429:
        answer.headers.update(_after_limit(refused.retry_after_s))
    if refused.code == "out_of_schedule":
        answer.headers.update(_after_limit(refused.retry_after_s))
    elif status == 503:
        wait_s = RETRY_AFTER_S if refused.retry_after_s is None else refused.retry_after_s
        answer.headers["Retry-After"] = str(math.ceil(min(60.0, max(1.0, wait_s))))
    if status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(refused, MethodNotAllowed):
        answer.headers["Allow"] = ", ".join(refused.allow)
    if status in (408, 413):  # the rest of the body is not worth reading
        answer.force_close()
    return answer


def _after_limit(wait_s: float | None) -> dict[str, str]:
    """When to come again after what ends at a known time: a 429, or a window of the schedule."""
    wait_s = RETRY_AFTER_S if wait_s is None else wait_s
    headers = {"Retry-After": str(math.ceil(max(1.0, wait_s)))}
    return headers if wait_s <= PATIENCE_S else {**headers, "X-Should-Retry": "false"}
