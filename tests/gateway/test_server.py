"""The HTTP server under the gateway, where aiohttp's own manners do not do."""

import asyncio
from typing import Any

from aiohttp import web

from supervisord_llm.errors import Refused
from supervisord_llm.gateway import errors
from supervisord_llm.gateway.server import http_server


class Wire(asyncio.Transport):
    """A connection that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


async def test_a_connection_made_as_the_server_ends_is_closed_with_it() -> None:
    """aiohttp's task for it has not run yet, and would wait for a request that is no longer read."""
    server = http_server(lambda request: asyncio.sleep(0, web.Response()))
    protocol, wire = server(), Wire()
    protocol.connection_made(wire)
    server.pre_shutdown()
    assert wire.is_closed
    protocol.connection_lost(None)
    async with asyncio.timeout(5):
        await server.shutdown(5)


def test_what_a_failed_start_quotes_is_redacted_before_it_leaves() -> None:
    quoted = Refused("start_failed", "cannot start a: UV_INDEX=https://ann:pass@example.org/simple vllm")
    assert b"pass" not in errors.body(quoted, "req_1")
