"""Paths that a model's `request.allow` opens: its engine alone gets them, and nobody else's hears of them."""

import json
from typing import Any

import pytest

from supervisord_llm.config.model import RequestPolicy, Server
from supervisord_llm.core.routes.route import Route
from tests.gateway.conftest import Build, House, client, config, key, model
from tests.gateway.wire import CHAT, JSON, KEY, NotingEngine, framed, get, post, replies, request

ALPHA = model(
    "alpha",
    request=RequestPolicy(allow=("POST /v1/score2", "GET /v1/files", "POST /infill", "PUT /v1/score")),
)
BETA = model("beta", request=RequestPolicy(allow=("GET /v1/things",)))
BOTH = config(ALPHA, BETA, server=Server(default_model="alpha"))
FORM_TYPE = b"Content-Type: multipart/form-data; boundary=b\r\n"
FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%s\r\n--b--\r\n'


def scripts() -> dict[str, Any]:
    return {"alpha": NotingEngine(), "beta": NotingEngine()}


def lines(engine: NotingEngine) -> list[str]:
    """The request lines that it got."""
    return [head.partition(b" HTTP/1.1\r\n")[0].decode() for head, _ in engine.seen]


async def status_and_code(house: House, raw: bytes) -> tuple[int, str]:
    (reply,) = replies(await house.raw(raw))
    return reply.status, reply.error["code"] if reply.status >= 400 else ""


OPENED: dict[str, tuple[bytes, str]] = {
    "by the body's model": (post(target=b"/v1/score2"), "POST /v1/score2"),
    "without /v1": (post(target=b"/score2"), "POST /v1/score2"),
    "with /v1 twice": (post(target=b"/v1/v1/score2"), "POST /v1/score2"),
    "with a slash at the end": (post(target=b"/v1/score2/"), "POST /v1/score2"),
    "by the path": (post(b'{"x":1}', target=b"/alpha/v1/score2"), "POST /v1/score2"),
    "by the path, whose body names another": (
        post(b'{"model":"beta"}', target=b"/alpha/v1/score2"),
        "POST /v1/score2",
    ),
    "at the root": (post(target=b"/infill?a=1"), "POST /infill?a=1"),
    "at the root, with /v1": (post(target=b"/alpha/v1/infill"), "POST /infill"),
    "without a body, by the default": (get(b"/v1/files?limit=2"), "GET /v1/files?limit=2"),
    "without a body, by the path": (get(b"/alpha/files"), "GET /v1/files"),
    "a form": (post(FORM % b"alpha", FORM_TYPE, b"/v1/score2"), "POST /v1/score2"),
    "another method of a listed one": (request(b"PUT /v1/score HTTP/1.1"), "PUT /v1/score"),
    "what looks like a websocket": (
        get(b"/v1/files", b"Upgrade: websocket\r\nConnection: Upgrade\r\n"),
        "GET /v1/files",
    ),
}


async def test_an_opened_path_reaches_the_engine_of_its_model(build: Build) -> None:
    engines = scripts()
    async with build(BOTH, scripts=engines) as house:
        for name, (raw, line) in OPENED.items():
            engines["alpha"].seen.clear()
            assert await status_and_code(house, raw) == (200, ""), name
            assert lines(engines["alpha"]) == [line], name
        assert engines["beta"].seen == []
        assert house.launcher.launches == ["alpha"]


SHUT: dict[str, tuple[bytes, tuple[int, str]]] = {
    "for another model": (post(b'{"model":"beta"}', target=b"/v1/score2"), (404, "not_found")),
    "for another model's form": (post(FORM % b"beta", FORM_TYPE, b"/v1/score2"), (404, "not_found")),
    "below another model's path": (post(target=b"/beta/v1/score2"), (404, "not_found")),
    "below another's, whatever is sent": (
        framed(b"Content-Length: 1\r\n", b"{", b"/beta/v1/score2"),
        (404, "not_found"),
    ),
    "for the default model": (get(b"/v1/things"), (404, "not_found")),
    "with another method": (get(b"/v1/score2"), (404, "not_found")),
    "for HEAD": (request(b"HEAD /alpha/v1/files HTTP/1.1"), (404, "")),
    "with a deeper path": (post(target=b"/v1/score2/x"), (404, "not_found")),
    "in capitals": (post(target=b"/v1/SCORE2"), (404, "not_found")),
    "with an escape": (post(target=b"/v1/score%32"), (404, "not_found")),
    "with a dot segment": (post(target=b"/v1/./score2"), (404, "not_found")),
    "with two dots": (post(target=b"/v1/x/../score2"), (404, "not_found")),
    "with two slashes": (post(target=b"/v1//score2"), (404, "not_found")),
    "with two slashes at the end": (post(target=b"/v1/score2//"), (404, "not_found")),
    "with a parameter": (post(target=b"/v1/score2;x"), (404, "not_found")),
    "another method of a listed one": (request(b"PUT /beta/v1/score HTTP/1.1"), (405, "method_not_allowed")),
    "an operator's": (post(target=b"/sleep"), (404, "not_found")),
    "a closed field": (
        post(b'{"model":"alpha","vllm_xargs":{"a":1}}', target=b"/v1/score2"),
        (400, "invalid_request"),
    ),
    "media by a URL": (
        post(
            b'{"model":"alpha","messages":[[{"content":[{"image_url":{"url":"http://10.0.0.1/"}}]}]]}',
            target=b"/v1/score2",
        ),
        (400, "invalid_request"),
    ),
    "no JSON": (post(b"{", target=b"/v1/score2"), (400, "invalid_json")),
    "neither JSON nor a form": (
        post(CHAT, b"Content-Type: text/plain\r\n", b"/v1/score2"),
        (415, "unsupported_media_type"),
    ),
    "a form without its boundary": (post(CHAT, FORM_TYPE, b"/v1/score2"), (400, "invalid_request")),
}


