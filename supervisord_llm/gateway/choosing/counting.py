"""The exact number of tokens of a prompt, from an engine that is ready."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress

import aiohttp
import msgspec
from yarl import URL

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import body as bodies
from supervisord_llm.gateway.inference.relay import Upstreams
from supervisord_llm.gateway.policy.fields import Fields, encoded
from supervisord_llm.gateway.policy.policy import Policy, shape
from supervisord_llm.runtime.ports import Backend

TIMEOUT_S = 1.0
"""For all that are asked. Engines that are busy may take longer, and the estimate has to do."""

COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "chat/completions": ("/tokenize", ("messages", "tools", "chat_template_kwargs")),
    "completions": ("/tokenize", ("prompt",)),
    "messages": ("/v1/messages/count_tokens", ("messages", "system", "tools")),
}
"""Endpoint -> which one of vLLM's counts for it, and what that has to know."""


class _Count(msgspec.Struct):
    count: int | None = None
    input_tokens: int | None = None


async def count_tokens(
    upstreams: Upstreams,
    counters: Iterable[tuple[Policy, Backend]],
    endpoint: str,
    body: bytes,
    fields: Fields,
) -> int | None:
    """Tokens of the prompt as the first model's engine reads it that says so; None where none does in time.

    What its policy refuses does not reach an engine here, either.
    """
    if endpoint not in COUNTERS:
        return None
    path, names = COUNTERS[endpoint]
    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT_S):
            for policy, backend in counters:
                with suppress(Refused, aiohttp.ClientError, OSError, ValueError):
                    asked = await bodies.off_loop(body, _asked, policy, endpoint, fields, names)
                    return await _told(upstreams, policy.model, backend, path, asked)
    return None


async def _told(upstreams: Upstreams, model: str, backend: Backend, path: str, asked: bytes) -> int:
    """
    Raises:
        Refused, aiohttp.ClientError, OSError, ValueError: the engine does not say.
    """
    url, headers = URL(backend.url(path), encoded=True), {"Content-Type": "application/json"}
    async with (
        upstreams.connected(model, backend) as session,
        session.post(url, data=asked, headers=headers) as answer,
    ):
        told = msgspec.json.decode(await answer.read(), type=_Count)
    count = told.input_tokens if told.count is None else told.count
    if count is None:
        raise ValueError("it is no count")
    return count


def _asked(policy: Policy, endpoint: str, fields: Fields, names: tuple[str, ...]) -> bytes:
    shaped = shape(policy, endpoint, fields, {"model": encoded(policy.model)}).fields
    return msgspec.json.encode({name: shaped[name] for name in ("model", *names) if name in shaped})
