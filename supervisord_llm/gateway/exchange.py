"""One request and its answer: who asked, what has been sent, and how it may still end."""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from aiohttp import HttpVersion11, web

from supervisord_llm.config.model import UNIX
from supervisord_llm.errors import Refused
from supervisord_llm.gateway import errors
from supervisord_llm.gateway.auth import Caller
from supervisord_llm.gateway.limits.meter import Meter
from supervisord_llm.gateway.policy.usage import UsageFilter
from supervisord_llm.gateway.settings import Settings
from supervisord_llm.gateway.target import shape_of
from supervisord_llm.gateway.translation import NDJSON, Translation
from supervisord_llm.telemetry.record import Outcome, RequestRecord, Usage, UsageReader

SERVER = "llm-supervisor"
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
    peer: str = UNIX
    """The client's address, be it behind a proxy that is trusted; "unix" for one of a unix socket."""
    for_browsers: Mapping[str, str] = field(default_factory=dict)
    """Headers that tell browsers what they may do with the answer."""
    is_last: Callable[[], bool] = lambda: False
    """Whether the connection is to end with this answer."""
    request_id: str = field(init=False)
    path: str = ""
    query: str = ""
    model: str | None = None
    """Whose engine is asked; of a route, the member that was chosen."""
    choice: str = ""
    """Why it is that model, as a sentence; "" where the client named it."""
    asked_at: float | None = None
    """Loop time at which it was first asked for an engine."""
    wait_s: float = 0.0
    """From then until an engine took it."""
    first_byte_at: float | None = None
    response: web.StreamResponse | None = None
    """Set once its head is on the way."""
    is_held: bool = False
    """That head is our own, sent to keep the client while it waits."""
    refusal: str = ""
    """Code of the error it ended with."""
    told: UsageReader = field(default_factory=UsageReader)
    """What the engine has told of tokens, and the end of what it has sent."""
    meter: Meter | None = None
    """What counts for the client; None: nothing does."""
    usage: UsageFilter | None = None
    """What counts the events of a stream, and takes out a usage nobody asked for; None: it is no stream."""
    secret: bytes = b""
    """What must not reach the client, should an error elsewhere quote it; b"": nothing."""
    _kept: bytes = b""
    """The end of what has come, which may be the beginning of the secret."""
    translation: Translation | None = None
    """What turns the engine's answer into that of the API that the client speaks; None: it is that."""

    def __post_init__(self) -> None:
        asked = self.request.headers.get("X-Request-Id", "")
        self.request_id = asked if _SANE_ID.fullmatch(asked) else f"req_{secrets.token_hex(12)}"

    def headers(self) -> dict[str, str]:
        """What every answer carries."""
        headers = {"X-Request-Id": self.request_id, "Server": SERVER, **self.for_browsers}
        if self.shape is errors.Shape.ANTHROPIC:
            headers["Request-Id"] = self.request_id  # the name that its SDKs know
        if self.model is not None:
            headers["X-LLM-Model"] = self.model
            if self.wait_s >= 0.001:
                headers["X-LLM-Wait-Ms"] = str(int(self.wait_s * 1000))
        if self.choice:
            headers["X-LLM-Route-Reason"] = self.choice
        if self.meter is not None:
            headers |= self.meter.headers(time.monotonic())
        return headers

    def running(self) -> AbstractContextManager[None]:
        """For the time that a request goes to an engine: it counts as in flight.

        Raises:
            Refused: on entering, if the client may have no more of them now.
        """
        return nullcontext() if self.meter is None else self.meter

    @property
    def shape(self) -> errors.Shape:
        """What its errors look like."""
        return shape_of(self.path)

    @property
    def is_unanswered(self) -> bool:
        """No engine's answer has begun to reach the client, so that another one may still give it."""
        return self.first_byte_at is None and (self.response is None or self.is_held)

    @property
    def is_event_stream(self) -> bool:
        return self.response is not None and self.response.content_type == "text/event-stream"

    async def begin(self, response: web.StreamResponse, *, as_it_is: bool = False) -> None:
        """Send the head; from here on the status is settled. `as_it_is`: with no more headers than it has."""
        if as_it_is:
            response.headers.setdefault("Server", SERVER)
        else:
            response.headers.update(self.headers())
        is_open_ended = self.request.version < HttpVersion11 and response.content_length is None
        if self.is_last() or is_open_ended:  # without chunks, the end of an answer is that of the connection
            response.force_close()
        self.response = response
        await response.prepare(self.request)

    async def begin_events(self) -> None:
        """Open an event stream of our own."""
        headers = {"Content-Type": "text/event-stream; charset=utf-8", **EVENT_STREAM}
        await self.begin(web.StreamResponse(headers=headers))

    async def begin_json(self) -> None:
        """Open an answer of our own before its status is known."""
        headers = {"Content-Type": "application/json", "X-Accel-Buffering": "no"}
        await self.begin(web.StreamResponse(headers=headers))

    async def write(self, chunk: bytes) -> None:
        """Send a part of the body; returns when the client keeps up."""
        assert self.response is not None
        if self.first_byte_at is None:
            self.first_byte_at = asyncio.get_running_loop().time()
        if self.secret:
            chunk = self._redacted(chunk)
        self.told.feed(chunk)
        if self.usage is not None:
            chunk = self.usage.feed(chunk)
        if self.translation is not None and chunk:
            chunk = self.translation.feed(chunk)
        if chunk:
            await self.response.write(chunk)

    async def end(self) -> None:
        """The engine's answer is complete."""
        assert self.response is not None
        if rest := self._kept:
            self.secret = self._kept = b""
            await self.write(rest)
        rest = b"" if self.usage is None else self.usage.end()
        if self.translation is not None:
            rest = (self.translation.feed(rest) if rest else b"") + self.translation.end()
        await self.response.write_eof(rest)

    def _redacted(self, chunk: bytes) -> bytes:
        """Without the secret, whose beginning may be kept until more comes."""
        whole = (self._kept + chunk).replace(self.secret, b"*" * len(self.secret))
        cut = max(0, len(whole) - len(self.secret) + 1)
        self._kept = whole[cut:]
        return whole[:cut]

    async def beat(self, comment: bytes) -> None:
        """Send what keeps the client patient, such as a comment; it is no part of the answer."""
        assert self.response is not None
        await self.response.write(comment)

    async def refuse(self, refused: Refused) -> web.StreamResponse:
        """End with an error, in the way that is still open: a status, an event, or a cut connection."""
        self.refusal = refused.code
        self.translation = None  # what comes now is ours
        held = b"" if self.usage is None else self.usage.end()
        if self.response is None:
            response = errors.response(refused, self.request_id, self.shape)
            await self.begin(response)
            return response
        json = errors.body(refused, self.request_id, self.shape)
        if self.is_event_stream:
            broken = self.told.end and not self.told.end.endswith((b"\n\n", b"\r\n\r\n"))
            rest = held + (b"\n\n" if broken else b"")
            await self.response.write(rest + errors.event(json, self.shape))
            await self.response.write_eof()
        elif self.response.content_type == NDJSON:  # whose lines are whole, since we made them
            await self.response.write_eof(errors.event(json, self.shape))
        elif self.first_byte_at is None and self.response.content_type == "application/json":
            await self.write(json)
            await self.response.write_eof()
        else:
            self.request.protocol.force_close()
        return self.response

    def record(self, path: str, *, left: bool) -> RequestRecord:
        """What became of it. `path`: as it may be told. `left`: the client went away first."""
        now = asyncio.get_running_loop().time()
        status = self.response.status if self.response is not None else 0
        return RequestRecord(
            request_id=self.request_id,
            method=self.request.method,
            path=path,
            model=self.model,
            source=self.caller.name,
            status=status or (499 if left else 500),
            outcome=Outcome.LEFT if left else Outcome.of(status, self.refusal),
            refusal=self.refusal,
            latency_s=now - self.started_at,
            wait_s=self.wait_s,
            first_byte_s=None if self.first_byte_at is None else self.first_byte_at - self.started_at,
            usage=self._tokens(),
        )

    def _tokens(self) -> Usage | None:
        """As the engine told, or as many as events of a stream that ended before it did."""
        told, events = self.told.found, 0 if self.usage is None else self.usage.events
        if events == 0 or (told is not None and told.completion > 0):
            return told
        prompt = 0 if told is None else told.prompt  # Anthropic's streams begin with it
        return Usage(prompt, events, prompt + events, is_estimated=True)
