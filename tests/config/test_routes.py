"""Routes as the configuration holds them: aliases resolved, names shared with models, the examples valid."""

import re
from datetime import time
from pathlib import Path

import pytest

from supervisord_llm.config.checks.checks import warnings
from supervisord_llm.config.load import load
from supervisord_llm.core.calendar import EVERY_DAY, Hours
from supervisord_llm.core.routes.pick import pick
from supervisord_llm.core.routes.route import Ask, Choice, Classifier, Pick, Route, Rule, Standing, Sticky
from tests.config.conftest import SHORT, Load

ROOM = Path(__file__).parents[2]
MODELS = """\
[models.a]
source = "org/a"
aliases = ["first"]
[models.b]
source = "org/b"
"""
KEY = f"key_sha256 = '{'a' * 64}'\n"


def test_a_route_is_read_whole_and_by_the_names_of_its_models(loaded: Load) -> None:
    config = loaded(
        MODELS
        + """\
[routes.r]
members = ["first", "b"]
rules = [
    { tokens_over = 5, client = "web", header = { X-Team = "s*" }, endpoint = "chat/*", use = "alias-of-s" },
    { tools = true, images = false, client = ["x", "y"], endpoint = ["a", "b"], use = "first" },
    { from = "22:00", to = "24:00", days = ["sat", "sun"], use = "b" },
    { days = "weekdays", use = "b" },
]
policy = "classifier"
sticky = "session"
spillover = 3
classifier = { model = "first", labels = { easy = "first", hard = "s" }, fallback = "b", timeout = "500ms" }
path = "/routed"
aliases = ["again"]
[routes.s]
members = ["b"]
aliases = ["alias-of-s"]
"""
    )
    weekend, weekdays = frozenset({5, 6}), frozenset(range(5))
    assert config.routes["r"] == Route(
        name="r",
        members=("a", "b"),
        rules=(
            Rule(use="s", tokens_over=5, clients=("web",), headers={"x-team": "s*"}, endpoints=("chat/*",)),
            Rule(use="a", tools=True, images=False, clients=("x", "y"), endpoints=("a", "b")),
            Rule(use="b", hours=Hours(start=time(22), end=time(0), days=weekend)),
            Rule(use="b", hours=Hours(start=time(0), end=time(0), days=weekdays)),
        ),
        policy=Choice.CLASSIFIER,
        sticky=Sticky.SESSION,
        spillover=3,
        classifier=Classifier(model="a", labels={"easy": "a", "hard": "s"}, fallback="b", timeout_s=0.5),
        path="/routed",
        aliases=("again",),
    )
    assert config.routes["s"] == Route(name="s", members=("b",), path="/s", aliases=("alias-of-s",))


def test_hours_without_days_are_those_of_every_day(loaded: Load) -> None:
    rule = "rules = [{ from = '08:30', to = '17:00', use = 'b' }]"
    (found,) = loaded(f"{MODELS}[routes.r]\nmembers = ['a']\n{rule}").routes["r"].rules
    assert found.hours == Hours(start=time(8, 30), end=time(17), days=EVERY_DAY)


def test_a_route_may_be_the_default_and_be_named_by_its_alias(loaded: Load) -> None:
    route = "[routes.r]\nmembers = ['a']\naliases = ['auto']\npath = false\n"
    config = loaded(f"[server]\ndefault_model = 'auto'\n{MODELS}{route}")
    assert config.server.default_model == "r"
    assert config.routes["r"].path is None
    assert config.names == {"a": "a", "first": "a", "b": "b", "r": "r", "auto": "r"}


def test_patterns_of_clients_may_be_about_routes(loaded: Load) -> None:
    route = "[routes.r]\nmembers = ['a']\naliases = ['auto']\n"
    client = f"[clients.web]\n{KEY}models = ['au*', 'gone-*']\n"
    assert warnings(loaded(MODELS + route + client)) == ('clients.web.models: "gone-*" matches no model',)


def test_a_route_to_be_started_stands_for_its_members(loaded: Load) -> None:
    route = "[routes.r]\nmembers = ['b', 'first']\naliases = ['auto']\n"
    assert loaded(f"[server]\npreload = ['auto', 'a']\n{MODELS}{route}").server.preload == ("b", "a")


def test_a_classifier_that_nobody_asks_is_told_and_no_mistake(loaded: Load) -> None:
    """As in a route whose policy was changed for a day."""
    classifier = "classifier = { model = 'a', labels = { x = 'a' }, fallback = 'b' }"
    route = f"[routes.r]\nmembers = ['a', 'b']\n{classifier}\n"
    (found,) = warnings(loaded(MODELS + route + f"[clients.web]\n{KEY}"))
    assert found.startswith(
        'routes.r.classifier: nobody asks it, as the policy is "least-busy"; write policy'
    )


@pytest.mark.parametrize(("pattern", "is_told"), [("we*", False), ("anonymous", False), ("wbe", True)])
def test_a_rule_for_a_client_that_is_not_there_is_told(loaded: Load, pattern: str, *, is_told: bool) -> None:
    rule = f"[routes.r]\nmembers = ['a']\nrules = [{{ tools = true, client = '{pattern}', use = 'b' }}]\n"
    found = warnings(loaded(f"{MODELS}{rule}[clients.web]\n{KEY}"))
    assert found == ((f'routes.r.rules[0].client: "{pattern}" matches no client',) if is_told else ())


# --- examples ------------------------------------------------------------------------------------------


def test_the_route_in_the_documentation_does_what_it_says(tmp_path: Path) -> None:
    page = (ROOM / "docs" / "routing.md").read_text()
    block = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
    path = tmp_path / "config.toml"
    path.write_text(block)
    routes = load(path, SHORT).routes
    stands = {
        "llama_0": Standing(name="llama_0", load=9, context=32768),
        "llama_1": Standing(name="llama_1", load=2, context=8192),
    }
    expected = [
        (Ask(tokens=5210), "llama_0", "rule 1: about 5210 tokens, over 4096"),
        (Ask(client="webui"), "llama_0", "rule 2: client webui"),
        (Ask(client="n8n-1"), "llama_1", "rule 3: client n8n-1"),
        (Ask(client="else"), "llama_1", "least busy of 2: 2 in hand"),
    ]
    for ask, member, reason in expected:
        found = pick("llama", ask, stands, routes)
        assert isinstance(found, Pick)
        assert (found.member, found.reason) == (member, reason)
    assert "X-LLM-Route-Reason: rule 1: about 5210 tokens, over 4096" in page


@pytest.mark.parametrize("name", ["two-gpus.toml", "config.toml"])
def test_the_route_in_an_example_is_valid_once_it_is_uncommented(name: str, tmp_path: Path) -> None:
    lines = (ROOM / "etc" / name).read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("# [routes.auto]"))
    end = next(index for index, line in enumerate([*lines, ""]) if index > start and not line)
    route = "\n".join(line.removeprefix("# ") for line in lines[start:end])
    if name == "config.toml":  # which shows keys that exclude each other
        route = route.replace('"least-busy"', '"classifier"', 1) + '\n[models.long]\nsource = "org/long"\n'
    path = tmp_path / "config.toml"
    path.write_text("\n".join([*lines[:start], route, *lines[end:]]))
    assert set(load(path, SHORT).routes) == {"auto"}
