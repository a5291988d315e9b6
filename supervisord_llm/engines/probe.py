"""Notices that an engine is ready: its health is asked every 20 ms, over its unix socket or its port."""

import asyncio
import socket
from pathlib import Path
from urllib.parse import urlsplit

from supervisord_llm.runtime.ports import Backend

POLL_S = 0.02
UNHEALTHY_POLL_S = 0.2
"""While it answers that it is not ready: a server may write a line for each time it is asked."""

ANSWER_S = 5.0
MAX_HEAD = 8192
HEALTH = "/health"
REQUEST = "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"


async def wait_ready(backend: Backend, path: str = HEALTH) -> None:
    """Return once GET `path` is answered with a status of 200 to 299. Never raises, never gives up."""
    while not is_good(status := await ask_status(backend, path)):
        pause_s = UNHEALTHY_POLL_S if status else POLL_S
        await asyncio.sleep(pause_s)  # nothing in the kernel tells that somebody listens


def is_good(status: bytes) -> bool:
    return len(status) == 3 and status.startswith(b"2")


async def ask_status(backend: Backend, path: str = HEALTH) -> bytes:
    """The status that it answers, as digits; empty where it does not answer.

    While nobody listens this costs a few system calls, which is why it may be asked so often.
    """
    address = urlsplit(backend.origin)
    request = REQUEST.format(path=path, host=address.netloc).encode()
    family = socket.AF_INET if backend.socket is None else socket.AF_UNIX
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            async with asyncio.timeout(ANSWER_S):
                if backend.socket is None:
                    where = (address.hostname, address.port)
                    await asyncio.get_running_loop().sock_connect(connection, where)
                else:  # a unix connect never waits: ENOENT, ECONNREFUSED, EAGAIN or done
                    connection.connect(str(backend.socket))
                return await status_line(connection, request)
    except (OSError, TimeoutError):
        return b""


async def status_line(connection: socket.socket, request: bytes) -> bytes:
    """The status code that the engine answers, as digits; empty when it hangs up."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, request)
    head = b""
    while b"\r\n" not in head:
        piece = await loop.sock_recv(connection, 4096)
        if not piece or len(head) > MAX_HEAD:
            return b""
        head += piece
    words = head.partition(b"\r\n")[0].split(b" ", 2)
    return words[1] if words[0].startswith(b"HTTP/1.") and len(words) > 1 else b""


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
