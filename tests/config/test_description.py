"""The one description of the settings: parser, schema, reference page, examples and values agree."""

import dataclasses
import tomllib
from collections.abc import Iterator
from datetime import UTC, time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from supervisord_llm.config import reference
from supervisord_llm.config.document import Document, Report, Source, merge
from supervisord_llm.config.keys.root import ROOT
from supervisord_llm.config.kinds import Key, Kind, ListOf, MapOf, OneOf, Table
from supervisord_llm.config.load import load
from supervisord_llm.config.model import (
    Client,
    Host,
    Limits,
    Model,
    Peer,
    Queue,
    RequestPolicy,
    Restart,
    Server,
    Site,
    Venv,
    Vram,
)
from supervisord_llm.config.parse import Surroundings, parse
from supervisord_llm.config.problem import Problem
from supervisord_llm.config.read import read_kind
from supervisord_llm.config.schema import json_schema
from supervisord_llm.core.calendar import EVERY_DAY, Hours, Schedule, Window
from supervisord_llm.core.routes.route import Classifier, Route
from tests.config.conftest import SHORT, Load, Problems

ROOM = Path(__file__).parents[2]
EXAMPLES = sorted((ROOM / "etc").glob("*.toml"))
VALIDATOR = jsonschema.Draft7Validator(json_schema())

EVERY_KEY = (Path(__file__).parent / "every-key.toml").read_text()


def keys(kind: Kind, path: str = "") -> Iterator[tuple[str, Key]]:
    """Every key of the description, with its dotted path; NAME stands for a name that the user chooses."""
    match kind:
        case Table():
            for key in kind.keys:
                at = f"{path}.{key.name}".lstrip(".")
                yield at, key
                yield from keys(key.kind, at)
        case MapOf():
            yield from keys(kind.item, f"{path}.NAME")
        case ListOf():
            yield from keys(kind.item, path)
        case OneOf():
            for option in kind.options:
                yield from keys(option, path)
        case _:
            return


ALL = dict(keys(ROOT))


# --- examples -------------------------------------------------------------------------------


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_an_example_is_valid_as_it_stands(file: Path) -> None:
    config = load(file, SHORT)
    assert config.models
    VALIDATOR.validate(tomllib.loads(file.read_text()))


def test_there_is_an_example_for_each_use() -> None:
    assert {file.name for file in EXAMPLES} >= {
        "config.toml",
        "one-gpu.toml",
        "two-gpus.toml",
        "cpu-only.toml",
    }


def test_the_general_example_shows_every_supported_key() -> None:
    """Set or in a comment, as `key = ` at the beginning of a line or inside an inline table."""
    text = (ROOM / "etc" / "config.toml").read_text()
    shown = {
        line.lstrip("# ").partition(" =")[0]
        for line in text.replace("{", "\n").replace(",", "\n").splitlines()
    }
    settings = {
        key.name for _, key in ALL.items() if key.supported and not isinstance(key.kind, MapOf | Table)
    }
    assert settings - {word.strip() for word in shown} == set()


def test_the_general_example_shows_the_defaults() -> None:
    """Where the example sets a key of the daemon, it is the value that leaving it out would give."""
    written = load(ROOM / "etc" / "config.toml", SHORT)
    assert dataclasses.replace(written.server, default_model=None) == Server()
    assert written.vram == Vram()
    assert written.host == Host()
    chat = written.models["chat"]
    bare = Model(name="chat", source="x", flags={}, env={})
    for name in (
        "start_timeout_s",
        "stall_timeout_s",
        "min_residency_s",
        "idle_stop_after_s",
        "restart",
        "keep",
    ):
        assert getattr(chat, name) == getattr(bare, name), name


# --- defaults ---------------------------------------------------------------------------------


VALUES: dict[str, Any] = {
    "server": Server(),
    "clients.NAME": Client(name="a", key_digests=()),
    "sites.NAME": Site(name="a", upstream="http://a"),
    "vram": Vram(),
    "host": Host(),
    "models.NAME": Model(name="a", source="a", path="/a", flags={}, env={}),
    "models.NAME.queue": Queue(),
    "models.NAME.restart": Restart(),
    "models.NAME.limits": Limits(),
    "models.NAME.request": RequestPolicy(),
    "models.NAME.venv": Venv(),
    "venvs.NAME": Venv(),
    "schedule": Schedule(zone=UTC),
    "schedule.windows": Window(name="a", hours=Hours(start=time(1), end=time(2))),
    "peers.NAME": Peer(name="a", url="http://a"),
    "routes.NAME": Route(name="a", members=("b",)),
    "routes.NAME.classifier": Classifier(model="a", labels={}, fallback="b"),
}
ELSEWHERE = {
    "models.NAME.engine": "vllm",
    "models.NAME.idle.stop_after": Model(name="a", source="a", flags={}, env={}).idle_stop_after_s,
    "schedule.windows.days": EVERY_DAY,
    "auth.required": True,
    "cors.allow_origins": (),
    "metrics.enabled": True,
    "metrics.public": False,
    "log.format": "auto",
}


