"""Bytes between a site's upstream and a client, both ways as they come. What may pass, sites.py says."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from supervisord_llm.config.model import Site
from supervisord_llm.errors import Refused
from supervisord_llm.gateway import websocket
from supervisord_llm.gateway.body import Bounds, pieces
from supervisord_llm.gateway.connections import IDLE_CONNECTION_S, relaying_session
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.hops import HOP_BY_HOP, end_to_end
from supervisord_llm.gateway.sites.sites import Visit, redirect, request_headers, response_headers, target

CONNECT_S = 10.0

SILENCE_S = 60.0
"""How long a client may send nothing of a body it announced."""

MAX_HEADER_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Of a websocket."""

_DEAD_HOST = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000),
)
"""A host that is gone is noticed in a minute, while an answer may take as long as it likes."""


class SiteRelay:
    """The connections to the upstreams of sites."""

    def __init__(self) -> None:
        self._made: aiohttp.ClientSession | None = None

    async def serve(self, exchange: Exchange, site: Site, came: Visit) -> None:
        """Answer the exchange from the site's upstream.

        Raises:
            Refused: `site_unavailable`, or the request may not pass. Nothing has been sent.
            ConnectionError: the client is gone.
        """
        elsewhere = redirect(site, exchange.path, exchange.query)
        if elsewhere is not None:
            await exchange.begin(web.Response(status=308, headers={"Location": elsewhere}))
            return
        url = target(site, exchange.path, exchange.query)
        headers = request_headers(site, came, exchange.request.headers)
        if websocket.is_websocket(exchange.request):
            await self._join(exchange, site, url, headers)
        else:
            await self._pass(exchange, site, url, headers)

    async def close(self) -> None:
        """For the end of the daemon."""
        if self._made is not None:
            await self._made.close()

    async def _pass(self, exchange: Exchange, site: Site, url: URL, headers: CIMultiDict[str]) -> None:
        request = exchange.request
        upload = _Upload(request, site)
        try:
            reply = await self._session.request(
                request.method,
                url,
                headers=headers,
                data=upload.chunks() if request.body_exists else None,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError) as why:
            raise upload.refused or _unavailable(site, why) from why
        try:
            answer = _Answer(
                status=reply.status, reason=reply.reason, headers=response_headers(reply.headers)
            )
            await exchange.begin(answer, as_it_is=True)
            while chunk := await _read(reply):
                await answer.write(chunk)
            if reply.content.exception() is None:
                await answer.write_eof()
            else:
                exchange.refusal = "site_unavailable"
                request.protocol.force_close()
        finally:
            reply.close()

    async def _join(self, exchange: Exchange, site: Site, url: URL, headers: CIMultiDict[str]) -> None:
        request = exchange.request
        websocket.check(request)
        protocols = websocket.offered(request.headers)
        try:
            upstream = await websocket.connect(self._session, url, headers, protocols, MAX_MESSAGE_BYTES)
        except aiohttp.WSServerHandshakeError as refusal:
            if refusal.status == 101:
                raise _unavailable(site, refusal) from refusal
            await exchange.begin(_bodiless(refusal), as_it_is=True)
            return
        except (aiohttp.ClientError, OSError) as why:
            raise _unavailable(site, why) from why
        async with upstream:
            client = websocket.answer(upstream.protocol, MAX_MESSAGE_BYTES)
            await exchange.begin(client, as_it_is=True)
            try:
                await websocket.join(client, upstream)
            except asyncio.CancelledError:
                await client.close(code=aiohttp.WSCloseCode.GOING_AWAY)
                raise

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._made is None:
            trace = aiohttp.TraceConfig()
            trace.on_request_redirect.append(_not_followed)
            self._made = relaying_session(
                aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S, socket_factory=_socket),
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
                max_line_size=MAX_HEADER_BYTES,
                max_field_size=MAX_HEADER_BYTES,
                trace_configs=[trace],
            )
        return self._made


class _Upload:
    """A request's body on its way to the upstream, as fast as that takes it."""

    def __init__(self, request: web.BaseRequest, site: Site) -> None:
        self.refused: Refused | None = None
        """Why it was broken off."""
        self._request = request
        self._bounds = Bounds(site.max_body_bytes, f"sites.{site.name}", SILENCE_S)

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for piece in pieces(self._request, self._bounds):
                yield piece
        except Refused as refused:
            self.refused = refused
            raise


class _Answer(web.StreamResponse):
    """aiohttp calls one without a type `application/octet-stream`, which browsers save instead of showing."""

    async def _prepare_headers(self) -> None:
        is_typed = "Content-Type" in self.headers
        await super()._prepare_headers()
        if not is_typed:
            self.headers.pop("Content-Type", None)


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    """The next bytes; b"" at the end, be it a good one or not."""
    try:
        return await reply.content.readany()
    except (aiohttp.ClientError, OSError):
        return b""


def _bodiless(refusal: aiohttp.WSServerHandshakeError) -> web.Response:
    """What the upstream answered instead of opening a websocket; its body is not to be had."""
    sent = CIMultiDictProxy(CIMultiDict(refusal.headers or {}))
    kept = end_to_end(sent, HOP_BY_HOP | {"content-encoding", "content-length", "content-type"})
    return web.Response(status=refusal.status, headers=CIMultiDict(kept))


async def _not_followed(
    session: aiohttp.ClientSession, context: object, redirect: aiohttp.TraceRequestRedirectParams
) -> None:
    """A redirect of a websocket's handshake is the client's to follow, as any other; aiohttp always would."""
    answer = redirect.response
    answer.close()
    raise aiohttp.WSServerHandshakeError(
        answer.request_info, (), status=answer.status, message="redirect", headers=answer.headers
    )


def _unavailable(site: Site, why: Exception) -> Refused:
    return Refused(
        "site_unavailable",
        f"cannot reach {site.name}: {_reason(why)}; start it, or correct `upstream` in [sites.{site.name}]",
    )


def _reason(why: Exception) -> str:
    """In words that tell nothing of where it is."""
    if isinstance(why, aiohttp.ClientConnectorDNSError):
        return "its host has no address"
    if isinstance(why, aiohttp.ClientSSLError):
        return "its certificate is not valid, or it speaks no TLS"
    if isinstance(why, TimeoutError):
        return "it does not answer"
    if isinstance(why, aiohttp.ClientConnectorError):
        return "nothing listens there" if why.errno == errno.ECONNREFUSED else "there is no way to it"
    return "its answer broke off"


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    for option in _DEAD_HOST:
        made.setsockopt(*option)
    return made
