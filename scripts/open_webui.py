"""Open WebUI against a daemon: a command of scripts/clients, driven over HTTP as its page does it.

It is installed as its users install it, into a venv of its own with Python 3.11, and with a torch that knows
no GPU: three gigabytes.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from supervisord_llm.provision import pip_config
from tests.e2e.house import House, free_port, running

VERSION = "0.12.4"
KEY = "sk-open-webui"
START_S = 180
ANSWER = {"title": "Greetings", "tags": ["greeting"], "follow_ups": ["Who are you?"]}
"""What the engine says to everything, so that each of the page's small requests finds its part in it."""
TASKS = {"title_generation": True, "tags_generation": True, "follow_up_generation": True}
OFFLINE = {
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "ENABLE_VERSION_UPDATE_CHECK": "false",
    "RAG_EMBEDDING_ENGINE": "openai",  # else it looks for a model of its own
    "AUDIO_STT_ENGINE": "openai",
}


def install(directory: Path) -> None:
    """Open WebUI in `directory`/venv, unless this version is there."""
    if (directory / "installed").is_file() and (directory / "installed").read_text() == VERSION:
        return
    uv = Path(sys.executable).with_name("uv")
    pip = pip_config.read()
    environ = os.environ | pip_config.uv_environment(pip, os.environ)
    wheels = [wheel for place in pip.find_links for wheel in Path(place).glob("torch-*+cpu-cp311-*")]
    torch = [str(wheels[-1])] if wheels else ["torch", "--torch-backend", "cpu"]
    venv = str(directory / "venv")
    into = [str(uv), "pip", "install", "--quiet", "--python", venv]
    subprocess.run([str(uv), "venv", "--quiet", "--clear", "--python", "3.11", venv], check=True)
    subprocess.run([*into, *torch], check=True, env=environ)  # first, or it is the one for CUDA
    subprocess.run([*into, f"open-webui=={VERSION}"], check=True, env=environ)
    (directory / "installed").write_text(VERSION)


async def until(what: str, holds: Callable[[], Awaitable[Any]], limit_s: float = 30) -> Any:
    """What `holds` returns once that is true.

    Raises:
        TimeoutError: it never was; says `what`.
    """
    deadline = time.monotonic() + limit_s
    while not (found := await holds()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s:.0f} s: {what}")
        await asyncio.sleep(0.1)
    return found


def expect(holds: object, what: object) -> None:
    if not holds:
        raise ValueError(f"unexpected: {what}")


@dataclass(frozen=True, slots=True)
class Page:
    """What its page can do, for the user who is its admin."""

    web: aiohttp.ClientSession
    house: House

    async def get(self, path: str) -> Any:
        async with self.web.get(path) as answer:
            expect(answer.ok, await answer.text())
            return await answer.json()

    async def post(self, path: str, body: object) -> Any:
        async with self.web.post(path, json=body) as answer:
            expect(answer.ok, await answer.text())
            return await answer.json()

    async def models(self) -> dict[str, dict[str, Any]]:
        return {one["id"]: one for one in (await self.get("/api/models?refresh=true"))["data"]}

    async def send(self, model: str, text: str, tasks: dict[str, bool] | None = None) -> tuple[str, str]:
        """Begin a chat; (its id, the id of the answer's message)."""
        asked, answered = str(uuid.uuid4()), str(uuid.uuid4())
        message = {"id": asked, "parentId": None, "role": "user", "content": text, "models": [model]}
        body = {
            "model": model,
            "stream": True,
            "messages": [{"role": "user", "content": text}],
            "parent_id": None,
            "user_message": message,
            "id": answered,
            "session_id": str(uuid.uuid4()),
            "background_tasks": tasks or {},
        }
        return (await self.post("/api/chat/completions", body))["chat_id"], answered

    async def answer(self, chat: str, message: str) -> Any:
        """The message as the chat shows it once it is done."""

        async def done() -> dict[str, Any] | None:
            history = (await self.get(f"/api/v1/chats/{chat}"))["chat"]["history"]["messages"]
            shown: dict[str, Any] = history[message]
            return shown if shown.get("done") else None

        return await until("an answer that is done", done)

    async def say(self, model: str, text: str = "Say hello.") -> Any:
        return await self.answer(*await self.send(model, text))

    async def stats(self, model: str) -> Any:
        """What the engine saw."""
        socket = self.house.root / "runtime/engines" / f"{model}.sock"
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as engine:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with engine.get("http://engine/fake/stats") as answer:
                    return await answer.json()
        return {}


