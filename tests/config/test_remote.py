"""Models elsewhere: their address, their key, and what of the configuration passes them by."""

from pathlib import Path

import pytest

from supervisord_llm.config.checks.checks import warnings
from supervisord_llm.config.load import load
from supervisord_llm.config.model import Rate
from supervisord_llm.config.remotes import keyless
from supervisord_llm.config.signature import signature
from supervisord_llm.gpu.budget import Budgets
from supervisord_llm.gpu.specs import model_specs
from tests.config.conftest import SHORT, Load

KEY = "sk-canary-0123456789"
GROK = '[models.grok]\nengine = "remote"\nurl = "https://api.x.ai/v1"\n'


def test_all_that_a_model_elsewhere_says(loaded: Load) -> None:
    more = 'source = "grok-4"\nkey_env = "XAI"\nrate = "60/m"\nmax_concurrent = 4\nstall_timeout = "30s"\n'
    grok = loaded(GROK + more, {"XAI": KEY}).models["grok"]
    assert (grok.engine, grok.source, grok.url) == ("remote", "grok-4", "https://api.x.ai/v1")
    assert (grok.key, grok.rate) == (KEY, Rate(60, 60.0))
    assert (grok.max_concurrent, grok.stall_timeout_s) == (4, 30.0)
    assert (grok.gpus, grok.idle_stop_after_s, grok.sleep_level) == ((), None, 0)


def test_it_is_called_there_as_it_is_here_unless_told_otherwise(loaded: Load) -> None:
    assert loaded(GROK).models["grok"].source == "grok"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("https://api.x.ai/v1/", "https://api.x.ai/v1"),
        ("HTTPS://API.X.AI/V1", "https://api.x.ai/V1"),
        ("http://192.168.1.20:8000/v1", "http://192.168.1.20:8000/v1"),
        ("http://[fd00::1]:8000/v1", "http://[fd00::1]:8000/v1"),
        ("https://api.perplexity.ai", "https://api.perplexity.ai"),
        ("https://api.perplexity.ai/", "https://api.perplexity.ai"),
        ("https://x.openai.azure.com/openai/v1", "https://x.openai.azure.com/openai/v1"),
    ],
)
def test_addresses(loaded: Load, written: str, read: str) -> None:
    config = loaded(f'[models.a]\nengine = "remote"\nurl = "{written}"')
    assert config.models["a"].url == read


def test_of_the_defaults_what_is_about_a_process_passes_it_by(loaded: Load) -> None:
    defaults = """\
[defaults]
gpus = [0]
vram = "8GiB"
keep = true
idle = { stop_after = "1m", sleep_after = "30s" }
flags = { max-model-len = 10 }
env = { A = "1" }
network = "host"
start_timeout = "1s"
max_concurrent = 3
queue = { size = 5 }
system_prompt = "Be brief."
request = { max = { max_tokens = 10 } }
"""
    models = GROK + "request.min = { max_tokens = 5 }\n[models.chat]\nsource = 'org/chat'\n"
    config = loaded(defaults + models)
    grok, chat = config.models["grok"], config.models["chat"]
    assert (grok.gpus, grok.vram, grok.keep, grok.idle_stop_after_s) == ((), "auto", False, None)
    assert (dict(grok.flags), dict(grok.env), grok.network) == ({}, {}, "isolated")
    assert (grok.max_concurrent, grok.system_prompt) == (3, "Be brief.")
    assert (grok.request.min, grok.request.max) == ({"max_tokens": 5}, {"max_tokens": 10})
    assert (chat.gpus, chat.keep) == ((0,), True)


# --- the key ------------------------------------------------------------------------------------


def test_a_key_from_a_file_or_a_credential(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "cred").mkdir()
    (tmp_path / "cred" / "xai").write_text(KEY + "2")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path / "cred")}
    by_file = GROK + 'key_file = "key"\n'
    by_credential = GROK.replace("grok", "two") + 'key_credential = "xai"\n'
    config = loaded(by_file + by_credential, environ)
    assert [model.key for model in config.models.values()] == [KEY, KEY + "2"]


