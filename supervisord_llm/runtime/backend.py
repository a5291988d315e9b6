"""Where an engine serves HTTP, as the gateway reaches it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Backend:
    """By a unix socket, or at an address: a port of this host, or an API elsewhere."""

    socket: Path | None = None
    origin: str = "http://localhost"
    """Scheme, host and port."""
    base: str = "/v1"
    """What stands there for /v1."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What only it may see: the key of an API elsewhere."""

    def url(self, path: str) -> str:
        """The address of one of an engine's paths ("/v1/chat/completions", "/tokenize")."""
        return self.origin + (self.base + path.removeprefix("/v1") if path.startswith("/v1/") else path)
