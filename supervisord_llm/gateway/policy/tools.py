"""Tools that clients offer: dropped where the list has none, or where the engine cannot read calls."""

import msgspec

from supervisord_llm.config.model import FlagValue
from supervisord_llm.gateway.policy.fields import (
    Fields,
    encoded,
    first_byte,
    given,
    items,
    members,
    refusal,
)

_NONE = msgspec.Raw(b"[]")

ENDPOINTS = frozenset({"chat/completions", "messages", "messages/count_tokens", "responses"})


def offered(fields: Fields) -> bool:
    """Whether there is something to drop."""
    return given(fields, "tools") is not None


def is_empty(fields: Fields) -> bool:
    """Whether the list of tools has none: vLLM takes that for a mistake, and clients send it."""
    tools = given(fields, "tools")
    return tools is not None and not bytes(tools).strip(b"[] \t\r\n")


def add(fields: Fields, ours: list[FlagValue]) -> None:
    """Put tools of the configuration behind the client's, which offers none of them a second time."""
    theirs = given(fields, "tools")
    if theirs is not None and first_byte(theirs) != b"[":
        return  # for the API to refuse
    own = [encoded(tool) for tool in ours]
    names = {_name(tool) for tool in own}
    fields["tools"] = encoded([*(tool for tool in items(theirs or _NONE) if _name(tool) not in names), *own])


def _name(tool: msgspec.Raw) -> tuple[bytes, ...]:
    """What tells tools apart: the type of one that the API runs, the name of one that the client does."""
    said = members(tool)
    within = members(said.get("function", _NONE))
    return tuple(bytes(each.get(name, b"")) for each in (said, within) for name in ("type", "name"))


def drop(fields: Fields, why: str) -> None:
    """Take out the tools and what is said of them.

    Raises:
        Refused: `invalid_request`, the client insists on a call. `why` ends the sentence that tells so.
    """
    choice = given(fields, "tool_choice")
    if choice is not None and _insists(choice):
        raise refusal("tool_choice", f"cannot make the model call a tool: {why}")
    for name in ("tools", "tool_choice", "parallel_tool_calls"):
        fields.pop(name, None)


def _insists(choice: msgspec.Raw) -> bool:
    """OpenAI's "required" and named functions, Anthropic's "any" and "tool"."""
    if bytes(choice) in (b'"auto"', b'"none"'):
        return False
    said = members(choice)
    kind = bytes(said.get("type", b""))
    if kind == b'"allowed_tools"':
        return bytes(said.get("mode", b'"auto"')) != b'"auto"'
    return kind not in (b'"auto"', b'"none"')
