"""LoRA adapters in the configuration: models that another model's engine serves."""

from dataclasses import replace
from pathlib import Path

from supervisord_llm.config.signature import signature
from supervisord_llm.gpu.budget import Budgets
from supervisord_llm.gpu.specs import model_specs
from tests.config.conftest import Load

BASE = """
[models.coder]
source = "org/coder"
aliases = ["c"]
max_concurrent = 4
tools = "strip"
system_prompt = "Write code."
flags = { max-model-len = 4096 }
"""
ADAPTER = '[models.sql]\nadapter_of = "coder"\nsource = "org/sql"\n'


def test_an_adapter_is_in_its_base_and_has_its_engines_settings(loaded: Load) -> None:
    config = loaded(BASE + ADAPTER)
    coder, sql = config.models["coder"], config.models["sql"]
    assert [adapter.name for adapter in coder.adapters] == ["sql"]
    assert (sql.source, sql.path, sql.aliases, sql.adapters) == ("org/sql", "/sql", (), ())
    assert (sql.flags, sql.max_concurrent, sql.tools) == (coder.flags, 4, "strip")
    assert sql.system_prompt is None
    assert config.with_engines == (coder,)
    assert [config.engine_of(name) for name in ("coder", "sql", "a-route")] == ["coder", "coder", "a-route"]


def test_of_defaults_it_takes_what_is_about_requests(loaded: Load) -> None:
    defaults = '[defaults]\nkeep = true\nsystem_prompt = "Be brief."\ntools = "pass"\n'
    sql = loaded(defaults + BASE + ADAPTER).models["sql"]
    assert (sql.system_prompt, sql.tools, sql.keep) == ("Be brief.", "strip", True)
    sql = loaded(defaults + BASE + ADAPTER + 'tools = "auto"').models["sql"]
    assert sql.tools == "auto"


def test_a_source_is_a_directory_beside_the_file_or_a_hub_id(loaded: Load, tmp_path: Path) -> None:
    sql = loaded(BASE + ADAPTER.replace("org/sql", "./sql")).models["sql"]
    assert sql.source == str(tmp_path / "sql")


def test_the_core_knows_the_base_alone(loaded: Load) -> None:
    server = '[server]\ndefault_model = "sql"\npreload = ["sql", "c", "sql"]\n'
    config = loaded(server + BASE + ADAPTER)
    assert config.server.default_model == "sql"
    assert config.server.preload == ("coder",)
    (spec,) = model_specs(config, Budgets(()))
    assert (spec.name, spec.comes_back) == ("coder", True)


def test_adapters_are_of_the_shape_of_the_process(loaded: Load) -> None:
    alone = loaded(BASE).models["coder"]
    coder = loaded(BASE + ADAPTER).models["coder"]
    pinned = loaded(BASE + ADAPTER + 'revision = "main"').models["coder"]
    talking = loaded(BASE + ADAPTER + 'system_prompt = "Hi."\naliases = ["q"]').models["coder"]
    assert len({signature(each) for each in (alone, coder, pinned)}) == 3
    assert signature(talking) == signature(coder)
    assert signature(replace(coder, adapters=())) == signature(alone)
