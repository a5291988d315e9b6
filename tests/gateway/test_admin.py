"""Orders and the close look, by key and over the control socket."""

import asyncio
import json
from datetime import datetime
from typing import cast

import aiohttp
import pytest
from aiohttp import web

from supervisord_llm.core.state import State
from supervisord_llm.errors import ConfigError, ProvisionError
from supervisord_llm.gateway import app
from supervisord_llm.gateway.api import following
from supervisord_llm.gateway.endpoint import Access, Endpoint
from tests.gateway.conftest import Build, client, config, key, model

ADMIN = (client("root", admin=True),)


async def test_start_stop_restart_wait_until_it_is_settled(build: Build) -> None:
    async with build(config(model("alpha", aliases=("a",)))) as house:
        for verb, body, state in (
            ("start", {"model": "alpha"}, "ready"),
            ("start", {"route": "a"}, "ready"),
            ("restart", {"model": "a"}, "ready"),
            ("stop", {"model": "alpha"}, "stopped"),
        ):
            answer = await house.ask("POST", f"/admin/{verb}", json=body, control=True)
            assert (answer.status, answer.json) == (200, {"model": "alpha", "state": state})
            assert house.state("alpha").value == state
        assert house.launcher.launches == ["alpha", "alpha"]


async def test_orders_and_logs_count_as_no_requests_of_a_model(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        for verb in ("start", "restart", "stop"):
            answer = await house.ask("POST", f"/admin/{verb}", json={"model": "alpha"}, control=True)
            assert "X-LLM-Model" not in answer.headers
        await house.ask("GET", "/admin/logs/alpha", control=True)
        stats = (await house.ask("GET", "/stats")).json["models"]["alpha"]
        assert (sum(stats["requests"].values()), stats["last_hit"]) == (0, None)


async def test_a_start_that_fails_tells_why(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        house.provisioner.error = ProvisionError("cannot find the weights; run `pull`")
        answer = await house.ask("POST", "/admin/start", json={"model": "alpha"}, control=True)
        assert (answer.status, answer.code) == (503, "start_failed")
        assert "run `pull`" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'{"model": 1}', 400, "invalid_json"),
        (b"{}", 400, "invalid_request"),
        (b'{"model": "nope"}', 404, "model_not_found"),
    ],
)
async def test_orders_that_make_no_sense(build: Build, body: bytes, status: int, code: str) -> None:
    async with build(config(model("alpha"))) as house:
        answer = await house.ask("POST", "/admin/start", data=body, control=True)
        assert (answer.status, answer.code) == (status, code)


async def test_status_tells_everything(build: Build) -> None:
    async with build(config(model("alpha"), model("beta"))) as house:
        await house.chat()
        house.provisioner.error = ProvisionError("cannot find beta; put it there")
        await house.chat(model="beta")
        status = (await house.ask("GET", "/admin/status", control=True)).json
    alpha, beta = status["models"]["alpha"], status["models"]["beta"]
    assert (alpha["state"], alpha["requests_in_flight"], alpha["waiting"]) == ("ready", 0, 0)
    assert alpha["uptime_s"] >= 0
    assert 0 <= alpha["idle_s"] <= alpha["uptime_s"]
    assert abs(datetime.fromisoformat(alpha["since"]).timestamp() - datetime.now().timestamp()) < 60
    assert abs(datetime.fromisoformat(alpha["last_used"]).timestamp() - datetime.now().timestamp()) < 60
    assert (beta["state"], beta["uptime_s"]) == ("failed", None)
    assert "cannot find beta" in beta["last_error"]
    assert beta["retry_in_s"] >= 0
    assert status["gpus"] == []
    assert status["pid"] > 0


async def test_reload_tells_what_changed_or_every_problem(build: Build) -> None:
    async def good() -> dict[str, object]:
        return {"changed": ["alpha"]}

    async def bad() -> dict[str, object]:
        raise ConfigError(["config.toml: models.a: unknown", "config.toml: server.listen: bad"])

    async with build(config(model("alpha")), reload=good) as house:
        assert (await house.ask("POST", "/admin/reload", control=True)).json == {"changed": ["alpha"]}
    async with build(config(model("alpha")), reload=bad) as house:
        answer = await house.ask("POST", "/admin/reload", control=True)
        assert (answer.status, answer.code) == (400, "invalid_config")
        assert "models.a: unknown" in answer.json["error"]["message"]
        assert "server.listen: bad" in answer.json["error"]["message"]


async def next_event(answer: aiohttp.ClientResponse) -> dict[str, object]:
    async with asyncio.timeout(2):
        while not (line := await answer.content.readline()).startswith(b"data: "):
            assert line in (b"\n", b": keep-alive\n")
    found = json.loads(line[6:])
    assert isinstance(found, dict)
    return found


