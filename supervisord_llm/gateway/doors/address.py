"""Who is at the other end: the connection's peer, or the client that a trusted proxy names. Pure.

A header that names the client is nothing but a claim, unless a proxy of ours wrote it; and of what that wrote
only what it saw itself counts: the rightmost address that is no proxy of ours.
"""

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache

from multidict import CIMultiDictProxy

from supervisord_llm.config.model import UNIX, Network

_WITH_PORT = re.compile(r"\[([^\]]+)\](?::[0-9]+)?|([0-9.]+):[0-9]+")
"""How some proxies write an entry of X-Forwarded-For."""


def peer_address(remote: str | None) -> str:
    """The address of a connection's peer, as aiohttp tells it; "unix" for a unix socket."""
    return (_plain(remote) or remote) if remote else UNIX


def client_address(peer: str, headers: CIMultiDictProxy[str], trusted: tuple[Network, ...]) -> str:
    """The address of who asks. `peer` is the connection's."""
    if not trusted or not is_trusted(peer, trusted):
        return peer
    client = peer
    for claim in reversed(forwarded_for(headers)):
        address = _plain(claim)
        if address is None:  # "unknown", or nonsense: whoever passed it on is the last one we know
            return client
        client = address
        if not is_trusted(client, trusted):
            return client
    return client


def forwarded_for(headers: CIMultiDictProxy[str]) -> Sequence[str]:
    """The entries of X-Forwarded-For, the nearest hop last."""
    claims = ",".join(headers.getall("X-Forwarded-For", ())).split(",")
    return [claim.strip() for claim in claims if claim.strip()]


@lru_cache(maxsize=1024)
def is_trusted(address: str, trusted: tuple[Network, ...]) -> bool:
    """Whether the address is one of the proxies."""
    if address == UNIX:
        return UNIX in trusted
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in trusted if network != UNIX)


@lru_cache(maxsize=1024)
def _plain(written: str) -> str | None:
    """One spelling for each address, without port and brackets; an IPv4 one as such. None: it is none."""
    match = _WITH_PORT.fullmatch(written)
    try:
        found = ipaddress.ip_address(match[1] or match[2] if match else written)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return None if found.scope_id else str(found.ipv4_mapped or found)  # a scope is any text at all
