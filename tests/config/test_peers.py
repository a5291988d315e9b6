"""Peers as the configuration holds them: their keys, the names of their models, what is left without them."""

from dataclasses import replace

import pytest

from supervisord_llm.config.checks.checks import warnings
from supervisord_llm.config.model import Config
from supervisord_llm.config.peers import STALL_S, Offer, alone, merged
from supervisord_llm.core.routes.route import Choice
from tests.config.conftest import Load, Problems

TWO = """\
[models.own]
source = "org/own"
aliases = ["mine"]
[peers.one]
url = "http://One.lan:8000/v1/"
key_env = "KEY_ONE"
[peers.two]
url = "https://two.example.org"
models = ["q*", "gpt"]
"""
NOT_SHOWN = "cannot read this value (not shown)"
ENVIRON = {"KEY_ONE": "sk-one"}


def offers(**names: str) -> dict[str, tuple[Offer, ...]]:
    return {peer: tuple(Offer(name=name) for name in listed.split()) for peer, listed in names.items()}


def names(config: Config) -> dict[str, tuple[str, ...]]:
    """Of the peers' models, with their aliases."""
    return {model.name: model.aliases for model in config.models.values() if model.peer}


def test_a_peer_has_an_address_and_a_key_that_no_text_shows(loaded: Load) -> None:
    config = loaded(TWO, ENVIRON)
    one, two = config.peers
    assert (one.url, one.key, one.models) == ("http://one.lan:8000", "sk-one", ("*",))
    assert (two.url, two.key, two.models) == ("https://two.example.org", None, ("q*", "gpt"))
    assert "sk-one" not in repr(config)
    model = merged(config, offers(one="a")).models["one/a"]
    assert (model.engine, model.url, model.key) == ("remote", "http://one.lan:8000/v1", "sk-one")
    assert (model.source, model.path, model.stall_timeout_s) == ("a", None, STALL_S)
    assert "sk-one" not in repr(model)


def test_names_are_the_own_ones_first_then_those_of_the_first_peer(loaded: Load) -> None:
    config = loaded(TWO, ENVIRON)
    found = merged(config, offers(one="own mine q org/x", two="q qwen gpt other", gone="z"))
    assert names(found) == {
        "one/own": (),
        "one/mine": (),
        "one/q": ("q",),
        "one/org/x": ("org/x",),
        "two/q": (),
        "two/qwen": ("qwen",),
        "two/gpt": ("gpt",),
    }
    assert found.names["own"] == found.names["mine"] == "own"
    assert merged(config, {}) == config


def test_no_peer_takes_the_names_of_another(loaded: Load) -> None:
    found = merged(loaded(TWO, ENVIRON), offers(one="two/qwen one/q three/x", two=""))
    assert names(found) == {"one/two/qwen": (), "one/one/q": (), "one/three/x": ("three/x",)}


def test_what_is_named_is_there_before_it_is_found(loaded: Load) -> None:
    config = loaded(
        TWO
        + """\
[server]
default_model = "two/other"
[schedule]
windows = [{ name = "n", from = "02:00", to = "06:00", only = ["own", "one/n", "one/f"], fallback = "one/f" }]
[routes.r]
members = ["own", "one/m"]
rules = [{ tools = true, use = "two/u" }]
policy = "classifier"
classifier = { model = "own", labels = { x = "one/l" }, fallback = "own" }
""",
        ENVIRON,
    )
    written = {"two/other", "one/n", "one/f", "one/m", "two/u", "one/l"}
    assert names(config) == dict.fromkeys(written, ())
    found = merged(config, {"one": (Offer(name="m", max_model_len=512),), "two": (Offer(name="other"),)})
    assert set(names(found)) == written
    assert names(found)["one/m"] == ("m",)
    assert found.models["one/m"].max_model_len == 512
    assert found.routes == config.routes


