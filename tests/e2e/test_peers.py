"""Two real daemons that are peers: one list, requests through, circles, keys, and one that goes away."""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.house import House, chat, running, until, until_state

HURRIED = """\
import sys
from supervisord_llm import peers
from supervisord_llm.cli.main import main
peers.LOOK_S, peers.FIRST_WAIT_S, peers.LONGEST_WAIT_S, peers.KEPT_S = 0.2, 0.2, 0.4, {kept_s}
sys.exit(main(sys.argv[1:]))
"""
QUICK = {"restart": {"backoff": "100ms..200ms"}}
KEY = "sk-of-the-front-0123456789abcdef"


def hurried(kept_s: float = 300.0) -> tuple[str, ...]:
    """A daemon that looks after its peers more often."""
    return (sys.executable, "-c", HURRIED.format(kept_s=kept_s))


@pytest.fixture
def front(tmp_path: Path) -> House:
    return House(tmp_path / "front", command=hurried())


@pytest.fixture
def back(tmp_path: Path) -> House:
    return House(tmp_path / "back", command=hurried())


@contextlib.asynccontextmanager
async def both(front: House, back: House) -> AsyncIterator[aiohttp.ClientSession]:
    """Both up; a session with the front one."""
    async with running(back), running(front), aiohttp.ClientSession(front.url) as web:
        yield web


async def listed(web: aiohttp.ClientSession, **headers: str) -> list[str]:
    async with web.get("/v1/models", headers=headers) as answer:
        return sorted(entry["id"] for entry in (await answer.json())["data"])


async def until_listed(web: aiohttp.ClientSession, *names: str, **headers: str) -> None:
    found: list[str] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(15):
            while (found := await listed(web, **headers)) != sorted(names):
                await asyncio.sleep(0.05)
    assert found == sorted(names)


