"""The HTTP client of a relay: it sends what came and nothing of its own, and gives back what it gets."""

from typing import Any

import aiohttp

IDLE_CONNECTION_S = 2.0
"""Below the 5 s after which vLLM, Node and uvicorn close an idle one: a request must not meet that close."""

OURS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
"""What aiohttp's client adds where there is none: it would be a claim of the client that it never made."""


def relaying_session(connector: aiohttp.BaseConnector, **how: Any) -> aiohttp.ClientSession:
    """A session without cookies, headers and decoding of its own; `how`: what else aiohttp's takes."""
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=OURS,
        **{"auto_decompress": False, **how},
    )
