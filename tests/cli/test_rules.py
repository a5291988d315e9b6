"""`check` on the rules of routes."""

from pathlib import Path

import pytest

from supervisord_llm.cli.rules import rules
from supervisord_llm.config.load import load

LENGTHS = {"short": 1000, "long": 32768, "unknown": None}


def told(path: Path, rule: str) -> list[tuple[str, str, str]]:
    (path / "config.toml").write_text(
        "[auth]\nrequired = false\n"
        '[models.short]\nsource = "org/m"\nrequest = { allow = ["POST /v1/score2"] }\n'
        '[models.long]\nsource = "org/m"\n[models.unknown]\nsource = "org/m"\n'
        '[routes.either]\nmembers = ["short", "long"]\n'
        f'[routes.r]\nmembers = ["long"]\nrules = [{{ {rule} }}]\n'
    )
    found = rules(load(path / "config.toml"), LENGTHS.__getitem__)
    return [(fact.level, fact.where, fact.text) for fact in found]


@pytest.mark.parametrize(
    "rule",
    [
        'tokens_over = 999, use = "short"',
        'tokens_over = 5000, use = "long"',
        'tokens_over = 5000, use = "either"',
        'tokens_over = 5000, use = "unknown"',
        'endpoint = "chat/*", use = "short"',
        'endpoint = ["chat/complete", "score2"], use = "short"',
        'endpoint = "realtime", use = "short"',
        'tools = true, use = "short"',
    ],
)
def test_one_that_may_apply_is_not_told_of(tmp_path: Path, rule: str) -> None:
    assert told(tmp_path, rule) == []


def test_prompts_that_cannot_fit_are_a_hint(tmp_path: Path) -> None:
    text = (
        "short holds 1000 tokens, and never gets a prompt of more than 5000: "
        "lower it, or use a model with a longer context"
    )
    where = "routes.r.rules[0].tokens_over"
    assert told(tmp_path, 'tokens_over = 5000, use = "short"') == [("hint", where, text)]


def test_an_endpoint_that_is_none_is_a_hint(tmp_path: Path) -> None:
    text = '"chat/complete" matches no endpoint; did you mean "chat/completions"?'
    where = "routes.r.rules[0].endpoint"
    assert told(tmp_path, 'endpoint = "chat/complete", use = "short"') == [("hint", where, text)]
