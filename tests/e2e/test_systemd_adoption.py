"""No model is lost: what a crash, a stall, a restart, an upgrade and a mended mistake leave alone."""

import signal
import time
from collections.abc import Callable

import pytest

from tests.e2e.machine import Machine, unusable, wait_for
from tests.e2e.systemd_host import (
    CONFIG,
    HURRY,
    MODEL,
    REAPER,
    SERVICE,
    SOCKET,
    chat,
    engines,
    host,
    install,
    is_started_anew,
    machine,
    main_pid,
    override,
    reaped,
    start,
)

__all__ = ["host", "machine"]

if (reason := unusable()) is not None:
    pytest.skip(f"no systemd can be booted here: {reason}", allow_module_level=True)


NEXT_BUILD = """
cd /opt/llm-supervisor && rm -rf builds/next && cp -a {build} builds/next
sed -i 's|/{build}/|/builds/next/|' builds/next/bin/llm-supervisor
cd builds/next/lib/python3*/site-packages
sed -i 's/^__version__ = .*/__version__ = "9.9"/' supervisord_llm/__init__.py
ln -sfn builds/next /opt/llm-supervisor/venv
"""
"""Makes another version of the program, and switches to it as scripts/install does."""


def restart(host: Machine) -> None:
    host.run("systemctl", "restart", SERVICE)


def kill(host: Machine) -> None:
    host.signal(main_pid(host), signal.SIGKILL)


def stall(host: Machine) -> None:
    host.signal(main_pid(host), signal.SIGSTOP)


def upgrade(host: Machine) -> None:
    install(host)
    host.run("systemctl", "restart", SERVICE)


