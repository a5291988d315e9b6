"""Bytes of an event stream, cut anywhere -> the data of its events. Comments are dropped."""


class Events:
    """One stream. Lines end with LF or CRLF, as all engines write them."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that `chunk` completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        found: list[bytes] = []
        for line in lines:
            field, _, value = line.removesuffix(b"\r").partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not field and not value and self._data:
                found.append(b"\n".join(self._data))
                self._data = []
        return found
