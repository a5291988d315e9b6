"""Routes over HTTP: engine processes as members, and what becomes of a request when one of them fails."""

import asyncio
import io
import json
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from supervisord_llm.config.model import Config, RequestPolicy, Server
from supervisord_llm.core.events import ConfigChanged
from supervisord_llm.core.fleet import Engine, Learnt, ModelSpec
from supervisord_llm.core.routes.route import Choice, Classifier, Route, Rule, Sticky
from supervisord_llm.core.routes.tokens import Calibration
from supervisord_llm.core.state import State
from supervisord_llm.engines.remote import FAILURES
from supervisord_llm.errors import ProvisionError, Refused
from supervisord_llm.gateway.choosing import counting
from supervisord_llm.gateway.choosing import search as choosing
from supervisord_llm.gateway.choosing.features import Features, features_of
from supervisord_llm.gateway.inference import relay, waiting
from supervisord_llm.gateway.ports import Facts
from tests.fakes.fake_provider import KEY, fails, provider
from tests.gateway.conftest import CHAT, Answer, Build, House, client, config, key, model, running
from tests.gateway.test_relay import EVENTS, HEAD, scripted

ASK = CHAT | {"model": "llama"}
WHOLE = b'{"object":"chat.completion","model":"b","choices":[]}'
JSON = HEAD + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(WHOLE), WHOLE)
SSE = HEAD + EVENTS + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
DEAD = scripted(b"")
"""Reads a request and closes the connection."""


def route(**fields: Any) -> Route:
    return Route(**{"name": "llama", "members": ("a", "b"), "path": "/llama"} | fields)


def routed(*routes: Route, clients: Any = (), members: Any = (), **fields: Any) -> Config:
    members = members or (model("a"), model("b"))
    found = routes or (route(),)
    return config(*members, clients=clients, routes={each.name: each for each in found}, **fields)


async def ask(house: House, **fields: Any) -> Answer:
    return await house.chat(**{"model": "llama"} | fields)


def load(house: House, name: str) -> int:
    engine = house.runtime.fleet.engines[name]
    return len(engine.leases) + len(engine.waiting)


# --- names ------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "llama"}),
        ("/v1/chat/completions", {"model": "llm"}),
        ("/v1/chat/completions", {"model": None}),
        ("/llama/v1/chat/completions", {"model": "gpt-5"}),
        ("/llama/chat/completions", {"model": None}),
        ("/v1/messages", {"model": "llama", "max_tokens": 5}),
        ("/v1/completions", {"model": "llama", "prompt": "hi"}),
        ("/v1/embeddings", {"model": "llama", "input": ["one", "two"]}),
    ],
)
async def test_a_route_is_asked_like_a_model(build: Build, path: str, body: dict[str, Any]) -> None:
    async with build(routed(route(aliases=("llm",)))) as house:
        answer = await house.ask("POST", path, json=CHAT | body)
        assert (answer.status, answer.headers["X-LLM-Model"]) == (200, "a")
        assert answer.json["model"] == "a"
        assert answer.headers["X-LLM-Route-Reason"].isascii()
        assert house.launcher.launches == ["a"]


async def test_a_route_is_the_default_model_and_the_one_for_unknown_names(build: Build) -> None:
    server = Server(default_model="llama", unknown_model="default")
    async with build(routed(members=(model("a"), model("b"), model("c")), server=server)) as house:
        assert (await ask(house, model="gpt-5")).headers["X-LLM-Model"] == "a"
        listed = (await house.ask("GET", "/v1/models")).json["data"]
        assert [entry["id"] for entry in listed] == ["llama", "a", "b", "c"]


async def test_forms_and_ollamas_clients_go_through_routes(build: Build) -> None:
    async with build(routed()) as house:
        form = aiohttp.FormData()
        form.add_field("file", b"sound", filename="speech.wav", content_type="audio/wav")
        form.add_field("model", "llama")
        answer = await house.ask("POST", "/v1/audio/transcriptions", data=form)
        assert answer.json == {"text": '{"file": 5, "model": 1}'}, "the engine knows itself as a"
        for name in ("llama", "llama:latest"):
            answer = await house.ask("POST", "/api/chat", json=CHAT | {"model": name, "stream": False})
            assert answer.json["message"]["content"] == "I am a."


async def test_a_plain_model_has_no_reason_and_keeps_its_bytes(build: Build) -> None:
    async with build(routed()) as house:
        answer = await ask(house, model="b")
        assert answer.headers["X-LLM-Model"] == "b"
        assert "X-LLM-Route-Reason" not in answer.headers


async def test_what_has_no_body_goes_through_routes_too(build: Build) -> None:
    async with build(routed()) as house:
        for method, path in (("GET", "/llama/v1/responses/r"), ("POST", "/llama/v1/responses/r/cancel")):
            answer = await house.ask(method, path)
            assert (answer.status, answer.headers["X-LLM-Model"]) == (404, "a"), "it is for the engine to say"