class TestAdoption:
    """The next daemon takes the engines over: same processes, same answers."""

    @pytest.mark.parametrize("how", [restart, kill, stall, upgrade])
    def test_the_model_is_not_lost(self, host: Machine, how: Callable[[Machine], None]) -> None:
        pid = start(host)
        before = engines(host)
        how(host)
        wait_for(lambda: is_started_anew(host, pid), 15)
        assert chat(host) == "I am alpha."
        assert engines(host) == before
        assert host.show(SERVICE, "StatusText")["StatusText"] == "1/1 models ready: alpha"

    def test_an_upgrade_in_place_refuses_nobody_and_loses_nothing(self, host: Machine) -> None:
        pid, before = start(host), engines(host)
        build = host.sh("readlink /opt/llm-supervisor/venv").strip()
        host.sh(NEXT_BUILD.format(build=build))
        try:
            out = host.sh("python3 /srv/knock.py 8 & sleep 0.5; llm-supervisor upgrade; wait")
            told, counts = out.splitlines()
            assert told.endswith(" -> 9.9; 1 engine kept: alpha")
            refused, cut, answered = (int(word) for word in counts.split())
            assert (refused, cut) == (0, 0)
            assert answered > 50
        finally:
            host.sh(f"ln -sfn {build} /opt/llm-supervisor/venv")
        assert '"version":"9.9"' in host.sh("curl -sS http://127.0.0.1:8000/healthz")
        shown = host.show(SERVICE, "MainPID", "ActiveState", "SubState", "NRestarts", "StatusText")
        assert shown == {
            "MainPID": str(pid),
            "ActiveState": "active",
            "SubState": "running",
            "NRestarts": "0",
            "StatusText": "1/1 models ready: alpha",
        }
        assert engines(host) == before
        assert chat(host) == "I am alpha."
        groups = host.groups(SERVICE)
        assert groups["daemon"] == [pid]
        host.run("systemctl", "restart", SERVICE)
        assert engines(host) == before
        host.sh("rm -r /opt/llm-supervisor/builds/next")

    @pytest.mark.slow
    def test_twenty_crashes_refuse_nobody_and_lose_nothing(self, host: Machine) -> None:
        start(host)
        before = engines(host)
        kill = f"systemctl kill -s KILL --kill-who=main {SERVICE}"
        serves = "curl -sS -m 30 -o /dev/null http://127.0.0.1:8000/healthz"
        kills = f"for _ in $(seq 20); do {kill}; {serves}; sleep 0.5; done; touch /run/enough"
        refused, cut, answered = host.sh(f"python3 /srv/knock.py 80 & {kills}; wait; rm /run/enough").split()
        assert int(refused) == 0
        assert int(cut) <= 20 * 10  # what the killed process was answering
        assert int(answered) > 20 * 10  # between the crashes, however slow the machine
        assert engines(host) == before

    def test_an_invalid_configuration_costs_no_model_once_it_is_mended(self, host: Machine) -> None:
        start(host)
        before = engines(host)
        host.write(CONFIG, "no toml\n")
        assert host.run("systemctl", "restart", SERVICE, check=False).returncode != 0
        assert engines(host) == before
        host.write(CONFIG, MODEL)
        start(host)
        assert engines(host) == before

    def test_on_stop_keep(self, host: Machine) -> None:
        host.write(CONFIG, MODEL + '[server]\non_stop = "keep"\n')
        start(host)
        before, cursor = engines(host), host.cursor()
        host.run("systemctl", "stop", SERVICE)
        assert engines(host) == before
        assert not reaped(host, SERVICE, cursor)
        start(host)
        assert engines(host) == before
        host.write(CONFIG, MODEL)
        host.run("systemctl", "reload", SERVICE)
        host.run("systemctl", "stop", SERVICE)
        assert engines(host) == {}

    def test_a_stop_while_it_adopts_leaves_nothing(self, host: Machine) -> None:
        override(host, HURRY + "RestartSec=0\n")
        kill_and_stop = (
            f"systemctl kill -s KILL --kill-who=main {SERVICE}; sleep 0.{{}}; systemctl stop {SERVICE}"
        )
        for tenths in range(1, 9):
            start(host)
            host.sh(kill_and_stop.format(tenths))
            wait_for(lambda: engines(host) == {}, 20, lambda: host.sh("journalctl --no-pager -n 60"))
            assert host.show(SOCKET, "ActiveState")["ActiveState"] == "active"

    def test_a_stop_that_comes_while_the_reaper_is_restarted_leaves_nothing(self, host: Machine) -> None:
        slow = f"/etc/systemd/system/{REAPER}.d/slow.conf"
        host.write(slow, "[Service]\nExecStop=/bin/sleep 2\n")
        override(host, HURRY + "RestartSec=0\n")
        try:
            start(host)
            host.signal(main_pid(host), signal.SIGKILL)
            wait_for(lambda: host.show(REAPER, "ActiveState")["ActiveState"] == "deactivating", 15)
            host.sh("sleep 0.7")  # by now it has looked which job runs, and found no stop
            host.run("systemctl", "stop", SERVICE)
            wait_for(lambda: engines(host) == {}, 20, lambda: host.sh("journalctl --no-pager -n 60"))
        finally:
            host.run("rm", slow)
            host.run("systemctl", "daemon-reload")


class TestFailingStarts:
    """A daemon that cannot start is tried ever less often, and clients wait."""

    def test_it_holds_itself_back_until_it_is_mended(self, host: Machine) -> None:
        start(host)
        before = engines(host)
        obstacle = "/run/llm-supervisor/control.sock"
        host.sh(f"rm {obstacle} && mkdir {obstacle}")
        host.signal(main_pid(host), signal.SIGKILL)
        try:
            wait_for(lambda: "the last 7 starts failed" in told(host), 60, lambda: told(host))
            assert host.show(SOCKET, "ActiveState")["ActiveState"] == "active"
            assert host.show(SERVICE, "SubState")["SubState"] == "start"
            pid = main_pid(host)
            host.sh("curl -sS -m 60 http://127.0.0.1:8000/healthz >/srv/answer 2>&1 &")
        finally:
            host.run("rmdir", obstacle)
        assert host.sh("sleep 1; cat /srv/answer") == ""
        began = time.monotonic()
        host.run("systemctl", "restart", SERVICE)
        assert time.monotonic() - began < 6, "who mends it need not wait"
        assert main_pid(host) != pid
        wait_for(lambda: '"status":"ok"' in host.sh("cat /srv/answer"), 5)
        assert engines(host) == before
        assert not host.exists("/run/llm-supervisor/starts")


def told(host: Machine) -> str:
    return host.show(SERVICE, "StatusText")["StatusText"]
