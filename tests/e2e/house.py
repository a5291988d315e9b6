"""A real daemon, as a child process, with a config of the test's and fake or real engines."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.fakes import install_fake_vllm, make_weights
from tests.fakes.socket_activation import activated

COMMAND = (sys.executable, "-m", "supervisord_llm")


def free_port() -> int:
    """A port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def toml(value: object) -> str:
    """Any JSON-like value as inline TOML; JSON's strings and numbers are TOML's."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


@dataclass(eq=False)
class House:
    """A folder with a config, fake weights and a fake venv, and the daemon that runs on them."""

    root: Path
    port: int = field(default_factory=free_port)
    environ: dict[str, str] = field(default_factory=dict)
    inherited: socket.socket | None = None
    """A listening socket to pass to the daemon as systemd would."""
    command: Sequence[str] = COMMAND
    """What runs as the daemon."""
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        install_fake_vllm(self.root / "venv")
        make_weights(self.root / "weights")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def log(self) -> str:
        return (self.root / "daemon.log").read_text()

    def fake(self, fake: str = "", load_s: float = 0.0, **keys: object) -> dict[str, object]:
        """The settings of a model served by the fake, misbehaving as `fake` says."""
        env = {"FAKE_VLLM": fake, "FAKE_LOAD_S": str(load_s)} | keys.pop("env", {})  # type: ignore[operator]
        return {
            "source": str(self.root / "weights"),
            "venv": {"path": str(self.root / "venv")},
            "gpus": [],
            "env": env,
            **keys,
        }

    def configure(self, models: Mapping[str, Mapping[str, object]], **tables: Mapping[str, object]) -> None:
        """Write the config file: models, and other tables over what every house has."""
        everything: dict[str, dict[str, object]] = {
            "server": {"listen": [f"127.0.0.1:{self.port}"], "drain_timeout": "5s"},
            "paths": {name: str(self.root / name) for name in ("state", "cache", "runtime")},
            "auth": {"required": False},
            "log": {"format": "json"},
        }
        for name, table in tables.items():
            everything.setdefault(name, {}).update(table)
        lines = []
        for name, table in everything.items():
            lines += [f"[{name}]", *(f"{key} = {toml(value)}" for key, value in table.items())]
        for name, model in models.items():
            lines += [f"[models.{json.dumps(name)}]"]
            lines += [f"{json.dumps(key)} = {toml(value)}" for key, value in model.items()]
        self.config.write_text("\n".join(lines) + "\n")

    def spawn(self) -> "subprocess.Popen[bytes]":
        command = [*self.command, "serve", "--config", str(self.config)]
        passed = []
        if self.inherited is not None:
            passed = [self.inherited.fileno()]
            command = activated(self.inherited, command)
        with (self.root / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | self.environ, pass_fds=passed
            )
        return self.process

    async def start(self) -> None:
        """Spawn the daemon and wait until it serves."""
        process = self.spawn()
        deadline = time.monotonic() + 15
        async with aiohttp.ClientSession() as session:
            while True:
                assert process.poll() is None, f"the daemon exited:\n{self.log}"
                assert time.monotonic() < deadline, f"the daemon does not serve:\n{self.log}"
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self.url}/healthz"):
                        return
                await asyncio.sleep(0.02)

    async def stop(self, how: signal.Signals = signal.SIGTERM, timeout_s: float = 40) -> int:
        """Signal the daemon and wait for its end; returns its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(how)
        return await asyncio.to_thread(self.process.wait, timeout_s)

    def engines(self) -> list[psutil.Process]:
        """Every process that was made by an engine of this house, alive or zombie."""
        ours = {os.getpid(), self.process.pid if self.process else 0}
        return [
            process for process in psutil.process_iter() if process.pid not in ours and self._made(process)
        ]

    def _made(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            words = [*process.cmdline(), *process.environ().values()]
            if "supervisord_llm.gpu.watch" in words:  # the daemon's own, which ends with it
                return False
            return any(str(self.root) in word for word in words)
        return False

    def cli(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run the command line on this house."""
        done = subprocess.run(
            [*COMMAND, *words, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | self.environ,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.cli("status", "--json").stdout)
        return answer

    def entries(self) -> list[dict[str, Any]]:
        """The daemon's log, parsed."""
        return [json.loads(line) for line in self.log.splitlines()]


@contextlib.asynccontextmanager
async def running(house: House) -> AsyncIterator[House]:
    """The house with its daemon up; afterwards both are gone, or the test fails."""
    try:
        await house.start()
        yield house
        if house.process is not None and house.process.poll() is None:
            assert await house.stop() == 0, house.log
        assert house.engines() == [], "an engine's process outlived the daemon"
    finally:
        if house.process is not None and house.process.poll() is None:
            house.process.kill()
            house.process.wait()
        for process in house.engines():
            with contextlib.suppress(psutil.Error):
                process.kill()


async def until(look: Callable[[], object], limit_s: float = 30) -> None:
    """Wait until it finds what it looks for."""
    async with asyncio.timeout(limit_s):
        while not look():
            await asyncio.sleep(0.02)


async def until_state(web: aiohttp.ClientSession, model: str, state: str) -> None:
    """Wait until /healthz says so."""
    async with asyncio.timeout(15):
        while True:
            async with web.get("/healthz") as answer:
                if (await answer.json())["routes"][model]["state"] == state:
                    return
            await asyncio.sleep(0.02)


def chat(model: str, content: str = "hi", **more: object) -> dict[str, object]:
    """The body of a chat completion."""
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


async def say(web: aiohttp.ClientSession, model: str, content: str = "hi", **more: object) -> str:
    """What the model answers."""
    async with web.post("/v1/chat/completions", json=chat(model, content, **more)) as answer:
        assert answer.status == 200, await answer.text()
        text: str = (await answer.json())["choices"][0]["message"]["content"]
        return text
