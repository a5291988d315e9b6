"""Where the gateway serves: the public listeners, ours or systemd's, and the control socket."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from supervisord_llm.config.model import Address, Tls
from supervisord_llm.gateway.app import Gateway, build_control_app, build_public_app
from supervisord_llm.gateway.doors.entrance import Entrance, most_connections
from supervisord_llm.gateway.doors.listeners import Listeners
from supervisord_llm.gateway.doors.tls import LOOK_EVERY_S, Certificate

FOR_GROUP = 0o660
"""Who may connect to the control socket, and is an admin there."""


class Doors:
    """Serving from `open` on. The listeners are the caller's, and stay open when this is closed."""

    def __init__(self, gateway: Gateway, control: Path, listeners: Listeners) -> None:
        self._listeners = listeners
        self._control_address = Address(path=control)
        self._public = web.ServerRunner(build_public_app(gateway))
        self._control = web.ServerRunner(build_control_app(gateway))
        self._certificate: Certificate | None = None

    async def open(self, addresses: Sequence[Address], tls: Tls | None = None) -> None:
        """Serve at `addresses`, or where systemd listens for us; with `tls` at those that have a port.

        Raises:
            SupervisorError: one of them, or the certificate, cannot be had; close() is still due.
        """
        self._certificate = None if tls is None else Certificate(tls)
        await self._public.setup()
        await self._control.setup()
        if self._listeners.systemd:
            addresses = ()
        self._listeners.close_all_but((*addresses, self._control_address))
        for listening in self._listeners.systemd:
            await self._admit(listening)
        for address in addresses:
            for listening in await self._listeners.at(address):
                await self._admit(listening)
        for listening in await self._listeners.at(self._control_address, FOR_GROUP):
            await Entrance(self._control, listening.dup()).start()

    async def _admit(self, listening: socket.socket) -> None:
        certificate = None if listening.family == socket.AF_UNIX else self._certificate
        most = most_connections()
        await Entrance(self._public, listening.dup(), most=most, certificate=certificate).start()

    def renew(self, tls: Tls | None) -> None:
        """Read the certificate of a reloaded configuration. Whether there is TLS at all stays as it is."""
        if self._certificate is not None and tls is not None:
            self._certificate.renew(tls)

    async def watch(self) -> None:
        """Read the certificate again whenever its files change."""
        while self._certificate is not None:
            await asyncio.sleep(LOOK_EVERY_S)
            self._certificate.look()

    async def shut(self, *, refuse: bool) -> None:
        """Take no new connections; those that are open go on.

        Who knocks waits for our successor, at a socket of systemd in any case, at one of ours unless it is
        told to `refuse`.
        """
        for site in tuple(self._public.sites):
            await site.stop()
        if refuse:
            self._listeners.close_all_but((self._control_address,))

    async def close(self) -> None:
        """End what is still open."""
        await self._public.cleanup()
        await self._control.cleanup()
