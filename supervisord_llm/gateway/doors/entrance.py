"""Where connections come in: as many as there are open files for, the others wait in the kernel.

asyncio's own server, once out of open files, logs a traceback for each place in its backlog, again every
second. And clients could take all of them, so that neither the control socket nor an engine had one left.
"""

import asyncio
import logging
import resource
import socket

from aiohttp import web

from supervisord_llm.gateway.doors.tls import Certificate

BACKLOG = 1024
BATCH = 64
"""Connections taken between two turns of the loop."""

PAUSE_S = 0.1
TELL_EVERY_S = 60.0
HANDSHAKE_S = 10.0
CONNECT_S = 1.0
"""What is being taken in when we stop listening: how long that may last."""

KEPT_FILES = 64
"""Open files that are not for clients: ours, and those of starts, engines and the control socket."""

LEAST_CONNECTIONS = 8
WAY_OUT = "raise LimitNOFILE= in the unit, or `ulimit -n`"

log = logging.getLogger("llm_supervisor.http")


def most_connections() -> int:
    """How many clients may be connected. A quarter of the open files is for connections to engines."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 1 << 20
    return max(LEAST_CONNECTIONS, soft * 3 // 4 - KEPT_FILES)


class Entrance(web.BaseSite):
    """A listening socket in front of a runner's server. It is ours from now on, and closed by `stop`."""

    def __init__(
        self,
        runner: web.ServerRunner,
        listening: socket.socket,
        *,
        most: int | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        """`most`: how many connections the server may have before those that come wait."""
        super().__init__(runner)
        self._certificate = certificate
        self._listening = listening
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._entering: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._told_at: float | None = None

    @property
    def name(self) -> str:
        """What it listens on."""
        return str(self._listening.getsockname())

    async def start(self) -> None:
        await super().start()
        self._listening.setblocking(False)
        self._listening.listen(BACKLOG)
        self._resume()

    async def stop(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
        if self._entering:
            _, late = await asyncio.wait(self._entering, timeout=CONNECT_S)
            for task in late:
                task.cancel()
        await super().stop()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening, self._take_in)

    def _wait(self, why: str) -> None:
        """Look again in a moment. Who is not taken in keeps the socket readable, so that is not asked."""
        self._loop.remove_reader(self._listening)
        self._pause = self._loop.call_later(PAUSE_S, self._resume)
        now = self._loop.time()
        if self._told_at is None or now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            log.warning("cannot take more connections on %s for the moment: %s; %s", self.name, why, WAY_OUT)

    def _take_in(self) -> None:
        room = BATCH if self._most is None else min(BATCH, self._most - self._count())
        if room <= 0:
            self._wait(f"there are {self._count()}")
            return
        for _ in range(room):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._wait(error.strerror or "")
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._enter(connection), name=f"connection to {self.name}")
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)

    def _count(self) -> int:
        server = self._runner.server
        return len(self._entering) + (0 if server is None else len(server.connections))

    async def _enter(self, connection: socket.socket) -> None:
        """From the socket to the server's protocol; a handshake of TLS may fail."""
        assert self._runner.server is not None
        try:
            await self._loop.connect_accepted_socket(
                self._runner.server,
                connection,
                ssl=None if self._certificate is None else self._certificate.context,
                ssl_handshake_timeout=None if self._certificate is None else HANDSHAKE_S,
            )
        except OSError as error:  # SSLError, too: of who speaks plain HTTP, or probes
            connection.close()
            log.debug("cannot take in a connection: %s", error)
        except asyncio.CancelledError:
            connection.close()
            raise
