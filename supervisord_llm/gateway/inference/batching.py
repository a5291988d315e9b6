"""One request that the engine gets in parts, one after the other, and the client answered as one."""

import asyncio
from collections.abc import Sequence

import aiohttp

from supervisord_llm.errors import Refused
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.inference.relay import Upstreams, answer, ask, begin_merged, read_all
from supervisord_llm.gateway.policy.batches import merge
from supervisord_llm.gateway.target import Upstream
from supervisord_llm.runtime.ports import Backend


async def relay_parts(
    exchange: Exchange,
    upstreams: Upstreams,
    model: str,
    backend: Backend,
    upstream: Upstream,
    parts: Sequence[bytes],
) -> None:
    """Send the parts to the engine and their merged answer to the client; an error of one is that of all.

    Raises:
        Refused: `engine_crashed`, the connection broke, or the answers cannot be merged.
        ConnectionError: the client is gone.
    """
    answers: list[bytes] = []
    reply: aiohttp.ClientResponse | None = None
    async with upstreams.connected(model, backend) as session:
        for part in parts:
            reply = await ask(exchange, upstreams, session, model, backend, upstream, part)
            try:
                if reply.status != 200 or reply.content_type != "application/json":
                    await answer(exchange, backend, reply)
                    return
                answers.append(await read_all(exchange, reply))
            finally:
                reply.close()
        try:
            whole = await asyncio.to_thread(merge, answers)
        except ValueError as why:
            message = f"cannot make one answer of {len(answers)} parts: {why}; send fewer inputs at once"
            raise Refused("engine_crashed", message) from None
        assert reply is not None
        await begin_merged(exchange, backend, reply)
        await exchange.write(whole)
        await exchange.end()
