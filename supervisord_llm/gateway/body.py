"""The body of a request: read within its limits, and looked at for `model`, `stream` and its other fields."""

import asyncio
import codecs
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_exceptions import HTTPException

from supervisord_llm.errors import Refused
from supervisord_llm.gateway.policy.fields import Fields, is_deeper_than

SILENCE_S = 15.0
"""How long a client may send nothing of a body it announced."""

PATIENCE_S = 30.0
LEAST_BYTES_PER_S = 4096
"""The pace that a body must have after PATIENCE_S: one that trickles ends, however often a byte comes."""

MAX_DEPTH = 100
"""How deep JSON may nest. Schemas go to 64 levels in vLLM; a thousand overrun the stack of its parsers."""

LARGE_BYTES = 1024 * 1024
"""A body up to this is looked at on the loop, in a millisecond or so."""

PIECE_BYTES = 256 * 1024
MAX_ORDER_BYTES = 64 * 1024

MAX_PARTS = 1000
MAX_FIELD_BYTES = 4096
MAX_PART_HEADER_BYTES = 8192

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_FIELD_NAME = re.compile(rb'\r\ncontent-disposition:[^\r\n]*;\s*name="?model"?\s*(?:;|\r|$)', re.IGNORECASE)
_FILE_NAME = re.compile(rb"\r\ncontent-disposition:[^\r\n]*;\s*filename\*?=", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Peek:
    """What routing needs to know of a body. `model` is None where it names none."""

    model: str | None = None
    stream: bool = False
    fields: Fields | None = field(default=None, compare=False)
    """The top level of a JSON body; None for a form."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a body is taken, and how slowly it may come."""

    most_bytes: int | None
    table: str
    """Of the configuration, where that is said."""
    silence_s: float
    least_bytes_per_s: float = 0.0
    """After PATIENCE_S; 0: none."""

    def check(self, size: int) -> None:
        """
        Raises:
            Refused: `body_too_large`.
        """
        if self.most_bytes is not None and size > self.most_bytes:
            way_out = f"send less, or raise `max_body` in [{self.table}]"
            raise Refused("body_too_large", f"cannot take a body above {self.most_bytes} bytes: {way_out}")

    def patience_s(self, size: int, elapsed_s: float) -> float:
        """How long to wait for more, when `size` bytes came in `elapsed_s`."""
        if not self.least_bytes_per_s:
            return self.silence_s
        return min(self.silence_s, PATIENCE_S + size / self.least_bytes_per_s - elapsed_s)

    @property
    def missed(self) -> str:
        """What did not come in time."""
        pace = f", or less than {self.least_bytes_per_s:g} bytes a second" if self.least_bytes_per_s else ""
        return f"nothing came for {self.silence_s:.0f} s{pace}"


_DECODER = msgspec.json.Decoder(Fields)

P = ParamSpec("P")
T = TypeVar("T")


async def off_loop(body: bytes, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work`, which takes time with the size of `body`: in a thread where the body is large."""
    if len(body) <= LARGE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


async def read(request: web.BaseRequest, max_bytes: int) -> bytes:
    """The whole body, as it came.

    Raises:
        Refused: `body_too_large` (nothing more is read), `unsupported_media_type` (compressed),
            `expectation_failed`, `request_timeout`, `invalid_request` (broken framing).
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refused(
            "unsupported_media_type",
            "cannot read a compressed request body: send it without Content-Encoding",
        )
    bounds = Bounds(max_bytes, "server", SILENCE_S, LEAST_BYTES_PER_S)
    chunks = [chunk async for chunk in pieces(request, bounds)]
    return b"".join(chunks) if len(chunks) != 1 else chunks[0]


async def pieces(request: web.BaseRequest, bounds: Bounds) -> AsyncIterator[bytes]:
    """The body as it comes.

    Raises:
        Refused: `body_too_large` (nothing more is read), `expectation_failed`, `request_timeout`,
            `invalid_request` (broken framing).
    """
    bounds.check(request.content_length or 0)
    await answer_expect(request)
    total = 0
    clock = asyncio.get_running_loop().time
    begun = clock()
    try:
        while True:
            async with asyncio.timeout(bounds.patience_s(total, clock() - begun)):
                chunk = await request.content.readany()
            if not chunk:
                return
            total += len(chunk)
            bounds.check(total)
            yield chunk
    except TimeoutError:
        raise Refused("request_timeout", f"cannot wait for the rest of the body: {bounds.missed}") from None
    except (HttpProcessingError, HTTPException, web.RequestPayloadError):
        raise Refused(
            "invalid_request", "cannot read the body: its chunked encoding or length is broken"
        ) from None


async def read_order(request: web.BaseRequest, kind: type[T], way_out: str) -> T:
    """A small body as JSON of that kind, whatever its Content-Type says.

    Raises:
        Refused: `invalid_json`, which tells the `way_out`; and what `read` raises.
    """
    raw = await read(request, MAX_ORDER_BYTES)
    try:
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, RecursionError) as why:
        raise Refused("invalid_json", f"cannot read the order: {why}; {way_out}") from None


async def answer_expect(request: web.BaseRequest) -> None:
    """Answer `Expect: 100-continue`. Only now: a client without a right should not upload first."""
    expect = request.headers.get("Expect")
    if expect is None or request.version < HttpVersion11:
        return
    if expect.strip().lower() != "100-continue":
        raise Refused("expectation_failed", "cannot meet the Expect header: only 100-continue is known")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun


def peek(content_type: str, body: bytes, *, may_be_form: bool = True) -> Peek:
    """Read `model` and `stream` from a JSON or multipart body, as the engine would: the last one counts.

    Raises:
        Refused: `invalid_json`, `invalid_request`, `unsupported_media_type`.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data" and may_be_form:
        return Peek(_multipart_model(content_type, body))
    if kind != "application/json" and not kind.endswith("+json"):
        raise Refused(
            "unsupported_media_type",
            f"cannot read a body of type {kind[:100] or 'unknown'!r}: "
            "send JSON with the header `Content-Type: application/json`",
        )
    return _peek_json(body)


def _peek_json(body: bytes) -> Peek:
    try:
        _check_utf8(body)  # msgspec does not look into the strings that it skips
        fields = _DECODER.decode(body)
    except msgspec.ValidationError:
        raise Refused("invalid_json", "cannot read the body: it must be a JSON object") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as why:  # not UTF-8, not JSON
        raise Refused("invalid_json", f"cannot read the body as JSON: {why}") from None
    if is_deeper_than(fields, MAX_DEPTH):
        raise _too_deep()
    try:
        model = msgspec.json.decode(fields["model"], type=str | None) if "model" in fields else None
    except msgspec.ValidationError:
        message = "cannot use this `model`: it must be a string"
        raise Refused("invalid_request", message, param="model") from None
    stream = bytes(fields.get("stream", b"null"))
    if stream not in (b"true", b"false", b"null"):  # engines take 1 and "yes" for true
        message = "cannot use this `stream`: it must be true or false"
        raise Refused("invalid_request", message, param="stream")
    return Peek(model, stream == b"true", fields)


def _too_deep() -> Refused:
    return Refused("invalid_json", f"cannot read the body: it is nested deeper than {MAX_DEPTH} levels")


def _check_utf8(body: bytes) -> None:
    """In pieces, between which the loop gets its turn: a codec holds the interpreter until it is done.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(body)
    for at in range(0, len(body), PIECE_BYTES):
        decoder.decode(view[at : at + PIECE_BYTES])
    decoder.decode(b"", final=True)


def rename(content_type: str, body: bytes, model: str) -> bytes:
    """A form with its `model` replaced. `peek` has accepted it."""
    span = _multipart_field(content_type, body)
    return body if span is None else body[: span[0]] + model.encode() + body[span[1] :]


def _multipart_model(content_type: str, body: bytes) -> str | None:
    span = _multipart_field(content_type, body)
    if span is None:
        return None
    try:
        return body[span[0] : span[1]].decode()
    except UnicodeDecodeError:
        raise Refused("invalid_request", "cannot use this `model`: it is not UTF-8") from None


def _multipart_field(content_type: str, body: bytes) -> tuple[int, int] | None:
    """Where the value of the last form field `model` begins and ends; files are skipped unread."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise Refused("invalid_request", "cannot read the form: its Content-Type names no boundary")
    delimiter = b"--" + (match[1] or match[2]).encode("utf-8", "surrogateescape")
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter)
    if at < 0:
        raise Refused("invalid_request", "cannot read the form: its boundary is not in the body")
    found = None
    for _ in range(MAX_PARTS):
        head_start = body.find(b"\r\n", at + len(delimiter))
        if head_start < 0:
            return found
        end = body.find(b"\r\n" + delimiter, head_start)
        if end < 0:  # after the closing delimiter, or cut short: the engine will say which
            return found
        head_end = body.find(b"\r\n\r\n", head_start, min(end, head_start + MAX_PART_HEADER_BYTES))
        head = body[head_start:head_end] if head_end >= 0 else b""
        if _FIELD_NAME.search(head) and not _FILE_NAME.search(head):
            if end - head_end - 4 > MAX_FIELD_BYTES:
                raise Refused("invalid_request", "cannot use this `model`: it is too long")
            found = (head_end + 4, end)
        at = end + 2
    raise Refused("invalid_request", f"cannot read the form: it has more than {MAX_PARTS} parts")