# --- rights ------------------------------------------------------------


async def test_who_may_use_a_route_reaches_its_members_through_it_alone(build: Build) -> None:
    clients = (client("routes", models=("llama",)), client("members", models=("a", "b")))
    async with build(routed(clients=clients)) as house:
        assert (await ask(house, headers=key("routes"))).status == 200
        refused = await ask(house, model="a", headers=key("routes"))
        assert (refused.status, refused.code) == (403, "model_forbidden")
        assert (await ask(house, model="a", headers=key("members"))).status == 200
        for path, name in (("/v1/chat/completions", "llama"), ("/llama/v1/chat/completions", None)):
            refused = await house.chat(path=path, model=name, headers=key("members"))
            assert (refused.status, refused.code) == (403, "model_forbidden")
        listed = await house.ask("GET", "/v1/models", headers=key("routes"))
        assert [entry["id"] for entry in listed.json["data"]] == ["llama"]
        assert (await house.ask("GET", "/v1/models/a", headers=key("routes"))).status == 403


# --- choices -----------------------------------------------------------


async def test_a_hundred_requests_at_once_are_balanced(build: Build) -> None:
    async with build(routed(), env={"FAKE_TOKENS_PER_S": "20"}) as house:
        await asyncio.gather(*(ask(house, model=name) for name in ("a", "b")))
        answers = await asyncio.gather(*(ask(house) for _ in range(100)))
        assert [answer.status for answer in answers] == [200] * 100
        assert Counter(answer.headers["X-LLM-Model"] for answer in answers) == {"a": 50, "b": 50}
        assert not load(house, "a") + load(house, "b")


async def test_rules_see_headers_clients_tools_images_and_endpoints(build: Build) -> None:
    rules = (
        Rule(use="b", headers={"x-team": "gold*"}),
        Rule(use="b", clients=("n8n",)),
        Rule(use="b", tools=True),
        Rule(use="b", images=True),
        Rule(use="b", endpoints=("completions",)),
    )
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    function = {"type": "function", "function": {"name": "f", "parameters": {}}}
    parts = [{"type": "text", "text": "x"}, picture]
    talk: dict[str, Any] = {"messages": [{"role": "user", "content": parts}]}
    cases: list[tuple[str, dict[str, Any], dict[str, str], str]] = [
        ("a", {}, {}, "chat/completions"),
        ("b", {}, {"X-Team": "gold-1"}, "chat/completions"),
        ("a", {}, {"X-Team": "silver"}, "chat/completions"),
        ("b", {}, key("n8n"), "chat/completions"),
        ("b", {"tools": [function]}, {}, "chat/completions"),
        ("a", {"tools": []}, {}, "chat/completions"),
        ("b", talk, {}, "chat/completions"),
        ("b", {"prompt": "x"}, {}, "completions"),
    ]
    clients = (client("n8n"), client("me"))
    async with build(routed(route(rules=rules, members=("a",)), clients=clients)) as house:
        for expected, fields, headers, endpoint in cases:
            answer = await house.chat(
                path=f"/v1/{endpoint}", headers=key("me") | headers, **{"model": "llama"} | fields
            )
            assert answer.headers["X-LLM-Model"] == expected, answer.headers["X-LLM-Route-Reason"]


async def test_a_session_stays_with_its_member_until_that_is_gone(build: Build) -> None:
    async with build(routed(route(sticky=Sticky.SESSION, policy=Choice.ROUND_ROBIN))) as house:
        homes = {
            name: (await ask(house, headers={"X-Session-Id": name})).headers["X-LLM-Model"] for name in "stuv"
        }
        assert Counter(homes.values()) == {"a": 2, "b": 2}
        for name, home in homes.items():
            for headers in ({"X-Session-Id": name}, {"X-OpenWebUI-Chat-Id": name}):
                again = await ask(house, headers=headers)
                assert again.headers["X-LLM-Model"] == home
                assert "same session" in again.headers["X-LLM-Route-Reason"]
        gone = homes["s"]
        house.provisioner.error = ProvisionError("cannot find the weights; run `pull`")
        await house.ask("POST", "/admin/stop", control=True, json={"model": gone})
        moved = await ask(house, headers={"X-Session-Id": "s"})
        assert moved.headers["X-LLM-Model"] == ({"a", "b"} - {gone}).pop()
        house.provisioner.error = None
        stays = await ask(house, headers={"X-Session-Id": "s"})
        assert stays.headers["X-LLM-Model"] == moved.headers["X-LLM-Model"]


