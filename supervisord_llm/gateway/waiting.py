"""What a client sees while its model starts.

A streaming client gets, after a short grace, the head of its event stream and then a comment every heartbeat,
which keeps it and every proxy on the way patient; a failure that comes later is an event of that stream. Any
other client is held silently, because its status cannot be taken back.
"""

import asyncio
from pathlib import Path

from supervisord_llm.errors import Refused
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.runtime.lease import Lease

GRACE_S = 1.0
"""So that an immediate refusal still gets its own status."""

HEARTBEAT = b": keep-alive\n\n"
"""The comment that vLLM sends, too. Not a ping: some clients take that for the end."""


async def admitted(exchange: Exchange, lease: Lease, *, streams: bool) -> Path:
    """The engine's socket, once the request may use it.

    Raises:
        Refused: it never may.
    """
    admission = lease.admission
    if not admission.done():
        heartbeat_s = exchange.settings.config.server.heartbeat_s
        if streams and heartbeat_s > 0:
            await _keep_alive(exchange, lease, heartbeat_s)
        else:
            await asyncio.wait([admission])  # unlike `await admission`, leaves it alone when we are cancelled
    if admission.cancelled():
        raise Refused("shutting_down", "cannot serve this request: the server shuts down; try again soon")
    now = asyncio.get_running_loop().time()
    exchange.wait_s = lease.wait_s if lease.is_admitted else now - lease.asked_at
    return admission.result()


async def _keep_alive(exchange: Exchange, lease: Lease, heartbeat_s: float) -> None:
    await asyncio.wait([lease.admission], timeout=GRACE_S)
    while not lease.admission.done():
        if exchange.response is None:
            exchange.wait_s = asyncio.get_running_loop().time() - lease.asked_at
            await exchange.begin_events()
        await exchange.beat(HEARTBEAT)
        await asyncio.wait([lease.admission], timeout=heartbeat_s)