def test_a_key_that_no_header_can_carry_is_no_key_and_not_told(loaded: Load) -> None:
    for key in ("schlüssel", "a\tb", "a\x00b", "one\ntwo"):
        config = loaded(GROK + 'key_env = "XAI"', {"XAI": key})
        grok = config.models["grok"]
        assert grok.key is None
        assert grok.no_key.startswith("its key_env leads to no key: ")
        assert key not in f"{config!r}"


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ('key_env = "UNSET"', "its key_env leads to no key: the variable UNSET is set in none of"),
        ('key_file = "nowhere"', "its key_file leads to no key: the file"),
        ('key_credential = "xai"', "its key_credential leads to no key: $CREDENTIALS_DIRECTORY is not set"),
    ],
)
def test_without_its_key_that_model_alone_is_disabled(
    loaded: Load, tmp_path: Path, way: str, why: str
) -> None:
    text = f'{GROK}{way}\n{GROK.replace("grok", "open")}[peers.p]\nurl = "http://peer"\n{way}\n'
    text += '[routes.r]\nmembers = ["p/chat", "open"]\n'
    config = loaded(text)
    assert [found.partition(": ")[0] for found in keyless(config)] == ["models.grok", "peers.p"]
    assert all(why in found for found in keyless(config))
    disabled = {spec.name: spec.disabled for spec in model_specs(config, Budgets())}
    assert disabled.pop("open") == ""
    for name, text in disabled.items():
        assert text.startswith(f"cannot start {name}: {why}")
    assert list(disabled) == ["grok", "p/chat"]
    assert list(keyless(load(tmp_path / "config.toml", SHORT, keys=False))) == []


def test_the_key_is_in_no_repr_and_unread_where_keys_are(loaded: Load, tmp_path: Path) -> None:
    config = loaded(GROK + 'key_env = "XAI"\n', {"XAI": KEY})
    assert KEY not in repr(config)
    unread = load(tmp_path / "config.toml", SHORT, keys=False)
    assert unread.models["grok"].key is None


# --- reloads and warnings -----------------------------------------------------------------------


def test_its_shape_is_its_address_and_its_name_there(loaded: Load) -> None:
    def shape(text: str, key: str = KEY) -> str:
        return signature(loaded(text, {"XAI": key}).models["grok"])

    plain = shape(GROK + 'key_env = "XAI"')
    assert shape(GROK + 'key_env = "XAI"', "another") == plain
    assert shape(GROK + 'rate = "1/s"\nstall_timeout = "1s"\nmax_concurrent = 1\naliases = ["g"]') == plain
    assert shape(GROK + 'key_env = "UNSET"') != plain, "what it would send has no key"
    assert shape(GROK + 'source = "grok-4"') != plain
    assert shape(GROK.replace("api", "eu")) != plain


@pytest.mark.parametrize(
    ("url", "warning"),
    [
        (
            "https://api.x.ai/v1/chat/completions/",
            (
                "models.a.url: ends with /chat/completions, which follows with each request; "
                'write "https://api.x.ai/v1"'
            ),
        ),
        (
            "https://api.x.ai/v1/models",
            'models.a.url: ends with /models, which follows with each request; write "https://api.x.ai/v1"',
        ),
        ("https://api.x.ai/models/v1", None),
        ("https://api.x.ai/v1", None),
    ],
)
def test_an_address_with_the_path_of_an_endpoint(loaded: Load, url: str, warning: str | None) -> None:
    found = [
        each for each in warnings(loaded(f'[models.a]\nengine = "remote"\nurl = "{url}"')) if "url" in each
    ]
    assert found == ([] if warning is None else [warning])


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        ("http://api.example.com/v1", True),
        ("http://8.8.8.8/v1", True),
        ("https://api.example.com/v1", False),
        ("http://192.168.1.20:8000/v1", False),
        ("http://127.0.0.1:8001/v1", False),
        ("http://[fd00::1]/v1", False),
        ("http://gpu2:8000/v1", False),
        ("http://gpu2.lan/v1", False),
        ("http://gpu2.local/v1", False),
    ],
)
def test_a_key_that_would_cross_the_internet_unencrypted(loaded: Load, url: str, warns: bool) -> None:
    text = f'[models.a]\nengine = "remote"\nurl = "{url}"\n'

    def told(more: str) -> list[str]:
        found = warnings(loaded(text + more, {"XAI": KEY}))
        return [each for each in found if each.startswith("models.a.url: its key crosses the internet")]

    assert len(told('key_env = "XAI"')) == warns
    assert told("") == [], "there is nothing to hide"
