"""One of our own endpoints: who may call it, and what answers."""

from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from supervisord_llm.gateway.exchange import Exchange

if TYPE_CHECKING:
    from supervisord_llm.gateway.app import Gateway


class Access(IntEnum):
    """Who may call an endpoint."""

    OPEN = 0
    KEY = 1
    ADMIN = 2


class Endpoint(NamedTuple):
    """A method of a path. `answer` returns a response, or None when it has sent one itself."""

    method: str
    access: Access
    answer: Callable[["Gateway", Exchange, str], Awaitable[web.StreamResponse | None]]
