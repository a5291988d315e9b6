"""Bytes between an engine and a client. No decisions: the lease was given, the path was looked up.

Small surface on purpose, so that another data plane can take its place: `Upstreams` and `relay`.
"""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import errors
from supervisord_llm.gateway.connections import IDLE_CONNECTION_S, relaying_session
from supervisord_llm.gateway.exchange import EVENT_STREAM, Exchange
from supervisord_llm.gateway.hops import HOP_BY_HOP, end_to_end
from supervisord_llm.gateway.inference import elsewhere
from supervisord_llm.gateway.inference.overture import overture
from supervisord_llm.gateway.target import Upstream
from supervisord_llm.outage import outage
from supervisord_llm.runtime.ports import Backend, Beginning

NOT_FOR_ENGINES = HOP_BY_HOP | {
    "accept-encoding", "api-key", "authorization", "content-encoding", "content-length", "cookie", "cookie2",
    "expect", "forwarded", "host", "origin", "x-api-key", "x-http-method-override", "x-original-url",
    "referer", "sec-websocket-protocol", "x-llm-peer", "x-real-ip", "x-request-id", "x-rewrite-url",
    "x-vllm-priority",
}  # fmt: skip
"""Request headers that end here: where keys may be, framing, and claims that only we could make."""

SECRETS = ("-key", "-token", "-secret")
"""Ends of the names of headers in which clients send what is for other services."""

NOT_FOR_CLIENTS = HOP_BY_HOP | {
    "server", "set-cookie", "x-request-id", "x-llm-model", "x-llm-route-reason", "x-llm-wait-ms",
}  # fmt: skip
"""Response headers that are ours to set, as is Access-Control-*: what pages may read is for us to say."""

PRIORITY_HEADER = "X-Vllm-Priority"
"""What vLLM takes for a request's place in its queue, before the body's `priority`."""

CONNECT_S = 10.0
PATIENCE = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
"""With an engine here: whether it makes progress is asked by other means."""

CLOSE_S = 1.0
FIRST_CHUNK_S = 1.0
"""How long the head of a stream waits for its first bytes: where no other engine can answer in place of one
that dies before them, that is still a 502."""

MAX_ERROR_BYTES = 64 * 1024


@dataclass(eq=False, slots=True)
class _Pool:
    """The connections to one engine, and the scope of every relay that uses one."""

    session: aiohttp.ClientSession
    leads_to: tuple[Path | None, str] | None
    """A socket or an origin; None: nobody uses it who does not already."""
    relays: set[asyncio.Timeout] = field(default_factory=set)
    unanswered: dict[asyncio.Task[object] | None, asyncio.Timeout] = field(default_factory=dict)
    """By the task of each: those that have no head yet."""

    async def close(self) -> None:
        # aiohttp closes connections without waking who reads from them, so the relays are told first.
        for scope in self.relays:
            scope.reschedule(0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):  # an engine that hangs may never take what was written
                await self.session.close()


