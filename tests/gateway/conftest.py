"""A real gateway on a real runtime, in front of a fake vLLM process or of an engine scripted by the test."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDictProxy

from supervisord_llm.config.model import Client, Config, Model, Paths, Server, Vram
from supervisord_llm.core.effects import StartEngine
from supervisord_llm.core.events import ConfigChanged
from supervisord_llm.core.fleet import Gpu, ModelSpec
from supervisord_llm.core.state import State
from supervisord_llm.engines.remote import RemoteLauncher
from supervisord_llm.errors import EngineError
from supervisord_llm.gateway.app import Gateway, build_control_app, build_public_app
from supervisord_llm.gateway.inference.relay import Upstreams
from supervisord_llm.gateway.ports import Facts
from supervisord_llm.runtime.loop import Runtime
from supervisord_llm.runtime.ports import Backend, Engine, Exit, InFlight, Progressing, Report
from supervisord_llm.telemetry.recorder import Recorder
from supervisord_llm.telemetry.usage import UsageStore
from tests.fakes.ports import FakeEngine, FakeMemory, FakeProvisioner

FAKE_VLLM = Path(__file__).parent.parent / "fakes" / "fake_vllm.py"
CHAT: dict[str, Any] = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def model(name: str, **fields: Any) -> Model:
    return Model(
        **{"name": name, "source": f"org/{name}", "path": f"/{name}", "flags": {}, "env": {}} | fields
    )


def client(name: str, **fields: Any) -> Client:
    """Its key is "key-NAME"."""
    return Client(name=name, key_digests=(sha256(f"key-{name}".encode()).digest(),), **fields)


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-{name}"}


def config(
    *models: Model, clients: tuple[Client, ...] = (), server: Server | None = None, **fields: Any
) -> Config:
    """No key needed, unless clients are given."""
    nowhere = Path("/nonexistent")
    fields = {"auth_required": bool(clients)} | fields
    return Config(
        files=(),
        server=server or Server(heartbeat_s=0.05),
        paths=Paths(state=nowhere, cache=nowhere, runtime=nowhere),
        clients=clients,
        vram=Vram(),
        gpu_budgets={},
        models={each.name: each for each in models},
        **fields,
    )


@dataclass(eq=False)
class ProcessEngine:
    """tests/fakes/fake_vllm.py in a process of its own."""

    process: asyncio.subprocess.Process
    socket: Path

    @property
    def backend(self) -> Backend:
        return Backend(self.socket)

    async def ready(self) -> None:
        while True:
            try:
                _, writer = await asyncio.open_unix_connection(self.socket)
            except OSError:
                await asyncio.sleep(0.005)
            else:
                writer.close()
                return

    async def wait(self) -> Exit:
        code = await self.process.wait()
        return Exit(code, f"exited with code {code}")

    kv_bytes: int | None = None

    async def sleep(self, level: int) -> None:
        raise EngineError("cannot sleep: no answer; stop it")

    async def wake(self, level: int) -> None:
        raise EngineError("cannot wake: no answer; stop it")

    async def progressing(self, in_flight: InFlight = frozenset) -> Progressing | None:
        return None

    async def stop(self, *, kill: bool, dump: bool = False) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@dataclass
class Launcher:
    """Launches the fake vLLM with `env`; models in `scripts` are served by the test itself, models in `held`
    become ready when the test sets their event."""

    directory: Path
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    scripts: dict[str, Script] = field(default_factory=dict)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    launches: list[str] = field(default_factory=list)
    servers: list[asyncio.Server] = field(default_factory=list)
    engines: dict[str, ProcessEngine | FakeEngine] = field(default_factory=dict)
    remotes: frozenset[str] = frozenset()
    elsewhere: RemoteLauncher = field(default_factory=RemoteLauncher)

    def configure(self, *models: Model) -> None:
        """These are there now."""
        self.remotes = frozenset(each.name for each in models if each.engine == "remote")
        self.elsewhere.configure(models)

    async def launch(self, order: StartEngine, report: Report) -> Engine:
        model = order.model
        self.launches.append(model)
        if model in self.remotes:
            return await self.elsewhere.launch(order, report)
        socket = self.directory / f"{model}.sock"
        socket.unlink(missing_ok=True)
        if model in self.scripts or model in self.held:
            return await self._scripted(model, socket)
        argv = ["-IS", str(FAKE_VLLM), "serve", "/m", "--uds", str(socket), "--served-model-name", model]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *argv, *self.aliases.get(model, ()), env=os.environ | self.env, stdout=-3
        )
        self.engines[model] = engine = ProcessEngine(process, socket)
        return engine

    async def _scripted(self, model: str, socket: Path) -> FakeEngine:
        self.engines[model] = engine = FakeEngine(model, (), socket)
        if model in self.scripts:
            self.servers.append(await asyncio.start_unix_server(self.scripts[model], socket))
        if model in self.held:
            engine.is_ready = self.held[model]
        else:
            engine.is_ready.set()
        return engine


@dataclass
class Tail:
    lines: list[str] = field(default_factory=lambda: [f"line {number}" for number in range(5)])
    coming: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    def last(self, n: int) -> list[str]:
        return self.lines[-n:]

    async def follow(self) -> AsyncIterator[str]:
        while True:
            yield await self.coming.get()


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """`error.code`, where all four keys of OpenAI's shape are there."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"].startswith("cannot ")
        return str(error["code"])

    @property
    def events(self) -> list[Any]:
        """The `data` of every event."""
        lines = self.body.decode().split("\n")
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


