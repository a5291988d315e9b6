"""HTTP as bytes: requests that no library would send, a strict look at answers, an engine that notes all."""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

KEY = b"Authorization: Bearer key-a\r\n"
JSON = b"Content-Type: application/json\r\n"
CHAT = b'{"model":"alpha","messages":[{"role":"user","content":"hi"}]}'


def request(
    line: bytes = b"GET /healthz HTTP/1.1", headers: bytes = b"", body: bytes = b"", *, host: bytes = b"x"
) -> bytes:
    """One that ends its connection; `headers` are whole lines."""
    return line + b"\r\nHost: " + host + b"\r\nConnection: close\r\n" + headers + b"\r\n" + body


def get(target: bytes, headers: bytes = b"") -> bytes:
    return request(b"GET " + target + b" HTTP/1.1", headers)


def post(body: bytes = CHAT, headers: bytes = JSON, target: bytes = b"/v1/chat/completions") -> bytes:
    """With its Content-Length."""
    return framed(b"Content-Length: %d\r\n" % len(body) + headers, body, target)


def framed(headers: bytes, body: bytes, target: bytes = b"/v1/chat/completions") -> bytes:
    """A POST whose framing is in its `headers`."""
    return request(b"POST " + target + b" HTTP/1.1", headers, body)


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0")
"""Of answers: that of the request, even where that is refused for it."""


class Reply(NamedTuple):
    """One answer. `headers` have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> Any:
        """The error of OpenAI's shape."""
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}, self
        assert error["message"].startswith("cannot "), self
        return error


def replies(raw: bytes, method: str = "") -> list[Reply]:
    """All answers on a connection.

    Raises:
        ValueError: they are not whole, or there is something else.
    """
    found = []
    while raw:
        head, separator, raw = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status = first.split(" ")[:2]
        if not separator or version not in VERSIONS or not status.isdecimal():
            raise ValueError(f"not an answer: {head[:200]!r}")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name.strip() != name or not value.isprintable():
                raise ValueError(f"not a header: {line!r}")
            headers[name.lower()] = value.strip()
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            body, raw = _dechunk(raw)
        elif version == "HTTP/1.0" and "content-length" not in headers:
            body, raw = raw, b""
        elif int(status) >= 200 and int(status) not in (204, 304) and method != "HEAD":
            size = int(headers["content-length"])
            body, raw = raw[:size], raw[size:]
            if len(body) != size:
                raise ValueError(f"{len(body)} of {size} bytes")
        if int(status) >= 200:
            found.append(Reply(int(status), headers, body))
    return found


def _dechunk(raw: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size_line, _, raw = raw.partition(b"\r\n")
        size = int(size_line, 16)
        if raw[size : size + 2] != b"\r\n":
            raise ValueError("a chunk is not whole")
        body, raw = body + raw[:size], raw[size + 2 :]
        if size == 0:
            return body, raw


@dataclass
class NotingEngine:
    """Answers everything with {}, and remembers every byte that it got; a script of conftest's `build`."""

    seen: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Head and body of each request."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.seen.append((head, await self._body(head.lower(), reader)))
                status = b"404 Not Found" if b"\r\nupgrade:" in head.lower() else b"200 OK"
                writer.write(
                    b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
                )
                writer.write(b"" if head.startswith(b"HEAD") else b"{}")
        writer.close()

    async def _body(self, head: bytes, reader: asyncio.StreamReader) -> bytes:
        if b"\r\ntransfer-encoding: chunked\r\n" not in head:
            size = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            return await reader.readexactly(int(size or 0))
        body = b""
        while size := (await reader.readline()).strip():
            body += await reader.readexactly(int(size, 16))
            await reader.readline()
        return body
