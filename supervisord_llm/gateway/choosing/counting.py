"""The exact number of tokens of a prompt, from an engine that is ready."""

import asyncio
from collections.abc import Mapping

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
"""An engine that is busy may take longer, and the estimate has to do."""

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
    upstreams: Upstreams, backend: Backend, policy: Policy, endpoint: str, body: bytes, fields: Fields
) -> int | None:
    """Tokens of the prompt as this model's engine reads it; None where it does not say so in time.

    What its policy refuses does not reach the engine here, either.
    """
    if endpoint not in COUNTERS:
        return None
    path, names = COUNTERS[endpoint]
    try:
        asked = await bodies.off_loop(body, _question, policy, endpoint, fields, names)
        async with asyncio.timeout(TIMEOUT_S), upstreams.connected(policy.model, backend) as session:
            url = URL(backend.url(path), encoded=True)
            headers = {"Content-Type": "application/json"}
            async with session.post(url, data=asked, headers=headers) as answer:
                told = msgspec.json.decode(await answer.read(), type=_Count)
    except (Refused, aiohttp.ClientError, OSError, ValueError):
        return None
    return told.input_tokens if told.count is None else told.count


def _question(policy: Policy, endpoint: str, fields: Fields, names: tuple[str, ...]) -> bytes:
    shaped = shape(policy, endpoint, fields, {"model": encoded(policy.model)}).fields
    return msgspec.json.encode({name: shaped[name] for name in ("model", *names) if name in shaped})
