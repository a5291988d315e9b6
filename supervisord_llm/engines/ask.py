"""One request to an engine, for what is not worth a connection pool."""

from dataclasses import dataclass
from typing import Any

import aiohttp

from supervisord_llm.runtime.ports import Backend

MAX_QUOTE = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine said."""

    status: int
    body: bytes

    def __str__(self) -> str:
        text = " ".join(self.body.decode(errors="replace").split())
        return f"{self.status} {text[:MAX_QUOTE]}".strip()


async def ask(backend: Backend, method: str, target: str, body: dict[str, Any] | None = None) -> Answer:
    """Its answer, whatever the status. Takes as long as the engine does: the caller sets the limit.

    Raises:
        aiohttp.ClientError, OSError: no answer.
    """
    connector = None if backend.socket is None else aiohttp.UnixConnector(str(backend.socket))
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as http,
        http.request(method, backend.origin + target, json=body, allow_redirects=False) as reply,
    ):
        return Answer(reply.status, await reply.read())
