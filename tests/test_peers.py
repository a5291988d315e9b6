"""Peers as the daemon follows them: what it believes of a list, and what becomes of one that is away."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from supervisord_llm import peers
from supervisord_llm.config.model import Config, Model, Paths, Peer, Server, Vram
from supervisord_llm.config.peers import Offer
from supervisord_llm.core.card import Card
from supervisord_llm.peers import Away, Peers, ask

KEY = "sk-canary-0123456789"
UNUSABLE = ("../x", "a/../b", "a b", "ä", "", "/a", "a/", "x" * 201, "a\r\nb", 7)


@dataclass(eq=False)
class Other:
    """What is asked: it answers `body` with `status`, after `wait_s`."""

    body: object = None
    status: int = 200
    wait_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[web.BaseRequest] = field(default_factory=list)
    url: str = ""

    def lists(self, *names: str) -> None:
        self.body, self.status = {"data": [{"id": name} for name in names]}, 200

    async def handle(self, request: web.BaseRequest) -> web.Response:
        self.seen.append(request)
        await asyncio.sleep(self.wait_s)
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        return web.Response(text=text, status=self.status, headers=self.headers)

    @property
    def peer(self) -> Peer:
        return Peer(name="p", url=self.url, key=KEY)


@pytest.fixture
async def other() -> AsyncIterator[Other]:
    found = Other()
    runner = web.ServerRunner(web.Server(found.handle, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LOOK_S": 0.02, "FIRST_WAIT_S": 0.02, "LONGEST_WAIT_S": 0.04, "KEPT_S": 60}.items():
        monkeypatch.setattr(peers, name, seconds)


def config(*there: Peer, **models: Model) -> Config:
    here = Path("/nowhere")
    return Config(
        files=(),
        server=Server(),
        paths=Paths(state=here, cache=here, runtime=here),
        auth_required=False,
        clients=(),
        vram=Vram(),
        gpu_budgets={},
        models={model.name: model for model in models.values()},
        peers=there,
    )


@dataclass(eq=False)
class Watched:
    peers: Peers = field(init=False)
    changes: int = 0
    lost: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.peers = Peers(self._change, self.lost.__setitem__)

    def _change(self) -> None:
        self.changes += 1

    def names(self, of: Config) -> list[str]:
        return sorted(self.peers.merged(of).models)


@asynccontextmanager
async def following(of: Config) -> AsyncIterator[Watched]:
    watched = Watched()
    watched.peers.configure(of)
    try:
        yield watched
    finally:
        await watched.peers.close()


async def until(look: Any) -> None:
    async with asyncio.timeout(5):
        while not look():
            await asyncio.sleep(0.005)


# --- one question -------------------------------------------------------------------------------------


async def asked(other: Other) -> tuple[Offer, ...]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.5)) as session:
        return await ask(session, other.peer)


async def test_it_is_asked_with_its_key_as_a_peer(other: Other) -> None:
    other.lists("a")
    assert [offer.name for offer in await asked(other)] == ["a"]
    [request] = other.seen
    assert request.path == "/v1/models"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["X-LLM-Peer"] == "1"


async def test_what_can_be_used_of_a_list_is(other: Other) -> None:
    seeing = {"input_modalities": ["text", "image", "smell"], "output_modalities": ["text"]}
    other.body = {
        "data": [
            {"id": "plain"},
            {"id": "org/sees", "max_model_len": 4096, "architecture": seeing},
            {"id": "embeds", "max_model_len": True, "architecture": {"output_modalities": ["embeddings"]}},
            {"id": "odd", "max_model_len": -1, "architecture": {"input_modalities": 7}},
            {"id": "plain"},
            *({"id": name} for name in UNUSABLE),
            "nothing",
            {},
        ]
    }
    assert await asked(other) == (
        Offer(name="plain", card=Card()),
        Offer(name="org/sees", max_model_len=4096, card=Card(inputs=("text", "image"))),
        Offer(name="embeds", card=Card(task="embed")),
        Offer(name="odd", card=Card()),
    )


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (401, "{}", "does not accept the key"),
        (403, "{}", "forbids it to the key"),
        (503, "{}", "answers 503"),
        (404, "{}", "no list of models (404)"),
        (200, "no JSON", "no list of models"),
        (200, "[]", "no list of models"),
        (200, '{"data": 7}', "no list of models"),
        (200, "[" * 100_000, "no list of models"),
        (302, "", "redirects to http://elsewhere"),
    ],
)
async def test_anything_else_says_why(other: Other, status: int, body: str, why: str) -> None:
    other.status, other.body, other.headers = status, body, {"Location": "http://elsewhere/"}
    with pytest.raises(Away, match=why.replace("(", r"\(").replace(")", r"\)")):
        await asked(other)


async def test_neither_a_long_list_nor_a_long_wait_holds_it_up(
    other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "MOST_BYTES", 1000)
    other.body = "x" * 2000
    with pytest.raises(Away, match="too long"):
        await asked(other)
    other.lists(*(f"m{number}" for number in range(20)))
    monkeypatch.setattr(peers, "MOST_MODELS", 5)
    assert len(await asked(other)) == 5
    other.wait_s = 5.0
    before = time.monotonic()
    with pytest.raises(Away, match="does not answer in time"):
        await asked(other)
    assert time.monotonic() - before < 2


# --- from one list to the next ------------------------------------------------------------------------


async def test_what_it_lists_comes_and_goes(other: Other) -> None:
    other.lists("a", "b")
    of = config(other.peer)
    async with following(of) as watched:
        await watched.peers.first_look()
        assert (watched.names(of), watched.changes) == (["p/a", "p/b"], 1)
        asked_before = len(other.seen)
        await until(lambda: len(other.seen) > asked_before + 2)
        assert watched.changes == 1
        other.lists("a", "c")
        await until(lambda: watched.names(of) == ["p/a", "p/c"])
        assert watched.lost == {"p/b": "it is not listed there any more"}
        assert watched.peers.describe() == {"p": {"url": other.url, "listed": 2, "away": ""}}


async def test_one_that_is_away_is_lost_and_later_forgotten(
    other: Other, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other.lists("a")
    named = Model(name="p/x", source="x", engine="remote", peer="p", flags={}, env={})
    of = config(other.peer, named=named)
    async with following(of) as watched:
        await watched.peers.first_look()
        other.status = 500
        await until(lambda: len(watched.lost) == 2)
        assert watched.lost.keys() == {"p/a", "p/x"}
        assert watched.names(of) == ["p/a", "p/x"]
        assert "answers 500" in watched.peers.describe()["p"]["away"]
        monkeypatch.setattr(peers, "KEPT_S", 0.1)
        await until(lambda: watched.names(of) == ["p/x"])
        other.lists("a")
        await until(lambda: watched.names(of) == ["p/a", "p/x"])
        assert watched.peers.describe()["p"]["away"] == ""
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1, "each look at one that is away is no news"
    assert KEY not in caplog.text


async def test_its_return_is_news_though_it_lists_the_same(other: Other) -> None:
    other.lists("a")
    async with following(config(other.peer)) as watched:
        await watched.peers.first_look()
        other.status = 500
        await until(lambda: watched.peers.describe()["p"]["away"])
        assert watched.changes == 1
        other.status = 200
        await until(lambda: watched.changes == 2)
        assert watched.peers.describe()["p"]["away"] == ""


async def test_without_its_key_it_is_not_asked(other: Other) -> None:
    other.lists("a")
    keyless = replace(other.peer, key=None, no_key="its key_env leads to no key")
    async with following(config(keyless)) as watched:
        await watched.peers.first_look()
        assert watched.peers.describe()["p"]["away"] == "its key_env leads to no key"
        assert other.seen == []
        watched.peers.configure(config(other.peer))
        await until(lambda: watched.changes == 1)


async def test_a_reload_keeps_what_was_found_of_the_same_address_alone(other: Other) -> None:
    other.lists("a")
    of = config(other.peer)
    async with following(of) as watched:
        await watched.peers.first_look()
        other.wait_s = 5.0
        watched.peers.configure(config(replace(other.peer, models=("b",))))
        assert watched.names(config(replace(other.peer, models=("b",)))) == []
        watched.peers.configure(of)
        assert watched.names(of) == ["p/a"]
        elsewhere = config(replace(other.peer, url="http://127.0.0.1:1"))
        watched.peers.configure(elsewhere)
        assert watched.names(elsewhere) == []
        watched.peers.configure(config())
        assert watched.peers.describe() == {}


async def test_the_first_look_does_not_wait_for_long(other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "FIRST_LOOK_S", 0.1)
    other.wait_s = 5.0
    async with following(config(other.peer)) as watched:
        before = time.monotonic()
        await watched.peers.first_look()
        assert time.monotonic() - before < 2


async def test_a_card_is_that_of_its_peer(other: Other) -> None:
    other.body = {"data": [{"id": "a", "architecture": {"output_modalities": ["scores"]}}]}
    of = config(other.peer)
    async with following(of) as watched:
        await watched.peers.first_look()
        model = watched.peers.merged(of).models["p/a"]
        assert watched.peers.card(model) == Card(task="classify")
        assert watched.peers.card(replace(model, source="b")) is None
        assert watched.peers.card(replace(model, peer="q")) is None
