"""No model is lost: what a crash, a stall, a restart, an upgrade and a mended mistake leave alone."""

import signal
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

    @pytest.mark.slow
    def test_twenty_crashes_refuse_nobody_and_lose_nothing(self, host: Machine) -> None:
        start(host)
        before = engines(host)
        kills = f"for _ in $(seq 20); do systemctl kill -s KILL --kill-who=main {SERVICE}; sleep 1.5; done"
        refused, cut, answered = host.sh(f"python3 /srv/knock.py 30 & {kills}; wait").split()
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
