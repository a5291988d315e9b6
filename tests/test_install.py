"""scripts/install into a directory: no root, no systemd. tests/e2e/test_systemd.py has the rest."""

import configparser
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def install(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [ROOT / "scripts/install", *words], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything installed in it, under another prefix."""
    destdir = tmp_path_factory.mktemp("staged")
    done = install("--destdir", destdir, "--prefix", "/srv/llm")
    assert done.returncode == 0, done.stderr
    return destdir


def test_the_program_runs_from_the_prefix(staged: Path) -> None:
    python, script = staged / "srv/llm/venv/bin/python", staged / "srv/llm/venv/bin/llm-supervisor"
    assert script.read_text().startswith(
        f"#!/srv/llm/builds/{(staged / 'srv/llm/venv').readlink().name}/bin/python"
    )
    done = subprocess.run([python, script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("llm-supervisor ")
    assert str((staged / "usr/local/bin/llm-supervisor").readlink()) == "/srv/llm/venv/bin/llm-supervisor"


def test_the_man_page_and_the_completions_know_the_commands(staged: Path) -> None:
    share = staged / "usr/local/share"
    assert "\n.B status [\\-\\-json] [\\-\\-watch]\n" in (share / "man/man1/llm-supervisor.1").read_text()
    completions = share / "bash-completion/completions/llm-supervisor"
    ask = (
        'source "$0"; COMP_WORDS=(llm-supervisor "$@"); COMP_CWORD=$#; _llm_supervisor; echo ${COMPREPLY[@]}'
    )
    for typed, expected in ((["st"], "status start stop\n"), (["logs", "--f"], "--follow\n")):
        done = subprocess.run(
            ["bash", "-c", ask, completions, *typed], capture_output=True, text=True, check=True
        )
        assert done.stdout == expected
    for shell in ("zsh/site-functions/_llm-supervisor", "fish/vendor_completions.d/llm-supervisor.fish"):
        assert "status" in (share / shell).read_text()


def test_a_drop_in_opens_the_network_for_models_elsewhere_and_nothing_else(staged: Path) -> None:
    """Downloads stay with the units that fetch, and engines get namespaces of their own."""
    drop_ins = staged / "srv/llm/drop-ins"
    names = {file.name for file in drop_ins.iterdir()}
    assert names == {"internet.conf", "private-network.conf", "remote.conf"}
    remote = configparser.RawConfigParser(strict=False)
    remote.optionxform = str  # type: ignore[assignment, method-assign]
    remote.read(drop_ins / "remote.conf")
    assert dict(remote["Service"]) == {
        "IPAddressAllow": "any",
        "RestrictNamespaces": "user net",
        "UnsetEnvironment": "LLM_SUPERVISOR_NETWORK",
    }


def test_nothing_names_the_default_prefix_or_the_staging_directory(staged: Path) -> None:
    text = [
        file
        for file in staged.rglob("*")
        if file.is_file() and file.suffix in (".service", ".socket", ".conf", "")
    ]
    for file in (*text, staged / "srv/llm/docs/systemd.md"):
        if "builds" not in file.parts or file.parent.name == "bin":
            content = file.read_bytes()
            assert b"/opt/llm-supervisor" not in content, file
            if content.startswith(b"#!"):
                assert str(staged).encode() not in content.splitlines()[0], file


def test_again_it_builds_nothing_and_keeps_what_people_wrote(staged: Path) -> None:
    config = staged / "etc/llm-supervisor/config.toml"
    config.write_text("# mine\n")
    before = sorted((staged / "srv/llm/builds").iterdir())
    done = install("--destdir", staged)  # the prefix is that of the units
    assert done.returncode == 0, done.stderr
    assert "builds" not in done.stdout
    assert "  llm-supervisor upgrade " in done.stdout
    assert sorted((staged / "srv/llm/builds").iterdir()) == before
    assert config.read_text() == "# mine\n"
    (staged / "etc/systemd/system/llm-supervisor.socket").write_text("# of another version\n")
    assert "  systemctl restart llm-supervisor " in install("--destdir", staged).stdout
    assert not (staged / "opt").exists()


def test_uninstall_keeps_the_configuration_and_purge_does_not(staged: Path) -> None:
    stranger = staged / "srv/llm/libexec/mine"
    stranger.touch()
    done = install("--destdir", staged, "--uninstall")
    assert done.returncode == 0, done.stderr
    left = {
        str(path.relative_to(staged)) for path in staged.rglob("*") if not path.is_dir() or path.is_symlink()
    }
    assert left == {
        "srv/llm/libexec/mine",
        "etc/llm-supervisor/config.toml",
        "etc/llm-supervisor/llm-supervisor.env",
        "etc/llm-supervisor/fetch.env",
    }
    assert install("--destdir", staged, "--uninstall", "--purge").returncode == 0
    assert not (staged / "etc/llm-supervisor").exists()
    assert stranger.exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--prefix", "/home/me/llm"], "the service has no /home"),
        (["--prefix", "somewhere"], "give --prefix an absolute path"),
        (["--purge"], "--purge goes with --uninstall"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, words: list[str], complaint: str) -> None:
    done = install("--destdir", tmp_path, *words)
    assert done.returncode in (1, 2)
    assert complaint in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_both_units_that_fetch_run_in_the_same_sandbox() -> None:
    by_hand, for_requests = (
        (ROOT / "units" / f"llm-supervisor-fetch{kind}.service").read_text().partition("User=")[2]
        for kind in ("", "@")
    )
    assert "ProtectSystem=strict" in by_hand
    assert by_hand == for_requests


def test_every_dependency_has_a_pinned_version() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = (ROOT / "scripts/requirements.txt").read_text().splitlines()
    names = {line.partition("==")[0] for line in pinned if "==" in line}
    assert {each.partition(">=")[0] for each in needed} <= names
