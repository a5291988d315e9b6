"""The listeners: the public ones, ours or inherited from systemd, and the control socket."""

import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from supervisord_llm.config.model import Address
from supervisord_llm.engines.probe import is_answering
from supervisord_llm.errors import SupervisorError
from supervisord_llm.gateway.app import Gateway, build_control_app, build_public_app

BACKLOG = 1024


class Doors:
    """Bound and serving from `open` on."""

    def __init__(self, gateway: Gateway, control: Path, inherited: Sequence[socket.socket] = ()) -> None:
        self._inherited = inherited
        self._control_path = control
        self._public = web.ServerRunner(build_public_app(gateway))
        self._control = web.ServerRunner(build_control_app(gateway))

    async def open(self, addresses: Sequence[Address]) -> None:
        """Listen on `addresses`, or where systemd does for us.

        Raises:
            SupervisorError: one of them cannot be had; close() is still due.
        """
        await self._public.setup()
        await self._control.setup()
        for listener in self._inherited:
            await web.SockSite(self._public, listener, backlog=BACKLOG).start()
        for address in () if self._inherited else addresses:
            await _bind(self._public, address)
        await _bind(self._control, Address(path=self._control_path))
        self._control_path.chmod(0o660)

    async def shut(self) -> None:
        """Take no new connections; those that are open go on.

        Who knocks at a socket of systemd waits there for our successor, at one of ours is refused.
        """
        for site in tuple(self._public.sites):
            await site.stop()

    async def close(self) -> None:
        """End what is still open."""
        await self._public.cleanup()
        await self._control.cleanup()
        self._control_path.unlink(missing_ok=True)


async def _bind(runner: web.ServerRunner, address: Address) -> None:
    site: web.BaseSite
    try:
        if address.path is None:
            site = web.TCPSite(runner, address.host, address.port, backlog=BACKLOG)
        else:
            if is_answering(address.path):
                raise SupervisorError(
                    f"cannot listen on {address}: another process answers there; stop it, or change the path"
                )
            with suppress(FileNotFoundError):
                if stat.S_ISSOCK(address.path.stat().st_mode):  # of a daemon that is gone
                    address.path.unlink()
            site = web.UnixSite(runner, address.path, backlog=BACKLOG)
        await site.start()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise SupervisorError(
            f"cannot listen on {address}: {why}; stop what uses it (`ss -ltnp` shows it), "
            f"or change server.listen"
        ) from error
