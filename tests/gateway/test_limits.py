"""Rates, concurrency and quotas over HTTP, and who is let in all the same."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.config.model import Rate, RateLimit
from supervisord_llm.errors import Refused
from supervisord_llm.gateway.app import build_public_app
from supervisord_llm.gateway.limits.lockout import FREE_TRIES
from supervisord_llm.gateway.limits.meter import Meter, duration
from supervisord_llm.telemetry.usage import UsageStore
from tests.config.conftest import UNHURRIED
from tests.gateway.conftest import CHAT, Answer, Build, House, client, config, key, model, running

SLOW = Rate(3, 3600.0)
"""So slow that no test sees a bucket fill up."""

ALPHA = model("alpha")


def limits_of(answer: Answer) -> dict[str, str]:
    return {
        name.removeprefix("X-RateLimit-"): value
        for name, value in answer.headers.items()
        if name.startswith("X-RateLimit-")
    }


# --- clients: rate ----------------------------------------------------------


async def test_a_client_above_its_rate_gets_429_and_others_do_not(build: Build) -> None:
    clients = (client("slow", rate=SLOW), client("free"))
    async with build(config(ALPHA, clients=clients)) as house:
        for left in (2, 1, 0):
            answer = await house.ask("GET", "/v1/models", headers=key("slow"))
            assert answer.status == 200
            assert limits_of(answer)["Limit-Requests"] == "3"
            assert limits_of(answer)["Remaining-Requests"] == str(left)
        answer = await house.chat(headers=key("slow"))
        assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
        assert answer.json["error"]["type"] == "rate_limit_error"
        assert "3/h" in answer.json["error"]["message"]
        assert 1100 < int(answer.headers["Retry-After"]) <= 1200
        assert answer.headers["X-Should-Retry"] == "false", "a client that would sleep for 20 min"
        assert limits_of(answer)["Remaining-Requests"] == "0"
        assert limits_of(answer)["Reset-Requests"] in ("1h0m0s", "59m60s", "60m0s")
        assert house.launcher.launches == []
        free = await house.ask("GET", "/v1/models", headers=key("free"))
        assert (free.status, limits_of(free)) == (200, {})
        assert (await house.ask("GET", "/healthz", headers=key("slow"))).status == 200, "no key is looked at"
        assert (await house.ask("GET", "/v1/models", control=True)).status == 200


async def test_what_is_used_up_comes_back(build: Build) -> None:
    clients = (client("a", rate=Rate(20, 1.0), burst=1),)
    async with build(config(ALPHA, clients=clients)) as house:
        assert (await house.ask("GET", "/v1/models", headers=key("a"))).status == 200
        refused = await house.ask("GET", "/v1/models", headers=key("a"))
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert "X-Should-Retry" not in refused.headers
        async with asyncio.timeout(2):
            while (await house.ask("GET", "/v1/models", headers=key("a"))).status == 429:
                await asyncio.sleep(0.01)


async def test_errors_have_the_shape_of_their_api(build: Build) -> None:
    async with build(config(ALPHA, clients=(client("a", rate=SLOW, burst=1),))) as house:
        assert (await house.ask("GET", "/v1/models", headers=key("a"))).status == 200
        answer = await house.chat(path="/v1/messages", headers=key("a"))
        assert answer.status == 429
        assert (answer.json["type"], answer.json["error"]["type"]) == ("error", "rate_limit_error")
        answer = await house.ask("POST", "/api/chat", json=CHAT, headers=key("a"))
        assert answer.status == 429
        assert answer.json["error"].startswith("cannot take more requests")


# --- clients: keys and endpoints ----------------------------------------------------------


async def test_two_keys_are_one_client_while_it_changes_over(build: Build) -> None:
    old, new = (sha256(each).digest() for each in (b"key-a", b"key-new"))
    rotating = replace(client("a", rate=SLOW, burst=2), key_digests=(new, old))
    async with build(config(ALPHA, clients=(rotating, client("b")))) as house:
        assert (await house.ask("GET", "/v1/models", headers=key("a"))).status == 200
        assert (await house.ask("GET", "/v1/models", headers=key("new"))).status == 200
        assert (await house.ask("GET", "/v1/models", headers=key("new"))).status == 429, "one bucket for both"
        house.gateway.configure(config(ALPHA, clients=(replace(rotating, key_digests=(new,)), client("b"))))
        assert (await house.ask("GET", "/v1/models", headers=key("a"))).code == "invalid_api_key"


async def test_a_key_for_some_endpoints_opens_no_others(build: Build) -> None:
    clients = (client("rag", endpoints=("embeddings", "re*")), client("free"))
    async with build(config(ALPHA, clients=clients)) as house:
        for path in ("/v1/chat/completions", "/alpha/v1/chat/completions", "/chat/completions", "/tokenize"):
            answer = await house.ask("POST", path, json=CHAT, headers=key("rag"))
            assert (answer.status, answer.code) == (403, "model_forbidden")
            assert "embeddings, re*" in answer.json["error"]["message"]
        assert house.launcher.launches == []
        body = {"model": "alpha", "input": "hi"}
        assert (await house.ask("POST", "/v1/embeddings", json=body, headers=key("rag"))).status == 200
        assert (await house.ask("GET", "/v1/models", headers=key("rag"))).status == 200
        assert (await house.chat(headers=key("free"))).status == 200


# --- clients: concurrency ----------------------------------------------------------


async def test_a_client_with_too_many_in_flight_gets_429_until_one_ends(build: Build) -> None:
    clients = (client("a", max_concurrent=2), client("b"))
    async with build(config(ALPHA, clients=clients), held=("alpha",)) as house:
        (meter,) = (house.gateway.limits._meters[name] for name in ("a",))
        post = lambda: house.http.post("/v1/chat/completions", json=CHAT, headers=key("a"))  # noqa: E731
        async with running(post()):
            async with running(post()) as second:
                await house.until(lambda: meter.in_flight == 2)
                refused = await house.chat(headers=key("a"))
                assert (refused.status, refused.code) == (429, "too_many_concurrent_requests")
                assert refused.headers["Retry-After"] == "5"
                assert (await house.ask("GET", "/v1/models", headers=key("a"))).status == 200
                async with running(house.http.post("/v1/chat/completions", json=CHAT, headers=key("b"))):
                    waiting = house.runtime.fleet.engines["alpha"].waiting
                    await house.until(lambda: len(house.runtime.fleet.engines["alpha"].waiting) == 3)
                    assert waiting is not None
                assert not second.done()
            await house.until(lambda: meter.in_flight == 1)  # its client left
            async with running(post()):
                await house.until(lambda: meter.in_flight == 2)
        await house.until(lambda: meter.in_flight == 0)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"json": CHAT}, 200),
        ({"json": CHAT | {"stream": True}}, 200),
        ({"json": CHAT | {"model": "ghost"}}, 404),
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ({"data": b"x" * 2000, "headers": {"Content-Type": "application/json"}}, 400),
    ],
)
async def test_every_way_to_end_gives_the_place_back(
    build: Build, request_: dict[str, Any], status: int
) -> None:
    async with build(config(ALPHA, clients=(client("a", max_concurrent=1),))) as house:
        request_ = {**request_, "headers": {**request_.get("headers", {}), **key("a")}}
        for _ in range(3):
            answer = await house.ask("POST", "/v1/chat/completions", **request_)
            assert answer.status == status
        assert house.gateway.limits._meters["a"].in_flight == 0


async def test_a_client_that_leaves_in_the_middle_of_an_answer_gives_its_place_back(build: Build) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: {}\n\n"
        )
        await reader.read()
        writer.close()

    clients = (client("a", max_concurrent=1),)
    async with build(config(ALPHA, clients=clients), scripts={"alpha": drip}) as house:
        for _ in range(3):
            answer = await house.http.post(
                "/v1/chat/completions", json=CHAT | {"stream": True}, headers=key("a")
            )
            assert (answer.status, await answer.content.readline()) == (200, b"data: {}\n")
            assert house.gateway.limits._meters["a"].in_flight == 1
            answer.close()
            await house.until(lambda: house.gateway.limits._meters["a"].in_flight == 0)


@UNHURRIED
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(["enter", "leave", "fail", "limit"]), st.integers(0, 9))),
)
def test_the_count_in_flight_is_that_of_the_blocks_entered(limit: int, steps: list[tuple[str, int]]) -> None:
    """Whatever comes in which order: never negative, never above the limit that was in force on entering."""
    meter = Meter(client("a", max_concurrent=limit), UsageStore())
    inside = 0
    for step, number in steps:
        if step == "enter":
            try:
                meter.__enter__()
            except Refused:
                assert inside >= limit
            else:
                assert inside < limit
                inside += 1
        elif step == "limit":
            limit = number % 4 + 1
            meter.allow(client("a", max_concurrent=limit))
        elif inside:
            error = ConnectionError() if step == "fail" else None
            assert meter.__exit__(type(error), error, None) is None, "errors pass"
            inside -= 1
        assert meter.in_flight == inside >= 0


# --- clients: tokens ----------------------------------------------------------


async def test_a_client_whose_tokens_are_used_up_waits_for_the_next_window(build: Build) -> None:
    clock = Clock()
    clients = (client("a", tokens_per_hour=10, tokens_per_day=1000), client("free"))
    async with build(config(ALPHA, clients=clients), usage=UsageStore(clock=clock)) as house:
        used = 0
        while used < 10:  # the answer that goes beyond the limit is given whole
            answer = await house.chat(headers=key("a"))
            assert answer.status == 200
            assert limits_of(answer)["Remaining-Tokens"] == str(10 - used)
            used += answer.json["usage"]["total_tokens"]
        refused = await house.chat(headers=key("a"))
        assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
        assert f"{used} of the 10 tokens of this hour" in refused.json["error"]["message"]
        assert limits_of(refused)["Limit-Tokens"] == "10"
        assert limits_of(refused)["Remaining-Tokens"] == "0"
        assert 0 < int(refused.headers["Retry-After"]) <= 3600
        assert (await house.ask("GET", "/v1/models", headers=key("a"))).status == 200
        assert (await house.chat(headers=key("free"))).status == 200
        clock.at += 3600
        answer = await house.chat(headers=key("a"))
        assert answer.status == 200
        assert limits_of(answer)["Remaining-Tokens"] == "10"


async def test_streams_and_embeddings_count_too(build: Build) -> None:
    usage = UsageStore(clock=Clock())
    async with build(config(ALPHA, clients=(client("a", tokens_per_day=10**6),)), usage=usage) as house:
        asked = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
        assert (await house.ask("POST", "/v1/chat/completions", json=asked, headers=key("a"))).status == 200
        after_chat = usage.windows("a")[1].tokens
        assert after_chat > 0
        body = {"model": "alpha", "input": ["hi", "there"]}
        answer = await house.ask("POST", "/v1/embeddings", json=body, headers=key("a"))
        assert usage.windows("a")[1].tokens == after_chat + answer.json["usage"]["total_tokens"]


async def test_tokens_count_wherever_the_answer_tells_them(build: Build) -> None:
    """vLLM tells the prompt's tokens behind the counts, if asked to."""
    usage = UsageStore(clock=Clock())
    async with build(config(ALPHA, clients=(client("a", tokens_per_day=10**6),)), usage=usage) as house:
        answer = await house.chat(headers=key("a"), return_token_ids=True)
        assert len(answer.json["prompt_token_ids"]) > 1000
        assert usage.windows("a")[1].tokens == answer.json["usage"]["total_tokens"]


