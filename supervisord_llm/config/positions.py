"""On which line each key of a TOML text stands.

The standard library's tomllib gives values without positions. This scanner reads a text that tomllib has
already accepted, so it looks for structure only and trusts the rest.
"""

import tomllib
from bisect import bisect_right

from supervisord_llm.config.problem import KeyPath

_BARE_END = frozenset(" \t\r\n.=]")
_SCALAR_END = frozenset(",]}#\n")


def positions(text: str) -> dict[KeyPath, int]:
    """Map every table, key and array element of valid TOML `text` to its line, counted from 1.

    A table that is opened more than once, or only by a dotted key, has the line where it was seen first.
    """
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line_starts = [0, *(i + 1 for i, char in enumerate(text) if char == "\n")]
        self.lines: dict[KeyPath, int] = {}
        self.array_tables: dict[KeyPath, int] = {}
        """Index of the newest element of each [[array of tables]]."""

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self.skip_space():
            if self.text.startswith("[[", self.at):
                table = self.array_table_header()
            elif self.text[self.at] == "[":
                table = self.table_header()
            else:
                self.pair(table)
        return self.lines

    def note(self, path: KeyPath, start: KeyPath, at: int) -> None:
        """Record `path` and those of its parents below `start` that have no line yet."""
        for length in range(len(start) + 1, len(path) + 1):
            self.lines.setdefault(path[:length], bisect_right(self.line_starts, at))

    def array_table_header(self) -> KeyPath:
        opened = self.at
        self.at += 2
        *parents, last = self.key()
        array = (*self.resolve(parents), last)
        self.at += 2
        index = self.array_tables[array] = self.array_tables.get(array, -1) + 1
        self.note((*array, index), (), opened)
        return (*array, index)

    def table_header(self) -> KeyPath:
        opened = self.at
        self.at += 1
        table = self.resolve(self.key())
        self.at += 1
        self.note(table, (), opened)
        return table

    def resolve(self, key: list[str]) -> KeyPath:
        """Where a header's key leads: through an array of tables it leads into the newest element."""
        path: KeyPath = ()
        for part in key:
            path = (*path, part)
            if path in self.array_tables:
                path = (*path, self.array_tables[path])
        return path

    def pair(self, table: KeyPath) -> None:
        opened = self.at
        path = (*table, *self.key())
        self.at += 1  # the equals sign
        self.note(path, table, opened)
        self.value(path)

    def key(self) -> list[str]:
        """Read a dotted key; stops at the `=` or `]` behind it."""
        parts: list[str] = []
        while True:
            self.skip_blank()
            start = self.at
            if self.text[start] in "\"'":
                self.string()
                parts.append(tomllib.loads(f"key = {self.text[start : self.at]}")["key"])
            else:
                while self.text[self.at] not in _BARE_END:
                    self.at += 1
                parts.append(self.text[start : self.at])
            self.skip_blank()
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def value(self, path: KeyPath) -> None:
        self.skip_blank()
        match self.text[self.at]:
            case '"' | "'":
                self.string()
            case "[":
                self.array(path)
            case "{":
                self.inline_table(path)
            case _:
                while self.at < len(self.text) and self.text[self.at] not in _SCALAR_END:
                    self.at += 1

    def array(self, path: KeyPath) -> None:
        self.at += 1
        index = 0
        while self.skip_space() and self.text[self.at] != "]":
            self.note((*path, index), path, self.at)
            self.value((*path, index))
            index += 1
            self.skip_comma()
        self.at += 1

    def inline_table(self, path: KeyPath) -> None:
        self.at += 1
        while self.skip_space() and self.text[self.at] != "}":
            self.pair(path)
            self.skip_comma()
        self.at += 1

    def string(self) -> None:
        quote = self.text[self.at]
        delimiter = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(delimiter)
        while not self.text.startswith(delimiter, self.at):
            self.at += 2 if quote == '"' and self.text[self.at] == "\\" else 1
        self.at += len(delimiter)
        if len(delimiter) == 3:  # up to two quotes may stand right before the closing three
            while self.text.startswith(quote, self.at):
                self.at += 1

    def skip_blank(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1

    def skip_space(self) -> bool:
        """Skip blanks, line ends and comments; False at the end of the text."""
        while self.at < len(self.text):
            if self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self.text[self.at] in " \t\r\n":
                self.at += 1
            else:
                return True
        return False

    def skip_comma(self) -> None:
        if self.skip_space() and self.text[self.at] == ",":
            self.at += 1
