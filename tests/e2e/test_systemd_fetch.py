"""Downloads and networks under the units: the daemon has no way out, and another unit fetches for it."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisord_llm.provision.fetch_unit import VARIABLE
from tests.e2e.machine import CHECKOUT, Machine, unusable, wait_for
from tests.e2e.systemd_host import (
    CONFIG,
    SERVICE,
    chat,
    engines,
    host,
    is_started_anew,
    machine,
    main_pid,
    override,
    start,
)
from tests.provision.hub import FIRST, REPO
from tests.provision.wheels import make_wheel

__all__ = ["host", "machine"]

if (reason := unusable()) is not None:
    pytest.skip(f"no systemd can be booted here: {reason}", allow_module_level=True)

FETCH, FETCHES, DOOR = "llm-supervisor-fetch.service", "llm-supervisor-fetch@*", "llm-supervisor-fetch.socket"
ADDRESS, PORT = "192.168.7.7", 8080
STATE = "/var/lib/llm-supervisor"
INTERNET, PRIVATE, REMOTE = (
    f"/etc/systemd/system/{SERVICE}.d/{name}.conf" for name in ("internet", "private-network", "remote")
)
FAKE = Path(__file__).parent.parent / "fakes" / "fake_vllm.py"
FETCHED = f"""\
[auth]
required = false
[models.alpha]
source = "{REPO}"
revision = "{FIRST}"
venv = {{ requirements = ["tiny-engine==1.0"], find_links = ["/srv/wheels"] }}
gpus = []
"""
LOCAL = """\
[models.{0}]
source = "/srv/fake/weights"
venv = {{ path = "/srv/fake/venv" }}
gpus = []
network = "{1}"
"""
DOWNLOADS = f"""\
HF_ENDPOINT=http://{ADDRESS}:{PORT}
HF_HUB_DISABLE_XET=1
HF_HUB_DOWNLOAD_TIMEOUT=60
PIP_NO_INDEX=1
PIP_CONFIG_FILE=/dev/null
"""
HUB = f"""\
import json, pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from tests.fakes.weights import make_weights
from tests.provision.hub import FIRST, serving
faults, told = pathlib.Path("/srv/hub.faults"), pathlib.Path("/srv/hub.json")
with serving("{ADDRESS}", {PORT}) as hub:
    weights = make_weights(pathlib.Path("/srv/upstream"))
    hub.commits[FIRST] = {{path.name: path.read_bytes() for path in weights.iterdir()}}
    hub.break_after = 8
    while True:
        hub.faults = set(faults.read_text().split()) if faults.exists() else set()
        if not hub.faults:
            hub.released.set()
            hub.released.clear()
        aside = told.with_suffix(".new")
        aside.write_text(json.dumps({{"requests": hub.requests, "tokens": sorted(hub.tokens)}}))
        aside.rename(told)
        time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def hub(host: Machine) -> Iterator[None]:
    """A hub on an address that is not the loopback's, as for the internet; nothing is fetched yet."""
    host.run("ip", "address", "replace", f"{ADDRESS}/32", "dev", "lo")
    make_wheel(host.path("/srv/wheels"), "tiny-engine", code=FAKE.read_text())
    host.write("/srv/hub.py", HUB)
    host.write(CONFIG, FETCHED)
    host.write("/etc/llm-supervisor/fetch.env", f"{DOWNLOADS}HF_TOKEN=hf_secret\n", 0o600)
    host.run("systemd-run", "--collect", "--unit=hub", "/usr/bin/python3", "/srv/hub.py", str(CHECKOUT))
    wait_for(lambda: host.exists("/srv/hub.json"), 20)
    yield
    host.run("systemctl", "stop", "hub", SERVICE, FETCHES)
    host.sh(f"rm -rf {STATE}/* /srv/hub.json /srv/hub.faults {INTERNET} {PRIVATE} {REMOTE}")


def told(host: Machine) -> dict[str, Any]:
    """What the hub has seen."""
    found: dict[str, Any] = json.loads(host.sh("cat /srv/hub.json"))
    return found


def hang(host: Machine) -> None:
    host.write("/srv/hub.faults", "hang")
    host.sh("sleep 0.2")  # it looks every 50 ms


def downloads(host: Machine) -> list[str]:
    return [one for one in told(host)["requests"] if one.startswith("GET") and one.endswith("safetensors")]


def fetches(host: Machine) -> list[str]:
    """The fetches that run, by the names of their units."""
    listed = host.sh(f"systemctl list-units --plain --no-legend --state=active,activating '{FETCHES}'")
    return [line.split()[0] for line in listed.splitlines()]


def ask_in_background(host: Machine) -> None:
    body = '{"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}'
    ask = f"curl -sS -m 60 -H 'Content-Type: application/json' -d '{body}' http://127.0.0.1:8000/v1/chat/completions"
    host.sh(f"({ask}) >/srv/answer 2>&1 &")