async def test_a_rule_that_sends_a_session_away_does_not_take_its_member_from_it(build: Build) -> None:
    rule = Rule(use="c", headers={"x-effort": "high"})
    ways = route(sticky=Sticky.SESSION, policy=Choice.ROUND_ROBIN, rules=(rule,))
    async with build(routed(ways, members=(model("a"), model("b"), model("c")))) as house:
        session = {"X-Session-Id": "s"}
        home = (await ask(house, headers=session)).headers["X-LLM-Model"]
        away = await ask(house, headers=session | {"X-Effort": "high"})
        assert away.headers["X-LLM-Model"] == "c"
        again = await ask(house, headers=session)
        assert (again.headers["X-LLM-Model"], home) in (("a", "a"), ("b", "b"))
        assert "same session" in again.headers["X-LLM-Route-Reason"]


async def test_a_conversation_is_known_by_its_beginning(build: Build) -> None:
    async with build(routed(route(sticky=Sticky.SESSION, policy=Choice.ROUND_ROBIN))) as house:
        begun = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
        first = await ask(house, messages=begun)
        await ask(house, messages=[{"role": "user", "content": "another"}])
        talk = [*begun, {"role": "assistant", "content": "I am."}, {"role": "user", "content": "And?"}]
        again = await ask(house, messages=talk)
        assert again.headers["X-LLM-Model"] == first.headers["X-LLM-Model"]
        assert "same session" in again.headers["X-LLM-Route-Reason"]


async def test_a_prompt_goes_to_a_member_that_holds_it_or_is_refused_with_the_figures(build: Build) -> None:
    facts = Facts(context_length={"a": 200, "b": 2000}.get)
    async with build(routed(), facts=facts) as house:
        assert (await ask(house)).headers["X-LLM-Model"] == "a"
        for fields in ({"messages": [{"role": "user", "content": "long " * 300}]}, {"max_tokens": 1000}):
            assert (await ask(house, **fields)).headers["X-LLM-Model"] == "b"
        answer = await ask(house, messages=[{"role": "user", "content": "long " * 30_000}])
        assert (answer.status, answer.code) == (400, "context_length_exceeded")
        error = answer.json["error"]
        assert (error["param"], error["type"]) == ("messages", "invalid_request_error")
        assert "200" in error["message"]
        assert "2000" in error["message"]
        assert house.launcher.launches == ["a", "b"]


async def test_a_limit_that_the_operator_sets_counts_as_what_the_answer_takes(build: Build) -> None:
    capped = RequestPolicy(max={"max_tokens": 100})
    members = (model("a", request=capped), model("b", request=capped))
    async with build(routed(members=members), facts=Facts(context_length=lambda name: 1000)) as house:
        assert (await ask(house, max_tokens=32_000)).status == 200


async def test_what_engines_report_makes_estimates_better(build: Build) -> None:
    async with build(routed()) as house:
        await ask(house, messages=[{"role": "user", "content": "word " * 800}])
        learnt = house.gateway.engines.memory.calibrations
        assert set(learnt) == {"a"}
        assert learnt["a"].estimate(4000) < Calibration().estimate(4000)
        await ask(house, model="b")
        assert set(learnt) == {"a"}, "a plain model costs nothing more"


async def test_batches_teach_nothing_of_one_prompt(build: Build) -> None:
    async with build(routed()) as house:
        for body in ({"input": ["word " * 400] * 20}, {"input": ["one", "two"]}):
            await house.ask("POST", "/v1/embeddings", json={"model": "llama"} | body)
        await house.chat(path="/v1/completions", model="llama", prompt=["word " * 400] * 20)
        assert not house.gateway.engines.memory.calibrations
        await house.ask("POST", "/v1/embeddings", json={"model": "llama", "input": ["word " * 400]})
        assert set(house.gateway.engines.memory.calibrations) == {"a"}


SPOILT = Calibration(per_byte=1.0)
"""It takes a prompt for four times of what it is."""


async def test_a_spoilt_estimate_refuses_nothing_where_an_engine_can_count(build: Build) -> None:
    async with build(routed(), facts=Facts(context_length=lambda name: 16_000)) as house:
        house.gateway.engines.memory.calibrations |= {"a": SPOILT, "b": SPOILT}
        await ask(house)
        long = [{"role": "user", "content": "word " * 5000}]
        answer = await ask(house, messages=long)
        assert (answer.status, answer.headers["X-LLM-Model"]) == (200, "a")
        assert (await ask(house, messages=long, max_tokens=12_000)).code == "context_length_exceeded"


async def test_where_none_can_count_the_longest_is_asked(build: Build) -> None:
    facts = Facts(context_length={"a": 2048, "b": 16_000}.get)
    members = (model("a", engine="command"), model("b", engine="command"))
    async with build(routed(members=members), facts=facts, scripts={"b": scripted(JSON)}) as house:
        house.gateway.engines.memory.calibrations |= {"a": SPOILT, "b": SPOILT}
        answer = await ask(house, messages=[{"role": "user", "content": "word " * 5000}])
        assert (answer.status, answer.headers["X-LLM-Model"]) == (200, "b")
        refused = await ask(house, messages=[{"role": "user", "content": "word " * 60_000}])
        assert (refused.status, refused.code) == (400, "context_length_exceeded")
        assert house.launcher.launches == ["b"]


