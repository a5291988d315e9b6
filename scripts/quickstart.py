"""Set up a small model, start the daemon in the foreground, and show how to talk to it.

Everything it makes is in `.quickstart/`: config.toml, the model's venv and weights, caches. It is kept, so
that the next run starts in seconds; remove the folder to start over. An edited config.toml is respected.
"""

import argparse
import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from supervisord_llm.cli.client import Client
from supervisord_llm.cli.progress import ProgressLine
from supervisord_llm.config.load import load
from supervisord_llm.config.model import Address, Config
from supervisord_llm.config.write import write_config
from supervisord_llm.errors import ProvisionError, SupervisorError
from supervisord_llm.gpu.watcher import look_once
from supervisord_llm.provision import recipes
from supervisord_llm.provision.provisioner import Provisioner
from supervisord_llm.provision.tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".quickstart"
CONFIG = FOLDER / "config.toml"
DAEMON_LOG = FOLDER / "daemon.log"
HOST = "127.0.0.1"
DEFAULT_PORT = 8000

MODEL = "chat"
HUB_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
HUB_REVISION = "7ae557604adf67be50417f59c2c2f167def9a775"
TINY_PHRASE = (
    "Hello! I am a tiny model that llm-supervisor made on this machine, since no model hub can be reached "
    "from here. Put the name of a real model into .quickstart/config.toml and you will talk to it instead."
)
HEADER = """\
Written by scripts/quickstart, which keeps it as it is from now on: edit it freely.
The model is served by its own vLLM, installed from the requirements below. To have it from another package
index, add index_url or find_links to the venv; to use one that you have installed, write
venv = { path = "/where/it/is" } in the model.
"""

HUB_TIMEOUT_S = 10
DAEMON_START_S = 60
FIRST_ANSWER_S = 900
"""A whole start of an engine on a slow machine; the daemon's own start_timeout is shorter."""
SOCKET_PATH_BYTES = 107
"""Linux: the longest path of a unix socket."""


