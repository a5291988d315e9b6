"""aiohttp's HTTP server with our manners.

It differs from the stock protocol in four things: errors it finds itself have our shape, a request that it
cannot parse is never logged (its Authorization line would be, too), a connection that says nothing is closed,
and there is no router in front of the handler that would decode the path.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import RequestHandler

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import errors
from supervisord_llm.gateway.doors import rfc9112
from supervisord_llm.gateway.exchange import SERVER

HEAD_S = 15.0
"""A new connection must have sent a request's head by then."""

IDLE_S = 120.0
"""How long a connection is kept between requests."""

LINGER_S = 2.0
"""How long an unread body is read on, so that the client sees the answer and not a reset."""

MAX_LINE_BYTES = 32 * 1024
"""Of a request's first line, and of each header: a site's single sign-on may well need 16 KiB of cookies."""

log = logging.getLogger("llm_supervisor.http")
logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)  # it quotes subprotocols: one is a key

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Protocol(RequestHandler):
    """One client connection."""

    __slots__ = ("_head_deadline",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head_deadline = asyncio.get_running_loop().call_later(HEAD_S, self._close_if_silent)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._head_deadline.cancel()
        super().connection_lost(exc)

    def close(self) -> None:
        """The server ends. aiohttp forgets a connection that was just made: it would go on waiting for a
        request that it no longer reads."""
        super().close()
        if not self._request_in_progress and not self._messages:
            self.force_close()

    def _close_if_silent(self) -> None:
        if self._request_count == 0:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A request that could not be parsed, or a handler that raised what it should have caught."""
        if isinstance(exc, ConnectionError):  # the client is gone
            raise exc
        request_id = f"req_{secrets.token_hex(12)}"
        if status == 400 or isinstance(exc, BadHttpMessage):
            log.info("cannot parse a request of %s: %s", request.remote, type(exc).__name__)
            refused = Refused("invalid_request", _why(exc))
        else:
            log.error("cannot answer request %s", request_id, exc_info=exc)
            refused = errors.internal(request_id)
        if request.writer.output_size > 0:  # too late for a status
            raise ConnectionError
        answer = errors.response(refused, request_id)
        answer.headers.update({"X-Request-Id": request_id, "Server": SERVER})
        if isinstance(self._manager, HttpServer):
            answer.headers.update(self._manager.for_browsers())
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """What aiohttp would log here quotes the bytes of the client."""
        why = kw.get("exc_info")
        log.info("cannot go on with a connection: %s", type(why).__name__)


class HttpServer(web.Server):
    """Makes one protocol per connection; run it with `web.ServerRunner`."""

    for_browsers: Callable[[], Mapping[str, str]] = dict
    """Headers of the answers that are not the handler's."""

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


def http_server(handler: Handler, for_browsers: Callable[[], Mapping[str, str]] = dict) -> HttpServer:
    """The server in front of `handler`, which is cancelled when its client leaves."""

    def strictly(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        rfc9112.check(request.version, request.raw_path, request.headers)
        return handler(request)

    server = HttpServer(
        strictly,
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=IDLE_S,
        lingering_time=LINGER_S,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
    )
    server.for_browsers = for_browsers
    return server


def _why(exc: BaseException | None) -> str:
    """What is wrong with a request, without quoting it."""
    if isinstance(exc, LineTooLong):
        way_out = f"send at most {MAX_LINE_BYTES} bytes in a header, and in the path with its query"
        return f"cannot take this request: a line of its head is too long; {way_out}"
    return "cannot parse this request: it is not valid HTTP/1.1"