async def ask(web: aiohttp.ClientSession, model: str, **headers: str) -> tuple[int, Any, Any]:
    async with web.post("/v1/chat/completions", json=chat(model), headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers


def peer(house: House, **more: object) -> dict[str, object]:
    return {"url": house.url, **more}


async def test_their_models_are_one_list_and_answer(front: House, back: House) -> None:
    back.configure(
        {
            "qwen": back.fake(flags={"max-model-len": 4096}, aliases=["q"]),
            "both": back.fake(),
            "left-out": back.fake(),
        }
    )
    front.configure(
        {"own": front.fake(), "both": front.fake()},
        peers={"gpu2": peer(back, models=["q*", "both"])},
    )
    async with both(front, back) as web:
        await until_listed(web, "own", "both", "gpu2/both", "q", "qwen")
        async with web.get("/v1/models/qwen") as answer:
            entry = await answer.json()
        assert entry["max_model_len"] == 4096
        assert entry["root"] == "qwen"
        async with web.get("/v1/models/gpu2/qwen") as answer:
            assert (await answer.json())["id"] == "gpu2/qwen"
        for name in ("qwen", "gpu2/qwen"):
            status, said, headers = await ask(web, name)
            assert (status, headers["X-LLM-Model"]) == (200, "gpu2/qwen"), said
        assert (await ask(web, "both"))[2]["X-LLM-Model"] == "both"
        assert (await ask(web, "gpu2/both"))[2]["X-LLM-Model"] == "gpu2/both"
        assert (await ask(web, "left-out"))[0] == 404
        async with web.post("/v1/chat/completions", json=chat("qwen", stream=True)) as answer:
            assert answer.content_type == "text/event-stream"
            assert (await answer.text()).endswith("data: [DONE]\n\n")
        status_ = front.status()
        assert status_["peers"] == {"gpu2": {"url": back.url, "listed": 4, "away": ""}}
        assert status_["models"]["gpu2/qwen"]["engine"] == "remote"
        assert "gpu2/qwen" in front.cli("status").stdout
        assert "it lists 4 models" in front.cli("check").stdout
        front.cli("stop", "gpu2/qwen")
        front.cli("start", "gpu2/qwen")
        assert front.cli("logs", "gpu2/qwen", check=False).returncode in (0, 1)
        assert "cannot write" not in front.log, front.log


async def test_two_peers_of_each_other_never_go_in_circles(front: House, back: House) -> None:
    back.configure(
        {"b": back.fake()},
        peers={"front": peer(front)},
        routes={"any": {"members": ["front/a", "b"]}, "theirs": {"members": ["front/a"]}},
    )
    front.configure({"a": front.fake()}, peers={"back": peer(back)})
    async with both(front, back) as web, aiohttp.ClientSession(back.url) as other:
        await until_listed(web, "a", "b", "any")
        await until_listed(other, "a", "any", "b", "theirs")
        assert (await ask(web, "b"))[2]["X-LLM-Model"] == "back/b"
        assert (await ask(web, ""))[2]["X-LLM-Model"] == "a", "the only model of its own"
        assert (await ask(web, "any"))[0] == 200
        assert (await ask(other, "theirs"))[2]["X-LLM-Model"] == "front/a"
        assert await listed(other, **{"X-LLM-Peer": "1"}) == ["any", "b"]
        for name in ("a", "front/a", "theirs"):
            assert (await ask(other, name, **{"X-LLM-Peer": "1"}))[0] == 404
        status, _, headers = await ask(other, "any", **{"X-LLM-Peer": "1"})
        assert (status, headers["X-LLM-Model"]) == (200, "b")


async def test_a_key_opens_what_it_may_and_no_more(front: House, back: House) -> None:
    back.configure(
        {"open": back.fake(), "closed": back.fake()},
        auth={"required": True},
        clients={"front": {"key_env": "KEY_OF_FRONT", "models": ["open"]}},
    )
    back.environ["KEY_OF_FRONT"] = front.environ["KEY_FOR_BACK"] = KEY
    clients = {
        "some": {"key_env": "SOME", "models": ["open"]},
        "none": {"key_env": "NONE", "models": ["a"]},
        "whole": {"key_env": "WHOLE", "models": ["gpu2/*"]},
    }
    front.environ |= {"SOME": "key-some", "NONE": "key-none", "WHOLE": "key-whole"}
    models = {"a": front.fake()}

    def configure(key: str) -> None:
        front.configure(
            models, auth={"required": True}, clients=clients, peers={"gpu2": peer(back, key_env=key)}
        )

    configure("KEY_FOR_BACK")
    async with both(front, back) as web:
        await until_listed(web, "open", Authorization="Bearer key-some")
        assert await listed(web, Authorization="Bearer key-none") == ["a"]
        assert await listed(web, Authorization="Bearer key-whole") == ["open"]
        assert (await ask(web, "open", Authorization="Bearer key-some"))[0] == 200
        assert (await ask(web, "gpu2/open", Authorization="Bearer key-whole"))[0] == 200
        assert (await ask(web, "gpu2/open", Authorization="Bearer key-none"))[0] == 403
        assert (await ask(web, "open", Authorization="Bearer key-none", **{"X-LLM-Peer": "1"}))[0] == 404
        configure("NONE")  # which the peer does not know
        front.cli("reload")
        await until(lambda: front.status()["peers"]["gpu2"]["away"])
        assert "does not accept the key" in front.status()["peers"]["gpu2"]["away"]
        assert "does not accept the key" in front.cli("status").stdout
        status, said, _ = await ask(web, "open", Authorization="Bearer key-some")
        assert status in (502, 503), said
        assert said["error"]["code"] in ("start_failed", "engine_crashed")
        configure("KEY_FOR_BACK")
        front.cli("reload")
        await until_answered(web, "open", Authorization="Bearer key-some")
        assert KEY not in front.log + json.dumps(front.status()) + back.log


async def test_without_its_key_a_peer_is_not_asked_and_all_else_serves(front: House, back: House) -> None:
    back.configure({"b": back.fake()})
    front.configure(
        {"a": front.fake()},
        peers={"back": peer(back, key_env="NOWHERE")},
        routes={"r": {"members": ["back/b"]}},
    )
    why = "its key_env leads to no key: the variable NOWHERE is set in none of"
    async with both(front, back) as web:
        assert (await ask(web, "a"))[0] == 200
        status, said, _ = await ask(web, "back/b")
        assert (status, said["error"]["code"]) == (503, "start_failed")
        assert said["error"]["message"].startswith(f"cannot start back/b: {why}")
        assert front.status()["peers"]["back"]["away"].startswith(why)
        checked = front.cli("check", check=False)
        assert checked.returncode == 1
        assert f"peers.back: cannot ask it for its models: {why}" in checked.stdout
        (front.root / ".env").write_text(f"NOWHERE={KEY}\n")
        front.cli("reload")
        await until_listed(web, "a", "b", "r")
        assert (await ask(web, "r"))[0] == 200


async def until_answered(web: aiohttp.ClientSession, model: str, **headers: str) -> None:
    said: object = None
    for _ in range(300):
        status, said, _ = await ask(web, model, **headers)
        if status == 200:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(said)


async def test_one_that_goes_away_takes_its_models_along_and_brings_them_back(
    front: House, back: House
) -> None:
    front.command = hurried(kept_s=2.0)
    back.configure({"b": back.fake()})
    front.configure(
        {"a": front.fake()},
        peers={"back": peer(back)},
        routes={"r": {"members": ["back/b", "a"], "policy": "round-robin"}, "gone": {"members": ["back/x"]}},
    )
    async with both(front, back) as web:
        await until_listed(web, "a", "b", "r", "gone", "x")
        assert (await ask(web, "r"))[0] == 200
        status, said, _ = await ask(web, "gone")
        assert status in (502, 503)
        assert "no model x" in said["error"]["message"]
        await back.stop()
        before = time.monotonic()
        for _ in range(4):  # a member that is away is passed over
            status, said, headers = await ask(web, "r")
            assert (status, headers["X-LLM-Model"]) == (200, "a"), said
        assert time.monotonic() - before < 5
        await until_listed(web, "a", "r", "gone", "b", "x")
        await back.start()
        await until_listed(web, "a", "b", "r", "gone", "x")
        await until_answered(web, "back/b")


async def test_one_that_is_back_is_asked_at_once_whether_its_models_answer(front: House, back: House) -> None:
    back.configure({"b": back.fake()})
    front.configure({"a": front.fake()}, peers={"back": peer(back)})
    async with both(front, back) as web:
        assert (await ask(web, "back/b"))[0] == 200
        await back.stop()
        await until_state(web, "back/b", "backoff")
        await back.start()
        await until_state(web, "back/b", "ready")


async def test_a_reload_keeps_what_was_found_and_drops_a_peer(front: House, back: House) -> None:
    back.configure({"b": back.fake()})
    front.configure({"a": front.fake()}, peers={"back": peer(back)})
    async with both(front, back) as web:
        await until_listed(web, "a", "b")
        assert (await ask(web, "b"))[0] == 200
        back.process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
        try:
            front.cli("reload")
            assert await listed(web) == ["a", "b"]
            front.configure({"a": front.fake()})
            front.cli("reload")
            assert await listed(web) == ["a"]
        finally:
            back.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
        assert front.status()["peers"] == {}


async def test_what_a_peer_refuses_is_told_as_it_is(front: House, back: House) -> None:
    failing = back.fake("exits_while_loading", restart={"tries": 1})
    late = back.fake("exits_while_loading", load_s=1.0, restart={"tries": 1})
    slow = back.fake(load_s=2.0)
    back.configure({"bad": failing, "slow": slow, "late": late}, server={"heartbeat": "200ms"})
    front.configure(
        {"a": front.fake()},
        peers={"back": peer(back)},
        routes={
            "r": {"members": ["back/bad", "a"], "policy": "round-robin"},
            "s": {"members": ["a"], "rules": [{"endpoint": "*", "use": "back/late"}]},
        },
    )
    async with both(front, back) as web:
        await until_listed(web, "a", "bad", "slow", "late", "r", "s")
        for _ in range(7):  # more than what opens a circuit
            status, said, headers = await ask(web, "bad")
            assert (status, said["error"]["code"]) == (503, "start_failed"), said
            assert int(headers["Retry-After"]) >= 1
        assert front.status()["models"]["back/bad"]["state"] == "ready"
        for _ in range(2):
            assert (await ask(web, "r"))[2]["X-LLM-Model"] == "a"
        async with web.post("/v1/chat/completions", json=chat("slow", stream=True)) as answer:
            text = await answer.text()
        assert text.startswith(":")
        assert text.endswith("data: [DONE]\n\n")
        async with web.post("/v1/chat/completions", json=chat("s", stream=True)) as answer:
            text = await answer.text()  # from the next member, after comments of the first
        assert text.startswith(":")
        assert '"model":"a"' in text.replace(": ", ":")
        assert "error" not in text
        assert text.endswith("data: [DONE]\n\n")
        back.cli("stop", "late")  # else it is known to have failed
        async with web.post("/v1/chat/completions", json=chat("late", stream=True)) as answer:
            *comments, last = (await answer.text()).strip().split("\n\n")
        assert comments
        assert all(line.startswith(":") for line in comments)
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "start_failed"
