"""The units and the installer under a real systemd: what `systemctl`, the journal and the cgroups say.

One machine for all tests, since it takes seconds; each begins with the daemon stopped and its limits short.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fakes
from tests.e2e.machine import CHECKOUT, UV_CACHE, Machine, booted, unusable, wait_for
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
import http.client, sys, threading, time
refused = cut = answered = 0
end = time.monotonic() + float(sys.argv[1])
def knock():
    global refused, cut, answered
    while time.monotonic() < end:
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

if (reason := unusable()) is not None:
    pytest.skip(f"no systemd can be booted here: {reason}", allow_module_level=True)


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
    host.run("systemctl", "start", SERVICE)
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


class TestInstall:
    """scripts/install on a host with a systemd and without a network."""

    def test_it_makes_what_the_units_need_and_says_what_to_type_next(self, machine: Machine) -> None:
        out = install(machine)
        assert len([line for line in out.splitlines() if line.startswith("  ")]) == 3
        assert "systemctl enable --now llm-supervisor" in out
        assert "nologin" in machine.sh("getent passwd llm-supervisor")
        assert machine.sh("stat -c '%a %U %G' /etc/llm-supervisor/llm-supervisor.env") == (
            "640 root llm-supervisor\n"
        )
        assert machine.sh("llm-supervisor --version").startswith("llm-supervisor ")
        units = machine.sh("ls /etc/systemd/system/llm-supervisor*.*").split()
        assert machine.run("systemd-analyze", "verify", *units).stderr == ""

    def test_a_second_time_it_keeps_the_configuration_and_builds_nothing(self, host: Machine) -> None:
        host.write(CONFIG, MODEL + "# mine\n")
        out = install(host)
        assert "builds" not in out
        assert f"systemctl restart {SERVICE.removesuffix('.service')}" in out
        assert host.sh(f"cat {CONFIG}").endswith("# mine\n")

    def test_the_exposure_is_at_most_1_3(self, host: Machine) -> None:
        host.run("rm", "-r", str(Path(DROP_IN).parent))
        host.run("systemctl", "daemon-reload")
        last = host.sh(f"systemd-analyze security --threshold=11 {SERVICE} | tail -n 1")
        score = re.search(r"[\d.]+(?= OK)", last)
        assert score, last
        assert float(score[0]) <= 1.3

    def test_it_is_removed_without_the_data_and_purged_with_it(self, host: Machine) -> None:
        start(host)
        pids = [pid for group in host.groups(SERVICE).values() for pid in group]
        install(host, "--uninstall")
        assert not any(host.exists(f"/proc/{pid}") for pid in pids)
        assert host.groups(SERVICE) == {}
        left = host.sh(
            "ls -d /opt/llm-supervisor /usr/local/bin/llm-supervisor /run/llm-supervisor", check=False
        )
        assert left == ""
        assert host.sh("systemctl list-unit-files --no-legend 'llm-supervisor*'", check=False) == ""
        assert host.sh(f"cat {CONFIG}") == MODEL
        assert host.exists("/var/lib/llm-supervisor")
        install(host, "--uninstall", "--purge")
        assert not any(host.exists(f"/{where}/llm-supervisor") for where in ("etc", "var/lib", "var/cache"))
        assert host.run("getent", "passwd", "llm-supervisor", check=False).returncode == 2


class TestService:
    """A day of the daemon."""

    def test_it_is_active_once_it_serves_and_shows_its_models(self, host: Machine) -> None:
        start(host)
        shown = host.show(SERVICE, "ActiveState", "Type", "StatusText", "NRestarts")
        assert shown == {
            "ActiveState": "active",
            "Type": "notify",
            "StatusText": "1/1 models ready: alpha",
            "NRestarts": "0",
        }

    def test_daemon_and_engine_have_a_cgroup_each_and_no_privileges(self, host: Machine) -> None:
        pid = start(host)
        groups = host.groups(SERVICE)
        assert groups.pop("daemon") == [pid]
        assert [re.sub(r"-[0-9a-f]+$", "", name) for name in groups] == ["engine-alpha-1"]
        for each in (pid, *next(iter(groups.values()))):
            status = host.sh(f"grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/{each}/status")
            assert status.split()[1::2] == ["0" * 16, "0" * 16, "1", "2"]
            assert host.sh(f"stat -c %U /proc/{each}") == "llm-supervisor\n"
            root = host.sh(f"awk '$5 == \"/\" {{print $6}}' /proc/{each}/mountinfo").splitlines()[-1]
            assert root.startswith("ro")
            assert host.sh(f"tr '\\0' '\\n' </proc/{each}/environ | grep -c ^LISTEN_", check=False) == (
                "3\n" if each == pid else "0\n"
            )

    def test_a_connection_to_the_socket_starts_it(self, host: Machine) -> None:
        host.run("systemctl", "start", SOCKET)
        assert host.show(SERVICE, "ActiveState")["ActiveState"] == "inactive"
        assert chat(host) == "I am alpha."
        assert host.show(SERVICE, "ActiveState")["ActiveState"] == "active"

    def test_a_reload_applies_the_difference_and_leaves_the_engine_alone(self, host: Machine) -> None:
        pid = start(host)
        before = engines(host)
        host.write(
            CONFIG,
            MODEL + MODEL.partition("[models")[1] + MODEL.partition("[models")[2].replace("alpha", "beta"),
        )
        host.run("systemctl", "reload", SERVICE)
        assert '"beta"' in host.sh("curl -sS http://127.0.0.1:8000/v1/models")
        assert (main_pid(host), engines(host)) == (pid, before)

    def test_a_reload_of_a_mistake_fails_says_where_and_changes_nothing(self, host: Machine) -> None:
        pid = start(host)
        before, cursor = engines(host), host.cursor()
        host.write(CONFIG, MODEL + "max_concurent = 3\n")
        assert host.run("systemctl", "reload", SERVICE, check=False).returncode != 0
        told = "\n".join(str(entry["MESSAGE"]) for entry in host.journal(SERVICE, cursor))
        assert f"{CONFIG}:7" in told
        assert "max_concurrent" in told
        assert (main_pid(host), engines(host)) == (pid, before)
        assert host.show(SERVICE, "ActiveState")["ActiveState"] == "active"


class TestInterruptions:
    """Crashes, stalls and restarts: the port stays open and the daemon comes back."""

    @pytest.mark.parametrize("how", ["restart", "kill"])
    def test_nobody_is_refused(self, host: Machine, how: str) -> None:
        start(host)
        command = "systemctl restart" if how == "restart" else "systemctl kill -s KILL --kill-who=main"
        out = host.sh(f"python3 /srv/knock.py 4 & sleep 0.5; {command} {SERVICE} >/dev/null 2>&1; wait")
        refused, _, answered = (int(word) for word in out.split())
        assert refused == 0
        assert answered > 50
        assert chat(host) == "I am alpha."

    def test_a_stalled_daemon_is_killed_by_the_watchdog_and_comes_back(self, host: Machine) -> None:
        pid, cursor = start(host), host.cursor()
        host.signal(pid, signal.SIGSTOP)
        wait_for(lambda: is_started_anew(host, pid), 15)
        assert host.show(SERVICE, "NRestarts")["NRestarts"] == "1"
        assert any("Watchdog timeout" in str(entry["MESSAGE"]) for entry in host.journal(SERVICE, cursor))
        assert chat(host) == "I am alpha."

    def test_an_invalid_configuration_is_78_and_no_restart_until_it_is_mended(self, host: Machine) -> None:
        host.write(CONFIG, MODEL + "max_concurent = 3\n")
        assert host.run("systemctl", "start", SERVICE, check=False).returncode != 0
        shown = host.show(SERVICE, "ActiveState", "ExecMainStatus", "NRestarts")
        assert shown == {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
        host.write(CONFIG, MODEL)
        start(host)

    def test_clients_cannot_start_a_daemon_with_an_invalid_configuration_for_ever(
        self, host: Machine
    ) -> None:
        host.write(CONFIG, MODEL + "max_concurent = 3\n")
        host.run("systemctl", "start", SOCKET)
        answer = host.run("curl", "-sS", "-m", "20", "http://127.0.0.1:8000/healthz", check=False)
        assert answer.returncode in (52, 56), "the connection is closed"  # empty reply, or reset
        assert host.show(SOCKET, "Result")["Result"] == "trigger-limit-hit"
        host.write(CONFIG, MODEL)
        start(host)


class TestStop:
    """After a stop nothing is left, whatever state the daemon was in."""

    @pytest.fixture(autouse=True)
    def ends_empty(self, host: Machine) -> Iterator[None]:
        """A running engine before, an empty cgroup and no record of it after."""
        start(host)
        pids = [pid for group in engines(host).values() for pid in group]
        yield
        host.run(
            "systemctl", "stop", SERVICE, REAPER
        )  # of the two, what stops as a consequence is not waited for
        assert host.show(REAPER, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
        assert host.groups(SERVICE) == {}
        assert not any(host.exists(f"/proc/{pid}") for pid in pids)

    def test_running(self, host: Machine) -> None:
        """The daemon ends its engines itself: the reaper has nothing to say."""
        cursor = host.cursor()
        host.run("systemctl", "stop", SERVICE)
        assert host.show(SERVICE, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
        assert not reaped(host, SERVICE, cursor)

    def test_stalled(self, host: Machine) -> None:
        override(host, HURRY + "WatchdogSec=0\n")
        host.run("systemctl", "restart", SERVICE)
        assert chat(host) == "I am alpha."
        cursor = host.cursor()
        host.freeze(SERVICE, "daemon")
        host.run("systemctl", "stop", SERVICE)
        assert host.groups(SERVICE) == {}, "systemctl waits for the end of the engines"
        assert reaped(host, SERVICE, cursor)

    def test_crashed_and_waiting_to_be_restarted(self, host: Machine) -> None:
        override(host, HURRY + "RestartSec=60\n")
        host.signal(main_pid(host), signal.SIGKILL)
        wait_for(lambda: host.show(SERVICE, "SubState")["SubState"] == "auto-restart", 5)
        assert engines(host), "a crash leaves the engines alone"

    def test_failed(self, host: Machine) -> None:
        host.write(CONFIG, "no toml\n")
        host.signal(main_pid(host), signal.SIGKILL)
        wait_for(lambda: host.show(SERVICE, "ActiveState")["ActiveState"] == "failed", 10)
        assert engines(host), "an invalid configuration leaves the engines alone"

    def test_the_target_closes_the_port_too(self, host: Machine) -> None:
        host.run("systemctl", "stop", "llm-supervisor.target")
        for unit in (SOCKET, SERVICE):
            wait_for(lambda unit=unit: host.show(unit, "ActiveState")["ActiveState"] == "inactive", 10)  # type: ignore[misc]