async def test_what_is_shut_wakes_no_engine(build: Build) -> None:
    engines = scripts()
    async with build(BOTH, scripts=engines) as house:
        for name, (raw, refused) in SHUT.items():
            (reply,) = replies(await house.raw(raw), "HEAD" if raw.startswith(b"HEAD") else "")
            code = reply.error["code"] if reply.body else ""
            assert (reply.status, code) == refused, name
        assert house.launcher.launches == []


async def test_it_is_the_404_of_every_path_that_there_is_not(build: Build) -> None:
    async with build(BOTH, scripts=scripts()) as house:
        shut = await house.ask("POST", "/v1/score2", json={"model": "beta"})
        unknown = await house.ask("POST", "/v1/score3", json={"model": "beta"})
        assert shut.body.replace(b"score2", b"score3") == unknown.body


async def test_the_body_passes_as_it_came_and_only_what_refuses_applies(build: Build) -> None:
    rules = RequestPolicy(allow=("POST /v1/score2", "priority"), force={"seed": 1}, strip=("x",))
    engine = NotingEngine()
    settings = config(model("alpha", request=rules, system_prompt="Be brief."))
    async with build(settings, scripts={"alpha": engine}) as house:
        body = b'{ "model": "alpha", "x": 1, "priority": 3, "messages": [] }'
        assert await status_and_code(house, post(body, target=b"/v1/score2")) == (200, "")
        assert await status_and_code(house, post(b'{"model":"z"}', target=b"/alpha/score2")) == (200, "")
        assert [json.loads(seen) for _, seen in engine.seen] == [json.loads(body), {"model": "alpha"}]
        assert engine.seen[0][1] == body


@pytest.mark.parametrize(("endpoints", "status"), [(("*",), 200), (("score*",), 200), (("chat/*",), 403)])
async def test_a_key_has_the_endpoints_that_it_had(
    build: Build, endpoints: tuple[str, ...], status: int
) -> None:
    clients = (client("a", endpoints=endpoints), client("b", models=("beta",)))
    async with build(config(ALPHA, BETA, clients=clients), scripts=scripts()) as house:
        assert (await status_and_code(house, post(headers=KEY + JSON, target=b"/v1/score2")))[0] == status
        answer = await house.ask("POST", "/v1/score2", json={"model": "alpha"}, headers=key("b"))
        assert answer.code == "model_forbidden"
        assert (await house.ask("POST", "/v1/score2", json={"model": "alpha"})).status == 401


async def test_a_reload_shuts_it_again(build: Build) -> None:
    async with build(BOTH, scripts=scripts()) as house:
        assert (await house.ask("GET", "/alpha/v1/files")).status == 200
        house.gateway.configure(config(model("alpha"), BETA))
        assert (await house.ask("GET", "/alpha/v1/files")).code == "not_found"


async def test_of_two_spellings_the_clients_own_counts(build: Build) -> None:
    engine = NotingEngine()
    both = model("alpha", request=RequestPolicy(allow=("GET /v1/files", "GET /files")))
    async with build(config(both), scripts={"alpha": engine}) as house:
        for target in ("/v1/files", "/files", "/alpha/v1/files", "/alpha/files"):
            assert (await house.ask("GET", target)).status == 200
        assert lines(engine) == ["GET /v1/files", "GET /files"] * 2


async def test_a_route_opens_what_every_model_does_that_it_leads_to(build: Build) -> None:
    gamma = model("gamma", request=RequestPolicy(allow=("POST /v1/score2",)))
    routes = {
        "pair": Route(name="pair", members=("alpha", "gamma"), path="/pair"),
        "mixed": Route(name="mixed", members=("alpha", "beta"), path="/mixed"),
    }
    engines = {**scripts(), "gamma": NotingEngine()}
    async with build(config(ALPHA, BETA, gamma, routes=routes), scripts=engines) as house:
        for target, name in (
            ("/v1/score2", "mixed"),
            ("/mixed/v1/score2", "alpha"),
            ("/pair/infill", "alpha"),
        ):
            assert (await house.ask("POST", target, json={"model": name})).code == "not_found"
        assert house.launcher.launches == []
        for target, name in (("/v1/score2", "pair"), ("/pair/v1/score2", "alpha")):
            assert (await house.ask("POST", target, json={"model": name})).status == 200
        assert engines["beta"].seen == []
