"""The engine's answer in OpenAI's shape -> Ollama's: lines of a stream, or one object.

Each class here is a Translation: it is fed the engine's body as it comes.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from supervisord_llm.gateway.api.ollama.events import Events
from supervisord_llm.gateway.clock import iso
from supervisord_llm.gateway.policy.fields import Fields, is_null
from supervisord_llm.gateway.translation import NDJSON

NANOSECONDS = 10**9
DONE_REASONS = {"length": "length"}
"""OpenAI's finish reasons that are not simply "stop"."""

Kind = Literal["chat", "generate"]
"""Which of the two paths that talk."""

ENDED_EARLY = "cannot finish this answer: the engine ended it early; try again"


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Said(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Said | None = None
    message: _Said | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct):
    """A whole answer or one event of a stream, of /chat/completions or /completions."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Vector(msgspec.Struct):
    embedding: msgspec.Raw


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_VECTORS = msgspec.json.Decoder(_Vectors)


class Timing:
    """How long what took. `load_s` tells how long the request waited for its engine."""

    def __init__(self, started_at: float, load_s: Callable[[], float], now: Callable[[], float]) -> None:
        self._started_at, self._load_s, self._now = started_at, load_s, now
        self._first_at: float | None = None

    def token(self) -> None:
        """A part of the answer came."""
        if self._first_at is None:
            self._first_at = self._now()

    def told(self, usage: _Usage) -> dict[str, int]:
        """Ollama's figures, in nanoseconds. Reading the prompt ends with the first part of the answer."""
        now, load_s = self._now(), self._load_s()
        first_at = now if self._first_at is None else self._first_at
        spans = {
            "total_duration": now - self._started_at,
            "load_duration": load_s,
            "prompt_eval_duration": first_at - self._started_at - load_s,
            "eval_duration": now - first_at,
        }
        figures = {name: max(0, int(span_s * NANOSECONDS)) for name, span_s in spans.items()}
        counts = {"prompt_eval_count": usage.prompt_tokens, "eval_count": usage.completion_tokens}
        return figures | {name: count or 0 for name, count in counts.items()}


class Talk:
    """The answer of /api/chat or /api/generate."""

    def __init__(self, model: str, kind: Kind, timing: Timing, *, streams: bool) -> None:
        self._model, self._kind, self._timing = model, kind, timing
        self._is_in_lines = streams
        self._is_error = self._is_over = False
        self._events: Events | None = None
        self._body = bytearray()
        self._calls: dict[int, list[str]] = {}
        """Index -> id, name and arguments so far."""
        self._finish_reason: str | None = None
        self._usage = _Usage()

    def begin(self, status: int, content_type: str) -> str:
        self._is_error = status != 200
        self._events = Events() if not self._is_error and content_type == "text/event-stream" else None
        return NDJSON if self._is_in_lines and not self._is_error else "application/json"

    def feed(self, chunk: bytes) -> bytes:
        if self._events is None:
            self._body += chunk
            return b""
        return b"".join(map(self._event, self._events.feed(chunk)))

    def end(self) -> bytes:
        if self._is_error:
            return error_line(bytes(self._body))
        if self._is_over:
            return b""
        if self._events is not None:
            return self._last() if self._finish_reason else error_line(ENDED_EARLY.encode())
        try:
            return self._whole(_ANSWER.decode(self._body))
        except (ValueError, RecursionError):
            return error_line(ENDED_EARLY.encode())

    def _event(self, data: bytes) -> bytes:
        if self._is_over:
            return b""
        if data == b"[DONE]":
            return self._last()
        try:
            answer = _ANSWER.decode(data)
        except (ValueError, RecursionError):
            return self._broken(data)
        if not is_null(answer.error):
            return self._broken(data)
        said = self._note(answer)
        return self._line(said, done=False) if said else b""

    def _whole(self, answer: _Answer) -> bytes:
        said = self._note(answer)
        return self._last(said)

    def _note(self, answer: _Answer) -> dict[str, Any]:
        """Remember what is told at the end; what it says now, {} for nothing."""
        if answer.usage is not None:
            self._usage = answer.usage
        said: dict[str, Any] = {}
        for choice in answer.choices[:1]:
            self._finish_reason = choice.finish_reason or self._finish_reason
            part = choice.delta or choice.message or _Said(content=choice.text)
            for call in part.tool_calls or ():
                self._note_call(call)
            if part.content:
                said["content"] = part.content
            if thinking := part.reasoning or part.reasoning_content:
                said["thinking"] = thinking
            if said or part.tool_calls:
                self._timing.token()
        return said

    def _note_call(self, call: _Call) -> None:
        """Ollama sends a call whole, and OpenAI in pieces."""
        index = len(self._calls) if call.index is None else call.index
        parts = self._calls.setdefault(index, ["", "", ""])
        function = call.function or _Function()
        for place, piece in enumerate((call.id, function.name, function.arguments)):
            parts[place] += piece or ""

    def _last(self, said: dict[str, Any] | None = None) -> bytes:
        self._is_over = True
        calls = [
            {"id": call_id, "function": {"index": index, "name": name, "arguments": _arguments(arguments)}}
            for index, (call_id, name, arguments) in sorted(self._calls.items())
        ]
        ends = {
            "done_reason": DONE_REASONS.get(self._finish_reason or "", "stop"),
            **self._timing.told(self._usage),
        }
        if not self._is_in_lines:
            return self._line((said or {}) | ({"tool_calls": calls} if calls else {}), done=True, **ends)
        first = self._line({"tool_calls": calls}, done=False) if calls else b""
        return first + self._line(said or {}, done=True, **ends)

    def _line(self, said: dict[str, Any], *, done: bool, **more: Any) -> bytes:
        return line(self._model, self._kind, said, done=done, **more)

    def _broken(self, data: bytes) -> bytes:
        self._is_over = True
        return error_line(data)


