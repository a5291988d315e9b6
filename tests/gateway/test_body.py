"""What is read of a body, and what is left as it is. Pure."""

import contextlib
import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisord_llm.errors import Refused
from supervisord_llm.gateway.body import (
    LARGE_BYTES,
    MAX_FIELD_BYTES,
    PIECE_BYTES,
    Peek,
    off_loop,
    peek,
    rename,
)

JSON = "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"model": "a", "stream": true}', Peek("a", True)),
        (b'{"stream": false, "model": "a"}', Peek("a", False)),
        (b'{"model": "a", "stream": null}', Peek("a", False)),
        (b"{}", Peek(None, False)),
        (b'{"model": null}', Peek(None, False)),
        (b'{"model":"a","model":"b"}', Peek("b")),
        (b'{"model":"a","mod\\u0065l":"b"}', Peek("b")),
        (b'{"x": {"model": "b"}, "model": "a"}', Peek("a")),
        (b'{"model": "\\u00e9"}', Peek("é")),
    ],
)
def test_model_and_stream_are_read_as_the_engine_reads_them(body: bytes, found: Peek) -> None:
    """The last of two keys counts, as in Python's json, which is what vLLM uses."""
    assert peek(JSON, body) == found
    assert json.loads(body).get("model") == found.model


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"nonsense", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"model"', "invalid_json"),
        (b"null", "invalid_json"),
        (b'{"model": "a"', "invalid_json"),
        (b'{"model": "a"} x', "invalid_json"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"model": "a", "x": "\\ud800"}', "invalid_json"),
        (b'{"model": "a", "x": "\xff"}', "invalid_json"),
        ('{"model": "a"}'.encode("utf-16"), "invalid_json"),
        (b'\xef\xbb\xbf{"model": "a"}', "invalid_json"),
        (b'{"model": 7}', "invalid_request"),
        (b'{"model": ["a"]}', "invalid_request"),
        (b'{"model": {"a": 1}}', "invalid_request"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(Refused, match="cannot ") as refused:
        peek(JSON, body)
    assert refused.value.code == code


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_surprise_the_peek(body: bytes) -> None:
    for kind in (JSON, "multipart/form-data; boundary=b"):
        with contextlib.suppress(Refused):
            assert isinstance(peek(kind, body), Peek)


def test_large_bodies_are_read_and_judged_as_small_ones() -> None:
    """Looked at in pieces, whose borders fall into characters."""
    text = "aé漢🙂" * PIECE_BYTES
    body = json.dumps({"x": text, "model": "a"}, ensure_ascii=False).encode()
    assert peek(JSON, body) == Peek("a")
    with pytest.raises(Refused, match="utf-8"):
        peek(JSON, body.replace("漢".encode(), b"\xe6\xbc", 1))
    with pytest.raises(Refused, match="utf-8"):
        peek(JSON, body + "漢".encode()[:2])


async def test_large_bodies_are_looked_at_in_a_thread() -> None:
    small, large = bytes(LARGE_BYTES), bytes(LARGE_BYTES + 1)
    assert await off_loop(small, threading.current_thread) is threading.current_thread()
    assert await off_loop(large, threading.current_thread) is not threading.current_thread()


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_other_types_are_refused_with_the_header_to_send(kind: str) -> None:
    with pytest.raises(Refused, match="Content-Type: application/json") as refused:
        peek(kind, b"model=a")
    assert refused.value.code == "unsupported_media_type"


def form(*parts: tuple[str, bytes], boundary: str = "b0undary") -> bytes:
    delimiter = b"--" + boundary.encode()
    body = b"".join(
        delimiter + b"\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + value + b"\r\n"
        for head, value in parts
    )
    return body + delimiter + b"--\r\n"


FORM = 'multipart/form-data; boundary="b0undary"'


def test_the_model_field_of_a_form() -> None:
    file = ('name="file"; filename="a.wav"\r\nContent-Type: audio/wav', b'\r\n--not name="model"\r\n\r\nx')
    assert peek(FORM, form(file, ('name="model"', b"whisper"))).model == "whisper"
    assert peek(FORM, form(('name="model"', b"whisper"), file)).model == "whisper"
    assert peek(FORM.replace('"', ""), form(("name=model", b"whisper"))).model == "whisper"
    assert peek(FORM, form(('name="model"', b"one"), ('name="model"', b"two"))).model == "two"
    assert peek(FORM, form(file)).model is None
    assert peek(FORM, form(('name="model"; filename="model"', b"x"))).model is None
    assert peek(FORM, form(('name="model_name"', b"x"))).model is None


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", form(('name="model"', b"a"))),
        ("multipart/form-data; boundary=other", form(('name="model"', b"a"))),
        (FORM, form(('name="model"', b"\xff"))),
        (FORM, form(('name="model"', b"x" * (MAX_FIELD_BYTES + 1)))),
        (FORM, form(*[('name="x"', b"")] * 1001)),
    ],
)
def test_broken_forms_are_refused(kind: str, body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        peek(kind, body)
    assert refused.value.code == "invalid_request"


def test_renaming_changes_the_model_alone() -> None:
    parts = ('name="file"; filename="f"', bytes(range(256))), ('name="model"', b"gpt")
    assert rename(FORM, form(*parts), "coder") == form(parts[0], ('name="model"', b"coder"))
