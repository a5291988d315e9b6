"""pip's configuration, as pip reads it and as uv is told."""

import os
from pathlib import Path

import pytest

from supervisord_llm.provision import pip_config
from supervisord_llm.provision.pip_config import DEFAULT_INDEX, PipConfig, read, uv_arguments, uv_environment


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without what this machine's own /etc and Python prefix say."""
    true_files = pip_config.config_files
    monkeypatch.setattr(
        pip_config,
        "config_files",
        lambda environ: [file for file in true_files(environ) if file.is_relative_to(tmp_path)],
    )


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def home(tmp_path: Path, **variables: str) -> dict[str, str]:
    return {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path / "xdg"), **variables}


def test_nothing_configured_is_pips_default(tmp_path: Path) -> None:
    assert read(home(tmp_path)) == PipConfig()
    assert read(home(tmp_path)).index_urls == (DEFAULT_INDEX,)
    assert uv_environment(PipConfig(), {}) == {}


@pytest.mark.parametrize(
    "place", ["xdg/pip/pip.conf", ".pip/pip.conf", ".config/pip/pip.conf"], ids=["machine", "legacy", "user"]
)
def test_every_place_of_pip_is_read(tmp_path: Path, place: str) -> None:
    write(tmp_path / place, "[global]\nindex-url = https://mirror.example/simple\n")
    assert read(home(tmp_path)).index_url == "https://mirror.example/simple"


def test_the_order_is_machine_user_named_file_variable(tmp_path: Path) -> None:
    environ = home(tmp_path)
    write(tmp_path / "xdg/pip/pip.conf", "[global]\nindex-url = https://machine\n")
    assert read(environ).index_url == "https://machine"
    write(tmp_path / ".config/pip/pip.conf", "[global]\nindex-url = https://user\n")
    assert read(environ).index_url == "https://user"
    environ["PIP_CONFIG_FILE"] = str(write(tmp_path / "named.conf", "[global]\nindex-url = https://named\n"))
    assert read(environ).index_url == "https://named"
    environ["PIP_INDEX_URL"] = "https://variable"
    assert read(environ).index_url == "https://variable"


def test_no_files_are_read_when_the_named_one_is_the_null_device(tmp_path: Path) -> None:
    write(tmp_path / ".config/pip/pip.conf", "[global]\nindex-url = https://user\n")
    assert read(home(tmp_path, PIP_CONFIG_FILE=os.devnull)) == PipConfig()


def test_lists_underscores_and_the_install_section(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    write(
        tmp_path / ".config/pip/pip.conf",
        "[global]\nextra_index_url = https://a\n    https://b\ncert = /etc/ca.pem\n"
        f"find-links = {tmp_path}/wheels {tmp_path}/gone https://links.example\n"
        "[install]\ntrusted-host = a b:8080\nno-index = yes\n",
    )
    assert read(home(tmp_path)) == PipConfig(
        extra_index_urls=("https://a", "https://b"),
        find_links=(f"{tmp_path}/wheels", "https://links.example"),
        trusted_hosts=("a", "b:8080"),
        cert="/etc/ca.pem",
        no_index=True,
    )


def test_a_broken_file_counts_as_absent(tmp_path: Path) -> None:
    write(tmp_path / ".config/pip/pip.conf", "index-url before any section\n")
    assert read(home(tmp_path)) == PipConfig()


def test_uv_is_told_in_its_own_variables() -> None:
    pip = PipConfig("https://i", ("https://a", "file:///b"), ("/w", "/x"), ("h",), "/ca.pem", no_index=True)
    assert uv_environment(pip, {}) == {
        "UV_DEFAULT_INDEX": "https://i",
        "UV_INDEX": "https://a file:///b",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/w,/x",
        "UV_INSECURE_HOST": "h",
        "SSL_CERT_FILE": "/ca.pem",
    }
    assert uv_arguments(pip) == ("--no-index",)


def test_what_uv_is_told_already_stays() -> None:
    pip = PipConfig("https://i", ("https://a",), ("/w",), cert="/ca.pem")
    own = {"UV_INDEX_URL": "https://own", "UV_EXTRA_INDEX_URL": "https://more", "UV_FIND_LINKS": "/own"}
    assert uv_environment(pip, own) == {"SSL_CERT_FILE": "/ca.pem"}
