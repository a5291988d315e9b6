"""What `doctor` says of a host, from facts given as values: each row is one host."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from supervisord_llm.cli.diagnosis import daemon, gpu, host, network, systemd, wsl
from supervisord_llm.cli.diagnosis.access import ENTER, READ, WRITE, Node, User, may
from supervisord_llm.cli.diagnosis.daemon import Daemon
from supervisord_llm.cli.diagnosis.finding import Finding
from supervisord_llm.cli.diagnosis.gpu import Driver
from supervisord_llm.cli.diagnosis.host import Host, Place
from supervisord_llm.cli.diagnosis.network import Network
from supervisord_llm.cli.diagnosis.systemd import Units
from supervisord_llm.cli.diagnosis.wsl import Wsl
from supervisord_llm.gpu.sensor import NO_DRIVER, GpuLost, GpuReading, GpuSeen

GIB = 1024**3
LLM = User("llm-supervisor", 990, frozenset({990, 44}))
CARD = GpuSeen(index=0, uuid="GPU-a", name="RTX 4090", total_bytes=24 * GIB, free_bytes=24 * GIB)
OPEN, VIDEO = Node(0, 0, 0o666, "root"), Node(0, 44, 0o660, "video")


def bad(found: Iterable[Finding]) -> list[tuple[str, str]]:
    """Level and thing of all that is not ok."""
    return [(each.level, each.what) for each in found if each.level != "ok"]


def the(found: Iterable[Finding], what: str) -> Finding:
    """The one finding about a thing."""
    (each,) = (finding for finding in found if finding.what == what)
    return each


# --- WSL ----------------------------------------------------------

KEPT = {"general.instanceidletimeout": "-1", "wsl2.vmidletimeout": "-1"}
GOOD_WSL = Wsl(networking="mirrored", wslconfig=KEPT)


@pytest.mark.parametrize(
    ("changes", "expected", "mend"),
    [
        ({}, [], ""),
        ({"version": 1, "distribution": "Debian"}, [("problem", "version")], "wsl --set-version Debian 2"),
        ({"version": 1}, [("problem", "version")], "wsl -l -v"),
        ({"init": "init", "is_systemd_set": False}, [("warning", "systemd")], "tee -a /etc/wsl.conf"),
        ({"init": "init"}, [("warning", "systemd")], "wsl --shutdown"),
        ({"networking": "nat"}, [("warning", "network")], "networkingMode=mirrored"),
        ({"networking": "virtioproxy"}, [("warning", "network")], "-LocalPorts 8000,8443"),
        (
            {"networking": "nat", "wslconfig": KEPT | {"wsl2.networkingmode": "Mirrored"}},
            [("warning", "network")],
            "wsl --update",
        ),
        ({"networking": ""}, [("warning", "network")], "wsl --update"),
        ({"wslconfig": {}}, [("warning", "idle")], "instanceIdleTimeout=-1` under [general]"),
        ({"wslconfig": KEPT | {"wsl2.vmidletimeout": "60000"}}, [("warning", "idle")], "write `vmIdle"),
        ({"wslconfig": None}, [("warning", "idle")], "vmIdleTimeout=-1` under [wsl2]"),
        ({"has_device": False, "has_library": False}, [], ""),
        ({"has_library": False}, [("warning", "GPU")], "driver for Windows"),
        ({"linux_library": "/usr/lib/x/libnvidia-ml.so.1"}, [("warning", "driver")], "dpkg -S /usr/lib/x"),
    ],
)
def test_wsl(changes: Mapping[str, Any], expected: list[tuple[str, str]], mend: str) -> None:
    found = list(wsl.findings(replace(GOOD_WSL, **changes), (8000, 8443)))
    assert bad(found) == expected
    assert any(mend in each.mend for each in found)


def test_wsl_that_serves_this_machine_alone_needs_no_way_in() -> None:
    found = list(wsl.findings(replace(GOOD_WSL, networking="nat"), ()))
    assert bad(found) == []
    assert not any(each.what == "network" for each in found)


def test_a_mirrored_wsl_is_told_the_rule_of_windows_firewall() -> None:
    found = the(wsl.findings(GOOD_WSL, (8000,)), "network")
    assert "`New-NetFirewallHyperVRule -Name llm" in found.mend
    assert "-LocalPorts 8000 " in found.mend


# --- GPU ----------------------------------------------------------

NODES = {"/dev/nvidiactl": OPEN, "/dev/nvidia-uvm": OPEN, "/dev/nvidia0": VIDEO}
GOOD_DRIVER = Driver(reading=GpuReading((CARD,)), user=LLM, module="550.1", nodes=NODES)


def fails(problem: str) -> GpuReading:
    return GpuReading(problems=(f"cannot use the NVIDIA driver: {problem}; `nvidia-smi` may tell more",))


@pytest.mark.parametrize(
    ("changes", "expected", "mend"),
    [
        ({}, [], ""),
        ({"reading": GpuReading(problems=(NO_DRIVER,)), "module": "", "has_card": False}, [], ""),
        ({"reading": GpuReading(), "nodes": {}}, [], ""),
        (
            {"reading": GpuReading(problems=(NO_DRIVER,)), "module": ""},
            [("problem", "driver")],
            "nvidia-driver",
        ),
        ({"reading": GpuReading(problems=(NO_DRIVER,))}, [("problem", "driver")], "ldconfig"),
        ({"reading": fails("Driver/library version mismatch")}, [("problem", "driver")], "sudo reboot"),
        ({"reading": fails("Driver Not Loaded"), "module": ""}, [("problem", "driver")], "modprobe nvidia"),
        ({"reading": fails("Insufficient Permissions")}, [("problem", "driver")], "-aG video llm-supervisor"),
        (
            {"reading": GpuReading(problems=("NVML does not answer within 6 s",))},
            [("problem", "driver")],
            "dmesg",
        ),
        ({"reading": fails("GPU access blocked"), "is_wsl": True}, [("problem", "driver")], "wsl --update"),
        (
            {
                "reading": GpuReading(
                    (CARD,),
                    ("cannot read GPU 1: it fell off",),
                    (GpuLost(index=1, uuid="", why="it fell off"),),
                )
            },
            [("problem", "GPU 1")],
            "",
        ),
        ({"reading": GpuReading((CARD,), ("GPU 0 is divided by MIG",))}, [("warning", "driver")], ""),
        ({"nodes": {"/dev/nvidiactl": OPEN}}, [("problem", "devices")], "sudo nvidia-modprobe -u -c 0"),
        ({"nodes": {"/dev/nvidiactl": OPEN}, "makes_nodes": True}, [], ""),
        ({"nodes": {"/dev/nvidia-uvm": OPEN}}, [("problem", "devices")], "nvidia-modprobe"),
        (
            {"user": User("llm-supervisor", 990, frozenset({990}))},
            [("problem", "devices")],
            "sudo usermod -aG video llm-supervisor",
        ),
        ({"is_wsl": True, "nodes": {}}, [("problem", "devices")], ""),
        ({"is_wsl": True, "nodes": {"/dev/dxg": OPEN}, "module": ""}, [], ""),
        ({"is_persistent": False}, [("warning", "persistence")], "nvidia-persistenced"),
        ({"is_persistent": True}, [], ""),
    ],
)
def test_gpus(changes: Mapping[str, Any], expected: list[tuple[str, str]], mend: str) -> None:
    found = list(gpu.findings(replace(GOOD_DRIVER, **changes)))
    assert bad(found) == expected
    assert any(mend in each.mend for each in found)


# --- systemd ----------------------------------------------------------

SERVICE = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "Result": "success",
    "ExecMainStatus": "0",
    "NRestarts": "0",
    "UnitFileState": "enabled",
    "NeedDaemonReload": "no",
} | {name: expected for name, (expected, _, _) in systemd.DIFFERENT.items()}
SOCKET = {"LoadState": "loaded", "ActiveState": "active", "Listen": "[::]:8000 (Stream)"}
CLOSED = SOCKET | {"ActiveState": "inactive"}
STOPPED = {"ActiveState": "inactive", "SubState": "dead"}
GOOD_UNITS = Units(service=SERVICE, socket=SOCKET)


@pytest.mark.parametrize(
    ("service", "changes", "expected", "mend"),
    [
        ({}, {}, [], ""),
        ({}, {"version": 249}, [("problem", "version")], "Ubuntu 24.04"),
        ({}, {"is_booted": False}, [("problem", "systemd")], "boot with systemd"),
        ({}, {"is_booted": False, "is_wsl": True}, [("problem", "systemd")], "WSL"),
        ({}, {"is_booted": False, "is_installed": False}, [], ""),
        ({}, {"version": None, "is_installed": False}, [], ""),
        ({}, {"is_installed": False}, [("warning", "service")], "sudo scripts/install"),
        ({}, {"complaint": "systemctl does not answer within 5 s"}, [("warning", "service")], ""),
        ({"LoadState": "masked"}, {}, [("problem", "service")], "unmask"),
        ({"LoadState": "bad-setting"}, {}, [("problem", "service")], "systemd-analyze verify"),
        (
            {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "78"},
            {"socket": CLOSED},
            [("problem", "service")],
            "llm-supervisor check",
        ),
        ({"ActiveState": "failed", "Result": "core-dump"}, {}, [("problem", "service")], "journalctl"),
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code"},
            {},
            [("problem", "service")],
            "journalctl",
        ),
        ({"ActiveState": "activating", "SubState": "start"}, {}, [], ""),
        (STOPPED, {}, [], ""),
        (STOPPED, {"socket": CLOSED}, [("problem", "service")], "enable --now"),
        (
            STOPPED | {"UnitFileState": "disabled"},
            {"socket": CLOSED},
            [("warning", "service")],
            "enable --now",
        ),
        ({"UnitFileState": "disabled"}, {}, [("warning", "service")], "systemctl enable"),
        ({"NRestarts": "4"}, {}, [("warning", "service")], "journalctl"),
        ({}, {"socket": CLOSED}, [("warning", "socket")], "systemctl restart llm-supervisor.service"),
        (
            {"MainPID": "812"},
            {"socket": CLOSED, "holders": {8000: "llm-supervisor (pid 812)"}},
            [("warning", "socket")],
            "systemctl restart llm-supervisor.service",
        ),
        (
            STOPPED,
            {"socket": CLOSED, "holders": {8000: "nginx (pid 812)"}},
            [("problem", "service"), ("problem", "socket")],
            "systemctl edit llm-supervisor.socket",
        ),
        ({}, {"fetch": CLOSED}, [("warning", "fetch")], "systemctl start llm-supervisor-fetch.socket"),
        (STOPPED, {"fetch": CLOSED}, [], ""),
        ({}, {"fetch": {"LoadState": "not-found", "ActiveState": "inactive"}}, [], ""),
        ({"NeedDaemonReload": "yes"}, {}, [("warning", "unit files")], "daemon-reload"),
        ({"PrivateUsers": "yes"}, {}, [("problem", "unit files")], "take PrivateUsers= out"),
        ({"KillMode": "control-group"}, {}, [("problem", "unit files")], "take KillMode= out"),
        ({"Restart": "no"}, {}, [("warning", "unit files")], "take Restart= out"),
        ({}, {"cgroup": "hybrid"}, [], ""),
        ({}, {"cgroup": "hybrid", "controllers": frozenset()}, [("warning", "cgroups")], "cgroup_no_v1=all"),
        ({}, {"controllers": frozenset({"cpu", "pids"})}, [("warning", "cgroups")], "cgroup_no_v1=all"),
        ({}, {"cgroup": "v1", "is_wsl": True}, [("warning", "cgroups")], "kernelCommandLine="),
    ],
)
def test_systemd(
    service: dict[str, str], changes: Mapping[str, Any], expected: list[tuple[str, str]], mend: str
) -> None:
    found = list(systemd.findings(replace(GOOD_UNITS, service=SERVICE | service, **changes)))
    assert bad(found) == expected
    assert any(mend in each.mend for each in found)


def test_a_daemon_that_holds_itself_back_says_until_when() -> None:
    said = "the last 5 starts failed: waits until 03:00:00"
    service = SERVICE | {"ActiveState": "activating", "NRestarts": "5", "StatusText": said}
    found = the(systemd.findings(replace(GOOD_UNITS, service=service)), "service")
    assert (found.level, said in found.text) == ("warning", True)


def test_each_setting_that_a_drop_in_may_not_change_is_one_of_the_shipped_unit() -> None:
    """Or is left at systemd's own value there, which is the expected one."""
    from tests.test_docs import ROOT

    lines = (ROOT / "units/llm-supervisor.service").read_text().splitlines()
    for name, (expected, _, _) in systemd.DIFFERENT.items():
        written = [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]
        defaults = {
            "RemoveIPC": "no",
            "PrivateUsers": "no",
            "MemoryDenyWriteExecute": "no",
            "ProcSubset": "all",
        }
        assert (written or [defaults[name]]) == [expected], name


