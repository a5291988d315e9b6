"""The listening sockets. They outlive what serves at them, and can be passed on to the next program."""

import asyncio
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from supervisord_llm.config.model import Address
from supervisord_llm.engines.probe import is_answering
from supervisord_llm.errors import SupervisorError

BACKLOG = 1024

FOR_ALL = 0o666
"""As at a port: a key decides who may, not the user. A proxy in front has one of its own."""


class Listeners:
    """Who connects to one of them waits in the kernel's queue until somebody serves there."""

    def __init__(
        self,
        systemd: Sequence[socket.socket] = (),
        passed: Mapping[str, tuple[socket.socket, ...]] | None = None,
    ) -> None:
        """`passed`: those of the program whose place this one took, by the address in its configuration."""
        self.systemd = tuple(systemd)
        """Where systemd listens for us; these count instead of `server.listen`."""
        self._ours = dict(passed or {})

    @property
    def ours(self) -> Mapping[str, tuple[socket.socket, ...]]:
        """Those that are not systemd's, by the address in the configuration."""
        return self._ours

    def in_force(self, addresses: Sequence[Address]) -> tuple[Address, ...]:
        """Where clients come in if the configuration says `addresses`."""
        return tuple(map(_address, self.systemd)) or tuple(addresses)

    async def at(self, address: Address, mode: int = FOR_ALL) -> tuple[socket.socket, ...]:
        """Those at `address`: several where a name has several addresses. Bound now if they were not before.

        `mode`: who may connect, where it is a path.

        Raises:
            SupervisorError: it cannot be had.
        """
        if str(address) not in self._ours:
            try:
                self._ours[str(address)] = await _listen(address, mode)
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else str(error)
                raise SupervisorError(
                    f"cannot listen on {address}: {why}; stop what uses it (`ss -ltnp` shows it), "
                    f"or change server.listen"
                ) from error
        return self._ours[str(address)]

    def close_all_but(self, addresses: Sequence[Address]) -> None:
        """Refuse who comes elsewhere. What is systemd's stays open there."""
        for address in set(self._ours) - set(map(str, addresses)):
            for each in self._ours.pop(address):
                if each.family == socket.AF_UNIX:
                    Path(each.getsockname()).unlink(missing_ok=True)
                each.close()


async def _listen(address: Address, mode: int) -> tuple[socket.socket, ...]:
    """One socket, or one for each address that the host's name has.

    Raises:
        OSError: it is taken, or there is no such host.
    """
    if address.path is not None:
        return (_listen_at_path(address, address.path, mode),)
    found = await asyncio.get_running_loop().getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return tuple(
        socket.create_server(where, family=family, backlog=BACKLOG) for family, _, _, _, where in found
    )


def _listen_at_path(address: Address, path: Path, mode: int) -> socket.socket:
    if is_answering(path):
        raise SupervisorError(
            f"cannot listen on {address}: another process answers there; stop it, or change the path"
        )
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise SupervisorError(
                f"cannot listen on {address}: something that is no socket is there; change the path"
            )
        path.unlink()  # of a daemon that is gone
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(str(path))
        path.chmod(mode)  # before anybody can connect
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _address(listening: socket.socket) -> Address:
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return Address(path=Path(os.fsdecode(name)))
    return Address(host=name[0], port=name[1])