@pytest.mark.parametrize(
    "path", [path for path, key in ALL.items() if key.default is not None and not path.startswith("defaults")]
)
def test_the_default_in_the_description_is_the_default_of_the_value(path: str) -> None:
    key = ALL[path]
    report = Report(Document())
    read = read_kind(report, key.kind, key.default, ())
    assert report.problems == []
    parent = path.rpartition(".")[0]
    assert read == (ELSEWHERE[path] if path in ELSEWHERE else getattr(VALUES[parent], key.attribute))


# --- every key is known -------------------------------------------------------------------------


def parsed(values: dict[str, Any]) -> list[Problem]:
    paths = load(EXAMPLES[0], SHORT).paths
    document = merge([Source(Path("/c.toml"), values, {})])
    found = parse(document, Surroundings(Path("/"), paths, lambda _way, name: name.encode()))
    return found if isinstance(found, list) else []


def test_every_key_of_the_full_plan_is_known() -> None:
    """What cannot be used yet says so: no key is unknown, and none is silently ignored."""
    found = parsed(tomllib.loads(EVERY_KEY))
    assert [str(problem) for problem in found if "not supported yet" not in str(problem)] == []
    refused = {problem.path for problem in found}
    assert refused == {"backup"}


def test_the_full_plan_names_every_key_of_the_description() -> None:
    plan = tomllib.loads(EVERY_KEY)

    def named(path: str, value: Any, kind: Kind) -> Iterator[str]:
        match kind:
            case Table() if isinstance(value, dict):
                for key in kind.keys:
                    if key.name in value:
                        at = f"{path}.{key.name}".lstrip(".")
                        yield at
                        yield from named(at, value[key.name], key.kind)
            case MapOf() if isinstance(value, dict):
                for item in value.values():
                    yield from named(f"{path}.NAME", item, kind.item)
            case ListOf() if isinstance(value, list):
                for item in value:
                    yield from named(path, item, kind.item)
            case OneOf():
                for option in kind.options:
                    yield from named(path, value, option)
            case _:
                return

    missing = set(ALL) - set(named("", plan, ROOT))
    assert {path for path in missing if not path.startswith("defaults.")} == set()


# --- schema ---------------------------------------------------------------------------------------


def test_the_schema_is_a_schema_and_has_every_key() -> None:
    jsonschema.Draft7Validator.check_schema(json_schema())

    def properties(fragment: dict[str, Any], path: str = "") -> Iterator[str]:
        for name, inner in fragment.get("properties", {}).items():
            at = f"{path}.{name}".lstrip(".")
            assert inner["description"], at
            yield at
            yield from properties(inner, at)
        if isinstance(fragment.get("additionalProperties"), dict):
            yield from properties(fragment["additionalProperties"], f"{path}.NAME")
        inside = [fragment["items"]] if "items" in fragment else []
        for option in (*fragment.get("anyOf", ()), *inside):
            yield from properties(option, path)

    assert set(properties(json_schema())) == set(ALL)


@pytest.mark.parametrize("path", [path for path, key in ALL.items() if not key.supported])
def test_what_is_not_supported_yet_says_so_to_an_editor_and_is_marked(path: str) -> None:
    fragment: Any = json_schema()
    for part in path.split("."):
        fragment = fragment["additionalProperties"] if part == "NAME" else fragment["properties"][part]
    assert fragment["description"].startswith("not supported yet")
    assert not jsonschema.Draft7Validator(fragment).is_valid({})