class Upstreams:
    """The connections to engines, one pool per model."""

    def __init__(self) -> None:
        self.observers: list[Callable[[str, Beginning], None]] = []
        """Told how each answer of an API elsewhere began: the model, and the beginning."""
        self._pools: dict[str, list[_Pool]] = {}
        """By model. A reload may make its name that of another engine while this one still answers."""

    @contextlib.asynccontextmanager
    async def connected(self, model: str, backend: Backend) -> AsyncIterator[aiohttp.ClientSession]:
        """A session for one relay; the block is broken off when the model's connections are closed.

        Raises:
            Refused: `engine_crashed`, they were.
        """
        pool = self._pool(model, backend)
        scope = asyncio.timeout(None)
        try:
            async with scope:
                pool.relays.add(scope)
                pool.unanswered[me := asyncio.current_task()] = scope
                try:
                    yield pool.session
                finally:
                    pool.relays.discard(scope)
                    pool.unanswered.pop(me, None)
                    if pool.leads_to is None:
                        await self._tidy(model)
        except TimeoutError:
            if not scope.expired():
                raise
            raise engine_gone(model, "was stopped, or is out of reach") from None

    async def close(self, model: str) -> None:
        """Close every connection to the model's engine; open streams end with an error."""
        for pool in self._pools.pop(model, ()):
            await pool.close()

    async def retire(self, model: str) -> None:
        """Use these connections for nothing new; each is closed once what goes on there has ended."""
        for pool in self._pools.get(model, ()):
            pool.leads_to = None
        await self._tidy(model)

    def lose(self, model: str) -> None:
        """Break off what has no answer yet: nobody is there any more. Answers that have begun go on."""
        for pool in self._pools.get(model, ()):
            for scope in pool.unanswered.values():
                scope.reschedule(0)

    def answered(self, model: str) -> None:
        """The request of this task has the head of its answer."""
        for pool in self._pools.get(model, ()):
            pool.unanswered.pop(asyncio.current_task(), None)

    async def close_all(self) -> None:
        """Close everything; for the end of the daemon."""
        await asyncio.gather(*map(self.close, list(self._pools)))

    def tell(self, model: str, beginning: Beginning) -> None:
        for observer in self.observers:
            observer(model, beginning)

    def _pool(self, model: str, backend: Backend) -> _Pool:
        """The model's pool, whose connections all lead to the same place."""
        pools, there = self._pools.setdefault(model, []), (backend.socket, backend.origin)
        for pool in pools:
            if pool.leads_to == there:
                return pool
        session = relaying_session(
            _connector(backend),
            timeout=PATIENCE,
            auto_decompress=backend.elsewhere,  # engines do as they are asked and never compress
        )
        pools.append(_Pool(session, there))
        return pools[-1]

    async def _tidy(self, model: str) -> None:
        """Close what is not used any more."""
        pools = self._pools.pop(model, [])
        over = [pool for pool in pools if pool.leads_to is None and not pool.relays]
        if kept := [pool for pool in pools if pool not in over]:
            self._pools[model] = kept
        for pool in over:
            await pool.close()


def _connector(backend: Backend) -> aiohttp.BaseConnector:
    if backend.elsewhere:
        return elsewhere.connector(backend)
    if backend.socket is not None:
        return aiohttp.UnixConnector(str(backend.socket), limit=0, keepalive_timeout=IDLE_CONNECTION_S)
    return aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S)


async def relay(
    exchange: Exchange, upstreams: Upstreams, model: str, backend: Backend, upstream: Upstream, body: bytes
) -> None:
    """Send the request to the engine and its answer to the client. Never tries twice.

    Cancellation closes the connection, which makes the engine drop the request.

    Raises:
        Refused: `engine_crashed`, the connection broke. Part of the answer may have been sent.
        ConnectionError: the client is gone.
    """
    async with upstreams.connected(model, backend) as session:
        reply = await ask(exchange, upstreams, session, model, backend, upstream, body)
        try:
            await answer(exchange, backend, reply)
        finally:
            reply.close()


async def ask(
    exchange: Exchange,
    upstreams: Upstreams,
    session: aiohttp.ClientSession,
    model: str,
    backend: Backend,
    upstream: Upstream,
    body: bytes,
) -> aiohttp.ClientResponse:
    """Send a request to the engine; returns when the head of its answer is there.

    Raises:
        Refused: `engine_crashed`; `rate_limit_exceeded` where an API elsewhere says so.
    """
    query = elsewhere.query(upstream.query) if backend.elsewhere else upstream.query
    path = upstream.path + (f"?{query}" if query else "")
    headers = _headers(exchange, backend)
    return await send(upstreams, session, model, backend, upstream.method, path, headers, body)


