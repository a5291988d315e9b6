"""`check` on the classifiers of routes."""

from pathlib import Path

import pytest

from supervisord_llm.cli.classifiers import classifiers
from supervisord_llm.config.load import load

LENGTHS = {"tiny": 2048, "small": 2048, "big": 32768, "unknown": None}


def told(path: Path, *, label: str = "small", tiny: str = "", preload: str = "") -> list[tuple[str, str]]:
    """(level, text) where `hard` leads to `label`."""
    (path / "config.toml").write_text(
        f"[server]\npreload = [{preload}]\n[auth]\nrequired = false\n"
        f'[models.tiny]\nsource = "org/m"\naliases = ["router"]\n{tiny}\n'
        '[models.small]\nsource = "org/m"\n[models.big]\nsource = "org/m"\n'
        '[models.unknown]\nsource = "org/m"\n'
        '[routes.large]\nmembers = ["small", "big"]\n'
        '[routes.smart]\nmembers = ["small"]\npolicy = "classifier"\n'
        f'[routes.smart.classifier]\nmodel = "router"\nlabels = {{ hard = "{label}" }}\nfallback = "small"\n'
    )
    found = list(classifiers(load(path / "config.toml"), lambda model: LENGTHS[model]))
    assert {fact.where for fact in found} == {"routes.smart.classifier"}
    return [(fact.level, fact.text) for fact in found]


UP = {"tiny": "keep = true", "preload": '"tiny"'}


def test_one_that_is_up_and_sees_it_all_is_fine(tmp_path: Path) -> None:
    assert told(tmp_path, **UP) == [("ok", "tiny is asked, and stays up")]


@pytest.mark.parametrize("label", ["big", "large"])
def test_one_that_holds_less_than_its_targets_is_a_hint(tmp_path: Path, label: str) -> None:
    (found,) = told(tmp_path, label=label, **UP)
    assert found[0] == "hint"
    assert "tiny holds 2048 tokens and big 32768: longer conversations are cut for it, to 1" in found[1]


def test_what_is_not_known_is_no_hint(tmp_path: Path) -> None:
    assert told(tmp_path, label="unknown", **UP)[0][0] == "ok"


@pytest.mark.parametrize(
    ("tiny", "preload", "missing"),
    [
        ("", "", ['add "tiny" to `preload`', "set `keep = true`"]),
        ("keep = true", "", ['add "tiny" to `preload`']),
        ("", '"router"', ["set `keep = true`"]),
    ],
)
def test_one_that_may_be_down_is_a_hint(tmp_path: Path, tiny: str, preload: str, missing: list[str]) -> None:
    (found,) = told(tmp_path, tiny=tiny, preload=preload)
    assert found[0] == "hint"
    assert "requests go to small then" in found[1]
    ways = ['add "tiny" to `preload`', "set `keep = true`"]
    assert [way for way in ways if way in found[1]] == missing