def main() -> int:
    """Exit code: 0 fine, 1 something failed, 130 interrupted."""
    arguments = argparse.ArgumentParser(
        description="Set up a small model and serve it, or check that it works."
    )
    arguments.add_argument(
        "--check", action="store_true", help="send one request, print the answer, and stop"
    )
    arguments.add_argument(
        "--port", type=int, default=os.environ.get("LLM_SUPERVISOR_PORT"), help="default: 8000"
    )
    asked = arguments.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` and the like: as Ctrl-C
    try:
        config = configure(asked.port)
        address = config.server.listen[0]
        require_free(address)
        asyncio.run(provision(config))
        return check(config) if asked.check else serve(address)
    except (SupervisorError, OSError) as problem:
        say(str(problem))
        return 1
    except KeyboardInterrupt:
        say("interrupted; run it again to resume")
        return 130


def say(text: str) -> None:
    """One line to the person who waits."""
    print(text, flush=True)


# --- configuration --------------------------------------------------


def configure(port: int | None) -> Config:
    """The configuration in `.quickstart/`, written if it is not there; `port` is put into an existing one."""
    FOLDER.mkdir(exist_ok=True)
    if not CONFIG.exists():
        write_config(CONFIG, choose(port or DEFAULT_PORT), HEADER)
        say(f"wrote {CONFIG.relative_to(ROOT)}")
    config = load(CONFIG)
    if port is None or config.server.listen[0].port == port:
        return config
    text = CONFIG.read_text("utf-8")
    CONFIG.write_text(re.sub(r"(?m)^listen\s*=.*$", f'listen = ["{HOST}:{port}"]', text, count=1), "utf-8")
    say(f"set the port to {port} in {CONFIG.relative_to(ROOT)}")
    return load(CONFIG)


def choose(port: int) -> dict[str, Any]:
    """A configuration for this machine: CUDA or CPU, a model of the hub or a tiny one made here."""
    reading = asyncio.run(look_once())
    has_gpu = bool(reading.gpus)
    if has_gpu:
        say(f"GPU: {', '.join(gpu.name for gpu in reading.gpus)}")
    else:
        say(f"no GPU: {reading.absence}; vLLM will run on the CPU")
        say(f"note: {recipes.THIRD_PARTY}")
    model: dict[str, Any] = {
        "venv": "vllm",
        "start_timeout": "10m",
        # eager: no compiling, so the first start takes seconds instead of minutes
        "flags": {"max-model-len": 2048, "max-num-seqs": 8, "enforce-eager": True},
    }
    if not has_gpu:
        model |= {"gpus": [], "vram": "512MiB", "env": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}}
        # with the variable above: one process less, seconds faster to start
        model["flags"]["distributed-executor-backend"] = "uni"
    requirements = recipes.default_venv(cuda=has_gpu).requirements
    return {
        "server": {"listen": [f"{HOST}:{port}"], "default_model": MODEL},
        "paths": choose_paths(),
        "auth": {"required": False},
        "venvs": {"vllm": {"requirements": list(requirements)}},
        "models": {MODEL: choose_source() | model},
    }


def choose_source() -> dict[str, str]:
    """A small instruct model where its hub answers, else the tiny model, made now."""
    if (reason := hub_unreachable()) is None:
        say(f"model: {HUB_MODEL}")
        return {"source": HUB_MODEL, "revision": HUB_REVISION}
    directory = FOLDER / "tiny-model"
    write_tiny_model(directory, TINY_PHRASE)
    say(f"model: a tiny one that answers one phrase, made in {directory.relative_to(ROOT)}, because {reason}")
    return {"source": str(directory)}


def hub_unreachable() -> str | None:
    """Why the model cannot be downloaded from its hub; None when it can."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/api/models/{HUB_MODEL}/revision/{HUB_REVISION}"
    try:
        with urllib.request.urlopen(url, timeout=HUB_TIMEOUT_S):
            return None
    except (OSError, http.client.HTTPException, ValueError) as problem:
        return f"{endpoint} does not answer ({getattr(problem, 'reason', None) or problem})"


def choose_paths() -> dict[str, str]:
    """All in one folder; but a path that is too long for sockets leaves them at this user's own place."""
    paths = {name: str(FOLDER / name) for name in ("state", "cache")}
    beside = FOLDER / "run"
    longest = beside / "engines" / f"{MODEL}-with-a-longer-name.sock"
    return paths | ({"runtime": str(beside)} if len(os.fsencode(longest)) <= SOCKET_PATH_BYTES else {})


def require_free(address: Address) -> None:
    """Look for another listener before minutes are spent on the set-up."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as problem:
            raise ProvisionError(
                f"cannot listen on {address} ({problem.strerror}): stop what listens there (perhaps another "
                f"quickstart), or take another port: scripts/quickstart --port {address.port + 1}"
            ) from problem


# --- set-up ---------------------------------------------------------


async def provision(config: Config) -> None:
    """Build the venv and fetch the weights of the default model, with progress; nothing is started."""
    provisioner = Provisioner(config, cuda=bool((await look_once()).gpus))
    name = config.server.default_model or next(iter(config.models))
    with ProgressLine(name, sys.stdout) as line:
        await provisioner.prepare(name, line.report)
        line.end("venv and weights are ready")


# --- the daemon -----------------------------------------------------


class Daemon:
    """`llm-supervisor serve` as a child in our process group: Ctrl-C reaches it without our help."""

    def __init__(self, *, log: Path | None) -> None:
        output = None if log is None else log.open("wb")
        command = [sys.executable, "-m", "supervisord_llm", "serve", "--config", str(CONFIG)]
        self._child = subprocess.Popen(command, cwd=ROOT, stderr=output)
        if output is not None:
            output.close()
        signal.signal(signal.SIGTERM, self._forward)

    def _forward(self, number: int, _: FrameType | None) -> None:
        self._child.send_signal(number)

    def await_ready(self, address: Address) -> None:
        """Return when it serves."""
        deadline = time.monotonic() + DAEMON_START_S
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                raise ProvisionError(
                    f"cannot start the daemon: it ended with status {self._child.returncode}"
                )
            if answers(address):
                return
            time.sleep(0.05)
        raise ProvisionError(f"cannot reach the daemon at http://{address} after {DAEMON_START_S} s")

    def wait(self) -> int:
        """Its exit code. A Ctrl-C has reached it, too, so there is nothing to do but wait for its end."""
        while True:
            try:
                return self._child.wait()
            except KeyboardInterrupt:
                continue

    def stop(self) -> int:
        """Ask it to end, and wait until every engine is gone."""
        if self._child.poll() is None:
            self._child.terminate()
        return self.wait()


def answers(address: Address) -> bool:
    """Whether the daemon is there. Asked directly, whatever proxy the environment names."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def serve(address: Address) -> int:
    """Run the daemon until it is stopped."""
    daemon = Daemon(log=None)
    try:
        daemon.await_ready(address)
        say(
            f"\nReady on http://{address}. No engine runs yet: the first request starts it. Try, in another "
            f"terminal:\n\n  {curl(address)}\n\nCtrl-C stops everything.\n"
        )
    except KeyboardInterrupt:
        pass
    except SupervisorError:
        daemon.stop()
        raise
    return daemon.wait()


def curl(address: Address) -> str:
    """The line to paste."""
    body = json.dumps(request_body())
    return f"curl -N http://{address}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def request_body() -> dict[str, Any]:
    """One short streaming chat request to the default model."""
    question = {"role": "user", "content": "Say hello and tell me who you are."}
    return {"messages": [question], "max_tokens": 128, "stream": True}


# --- --check --------------------------------------------------------


def check(config: Config) -> int:
    """One streamed request through the proxy; prints the answer and how long everything took."""
    address = config.server.listen[0]
    set_up_s = time.time() - psutil.Process().create_time()  # the shell that became this Python, as well
    daemon = Daemon(log=DAEMON_LOG)
    is_good = False
    try:
        daemon.await_ready(address)
        say("asking the model; its engine starts now")
        first_s, total_s = ask(address, Client(config.paths.control_socket))
        is_good = True
        say(
            f"set-up {set_up_s:.1f} s, time to first token {first_s:.1f} s (with the engine's start), "
            f"whole answer {total_s:.1f} s"
        )
    finally:
        code = daemon.stop()
        if not is_good:
            tail = DAEMON_LOG.read_text(errors="replace").splitlines()[-20:]
            say("\n".join(["the daemon's last lines:", *tail]))
    if code != 0:
        say(f"the daemon ended with status {code}; see {DAEMON_LOG.relative_to(ROOT)}")
    return 0 if is_good and code == 0 else 1


def ask(address: Address, control: Client) -> tuple[float, float]:
    """Stream one answer to the terminal; seconds to the first token and to the end.

    Each keep-alive that comes while the engine starts is a reason to say how far it is.

    Raises:
        ProvisionError: the answer is an error, empty or cut off.
    """
    connection = http.client.HTTPConnection(address.host, address.port, timeout=FIRST_ANSWER_S)
    began = time.monotonic()
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(request_body()), {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    if answer.status != 200:
        raise ProvisionError(f"the request failed with HTTP {answer.status}: {answer.read().decode()}")
    first_s: float | None = None
    for line in answer:
        if line.startswith(b":"):
            say_state(control)
        event = line.decode().removeprefix("data:").strip() if line.startswith(b"data:") else ""
        if event == "[DONE]":
            break
        if not event:
            continue
        content = content_of(json.loads(event))
        if content and first_s is None:
            first_s = time.monotonic() - began
            print("answer: ", end="")
        print(content, end="", flush=True)
    else:
        raise ProvisionError("the answer was cut off before its end")
    print()
    connection.close()
    if first_s is None:
        raise ProvisionError("the answer is empty")
    return first_s, time.monotonic() - began


def say_state(control: Client) -> None:
    """One line on each model that is not stopped: its state and what it is at."""
    for name, model in control.get("status")["models"].items():
        if model["state"] != "stopped":
            what = f": {model['phase']}" if model["phase"] else ""
            say(f"{name}  {model['state']} for {model['state_s']:.0f} s{what}")


def content_of(event: dict[str, Any]) -> str:
    """The text in one event of a chat stream."""
    if "error" in event:
        raise ProvisionError(f"the request failed: {event['error'].get('message', event['error'])}")
    choices = event.get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or "")


if __name__ == "__main__":
    sys.exit(main())
