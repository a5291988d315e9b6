"""Which site a request is for, and what its upstream gets to see of it. Pure.

A site is found by the Host header, the path or both. Hosts that no site has, and paths that no site has on a
host, are the API's as ever. The path of `upstream` takes the place of the site's `path`, so one rule strips a
prefix ("http://grafana:3000") and keeps it ("http://grafana:3000/grafana").
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import unquote

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from supervisord_llm.config.model import UNIX, Network, Site
from supervisord_llm.errors import Refused
from supervisord_llm.gateway.doors.address import forwarded_for, is_trusted
from supervisord_llm.gateway.hops import HOP_BY_HOP, end_to_end

NOT_FOR_SITES = HOP_BY_HOP | {"expect", "host"}
CLAIMS = frozenset({
    "cf-connecting-ip", "forwarded", "true-client-ip", "x-forwarded-for", "x-forwarded-host",
    "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-proto", "x-forwarded-server", "x-forwarded-ssl",
    "x-real-ip",
})  # fmt: skip
"""What only a proxy may say of a client; from anybody else it ends here."""

_SLASHES = re.compile(r"[/\\]")


@dataclass(frozen=True, slots=True)
class Visit:
    """One request for a site, as its client means it."""

    client: str
    """Address."""
    scheme: str
    """ "https" where the client came by TLS, to us or to a trusted proxy."""
    host: str
    """As written in the request that the client sent."""
    forwarded: str
    """The addresses it came by, for X-Forwarded-For."""
    is_by_proxy: bool
    """A trusted one, whose claims are believed."""


@dataclass(frozen=True, slots=True)
class Sites:
    """The sites by host, the one with the longest path first; those of every host under ""."""

    by_host: Mapping[str, tuple[Site, ...]]

    def find(self, host: str, path: str) -> Site | None:
        """The site of a Host header and a raw path; None: the API's."""
        for site in (*self.by_host.get(_name(host), ()), *self.by_host.get("", ())):
            if site.path is None or path == site.path or path.startswith(f"{site.path}/"):
                return site
        return None


def sites(configured: tuple[Site, ...]) -> Sites | None:
    """The table; None where there are no sites."""
    table: dict[str, list[Site]] = {}
    for site in sorted(configured, key=lambda site: -len(site.path or "")):
        for host in site.hosts or ("",):
            table.setdefault(host, []).append(site)
    if not table:
        return None
    return Sites(MappingProxyType({host: tuple(found) for host, found in table.items()}))


def visit(
    peer: str, client: str, headers: CIMultiDictProxy[str], trusted: tuple[Network, ...], *, is_tls: bool
) -> Visit:
    """What is known of who asks. `peer` is the connection's address, `client` the one behind it."""
    by_proxy = is_trusted(peer, trusted)
    scheme, host = "https" if is_tls else "http", headers.get("Host", "")
    hops = [] if peer == UNIX else [peer]
    if by_proxy:
        claimed = headers.get("X-Forwarded-Proto", scheme).partition(",")[0].strip().lower()
        scheme = {"wss": "https", "ws": "http"}.get(claimed, claimed)
        host = headers.get("X-Forwarded-Host", host).partition(",")[0].strip()
        hops = [*forwarded_for(headers), *hops]
    scheme = scheme if scheme in ("http", "https") else "http"
    return Visit(client, scheme, host, ", ".join(hops), by_proxy)


def redirect(site: Site, path: str, query: str) -> str | None:
    """Where a browser must go first: without the slash at the end, relative links would lead astray."""
    if path != site.path or _upstream_path(site) == site.path:
        return None
    return f"{path.rpartition('/')[2]}/" + (f"?{query}" if query else "")


def target(site: Site, path: str, query: str) -> URL:
    """The URL at the upstream.

    Raises:
        Refused: `not_found`, dot segments, which would lead out of the site's part of the upstream.
    """
    decoded = unquote(unquote(path))  # as often as servers do
    if any(segment.partition(";")[0] in (".", "..") for segment in _SLASHES.split(decoded)):
        raise Refused("not_found", "cannot find a path with dot segments: write it without them")
    rest = path.removeprefix(site.path or "")
    return URL(site.upstream + (rest or "/") + (f"?{query}" if query else ""), encoded=True)


def request_headers(site: Site, came: Visit, headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """What the upstream gets: all that the client sent, its login included, and where it came from."""
    kept = CIMultiDict(
        (name, value)
        for name, value in end_to_end(headers, NOT_FOR_SITES)
        if came.is_by_proxy or name.lower() not in CLAIMS
    )
    kept["Host"] = headers.get("Host", "")
    kept["X-Forwarded-Proto"] = came.scheme
    kept["X-Forwarded-Host"] = came.host
    if came.forwarded:
        kept["X-Forwarded-For"] = came.forwarded
    if came.client != UNIX:
        kept["X-Real-IP"] = came.client
    if site.path is not None and _upstream_path(site) != site.path:
        kept["X-Forwarded-Prefix"] = site.path
    return kept


def response_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """What the client gets of the upstream's answer: all but the framing of one connection."""
    return CIMultiDict(end_to_end(headers))


def _name(host: str) -> str:
    """A Host header without its port and final dot, in lower case."""
    if not host.endswith("]"):
        name, colon, port = host.rpartition(":")
        host = name if colon and (port.isdigit() or not port) else host
    return host.lower().removesuffix(".")


def _upstream_path(site: Site) -> str:
    return "/" + site.upstream.split("/", 3)[3] if site.upstream.count("/") > 2 else ""