async def test_events_come_as_they_happen(build: Build) -> None:
    async with build(config(model("alpha"), clients=ADMIN)) as house:
        async with house.http.get("/admin/events", headers=key("root")) as answer:
            assert answer.content_type == "text/event-stream"
            await house.runtime.start("alpha")
            event = await next_event(answer)
            assert set(event) == {"at", "model", "text", "is_bad"}
            assert event["model"] == "alpha"
        past = await house.ask("GET", "/admin/events?n=1&follow=0", headers=key("root"))
        assert len(past.events) == 1
        assert past.events[0]["text"] == house.runtime.events.recent(1)[0].text


async def test_logs_are_text_or_events(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "QUIET_S", 0.01)
    async with build(config(model("org/a", aliases=("a",)))) as house:
        text = await house.ask("GET", "/admin/logs/a?n=2", control=True)
        assert (text.headers["Content-Type"], text.body) == ("text/plain; charset=utf-8", b"line 3\nline 4\n")
        assert (await house.ask("GET", "/admin/logs/org%2Fa?n=0", control=True)).body == b""
        assert (await house.ask("GET", "/admin/logs/nope", control=True)).code == "model_not_found"
        assert (await house.ask("GET", "/admin/logs/a?n=-1", control=True)).code == "invalid_request"
        async with house.control.get("/admin/logs/org/a?follow=1&n=1") as answer:
            assert await next_event(answer) == {"line": "line 4"}
            house.tails["org/a"].coming.put_nowait("line 5")
            assert await next_event(answer) == {"line": "line 5"}
            assert await answer.content.readuntil(b": keep-alive\n\n")


async def test_closing_ends_those_who_follow(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        async with house.control.get("/admin/events") as answer:
            await asyncio.wait_for(house.gateway.close(), 3)
            with pytest.raises(aiohttp.ClientError):
                await asyncio.wait_for(answer.read(), 2)
        assert house.state("alpha") is State.STOPPED


async def nobody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine that no test asks anything."""
    writer.close()


async def test_sleep_and_wake_wait_until_it_is_settled(build: Build) -> None:
    sleeper = model("alpha", sleep_level=1, aliases=("a",))
    async with build(config(sleeper), scripts={"alpha": nobody}) as house:
        for verb, state in (
            ("start", "ready"),
            ("sleep", "sleeping"),
            ("sleep", "sleeping"),
            ("wake", "ready"),
        ):
            answer = await house.ask("POST", f"/admin/{verb}", json={"model": "a"}, control=True)
            assert (answer.status, answer.json) == (200, {"model": "alpha", "state": state})
            asleep = (await house.ask("GET", "/admin/status", control=True)).json["models"]["alpha"]["asleep"]
            assert asleep is (state == "sleeping")
        assert house.launcher.engines["alpha"].naps == ["sleep 1", "wake 1"]


async def test_an_engine_that_cannot_sleep_is_a_conflict_with_the_way_out(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        await house.runtime.start("alpha")
        answer = await house.ask("POST", "/admin/sleep", json={"model": "alpha"}, control=True)
        assert (answer.status, answer.code) == (409, "not_possible")
        assert "idle.sleep_level" in answer.json["error"]["message"]
        assert house.state("alpha") is State.READY


async def test_switch_stops_the_others_first(build: Build) -> None:
    async with build(config(model("alpha"), model("beta"))) as house:
        await house.runtime.start("alpha")
        answer = await house.ask("POST", "/admin/switch", json={"model": "beta"}, control=True)
        assert answer.json == {"model": "beta", "state": "ready"}
        assert house.state("alpha") is State.STOPPED


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/admin/sleep"),
        ("POST", "/admin/wake"),
        ("POST", "/admin/switch"),
        ("GET", "/admin/plan"),
        ("GET", "/admin/explain/alpha"),
    ],
)
async def test_only_an_admin_may(build: Build, method: str, path: str) -> None:
    async with build(config(model("alpha"), clients=(client("me"), *ADMIN))) as house:
        assert (await house.ask(method, path)).status == 401
        answer = await house.ask(method, path, headers=key("me"))
        assert (answer.status, answer.code) == (403, "admin_required")
        wrong = await house.ask("DELETE", path, headers=key("root"))
        assert (wrong.status, wrong.headers["Allow"]) == (405, method)


async def test_a_path_may_be_open_to_read_and_not_to_change(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(*_: object) -> web.Response:
        return web.Response()

    both = Endpoint("GET", Access.OPEN, answer), Endpoint("POST", Access.ADMIN, answer)
    monkeypatch.setitem(cast("dict[str, object]", app.ENDPOINTS), "/both", both)
    async with build(config(model("alpha"), clients=(client("me"), *ADMIN))) as house:
        assert (await house.ask("GET", "/both")).status == 200
        assert (await house.ask("POST", "/both")).status == 401
        assert (await house.ask("POST", "/both", headers=key("me"))).status == 403
        assert (await house.ask("POST", "/both", headers=key("root"))).status == 200