async def send(
    upstreams: Upstreams,
    session: aiohttp.ClientSession,
    model: str,
    backend: Backend,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
) -> aiohttp.ClientResponse:
    """Like `ask`, for a request that is no client's."""
    try:
        reply = await session.request(
            method,
            URL(backend.url(path), encoded=True),
            headers=headers,
            data=io.BytesIO(body) if body else None,
            allow_redirects=False,
            timeout=_patience(backend),
        )
    except (aiohttp.ClientError, OSError) as why:
        if not backend.elsewhere:
            raise engine_gone(model) from why
        what = outage(why, backend.silence_s)
        upstreams.tell(model, Beginning(why=what))
        raise elsewhere.unreachable(model, backend, what) from why
    upstreams.answered(model)
    if backend.elsewhere:
        try:
            if backend.is_peer:
                await elsewhere.check_peer(reply)
            upstreams.tell(model, Beginning(reply.status, "", elsewhere.retry_after_s(reply.headers)))
            await elsewhere.check(model, backend, reply)
        except BaseException:
            reply.close()
            raise
    return reply


def _patience(backend: Backend) -> aiohttp.ClientTimeout:
    if not backend.elsewhere:
        return PATIENCE
    return aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=backend.silence_s)


async def answer(exchange: Exchange, backend: Backend, reply: aiohttp.ClientResponse) -> None:
    """Send the engine's answer to the client, in the way that is still open."""
    exchange.secret = elsewhere.secret(backend, reply.status)
    if exchange.response is None or (exchange.is_event_stream and _is_stream(reply)):
        await _pass_on(exchange, backend, reply)
    elif exchange.is_event_stream:
        await _continue_events(exchange, reply)
    else:
        await _continue_json(exchange, reply)


def request_headers(headers: CIMultiDictProxy[str], request_id: str) -> CIMultiDict[str]:
    """What the engine gets of a client's headers. It is asked not to compress: the way is a local socket."""
    kept = CIMultiDict(
        (name, value)
        for name, value in end_to_end(headers, NOT_FOR_ENGINES, "x-forwarded-")
        if not name.lower().endswith(SECRETS)
    )
    kept["X-Request-Id"] = request_id
    kept["Accept-Encoding"] = "identity"
    return kept


def headers_for(exchange: Exchange, backend: Backend) -> CIMultiDict[str]:
    """What a backend gets of a client's headers, and its own."""
    filtered = elsewhere.request_headers if backend.elsewhere else request_headers
    headers = filtered(exchange.request.headers, exchange.request_id)
    headers.update(backend.headers)
    return headers


def _headers(exchange: Exchange, backend: Backend) -> CIMultiDict[str]:
    headers = headers_for(exchange, backend)
    if exchange.translation is not None:
        headers["Content-Type"] = "application/json"
    if exchange.model in exchange.settings.prioritised:
        headers[PRIORITY_HEADER] = str(-exchange.caller.priority)  # to vLLM, lower is earlier
    return headers


def response_headers(headers: CIMultiDictProxy[str], backend: Backend) -> CIMultiDict[str]:
    """What the client gets of an engine's headers."""
    if backend.elsewhere:
        return elsewhere.response_headers(headers)
    return CIMultiDict(end_to_end(headers, NOT_FOR_CLIENTS, "access-control-"))


async def begin_merged(exchange: Exchange, backend: Backend, reply: aiohttp.ClientResponse) -> None:
    """Begin an answer that is made of several, of which `reply` is one."""
    response = _head(exchange, backend, reply)
    response.headers.pop("Content-Length", None)
    if exchange.response is None:
        await exchange.begin(response)


async def read_all(exchange: Exchange, reply: aiohttp.ClientResponse) -> bytes:
    """The whole body.

    Raises:
        Refused: `engine_crashed`.
    """
    chunks: list[bytes] = []
    while chunk := await _read(exchange, reply):
        chunks.append(chunk)
    return b"".join(chunks)


def _head(exchange: Exchange, backend: Backend, reply: aiohttp.ClientResponse) -> web.StreamResponse:
    """The head of the answer as it is, or as it is translated."""
    headers = response_headers(reply.headers, backend)
    if exchange.translation is not None:
        headers.popall("Content-Length", None)
        headers["Content-Type"] = exchange.translation.begin(reply.status, reply.content_type)
    return web.StreamResponse(status=reply.status, reason=reply.reason, headers=headers)


