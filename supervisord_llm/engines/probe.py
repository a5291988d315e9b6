"""Notices that an engine is ready: /health over its unix socket, asked every 20 ms."""

import asyncio
import socket
from pathlib import Path

POLL_S = 0.02
ANSWER_S = 5.0
REQUEST = b"GET /health HTTP/1.1\r\nhost: engine\r\nconnection: close\r\n\r\n"


async def wait_ready(path: Path) -> None:
    """Return once /health on the unix socket `path` says 200. Never raises, never gives up."""
    while not await is_healthy(path):  # noqa: ASYNC110 - nothing in the kernel tells that somebody listens
        await asyncio.sleep(POLL_S)


async def is_healthy(path: Path) -> bool:
    """Ask once. While nobody listens this costs two system calls, which is why it may be asked so often."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            connection.connect(str(path))  # a unix connect never waits: ENOENT, ECONNREFUSED, EAGAIN or done
            async with asyncio.timeout(ANSWER_S):
                return await status_line(connection) == b"200"
    except (OSError, TimeoutError):
        return False


async def status_line(connection: socket.socket) -> bytes:
    """The status code that the engine answers, as digits; empty when it hangs up."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, REQUEST)
    head = b""
    while b"\r\n" not in head:
        piece = await loop.sock_recv(connection, 4096)
        if not piece:
            return b""
        head += piece
    return head.split(b" ", 2)[1] if head.startswith(b"HTTP/1.") else b""


def is_answering(path: Path) -> bool:
    """Whether somebody accepts connections on the unix socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(str(path))
        except BlockingIOError:  # its backlog is full, so it is somebody
            return True
        except OSError:
            return False
        return True
