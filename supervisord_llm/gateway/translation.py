"""What turns the answer of an engine, which speaks OpenAI's API, into that of another one while it passes."""

from typing import Protocol

NDJSON = "application/x-ndjson"
"""One JSON value a line."""


class Translation(Protocol):
    """One answer's. Works on what has come so far, in pieces cut anywhere; holds no more than it must."""

    def begin(self, status: int, content_type: str) -> str:
        """The engine's answer begins; returns the content type of what becomes of it."""

    def feed(self, chunk: bytes) -> bytes:
        """What to send for the next piece of the engine's body; b"" where more of it is needed."""

    def end(self) -> bytes:
        """What to send once the engine's body is complete."""
