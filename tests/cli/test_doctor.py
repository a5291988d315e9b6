"""`doctor` as a command on this host, and how it asks a host that does not answer."""

import grp
import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisord_llm import __version__
from supervisord_llm.cli.diagnosis.systemd import Units
from supervisord_llm.cli.diagnosis.wsl import Wsl
from supervisord_llm.cli.examination import configuration, network, units, wsl
from supervisord_llm.cli.examination import host as examined_host
from supervisord_llm.cli.examination.host import see_host
from supervisord_llm.cli.examination.limit import Call, NotTold, Silent, output
from supervisord_llm.cli.examination.network import open_ports, see_network
from supervisord_llm.cli.examination.wsl import see_wsl
from supervisord_llm.config.load import load
from supervisord_llm.config.model import Address
from tests.cli.conftest import CONFIG, Cli, House
from tests.gpu.nvml import StubNvml

LOCAL = CONFIG.replace('"org/coder"', '"./weights"').replace('"org/chat"', '"./weights"')
"""Nothing to download, so that no hub is asked."""


@pytest.fixture
def cli(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    (cli.folder / "weights").mkdir()
    cli.config.write_text(LOCAL)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return cli


async def findings(cli: Cli, code: int | None = None) -> list[dict[str, str]]:
    """Without a `code` this host may have problems of its own."""
    done = await cli("doctor", "--json")
    assert done.code in ((0, 1) if code is None else (code,))
    assert done.err == ""
    found: list[dict[str, str]] = json.loads(done.out)["findings"]
    return found


# --- the command ----------------------------------------------------------


async def test_a_line_a_finding_in_groups_and_a_count(cli: Cli) -> None:
    done = await cli("doctor")
    assert done.err == ""
    *lines, empty, last = done.out.splitlines()
    titles = [line for line in lines if not line.startswith(" ")]
    assert titles[-5:] == ["systemd", "daemon", "GPU", "host", "configuration"], "and no empty network"
    assert {line.split()[0] for line in lines if line.startswith(" ")} <= {"ok", "warning", "problem"}
    assert f"  warning  daemon: none answers at {cli.folder}/run/control.sock; " in done.out
    assert empty == ""
    assert last.endswith("warnings")


async def test_the_json_has_stable_fields_and_what_check_finds(cli: Cli) -> None:
    cli.config.write_text(LOCAL + '[models.lost]\nsource = "./lost"\n')
    found = await findings(cli, 1)
    assert all(list(each) == ["group", "level", "what", "text", "mend"] for each in found)
    problems = [each for each in found if each["level"] == "problem" and each["group"] == "configuration"]
    assert [each["what"] for each in problems] == ["models.lost"]
    assert "do not exist" in problems[0]["text"]


async def test_a_daemon_that_answers_is_told_with_its_version(cli: Cli, house: House) -> None:
    cli.config.write_text(LOCAL)
    found = [each for each in await findings(cli) if each["group"] == "daemon"]
    assert [(each["level"], each["text"]) for each in found] == [
        ("ok", f"answers at {cli.folder}/run/control.sock, version {__version__}")
    ]


async def test_an_invalid_configuration_is_78_and_the_host_is_looked_at_all_the_same(cli: Cli) -> None:
    cli.config.write_text("[server]\nlisen = 1\n")
    found = await findings(cli, 78)
    assert {"daemon", "GPU", "host"} <= {each["group"] for each in found}
    (problem,) = (each for each in found if each["group"] == "configuration")
    assert (problem["level"], problem["what"]) == ("problem", "file")
    assert 'did you mean "listen"?' in problem["text"]
    cli.config.unlink()
    assert "cannot find it" in (await findings(cli, 78))[-1]["text"]


async def test_a_key_that_is_not_there_is_78_for_root_as_in_check(cli: Cli) -> None:
    cli.config.write_text(f'{LOCAL}[clients.a]\nkey_env = "NO_SUCH_KEY"\n')
    is_root = os.geteuid() == 0
    found = await findings(cli, 78 if is_root else None)
    (keys,) = (each for each in found if each["what"] == "keys")
    assert keys["level"] == ("problem" if is_root else "warning")
    assert "NO_SUCH_KEY" in keys["text"]


async def test_a_card_without_devices_is_a_problem(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this host has the devices")
    for name, value in StubNvml(tmp_path).environ.items():
        monkeypatch.setenv(name, value)
    found = [each for each in await findings(cli, 1) if each["group"] == "GPU"]
    assert [(each["level"], each["what"]) for each in found][:3] == [
        ("ok", "GPU 0"),
        ("ok", "GPU 1"),
        ("problem", "devices"),
    ]


# --- what this user may not see ----------------------------------------------------------


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_what_this_user_may_not_read_is_said_and_is_no_problem(cli: Cli) -> None:
    cli.config.chmod(0)
    (found,) = (each for each in await findings(cli) if each["group"] == "configuration")
    assert (found["level"], found["mend"]) == ("warning", "`sudo llm-supervisor doctor`")


@pytest.mark.parametrize(("uid", "level"), [(0, "problem"), (1000, "warning")])
def test_keys_that_this_user_cannot_see_are_no_mistake(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, uid: int, level: str
) -> None:
    cli.config.write_text(f'{LOCAL}[clients.a]\nkey_env = "NO_SUCH_KEY"\n')
    monkeypatch.setattr("os.geteuid", lambda: uid)
    found = configuration.read_configuration(cli.config, is_installed=False)
    assert [each.level for each in found.findings] == [level]
    assert found.is_invalid == (uid == 0)
    assert found.config is not None


def test_a_key_that_one_model_elsewhere_lacks_is_no_mistake_of_the_configuration(cli: Cli) -> None:
    remote = '[models.grok]\nengine = "remote"\nurl = "https://api.x.ai/v1"\nkey_file = "nowhere"\n'
    cli.config.write_text(LOCAL + remote)
    found = configuration.read_configuration(cli.config, is_installed=False)
    [lacks] = found.findings
    assert "models.grok: its key_file leads to no key" in lacks.text
    assert not found.is_invalid


def test_a_credential_of_the_service_is_for_nobody_else_to_see(cli: Cli) -> None:
    cli.config.write_text(f'{LOCAL}[clients.a]\nkey_credential = "a"\n')
    found = configuration.read_configuration(cli.config, is_installed=False)
    assert [each.level for each in found.findings] == ["warning"]
    assert not found.is_invalid


def test_a_file_that_may_not_be_read_leaves_the_configuration_unknown(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", refuse)
    found = configuration.read_configuration(cli.config, is_installed=False)
    assert (found.config, found.is_invalid) == (None, False)
    assert [(each.level, each.mend) for each in found.findings] == [
        ("warning", "`sudo llm-supervisor doctor`")
    ]


def refuse(path: Path, *_: Any, **__: Any) -> str:
    raise PermissionError(13, "Permission denied", str(path))


# --- time limits ----------------------------------------------------------


def test_a_command_that_hangs_is_left_behind() -> None:
    began = time.monotonic()
    with pytest.raises(NotTold, match=r"^sh does not answer within 0\.2 s$"):
        output("sh", "-c", "trap '' TERM; sleep 60 & wait", limit_s=0.2)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("no-such-command",), "no-such-command cannot be run (No such file or directory)"),
        (("sh", "-c", "echo no bus >&2; exit 1"), "sh says: no bus"),
        (("sh", "-c", "exit 3"), "sh failed with exit code 3"),
    ],
)
def test_a_command_that_fails_says_why(command: tuple[str, ...], why: str) -> None:
    with pytest.raises(NotTold) as caught:
        output(*command)
    assert str(caught.value) == why


