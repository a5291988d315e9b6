"""Models elsewhere: what a probe tells, when the circuit opens, and what a reload changes."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trustme

from supervisord_llm.config.model import Model
from supervisord_llm.core.effects import StartEngine
from supervisord_llm.engines import remote
from supervisord_llm.engines.launcher import LocalLauncher
from supervisord_llm.engines.launchers import Launchers
from supervisord_llm.engines.remote import FAILURES, RemoteEngine, RemoteLauncher, backend, probe
from supervisord_llm.errors import EngineError, LaunchError
from supervisord_llm.runtime.ports import Beginning, Exit
from tests.fakes.fake_provider import KEY, provider

GOOD = Beginning(200)
BAD = Beginning(503)
ORDER = StartEngine(model="grok", launch=1, gpus=(), memory_fraction=None, granted_bytes=(), signature="s")


def model(url: str = "http://127.0.0.1:1/v1", **fields: Any) -> Model:
    given = {"engine": "remote", "key": KEY, "gpus": (), "flags": {}, "env": {}} | fields
    return Model(name="grok", source="grok-4", url=url, **given)


# --- probes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, ""),
        (204, ""),
        (404, ""),
        (405, ""),
        (429, ""),
        (501, ""),
        (301, "it redirects (301), which is not followed; correct `url`"),
        (401, "it does not accept the key (401); check the key"),
        (403, "it forbids it to the key (403); check the key"),
        (500, "it answers 500, a fault of its own"),
        (503, "it answers 503, a fault of its own"),
    ],
)
async def test_what_the_status_of_a_probe_means(status: int, expected: str) -> None:
    async with provider(models_status=status) as fake:
        found = await probe(backend(model(fake.url)))
    assert found.startswith(expected) if expected else found == ""


async def test_a_wrong_key_is_noticed_and_not_told() -> None:
    async with provider() as fake:
        assert await probe(backend(model(fake.url))) == ""
        found = await probe(backend(model(fake.url, key="sk-wrong-0000000000")))
    assert found.startswith("it does not accept the key (401)")
    assert "sk-wrong" not in found


@asynccontextmanager
async def raw(answer: bytes | None) -> AsyncIterator[int]:
    """A server that answers each connection with these bytes, or never; its port."""
    is_over = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        if answer is None:
            await is_over.wait()
        else:
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        is_over.set()


REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: https://evil.example/steal?k=1\r\nContent-Length: 0\r\n\r\n"
HUGE = b"HTTP/1.1 200 OK\r\nX-Big: " + b"x" * 100_000 + b"\r\n\r\n"
WRONG = {
    "a redirect elsewhere": (REDIRECT, "it redirects to https://evil.example (302), which is not followed"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", "what it sends is not HTTP as it should be"),
    "an oversized header": (HUGE, "what it sends is not HTTP as it should be"),
    "nothing": (b"", "the connection broke"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_no_api_would_answer_is_a_sentence(name: str) -> None:
    answer, expected = WRONG[name]
    async with raw(answer) as port:
        found = await probe(backend(model(f"http://127.0.0.1:{port}/v1")))
    assert found.startswith(expected)
    assert "steal" not in found


async def test_a_redirect_is_not_followed_with_the_key() -> None:
    async with provider() as fake:
        away = f"HTTP/1.1 307 Away\r\nLocation: {fake.url}/models\r\nContent-Length: 0\r\n\r\n"
        async with raw(away.encode()) as port:
            assert "redirects" in await probe(backend(model(f"http://127.0.0.1:{port}/v1")))
        assert fake.probes == 0


async def test_one_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PROBE_S", 0.1)

    async with raw(None) as port:
        found = await probe(backend(model(f"http://127.0.0.1:{port}/v1")))
    assert found.startswith(("it does not answer in time", "it has sent nothing for"))


async def test_nobody_there_and_no_such_name() -> None:
    assert (await probe(backend(model("http://127.0.0.1:1/v1")))).startswith("nothing listens there")
    found = await probe(backend(model("http://nowhere.invalid/v1")))
    assert found.startswith("its name does not resolve")
    assert "drop-in remote.conf" in found


async def test_a_certificate_of_an_unknown_authority_is_not_trusted() -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with provider(tls) as fake:
        found = await probe(backend(model(fake.url)))
        assert fake.probes == 0, "the key is not sent to who knows whom"
    assert found.startswith("its certificate is not trusted (")
    assert "SSL_CERT_FILE" in found


async def test_http_where_https_is_meant_and_the_other_way_round() -> None:
    async with provider() as fake:
        found = await probe(backend(model(fake.url.replace("http", "https", 1))))
    assert found.startswith("it does not speak TLS as it should")


# --- the circuit -------------------------------------------------------------------------------


async def launched(one: Model, launcher: RemoteLauncher | None = None) -> RemoteEngine:
    launcher = launcher or RemoteLauncher()
    launcher.configure([one])
    return await launcher.launch(ORDER, lambda progress: None)


async def end_of(engine: RemoteEngine) -> Exit:
    async with asyncio.timeout(5):
        return await engine.wait()


async def is_open(engine: RemoteEngine) -> bool:
    waiting = asyncio.ensure_future(engine.wait())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    found = waiting.done()
    waiting.cancel()
    return found


async def test_it_is_ready_once_the_probe_has_passed() -> None:
    async with provider() as fake:
        engine = await launched(model(fake.url))
        await asyncio.wait_for(engine.ready(), 5)
        assert not await is_open(engine)


async def test_a_probe_that_fails_is_its_end_with_the_reason_and_never_ready() -> None:
    engine = await launched(model())
    ready = asyncio.ensure_future(engine.ready())
    end = await end_of(engine)
    assert end.reason.startswith("http://127.0.0.1:1: nothing listens there")
    assert not ready.done()
    ready.cancel()


async def test_failures_in_a_row_open_it_and_streams_go_on() -> None:
    engine = await launched(model())
    for _ in range(FAILURES - 1):
        engine.began(BAD)
    assert not await is_open(engine)
    engine.began(BAD)
    end = await end_of(engine)
    why = "it answers 503, a fault of its own; try again"
    assert end.reason == f"http://127.0.0.1:1: {FAILURES} times in a row, lastly: {why}"
    assert end.answers_on


async def test_an_answer_in_between_begins_the_count_anew() -> None:
    engine = await launched(model())
    for _ in range(5):
        for _ in range(FAILURES - 1):
            engine.began(BAD)
        engine.began(GOOD)
    assert not await is_open(engine)


@pytest.mark.parametrize("status", [200, 400, 403, 404, 422, 429, 501])
async def test_answers_about_the_request_do_not_open_it(status: int) -> None:
    engine = await launched(model())
    for _ in range(3 * FAILURES):
        engine.began(Beginning(status))
    assert not await is_open(engine)


@pytest.mark.parametrize(
    "beginning", [Beginning(why="nothing listens there"), *map(Beginning, (301, 401, 402, 500, 502, 504))]
)
async def test_what_opens_it(beginning: Beginning) -> None:
    engine = await launched(model())
    for _ in range(FAILURES):
        engine.began(beginning)
    assert await is_open(engine)


async def test_a_limit_neither_counts_nor_clears_the_count() -> None:
    engine = await launched(model())
    for beginning in (*[BAD] * (FAILURES - 1), Beginning(429), BAD):
        engine.began(beginning)
    assert await is_open(engine)


async def test_after_it_was_open_the_first_failure_opens_it_again() -> None:
    launcher = RemoteLauncher()
    first = await launched(model(), launcher)
    for _ in range(FAILURES):
        launcher.began("grok", BAD)
    await end_of(first)
    second = await launched(model(), launcher)
    launcher.began("grok", BAD)
    assert await is_open(second)
    third = await launched(model(), launcher)
    launcher.began("grok", GOOD)
    launcher.began("grok", BAD)
    assert not await is_open(third), "it has answered since"
    fourth = await launched(model(), launcher)
    launcher.began("grok", BAD)
    assert not await is_open(fourth), "the one before was not ended by a failure"


@pytest.mark.parametrize("is_reloaded", [False, True])
async def test_one_that_ended_before_its_first_answer_was_no_failure(is_reloaded: bool) -> None:
    launcher = RemoteLauncher()
    first = await launched(model(), launcher)
    await first.stop(kill=False)
    if is_reloaded:
        launcher.configure([])
    second = await launched(model(), launcher)
    launcher.began("grok", BAD)
    assert not await is_open(second)


async def test_one_that_answered_before_it_opened_is_suspect_all_the_same() -> None:
    launcher = RemoteLauncher()
    await launched(model(), launcher)
    for beginning in (GOOD, *[BAD] * FAILURES):
        launcher.began("grok", beginning)
    second = await launched(model(), launcher)
    launcher.began("grok", BAD)
    assert await is_open(second)


async def test_news_of_models_that_were_never_launched_or_are_gone_are_no_news() -> None:
    launcher = RemoteLauncher()
    launcher.began("chat", BAD)
    engine = await launched(model(), launcher)
    launcher.configure([])
    launcher.lost("grok", "gone")
    assert not await is_open(engine)


# --- the rest ----------------------------------------------------------------------------------


async def test_a_stop_ends_it_and_cuts_what_streams() -> None:
    engine = await launched(model())
    await engine.stop(kill=False)
    await engine.stop(kill=True)
    end = await end_of(engine)
    assert (end.reason, end.answers_on) == ("stopped as asked", False)


async def test_another_key_takes_effect_at_once_and_one_that_is_gone_stays() -> None:
    launcher = RemoteLauncher()
    engine = await launched(model(), launcher)
    assert engine.backend.headers["Authorization"] == f"Bearer {KEY}"
    launcher.configure([model(key="another")])
    assert engine.backend.headers["Authorization"] == "Bearer another"
    launcher.configure([model(key=None)])
    assert "Authorization" not in engine.backend.headers
    launcher.configure([])
    assert engine.backend.origin == "http://127.0.0.1:1"


async def test_one_that_has_left_the_configuration_is_not_launched() -> None:
    launchers = Launchers(cast("LocalLauncher", None), RemoteLauncher(), {}.get)
    with pytest.raises(LaunchError, match="left the configuration"):
        await launchers.launch(ORDER, lambda progress: None)


async def test_it_can_neither_sleep_nor_tell_its_progress() -> None:
    engine = await launched(model())
    with pytest.raises(EngineError, match="cannot put"):
        await engine.sleep(1)
    with pytest.raises(EngineError, match="cannot wake"):
        await engine.wake(1)
    assert await engine.progressing() is None


@pytest.mark.parametrize(
    ("url", "path", "expected"),
    [
        ("https://api.x.ai/v1", "/v1/chat/completions", "https://api.x.ai/v1/chat/completions"),
        ("https://api.groq.com/openai/v1", "/v1/models", "https://api.groq.com/openai/v1/models"),
        ("https://api.perplexity.ai", "/v1/chat/completions", "https://api.perplexity.ai/chat/completions"),
        ("http://[::1]:8000/v1", "/tokenize", "http://[::1]:8000/v1/tokenize"),
        ("http://h/api/openai/v1", "/v2/rerank", "http://h/api/openai/v1/v2/rerank"),
        ("http://h", "/pooling", "http://h/pooling"),
        ("http://h/v1", "/v10/score", "http://h/v1/v10/score"),
    ],
)
def test_what_stands_there_for_v1(url: str, path: str, expected: str) -> None:
    assert backend(model(url)).url(path) == expected


def test_no_repr_shows_the_key() -> None:
    one = model()
    assert KEY not in f"{one!r} {backend(one)!r} {Beginning(401)!r}"