async def test_to_count_tokens_takes_none(build: Build) -> None:
    usage = UsageStore(clock=Clock())
    async with build(config(ALPHA, clients=(client("a", tokens_per_day=10**6),)), usage=usage) as house:
        answer = await house.ask("POST", "/v1/messages/count_tokens", json=CHAT, headers=key("a"))
        assert answer.json["input_tokens"] > 0
        assert usage.windows("a")[1].tokens == 0


# --- addresses ----------------------------------------------------------

PER_IP = RateLimit(per_ip=SLOW, burst=3)


async def test_an_address_above_its_rate_gets_429_before_its_key_is_looked_at(build: Build) -> None:
    async with build(config(ALPHA, clients=(client("a"),), rate_limit=PER_IP)) as house:
        for path in ("/healthz", "/v1/models", "/no/such"):
            assert (await house.ask("GET", path)).status != 429
        for headers in ({}, key("a"), key("wrong"), {"X-Forwarded-For": "10.0.0.9"}):
            answer = await house.ask("GET", "/v1/models", headers=headers)
            assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
            assert int(answer.headers["Retry-After"]) > 60
        assert (await house.ask("GET", "/healthz")).status == 429
        assert (await house.ask("GET", "/healthz", control=True)).status == 200
        assert await from_unix_socket(house, "/healthz", times=10) == [200] * 10


