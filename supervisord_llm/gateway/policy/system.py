"""The system prompt of the configuration, put where each API has it."""

import msgspec

from supervisord_llm.gateway.policy.fields import Fields, encoded, first_byte, given, items, members

SYSTEM_ROLES = (b'"system"', b'"developer"')
SEPARATOR = "\n\n"


def put_in_front(fields: Fields, endpoint: str, prompt: str, *, always: bool) -> None:
    """Set the system prompt where the client sets none, or with `always` before the client's own.

    Chat templates take one system message, so the two become one. Doing it twice is doing it once.
    """
    match endpoint:
        case "chat/completions":
            _in_messages(fields, prompt, always=always)
        case "messages" | "messages/count_tokens":
            if always or not _has_system(given(fields, "messages")):
                _in_field(fields, "system", prompt, always=always)
        case "responses":
            if always or not _has_system(given(fields, "input")):
                _in_field(fields, "instructions", prompt, always=always)
        case _:
            pass


def _in_messages(fields: Fields, prompt: str, *, always: bool) -> None:
    raw = given(fields, "messages")
    if raw is None or first_byte(raw) != b"[":
        return  # for the engine to refuse
    messages = items(raw)
    at = next((index for index, message in enumerate(messages) if _is_system(message)), None)
    if at is None:
        own = encoded({"role": "system", "content": prompt})
    elif not always:
        return
    else:
        theirs = members(messages.pop(at))
        own = encoded({**theirs, "content": _joined(prompt, theirs.get("content"))})
    fields["messages"] = encoded([own, *messages])


def _in_field(fields: Fields, name: str, prompt: str, *, always: bool) -> None:
    theirs = given(fields, name)
    if theirs is None or bytes(theirs) in (b'""', b"[]"):
        fields[name] = encoded(prompt)
    elif always:
        fields[name] = _joined(prompt, theirs)


def _joined(prompt: str, theirs: msgspec.Raw | None) -> msgspec.Raw:
    """Content that begins with the prompt: text, or a list of parts as theirs is."""
    kind = b"" if theirs is None else first_byte(theirs)
    if theirs is not None and kind == b'"':
        text = msgspec.json.decode(theirs, type=str)
        is_there = text == prompt or text.startswith(prompt + SEPARATOR)
        return theirs if is_there else encoded(f"{prompt}{SEPARATOR}{text}" if text else prompt)
    if theirs is not None and kind == b"[":
        parts = items(theirs)
        if parts and _says(parts[0], prompt + SEPARATOR):
            return theirs
        return encoded([{"type": "text", "text": prompt + SEPARATOR}, *parts])
    return encoded(prompt)


def _says(part: msgspec.Raw, text: str) -> bool:
    said = members(part).get("text")
    return said is not None and first_byte(said) == b'"' and msgspec.json.decode(said, type=str) == text


def _has_system(conversation: msgspec.Raw | None) -> bool:
    return conversation is not None and any(map(_is_system, items(conversation)))


def _is_system(message: msgspec.Raw) -> bool:
    role = members(message).get("role")
    return role is not None and bytes(role) in SYSTEM_ROLES
