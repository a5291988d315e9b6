"""Something that goes on, as server-sent events: first what was, then what comes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TypeVar

import msgspec

from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.inference.waiting import HEARTBEAT

T = TypeVar("T")

QUIET_S = 10.0
"""A stream that has nothing to say gets a comment this often: the reader knows that it lives."""


async def send_events(
    exchange: Exchange,
    past: Callable[[], Iterable[T]],
    source: AsyncIterator[T] | None,
    render: Callable[[T], object],
) -> None:
    """Answer with one `data: JSON` event per item, until the source ends or the client leaves."""
    if exchange.request.method == "HEAD":  # which has no body, and must not wait for its end
        await exchange.begin_events()
    elif source is None:
        await exchange.begin_events()
        await _send_all(exchange, past(), render)
    else:
        upcoming = asyncio.ensure_future(anext(source))
        try:
            await asyncio.sleep(0)  # the source listens from here on, so that nothing falls between
            known = list(past())
            await exchange.begin_events()
            await _send_all(exchange, known, render)
            while True:
                done, _ = await asyncio.wait([upcoming], timeout=QUIET_S)
                if not done:
                    await exchange.beat(HEARTBEAT)
                    continue
                try:
                    item = upcoming.result()
                except StopAsyncIteration:
                    break
                upcoming = asyncio.ensure_future(anext(source))
                await _send_all(exchange, [item], render)
        finally:
            upcoming.cancel()
            await asyncio.wait([upcoming])
    assert exchange.response is not None
    await exchange.response.write_eof()


async def _send_all(exchange: Exchange, items: Iterable[T], render: Callable[[T], object]) -> None:
    events = b"".join(b"data: " + msgspec.json.encode(render(item)) + b"\n\n" for item in items)
    if events:
        await exchange.write(events)