def test_a_call_that_hangs_is_left_behind_and_one_that_fails_says_so() -> None:
    released = threading.Event()
    with pytest.raises(NotTold, match="the disk does not answer within"):
        Call(released.wait).within(0.05, "the disk")
    released.set()
    assert Call(lambda: 7).within(5, "it") == 7
    with pytest.raises(FileNotFoundError):
        Call(lambda: Path("/no/such/file").stat()).within(5, "it")


def test_a_disk_that_hangs_is_a_problem_and_the_rest_is_told(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(examined_host, "DISK_S", 0.05)
    monkeypatch.setattr(examined_host, "_read_place", lambda name, path: released.wait())
    config = load(cli.config)
    found = see_host(config, config.paths, units._this_user(), None, gpus=0, is_wsl=False)
    released.set()
    assert all("does not answer within" in place.silent for place in found.places)
    assert found.memory_bytes


# --- WSL ----------------------------------------------------------


@pytest.fixture
def windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that looks like WSL2: its kernel, and the profiles of Windows' users."""
    files = {
        "/proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2\n",
        "/proc/1/comm": "systemd\n",
        "/etc/wsl.conf": "[boot]\nSystemd = True\n",
    }
    monkeypatch.setattr(wsl, "text", files.__getitem__)
    monkeypatch.setattr(wsl, "output", lambda *_: "mirrored\n")
    monkeypatch.setattr(wsl, "PROFILES", tmp_path / "Users")
    (tmp_path / "Users" / "ann").mkdir(parents=True)
    return tmp_path / "Users"


def seen() -> Wsl:
    found = see_wsl()
    assert found is not None
    return found


def test_wsl_is_seen_with_its_settings(windows: Path) -> None:
    assert seen().wslconfig == {}
    lines = (
        "\ufeff[WSL2]",
        "networkingMode = mirrored",
        "vmIdleTimeout=-1",
        "[General]",
        "instanceIdleTimeout=-1",
    )
    (windows / "ann" / ".wslconfig").write_text("\r\n".join(lines), "utf-8")
    assert seen().wslconfig == {
        "wsl2.networkingmode": "mirrored",
        "wsl2.vmidletimeout": "-1",
        "general.instanceidletimeout": "-1",
    }
    assert (seen().version, seen().init, seen().is_systemd_set, seen().networking) == (
        2,
        "systemd",
        True,
        "mirrored",
    )


def test_settings_that_are_no_settings_are_none_at_all(windows: Path) -> None:
    (windows / "ann" / ".wslconfig").write_text("no section = 1\n\x00")
    assert seen().wslconfig == {}


def test_whose_settings_count_cannot_be_told_of_two_users(windows: Path) -> None:
    for name in ("ann", "bob"):
        (windows / name).mkdir(exist_ok=True)
        (windows / name / ".wslconfig").touch()
    assert seen().wslconfig is None


def test_settings_behind_a_disk_that_is_not_mounted_are_unknown(windows: Path) -> None:
    (windows / "ann").rmdir()
    windows.rmdir()
    assert seen().wslconfig is None


@pytest.mark.parametrize(("kernel", "version"), [("4.4.0-19041-Microsoft\n", 1), ("6.6.87-microsoft-x\n", 2)])
def test_wsl1_is_told_by_its_kernel(
    windows: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, version: int
) -> None:
    monkeypatch.setattr(wsl, "text", lambda path: kernel if "osrelease" in path else "")
    assert seen().version == version


def test_a_host_that_is_no_wsl_is_none(windows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsl, "text", lambda _: "6.1.0-26-amd64\n")
    assert see_wsl() is None


# --- firewalls ----------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ({}, ("", "")),
        ({"ufw status": "Status: inactive"}, ("", "")),
        ({"ufw status": "Status: active\n22 ALLOW"}, ("ufw", "Status: active\n22 ALLOW")),
        ({"ufw.conf": "ENABLED=yes"}, ("ufw", None)),
        ({"ufw status": "Status: inactive", "ufw.conf": "ENABLED=yes"}, ("", "")),
        ({"firewall-cmd --state": "running\n"}, ("firewalld", None)),
        (
            {"firewall-cmd --state": "running\n", "firewall-cmd --list-all": "ports: "},
            ("firewalld", "ports: "),
        ),
        ({"firewall-cmd --state": Silent("")}, ("firewalld", None)),
        ({"nft": "/sbin/nft", "nft list": "hook input"}, ("nftables", "hook input")),
        ({"nft": "/sbin/nft", "nft list": "hook forward"}, ("", "hook forward")),
        ({"nft": "/sbin/nft"}, ("", None)),
    ],
)
def test_which_firewall_is_on(
    monkeypatch: pytest.MonkeyPatch, says: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    def output(name: str, word: str, *_: str) -> str:
        said: object = says.get(f"{name} {word}", NotTold("it is not there, or this is not root"))
        if isinstance(said, NotTold):
            raise said
        return str(said)

    monkeypatch.setattr(network, "output", output)
    monkeypatch.setattr(network, "text", lambda path: says.get(Path(path).name, ""))
    monkeypatch.setattr("shutil.which", lambda name, path: says.get(name))
    assert network._firewall() == expected


# --- ports, the hub, systemctl ----------------------------------------------------------


def test_only_ports_that_others_are_to_reach_are_asked_of_the_firewall() -> None:
    listen = [Address("0.0.0.0", 1), Address("127.0.0.1", 2), Address("::1", 3), Address("::", 4)]
    assert open_ports([*listen, Address(path=Path("/run/x.sock"))]) == [1, 4]
    shown = {"Listen": "[::]:8000 (Stream) 127.0.0.1:8001 (Stream) [::1]:8002 (Stream) /run/x (Stream)"}
    assert units.ports_of(shown) == [8000]


def test_the_groups_that_a_drop_in_adds_are_the_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "config_file", lambda _: units.DEFAULT_FILE)
    shown = {"User": "daemon", "SupplementaryGroups": "video nobody-knows"}
    assert grp.getgrnam("video").gr_gid in units.user_of(Units(service=shown), None).gids