def text_of(message: dict[str, Any]) -> str:
    expect(not message.get("error"), message.get("error"))
    return str(message["content"])


async def lists(page: Page) -> None:
    names = await page.models()
    expect({"alpha", "slow", "dying"} <= names.keys(), list(names))
    started = [name for name, one in page.house.status()["models"].items() if one["state"] != "stopped"]
    expect(not started, f"the list started {started}")


async def cold_chat(page: Page) -> None:
    """With the three small requests that come with a chat's first message, all of them to a cold model."""
    chat, message = await page.send("alpha", "Say hello.", TASKS)
    expect(text_of(await page.answer(chat, message)) == json.dumps(ANSWER), "not the whole answer")

    async def named() -> bool:
        shown = await page.get(f"/api/v1/chats/{chat}")
        of = shown["chat"]["history"]["messages"][message]
        tags = [one["name"] for one in await page.get(f"/api/v1/chats/{chat}/tags")]
        wanted = (ANSWER["title"], ANSWER["tags"], ANSWER["follow_ups"])
        return (shown["title"], tags, of.get("followUps")) == wanted

    await until("title, tags and follow-ups", named)


async def tools(page: Page) -> None:
    """Offered with each chat unless the list says that the model cannot use them, known once it runs."""
    can = (await page.models())["fresh"]["info"]["meta"]["capabilities"]
    expect("builtin_tools" not in can, can)
    for model, wanted in (("other", True), ("fresh", False)):
        arrived = json.loads(text_of(await page.say(model, "echo")))  # the request as the engine got it
        expect(bool(arrived.get("tools")) is wanted, f"{len(arrived.get('tools', ()))} tools for {model}")


async def no_such_model(page: Page) -> None:
    """One that an admin entered by hand on the connection."""
    shown = await page.say("nobody")
    expect("nobody" in str(shown.get("error")), shown)


async def dies(page: Page) -> None:
    """The chat keeps what came before, and says what happened."""
    shown = await page.say("dying")
    expect(shown.get("error") and shown["content"].strip() == "I am", shown)


async def stop(page: Page) -> None:
    chat, _ = await page.send("slow", "Say hello.")

    async def answering() -> bool:
        return bool((await page.stats("slow")).get("running"))

    async def left() -> bool:
        seen = await page.stats("slow")
        return (seen["running"], seen["aborted"]) == (0, 1)

    await until("the engine answers", answering)
    await page.post(f"/api/tasks/chat/{chat}/stop", {})
    await until("the engine stops", left, 5)


async def load_and_unload(page: Page) -> None:
    """The buttons of the provider llama.cpp."""

    async def shows(loaded: bool) -> bool:
        return (await page.models())["other"]["loaded"] is loaded

    await until("shown as not loaded", lambda: shows(False))
    await page.post("/openai/models/0/load", {"model": "other"})
    await until("shown as loaded", lambda: shows(True))
    await page.post("/openai/models/0/unload", {"model": "other"})
    await until("shown as not loaded again", lambda: shows(False))


async def ollama(page: Page) -> None:
    connection = {"prefix_id": "ollama", "key": KEY}
    config = {"OLLAMA_BASE_URLS": [page.house.url], "OLLAMA_API_CONFIGS": {"0": connection}}
    await page.post("/ollama/config/update", {"ENABLE_OLLAMA_API": True, **config})
    name = next(name for name in await page.models() if name.startswith("ollama.alpha"))
    expect(text_of(await page.say(name)) == json.dumps(ANSWER), "not the whole answer")


