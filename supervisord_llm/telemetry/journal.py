"""Native journal entries: `journalctl LLM_MODEL=coder`, priorities, an identifier for engine output."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from logging_journald import JournaldTransport

SOCKET = Path("/run/systemd/journal/socket")
SEND_S = 0.2
"""A journal that stands still must not hold up the daemon: the entry is dropped."""

IDENTIFIER = "llm-supervisor"
ENGINE_IDENTIFIER = "llm-supervisor-engine"
"""SYSLOG_IDENTIFIER of what engines write: `journalctl -t llm-supervisor-engine`."""

FIELDS = {"model": "LLM_MODEL", "source": "LLM_CLIENT", "request_id": "LLM_REQUEST_ID"}
LEVELS = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
DEBUG = 7


def syslog_level(level: int) -> int:
    """As sd-daemon(3) counts: 2 is critical, 7 is debug."""
    return next((syslog for limit, syslog in LEVELS if level >= limit), DEBUG)


class JournalHandler(logging.Handler):
    """Sends each record with its fields. OSError at once where there is no journald."""

    def __init__(
        self,
        extras: Callable[[logging.LogRecord], dict[str, Any]],
        redact: Callable[[str], str],
    ) -> None:
        super().__init__()
        if not SOCKET.is_socket():
            raise FileNotFoundError(SOCKET)
        self._extras = extras
        self._redact = redact
        self._transport = JournaldTransport(SOCKET, connected=False)  # so that journald may be restarted
        self._transport.socket.settimeout(SEND_S)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._transport.send(self._fields(record))
        except OSError:
            pass  # there is nowhere to say so
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._transport.socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
        is_engine = record.name == "llm_supervisor.engine"
        yield "MESSAGE", self.format(record)
        yield "PRIORITY", syslog_level(record.levelno)
        yield "SYSLOG_IDENTIFIER", ENGINE_IDENTIFIER if is_engine else IDENTIFIER
        yield "LOGGER", record.name
        for name, value in self._extras(record).items():
            if value is not None:
                yield FIELDS.get(name, f"LLM_{name.upper()}"), self._redact(str(value))
