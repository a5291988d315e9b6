"""The certificate that the door shows, renewed while connections go on."""

import logging
import ssl
from pathlib import Path

from supervisord_llm.config.model import Tls
from supervisord_llm.errors import SupervisorError

LOOK_EVERY_S = 60.0
"""How often the files are looked at; certbot and Tailscale renew them weeks before they expire."""

log = logging.getLogger("llm_supervisor.http")

Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """A pair of files, as of the last time that it was good. Each handshake takes the present `context`."""

    def __init__(self, tls: Tls) -> None:
        """
        Raises:
            SupervisorError: there is no good pair to begin with.
        """
        self._tls = tls
        self._stamp = _stamp(tls)
        self.context = _read(tls)

    def renew(self, tls: Tls) -> None:
        """Take the pair of a reloaded configuration, or of changed files; a bad one is not taken."""
        self._stamp = _stamp(tls)
        self._tls = tls
        try:
            self.context = _read(tls)
        except SupervisorError as error:
            log.error("%s; the certificate from before stays in use", error)
        else:
            log.info("the certificate %s is in use", tls.cert)

    def look(self) -> None:
        """Renew it if its files changed since they were last read."""
        if _stamp(self._tls) != self._stamp:
            self.renew(self._tls)


def fault(tls: Tls) -> str:
    """What is wrong with the pair, in a sentence; "" if it is good."""
    try:
        _read(tls)
    except SupervisorError as error:
        return str(error)
    return ""


def _read(tls: Tls) -> ssl.SSLContext:
    """
    Raises:
        SupervisorError: a file is missing or unreadable, is no PEM, or the two do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for file in (tls.cert, tls.key):
        try:
            file.open("rb").close()
        except OSError as error:
            raise _unusable(f"cannot read {file}: {error.strerror}") from error
    try:
        context.load_cert_chain(tls.cert, tls.key, password=_no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _unusable(f"cannot use {tls.key}: it is not the key of {tls.cert}") from error
        why = error.reason or "they are no PEM"
        raise _unusable(f"cannot use {tls.cert} and {tls.key}: {why}") from error
    except (OSError, ValueError) as error:
        raise _unusable(f"cannot use {tls.key}: {error}") from error
    return context


def _unusable(why: str) -> SupervisorError:
    return SupervisorError(f"{why}; see `tls` in [server]")


def _no_passphrase() -> str:
    """OpenSSL would ask for it on the terminal."""
    raise ValueError("it needs a passphrase, which nobody is there to type")


def _stamp(tls: Tls) -> Stamp:
    """What changes when a file is replaced or written to; links are followed."""
    return tuple(map(_stamp_of, (tls.cert, tls.key)))


def _stamp_of(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)
