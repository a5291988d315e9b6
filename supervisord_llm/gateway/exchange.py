"""One request and its answer: who asked, what has been sent, and how it may still end."""

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import errors
from supervisord_llm.gateway.auth import Caller
from supervisord_llm.gateway.route import is_anthropic
from supervisord_llm.gateway.settings import Settings
from supervisord_llm.telemetry.record import Outcome, RequestRecord, usage_in

SERVER = "llm-supervisor"
TAIL_BYTES = 4096
"""How much of the answer's end is kept: the usage figures are there."""

EVENT_STREAM: Mapping[str, str] = {"X-Accel-Buffering": "no", "Cache-Control": "no-cache"}
"""Without these, nginx and the like hold a stream back until its end."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}")


@dataclass(slots=True)
class Exchange:
    """Everything the gateway knows of one request. Lives as long as its handler."""

    request: web.BaseRequest
    settings: Settings
    started_at: float
    """Loop time, seconds."""
    caller: Caller
    is_last: Callable[[], bool] = lambda: False
    """Whether the connection is to end with this answer."""
    request_id: str = field(init=False)
    path: str = ""
    query: str = ""
    model: str | None = None
    wait_s: float = 0.0
    first_byte_at: float | None = None
    response: web.StreamResponse | None = None
    """Set once its head is on the way."""
    refusal: str = ""
    """Code of the error it ended with."""
    tail: bytes = b""

    def __post_init__(self) -> None:
        asked = self.request.headers.get("X-Request-Id", "")
        self.request_id = asked if _SANE_ID.fullmatch(asked) else f"req_{secrets.token_hex(12)}"

    def headers(self) -> dict[str, str]:
        """What every answer carries."""
        headers = {"X-Request-Id": self.request_id, "Server": SERVER}
        if self.model is not None:
            headers["X-LLM-Model"] = self.model
            if self.wait_s >= 0.001:
                headers["X-LLM-Wait-Ms"] = str(int(self.wait_s * 1000))
        return headers

    @property
    def is_event_stream(self) -> bool:
        return self.response is not None and self.response.content_type == "text/event-stream"

    async def begin(self, response: web.StreamResponse) -> None:
        """Send the head; from here on the status is settled."""
        response.headers.update(self.headers())
        if self.is_last():
            response.force_close()
        self.response = response
        await response.prepare(self.request)

    async def begin_events(self) -> None:
        """Open an event stream of our own."""
        headers = {"Content-Type": "text/event-stream; charset=utf-8", **EVENT_STREAM}
        await self.begin(web.StreamResponse(headers=headers))

    async def write(self, chunk: bytes) -> None:
        """Send a part of the body; returns when the client keeps up."""
        assert self.response is not None
        if self.first_byte_at is None:
            self.first_byte_at = asyncio.get_running_loop().time()
        self.tail = chunk[-TAIL_BYTES:] if len(chunk) >= TAIL_BYTES else (self.tail + chunk)[-TAIL_BYTES:]
        await self.response.write(chunk)

    async def beat(self, comment: bytes) -> None:
        """Send a comment of an event stream; it is no part of the answer."""
        assert self.response is not None
        await self.response.write(comment)

    async def refuse(self, refused: Refused) -> web.StreamResponse:
        """End with an error, in the way that is still open: a status, an event, or a cut connection."""
        self.refusal = refused.code
        anthropic = is_anthropic(self.path)
        if self.response is None:
            response = errors.response(refused, self.request_id, anthropic=anthropic)
            await self.begin(response)
            return response
        if self.is_event_stream:
            json = errors.body(refused, self.request_id, anthropic=anthropic)
            broken = self.tail and not self.tail.endswith((b"\n\n", b"\r\n\r\n"))
            await self.response.write((b"\n\n" if broken else b"") + errors.event(json, anthropic=anthropic))
            await self.response.write_eof()
        else:
            self.request.protocol.force_close()
        return self.response

    def record(self, *, left: bool) -> RequestRecord:
        """What became of it. `left`: the client went away first."""
        now = asyncio.get_running_loop().time()
        status = self.response.status if self.response is not None else 0
        return RequestRecord(
            request_id=self.request_id,
            method=self.request.method,
            path=self.path,
            model=self.model,
            source=self.caller.name,
            status=status or (499 if left else 500),
            outcome=Outcome.LEFT if left else Outcome.of(status, self.refusal),
            refusal=self.refusal,
            latency_s=now - self.started_at,
            wait_s=self.wait_s,
            first_byte_s=None if self.first_byte_at is None else self.first_byte_at - self.started_at,
            usage=usage_in(self.tail),
        )
