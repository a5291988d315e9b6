"""Who may do what, over HTTP."""

import ast
import inspect
from typing import Any

import pytest

from supervisord_llm.gateway import auth
from tests.gateway.conftest import CHAT, Build, client, config, key, model, running

CLIENTS = (
    client("webui"),
    client("small", models=("alpha*", "nick*"), priority=5),
    client("root", admin=True),
)
MODELS = (model("alpha"), model("beta", aliases=("b",)), model("gamma", aliases=("nickname",)))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic key-webui"},
        {"Authorization": "key-webui"},
        {"x-api-key": "wrong"},
        {"api-key": ""},
        {"Cookie": "api_key=key-webui"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Original-URL": "/healthz"},
        {"Authorization": "Bearer \N{SNOWMAN}"},
        [("Authorization", "Bearer key-webui"), ("Authorization", "Bearer wrong")],
    ],
)
async def test_without_a_right_key_nothing_is_told(build: Build, headers: Any) -> None:
    async with build(config(*MODELS, clients=CLIENTS)) as house:
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/routes"),
            ("GET", "/metrics"),
            ("GET", "/admin/status"),
            ("GET", "/no/such/path"),
            ("POST", "/v1/chat/completions?api_key=key-webui"),
        ):
            answer = await house.ask(method, path, headers=headers)
            assert (answer.status, answer.code) == (401, "invalid_api_key")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert house.launcher.launches == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer key-webui"},
        {"Authorization": "bearer   key-webui"},
        {"x-api-key": "key-webui"},
        {"api-key": "key-webui"},
        {"Authorization": "Bearer dummy", "api-key": "key-webui"},
    ],
)
async def test_every_way_to_send_a_key(build: Build, headers: dict[str, str]) -> None:
    async with build(config(*MODELS, clients=CLIENTS)) as house:
        assert (await house.ask("GET", "/v1/models", headers=headers)).status == 200


async def test_a_key_opens_its_models_alone(build: Build) -> None:
    """Patterns are over names and aliases; what a key may not use, it is not told of."""
    async with build(config(*MODELS, clients=CLIENTS)) as house:
        small = key("small")
        listed = (await house.ask("GET", "/v1/models", headers=small)).json["data"]
        assert [entry["id"] for entry in listed] == ["alpha", "gamma", "nickname"]
        for path in ("/v1/chat/completions", "/beta/v1/chat/completions"):
            answer = await house.chat(path=path, model="beta", headers=small)
            assert (answer.status, answer.code) == (403, "model_forbidden")
        assert (await house.ask("GET", "/v1/models/b", headers=small)).code == "model_forbidden"
        assert (await house.ask("GET", "/beta/v1/models", headers=small)).code == "model_forbidden"
        unknown = await house.chat(model="bet", headers=small)
        assert (unknown.status, unknown.code) == (404, "model_not_found")
        assert "beta" not in unknown.json["error"]["message"]
        assert set((await house.ask("GET", "/routes", headers=small)).json["routes"]) == {"alpha", "gamma"}
        assert set((await house.ask("GET", "/stats", headers=small)).json["models"]) == {"alpha", "gamma"}
        assert (await house.chat(headers=small)).status == 200
        assert house.launcher.launches == ["alpha"]


async def test_admin_takes_an_admins_key(build: Build) -> None:
    async with build(config(*MODELS, clients=CLIENTS)) as house:
        answer = await house.ask("GET", "/admin/status", headers=key("webui"))
        assert (answer.status, answer.code) == (403, "admin_required")
        assert (await house.ask("GET", "/admin/status", headers=key("root"))).status == 200
        assert (await house.ask("GET", "/admin/status", control=True)).status == 200


async def test_without_required_keys_everyone_may_ask_but_nobody_administrates(build: Build) -> None:
    async with build(config(*MODELS, clients=CLIENTS, auth_required=False)) as house:
        for headers in ({}, {"Authorization": "Bearer anything"}):
            assert (await house.ask("GET", "/v1/models", headers=headers)).status == 200
            assert (await house.ask("GET", "/admin/status", headers=headers)).code == "admin_required"
        assert (await house.ask("GET", "/admin/status", headers=key("root"))).status == 200


async def test_source_and_priority_reach_the_queue(build: Build) -> None:
    async with build(config(*MODELS, clients=CLIENTS), held=("alpha",)) as house:
        request = house.http.post("/v1/chat/completions", json=CHAT, headers=key("small"))
        async with running(request):
            await house.until(lambda: bool(house.runtime.fleet.engines["alpha"].waiting))
            (waiting,) = house.runtime.fleet.engines["alpha"].waiting
            assert (waiting.source, waiting.priority) == ("small", 5)


async def test_no_100_continue_before_the_key(build: Build) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n"
    async with build(config(*MODELS, clients=CLIENTS)) as house:
        answer = await house.raw(head + b"Content-Type: application/json\r\nContent-Length: 10\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 401 ")


async def test_metrics_can_be_public(build: Build) -> None:
    async with build(config(*MODELS, clients=CLIENTS, metrics_public=True)) as house:
        assert (await house.ask("GET", "/metrics")).status == 200
    async with build(config(*MODELS, metrics_enabled=False)) as house:
        assert (await house.ask("GET", "/metrics")).code == "not_found"


def test_keys_are_compared_in_constant_time_only() -> None:
    tree = ast.parse(inspect.getsource(auth.Keyring))
    compared = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    assert compared == ["found is None", "found is None", "found is None"]
    assert "hmac.compare_digest" in ast.unparse(tree)
