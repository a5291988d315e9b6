"""The quick `replace` makes what the standard library's makes."""

import dataclasses
from typing import Any

import pytest

from supervisord_llm.core.fleet import Engine, Fleet, Learnt, ModelSpec
from supervisord_llm.core.frozen import replace
from supervisord_llm.core.state import State

VALUES: list[tuple[Any, dict[str, Any]]] = [
    (Engine(spec=ModelSpec(name="m")), {"state": State.READY, "gpus": (0,), "leases": frozenset({1})}),
    (Learnt(start_s=3.0), {"kv_bytes": 7}),
    (Fleet(), {"preload": ("m",)}),
]


@pytest.mark.parametrize(("value", "changes"), VALUES, ids=lambda each: type(each).__name__)
def test_it_makes_the_same(value: Any, changes: dict[str, Any]) -> None:
    before = dataclasses.replace(value)
    assert replace(value, **changes) == dataclasses.replace(value, **changes)
    assert value == before


def test_what_is_made_is_frozen_too() -> None:
    engine = replace(Engine(spec=ModelSpec(name="m")), wanted=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        engine.wanted = False  # type: ignore[misc]


def test_a_name_that_is_no_field_fails() -> None:
    with pytest.raises(TypeError, match="cannot replace wantd of Engine: it has no such field"):
        replace(Engine(spec=ModelSpec(name="m")), wantd=True)  # type: ignore[call-arg]