class Embeddings:
    """The answer of /api/embed, or of its predecessor /api/embeddings."""

    def __init__(self, model: str, timing: Timing, *, is_old: bool) -> None:
        self._model, self._timing, self._is_old = model, timing, is_old
        self._is_error = False
        self._body = bytearray()

    def begin(self, status: int, content_type: str) -> str:
        self._is_error = status != 200
        return "application/json"

    def feed(self, chunk: bytes) -> bytes:
        self._body += chunk
        return b""

    def end(self) -> bytes:
        if self._is_error:
            return error_line(bytes(self._body))
        try:
            answer = _VECTORS.decode(self._body)
        except (ValueError, RecursionError):
            return error_line(ENDED_EARLY.encode())
        vectors = [vector.embedding for vector in answer.data]
        if self._is_old:
            return msgspec.json.encode({"embedding": vectors[0] if vectors else []})
        told = self._timing.told(answer.usage or _Usage())
        figures = {name: told[name] for name in ("total_duration", "load_duration", "prompt_eval_count")}
        return msgspec.json.encode({"model": self._model, "embeddings": vectors, **figures})


def line(model: str, kind: Kind, said: dict[str, Any], *, done: bool, **more: Any) -> bytes:
    """One object of an answer. `said`: content, thinking, tool_calls, each where there is some."""
    if kind == "chat":
        text: dict[str, Any] = {"message": {"role": "assistant", "content": "", **said}}
    else:
        text = {"response": said.get("content", "")}
        text |= {name: value for name, value in said.items() if name != "content"}
    head = {"model": model, "created_at": iso(time.time())}
    return msgspec.json.encode({**head, **text, "done": done, **more}) + b"\n"


def error_line(body: bytes) -> bytes:
    """An error of the engine, in whatever shape, as Ollama's."""
    return msgspec.json.encode({"error": _message(body)}) + b"\n"


def _message(body: bytes) -> str:
    """Of OpenAI's shape, FastAPI's (`detail`), a bare string, or none of them."""
    plain = body.decode(errors="replace").strip()[:1000] or ENDED_EARLY
    try:
        found = msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError):
        return plain
    error = found.get("error") or found.get("detail") or plain
    return str(error.get("message", error) if isinstance(error, dict) else error)[:1000]


def _arguments(text: str) -> Fields | dict[str, str]:
    """What a tool is called with; a text that is no JSON object is handed on under one name."""
    try:
        on_one_line = msgspec.json.format(text or "{}", indent=-1)
        return msgspec.json.decode(on_one_line, type=Fields)
    except (ValueError, RecursionError):  # a model may write anything
        return {"arguments": text}