# --- the daemon ----------------------------------------------------------

GOOD_DAEMON = Daemon(socket="/run/c.sock", installed="1.1", running="1.1", is_up=True, has_socket=True)
FORBIDDEN = "cannot open /run/c.sock: only root and group llm may; use sudo, or join with `usermod`"


@pytest.mark.parametrize(
    ("changes", "expected", "mend"),
    [
        ({}, [], ""),
        ({"running": "1.0"}, [("warning", "daemon")], "sudo llm-supervisor upgrade"),
        (
            {"running": "", "is_forbidden": True, "complaint": FORBIDDEN},
            [("warning", "daemon")],
            "use sudo, or",
        ),
        ({"running": ""}, [("problem", "daemon")], "journalctl"),
        ({"running": "", "is_up": False}, [], ""),
        ({"running": "", "is_up": False, "has_socket": False}, [("warning", "daemon")], "systemctl start"),
        (
            {"running": "", "is_up": False, "has_socket": False, "is_service": False},
            [("warning", "daemon")],
            "`llm-supervisor serve`",
        ),
    ],
)
def test_the_daemon(changes: Mapping[str, Any], expected: list[tuple[str, str]], mend: str) -> None:
    (found,) = daemon.findings(replace(GOOD_DAEMON, **changes))
    assert bad([found]) == expected
    assert mend in found.mend


