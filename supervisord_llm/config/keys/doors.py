"""What the door is to browsers, proxies and other web services: [cors], [sites.NAME], server.tls."""

import ipaddress
import re

from supervisord_llm.config.kinds import Key, ListOf, Table, Unreadable, Value
from supervisord_llm.config.model import UNIX, Network
from supervisord_llm.config.values import PATH, SIZE, text

_LABELS = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*"
_V6 = r"\[[0-9a-f:.]+\]"
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://(?:(?:\*\.)?{_LABELS}|{_V6})(?::(?:[0-9]{{1,5}}|\*))?")
_UPSTREAM = re.compile(rf"(?i:https?://(?:{_LABELS}|{_V6})(?::[0-9]{{1,5}})?)((?:/[A-Za-z0-9._~@+=-]+)*)/?")
_DEFAULT_PORTS = (("https://", ":443"), ("http://", ":80"))


def read_origin(raw: object) -> str:
    """As browsers send it: lower case, without a scheme's own port."""
    if raw == "*":
        return "*"
    origin = raw.lower() if isinstance(raw, str) else ""
    if not _ORIGIN.fullmatch(origin):
        scheme, _, rest = origin.partition("://")
        host, slash, _ = rest.partition("/")
        raise Unreadable("an origin has no path", f'write "{scheme}://{host}"') if slash else Unreadable
    for scheme, port in _DEFAULT_PORTS:
        if origin.startswith(scheme):
            origin = origin.removesuffix(port)
    return origin


def read_network(raw: object) -> Network:
    """An address is a network of one."""
    if raw == UNIX:
        return UNIX
    try:
        return ipaddress.ip_network(raw if isinstance(raw, str) else "", strict=False)
    except ValueError:
        raise Unreadable from None


def _read_host(raw: object) -> str:
    host = raw.lower().removesuffix(".") if isinstance(raw, str) else ""
    if not re.fullmatch(rf"{_LABELS}|{_V6}", host):
        raise Unreadable("a port plays no part in it" if re.search(r":[0-9]+$", host) else "")
    return host


def _read_upstream(raw: object) -> str:
    if not isinstance(raw, str) or not _UPSTREAM.fullmatch(raw):
        raise Unreadable
    return raw.rstrip("/")


ORIGIN = Value(
    accepts='an origin such as "https://example.org", "https://*.example.org", "http://localhost:*" or "*"',
    schema={"type": "string", "pattern": r"^(\*|[A-Za-z][A-Za-z0-9+.-]*://[^/\s]+)$"},
    read=read_origin,
)
NETWORK = Value(
    accepts='an address such as "127.0.0.1", a network such as "10.0.0.0/8", or "unix"',
    schema={"type": "string", "pattern": r"^(unix|[0-9A-Fa-f:.]+(/[0-9]{1,3})?)$"},
    read=read_network,
)
HOST = Value(
    accepts='a host name such as "chat.lan"',
    schema={"type": "string", "pattern": r"^([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])$"},
    read=_read_host,
)
UPSTREAM = Value(
    accepts='a URL such as "http://127.0.0.1:8080"',
    schema={"type": "string", "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s?#@]+$"},
    read=_read_upstream,
)

TLS = Table(
    doc="HTTPS on every address with a port; `unix:` ones stay plain. Renewed files are read in a minute.",
    keys=(
        Key(name="cert", kind=PATH, required=True, doc="The certificate and its chain, as PEM."),
        Key(name="key", kind=PATH, required=True, doc="Its private key, as PEM without a passphrase."),
    ),
)
CORS = Table(
    doc="Web pages that may call the API from a browser; they need a key, and `/admin/` is not for them.",
    keys=(
        Key(
            name="allow_origins",
            kind=ListOf(ORIGIN),
            default=[],
            doc='Their origins; a `*` stands for subdomains or for any port, `"*"` alone for every page.',
        ),
    ),
)
SITE = Table(
    doc="Another web service behind the same door, with its own login: keys of clients play no part. "
    "`hosts`, `path` or both are needed.",
    keys=(
        Key(name="hosts", kind=ListOf(HOST), default=[], doc="The host names that lead to it, without port."),
        Key(
            name="path",
            kind=text('a path such as "/grafana"', r"(?:/[A-Za-z0-9_~@+=-][A-Za-z0-9._~@+=-]*)+"),
            doc="The path that leads to it; other paths of the host stay what they are. "
            "The path of `upstream` takes its place.",
        ),
        Key(name="upstream", kind=UPSTREAM, required=True, doc="Where it listens."),
        Key(name="max_body", kind=SIZE, doc="The largest request body.", default_doc="no limit"),
    ),
)
