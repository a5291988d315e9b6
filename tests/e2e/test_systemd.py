"""The units and the installer under a real systemd: what `systemctl`, the journal and the cgroups say."""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.machine import CHECKOUT, Machine, unusable, wait_for
from tests.e2e.systemd_host import (
    CONFIG,
    DROP_IN,
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
        assert "  llm-supervisor upgrade " in out
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


class TestPackage:
    """The Debian package of scripts/deb."""

    @pytest.mark.slow
    def test_it_installs_upgrades_and_purges(self, host: Machine, tmp_path: Path) -> None:
        install(host, "--uninstall", "--purge")
        subprocess.run([CHECKOUT / "scripts/deb", tmp_path], check=True, capture_output=True)
        package = next(tmp_path.glob("llm-supervisor_*.deb"))
        shutil.copyfile(package, host.path("/srv/package.deb"))
        assert "systemctl enable --now" in host.run("dpkg", "--install", "/srv/package.deb").stdout
        host.write(CONFIG, MODEL)
        pid = start(host)
        before = engines(host)
        out = host.run("dpkg", "--force-confold", "--install", "/srv/package.deb").stdout
        assert "1 engine kept: alpha" in out
        assert main_pid(host) == pid, "it is upgraded in place"
        broken = host.sh("ls -d /opt/llm-supervisor/venv/lib/python3*/site-packages").strip() + "/broken.pth"
        host.write(broken, "import os; os._exit(3)\n")
        again = host.run("dpkg", "--force-confold", "--install", "/srv/package.deb")
        assert "To try again: llm-supervisor upgrade" in again.stderr
        assert main_pid(host) == pid, "a version that does not run leaves the one that serves alone"
        assert chat(host) == "I am alpha."
        host.sh(f"rm {broken}")
        host.sh("echo '# changed' >>/lib/systemd/system/llm-supervisor.service")
        host.run("dpkg", "--force-confold", "--install", "/srv/package.deb")
        assert is_started_anew(host, pid), "another unit needs a restart"
        assert engines(host) == before
        assert chat(host) == "I am alpha."
        assert host.sh(f"cat {CONFIG}") == MODEL
        host.run("dpkg", "--remove", "llm-supervisor")
        assert host.groups(SERVICE) == {}
        assert not host.exists("/run/llm-supervisor")
        assert host.sh(f"cat {CONFIG}") == MODEL
        host.run("dpkg", "--purge", "llm-supervisor")
        left = host.sh(
            "ls -d /opt/llm-supervisor /etc/llm-supervisor /usr/bin/llm-supervisor /var/lib/llm-supervisor "
            "/lib/systemd/system/llm-supervisor* /run/llm-supervisor",
            check=False,
        )
        assert left == ""


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

    def test_of_the_devices_it_has_those_of_gpus_alone(self, host: Machine) -> None:
        host.run("mknod", "/dev/nvidia0", "c", "1", "3")
        host.run("mknod", "/dev/secret", "c", "1", "3")
        pid = start(host)
        seen = host.sh(f"ls /proc/{pid}/root/dev").split()
        assert {"null", "urandom", "nvidia0"} <= set(seen)
        assert "secret" not in seen
        host.run("rm", "/dev/nvidia0", "/dev/secret")

    def test_private_networks_reach_the_port_and_engines_reach_nothing(self, host: Machine) -> None:
        start(host)
        leaf = next(iter(engines(host)))
        join = f"echo $$ >/sys/fs/cgroup/system.slice/{SERVICE}/{leaf}/cgroup.procs; "
        ask = "curl -sS -o /dev/null -m 2 http://{}:8000/healthz"
        for address in ("192.168.7.7", "8.8.8.8"):
            host.run("ip", "address", "replace", f"{address}/32", "dev", "lo")
        for script, code in (
            (ask.format("127.0.0.1"), 0),
            (ask.format("192.168.7.7"), 0),
            (ask.format("8.8.8.8"), 28),  # no answer
            (join + ask.format("127.0.0.1"), 0),
            (join + ask.format("192.168.7.7"), 28),
        ):
            done = host.run("sh", "-c", script, check=False)
            assert done.returncode == code, f"{script}: {done.stderr}"

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

    def test_many_restarts_at_once_hit_no_limit(self, host: Machine) -> None:
        start(host)
        host.sh(f"for _ in $(seq 7); do systemctl restart --no-block {SERVICE}; sleep 0.1; done")
        host.run("systemctl", "restart", SERVICE)
        for _ in range(3):
            before = main_pid(host)
            host.signal(before, signal.SIGKILL)
            wait_for(lambda before=before: is_started_anew(host, before), 10)  # type: ignore[misc]
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
        assert host.show(SOCKET, "ActiveState")["ActiveState"] == "inactive"
        refused = host.run("curl", "-sS", "http://127.0.0.1:8000/healthz", check=False)
        assert refused.returncode == 7
        host.write(CONFIG, MODEL)
        start(host)

    def test_a_stop_leaves_the_engines_where_the_daemon_marked_them_to_keep(self, host: Machine) -> None:
        pid = start(host)
        override(host, HURRY + "RestartSec=60\n")
        host.run("touch", "/run/llm-supervisor/keep")
        before = engines(host)
        host.signal(pid, signal.SIGKILL)
        host.run("systemctl", "stop", SERVICE, REAPER)
        assert engines(host) == before
        install(host, "--uninstall")
        assert engines(host) == {}


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


class TestDoctor:
    """`llm-supervisor doctor`, asked by root and by somebody else."""

    def test_a_service_that_runs_is_well_and_a_stranger_is_told_what_he_may_not_see(
        self, host: Machine
    ) -> None:
        start(host)
        found = doctor(host)
        for what in ("systemd.version", "systemd.socket", "daemon.daemon", "configuration.file"):
            assert found[what]["level"] == "ok", found[what]
        assert found["systemd.service"]["text"] == "is active, but is not started at boot"
        assert not any(each["what"] == "unit files" for each in found.values())
        host.run("chmod", "600", CONFIG)
        stranger = doctor(host, "setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
        assert stranger["systemd.socket"]["level"] == "ok"
        for what in ("daemon.daemon", "configuration.file"):
            assert stranger[what]["level"] == "warning", stranger[what]
            assert "sudo" in stranger[what]["mend"]

    def test_who_is_in_the_group_is_told_nothing_wrong_of_what_only_the_daemon_sees(
        self, host: Machine
    ) -> None:
        start(host)
        member = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--groups", "llm-supervisor")
        found = doctor(host, *member)
        assert found["daemon.daemon"]["level"] == "ok"
        assert "not looked at" in found["configuration.models"]["text"]
        assert host.run(*member, "llm-supervisor", "doctor", check=False).stderr == ""

    def test_the_daemons_user_checks_the_daemons_directories(self, host: Machine) -> None:
        theirs = ("setpriv", "--reuid", "llm-supervisor", "--regid", "llm-supervisor", "--init-groups")
        for _ in range(2):
            said = host.run(*theirs, "llm-supervisor", "check").stdout
            assert "paths.state: /var/lib/llm-supervisor is writable" in said
            start(host)

    def test_a_socket_that_was_stopped_beside_the_daemon(self, host: Machine) -> None:
        start(host)
        host.run("systemctl", "stop", SOCKET)
        stopped = doctor(host)["systemd.socket"]
        assert stopped["level"] == "warning"
        assert "systemctl restart" in stopped["mend"]
        host.run("systemctl", "restart", SERVICE)
        assert doctor(host)["systemd.socket"]["level"] == "ok"

    def test_what_a_drop_in_spoils_is_named_with_the_drop_in(self, host: Machine) -> None:
        override(host, "[Service]\nPrivateUsers=yes\n")
        spoilt = doctor(host)["systemd.unit files"]
        assert spoilt["level"] == "problem"
        assert "PrivateUsers=yes" in spoilt["text"]
        assert DROP_IN in spoilt["text"]

    def test_a_port_that_another_program_has_and_a_state_of_another_user(self, host: Machine) -> None:
        host.sh("python3 -m http.server 8000 >/dev/null 2>&1 & echo $! >/run/squatter")
        host.sh("chown root /var/lib/llm-supervisor")
        try:
            wait_for(lambda: "systemd.socket" in doctor(host), 5)
            found = doctor(host)
        finally:
            host.sh("kill $(cat /run/squatter); chown llm-supervisor /var/lib/llm-supervisor")
        assert "port 8000 is held by python3" in found["systemd.socket"]["text"]
        assert "sudo chown -R llm-supervisor" in found["host.state directory"]["mend"]


def doctor(host: Machine, *as_user: str) -> dict[str, dict[str, str]]:
    """What it says: the last finding about each "group.thing"."""
    said = host.run(*as_user, "llm-supervisor", "doctor", "--json", check=False).stdout
    return {f"{each['group']}.{each['what']}": each for each in json.loads(said)["findings"]}