# --- the host ----------------------------------------------------------

STATE = Place(
    name="state", path="/srv/state", free_bytes=500 * GIB, inodes=10**7, free_inodes=10**6, kind="ext4"
)
CACHE = replace(STATE, name="cache", path="/srv/cache")
GOOD_HOST = Host(
    user=LLM,
    gpus=2,
    places=(STATE, CACHE),
    memory_bytes=64 * GIB,
    ram_budget_bytes=32 * GIB,
    open_files=65536,
    shared_bytes=32 * GIB,
    is_clock_set=True,
)
THEIRS, OURS = Node(0, 0, 0o750, "root"), Node(990, 990, 0o750, "llm-supervisor")


def places(**changes: Any) -> dict[str, Any]:
    return {"places": (replace(STATE, **changes),)}


@pytest.mark.parametrize(
    ("changes", "expected", "mend"),
    [
        ({}, [], ""),
        (places(free_bytes=9 * GIB), [("warning", "state directory")], "set state in [paths]"),
        (places(free_bytes=GIB // 8), [("problem", "state directory")], "du -xhd2 /srv/state"),
        (places(free_inodes=99_999), [("warning", "state directory")], ""),
        (places(free_inodes=0), [("problem", "state directory")], ""),
        (places(free_inodes=None, inodes=None), [], ""),
        (places(name="cache", free_bytes=3 * GIB), [], ""),
        (places(name="cache", free_bytes=GIB), [("warning", "cache directory")], "set cache in [paths]"),
        (places(name="models.a", free_bytes=0), [], ""),
        (places(kind="9p"), [], ""),
        (places(kind="9p") | {"is_wsl": True}, [("warning", "state directory")], "such as /srv"),
        (
            places(name="models.a", kind="9p") | {"is_wsl": True},
            [("warning", "models.a directory")],
            "set its `source`",
        ),
        (places(kind="ntfs3"), [("warning", "state directory")], "ext4"),
        (places(silent="the disk does not answer within 5 s"), [("problem", "state directory")], "findmnt"),
        (places(node=THEIRS), [], ""),
        (places(node=OURS) | {"is_own_user": False}, [], ""),
        (
            places(node=THEIRS) | {"is_own_user": False},
            [("problem", "state directory")],
            "sudo chown -R llm-supervisor: /srv/state",
        ),
        ({"ram_budget_bytes": 60 * GIB}, [("warning", "memory")], "lower it"),
        ({"ram_budget_bytes": 60 * GIB, "is_wsl": True}, [("warning", "memory")], "`memory=` under [wsl2]"),
        ({"ram_budget_bytes": None}, [], ""),
        ({"memory_bytes": 8 * GIB, "ram_budget_bytes": None}, [("warning", "swap")], "mkswap"),
        (
            {"memory_bytes": 8 * GIB, "ram_budget_bytes": 0, "is_wsl": True},
            [("warning", "swap")],
            "swap=16GB",
        ),
        ({"swap_bytes": 8 * GIB, "swap_used_bytes": 6 * GIB}, [("warning", "swap")], "ram_budget"),
        ({"swap_bytes": 8 * GIB, "swap_used_bytes": GIB}, [], ""),
        ({"open_files": 1024}, [("warning", "open files")], "security/limits.conf"),
        ({"open_files": 1024, "limits_of": "the daemon"}, [("warning", "open files")], "LimitNOFILE=65536"),
        ({"locked_bytes": 8 << 20}, [("warning", "locked memory")], "memlock unlimited"),
        ({"locked_bytes": 8 << 20, "gpus": 0}, [], ""),
        ({"shared_bytes": 64 << 20}, [("warning", "shared memory")], "remount"),
        ({"shared_bytes": 64 << 20, "gpus": 1}, [], ""),
        ({"is_clock_set": False}, [("warning", "clock")], "set-ntp"),
        ({"is_clock_set": False, "is_wsl": True}, [], ""),
        ({"is_clock_set": None}, [], ""),
        ({"has_compiler": False}, [("warning", "C compiler")], "apt install gcc"),
        ({"has_compiler": False, "gpus": 0}, [], ""),
        ({"has_uv": False}, [("problem", "uv")], ""),
        ({"pythons": {"3.12": True, "3.13": False}}, [("warning", "Python")], "python3.13"),
    ],
)
def test_the_host(changes: Mapping[str, Any], expected: list[tuple[str, str]], mend: str) -> None:
    found = list(host.findings(replace(GOOD_HOST, **changes)))
    assert bad(found) == expected
    assert any(mend in each.mend for each in found)


@pytest.mark.parametrize(
    ("user", "node", "expected"),
    [
        (User("root", 0), Node(5, 5, 0), True),
        (User("u", 5), Node(5, 5, 0o700), True),
        (User("u", 5, frozenset({6})), Node(5, 6, 0o070), False),  # the owner's bits decide
        (User("u", 5, frozenset({6})), Node(0, 6, 0o770), True),
        (User("u", 5, frozenset({6})), Node(0, 6, 0o707), False),
        (User("u", 5), Node(0, 6, 0o707), True),
        (User("u", 5), Node(0, 6, 0o775), False),
    ],
)
def test_who_may(user: User, node: Node, expected: bool) -> None:
    assert may(user, node, READ | WRITE | ENTER) is expected


# --- the network ----------------------------------------------------------

UFW = """\
Status: active
Logging: on (low)
Default: deny (incoming), allow (outgoing), disabled (routed)
New profiles: skip

To                         Action      From
--                         ------      ----
22/tcp                     ALLOW IN    Anywhere
80,443,8080/tcp            ALLOW IN    Anywhere
8100:8200/tcp              LIMIT IN    192.168.0.0/16
8300/udp                   ALLOW IN    Anywhere
8400                       DENY IN     Anywhere
8500/tcp                   ALLOW OUT   Anywhere
8600/tcp on eth0           ALLOW IN    Anywhere
8700/tcp (v6)              ALLOW IN    Anywhere (v6)
"""
FIREWALLD = """\
public (active)
  target: default
  services: dhcpv6-client ssh
  ports: 8080/tcp 8100-8200/tcp 8300/udp
  rich rules:
\trule family="ipv4" source address="192.168.0.0/16" port port="8600" protocol="tcp" accept
"""
NFT = """\
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		iif "lo" accept
		tcp dport 22 accept
		tcp dport { 8080, 8100-8200 } counter packets 0 bytes 0 accept
		tcp dport 8400 drop
	}
	chain output {
		type filter hook output priority filter; policy accept;
	}
}
"""


@pytest.mark.parametrize(
    ("firewall", "rules", "open_", "closed"),
    [
        ("ufw", UFW, (22, 443, 8080, 8150, 8600, 8700), (8000, 8300, 8400, 8500)),
        ("ufw", UFW.replace("deny (incoming)", "allow (incoming)"), (8000,), ()),
        ("ufw", UFW + "Anywhere                   ALLOW IN    192.168.1.0/24\n", (8000,), ()),
        ("firewalld", FIREWALLD, (8080, 8150, 8600), (8000, 8300)),
        ("firewalld", FIREWALLD.replace("target: default", "target: ACCEPT"), (8000,), ()),
        ("nftables", NFT, (22, 8080, 8150), (8000, 8400)),
        ("nftables", NFT.replace("policy drop", "policy accept"), (8000,), ()),
        ("nftables", "", (8000,), ()),
    ],
)
def test_which_ports_a_firewall_lets_in(
    firewall: Any, rules: str, open_: tuple[int, ...], closed: tuple[int, ...]
) -> None:
    for port in open_:
        assert bad(network.findings(Network(ports=(port,), firewall=firewall, rules=rules))) == [], port
    for port in closed:
        (found,) = network.findings(Network(ports=(port,), firewall=firewall, rules=rules))
        assert (found.level, found.what) == ("warning", "firewall")
        assert str(port) in found.mend


@pytest.mark.parametrize(
    ("seen", "expected", "mend"),
    [
        (Network(ports=(8000,)), [], ""),
        (Network(ports=(8000,), rules=None), [], ""),
        (
            Network(ports=(8000,), firewall="ufw", rules=None),
            [("warning", "firewall")],
            "sudo llm-supervisor",
        ),
        (Network(hub="https://hub", wants=("a",)), [], ""),
        (
            Network(hub="https://hub", wants=("a",), hub_complaint="timed out"),
            [("problem", "hub")],
            "HF_ENDPOINT",
        ),
    ],
)
def test_the_network(seen: Network, expected: list[tuple[str, str]], mend: str) -> None:
    found = list(network.findings(seen))
    assert bad(found) == expected
    assert any(mend in each.mend for each in found)


def test_downloads_of_units_may_have_a_way_of_their_own() -> None:
    seen = Network(hub="https://hub", wants=("a",), hub_complaint="timed out", is_service=True)
    (found,) = network.findings(seen)
    assert found.level == "warning"
    assert "fetch.env" in found.mend


def test_who_serves_this_machine_alone_and_wants_nothing_needs_no_network() -> None:
    assert list(network.findings(Network(firewall="ufw", rules=UFW))) == []