def reaches(host: Machine, model: str, address: str = f"{ADDRESS}:{PORT}") -> bool:
    """Whether the model's engine can connect there."""
    engine = f"/run/llm-supervisor/engines/{model}.sock"
    return '"reached": true' in host.sh(f"curl -sS --unix-socket {engine} http://e/fake/reach/{address}")


def status(host: Machine, model: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.sh("llm-supervisor status --json"))["models"][model]
    return found


class TestFetch:
    """A first request for what is not there."""

    def test_it_is_answered_though_the_daemon_has_no_way_out(self, host: Machine) -> None:
        cursor = host.cursor()
        start(host)
        assert "Bearer hf_secret" in told(host)["tokens"]
        assert host.exists(f"{STATE}/weights/alpha.json")
        said = "\n".join(str(entry["MESSAGE"]) for entry in host.journal(FETCHES, cursor))
        assert "alpha  weights: " in said
        assert "alpha  venv: " in said
        wait_for(lambda: not fetches(host), 5)
        assert host.sh("systemctl list-units --all --plain --no-legend 'llm-supervisor-fetch@*'") == ""
        daemon = f"echo $$ >/sys/fs/cgroup/system.slice/{SERVICE}/daemon/cgroup.procs"
        asked = host.run(
            "sh", "-c", f"{daemon}; curl -sS -m 2 http://{ADDRESS}:{PORT}/api/models/{REPO}", check=False
        )
        assert asked.returncode == 28, "it has a way out"

    def test_it_is_answered_though_the_daemon_has_no_network_at_all(self, host: Machine) -> None:
        shutil.copyfile(host.path("/opt/llm-supervisor/drop-ins/private-network.conf"), host.path(PRIVATE))
        host.run("systemctl", "daemon-reload")
        start(host)
        assert not reaches(host, "alpha", "127.0.0.1:8000")

    @pytest.mark.parametrize("who", ["root", "llm-supervisor"])
    def test_what_is_pulled_by_hand_is_the_daemons(self, host: Machine, who: str) -> None:
        environ = dict(line.split("=", 1) for line in DOWNLOADS.splitlines())
        environ |= {} if who == "root" else {"HOME": STATE}  # as sudo does
        as_user = ("setpriv", f"--reuid={who}", f"--regid={who}", "--init-groups")
        host.run(*as_user, "llm-supervisor", "pull", "alpha", environ=environ)
        assert host.exists(f"{STATE}/weights/alpha.json")
        assert host.sh(f"find {STATE} /var/cache/llm-supervisor ! -user llm-supervisor") == ""

    def test_a_failure_is_told_the_client(self, host: Machine) -> None:
        host.write("/srv/hub.faults", "down")
        host.sh("sleep 0.2")
        host.run("systemctl", "start", SERVICE)
        ask_in_background(host)
        answer = wait_for(lambda: host.sh("cat /srv/answer", check=False), 30)
        assert '"code":"start_failed"' in answer.replace(" ", "")
        assert f"http://{ADDRESS}:{PORT}" in answer

    def test_the_next_daemon_joins_it_and_by_hand_it_works_beside(self, host: Machine) -> None:
        host.run("systemctl", "start", SERVICE)
        hang(host)
        ask_in_background(host)
        wait_for(lambda: downloads(host), 30)
        (first,) = fetches(host)
        before = main_pid(host)
        host.signal(before, signal.SIGKILL)
        wait_for(lambda: is_started_anew(host, before), 15)
        ask_in_background(host)
        wait_for(lambda: len(fetches(host)) == 2, 20)
        host.run("systemctl", "start", "--no-block", FETCH)
        assert first in fetches(host)
        host.run("rm", "/srv/hub.faults")
        assert wait_for(lambda: "I am alpha." in host.sh("cat /srv/answer"), 40)
        assert len(downloads(host)) == 2, "it broke once, and was resumed once"
        wait_for(lambda: host.show(FETCH, "ActiveState")["ActiveState"] == "inactive", 20)
        assert host.show(FETCH, "Result")["Result"] == "success"

    def test_a_stop_ends_it(self, host: Machine) -> None:
        host.run("systemctl", "start", SERVICE)
        hang(host)
        ask_in_background(host)
        wait_for(lambda: downloads(host), 30)
        host.run("systemctl", "stop", SERVICE)
        wait_for(lambda: not fetches(host), 5)
        assert host.sh(f"find {STATE} -name '*.incomplete'") == ""

    def test_engines_can_ask_for_models_alone_and_see_no_token(self, host: Machine) -> None:
        host.run("systemctl", "start", SERVICE)
        hang(host)
        ask_in_background(host)
        wait_for(lambda: downloads(host), 30)
        (unit,) = fetches(host)
        pid = host.show(unit, "MainPID")["MainPID"]
        assert "HF_TOKEN=hf_secret" in host.sh(f"tr '\\0' '\\n' </proc/{pid}/environ")
        as_user = ("setpriv", "--reuid=llm-supervisor", "--regid=llm-supervisor", "--init-groups")
        assert host.run(*as_user, "cat", f"/proc/{pid}/environ", check=False).returncode != 0
        assert host.run(*as_user, "cat", "/etc/llm-supervisor/fetch.env", check=False).returncode != 0
        ask = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); "
            "s.connect('/run/llm-supervisor-fetch.sock'); s.sendall(sys.argv[1].encode()); print(s.recv(999))"
        )
        told = host.run(*as_user, "python3", "-c", ask, '{"source": "evil/model"}\n').stdout
        assert "the configuration has no such model" in told
        stranger = host.run(
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "python3",
            "-c",
            ask,
            "alpha\n",
            check=False,
        )
        assert "PermissionError" in stranger.stderr