def test_alone_nothing_leads_to_a_peer(loaded: Load) -> None:
    config = loaded(
        TWO
        + """\
[server]
default_model = "theirs"
[routes.both]
members = ["one/a", "own"]
rules = [{ tools = true, use = "theirs" }, { images = true, use = "one/b" }, { client = "x", use = "own" }]
policy = "classifier"
classifier = { model = "own", labels = { a = "one/a", b = "own" }, fallback = "own" }
[routes.theirs]
members = ["one/a"]
rules = [{ tools = true, use = "own" }]
[routes.asks]
members = ["own"]
policy = "classifier"
classifier = { model = "one/c", labels = { a = "own" }, fallback = "own" }
""",
        ENVIRON,
    )
    ours = alone(merged(config, offers(one="a q")))
    assert list(ours.models) == ["own"]
    assert list(ours.routes) == ["both", "asks"]
    both, asks = ours.routes["both"], ours.routes["asks"]
    assert (both.members, [rule.use for rule in both.rules]) == (("own",), ["own"])
    assert both.classifier is not None
    assert both.classifier.labels == {"b": "own"}
    assert (asks.policy, asks.classifier) == (Choice.LEAST_BUSY, None)
    plain = replace(config, models={"own": config.models["own"]}, routes={})
    assert alone(plain) is plain


@pytest.mark.parametrize(
    ("text", "path", "begins"),
    [
        ('[peers.p]\nurl = "http://u:p@host"', "peers.p.url", NOT_SHOWN + ": a URL is no place"),
        ('[peers.p]\nurl = "http://host/llm/v1"', "peers.p.url", NOT_SHOWN + ": an llm-super"),
        ('[peers.p]\nurl = "host:8000"', "peers.p.url", NOT_SHOWN),
        ("[peers.p]\nmodels = []", "peers.p", "cannot tell where this peer is"),
        (
            '[peers.p]\nurl = "http://h"\nkey_env = "A"\nkey_file = "b"',
            "peers.p.key_file",
            "cannot use two keys",
        ),
        (
            '[peers.p]\nurl = "http://h"\n[peers.q]\nurl = "http://H/v1"',
            "peers.q.url",
            "cannot use this address twice: peers.p",
        ),
        ('[peers.p]\nurl = "http://localhost:8000"', "peers.p.url", "cannot be a peer of itself"),
        ('[peers.p]\nurl = "http://[::1]:8000/v1"', "peers.p.url", "cannot be a peer of itself"),
        (
            '[server]\nlisten = ["10.0.0.7:80"]\n[peers.p]\nurl = "http://10.0.0.7"',
            "peers.p.url",
            "cannot be a peer of itself",
        ),
        (
            '[peers.p]\nurl = "http://h"\n[models.m]\nsource = "org/m"\naliases = ["p/x"]',
            "models.m.aliases[0]",
            'cannot use the alias "p/x"',
        ),
        (
            '[peers.p]\nurl = "http://h"\n[routes.r]\nmembers = ["q/x"]',
            "routes.r.members[0]",
            'cannot find a model named "q/x"',
        ),
    ],
)
def test_mistakes(problems: Problems, text: str, path: str, begins: str) -> None:
    [problem] = problems(text + "\n")
    assert problem.path == path
    assert problem.found.startswith(begins), problem.found
    assert "u:p" not in str(problem)


@pytest.mark.parametrize(
    "text",
    ['url = "http://localhost:8001"', 'url = "http://10.0.0.8:8000"', 'url = "http://gpu2.lan:8000"'],
)
def test_others_are_no_peers_of_themselves(loaded: Load, text: str) -> None:
    assert loaded(f'[server]\nlisten = ["127.0.0.1:8000"]\n[peers.p]\n{text}\n').peers


def test_a_key_over_the_internet_wants_tls_and_patterns_may_match_later(loaded: Load) -> None:
    text = '[peers.p]\nurl = "http://peer.example.org"\nkey_env = "K"\n'
    config = loaded(text + f"[clients.c]\nkey_sha256 = '{'a' * 64}'\nmodels = ['p/*']\n", {"K": "k"})
    [warning] = warnings(config)
    assert warning.startswith("peers.p.url: its key crosses the internet unencrypted")
