"""What is answered from memory: lists, health, statistics, metrics."""

import re
import time

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from supervisord_llm.config.model import Server
from supervisord_llm.core.state import State
from supervisord_llm.gateway.api.catalog import STATUS
from tests.gateway.conftest import Build, client, config, key, model

MODELS = (
    model("alpha", source="org/Alpha-7B", flags={"max-model-len": 8192}),
    model("org/beta", path="/beta", aliases=("b", "Qwen/Qwen2.5")),
)
DEFAULT = Server(default_model="org/beta")


async def test_the_list_has_the_default_first_and_starts_nothing(build: Build) -> None:
    async with build(config(*MODELS, server=DEFAULT)) as house:
        listed = (await house.ask("GET", "/v1/models")).json
        assert listed["object"] == "list"
        assert [entry["id"] for entry in listed["data"]] == ["org/beta", "b", "Qwen/Qwen2.5", "alpha"]
        for same in ("/models", "/v1/v1/models"):
            assert (await house.ask("GET", same)).json == listed
        alpha = listed["data"][-1]
        assert alpha == {
            "id": "alpha",
            "object": "model",
            "created": house.gateway.created,
            "owned_by": "llm-supervisor",
            "name": "alpha",
            "root": "org/Alpha-7B",
            "parent": None,
            "max_model_len": 8192,
            "status": {"value": "unloaded", "state": "stopped"},
            "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
            "tags": [{"name": "tools"}],
            "info": {
                "meta": {
                    "description": "org/Alpha-7B, 8192 tokens of context",
                    "capabilities": {"builtin_tools": True},
                }
            },
        }
        assert listed["data"][0]["max_model_len"] == 4096, "without a flag, what the weights are made for"
        await house.runtime.start("alpha")
        assert (await house.ask("GET", "/v1/models/alpha")).json["status"]["value"] == "loaded"
        assert house.launcher.launches == ["alpha"]


async def test_a_list_of_fifty_models_is_there_at_once(build: Build) -> None:
    many = [model(f"model-{number}", aliases=(f"alias-{number}",)) for number in range(50)]
    async with build(config(*many)) as house:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            listed = await house.ask("GET", "/v1/models")
            times.append(time.perf_counter() - began)
        assert len(listed.json["data"]) == 100
        assert min(times) < 0.05


def test_every_state_has_a_word_for_clients() -> None:
    assert set(STATUS) == set(State)


@pytest.mark.parametrize("id", ["org/beta", "org%2Fbeta", "b", "Qwen/Qwen2.5", "Qwen%2FQwen2.5"])
async def test_one_model_by_any_of_its_names(build: Build, id: str) -> None:  # noqa: A002
    async with build(config(*MODELS)) as house:
        assert (await house.ask("GET", f"/v1/models/{id}")).json["root"] == "org/org/beta"
        assert (await house.ask("GET", f"/beta/v1/models/{id}")).json["root"] == "org/org/beta"


async def test_a_prefix_lists_its_model_alone(build: Build) -> None:
    async with build(config(*MODELS)) as house:
        listed = (await house.ask("GET", "/alpha/v1/models")).json["data"]
        assert [entry["id"] for entry in listed] == ["alpha"]
        assert (await house.ask("GET", "/alpha/v1/models/b")).code == "model_not_found"


async def test_a_missing_model_is_told_what_looks_alike(build: Build) -> None:
    async with build(config(*MODELS)) as house:
        answer = await house.ask("GET", "/v1/models/alpa")
        assert (answer.status, answer.code) == (404, "model_not_found")
        assert answer.json["error"]["param"] == "model"
        assert "did you mean alpha" in answer.json["error"]["message"]


