"""Headers that concern one connection alone, and so never pass through a proxy. Pure."""

from collections.abc import Iterable, Iterator

from multidict import CIMultiDictProxy

HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
    "trailer", "trailers", "transfer-encoding", "upgrade",
})  # fmt: skip


def end_to_end(
    headers: CIMultiDictProxy[str], dropped: Iterable[str] = HOP_BY_HOP, family: str | None = None
) -> Iterator[tuple[str, str]]:
    """The headers, but for those `dropped`, of a `family` by their beginning, or named by Connection."""
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    for name, value in headers.items():
        lower = name.lower()
        if lower in dropped or lower in named or (family is not None and lower.startswith(family)):
            continue
        yield name, value
