"""What a setting may hold: how it is read, what is accepted, and its JSON Schema.

A `Value` reads one TOML value. The other kinds are made of kinds: `ListOf`, `MapOf`, `OneOf` and `Table`,
whose `Key` records are the description of the whole configuration (see keys/).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from supervisord_llm.config.problem import listing

JsonSchema = dict[str, Any]


class Unreadable(ValueError):
    """A value is not of its kind. `why` and `way_out`, where given, say more than the kind's `accepts`."""

    def __init__(self, why: str = "", way_out: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.way_out = way_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A kind of one TOML value.

    `read` returns what the program uses or raises Unreadable; `accepts` completes the sentence "write …".
    `suffix` is the unit that the attribute's name carries ("_s", "_bytes"). A `secret` is never printed.
    """

    accepts: str
    schema: JsonSchema
    read: Callable[[object], Any]
    suffix: str = ""
    secret: bool = False


@dataclass(frozen=True, slots=True)
class ListOf:
    """A TOML array, read as a tuple."""

    item: "Value | Table"

    @property
    def accepts(self) -> str:
        return f"a list, each item {self.item.accepts}"

    @property
    def suffix(self) -> str:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOf:
    """A table whose keys the user chooses."""

    name: Value
    """What the keys may be."""
    named: str
    """What a key is called in messages: "model", "flag"."""
    item: "Kind"
    accepts: str = "a table"
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class OneOf:
    """Several kinds; the first that fits reads the value."""

    options: tuple["Kind", ...]

    @property
    def accepts(self) -> str:
        return listing(option.accepts for option in self.options)

    @property
    def suffix(self) -> str:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One setting. `default` is the TOML value that means the same as leaving it out, if there is one."""

    name: str
    kind: "Kind"
    doc: str
    default: Any = None
    default_doc: str = ""
    """The default in words, where no one TOML value says it."""
    required: bool = False
    supported: bool = True

    @property
    def attribute(self) -> str:
        return self.name + self.kind.suffix


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with fixed keys."""

    doc: str
    keys: tuple[Key, ...]
    accepts: str = "a table"
    suffix: str = ""

    def without(self, *names: str, doc: str) -> "Table":
        return Table(doc=doc, keys=tuple(key for key in self.keys if key.name not in names))


Kind = Value | ListOf | MapOf | OneOf | Table
