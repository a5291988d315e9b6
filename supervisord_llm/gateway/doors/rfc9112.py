"""What a request must keep to in HTTP/1.1 and aiohttp's parser lets pass. Pure.

All of it is about two readers of one connection who must not understand different things: a proxy in front
of us and we, or we and a site behind.
"""

import re

from aiohttp import HttpVersion, HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import BadHttpMessage
from multidict import CIMultiDictProxy

_HOST = re.compile(r"[A-Za-z0-9._~%:\[\]-]*")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)


def check(version: HttpVersion, target: str, headers: CIMultiDictProxy[str]) -> None:
    """`target` is the raw one.

    Raises:
        BadHttpMessage: the connection must end, since what follows on it cannot be told.
    """
    if version not in (HttpVersion11, HttpVersion10):
        raise BadHttpMessage("another version of HTTP")
    coding = headers.get("Transfer-Encoding")
    if coding is not None and (version == HttpVersion10 or coding.strip().lower() != "chunked"):
        raise BadHttpMessage("a transfer coding that is not ours to undo")
    host = headers.get("Host", "")
    if not _HOST.fullmatch(host):
        raise BadHttpMessage("no name of a host")
    absolute = _ABSOLUTE.match(target)
    if absolute is not None and absolute[1].lower() != host.lower():
        raise BadHttpMessage("two different hosts")