def test_what_systemctl_shows_is_taken_apart() -> None:
    service = "Id=a.service\nUser=llm\nEnvironment=A=1\n"
    door = "Id=a.socket\nListen=[::]:1 (Stream)\nListen=[::]:2 (Stream)\n"
    assert units._blocks(f"{service}\n{door}") == {
        "a.service": {"Id": "a.service", "User": "llm", "Environment": "A=1"},
        "a.socket": {"Id": "a.socket", "Listen": "[::]:1 (Stream) [::]:2 (Stream)"},
    }


def test_who_holds_a_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"(pid {os.getpid()})" in units._holder(port)
    assert units._holder(port) == ""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[http.server.BaseHTTPRequestHandler]]:
    """A hub on this machine; its class has the status that it answers with."""

    class Hub(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "complaint"), [(200, ""), (401, ""), (404, ""), (403, "HTTP 403"), (503, "HTTP 503")]
)
def test_a_hub_that_answers_at_all_is_there(hub: Any, status: int, complaint: str) -> None:
    hub.status = status
    assert see_network((), ("a",), is_service=False).hub_complaint == complaint
    assert see_network((), (), is_service=False).hub == ""


def test_a_hub_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "HUB_S", 0.2)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert see_network((), ("a",), is_service=False).hub_complaint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert see_network((), ("a",), is_service=False).hub_complaint == "HF_HUB_OFFLINE is set"
