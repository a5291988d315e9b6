"""Headers -> caller. Keys are read from headers only, compared in constant time, and go no further."""

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import unquote_plus

from multidict import CIMultiDictProxy

from supervisord_llm.errors import Refused
from supervisord_llm.gateway.websocket import is_upgrade, offered

KEY_PROTOCOL = "openai-insecure-api-key."
"""Begins the subprotocol in which a page sends its key with a websocket, as OpenAI has it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the client whose key it is, or nobody in particular."""

    name: str
    """The request's "source"."""
    models: frozenset[str]
    """Models and routes (not aliases) it may use. A route's members only through it, unless they are here."""
    priority: int = 0
    admin: bool = False
    while_waiting: frozenset[str] = frozenset()
    """What it wants to get while a model starts."""
    endpoints: tuple[str, ...] = ("*",)
    """Patterns over the endpoints of engines that it may use."""


class WrongKey(Refused):
    """A key came that nobody has. Without any key it is Refused alone: that is no attempt to guess one."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """The clients by the SHA-256 of their key. `anonymous` is who may come without one, or None."""

    callers: tuple[tuple[bytes, Caller], ...]
    anonymous: Caller | None

    def authenticate(self, headers: CIMultiDictProxy[str]) -> Caller:
        """The caller whose key is among the headers.

        Raises:
            Refused: `invalid_api_key`, when no key fits and one is required; WrongKey where one was sent.
        """
        found: Caller | None = None
        refusal: type[Refused] = Refused
        for key in _keys(headers):
            refusal = WrongKey
            found = found or self._owner(key)
        if found is None:
            found = self.anonymous
        if found is None:
            raise refusal(
                "invalid_api_key",
                "cannot let this request in: it carries no valid API key; "
                "send one in the header `Authorization` after the word `Bearer`",
            )
        return found

    def without_keys(self, query: str) -> str:
        """A query without the keys of clients: nobody reads them there, but engines log it."""
        kept = (part for part in query.split("&") if not any(map(self._owner, _words(part))))
        return "&".join(kept) if query else ""

    def _owner(self, key: str) -> Caller | None:
        """The caller whose key it is."""
        found: Caller | None = None
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        for known, caller in self.callers:  # all of them, whichever fits
            if hmac.compare_digest(digest, known) and found is None:
                found = caller
        return found


def _words(part: str) -> Iterator[str]:
    """Of a query's part, as the client meant them."""
    name, _, value = part.partition("=")
    return map(unquote_plus, (name, value, part))


def _keys(headers: CIMultiDictProxy[str]) -> Iterator[str]:
    """The keys sent. A header that comes twice is no key: proxies disagree on which one counts."""
    bearer = headers.getall("Authorization", [])
    if len(bearer) == 1:
        scheme, _, key = bearer[0].partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            yield key.strip()
    for name in ("x-api-key", "api-key"):
        values = headers.getall(name, [])
        if len(values) == 1 and values[0].strip():
            yield values[0].strip()
    if is_upgrade(headers):
        for protocol in offered(headers):
            if protocol.startswith(KEY_PROTOCOL):
                yield protocol.removeprefix(KEY_PROTOCOL)


def check_model(caller: Caller, model: str) -> None:
    """Raise Refused `model_forbidden` unless the caller may use the model."""
    if model not in caller.models:
        allowed = ", ".join(sorted(caller.models)) or "none"
        raise Refused(
            "model_forbidden", f"cannot use the model {model!r} with this key: it may use {allowed}"
        )


def check_endpoint(caller: Caller, endpoint: str) -> None:
    """Raise Refused `model_forbidden` unless the caller may use an engine's endpoint ("chat/completions")."""
    if caller.endpoints != ("*",) and not any(fnmatchcase(endpoint, each) for each in caller.endpoints):
        allowed = ", ".join(caller.endpoints) or "none"
        raise Refused("model_forbidden", f"cannot use {endpoint} with this key: it may use {allowed}")


def check_admin(caller: Caller) -> None:
    """Raise Refused `admin_required` unless the caller is an admin."""
    if not caller.admin:
        raise Refused(
            "admin_required",
            "cannot do this with this key: use the key of a client with `admin = true`, "
            "or the command line on the server itself",
        )