CHECKS = {
    "the list": lists,
    "cold chat, title, tags": cold_chat,
    "no such model": no_such_model,
    "engine dies in an answer": dies,
    "stop": stop,
    "load and unload": load_and_unload,
    "tools": tools,
    "as Ollama": ollama,
}


async def connect(page: Page) -> None:
    """The first user, its admin; then the connection, and beside it one whose models are entered by hand."""
    user = {"name": "Admin", "email": "admin@localhost.lan", "password": "not-a-secret"}
    token = (await page.post("/api/v1/auths/signup", user))["token"]
    page.web.headers["Authorization"] = f"Bearer {token}"
    had = await page.get("/openai/config")
    expect(had["OPENAI_API_BASE_URLS"] == [f"{page.house.url}/v1"], had)
    connections = {"0": {"provider": "llama.cpp"}, "1": {"model_ids": ["nobody"]}}
    urls, keys = had["OPENAI_API_BASE_URLS"] * 2, [KEY] * 2
    config = {"OPENAI_API_BASE_URLS": urls, "OPENAI_API_KEYS": keys, "OPENAI_API_CONFIGS": connections}
    await page.post("/openai/config/update", {"ENABLE_OPENAI_API": True, **config})


@contextlib.asynccontextmanager
async def opened(directory: Path, house: House) -> AsyncIterator[Page]:
    """The page of an Open WebUI that is configured as `client-config` says."""
    told = house.cli("client-config", "openwebui", "--url", house.url).stdout
    ours = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    ours |= {"OPENAI_API_KEY": KEY, "DATA_DIR": str(house.root / "data"), "WEBUI_SECRET_KEY": "secret"}
    port = free_port()
    command = [str(directory / "venv/bin/open-webui"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    log = house.root / "open-webui.log"
    with log.open("wb") as output:
        server = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, env=os.environ | OFFLINE | ours, cwd=house.root
        )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as web:
            page = Page(web, house)

            async def healthy() -> bool:
                expect(server.returncode is None, f"Open WebUI ended:\n{log.read_text()}")
                with contextlib.suppress(aiohttp.ClientError):
                    async with web.get("/health") as answer:
                        return answer.ok
                return False

            await until("Open WebUI serves", healthy, START_S)
            await connect(page)
            yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.terminate()
        await server.wait()


async def check(directory: Path, root: Path) -> bool:
    """Print a row for each check; whether all of them passed."""
    house = House(root, environ={"WEBUI_KEY": KEY})
    models = {
        "alpha": house.fake(load_s=3.0, env={"FAKE_ANSWER": json.dumps(ANSWER)}),
        "slow": house.fake(load_s=1.0, env={"FAKE_ANSWER": "word " * 500, "FAKE_TOKENS_PER_S": "10"}),
        "dying": house.fake("dies_mid_stream", load_s=1.0, env={"FAKE_TOKENS_PER_S": "5"}),
        "fresh": house.fake(load_s=1.0),
        "other": house.fake(load_s=1.0, tools="pass"),
    }
    client: dict[str, object] = {"key_env": "WEBUI_KEY", "admin": True}
    house.configure(
        models, server={"heartbeat": "500ms"}, auth={"required": True}, **{"clients.webui": client}
    )
    passed = True
    async with running(house), opened(directory, house) as page:
        for name, run in CHECKS.items():
            error = ""
            try:
                await run(page)
            except (aiohttp.ClientError, ValueError, KeyError, StopIteration, TimeoutError) as why:
                error, passed = f"{type(why).__name__}: {why}", False
            print(f"{'Open WebUI ' + VERSION:<20} {name:<24} {error or 'ok'}", flush=True)
    return passed
