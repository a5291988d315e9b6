"""Headers -> caller. Keys are read from headers only, compared in constant time, and go no further."""

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass

from multidict import CIMultiDictProxy

from supervisord_llm.errors import Refused


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the client whose key it is, or nobody in particular."""

    name: str
    """The request's "source"."""
    models: frozenset[str]
    """Models (not aliases) it may use."""
    priority: int = 0
    admin: bool = False


@dataclass(frozen=True, slots=True)
class Keyring:
    """The clients by the SHA-256 of their key. `anonymous` is who may come without one, or None."""

    callers: tuple[tuple[bytes, Caller], ...]
    anonymous: Caller | None

    def authenticate(self, headers: CIMultiDictProxy[str]) -> Caller:
        """The caller whose key is among the headers.

        Raises:
            Refused: `invalid_api_key`, when no key fits and one is required.
        """
        found: Caller | None = None
        for key in _keys(headers):
            digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
            for known, caller in self.callers:  # all of them, whichever fits
                if hmac.compare_digest(digest, known) and found is None:
                    found = caller
        if found is None:
            found = self.anonymous
        if found is None:
            raise Refused(
                "invalid_api_key",
                "cannot let this request in: it carries no valid API key; "
                "send one as `Authorization: Bearer KEY`",
            )
        return found


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


def check_model(caller: Caller, model: str) -> None:
    """Raise Refused `model_forbidden` unless the caller may use the model."""
    if model not in caller.models:
        allowed = ", ".join(sorted(caller.models)) or "none"
        raise Refused(
            "model_forbidden", f"cannot use the model {model!r} with this key: it may use {allowed}"
        )


def check_admin(caller: Caller) -> None:
    """Raise Refused `admin_required` unless the caller is an admin."""
    if not caller.admin:
        raise Refused(
            "admin_required",
            "cannot do this with this key: use the key of a client with `admin = true`, "
            "or the command line on the server itself",
        )
