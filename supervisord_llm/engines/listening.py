"""Who listens on a TCP port of this host: a free one for an engine, and whether it is the engine that has it.

A socket in our own directory can be nobody else's. A port can: an orphan or a stranger may have it, and would
be sent prompts. So a port counts as the engine's only if every socket that a connection to 127.0.0.1 could
reach there belongs to a process of its tree.
"""

import asyncio
import random
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from supervisord_llm.engines.tree import Tree
from supervisord_llm.errors import LaunchError

LOOPBACK = "127.0.0.1"
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LISTENS = "0A"
"""Of a socket's state in them."""

LOOK_S = 5.0
SPAN = 8000
"""Ports below the ephemeral ones: those any connection of this host may take before the engine does."""

REACHED_BY = (
    frozenset({LOOPBACK, f"::ffff:{LOOPBACK}"}),
    frozenset({"0.0.0.0", "::ffff:0.0.0.0"}),  # noqa: S104 - what others listen on
    frozenset({"::"}),
)
"""Addresses at which a connection to 127.0.0.1 is accepted. The kernel prefers those that come first."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening socket; `pid` None where its owner is hidden from us."""

    address: str
    port: int
    pid: int | None

    def __str__(self) -> str:
        if self.pid is None:
            return "a process of another user"
        try:
            return f"{psutil.Process(self.pid).name()}, pid {self.pid},"
        except psutil.Error:
            return f"pid {self.pid}"


@dataclass(frozen=True, slots=True)
class Listening:
    """What was found on an engine's port."""

    own: tuple[Listener, ...] = ()
    strangers: tuple[Listener, ...] = ()

    @property
    def why_not(self) -> str:
        """Why nothing may be sent there; "" where it is the engine's."""
        if self.strangers:
            return f"{self.strangers[0]} listens there, which is no process of this engine"
        return "" if self.own else "no process of this engine listens there"

    @property
    def exposed(self) -> tuple[str, ...]:
        """Addresses of the engine's own that others than this host may reach."""
        return tuple(sorted({each.address for each in self.own if each.address not in REACHED_BY[0]}))


def look(port: int, tree: Tree) -> Listening:
    """Who would accept a connection to `port`. Blocks for some milliseconds: it reads all of /proc.

    Raises:
        OSError: it cannot be told; ask again.
    """
    there = listeners(port)
    by_preference = ([each for each in there if each.address in addresses] for addresses in REACHED_BY)
    nearest = next(filter(None, by_preference), [])
    members = {process.pid for process in tree.members()}
    own = tuple(each for each in nearest if each.pid in members)
    return Listening(own, tuple(each for each in nearest if each.pid not in members))


async def looked(port: int, tree: Tree) -> Listening:
    """The same, as soon as it can be told: we may be out of open files."""
    while True:
        try:
            return await asyncio.to_thread(look, port, tree)
        except OSError:
            await asyncio.sleep(LOOK_S)


async def lost(port: int, tree: Tree) -> Listening:
    """Return what is found on an engine's port once it is the engine's no more, seen twice in a row.

    As long as the sockets are the same, one small file tells so.
    """
    known: frozenset[int] | None = None
    was_lost = False
    while True:
        now = await asyncio.to_thread(sockets, port)
        if now is None or now != known:
            found = await looked(port, tree)
            if found.strangers or (found.why_not and was_lost):
                return found
            known, was_lost = (None if found.why_not else now), bool(found.why_not)
        await asyncio.sleep(LOOK_S)


def sockets(port: int) -> frozenset[int] | None:
    """The inodes of all that listen on `port`; None where it cannot be told. Blocks for about 1 ms."""
    found: set[int] = set()
    for table in TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except FileNotFoundError:  # without IPv6
            continue
        except OSError:
            return None
        for words in map(str.split, lines):
            if words[3] == LISTENS and int(words[1].rpartition(":")[2], 16) == port:
                found.add(int(words[9]))
    return frozenset(found)


def listeners(port: int) -> list[Listener]:
    """Every socket that listens on `port`, on whatever address."""
    return [
        Listener(each.laddr.ip, each.laddr.port, each.pid)
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
    ]


def free_port(taken: Collection[int] = ()) -> int:
    """A port that nobody has on any address, and none of `taken`: engines that load do not listen yet.

    Raises:
        LaunchError: there is none.
    """
    end = ephemeral_begin()
    for port in random.sample(range(max(1024, end - SPAN), end), SPAN // 2):
        if port not in taken and is_free(port):
            return port
    raise LaunchError("cannot find a free TCP port: all that were tried are taken; see `ss -ltnp`")


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def ephemeral_begin() -> int:
    """The first port that the kernel gives to outgoing connections."""
    try:
        return max(int(EPHEMERAL.read_text().split()[0]), 1024 + SPAN)
    except (OSError, ValueError, IndexError):
        return 32768