MODEL = '[models.chat]\nsource = "org/chat"\n'
WINDOW = "[[schedule.windows]]\nname = 'n'\nfrom = '01:00'\n"
DIGEST = "a" * 64
CLIENT = f"[clients.a]\nkey_sha256 = '{DIGEST}'\n"
ROUTE = MODEL + "[routes.a]\nmembers = ['chat']\n"
SITE = '[sites.a]\nupstream = "http://a"\n'
AGREED = {
    "a size": (MODEL + 'vram = "64 gigs"', MODEL + 'vram = "64GiB"'),
    "a share": ('[vram]\nbudget = "90 percent"', '[vram]\nbudget = "90%"'),
    "a duration": ('[server]\nheartbeat = "1h30m"', '[server]\nheartbeat = 1.5'),
    "a range": (MODEL + 'restart.backoff = "2s"', MODEL + 'restart.backoff = "2s..3s"'),
    "an address": ('[server]\nlisten = ["8000"]', '[server]\nlisten = ["[::]:80", "unix:/a"]'),
    "an origin": ('[cors]\nallow_origins = ["example.org"]', '[cors]\nallow_origins = ["https://*.a.b"]'),
    "a network": ('[server]\ntrusted_proxies = ["lan"]', '[server]\ntrusted_proxies = ["::1", "unix"]'),
    "a host": (SITE + 'hosts = ["a b"]', SITE + 'hosts = ["A."]'),
    "a choice": ('[log]\nformat = "x"', '[log]\nformat = "text"'),
    "a boolean": (MODEL + "keep = 1", MODEL + "keep = true"),
    "a number": (MODEL + "max_concurrent = 0", MODEL + "max_concurrent = 1"),
    "GPUs": (MODEL + 'gpus = ["0"]', MODEL + 'gpus = ["GPU-0a"]'),
    "cores": (MODEL + "limits.cpu = 0.001", MODEL + "limits.cpu = 0.01"),
    "too many cores": (MODEL + "limits.cpu = inf", MODEL + "limits.cpu = 192"),
    "a level of sleep": (MODEL + "idle.sleep_level = 3", MODEL + "idle.sleep_level = 2"),
    "a flag's name": (MODEL + "flags.served_model_name = 'a'", MODEL + "flags.max_model_len = 1"),
    "a variable's name": (MODEL + "env.HF_HUB_OFFLINE = '0'", MODEL + "env.A = '0'"),
    "a model's name": ("[models.'a b']\nsource = 'a'", "[models.'a.b']\nsource = 'a'"),
    "a rate": ('[rate_limit]\nper_ip = "1/ms"', '[rate_limit]\nper_ip = "100/s"'),
    "several keys": ("[clients.a]\nkey_sha256 = ['a']", f"[clients.a]\nkey_sha256 = ['{DIGEST}']"),
    "an endpoint": (f"{CLIENT}endpoints = ['v1/embeddings']", f"{CLIENT}endpoints = ['chat/*', '*']"),
    "a field of requests": (MODEL + "request.force = { model = 'x' }", MODEL + "request.force = { a = 1 }"),
    "a limit of requests": (MODEL + "request.max = { stream = 1 }", MODEL + "request.max = { messages = 9 }"),
    "a path of engines": (
        MODEL + "request.allow = ['POST /sleep']",
        MODEL + "request.allow = ['POST /infill']",
    ),
    "a rule": (
        ROUTE + "rules = [{ tokens_over = '4k', use = 'chat' }]",
        ROUTE + "rules = [{ tools = true, use = 'chat' }]",
    ),
    "a rule's header": (
        ROUTE + "rules = [{ header = { Authorization = '*' }, use = 'chat' }]",
        ROUTE + "rules = [{ header = { X-Team = '*' }, use = 'chat' }]",
    ),
    "a policy": (ROUTE + "policy = 'random'", ROUTE + "policy = 'round-robin'"),
    "a time of day": (WINDOW + 'to = "25:00"', WINDOW + 'to = "24:00"'),
    "a time with seconds": (WINDOW + 'to = "2:00"', WINDOW + 'to = "02:00:30"'),
    "days": (WINDOW + 'to = "02:00"\ndays = ["monday"]', WINDOW + 'to = "02:00"\ndays = ["mon", "sun"]'),
    "more days": (WINDOW + 'to = "02:00"\ndays = "never"', WINDOW + 'to = "02:00"\ndays = "weekends"'),
    "a window's name": (WINDOW.replace("'n'", "'none'") + "to = '02:00'", WINDOW + "to = '02:00'"),
    "an unknown key": ("[auth]\nrequire = true", "[auth]\nrequired = true"),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "good"), AGREED.values(), ids=AGREED)
def test_an_editor_and_the_daemon_agree(bad: str, good: str, loaded: Load, problems: Problems) -> None:
    assert problems(bad)
    assert not VALIDATOR.is_valid(tomllib.loads(bad))
    assert loaded(good)
    VALIDATOR.validate(tomllib.loads(good))


# --- reference page ---------------------------------------------------------------------------------


def test_the_reference_page_is_fresh() -> None:
    page = (ROOM / "docs" / "configuration.md").read_text()
    assert page == reference.render(), "python -m supervisord_llm.config.reference > docs/configuration.md"


def test_the_reference_page_has_every_key() -> None:
    page = reference.render()
    assert [
        path for path, key in ALL.items() if f"`{key.name}`" not in page and f"`[{key.name}" not in page
    ] == []
