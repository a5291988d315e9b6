"""Whatever stands in the place of whatever setting: problems or a configuration, never an exception."""

import copy
import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.config.document import Source, merge
from supervisord_llm.config.model import Config, Paths
from supervisord_llm.config.parse import Surroundings, parse
from supervisord_llm.config.problem import KeyPath
from tests.config.conftest import UNHURRIED
from tests.config.test_positions import KEYS, VALUES, nodes

PLAN = tomllib.loads((Path(__file__).parent / "every-key.toml").read_text())
PLACES = sorted(nodes(PLAN), key=repr)
AROUND = Surroundings(
    Path("/etc/llm-supervisor"),
    Paths(state=Path("/s"), cache=Path("/c"), runtime=Path("/r")),
    lambda _way, name: name.encode(),
)
ODD = st.sampled_from(
    ["", "\0", "a\nb", "-", "..", "/", "unix:", "[", "%", "..s", 0, -1, 2**70, 1e308, [], {}]
)


@UNHURRIED
@given(st.lists(st.tuples(st.sampled_from(PLACES), ODD | VALUES), min_size=1, max_size=3), KEYS)
def test_any_value_in_any_place_is_judged(changes: list[tuple[KeyPath, Any]], name: str) -> None:
    values = copy.deepcopy(PLAN)
    for path, value in changes:
        target: Any = values
        try:
            for part in path[:-1]:
                target = target[part]
            target[path[-1]] = value
            target[name] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    found = parse(merge([Source(Path("/c.toml"), values, {})]), AROUND)
    assert isinstance(found, Config) or all(len(str(problem).splitlines()) == 1 for problem in found)
