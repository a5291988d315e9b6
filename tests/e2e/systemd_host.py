"""A machine with the daemon installed, a fake engine for it, and what tests of the units ask of both.

Each test begins with the daemon stopped and its limits short.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fakes
from tests.e2e.machine import CHECKOUT, UV_CACHE, Machine, booted
from tests.fakes import make_weights

INSTALL = str(CHECKOUT / "scripts/install")
SERVICE, SOCKET, REAPER = "llm-supervisor.service", "llm-supervisor.socket", "llm-supervisor-reaper.service"
CONFIG = "/etc/llm-supervisor/config.toml"
DROP_IN = f"/etc/systemd/system/{SERVICE}.d/test.conf"
MODEL = """\
[auth]
required = false
[models.alpha]
source = "/srv/fake/weights"
venv = { path = "/srv/fake/venv" }
gpus = []
"""
HURRY = "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\nTimeoutStopSec=3\n"
KNOCK = """\
import http.client, os, sys, threading, time
refused = cut = answered = 0
end = time.monotonic() + float(sys.argv[1])
def knock():
    global refused, cut, answered
    while time.monotonic() < end and not os.path.exists("/run/enough"):
        try:
            door = http.client.HTTPConnection("127.0.0.1", 8000, timeout=20)
            door.request("GET", "/healthz")
            answered += door.getresponse().status == 200
        except ConnectionRefusedError:
            refused += 1
        except OSError:
            cut += 1
        except http.client.HTTPException:
            cut += 1
        time.sleep(0.01)
threads = [threading.Thread(target=knock) for _ in range(10)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(refused, cut, answered)
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Booted, with a fake engine and weights, and with all that the installer downloads in uv's cache."""
    staged = tmp_path_factory.mktemp("staged")
    subprocess.run([INSTALL, "--destdir", staged], check=True, capture_output=True)
    shutil.rmtree(staged)
    with booted() as machine:
        make_weights(machine.path("/srv/fake/weights"))
        body = (Path(fakes.__file__).parent / "fake_vllm.py").read_text().partition("\n")[2]
        machine.write("/srv/fake/venv/bin/vllm", f"#!/usr/bin/python3 -IS\n{body}", 0o755)
        machine.write("/srv/knock.py", KNOCK)
        yield machine


def install(machine: Machine, *words: str) -> str:
    """Run the installer in the machine, which has no network."""
    environ = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_"))}
    environ |= {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(UV_CACHE.expanduser())}
    return machine.run(INSTALL, *words, environ=environ).stdout


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The machine with the daemon installed, configured, and stopped."""
    if not machine.exists(f"/etc/systemd/system/{SERVICE}"):
        install(machine)
    machine.write(CONFIG, MODEL)
    machine.write(DROP_IN, HURRY)
    machine.run("systemctl", "daemon-reload")
    yield machine
    if machine.exists(f"/etc/systemd/system/{SERVICE}"):
        machine.run("systemctl", "stop", SOCKET, SERVICE)
        machine.run("systemctl", "reset-failed")


def start(host: Machine) -> int:
    """Start the daemon and its model; returns the daemon's pid."""
    started = host.run("systemctl", "start", SERVICE, check=False)
    assert started.returncode == 0, host.sh("journalctl --no-pager -n 40")
    assert chat(host) == "I am alpha."
    return main_pid(host)


def main_pid(host: Machine) -> int:
    return int(host.show(SERVICE, "MainPID")["MainPID"])


def chat(host: Machine) -> str:
    """What the model says, through the socket."""
    body = '{"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}'
    words = ("curl", "-sS", "-m", "20", "-H", "Content-Type: application/json", "-d", body)
    answer = host.run(*words, "http://127.0.0.1:8000/v1/chat/completions").stdout
    found = re.search(r'"content": "([^"]*)"', answer)
    assert found, answer
    return found[1]


def engines(host: Machine) -> dict[str, list[int]]:
    """The engines' cgroups that have processes."""
    return {name: pids for name, pids in host.groups(SERVICE).items() if name.startswith("engine-")}


def reaped(host: Machine, unit: str, cursor: str) -> bool:
    """Whether the reaper found something to end."""
    return any("ends what" in str(entry["MESSAGE"]) for entry in host.journal(unit, cursor))


def is_started_anew(host: Machine, before: int) -> bool:
    state = host.show(SERVICE, "MainPID", "SubState")
    return state["SubState"] == "running" and state["MainPID"] != str(before)


def override(host: Machine, text: str) -> None:
    """Put other settings into the service's unit."""
    host.write(DROP_IN, text)
    host.run("systemctl", "daemon-reload")
