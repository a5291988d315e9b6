"""LoRA adapters as models of their own, and replicas of a model: real processes, real HTTP."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.e2e.house import House, chat, running
from tests.fakes import make_adapter


async def ask(web: aiohttp.ClientSession, model: str | None, path: str = "", **more: Any) -> tuple[str, ...]:
    """What answers, as the answer, its `model` and its header tell."""
    body = chat(model or "", **more)
    if model is None:
        del body["model"]
    async with web.post(f"{path}/v1/chat/completions", json=body) as answer:
        told = await answer.json()
        assert answer.status == 200, told
        return told["choices"][0]["message"]["content"], told["model"], answer.headers["X-LLM-Model"]


@pytest.fixture
async def admin(house: House) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the control socket."""
    control = aiohttp.UnixConnector(str(house.root / "runtime" / "control.sock"), force_close=True)
    async with aiohttp.ClientSession("http://x", connector=control) as session:
        yield session


def argv(house: House) -> list[str]:
    """Of the one engine that runs."""
    (engine,) = [each for each in house.engines() if "serve" in each.cmdline()]
    return engine.cmdline()


def adapted(house: House, **own: Any) -> dict[str, dict[str, object]]:
    adapter = make_adapter(house.root / "sql", rank=24)
    return {
        "coder": house.fake(aliases=["c"]),
        "sql": {"adapter_of": "coder", "source": str(adapter), "aliases": ["query"], **own},
    }


class TestAdapters:
    """One engine, two models."""

    async def test_base_and_adapter_answer_from_one_engine(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure(adapted(house))
        async with running(house):
            assert await ask(web, "sql") == ("I am sql.", "sql", "sql")
            assert await ask(web, "query") == ("I am sql.", "sql", "sql")
            assert await ask(web, None, "/sql") == ("I am sql.", "sql", "sql")
            assert await ask(web, "c") == ("I am coder.", "coder", "coder")
            words = argv(house)
            assert "--enable-lora" in words
            assert words[words.index("--max-lora-rank") + 1] == "32"

    async def test_lists_and_orders_know_whose_engine_it_is(
        self, house: House, web: aiohttp.ClientSession, admin: aiohttp.ClientSession
    ) -> None:
        house.configure(adapted(house))
        async with running(house):
            async with admin.post("/admin/start", json={"model": "query"}) as answer:
                assert await answer.json() == {"model": "sql", "state": "ready", "served_by": "coder"}
            async with web.get("/v1/models") as answer:
                listed = {entry["id"]: entry for entry in (await answer.json())["data"]}
            assert [listed[name]["parent"] for name in ("coder", "sql", "query")] == [None, "coder", "coder"]
            assert {entry["status"]["value"] for entry in listed.values()} == {"loaded"}
            assert listed["sql"]["root"] == str(house.root / "sql")
            assert listed["sql"]["max_model_len"] == listed["coder"]["max_model_len"]
            async with admin.get("/admin/status") as answer:
                models = (await answer.json())["models"]
            assert models.keys() == {"coder"}
            assert models["coder"]["adapters"] == ["sql"]
            async with admin.get("/admin/explain/sql") as answer:
                assert (await answer.json())["model"] == "coder"
            async with admin.post("/admin/stop", json={"model": "sql"}) as answer:
                assert (await answer.json())["state"] == "stopped"

    async def test_an_adapter_has_its_own_rules_rights_and_figures(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        own = {"system_prompt": "Answer in SQL.", "request": {"force": {"temperature": 0}}}
        only = {"clients.analyst": {"key_env": "ANALYST", "models": ["sql"]}}
        house.environ["ANALYST"] = "sk-analyst"
        house.configure(adapted(house, **own), auth={"required": True}, **only)
        headers = {"Authorization": "Bearer sk-analyst"}
        async with running(house):
            body: dict[str, Any] = chat("sql")
            body["messages"][0]["content"] = "echo"
            async with web.post("/v1/chat/completions", json=body, headers=headers) as answer:
                sent = (await answer.json())["choices"][0]["message"]["content"]
            assert "Answer in SQL." in sent
            assert '"temperature":0' in sent
            async with web.post("/v1/chat/completions", json=chat("coder"), headers=headers) as answer:
                assert answer.status == 403
            async with web.get("/metrics", headers=headers) as answer:
                counted = await answer.text()
        assert 'llm_supervisor_requests_total{code="200",model="sql"} 1.0' in counted
        assert 'llm_supervisor_requests_total{code="200",model="coder"} 0.0' in counted

    async def test_a_reload_that_adds_one_has_the_base_launched_again(
        self, house: House, web: aiohttp.ClientSession, admin: aiohttp.ClientSession
    ) -> None:
        models = adapted(house)
        house.configure({"coder": models["coder"]})
        async with running(house):
            assert (await ask(web, "coder"))[0] == "I am coder."
            house.configure(models)
            async with admin.post("/admin/reload") as answer:
                assert (await answer.json())["changed"] == ["coder"]
            assert (await ask(web, "sql"))[0] == "I am sql."

    async def test_an_adapter_that_is_not_there_is_told_before_a_launch(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        models = adapted(house)
        (house.root / "sql" / "adapter_config.json").unlink()
        house.configure(models)
        async with running(house):
            async with web.post("/v1/chat/completions", json=chat("sql")) as answer:
                assert answer.status == 503
                why = (await answer.json())["error"]["message"]
            assert "adapter_config.json: `source` of models.sql must be a LoRA adapter" in why
            assert house.engines() == []
        checked = house.cli("check", check=False)
        assert checked.returncode == 1
        assert "adapter_config.json" in checked.stdout

    async def test_check_and_plan_show_it_with_its_base(self, house: House) -> None:
        house.configure(adapted(house))
        shown = house.cli("check", check=False).stdout
        assert "is a LoRA adapter that the engine of models.coder serves" in shown
        assert "sql" not in house.cli("plan", check=False).stdout


class TestReplicas:
    """One name, two engines."""

    async def test_replicas_serve_by_their_name_and_by_that_of_the_model(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        llama = house.fake(aliases=["l"]) | {"replicas": 2}
        special = {"extends": "llama", "flags": {"max-model-len": 2048}}
        house.configure({"llama": llama, "llama_1": special})
        async with running(house):
            async with web.get("/v1/models") as answer:
                listed = {entry["id"]: entry["max_model_len"] for entry in (await answer.json())["data"]}
            assert listed == {"llama": 4096, "l": 4096, "llama_0": 4096, "llama_1": 2048}
            said = [await ask(web, name) for name in ("llama_0", "llama_1")]
            assert [model for *_, model in said] == ["llama_0", "llama_1"]
            both = await asyncio.gather(*(ask(web, "l") for _ in range(4)))
            assert {model for *_, model in both} == {"llama_0", "llama_1"}
            assert (await ask(web, None, "/llama"))[2] in ("llama_0", "llama_1")
            async with web.post("/llama_0/v1/chat/completions", json=chat("llama")) as answer:
                assert answer.status == 404
