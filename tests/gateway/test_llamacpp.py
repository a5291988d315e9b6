"""What clients of llama.cpp's router find: states in the list, load and unload, and events."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from supervisord_llm.core.fleet import Engine, Learnt, ModelSpec
from supervisord_llm.core.state import State
from supervisord_llm.errors import ProvisionError
from supervisord_llm.gateway.api import llamacpp
from supervisord_llm.gateway.api.capabilities import capabilities
from supervisord_llm.gateway.api.catalog import Listed
from supervisord_llm.gateway.api.llamacpp import status_data
from tests.gateway.conftest import Build, client, config, key, model

CLIENTS = (client("me", models=("alpha",)), client("boss", admin=True))


@pytest.fixture(autouse=True)
def no_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "STEP_S", 0.0)


async def next_event(answer: aiohttp.ClientResponse) -> Any:
    async with asyncio.timeout(5):
        while not (line := await answer.content.readline()).startswith(b"data: "):
            assert line, "the stream ended"
        return json.loads(line[6:])


async def test_a_model_is_loaded_and_unloaded_and_the_events_tell_how_it_goes(build: Build) -> None:
    async with build(config(model("alpha", aliases=("a",)), clients=CLIENTS), held=("alpha",)) as house:
        async with house.http.get("/models/sse", headers=key("me")) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            order = {"model": "a"}
            loaded = await house.ask("POST", "/models/load", json=order, headers=key("boss"))
            assert (loaded.status, loaded.json) == (200, {"success": True}), "it does not wait for the load"
            seen = [await next_event(answer), await next_event(answer)]
            assert {event["model"] for event in seen} == {"alpha", "a"}
            assert seen[0]["event"] == "model_status"
            assert seen[0]["data"]["status"] == "loading"
            house.launcher.held["alpha"].set()
            while (event := await next_event(answer))["data"]["status"] != "loaded":
                assert event["data"]["status"] == "loading"
            unloaded = await house.ask("POST", "/models/unload", json=order, headers=key("boss"))
            assert unloaded.json == {"success": True}
            while (await next_event(answer))["data"]["status"] != "unloaded":
                pass
        await house.until(lambda: len(house.runtime.observers) == 1)
        await house.until(lambda: house.state("alpha") is State.STOPPED)


async def test_the_list_is_that_of_v1(build: Build) -> None:
    async with build(config(model("alpha"), model("org/beta"), clients=CLIENTS)) as house:
        listed = await house.ask("GET", "/models", headers=key("me"))
        assert listed.json == (await house.ask("GET", "/v1/models", headers=key("me"))).json
        assert [entry["id"] for entry in listed.json["data"]] == ["alpha"]
        for path in ("/models/org/beta", "/v1/models/org%2Fbeta"):
            assert (await house.ask("GET", path, headers=key("boss"))).json["id"] == "org/beta"


async def test_a_load_that_is_refused_at_once_is_told(build: Build) -> None:
    async with build(config(model("alpha"), clients=CLIENTS)) as house:
        house.provisioner.error = ProvisionError("cannot find the weights; run `pull`")
        answer = await house.ask("POST", "/models/load", json={"model": "alpha"}, headers=key("boss"))
        assert (answer.status, answer.code) == (503, "start_failed")


@pytest.mark.parametrize(
    ("method", "path", "who", "body", "status", "code"),
    [
        ("POST", "/models/load", "me", {"model": "alpha"}, 403, "admin_required"),
        ("POST", "/models/unload", "me", {"model": "alpha"}, 403, "admin_required"),
        ("POST", "/models/load", "boss", {"model": "alpa"}, 404, "model_not_found"),
        ("POST", "/models/load", "boss", {}, 400, "invalid_json"),
        ("POST", "/models/load", "boss", [], 400, "invalid_json"),
        ("GET", "/models/load", "boss", None, 405, "method_not_allowed"),
        ("POST", "/models", "boss", {"model": "org/new"}, 501, "not_supported"),
        ("DELETE", "/models?model=alpha", "boss", None, 501, "not_supported"),
        ("PUT", "/models", "boss", None, 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_for_everyone_or_for_no_one(
    build: Build, method: str, path: str, who: str, body: Any, status: int, code: str
) -> None:
    async with build(config(model("alpha"), clients=CLIENTS)) as house:
        answer = await house.ask(method, path, json=body, headers=key(who))
        assert (answer.status, answer.code) == (status, code)
        assert house.launcher.launches == []


async def test_a_reload_ends_the_events_for_names_and_rights_are_others(build: Build) -> None:
    async with (
        build(config(model("alpha"))) as house,
        house.http.get("/models/sse") as answer,
    ):
        house.gateway.configure(config(model("alpha"), model("beta")))
        start = asyncio.ensure_future(house.runtime.start("alpha"))
        assert await next_event(answer) == {"model": "*", "event": "models_reload"}
        async with asyncio.timeout(5):
            assert (await answer.content.read()).strip() == b""
        await start


def listed(state: State, **fields: Any) -> Listed:
    spec = ModelSpec(name="m", learnt=Learnt())
    engine = Engine(spec=spec, state=state, **fields)
    own = model("m")
    return Listed("m", own, own, engine, None, capabilities(own, engine, None, None, ""))


@pytest.mark.parametrize(
    ("state", "fields", "expected"),
    [
        (State.STOPPED, {}, {"status": "unloaded"}),
        (State.SLEEPING, {}, {"status": "sleeping"}),
        (State.READY, {"fraction": 1.0}, {"status": "loaded"}),
        (State.QUEUED, {}, {"status": "loading"}),
        (
            State.STARTING,
            {"phase": "loading weights", "fraction": 0.4},
            {
                "status": "loading",
                "progress": {"stages": ["loading weights"], "current": "loading weights", "value": 0.4},
            },
        ),
        (State.FAILED, {}, {"status": "unloaded", "exit_code": 1}),
    ],
)
def test_states_in_llama_cpps_words(state: State, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert status_data(listed(state, **fields)) == expected
