"""Where the control socket is looked for."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from supervisord_llm.cli import locate
from supervisord_llm.cli.locate import control_socket, not_toml
from supervisord_llm.config import load as loading
from supervisord_llm.config.load import default_paths, load

NO_CONFIG = Path("/nonexistent/config.toml")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HOME": "/home/ann"},
        {"XDG_RUNTIME_DIR": "/run/user/1000", "HOME": "/home/ann"},
        {"RUNTIME_DIRECTORY": "/run/one:/run/two"},
    ],
)
@pytest.mark.parametrize("euid", [0, os.geteuid() or 1000])
def test_the_quick_look_agrees_with_the_daemons_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environ: dict[str, str], euid: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    written = tmp_path / "config.toml"
    for text in ('[paths]\nruntime = "here"\n', '\ufeff[paths]\r\nruntime = "/there"\r\n'):
        written.write_text(text, newline="")
        assert control_socket(written, environ) == load(written, environ).paths.control_socket
    written.write_text("")
    for file in (written, NO_CONFIG):
        assert control_socket(file, environ) == default_paths(environ).control_socket


def test_they_agree_for_the_services_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locate, "SYSTEM_STATE", tmp_path)
    monkeypatch.setattr(loading, "SYSTEM", replace(loading.SYSTEM, state=tmp_path))
    if os.geteuid() == 0:
        os.chown(tmp_path, 1000, -1)
    uid = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert control_socket(NO_CONFIG, {}) == Path("/run/llm-supervisor/control.sock")
    assert control_socket(NO_CONFIG, {}) == default_paths({}).control_socket


def test_the_last_drop_in_wins_and_a_broken_file_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[paths]\nruntime = "one"\n')
    drop_ins = tmp_path / "conf.d"
    drop_ins.mkdir()
    (drop_ins / "10.toml").write_text('[paths]\nruntime = "two"\n')
    (drop_ins / "20.toml").write_text("not TOML [")
    (drop_ins / "30.toml").write_bytes(b"\xff")
    assert control_socket(file, {}) == tmp_path / "two" / "control.sock"


def test_a_file_that_is_not_toml_hides_the_place_unless_another_tells_it(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[paths]\nruntime = "one\n')
    assert not_toml(file, {}) == file
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10.toml").write_text('[paths]\nruntime = "two"\n')
    assert not_toml(file, {}) is None
    assert not_toml(NO_CONFIG, {}) is None


def test_the_variable_names_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[paths]\nruntime = "one"\n')
    assert control_socket(None, {"LLM_SUPERVISOR_CONFIG": str(file)}) == tmp_path / "one" / "control.sock"


def test_without_a_daemon_of_ones_own_the_systems_is_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An ordinary user's own runtime directory is not where systemd's daemon listens."""
    monkeypatch.setattr(locate, "SYSTEM_CONFIG", tmp_path / "config.toml")
    environ = {"RUNTIME_DIRECTORY": str(tmp_path / "mine")}
    assert control_socket(None, environ) == Path("/run/llm-supervisor/control.sock")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "control.sock").touch()
    assert control_socket(None, environ) == tmp_path / "mine" / "control.sock"
