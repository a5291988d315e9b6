"""scripts/quickstart and scripts/bootstrap, without their slow parts."""

import functools
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from supervisord_llm.config.model import Address
from supervisord_llm.errors import ProvisionError
from supervisord_llm.gpu.watcher import look_once
from tests.gpu.nvml import StubNvml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, working in a folder of the test."""
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "scripts" / "quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "FOLDER", tmp_path / ".quickstart")
    monkeypatch.setattr(module, "CONFIG", tmp_path / ".quickstart" / "config.toml")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return module


def test_without_a_hub_a_tiny_model_on_the_loopback_is_configured(
    quickstart: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quickstart.configure(None)
    assert config.server.listen == (Address("127.0.0.1", 8000),)
    assert not config.auth_required
    assert config.server.preload == ()
    model = config.models[config.server.default_model]
    assert (Path(model.source) / "model.safetensors").is_file()
    assert config.paths.state == tmp_path / ".quickstart" / "state"
    said = capsys.readouterr().out
    assert "because HF_HUB_OFFLINE is set" in said
    if not model.gpus:
        assert "third party" in said


def test_a_driver_that_hangs_does_not_hold_up_the_set_up(
    quickstart: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub = StubNvml(tmp_path)
    stub.say("hang")
    for name, value in stub.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(quickstart, "look_once", functools.partial(look_once, 0.5))
    assert quickstart.configure(None).models["chat"].gpus == ()
    assert "NVML does not answer within 0.5 s" in capsys.readouterr().out


def test_an_edited_configuration_is_kept_and_the_port_can_be_changed(quickstart: ModuleType) -> None:
    quickstart.configure(8123)
    text = quickstart.CONFIG.read_text()
    quickstart.CONFIG.write_text(text.replace("[auth]", "# mine\n[auth]"))
    assert quickstart.configure(None).server.listen[0].port == 8123
    assert quickstart.configure(8124).server.listen[0].port == 8124
    assert "# mine" in quickstart.CONFIG.read_text()


def test_a_taken_port_is_said_before_anything_slow_happens(quickstart: ModuleType) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ProvisionError, match=rf"cannot listen on 127\.0\.0\.1:{port} .*--port {port + 1}"
        ):
            quickstart.require_free(Address("127.0.0.1", port))
    quickstart.require_free(Address("127.0.0.1", port))


def test_sockets_are_beside_the_rest_or_where_this_user_keeps_them(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No directory in /tmp is written into the file: after a reboot another user could make it first."""
    for folder in (Path("/short"), Path("/long" * 30)):
        monkeypatch.setattr(quickstart, "FOLDER", folder)
        runtime = quickstart.choose_paths().get("runtime")
        assert runtime == ("/short/run" if folder == Path("/short") else None)


def test_the_daemon_is_asked_directly_whatever_proxy_is_named(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Address("127.0.0.1", server.getsockname()[1])
        asked = threading.Thread(target=answer_once, args=(server,))
        asked.start()
        assert quickstart.answers(address)
        asked.join(5)
    assert not quickstart.answers(address)


def answer_once(server: socket.socket) -> None:
    server.settimeout(5)
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def test_the_script_becomes_python_so_that_its_age_counts_the_set_up(checkout: Path) -> None:
    """In whatever locale: no time passes through the shell."""
    (checkout / "scripts" / "bootstrap").write_text("#!/bin/sh\n")
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho $$\n")
    python.chmod(0o755)
    with subprocess.Popen([checkout / "scripts" / "quickstart"], stdout=subprocess.PIPE, text=True) as script:
        told, _ = script.communicate(timeout=10)
    assert int(told) == script.pid


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of a checkout as the bootstrap needs."""
    for name in ("scripts", "supervisord_llm"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "nothing"\nversion = "1"\n')
    return tmp_path


def bootstrap(checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    command = [checkout / "scripts" / "bootstrap"]
    return subprocess.run(command, env=environ | variables, capture_output=True, text=True, check=False)


def tools(directory: Path) -> Path:
    """A PATH with what the shell part of the bootstrap needs, and nothing else."""
    directory.mkdir()
    for name in ("bash", "dirname", "env"):
        (directory / name).symlink_to(shutil.which(name) or "")
    return directory


def test_an_old_python_is_refused_with_a_way_out(checkout: Path, tmp_path: Path) -> None:
    path = tools(tmp_path / "bin")
    old = path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = bootstrap(checkout, PATH=str(path))
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed and Python 3.9.2 is here; install" in done.stderr


def test_an_unreachable_index_is_refused_with_a_way_out(checkout: Path, tmp_path: Path) -> None:
    """With no uv on PATH, and an index that does not answer."""
    (tmp_path / "home").mkdir()
    path = tools(tmp_path / "bin")
    (path / "python3").symlink_to(Path(sys.executable).resolve())
    done = bootstrap(
        checkout,
        PATH=str(path),
        HOME=str(tmp_path / "home"),
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
    )
    assert done.returncode == 1
    assert "cannot get uv" in done.stderr
    assert "check the network, or name a reachable package index" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_finished_set_up_is_left_alone(checkout: Path, tmp_path: Path) -> None:
    """The stamp says that all is there: an index that does not answer is not even asked."""
    venv = checkout / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    code = "import bootstrap; print(bootstrap.fingerprint())"
    fingerprint = subprocess.check_output(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(checkout / "scripts")}, text=True
    ).strip()
    (venv / "llm-supervisor.stamp").write_text(json.dumps({"fingerprint": fingerprint, "extras": ["test"]}))
    done = bootstrap(checkout, PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (checkout / "pyproject.toml").write_text('[project]\nname = "nothing"\nversion = "2"\n')
    done = bootstrap(checkout, PIP_INDEX_URL="http://127.0.0.1:9/simple", UV_HTTP_RETRIES="0")
    assert "setting up" in done.stdout
