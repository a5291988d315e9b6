"""Native journal entries, as a socket of the test's receives them."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisord_llm.telemetry import journal
from supervisord_llm.telemetry.logging import configure


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket in journald's place, and a stderr that leads there."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
        (tmp_path / "stream").open("w") as stream,
    ):
        listener.bind(str(tmp_path / "journal"))
        listener.settimeout(5)
        monkeypatch.setattr(journal, "SOCKET", tmp_path / "journal")
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level
        configure("auto", stream)
        yield listener
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def entry(listener: socket.socket) -> dict[str, str]:
    """One entry; values of several lines come with their length."""
    raw, fields = listener.recv(1 << 16), {}
    while raw:
        line, _, raw = raw.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(raw[:8], "little")
            value, raw = raw[8 : 8 + size], raw[9 + size :]
        fields[name.decode()] = value.decode()
    return fields


def test_an_entry_has_the_fields_that_journalctl_selects_by(journald: socket.socket) -> None:
    extra = {"model": "coder", "source": "webui", "request_id": "req_1", "tokens": 7, "error": None}
    logging.getLogger("llm_supervisor.access").warning("served", extra=extra)
    found = entry(journald)
    assert found["LLM_MODEL"] == "coder"
    assert found["LLM_CLIENT"] == "webui"
    assert found["LLM_REQUEST_ID"] == "req_1"
    assert found["LLM_TOKENS"] == "7"
    assert "LLM_ERROR" not in found
    assert (found["PRIORITY"], found["SYSLOG_IDENTIFIER"]) == ("4", "llm-supervisor")
    assert found["MESSAGE"].startswith("[coder] served")


def test_engine_output_has_an_identifier_of_its_own(journald: socket.socket) -> None:
    logging.getLogger("llm_supervisor.engine").info("loading", extra={"model": "coder"})
    assert entry(journald)["SYSLOG_IDENTIFIER"] == "llm-supervisor-engine"


def test_lines_tracebacks_and_keys(journald: socket.socket) -> None:
    try:
        int("sk-abcdefghijklmnop")
    except ValueError:
        logging.getLogger("llm_supervisor.test").exception("one\ntwo", extra={"note": "Bearer abcdefgh"})
    found = entry(journald)
    assert found["MESSAGE"].startswith("one\n    two")
    assert "ValueError" in found["MESSAGE"]
    assert "abcdefgh" not in str(found)
    assert found["PRIORITY"] == "3"


def test_a_journal_that_stands_still_holds_nobody_up(journald: socket.socket) -> None:
    log = logging.getLogger("llm_supervisor.test")
    for _ in range(3000):  # more than the socket's queue takes
        log.debug("x" * 100)
    journald.close()
    log.warning("nobody hears this")


def test_without_its_socket_the_stream_gets_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SOCKET", tmp_path / "nobody")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with (tmp_path / "stream").open("w") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        configure("auto", stream)
        logging.getLogger("llm_supervisor.test").error("heard")
    root.handlers[:] = handlers
    root.setLevel(level)
    assert (tmp_path / "stream").read_text() == "<3>heard\n"
