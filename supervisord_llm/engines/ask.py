"""One request to an engine over its unix socket, for what is not worth a connection pool."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

MAX_QUOTE = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine said."""

    status: int
    body: bytes

    def __str__(self) -> str:
        text = " ".join(self.body.decode(errors="replace").split())
        return f"{self.status} {text[:MAX_QUOTE]}".strip()


async def ask(socket: Path, method: str, target: str, body: dict[str, Any] | None = None) -> Answer:
    """Its answer, whatever the status. Takes as long as the engine does: the caller sets the limit.

    Raises:
        aiohttp.ClientError, OSError: no answer.
    """
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket)), timeout=aiohttp.ClientTimeout(total=None)
        ) as http,
        http.request(method, f"http://engine{target}", json=body) as reply,
    ):
        return Answer(reply.status, await reply.read())