@dataclass
class House:
    """The gateway and what stands around it."""

    gateway: Gateway
    runtime: Runtime
    launcher: Launcher
    provisioner: FakeProvisioner
    recorder: Recorder
    http: aiohttp.ClientSession
    control: aiohttp.ClientSession
    port: int
    tails: dict[str, Tail]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def state(self, model: str) -> State:
        return self.runtime.fleet.engines[model].state

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():
                await asyncio.sleep(0.002)

    async def ask(self, method: str, path: str, *, control: bool = False, **request: Any) -> Answer:
        http = self.control if control else self.http
        async with http.request(method, path, **request) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def chat(self, *, path: str = "/v1/chat/completions", headers: Any = None, **fields: Any) -> Answer:
        return await self.ask("POST", path, json=CHAT | fields, headers=headers)

    async def raw(self, request: bytes) -> bytes:
        """Send bytes, return everything that comes back until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        return answer

    async def engine_stats(self, model: str) -> Any:
        """What the fake vLLM process saw."""
        connector = aiohttp.UnixConnector(str(self.launcher.engines[model].socket))
        async with aiohttp.ClientSession("http://e", connector=connector) as http:
            return await (await http.get("/fake/stats")).json()


Build = Callable[..., Any]


@asynccontextmanager
async def running(work: Awaitable[Any]) -> AsyncIterator[asyncio.Future[Any]]:
    """Run it in the background; cancelled at the end of the block."""
    future = asyncio.ensure_future(work)
    yield future
    future.cancel()
    with suppress(asyncio.CancelledError):
        await future


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """build(config) is an async context with a House; `held` and `scripts` as in Launcher."""

    @asynccontextmanager
    async def build(
        config: Config,
        *,
        env: dict[str, str] | None = None,
        scripts: dict[str, Script] | None = None,
        held: tuple[str, ...] = (),
        gpus: tuple[Gpu, ...] = (),
        reload: Callable[[], Awaitable[dict[str, object]]] | None = None,
        facts: Facts | None = None,
        usage: UsageStore | None = None,
    ) -> AsyncIterator[House]:
        launcher = Launcher(
            tmp_path,
            {name: each.aliases for name, each in config.models.items()},
            env or {},
            scripts or {},
            {name: asyncio.Event() for name in held},
        )
        launcher.configure(*config.models.values())
        upstreams, provisioner = Upstreams(), FakeProvisioner()
        upstreams.observers.append(launcher.elsewhere.began)
        runtime = Runtime(launcher, provisioner, upstreams, FakeMemory())
        recorder = Recorder(lambda: runtime.fleet)
        runtime.observers.append(recorder.observe)
        tails: dict[str, Tail] = {name: Tail() for name in config.models}

        async def no_change() -> dict[str, object]:
            return {"changed": []}

        gateway = Gateway(
            runtime,
            upstreams,
            recorder=recorder,
            logs=tails.__getitem__,
            reload=reload or no_change,
            facts=facts or Facts(context_length=lambda model: 4096),
            usage=usage,
        )
        gateway.configure(config)
        specs = tuple(
            ModelSpec(
                name=name,
                max_concurrent=each.max_concurrent,
                sleep_level=each.sleep_level,
                pinned=None if gpus else (),
                grant=each.vram if isinstance(each.vram, int) else None,
                backoff_s=(0.01, 0.01),
                drain_timeout_s=0.2,
                elsewhere=each.engine == "remote",
                min_residency_s=0.0,
            )
            for name, each in config.models.items()
        )
        runtime.dispatch(ConfigChanged(specs=specs, gpus=gpus))
        public = web.ServerRunner(build_public_app(gateway), shutdown_timeout=1)
        control = web.ServerRunner(build_control_app(gateway), shutdown_timeout=1)
        await public.setup()
        await control.setup()
        site = web.TCPSite(public, "127.0.0.1", 0)
        await site.start()
        await web.UnixSite(control, str(tmp_path / "control.sock")).start()
        port = public.addresses[0][1]
        connector = aiohttp.UnixConnector(str(tmp_path / "control.sock"))
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{port}", auto_decompress=False) as http,
            aiohttp.ClientSession("http://control", connector=connector) as over_control,
        ):
            yield House(
                gateway, runtime, launcher, provisioner, recorder, http, over_control, port, tails
            )  # fmt: skip
        await gateway.close()
        await public.cleanup()
        await control.cleanup()
        assert await runtime.shutdown(5)
        for server in launcher.servers:
            server.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            await asyncio.wait(left, timeout=1)
        assert not [task for task in left if not task.done()], "a task leaked"

    return build