async def test_english_far_beyond_every_context_is_refused_without_a_count(build: Build) -> None:
    members = (model("a", engine="command"),)
    async with build(
        routed(route(members=("a",)), members=members), facts=Facts(context_length=lambda name: 2048)
    ) as house:
        refused = await ask(house, messages=[{"role": "user", "content": "word " * 20_000}])
        assert (refused.status, refused.code) == (400, "context_length_exceeded")
        assert "2048" in refused.json["error"]["message"]
        assert house.launcher.launches == []


async def test_a_models_estimate_is_its_own(build: Build) -> None:
    """What is wrong with one member's, or its system prompt, is not held against the others."""
    prompted = model("a", system_prompt="Be brief. " * 800)
    facts = Facts(context_length=lambda name: 2048)
    async with build(routed(members=(prompted, model("b"))), facts=facts) as house:
        house.gateway.engines.memory.calibrations["c"] = SPOILT
        answer = await ask(house, messages=[{"role": "user", "content": "word " * 600}])
        assert (answer.headers["X-LLM-Model"], house.launcher.launches) == ("b", ["b"])


async def test_the_time_to_count_is_for_all_together(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(counting, "TIMEOUT_S", 0.3)
    ways = routed(
        route(members=("a", "b", "c"), rules=(Rule(use="d", tokens_over=1000),)),
        members=tuple(map(model, "abcd")),
    )
    async with build(ways, scripts=dict.fromkeys("abc", silent) | {"d": scripted(JSON)}) as house:
        await asyncio.gather(*map(house.runtime.start, "abcd"))
        began = asyncio.get_running_loop().time()
        answer = await ask(house, messages=[{"role": "user", "content": "word " * 830}])
        assert 0.3 <= asyncio.get_running_loop().time() - began < 0.6
        assert answer.headers["X-LLM-Route-Reason"].startswith("rule 1: about ")


async def test_near_a_limit_a_member_that_is_ready_counts(build: Build) -> None:
    rules = (Rule(use="b", tokens_over=1000),)
    async with build(routed(route(rules=rules))) as house:
        await ask(house)
        text = "word " * 820  # about 1030 tokens by its size; the fake counts words
        before = (await house.engine_stats("a"))["requests"]
        answer = await house.chat(path="/v1/completions", model="llama", prompt=text)
        assert answer.headers["X-LLM-Model"] == "a", answer.headers["X-LLM-Route-Reason"]
        assert (await house.engine_stats("a"))["requests"] == before + 2, "one counts, one answers"
        house.gateway.engines.memory.calibrations.clear()  # the fake says of any prompt that it has one token
        more = await house.chat(path="/v1/completions", model="llama", prompt="a " * 1100 + "word " * 400)
        house.gateway.engines.memory.calibrations.clear()
        assert "rule 1: 1500 tokens" in more.headers["X-LLM-Route-Reason"]
        far = await house.chat(path="/v1/completions", model="llama", prompt="word " * 2000)
        assert "rule 1: about " in far.headers["X-LLM-Route-Reason"]


async def test_large_bodies_are_looked_at_off_the_loop(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def noted(*args: Any) -> Features:
        threads.append(threading.current_thread())
        return features_of(*args)

    monkeypatch.setattr(choosing, "features_of", noted)
    rules = (Rule(use="b", tokens_over=1000),)
    async with build(routed(route(rules=rules)), facts=Facts()) as house:
        for words, model in ((5, "a"), (500_000, "b")):
            body = json.dumps(ASK | {"messages": [{"role": "user", "content": "word " * words}]}).encode()
            headers = {"Content-Type": "application/json"}
            answer = await house.ask("POST", "/v1/chat/completions", data=io.BytesIO(body), headers=headers)
            assert answer.headers["X-LLM-Model"] == model
        assert [thread is threading.main_thread() for thread in threads] == [True, False]


# --- the next one -------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_death_before_the_first_byte_is_answered_by_another(build: Build, stream: bool) -> None:
    scripts = {"a": DEAD, "b": scripted(SSE if stream else JSON)}
    async with build(routed(), scripts=scripts) as house:
        answer = await ask(house, stream=stream)
        assert (answer.status, answer.headers["X-LLM-Model"]) == (200, "b")
        assert answer.body == (b"data: [DONE]\n\n" if stream else WHOLE)
        reason = answer.headers["X-LLM-Route-Reason"]
        assert reason.startswith("try 2, after a: engine_crashed; ")
        assert not load(house, "a") + load(house, "b")
        figures = (await house.ask("GET", "/metrics")).body.decode()
        assert 'llm_supervisor_route_choices_total{model="b",route="llama"} 1.0' in figures
        assert 'llm_supervisor_route_retries_total{model="a",route="llama"} 1.0' in figures
        assert 'llm_supervisor_route_retries_total{model="b",route="llama"} 0.0' in figures


async def test_real_processes_die_and_each_is_asked_once(build: Build) -> None:
    async with build(routed(), env={"FAKE_VLLM": "dies_before_first_byte"}) as house:
        for stream in (False, True):
            answer = await ask(house, stream=stream)
            assert (answer.status, answer.code) == (502, "engine_crashed")
            assert answer.headers["X-LLM-Route-Reason"].startswith("try 2, after ")
        assert house.launcher.launches[:2] == ["a", "b"]


async def test_death_after_the_first_byte_is_the_end(build: Build) -> None:
    async with build(routed(), env={"FAKE_VLLM": "dies_mid_stream"}) as house:
        answer = await ask(house, stream=True)
        assert answer.events[-1]["error"]["code"] == "engine_crashed"
        assert house.launcher.launches == ["a"]


@pytest.mark.parametrize(
    ("path", "end"), [("/v1/chat/completions", b"data: [DONE]\n\n"), ("/api/chat", b'"done":true')]
)
async def test_death_in_a_prefill_is_answered_by_another_although_the_client_has_its_head(
    build: Build, monkeypatch: pytest.MonkeyPatch, path: str, end: bytes
) -> None:
    monkeypatch.setattr(relay, "FIRST_CHUNK_S", 0.02)
    dies = asyncio.Event()

    async def prefills(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"X-Of: a\r\n" + EVENTS)
        await dies.wait()
        writer.close()

    async with (
        build(routed(), scripts={"a": prefills, "b": scripted(SSE)}) as house,
        house.http.post(path, json=ASK | {"stream": True}) as answer,
    ):
        assert (answer.headers["X-LLM-Model"], answer.headers["X-Of"]) == ("a", "a")
        dies.set()
        rest = await answer.read()
        assert end in rest
        assert b"error" not in rest
        assert house.launcher.launches == ["a", "b"]


async def test_a_member_whose_circuit_is_open_is_none_to_be_asked(build: Build) -> None:
    async with provider(answer=fails(500)) as bad, provider() as good:
        there = {"engine": "remote", "key": KEY, "gpus": ()}
        members = (model("a", url=bad.url, **there), model("b", url=good.url, **there))
        async with build(routed(members=members)) as house:
            specs = (replace(engine.spec, backoff_s=(60.0, 60.0)) for engine in house.runtime.fleet)
            house.runtime.dispatch(ConfigChanged(specs=tuple(specs), gpus=()))
            for _ in range(FAILURES):
                await house.chat(model="a")
            await house.until(lambda: house.state("a") is State.BACKOFF)
            bad.seen.clear()
            answer = await ask(house)
            assert (answer.status, answer.headers["X-LLM-Model"]) == (200, "b")
            assert not answer.headers["X-LLM-Route-Reason"].startswith("try"), "it was not tried"
            assert not bad.seen


@pytest.mark.parametrize("stream", [False, True])
async def test_comments_of_ours_are_no_answer(
    build: Build, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(waiting, "GRACE_S", 0.02)
    asked = ASK | {"stream": stream}
    headers = {} if stream else {"X-LLM-While-Waiting": "white-space"}
    scripts = {"a": DEAD, "b": scripted(SSE if stream else JSON)}
    async with (
        build(routed(), scripts=scripts, held=("a",)) as house,
        house.http.post("/v1/chat/completions", json=asked, headers=headers) as answer,
    ):
        assert answer.headers["X-LLM-Model"] == "a", "as it was to be"
        beat = b": keep-alive\n\n" if stream else b" "
        assert await answer.content.readexactly(len(beat)) == beat
        house.launcher.held["a"].set()
        rest = await answer.content.read()
        assert rest.replace(beat, b"") == (b"data: [DONE]\n\n" if stream else WHOLE.replace(b" ", b""))
        assert house.launcher.launches == ["a", "b"]


async def test_a_member_that_cannot_be_had_is_passed_over(build: Build) -> None:
    members = (model("a", max_concurrent=1), model("b"))
    async with build(routed(route(policy=Choice.WARM), members=members), held=("a",)) as house:
        busy = asyncio.ensure_future(ask(house, model="a"))
        await house.until(lambda: load(house, "a") == 1)
        assert (await ask(house)).headers["X-LLM-Model"] == "b"
        house.launcher.held["a"].set()
        busy.cancel()


async def test_a_start_that_fails_leads_to_another(build: Build) -> None:
    async with build(routed(), held=("b",)) as house:
        house.launcher.held["b"].set()
        house.launcher.scripts["b"] = scripted(JSON)
        await house.ask("POST", "/admin/start", control=True, json={"model": "b"})
        house.provisioner.error = ProvisionError("cannot find the weights; run `pull`")
        rules = route(rules=(Rule(use="a"),))
        house.gateway.configure(routed(rules))
        answer = await ask(house)
        assert answer.headers["X-LLM-Model"] == "b"
        assert "try 2, after a: start_failed" in answer.headers["X-LLM-Route-Reason"]
        assert int(answer.headers.get("X-LLM-Wait-Ms", 0)) >= 0


async def test_the_wait_is_that_for_all_engines_together(build: Build) -> None:
    async with build(routed(), scripts={"a": DEAD, "b": scripted(JSON)}, held=("a",)) as house:
        asked = asyncio.ensure_future(ask(house))
        await house.until(lambda: house.state("a") is State.STARTING)
        await asyncio.sleep(0.2)
        house.launcher.held["a"].set()
        answer = await asked
        assert answer.headers["X-LLM-Model"] == "b"
        assert int(answer.headers["X-LLM-Wait-Ms"]) >= 200


async def test_a_hasty_client_goes_on_to_a_member_that_is_up(build: Build) -> None:
    async with build(routed(), held=("a",)) as house:
        await ask(house, model="b")
        slow = replace(house.runtime.fleet.engines["a"].spec, signature="s", learnt=Learnt(start_s=100.0))
        house.runtime.dispatch(ConfigChanged(specs=(slow, house.runtime.fleet.engines["b"].spec), gpus=()))
        house.gateway.configure(routed(route(rules=(Rule(use="a"),))))
        answer = await ask(house, headers={"x-stainless-read-timeout": "5"})
        assert (answer.status, answer.headers["X-LLM-Model"]) == (200, "b")
        assert "after a: start_timeout" in answer.headers["X-LLM-Route-Reason"]
        house.launcher.held["a"].set()


async def test_patience_is_spent_on_all_engines_together() -> None:
    engine = Engine(spec=ModelSpec(name="a"), learnt=Learnt(start_s=10.0), state=State.QUEUED)
    headers = {"x-stainless-read-timeout": "5"}  # fifteen seconds in all
    waiting.check_patience(headers, engine, 100.0, spent_s=4.0)
    with pytest.raises(Refused, match="cannot answer in time"):
        waiting.check_patience(headers, engine, 100.0, spent_s=6.0)


async def test_a_websocket_goes_to_one_member(build: Build) -> None:
    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(request.raw_path)
        return socket

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    async with build(routed(), held=("a", "b")) as house:

        async def start() -> None:
            await house.until(lambda: house.launcher.launches == ["a"])
            await web.UnixSite(runner, str(house.launcher.directory / "a.sock")).start()
            house.launcher.held["a"].set()

        async with (
            running(start()),
            house.http.ws_connect("/v1/realtime?model=llama") as socket,
        ):
            assert await socket.receive_str() == "/v1/realtime?model=a"
        await runner.cleanup()


async def test_refusals_about_the_request_are_told_at_once(build: Build) -> None:
    async with build(routed(), scripts={"a": scripted(JSON), "b": scripted(JSON)}) as house:
        answer = await ask(house, chat_template="{{ x }}")
        assert (answer.status, answer.code) == (400, "invalid_request")
        assert house.launcher.launches == []


async def test_errors_of_an_engine_pass_as_they_are(build: Build) -> None:
    body = b'{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}'
    bad = scripted(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    async with build(routed(), scripts={"a": bad, "b": scripted(JSON)}) as house:
        answer = await ask(house)
        assert (answer.status, answer.body) == (400, body)


async def test_embeddings_in_parts_begin_again_elsewhere(build: Build) -> None:
    capped = RequestPolicy(max_batch=2)
    members = (model("a", request=capped), model("b", request=capped))
    async with build(routed(members=members), scripts={"a": DEAD}) as house:
        answer = await house.ask("POST", "/v1/embeddings", json={"model": "llama", "input": list("vwxyz")})
        assert answer.headers["X-LLM-Model"] == "b"
        assert len(answer.json["data"]) == 5
        assert (await house.engine_stats("b"))["batches"] == [2, 2, 1]


async def test_a_client_that_leaves_ends_it(build: Build) -> None:
    async with build(routed(), held=("a",)) as house:
        asked = asyncio.ensure_future(ask(house))
        await house.until(lambda: load(house, "a") == 1)
        asked.cancel()
        await house.until(lambda: load(house, "a") == 0)
        house.launcher.held["a"].set()
        assert house.launcher.launches == ["a"]


# --- the schedule -------------------------------------------------------


async def test_a_fallback_answers_for_what_may_not_run(build: Build) -> None:
    facts = Facts(fallback={"c": "llama"}.get)
    async with build(routed(members=(model("a"), model("b"), model("c"))), facts=facts) as house:
        answer = await ask(house, model="c")
        assert answer.headers["X-LLM-Model"] == "a"
        assert answer.headers["X-LLM-Route-Reason"].startswith("the schedule closes c, and llama answers: ")
        assert answer.json["model"] == "a"


async def test_a_retry_is_that_of_the_route_that_chose_and_takes_no_other_turn(build: Build) -> None:
    facts = Facts(fallback={"c": "llama"}.get)
    ways = routed(route(policy=Choice.ROUND_ROBIN), members=(model("a"), model("b"), model("c")))
    async with build(ways, facts=facts, scripts={"a": DEAD, "b": scripted(JSON)}) as house:
        assert (await ask(house, model="c")).headers["X-LLM-Model"] == "b"
        stats = (await house.ask("GET", "/stats")).json["routes"]
        assert stats["llama"]["retries"] == {"a": 1}
        assert house.gateway.engines.memory.turns == {"llama": 1}


async def test_a_fallback_does_not_repeat_what_another_routes_classifier_said(build: Build) -> None:
    judge = Classifier(model="tiny", labels={"simple": "a", "hard": "a"}, fallback="a", timeout_s=5.0)
    smart = route(name="smart", members=("a",), policy=Choice.CLASSIFIER, classifier=judge, path=None)
    ways = routed(smart, route(members=("b",)), members=(model("tiny"), model("a"), model("b")))
    async with build(ways, facts=Facts(fallback={"a": "llama"}.get)) as house:
        await house.runtime.start("tiny")
        specs = {name: engine.spec for name, engine in house.runtime.fleet.engines.items()}
        specs["a"] = replace(specs["a"], closed="cannot serve a at night")
        house.runtime.dispatch(ConfigChanged(specs=tuple(specs.values()), gpus=()))
        answer = await ask(house, model="smart")
        assert answer.headers["X-LLM-Model"] == "b"
        why = "the schedule closes smart, and llama answers: its only member"
        assert answer.headers["X-LLM-Route-Reason"] == why
        assert (await house.engine_stats("tiny"))["requests"] == 1


async def test_fallbacks_in_a_circle_are_a_refusal(build: Build) -> None:
    facts = Facts(fallback={"a": "b", "b": "a"}.get)
    async with build(config(model("a"), model("b")), facts=facts) as house:
        answer = await ask(house, model="a")
        assert (answer.status, answer.code) == (503, "out_of_schedule")


# --- lists --------------------------------------------------------------


async def test_lists_show_a_route_as_the_best_of_its_members(build: Build) -> None:
    facts = Facts(context_length={"a": 2048, "b": 8192}.get)
    async with build(routed(route(aliases=("llm",))), facts=facts) as house:
        await ask(house, model="b")
        entry = (await house.ask("GET", "/v1/models/llm")).json
        assert entry["id"] == "llm"
        assert entry["status"] == {"value": "loaded", "state": "ready"}
        assert entry["max_model_len"] == 8192
        assert entry["info"]["meta"]["description"] == "llama: least-busy of a, b, 8192 tokens of context"
        listed = (await house.ask("GET", "/llama/v1/models")).json["data"]
        assert [each["id"] for each in listed] == ["llama", "llm"]
        listed = (await house.ask("GET", "/models")).json["data"]
        assert [each["id"] for each in listed] == ["llama", "llm", "a", "b"]
        tags = (await house.ask("GET", "/api/tags")).json["models"]
        assert [tag["name"] for tag in tags] == ["llama", "llm", "a", "b"]
        shown = (await house.ask("POST", "/api/show", json={"model": "llama"})).json
        assert shown["model_info"]["unknown.context_length"] == 8192
        assert [each["name"] for each in (await house.ask("GET", "/api/ps")).json["models"]] == ["b"]


async def test_status_endpoints_tell_of_routes(build: Build) -> None:
    async with build(routed(clients=(client("me"), client("b", models=("b",))))) as house:
        await ask(house, headers=key("me"))
        assert (await house.ask("GET", "/healthz")).json["routes"]["llama"] == {
            "state": "ready",
            "members": ["a", "b"],
        }
        found = (await house.ask("GET", "/routes", headers=key("me"))).json
        assert found["default"] == "llama"
        assert found["routes"]["llama"]["members"] == {"a": "ready", "b": "stopped"}
        assert (await house.ask("GET", "/routes", headers=key("b"))).json["routes"].keys() == {"b"}
        stats = (await house.ask("GET", "/stats", headers=key("me"))).json["routes"]
        assert stats == {"llama": {"state": "ready", "choices": {"a": 1}, "retries": {}}}
        assert (await house.ask("GET", "/stats", headers=key("b"))).json["routes"] == {}


async def test_explain_tells_what_it_would_choose(build: Build) -> None:
    async with build(routed(route(rules=(Rule(use="b", tools=True),)))) as house:
        found = (await house.ask("GET", "/admin/explain/llama", control=True)).json
        assert found["outlook"] == "a request would go to a: least busy of 2: 0 in hand"
        assert found["summary"] == "llama chooses among a, b: 1 rule, then least-busy"
        assert found["rules"] == [{"use": "b", "tools": True}]
        assert found["members"]["b"]["state"] == "stopped"
        assert not house.gateway.engines.memory.turns, "a look changes nothing"
        status = (await house.ask("GET", "/admin/status", control=True)).json["routes"]
        assert status["llama"]["members"] == ["a", "b"]


async def test_what_a_route_does_not_lead_to_any_more_is_not_counted(build: Build) -> None:
    async with build(routed(route(rules=(Rule(use="b", tools=True),)))) as house:
        await ask(house)
        house.gateway.configure(routed(route(members=("b",), rules=(Rule(use="b", tools=True),))))
        await ask(house)
        status = (await house.ask("GET", "/admin/status", control=True)).json["routes"]
        assert status["llama"]["choices"] == {"b": 1}


# --- orders -------------------------------------------------------------


@pytest.mark.parametrize("word", ["model", "route"])
async def test_orders_to_a_route(build: Build, word: str) -> None:
    async def order(verb: str) -> Any:
        answer = await house.ask("POST", f"/admin/{verb}", control=True, json={word: "llama"})
        assert answer.status == 200
        return answer.json

    async with build(routed(members=(model("a"), model("b"), model("c")))) as house:
        assert await order("stop") == {"route": "llama", "members": {"a": "stopped", "b": "stopped"}}
        assert house.launcher.launches == []
        states = {"a": "ready", "b": "stopped"}
        started = {"route": "llama", "members": states, "model": "a", "state": "ready"}
        assert await order("start") == started
        await ask(house, model="c")
        assert (await order("restart"))["members"] == states
        assert await order("switch") == started
        assert house.state("c") is State.STOPPED
        await ask(house, model="b")
        assert (await order("stop"))["members"] == {"a": "stopped", "b": "stopped"}
        assert house.launcher.launches == ["a", "c", "a", "b"]


async def test_an_order_that_no_member_can_follow_is_refused(build: Build) -> None:
    async with build(routed()) as house:
        house.provisioner.error = ProvisionError("cannot find the weights; run `pull`")
        answer = await house.ask("POST", "/admin/start", control=True, json={"route": "llama"})
        assert (answer.status, answer.code) == (503, "start_failed")
        logs = await house.ask("GET", "/admin/logs/llama", control=True)
        assert (logs.status, logs.code) == (400, "invalid_request")
        unknown = await house.ask("POST", "/admin/start", control=True, json={"route": "lama"})
        assert "did you mean llama" in unknown.json["error"]["message"]


async def test_other_apis_load_and_unload_a_route(build: Build) -> None:
    async with build(routed()) as house:
        answer = await house.ask("POST", "/models/load", control=True, json={"model": "llama"})
        assert answer.json == {"success": True}
        await house.until(lambda: house.state("a") is State.READY)
        await house.ask("POST", "/models/unload", control=True, json={"model": "llama"})
        await house.until(lambda: house.state("a") is State.STOPPED)
        loaded = await house.ask("POST", "/api/generate", json={"model": "llama"})
        assert loaded.json["done_reason"] == "load"
        assert house.state("a") is State.READY
        await house.ask("POST", "/api/generate", control=True, json={"model": "llama", "keep_alive": 0})
        assert house.state("a") is State.STOPPED


async def test_a_reload_takes_routes_and_keeps_what_was_learnt(build: Build) -> None:
    async with build(routed(route(sticky=Sticky.CLIENT, policy=Choice.ROUND_ROBIN))) as house:
        before = (await ask(house)).headers["X-LLM-Model"]
        house.gateway.configure(routed(route(sticky=Sticky.CLIENT, members=("b", "a"))))
        assert (await ask(house)).headers["X-LLM-Model"] == before
        house.gateway.configure(routed(route(sticky=Sticky.CLIENT, members=("b",))))
        assert (await ask(house)).headers["X-LLM-Model"] == "b", "who was with what is gone goes elsewhere"
        house.gateway.configure(config(model("a"), model("b")))
        gone = await ask(house)
        assert (gone.status, gone.code) == (404, "model_not_found")


async def test_routes_lead_through_routes(build: Build) -> None:
    outer = Route(name="outer", members=("c",), path=None, rules=(Rule(use="llama", tools=False),))
    members = (model("a"), model("b"), model("c"))
    async with build(routed(route(), outer, members=members), scripts={"a": DEAD}) as house:
        answer = await ask(house, model="outer")
        assert answer.headers["X-LLM-Model"] == "b"
        stats = (await house.ask("GET", "/stats")).json["routes"]
        assert stats["outer"] == {"state": "stopped", "choices": {"a": 1, "b": 1}, "retries": {"a": 1}}
        assert stats["llama"]["choices"] == {"a": 1, "b": 1}