def _is_stream(reply: aiohttp.ClientResponse) -> bool:
    return reply.status == 200 and reply.content_type == "text/event-stream"


async def _pass_on(exchange: Exchange, backend: Backend, reply: aiohttp.ClientResponse) -> None:
    """The answer as it is: status and headers, unless the client has those of a stream already, and body."""
    head, is_stream = _head(exchange, backend, reply), _is_stream(reply)
    if is_stream:
        head.headers.update(EVENT_STREAM)

    async def hold() -> None:
        """Let the client have its head. Another engine may still answer."""
        if exchange.response is None:
            exchange.is_held = True
            head.headers.popall("Content-Length", None)
            await exchange.begin(head)

    async def read() -> bytes:
        if is_stream and exchange.response is None:
            try:
                async with asyncio.timeout(FIRST_CHUNK_S):
                    return await _read(exchange, reply)
            except TimeoutError:
                await hold()
        return await _read(exchange, reply)

    if backend.is_peer and is_stream and exchange.translation is None:
        chunk = await overture(exchange, read, hold)
    else:
        chunk = await read()
    if exchange.response is None:
        await exchange.begin(head)
    while chunk:
        await exchange.write(chunk)
        chunk = await _read(exchange, reply)
    if is_stream and _is_cut(exchange, reply):
        raise engine_gone(exchange.model or "")
    await exchange.end()


def _is_cut(exchange: Exchange, reply: aiohttp.ClientResponse) -> bool:
    """Whether a stream ended before its end: without framing, a death looks like one."""
    is_framed = "Transfer-Encoding" in reply.headers or "Content-Length" in reply.headers
    return not is_framed and exchange.path.endswith("completions") and b"[DONE]" not in exchange.told.end


async def _continue_events(exchange: Exchange, reply: aiohttp.ClientResponse) -> None:
    """An answer that is no stream, inside one that was opened while the client waited."""
    exchange.refusal = "" if reply.status == 200 else f"http_{reply.status}"
    json = await _one_line(exchange, reply)
    is_error = reply.status != 200
    await exchange.write(errors.event(json, exchange.shape if is_error else errors.Shape.OPENAI))
    await exchange.end()


async def _continue_json(exchange: Exchange, reply: aiohttp.ClientResponse) -> None:
    """The answer after the white space that the client got while it waited; its status came too late."""
    assert exchange.response is not None
    exchange.refusal = "" if reply.status == 200 else f"http_{reply.status}"
    if exchange.translation is not None:
        _ = exchange.translation.begin(reply.status, reply.content_type)
    while chunk := await _read(exchange, reply):
        await exchange.write(chunk)
    await exchange.end()


async def _one_line(exchange: Exchange, reply: aiohttp.ClientResponse) -> bytes:
    """A body that is no stream, as JSON on one line."""
    raw = b""
    while len(raw) < MAX_ERROR_BYTES and (chunk := await _read(exchange, reply)):
        raw += chunk
    try:
        return msgspec.json.format(raw, indent=-1)
    except (ValueError, RecursionError):
        text = raw.decode(errors="replace").strip()[:1000]
        return errors.body(
            Refused("engine_crashed", f"cannot use the engine's answer (status {reply.status}): {text}"),
            exchange.request_id,
            exchange.shape,
        )


async def _read(exchange: Exchange, reply: aiohttp.ClientResponse) -> bytes:
    """The next bytes; b"" at the end."""
    try:
        return await reply.content.readany()
    except (aiohttp.ClientError, OSError) as why:
        is_silent = isinstance(why, aiohttp.ServerTimeoutError)
        raise engine_gone(exchange.model or "", "sent nothing for too long" if is_silent else "died") from why


def engine_gone(model: str, what: str = "died") -> Refused:
    """`engine_crashed`; `what` became of it."""
    return Refused("engine_crashed", f"cannot finish this answer: the engine of {model!r} {what}; try again")
