"""Every key has a line, and it is the right one."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.config.positions import positions
from supervisord_llm.config.problem import KeyPath
from tests.config.conftest import UNHURRIED

HARD = '''\
# [not.a.table]
top = 1 # = [
"quoted.key" . 'other "key"'.\tbare-1 = "a ] } # \\" ' b"
literal = 'C:\\'
[a . "b.c"]   # comment [x]
text = """
[not.a.table]
key = 1 \\""" still """""
raw = \'\'\'
'' # not a comment
\'\'\'
list = [ # comment ]
  1, [2, "]"],

  { x = 1, y.z = [ { w = 2 } ] }, # comment
  1979-05-27 07:32:00,
]
empty = []
nothing = {}
[[array]]
first = true
[array.inner]
k = 1
[[array]]
[[array.deep]]
v = +inf
[[array.deep]]
v = 2
[a.late]
"\\u00e9\\t" = 0x_F
last = "end of file"'''
HARD = HARD.replace("0x_F", "0xF")

EXAMPLES = sorted((Path(__file__).parents[2] / "etc").glob("*.toml"))


def nodes(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    """Every table, key and array element of parsed TOML."""
    inside: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    below = [nodes(child, (*path, key)) for key, child in inside]
    return ({path} if path else set()).union(*below)


@pytest.mark.parametrize("text", [HARD, HARD.replace("\n", "\r\n"), *(file.read_text() for file in EXAMPLES)])
def test_positions_has_what_tomllib_has_and_nothing_else(text: str) -> None:
    assert set(positions(text)) == nodes(tomllib.loads(text))


def test_lines_of_a_hard_document() -> None:
    lines = positions(HARD)
    expected: dict[KeyPath, int] = {
        ("top",): 2,
        ("quoted.key",): 3,
        ("quoted.key", 'other "key"', "bare-1"): 3,
        ("literal",): 4,
        ("a",): 5,
        ("a", "b.c", "text"): 6,
        ("a", "b.c", "raw"): 9,
        ("a", "b.c", "list"): 12,
        ("a", "b.c", "list", 1, 1): 13,
        ("a", "b.c", "list", 2, "y", "z", 0, "w"): 15,
        ("a", "b.c", "list", 3): 16,
        ("a", "b.c", "nothing"): 19,
        ("array",): 20,
        ("array", 0, "inner", "k"): 23,
        ("array", 1): 24,
        ("array", 1, "deep", 0, "v"): 26,
        ("array", 1, "deep", 1, "v"): 28,
        ("a", "late", "\u00e9\t"): 30,
        ("a", "late", "last"): 31,
    }
    assert {path: lines[path] for path in expected} == expected


KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=5)
SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.booleans(), KEYS, st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def written(value: Any) -> str:
    """A value as TOML: arrays over several lines, tables inline."""
    match value:
        case dict():
            return "{" + ", ".join(f"{written(key)} = {written(item)}" for key, item in value.items()) + "}"
        case list():
            return "[\n" + "".join(f"  {written(item)}, # ]\n" for item in value) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


@UNHURRIED
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.dictionaries(KEYS, VALUES, max_size=4))
def test_positions_of_any_document(top: dict[str, Any], table: dict[str, Any]) -> None:
    lines = [f"{written(key)} = {written(value)}\n" for key, value in top.items()]
    lines += ["[a-table]\n", *(f"{written(key)} = {written(value)}\n" for key, value in table.items())]
    text = "".join(lines)
    assert tomllib.loads(text) == top | {"a-table": table}
    assert set(positions(text)) == nodes(top | {"a-table": table})


def test_a_table_opened_twice_has_the_line_where_it_was_seen_first() -> None:
    assert positions("[a.b]\nx = 1\n[a]\ny = 2\n") == {
        ("a",): 1,
        ("a", "b"): 1,
        ("a", "b", "x"): 2,
        ("a", "y"): 4,
    }
