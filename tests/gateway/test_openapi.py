"""The description of the admin API: valid, whole, and true of what the daemon answers."""

from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from supervisord_llm.gateway.api.openapi import OPERATIONS, document
from supervisord_llm.gateway.app import ENDPOINTS
from tests.gateway.conftest import Build, client, config, key, model

TELLING = {"/", "/healthz", "/health", "/routes", "/stats", "/metrics"}
BOSS = (client("boss", admin=True), client("me"))


def test_it_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(document(ENDPOINTS)).validate()


def test_it_tells_of_every_path_of_the_admin_api() -> None:
    assert set(OPERATIONS) == TELLING | {path for path in ENDPOINTS if path.startswith("/admin/")}


def test_methods_and_keys_are_those_of_the_route_table() -> None:
    paths = document(ENDPOINTS)["paths"]
    assert set(paths["/admin/start"]) == {"post"}
    assert paths["/healthz"]["get"]["security"] == []
    assert paths["/admin/status"]["get"]["security"] == [{"bearer": []}, {"key": []}]
    assert "403" not in paths["/stats"]["get"]["responses"]
    assert paths["/admin/sleep"]["post"]["responses"]["409"]["description"] == "not_possible"


async def test_it_is_for_admins(build: Build) -> None:
    async with build(config(model("alpha"), clients=BOSS)) as house:
        assert (await house.ask("GET", "/admin/openapi.json")).status == 401
        assert (await house.ask("GET", "/admin/openapi.json", headers=key("me"))).status == 403
        answer = await house.ask("GET", "/admin/openapi.json", headers=key("boss"))
        assert answer.json == document(ENDPOINTS)


def checker(path: str, status: int) -> Callable[[Any], None]:
    """Holds a JSON answer to the description."""
    described = document(ENDPOINTS)
    (operation,) = (each for name, each in described["paths"][path].items() if name in ("get", "post"))
    schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
    return Draft202012Validator({**schema, "components": described["components"]}).validate


@pytest.mark.parametrize(
    ("method", "path", "described", "status"),
    [
        *(("GET", path, path, 200) for path in ("/healthz", "/health", "/routes", "/stats")),
        *(("GET", path, path, 200) for path in ("/admin/status", "/admin/plan", "/admin/openapi.json")),
        ("GET", "/admin/explain/alpha", "/admin/explain/{model}", 200),
        ("GET", "/admin/explain/nope", "/admin/explain/{model}", 404),
        ("POST", "/admin/start", "/admin/start", 200),
        ("POST", "/admin/sleep", "/admin/sleep", 409),
        ("POST", "/admin/reload", "/admin/reload", 200),
        ("GET", "/admin/events?n=x", "/admin/events", 400),
        ("GET", "/admin/logs/alpha?follow=perhaps", "/admin/logs/{model}", 400),
    ],
)
async def test_answers_are_as_described(
    build: Build, method: str, path: str, described: str, status: int
) -> None:
    async with build(config(model("alpha"), clients=BOSS)) as house:
        body = {"json": {"model": "alpha"}} if method == "POST" else {}
        answer = await house.ask(method, path, headers=key("boss"), **body)
        assert answer.status == status
        checker(described, status)(answer.json)
