"""A body of Ollama's API -> the one of OpenAI's that asks for the same. Pure.

What has no counterpart in an engine that serves many at once is ignored (`num_ctx`, `num_gpu`, `mirostat`,
`keep_alive`, …), unless the answer would be another than the client must expect: then it is refused.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from supervisord_llm.errors import Refused
from supervisord_llm.gateway.api.ollama.messages import Message, content, translate

PARAMETERS: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repeat_penalty": "repetition_penalty",
    "num_predict": "max_tokens",
}
"""Ollama's `options` -> parameters of OpenAI's API, or vLLM's beyond it."""


class Asked(msgspec.Struct, kw_only=True):
    """What every generating request may say."""

    model: str = ""
    stream: bool | None = None
    options: dict[str, Any] | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    keep_alive: float | str | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer comes in lines; it does unless told otherwise."""
        return self.stream is not False

    @property
    def unloads(self) -> bool:
        """Whether the model is to go at once: a request without a prompt may ask for that."""
        return self.keep_alive in (0, "0", "0s", "0m")


class Chat(Asked, kw_only=True):
    """POST /api/chat."""

    messages: list[Message] = []
    tools: list[dict[str, Any]] | None = None


class Generate(Asked, kw_only=True):
    """POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None


class Embed(msgspec.Struct, kw_only=True):
    """POST /api/embed, and its predecessor /api/embeddings, which says `prompt`."""

    model: str = ""
    input: str | list[str] | None = None
    prompt: str | None = None
    truncate: bool | None = None
    dimensions: int | None = None


def chat(asked: Chat) -> dict[str, Any]:
    """The body of /v1/chat/completions."""
    body = _common(asked) | {"messages": translate(asked.messages)}
    return body | ({"tools": asked.tools} if asked.tools else {})


def generate(asked: Generate) -> tuple[str, dict[str, Any]]:
    """("chat/completions" or, for a raw prompt, "completions", and the body of it).

    Raises:
        Refused: `invalid_request`, it asks for what cannot be had here.
    """
    for field, value, way_out in (
        ("template", asked.template, "the model's own is used; for another send `raw` and a whole prompt"),
        ("suffix", asked.suffix, "send `raw`, and a prompt with the model's own tokens for filling in"),
        ("context", asked.context, "use /api/chat, which takes the conversation itself"),
    ):
        if value:
            raise Refused("invalid_request", f"cannot use `{field}`: {way_out}")
    body = _common(asked)
    if asked.raw:
        if asked.images:
            raise Refused("invalid_request", "cannot use `images` with `raw`: leave one of them out")
        return "completions", body | {"prompt": asked.prompt or ""}
    system = [{"role": "system", "content": asked.system}] if asked.system else []
    user = {"role": "user", "content": content(asked.prompt, asked.images)}
    return "chat/completions", body | {"messages": [*system, user]}


def embed(asked: Embed) -> dict[str, Any]:
    """The body of /v1/embeddings. As with Ollama, a text that is too long is cut unless told otherwise."""
    text = asked.input if asked.input is not None else asked.prompt
    body: dict[str, Any] = _named(asked.model) | {"input": "" if text is None else text}
    if asked.dimensions:
        body["dimensions"] = asked.dimensions
    if asked.truncate is not False:
        body["truncate_prompt_tokens"] = -1
    return body


def _common(asked: Asked) -> dict[str, Any]:
    body = _named(asked.model) | {"stream": asked.streams}
    if asked.streams:
        body["stream_options"] = {"include_usage": True}
    options = asked.options or {}
    for name, parameter in PARAMETERS.items():
        if options.get(name) is not None:
            body[parameter] = options[name]
    if isinstance(body.get("max_tokens"), int) and body["max_tokens"] <= 0:  # -1: without end, -2: what fits
        del body["max_tokens"]
    return body | _format(asked.format) | _think(asked.think)


def _named(model: str) -> dict[str, Any]:
    return {"model": model} if model else {}


def _format(asked: str | dict[str, Any] | None) -> dict[str, Any]:
    if not asked:
        return {}
    if asked == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(asked, str):
        raise Refused("invalid_request", f'cannot use format {asked[:50]!r}: send "json" or a JSON Schema')
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": asked}}}


def _think(asked: bool | str | None) -> dict[str, Any]:
    """Chat templates differ in what they call it; each is told only what it knows (vLLM sees to that)."""
    if asked is None:
        return {}
    thinks = bool(asked)
    told: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": thinks, "thinking": thinks}}
    return told | ({"reasoning_effort": asked} if isinstance(asked, str) and asked else {})
