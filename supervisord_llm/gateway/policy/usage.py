"""Token counts of streams whose client did not ask: asked for on the way in, taken out on the way back.

vLLM and its like tell them in one more event before the last, with `"choices": []`.
"""

import msgspec

from supervisord_llm.gateway.policy.fields import Fields, encoded, first_byte, given, members

ENDPOINTS = frozenset({"chat/completions", "completions"})
"""Whose streams tell no usage unless asked. Those of other endpoints always do."""

MAX_HELD_BYTES = 64 * 1024
"""A line longer than that tells no usage, and passes in pieces."""

_CONTENT = (b'"choices":[{', b'"choices": [{')


class _Event(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")


_DECODER = msgspec.json.Decoder(_Event)


def ask(fields: Fields) -> bool:
    """Have the engine tell the usage; whether the client had not asked for it."""
    raw = given(fields, "stream_options")
    if raw is not None and first_byte(raw) != b"{":
        return False  # for the engine to refuse
    options = {} if raw is None else members(raw)
    if bytes(options.get("include_usage", b"")) == b"true":
        return False
    options.pop("continuous_usage_stats", None)  # which was without effect
    fields["stream_options"] = encoded({**options, "include_usage": True})
    return True


class UsageFilter:
    """One stream, in pieces cut anywhere. Counts its events, and keeps the usage back while it `drops` it.

    All else passes at once, be it half a line; a line is held only while it may turn out to be the usage.
    """

    def __init__(self, *, drops: bool) -> None:
        self.drops = drops
        self.events = 0
        """With data. About one a token, so what is known of a client that leaves."""
        self._held = b""
        self._is_within = False
        """The beginning of this line has passed."""
        self._has_dropped = False
        """The line before: the blank one that ends its event goes, too."""

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets of the next piece."""
        self.events += chunk.count(b"data: {")
        if not self.drops:
            return chunk
        piece, self._held = self._held + chunk, b""
        end = piece.rfind(b"\n") + 1
        if self._is_within and end == 0:
            return piece
        lines, rest = piece[:end], piece[end:]
        if b'"usage"' in lines or self._has_dropped:
            lines = self._without_usage(lines)
        is_half_blank = self._has_dropped and rest == b"\r"
        self._is_within = rest != b"" and not is_half_blank and not _may_be_usage(rest)
        if self._is_within:
            return lines + rest
        self._held = rest
        return lines

    def end(self) -> bytes:
        """What is left when the stream has ended, or has broken off."""
        rest, self._held, self.drops = self._held, b"", False
        return rest

    def _without_usage(self, lines: bytes) -> bytes:
        kept: list[bytes] = []
        is_rest = self._is_within
        for line in lines.splitlines(keepends=True):
            is_usage = not is_rest and b'"usage"' in line and _is_usage(line)
            if not is_usage and not (self._has_dropped and line in (b"\n", b"\r\n")):
                kept.append(line)
            self._has_dropped, is_rest = is_usage, False
        return b"".join(kept)


def _may_be_usage(start: bytes) -> bool:
    if not (start.startswith((b"data: {", b"data:{")) or b"data: {".startswith(start)):
        return False
    return len(start) <= MAX_HELD_BYTES and not any(sign in start for sign in _CONTENT)


def _is_usage(line: bytes) -> bool:
    if not line.startswith(b"data:"):
        return False
    try:
        found = _DECODER.decode(line[len(b"data:") :])
    except (msgspec.MsgspecError, RecursionError):
        return False
    return found.choices == [] and first_byte(found.usage) == b"{"
