"""The conversation of a chat: Ollama's messages -> OpenAI's. Pure."""

from typing import Any

import msgspec

IMAGE_TYPES = (("/9j/", "jpeg"), ("R0lGOD", "gif"), ("UklGR", "webp"))
"""How the base64 of an image begins -> its type; any other counts as PNG. Engines look for themselves."""


class Function(msgspec.Struct):
    """Whom a tool call calls, and with what."""

    name: str = ""
    arguments: dict[str, Any] = {}


class ToolCall(msgspec.Struct):
    """One call of a tool. Only newer clients repeat its id."""

    function: Function
    id: str | None = None


class Message(msgspec.Struct):
    """One message. `tool_name` and `tool_call_id` tell which call a message of role "tool" answers."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


def translate(messages: list[Message]) -> list[dict[str, Any]]:
    """OpenAI's messages. There an answer of a tool names its call by id; calls without one get a number."""
    found: list[dict[str, Any]] = []
    unanswered: dict[str, str] = {}  # id -> name of the function, oldest first
    count = 0
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": content(message.content, message.images)}
        if message.thinking:
            one["reasoning"] = message.thinking
        for call in message.tool_calls or ():
            one.setdefault("tool_calls", []).append(_call(call, call.id or f"call_{count}"))
            unanswered[call.id or f"call_{count}"] = call.function.name
            count += 1
        if message.role == "tool":
            one["tool_call_id"] = _answered(message, unanswered)
            unanswered.pop(one["tool_call_id"], None)
        found.append(one)
    return found


def content(text: str | None, images: list[str] | None) -> str | list[dict[str, Any]]:
    """What a message says: its text, or parts where it has images."""
    if not images:
        return text or ""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    return parts + [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]


def _data_url(image: str) -> str:
    if image.startswith("data:"):
        return image
    kind = next((kind for start, kind in IMAGE_TYPES if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{image}"


def _call(call: ToolCall, call_id: str) -> dict[str, Any]:
    arguments = msgspec.json.encode(call.function.arguments).decode()
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


def _answered(message: Message, unanswered: dict[str, str]) -> str:
    """The call that a tool's message answers: by id, else the oldest open one of its name, or of any."""
    if message.tool_call_id:
        return message.tool_call_id
    named = (call_id for call_id, name in unanswered.items() if name == message.tool_name)
    return next(named, next(iter(unanswered), "call_0"))
