"""Tools that clients offer: dropped where the list has none, or where the engine cannot read calls."""

import msgspec

from supervisord_llm.gateway.policy.fields import Fields, given, members, refusal

ENDPOINTS = frozenset({"chat/completions", "messages", "messages/count_tokens", "responses"})


def offered(fields: Fields) -> bool:
    """Whether there is something to drop."""
    return given(fields, "tools") is not None


def is_empty(fields: Fields) -> bool:
    """Whether the list of tools has none: vLLM takes that for a mistake, and clients send it."""
    tools = given(fields, "tools")
    return tools is not None and not bytes(tools).strip(b"[] \t\r\n")


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
