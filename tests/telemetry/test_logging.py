"""The daemon's log: fields, formats, and what never gets into it."""

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from supervisord_llm.telemetry import accesslog
from supervisord_llm.telemetry.logging import configure, redact
from supervisord_llm.telemetry.record import Outcome, RequestRecord, Usage, usage_in
from tests.fakes.disk import mounted

log = logging.getLogger("llm_supervisor.test")


@pytest.fixture(autouse=True)
def untouched_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def record(**fields: object) -> RequestRecord:
    known = {"request_id": "req_1", "method": "POST", "path": "/v1/chat/completions", "model": "alpha"}
    more = {"source": "webui", "status": 200, "outcome": Outcome.OK, "latency_s": 1.2345, "wait_s": 0.5}
    return RequestRecord(**{**known, **more, **fields})  # type: ignore[arg-type]


def test_json_lines_carry_the_fields_of_the_contract() -> None:
    stream = io.StringIO()
    configure("json", stream)
    accesslog.write(record(usage=Usage(3, 4, 7)))
    accesslog.write(record(model=None, status=404, outcome=Outcome.INVALID, refusal="not_found"))
    log.warning("plain %s", "line")
    served, missing, plain = map(json.loads, stream.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", served["timestamp"])
    expected = {"level": "info", "model": "alpha", "tokens": 7, "latency_ms": 1234.5, "source": "webui"}
    assert expected.items() <= served.items()
    assert {"status": 200, "request_id": "req_1", "wait_ms": 500.0, "outcome": "ok"}.items() <= served.items()
    assert {"model": None, "tokens": None, "error": "not_found"}.items() <= missing.items()
    assert (plain["level"], plain["message"]) == ("warning", "plain line")
    assert "model" not in plain


def log_odd_text(form: Literal["json", "text"]) -> str:
    stream = io.StringIO()
    configure(form, stream)
    log.info("a\nb\x1b[31m\x9b%s", "\r\n2026-01-01 ERROR fake", extra={"model": "x\ny"})
    return stream.getvalue()


def test_json_is_one_line_whatever_is_in_it() -> None:
    shown = log_odd_text("json")
    assert shown.count("\n") == 1
    assert json.loads(shown)["model"] == "x\ny"


def test_no_text_can_pose_as_a_line_of_its_own_or_move_the_cursor() -> None:
    first, *rest = log_odd_text("text").splitlines()
    assert first.endswith("INFO [x")
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in "".join(rest)
    assert "\r" not in "".join(rest)


def test_keys_are_masked_as_a_second_lock() -> None:
    for text in (
        "Authorization: Bearer abcdef0123",
        "authorization: bearer abcdef0123, x",
        "{'x-api-key': 'abcdef0123'}",
        "api-key=abcdef0123",
        "sk-abcdef0123",
        "hf_abcdef0123",
        "https://ann:abcdef0123@pypi.example.org/simple",
    ):
        assert "abcdef0123" not in redact(text)
    assert (
        redact("a task-force of bearers asked for 7 tokens") == "a task-force of bearers asked for 7 tokens"
    )
    stream = io.StringIO()
    configure("json", stream)
    log.error("oops", exc_info=ValueError("Bearer sk-abcdef0123"))
    assert "abcdef0123" not in stream.getvalue()
    assert "ValueError" in json.loads(stream.getvalue())["exception"]


def test_journald_gets_a_level_on_each_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        configure("auto", stream)
        log.info("hello")
        log.error("oops", exc_info=ValueError("no\nreally"))
        stream.seek(0)
        lines = stream.read().splitlines()
    assert lines == ["<6>hello", "<3>oops", "<3>ValueError: no", "<3>really"]


def test_neither_terminal_nor_journal_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    stream = io.StringIO()
    configure("auto", stream)
    log.info("hello")
    assert json.loads(stream.getvalue())["message"] == "hello"


@pytest.mark.parametrize(
    ("tail", "usage"),
    [
        (b'{"usage":{"prompt_tokens":3,"total_tokens":7,"completion_tokens":4}}', Usage(3, 4, 7)),
        (b'data: {"usage": {"prompt_tokens" : 3, "total_tokens": 3}}\n\ndata: [DONE]\n\n', Usage(3, 0, 3)),
        (b'{"usage":{"input_tokens":3,"output_tokens":4}}', Usage(3, 4, 7)),
        (b'{"content":"say \\"total_tokens\\":9"}', None),
        (b"[DONE]", None),
        (b"", None),
    ],
)
def test_tokens_are_read_off_the_end_of_an_answer(tail: bytes, usage: Usage | None) -> None:
    assert usage_in(tail) == usage


def test_on_a_full_disk_lines_are_lost_and_counted(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 1) as disk, (disk.path / "log").open("wb", buffering=0) as file:
        configure("text", io.TextIOWrapper(file, write_through=True))
        log.info("first")
        disk.fill()
        for _ in range(100):
            log.info("%s", "x" * 100)
        disk.empty()
        log.info("last")
        lines = (disk.path / "log").read_text().splitlines()
    written = sum("INFO xxx" in line for line in lines)
    assert "INFO first" in lines[0]
    assert "INFO last" in lines[-1]
    assert 0 < written < 100
    assert f" {100 - written} lines of this log could not be written" in lines[-2]