async def test_the_only_model_is_the_default_one(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        answer = await house.ask("POST", "/v1/chat/completions", json={"messages": []})
        assert (answer.status, answer.headers["X-LLM-Model"]) == (200, "alpha")


async def test_messages_get_anthropics_errors(build: Build) -> None:
    async with build(config(*MODELS, clients=(client("a"),))) as house:
        answer = await house.ask("POST", "/v1/messages", json={"model": "nope"}, headers=key("a"))
        assert answer.status == 404
        assert answer.json["type"] == "error"
        assert answer.json["error"]["type"] == "not_found_error"
        assert answer.json["request_id"] == answer.headers["X-Request-Id"]
        answer = await house.ask("POST", "/v1/messages", json={})
        assert (answer.status, answer.json["error"]["type"]) == (401, "authentication_error")


async def test_health_needs_no_key(build: Build) -> None:
    async with build(config(*MODELS, clients=(client("a"),))) as house:
        healthz = (await house.ask("GET", "/healthz")).json
        assert healthz["status"] == "ok"
        assert healthz["routes"] == {"alpha": {"state": "stopped"}, "org/beta": {"state": "stopped"}}
        assert re.fullmatch(r"\d+\.\d+\.\d+.*", healthz["version"])
        health = (await house.ask("GET", "/health")).json
        assert health["status"] == "healthy"
        assert health["models"]["alpha"] == {
            "status": "stopped",
            "vram_used": None,
            "requests_in_flight": 0,
            "waiting": 0,
        }
        assert b"/v1" in (await house.ask("GET", "/")).body
        assert (await house.ask("HEAD", "/healthz")).status == 200
        wrong = await house.ask("POST", "/healthz")
        assert (wrong.status, wrong.headers["Allow"]) == (405, "GET")


async def test_routes_tell_every_way_to_a_model(build: Build) -> None:
    async with build(config(*MODELS, server=DEFAULT)) as house:
        answer = (await house.ask("GET", "/routes")).json
        assert answer["default"] == "org/beta"
        assert answer["routes"]["org/beta"] == {
            "path": "/beta",
            "aliases": ["b", "Qwen/Qwen2.5"],
            "source": "org/org/beta",
            "state": "stopped",
        }


async def test_stats_count_requests_starts_and_tokens(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        before = (await house.ask("GET", "/stats")).json["models"]["alpha"]
        assert before["last_hit"] is None
        assert before["spin_up_s"] == {"last": None, "median": None}
        assert (await house.chat()).status == 200
        assert (await house.chat(stream=True, stream_options={"include_usage": True})).status == 200
        assert (await house.chat(model="nope")).status == 404
        stats = (await house.ask("GET", "/stats")).json["models"]["alpha"]
        assert stats["requests"] == {"ok": 2, "invalid": 0, "refused": 0, "failed": 0, "left": 0}
        assert stats["tokens"] == {"prompt": 2, "completion": 6}
        assert stats["starts"] == {"ready": 1}
        assert 0 < stats["spin_up_s"]["median"] < 5
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", stats["last_hit"])
        assert stats["requests_in_flight"] == 0


async def test_metrics_are_prometheus_text_with_bounded_labels(build: Build) -> None:
    async with build(config(model("alpha"), model("beta"))) as house:
        await house.chat()
        for number in range(20):
            await house.chat(model=f"unknown-{number}")
            await house.ask("GET", f"/no/such/path/{number}")
        answer = await house.ask("GET", "/metrics")
        samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples
        }
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert samples["llm_supervisor_requests_total", "200", "alpha"] == 1
    assert samples["llm_supervisor_requests_total", "200", "beta"] == 0
    assert samples["llm_supervisor_requests_total", "", "404"] == 40
    assert samples["llm_supervisor_model_state", "alpha", "ready"] == 1
    assert samples["llm_supervisor_model_state", "beta", "ready"] == 0
    assert samples["llm_supervisor_model_state", "beta", "stopped"] == 1
    assert samples["llm_supervisor_starts_total", "alpha", "ready"] == 1
    assert samples["llm_supervisor_start_duration_seconds_count", "alpha"] == 1
    assert samples["llm_supervisor_time_to_first_byte_seconds_count", "alpha"] == 1
    assert samples["llm_supervisor_tokens_total", "alpha", "completion"] == 3
    assert samples["llm_supervisor_requests_in_flight", "alpha"] == 0
    assert all(name.startswith("llm_supervisor_") for name, *_ in samples)
    assert b"unknown" not in answer.body
    assert b"_created" not in answer.body


async def test_metrics_speak_openmetrics_where_asked(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        headers = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
        answer = await house.ask("GET", "/metrics", headers=headers)
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        families = openmetrics.text_string_to_metric_families(answer.body.decode())  # type: ignore[no-untyped-call]
        names = {family.name for family in families}
        assert "llm_supervisor_requests" in names


async def test_a_reload_changes_keys_names_and_paths_at_once(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        house.gateway.configure(config(model("alpha", path="/new", aliases=("a2",)), clients=(client("me"),)))
        assert (await house.ask("GET", "/v1/models")).status == 401
        listed = (await house.ask("GET", "/new/v1/models", headers=key("me"))).json["data"]
        assert [entry["id"] for entry in listed] == ["alpha", "a2"]
        assert (await house.ask("GET", "/alpha/v1/models", headers=key("me"))).code == "not_found"