class TestNetwork:
    """How far engines get."""

    def test_the_unit_isolates_and_says_how_to_open_it(self, host: Machine) -> None:
        host.write(
            CONFIG,
            "[auth]\nrequired = false\n" + LOCAL.format("alpha", "isolated") + LOCAL.format("beta", "host"),
        )
        cursor = host.cursor()
        start(host)
        host.run("llm-supervisor", "start", "beta")
        assert [reaches(host, model) for model in ("alpha", "beta")] == [False, False]
        assert reaches(host, "alpha", "own")
        assert status(host, "alpha")["network_note"] == ""
        assert status(host, "beta")["network"] == "isolated"
        assert "internet.conf" in status(host, "beta")["network_note"]
        assert "internet.conf" in host.run("llm-supervisor", "check", check=False).stdout
        said = [str(entry["MESSAGE"]) for entry in host.journal(SERVICE, cursor)]
        assert any("models.beta.network: " in each for each in said)

    def test_the_drop_in_opens_it_for_the_daemon_and_for_models_of_the_host(self, host: Machine) -> None:
        shutil.copyfile(host.path("/opt/llm-supervisor/drop-ins/internet.conf"), host.path(INTERNET))
        environ = "".join(f"Environment={line}\n" for line in DOWNLOADS.splitlines())
        override(host, f"[Service]\n{environ}")
        host.write(CONFIG, FETCHED + LOCAL.format("beta", "host"))
        cursor = host.cursor()
        pid = start(host)
        assert VARIABLE not in host.sh(f"tr '\\0' '\\n' </proc/{pid}/environ")
        others = host.sh(f"journalctl -q -o cat -t llm-supervisor-fetch --after-cursor='{cursor}'")
        assert others == "", "the daemon downloads by itself"
        host.run("llm-supervisor", "start", "beta")
        assert [reaches(host, model) for model in ("alpha", "beta")] == [False, True]
        assert not reaches(host, "alpha", "127.0.0.1:8000")
        assert [status(host, model)["network_note"] for model in ("alpha", "beta")] == ["", ""]
        before = engines(host)
        host.signal(pid, signal.SIGKILL)
        wait_for(lambda: is_started_anew(host, pid), 15)
        assert chat(host) == "I am alpha."
        assert engines(host) == before, "an engine in a user namespace is adopted"
        host.run("systemctl", "stop", SERVICE)
        assert host.groups(SERVICE) == {}

    def test_another_drop_in_opens_it_for_models_elsewhere_and_for_no_engine(self, host: Machine) -> None:
        elsewhere = f'[models.grok]\nengine = "remote"\nurl = "http://{ADDRESS}:{PORT}/v1"\n'
        host.write(CONFIG, FETCHED + elsewhere)
        start(host)
        told = host.run("llm-supervisor", "start", "grok", check=False).stderr
        assert "remote.conf" in told
        assert "remote.conf" in status(host, "grok")["network_note"]
        assert "models.grok.url: " in host.run("llm-supervisor", "check", check=False).stdout
        host.run("systemctl", "stop", SERVICE)
        host.sh(f"rm -rf {STATE}/*")
        shutil.copyfile(host.path("/opt/llm-supervisor/drop-ins/remote.conf"), host.path(REMOTE))
        host.run("systemctl", "daemon-reload")
        cursor = host.cursor()
        pid = start(host)
        assert VARIABLE in host.sh(f"tr '\\0' '\\n' </proc/{pid}/environ")
        others = host.sh(f"journalctl -q -o cat -t llm-supervisor-fetch --after-cursor='{cursor}'")
        assert others != "", "another unit downloads as before"
        host.run("llm-supervisor", "start", "grok")
        assert [status(host, model)["network_note"] for model in ("alpha", "grok")] == ["", ""]
        assert not reaches(host, "alpha")
        assert "remote.conf" not in host.run("llm-supervisor", "check", check=False).stdout
