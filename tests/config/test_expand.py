"""`extends` and `replicas` are short for tables that could have been written by hand."""

import copy
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.config.document import Document, Report, Source, merge
from supervisord_llm.config.expand import expand
from tests.config.conftest import UNHURRIED, Load

SAME: Mapping[str, tuple[str, str]] = {
    "a model that says nothing else": (
        """
        a = { source = "org/a", vram = "8GiB", keep = true }
        b = { extends = "a" }
        """,
        """
        a = { source = "org/a", vram = "8GiB", keep = true }
        b = { source = "org/a", vram = "8GiB", keep = true }
        """,
    ),
    "one that comes before its base, in a line of three": (
        """
        c = { extends = "b", vram = "1GiB" }
        b = { extends = "a", keep = true }
        a = { source = "org/a", vram = "8GiB" }
        """,
        """
        c = { source = "org/a", vram = "1GiB", keep = true }
        b = { source = "org/a", vram = "8GiB", keep = true }
        a = { source = "org/a", vram = "8GiB" }
        """,
    ),
    "tables merge as with [defaults], lists and inner tables do not": (
        """
        a = { source = "org/a", env = { A = "1" }, request = { default = { x = 1, y = 1 }, max_batch = 8 } }
        b = { extends = "a", env = { B = "2" }, request = { default = { y = 2 } } }
        """,
        """
        a = { source = "org/a", env = { A = "1" }, request = { default = { x = 1, y = 1 }, max_batch = 8 } }
        b = { source = "org/a", env = { A = "1", B = "2" }, request = { default = { y = 2 }, max_batch = 8 } }
        """,
    ),
    "a flag replaces the same in another spelling": (
        """
        a = { source = "org/a", flags = { max-model-len = 1, max_num_seqs = 1 } }
        b = { extends = "a", flags = { max_model_len = 2 } }
        """,
        """
        a = { source = "org/a", flags = { max-model-len = 1, max-num-seqs = 1 } }
        b = { source = "org/a", flags = { max-num-seqs = 1, max-model-len = 2 } }
        """,
    ),
    "what is a model's own": (
        """
        a = { source = "org/a", revision = "x", path = "/aa", aliases = ["aaa"] }
        b = { extends = "a" }
        c = { extends = "a", source = "org/c" }
        """,
        """
        a = { source = "org/a", revision = "x", path = "/aa", aliases = ["aaa"] }
        b = { source = "org/a", revision = "x" }
        c = { source = "org/c" }
        """,
    ),
    "replicas on the first GPUs": (
        'a = { source = "org/a", replicas = 2, keep = true }',
        """
        a_0 = { source = "org/a", path = false, gpus = [0], keep = true }
        a_1 = { source = "org/a", path = false, gpus = [1], keep = true }
        [routes.a]
        members = ["a_0", "a_1"]
        """,
    ),
    "replicas on GPUs of choice, two each": (
        'a = { source = "org/a", replicas = 2, gpus = [4, 5, 2, 3], tensor_parallel = 2 }',
        """
        a_4 = { source = "org/a", path = false, gpus = [4, 5], tensor_parallel = 2 }
        a_2 = { source = "org/a", path = false, gpus = [2, 3], tensor_parallel = 2 }
        [routes.a]
        members = ["a_4", "a_2"]
        """,
    ),
    "replicas of two GPUs each, by a flag": (
        'a = { source = "org/a", replicas = 2, flags = { pipeline_parallel_size = 2 } }',
        """
        a_0 = { source = "org/a", path = false, gpus = [0, 1], flags = { pipeline-parallel-size = 2 } }
        a_2 = { source = "org/a", path = false, gpus = [2, 3], flags = { pipeline-parallel-size = 2 } }
        [routes.a]
        members = ["a_0", "a_2"]
        """,
    ),
    "replicas without GPUs": (
        'a = { source = "org/a", replicas = 2, gpus = [] }',
        """
        a_0 = { source = "org/a", path = false, gpus = [] }
        a_1 = { source = "org/a", path = false, gpus = [] }
        [routes.a]
        members = ["a_0", "a_1"]
        """,
    ),
    "a replica with settings of its own": (
        """
        a_1 = { extends = "a", path = "/one", flags = { max-num-seqs = 2 } }
        a = { source = "org/a", replicas = 2, flags = { max-num-seqs = 1 } }
        """,
        """
        a_0 = { source = "org/a", path = false, gpus = [0], flags = { max-num-seqs = 1 } }
        a_1 = { source = "org/a", path = "/one", gpus = [1], flags = { max-num-seqs = 2 } }
        [routes.a]
        members = ["a_0", "a_1"]
        """,
    ),
    "path and aliases go to the route": (
        'a = { source = "org/a", replicas = 1, path = "/b", aliases = ["c"] }',
        """
        a_0 = { source = "org/a", path = false, gpus = [0] }
        [routes.a]
        members = ["a_0"]
        path = "/b"
        aliases = ["c"]
        """,
    ),
    "a route that is written": (
        """
        a = { source = "org/a", replicas = 2 }
        [routes.a]
        policy = "round-robin"
        """,
        """
        a_0 = { source = "org/a", path = false, gpus = [0] }
        a_1 = { source = "org/a", path = false, gpus = [1] }
        [routes.a]
        members = ["a_0", "a_1"]
        policy = "round-robin"
        """,
    ),
    "a model that extends one with replicas has one engine": (
        """
        a = { source = "org/a", replicas = 1, keep = true }
        b = { extends = "a" }
        """,
        """
        a_0 = { source = "org/a", path = false, gpus = [0], keep = true }
        b = { source = "org/a", keep = true }
        [routes.a]
        members = ["a_0"]
        """,
    ),
    "an adapter has what is not of an engine": (
        """
        a = { source = "org/a", gpus = [], system_prompt = "Be brief.", aliases = ["z"] }
        b = { extends = "a", adapter_of = "a", source = "/srv/b" }
        """,
        """
        a = { source = "org/a", gpus = [], system_prompt = "Be brief.", aliases = ["z"] }
        b = { adapter_of = "a", source = "/srv/b", system_prompt = "Be brief." }
        """,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("short", "long"), SAME.values(), ids=SAME)
def test_it_means_what_could_have_been_written_by_hand(short: str, long: str, loaded: Load) -> None:
    found, expected = loaded(f"[models]\n{short}"), loaded(f"[models]\n{long}")
    there = {name: replace(model, is_numbered=False) for name, model in found.models.items()}
    assert there == expected.models  # on a host with GPUs
    assert found.routes == expected.routes


def test_defaults_stay_below_the_base(loaded: Load) -> None:
    models = loaded(
        """
        [defaults]
        env = { A = "default", B = "default", C = "default" }
        keep = true
        [models]
        a = { source = "org/a", env = { B = "base", C = "base" }, keep = false }
        b = { extends = "a", env = { C = "own" } }
        """
    ).models
    assert models["b"].env == {"A": "default", "B": "base", "C": "own"}
    assert not models["b"].keep


def test_gpus_of_replicas_may_come_from_defaults(loaded: Load) -> None:
    models = loaded(
        """
        [defaults]
        gpus = [2, 3]
        [models]
        a = { source = "org/a", replicas = 2 }
        """
    ).models
    assert {name: model.gpus for name, model in models.items()} == {"a_2": (2,), "a_3": (3,)}


def test_a_base_and_its_replica_may_be_in_different_files(loaded: Load) -> None:
    config = loaded(
        '[models.a]\nsource = "org/a"\nreplicas = 2', **{"10-a": '[models.a_1]\nextends = "a"\nkeep = true'}
    )
    assert {name: model.keep for name, model in config.models.items()} == {"a_0": False, "a_1": True}


def test_five_lines_of_the_documentation_are_one_model_on_two_gpus_with_two_settings(loaded: Load) -> None:
    page = (Path(__file__).parents[2] / "docs" / "routing.md").read_text()
    section = page.partition("## Instances")[2]
    lines = section.partition("```toml\n")[2].partition("```")[0]
    assert len(lines.splitlines()) == 5
    config = loaded(lines)
    source = "meta-llama/Llama-3.1-8B-Instruct"
    assert {name: (model.source, model.gpus, dict(model.flags)) for name, model in config.models.items()} == {
        "llama_0": (source, (0,), {"max-model-len": 32768, "max-num-seqs": 8}),
        "llama_1": (source, (1,), {"max-num-seqs": 64}),
    }
    (route,) = config.routes.values()
    assert (route.name, route.members, route.policy) == ("llama", ("llama_0", "llama_1"), "least-busy")


# --- properties ------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "a_0", "a_1"])
TABLES = st.fixed_dictionaries(
    {},
    optional={
        "extends": NAMES | st.just("ghost") | st.just(1),
        "replicas": st.integers(0, 3) | st.just("x"),
        "source": st.just("org/a"),
        "revision": st.just("main"),
        "path": st.sampled_from(["/x", False]),
        "aliases": st.lists(NAMES, max_size=1),
        "gpus": st.just("auto") | st.lists(st.integers(-1, 3), max_size=4) | st.just({}),
        "tensor_parallel": st.integers(1, 2),
        "flags": st.dictionaries(st.sampled_from(["max-num-seqs", "max_num_seqs", "x"]), st.integers(0, 1)),
        "env": st.dictionaries(st.sampled_from("AB"), st.just("1")) | st.just(3),
        "adapter_of": NAMES,
        "engine": st.sampled_from(["vllm", "remote"]),
    },
)
PLANS = st.fixed_dictionaries(
    {"models": st.dictionaries(NAMES, TABLES | st.just(7), max_size=5)},
    optional={
        "defaults": st.fixed_dictionaries({}, optional={"gpus": st.lists(st.integers(0, 1))}) | st.just(1),
        "routes": st.dictionaries(NAMES, st.fixed_dictionaries({}, optional={"path": st.just("/r")}))
        | st.just(1),
    },
)


def document(values: dict[str, Any]) -> Document:
    return merge([Source(Path("/c.toml"), values, {})])


def expanded(before: Document) -> tuple[Document, Report]:
    report = Report(before)
    return expand(before, report), report


@UNHURRIED
@given(PLANS)
def test_nothing_is_left_to_expand_and_nothing_else_is_touched(values: dict[str, Any]) -> None:
    before = document(values)
    kept = copy.deepcopy(before.values)
    after, _ = expanded(before)
    assert before.values == kept
    again, report = expanded(after)
    assert again is after
    assert report.problems == []
    models = after.values["models"]
    replicated = {name for name, table in kept["models"].items() if table != 7 and "replicas" in table}
    for name, table in kept["models"].items():
        if table == 7 or not {"extends", "replicas"} & table.keys():
            assert models[name] == table
    for name in models.keys() - kept["models"].keys():
        assert name.rpartition("_")[0] in replicated
        assert models[name]["path"] is False
    assert {key: value for key, value in after.values.items() if key not in ("models", "routes")} == {
        key: value for key, value in kept.items() if key not in ("models", "routes")
    }


@UNHURRIED
@given(PLANS)
def test_every_value_of_an_expanded_table_was_written_somewhere(values: dict[str, Any]) -> None:
    """The line of whatever a model got from another is told of that other."""
    before = document(values)
    after, _ = expanded(before)
    for name, table in after.values["models"].items():
        for key, value in table.items() if table != 7 else ():
            written = after.written(("models", name, key))
            if key == "path" and value is False:
                continue  # that a replica has none is written nowhere
            if written in after.origins and key != "gpus":
                _, owner, *_ = written
                found = before.values["models"][owner][key]
                assert found == value or isinstance(value, dict)
            else:
                assert key == "gpus"


@UNHURRIED
@given(
    st.dictionaries(NAMES, TABLES, min_size=1).filter(
        lambda tables: all("replicas" not in t for t in tables.values())
    )
)
def test_a_model_has_its_own_keys_then_those_of_its_base(tables: dict[str, Any]) -> None:
    after, report = expanded(document({"models": tables}))
    if report.problems:
        return
    for name, table in tables.items():
        base = after.values["models"].get(table.get("extends"), {})
        for key, value in after.values["models"][name].items():
            if key in table:
                assert value == table[key] or (
                    isinstance(value, dict) and value.items() >= table[key].items()
                )
            else:
                assert value == base[key]


def test_a_document_with_neither_key_is_returned_as_it_is() -> None:
    before = document(tomllib.loads('[models.a]\nsource = "org/a"'))
    assert expanded(before)[0] is before