async def test_another_address_is_not_concerned(build: Build) -> None:
    async with build(config(ALPHA, rate_limit=PER_IP)) as house, visitor(house, "127.0.0.2") as other:
        for _ in range(5):
            last = await house.ask("GET", "/healthz")
        assert last.status == 429
        async with other.get("/healthz") as answer:
            assert answer.status == 200


# --- wrong keys ----------------------------------------------------------


async def test_wrong_keys_are_held_up_and_right_ones_are_not(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    clients = (client("a"), client("root", admin=True))
    async with build(config(ALPHA, clients=clients)) as house, visitor(house, "127.0.0.2") as other:
        for number in range(FREE_TRIES):
            assert (
                await house.ask("GET", "/v1/models", headers=key(f"guess{number}"))
            ).code == "invalid_api_key"
        with caplog.at_level(logging.INFO):
            for _ in range(5):
                answer = await house.ask("GET", "/v1/models", headers=key("guess"))
                assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
                assert answer.headers["Retry-After"] == "1"
        assert (await house.ask("GET", "/v1/models", headers=key("a"))).status == 200
        assert (await house.ask("GET", "/v1/models")).status == 401, "no key is no guess"
        assert (await house.ask("GET", "/healthz", headers=key("guess"))).status == 200
        async with other.get("/v1/models", headers=key("guess")) as elsewhere:
            assert elsewhere.status == 401
        assert "guess" not in caplog.text
        async with asyncio.timeout(3):  # the delay is over: one more guess is told to be wrong
            while (await house.ask("GET", "/v1/models", headers=key("guess"))).status == 429:
                await asyncio.sleep(0.05)
        metrics = (await house.ask("GET", "/metrics", headers=key("root"))).body.decode()
        assert (
            f'llm_supervisor_refusals_total{{client="",reason="invalid_api_key"}} {FREE_TRIES + 3}.0'
            in metrics
        )


# --- reload ----------------------------------------------------------


async def test_a_reload_changes_limits_and_forgets_nothing(build: Build) -> None:
    one = client("a", rate=SLOW, burst=1, max_concurrent=1)
    async with build(config(ALPHA, clients=(one,)), held=("alpha",)) as house:
        post = house.http.post("/v1/chat/completions", json=CHAT, headers=key("a"))
        async with running(post) as waiting:
            await house.until(lambda: house.gateway.limits._meters["a"].in_flight == 1)
            assert (await house.ask("GET", "/v1/models", headers=key("a"))).status == 429
            house.gateway.configure(config(ALPHA, clients=(one, client("b"))))
            assert (await house.ask("GET", "/v1/models", headers=key("a"))).status == 429, "still empty"
            house.gateway.configure(config(ALPHA, clients=(replace(one, rate=None, burst=None),)))
            answer = await house.chat(headers=key("a"))
            assert answer.code == "too_many_concurrent_requests", "the one in flight still counts"
            house.gateway.configure(
                config(ALPHA, clients=(client("a", max_concurrent=2),), rate_limit=PER_IP)
            )
            async with running(house.http.post("/v1/chat/completions", json=CHAT, headers=key("a"))):
                await house.until(lambda: house.gateway.limits._meters["a"].in_flight == 2)
            for _ in range(3):
                last = await house.ask("GET", "/healthz")
            assert last.status == 429
            house.gateway.configure(config(ALPHA, clients=(client("a"),)))
            assert (await house.ask("GET", "/healthz")).status == 200
            assert not waiting.done()


async def test_a_client_that_is_gone_leaves_nothing_behind(build: Build) -> None:
    async with build(config(ALPHA, clients=(client("a"), client("b")))) as house:
        house.gateway.configure(config(ALPHA, clients=(client("b"),)))
        assert set(house.gateway.limits._meters) == {"b"}


# --- priority ----------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["chat/completions", "embeddings"])
async def test_priority_reaches_the_queue_of_vllm_and_no_claim_of_the_client_does(
    build: Build, endpoint: str
) -> None:
    seen: list[tuple[dict[str, str], Any]] = []
    fair = model("alpha", flags={"scheduling-policy": "priority"})
    clients = (client("high", priority=7), client("low", priority=-2), client("plain"))
    sent = CHAT | {"input": "x", "priority": -(10**9)}
    claim = {"X-Vllm-Priority": "-1000"}
    async with build(config(fair, clients=clients), scripts={"alpha": echo(seen)}) as house:
        for name in ("high", "low", "plain"):
            answer = await house.ask("POST", f"/v1/{endpoint}", json=sent, headers=key(name) | claim)
            assert answer.status == 200
        assert [headers["x-vllm-priority"] for headers, _ in seen] == ["-7", "2", "0"]
        assert [body["priority"] for _, body in seen] == [-7, 2, 0]
        assert [body | {"priority": sent["priority"]} for _, body in seen] == [sent] * 3
        house.gateway.configure(config(ALPHA, clients=clients))
        _ = sent.pop("priority")
        answer = await house.ask("POST", f"/v1/{endpoint}", json=sent, headers=key("high") | claim)
        assert answer.status == 200
        headers, body = seen[-1]
        assert "x-vllm-priority" not in headers
        assert body == sent


# --- metrics ----------------------------------------------------------


async def test_refusals_and_tokens_are_counted_by_client(build: Build) -> None:
    clients = (client("a", rate=SLOW, burst=1), client("root"))
    async with build(config(ALPHA, clients=clients)) as house:
        used = (await house.chat(headers=key("a"))).json["usage"]
        prompt, completion = used["prompt_tokens"], used["completion_tokens"]
        for _ in range(2):
            assert (await house.chat(headers=key("a"))).status == 429
        text = (await house.ask("GET", "/metrics", headers=key("root"))).body.decode()
        for line in (
            'llm_supervisor_refusals_total{client="a",reason="rate_limit_exceeded"} 2.0',
            'llm_supervisor_refusals_total{client="a",reason="too_many_concurrent_requests"} 0.0',
            'llm_supervisor_refusals_total{client="root",reason="rate_limit_exceeded"} 0.0',
            f'llm_supervisor_client_tokens_total{{client="a",kind="prompt"}} {prompt}.0',
            f'llm_supervisor_client_tokens_total{{client="a",kind="completion"}} {completion}.0',
            'llm_supervisor_client_tokens_total{client="root",kind="prompt"} 0.0',
        ):
            assert line in text.splitlines()


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0ms"),
        (0.0121, "13ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (59.2, "1m0s"),
        (360, "6m0s"),
        (7200.5, "2h0m1s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written


# --- what the tests stand on ----------------------------------------------------------


class Clock:
    """Unix time that a test moves."""

    def __init__(self) -> None:
        self.at = time.mktime((2026, 11, 21, 12, 30, 0, 0, 0, -1))

    def __call__(self) -> float:
        return self.at


@asynccontextmanager
async def visitor(house: House, address: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client at another address of this host."""
    connector = aiohttp.TCPConnector(local_addr=(address, 0))
    async with aiohttp.ClientSession(house.url, connector=connector) as http:
        yield http


async def from_unix_socket(house: House, path: str, *, times: int) -> list[int]:
    """The status of each GET by a public listener on a unix socket."""
    async with AsyncExitStack() as stack:
        runner = web.ServerRunner(build_public_app(house.gateway), shutdown_timeout=1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("")  # an abstract name of the kernel's choice
        await web.SockSite(runner, listener).start()
        connector = aiohttp.UnixConnector(listener.getsockname())
        http = await stack.enter_async_context(aiohttp.ClientSession("http://x", connector=connector))
        statuses = []
        for _ in range(times):
            async with http.get(path) as answer:
                statuses.append(answer.status)
        return statuses


def echo(seen: list[tuple[dict[str, str], Any]]) -> Callable[..., Any]:
    """An engine that notes the headers and bodies it gets."""
    import json

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
        }
        body = await reader.readexactly(int(headers["content-length"]))
        seen.append((headers, json.loads(body)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n")
        writer.write(b"Connection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    return serve
