"""The daemon's log: JSON lines for machines, short text for people, native entries for the journal.

The fields are those of the contract: timestamp, level, message, and where they are known (always in access
lines) model, tokens, latency_ms, source; then whatever else the line carries.
"""

import contextlib
import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from supervisord_llm.telemetry.journal import JournalHandler, syslog_level

CONTRACT_FIELDS = ("model", "tokens", "latency_ms", "source")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 9}
_SECRETS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"'\\,]{4,}"), r"\1 [redacted]"),
    (re.compile(r"(?i)\b((?:x-)?api[-_]key[\"']?\s*[:=]\s*[\"']?)[^\s\"'\\,]{4,}"), r"\1[redacted]"),
    (re.compile(r"(?<=://)[^\s/@\"'\\:]+:[^\s/@\"'\\]+(?=@)"), "[redacted]"),
    (re.compile(r"\b(sk|hf)([-_])[A-Za-z0-9_-]{8,}"), r"\1\2[redacted]"),
)


def configure(
    format: Literal["auto", "json", "text"] = "auto",  # noqa: A002 - the key of [log]
    stream: TextIO | None = None,
    level: int = logging.INFO,
) -> None:
    """Send everything that is logged to `stream` (stderr), and nowhere else. May be called again.

    With "auto" and a stream that leads to the journal, records go there as native entries.
    """
    handler = _handler(format, sys.stderr if stream is None else stream)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)


def redact(text: str) -> str:
    """The text without anything that looks like a key. A second lock: none should get here."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def is_journal(stream: TextIO) -> bool:
    """Whether the stream goes straight to journald, as $JOURNAL_STREAM tells (systemd.exec(5))."""
    try:
        device, _, inode = os.environ["JOURNAL_STREAM"].partition(":")
        found = os.fstat(stream.fileno())
        return (found.st_dev, found.st_ino) == (int(device), int(inode))
    except (KeyError, ValueError, OSError):  # an UnsupportedOperation of a stream in memory is a ValueError
        return False


def _handler(format: str, stream: TextIO) -> logging.Handler:  # noqa: A002 - as above
    if format == "auto" and is_journal(stream):
        with contextlib.suppress(OSError):  # a container may have the stream and not the socket
            native = JournalHandler(_extras, redact)
            native.setFormatter(EntryFormatter())
            return native
    handler = StreamHandler(stream)
    handler.setFormatter(_formatter(format, stream))
    return handler


def _formatter(format: str, stream: TextIO) -> logging.Formatter:  # noqa: A002 - as above
    in_journal = is_journal(stream)
    if format == "json" or (format == "auto" and not in_journal and not stream.isatty()):
        return JsonFormatter()
    return JournalFormatter() if in_journal else TextFormatter()


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class StreamHandler(logging.StreamHandler[TextIO]):
    """Goes on where nothing can be written, as on a full disk, and says later how many lines that cost."""

    _lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            super().emit(_lost_lines(lost))
        if self._lost:  # still: neither the notice nor the line
            self._lost += lost
        else:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if isinstance(sys.exc_info()[1], OSError):
            self._lost += 1
        else:
            super().handleError(record)


def _lost_lines(count: int) -> logging.LogRecord:
    text = "%d lines of this log could not be written"
    return logging.LogRecord("llm_supervisor.telemetry", logging.WARNING, __file__, 0, text, (count,), None)


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        extras = _extras(record)
        fields: dict[str, Any] = {
            "timestamp": _timestamp(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        fields |= {name: extras.pop(name) for name in CONTRACT_FIELDS if name in extras}
        fields |= {"logger": record.name, **extras}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return redact(json.dumps(fields, default=str))


class TextFormatter(logging.Formatter):
    """`2026-11-21 03:12:40 INFO [model] message key=value …`; what follows on further lines is indented, so
    that no text can pose as a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        extras = {name: value for name, value in _extras(record).items() if value is not None}
        about = f"[{extras.pop('model')}] " if "model" in extras else ""
        words = [about + record.getMessage(), *(f"{name}={value}" for name, value in extras.items())]
        lines = " ".join(words).split("\n")
        line = self.head(record) + "\n    ".join(line.translate(_CONTROL) for line in lines)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)

    def head(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone()
        return f"{when:%Y-%m-%d %H:%M:%S} {record.levelname} "


class EntryFormatter(TextFormatter):
    """Text without time and level, which the journal keeps beside it."""

    def head(self, record: logging.LogRecord) -> str:
        return ""


class JournalFormatter(EntryFormatter):
    """The same, with the level as sd-daemon(3) spells it on each line of a stream."""

    def format(self, record: logging.LogRecord) -> str:
        level = syslog_level(record.levelno)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).split("\n"))


def _timestamp(record: logging.LogRecord) -> str:
    when = datetime.fromtimestamp(record.created, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
