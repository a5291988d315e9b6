"""What uv draws on a terminal, as progress and as errors."""

import asyncio
import os
from pathlib import Path

import pytest

from supervisord_llm.config.model import Venv
from supervisord_llm.provision import uv
from supervisord_llm.provision.uv import Output, environment, failure
from supervisord_llm.runtime.ports import Progress
from tests.provision.wheels import Reports

FRAME = (
    "\x1b[2A\r\x1b[2K\x1b[37m⠙\x1b[0m \x1b[2mPreparing packages...\x1b[0m (0/2)    "
    "\x1b[2mnumpy \x1b[0m \x1b[32m-----\x1b[30m\x1b[2m---\x1b[0m\x1b[0m {numpy} MiB/20.00 MiB   "
    "\x1b[2mtorch \x1b[0m \x1b[32m-----\x1b[30m\x1b[2m---\x1b[0m\x1b[0m {torch} MiB/180.00 MiB   "
)


def test_bars_become_the_fraction_of_all_that_is_known() -> None:
    output = Output()
    assert output.feed("\x1b[37m⠋\x1b[0m \x1b[2mResolving dependencies...\x1b[0m") == Progress("resolving")
    assert output.feed(FRAME.format(numpy="10.00", torch="30.00")) == Progress("downloading torch", 0.2)
    assert output.feed(FRAME.format(numpy="20.00", torch="80.00")) == Progress("downloading torch", 0.5)


def test_an_escape_sequence_cut_in_two_is_understood() -> None:
    output = Output()
    text = FRAME.format(numpy="10.00", torch="30.00")
    for at in range(1, len(text)):
        output = Output()
        output.feed(text[:at])
        assert output.feed(text[at:]) == Progress("downloading torch", 0.2), at


def test_the_phases_after_the_download() -> None:
    output = Output()
    phases = [
        output.feed(text)
        for text in ("\x1b[2mPrepared \x1b[1m2 packages\x1b[0m in 1s\r\n", "Installed 2 packages in 3ms\r\n")
    ]
    assert phases == [Progress("installing"), Progress("compiling bytecode")]


def test_an_error_keeps_its_causes_and_loses_the_drawing() -> None:
    output = Output()
    output.feed(FRAME.format(numpy="1.00", torch="2.00") + "\r\x1b[2K\r\n")
    output.feed(
        "\x1b[1m\x1b[31merror\x1b[39m\x1b[0m: No solution found\r\n  \x1b[31mcause\x1b[39m: no such torch\r\n"
    )
    said = str(failure(tuple(output.lines)))
    assert said.startswith("uv failed: error: No solution found cause: no such torch;")


@pytest.mark.parametrize(
    ("line", "said", "temporary"),
    [
        (
            "error: cannot write: No space left on device (os error 28)",
            "no space is left on the disk",
            True,
        ),
        (
            "error: error sending request for url (https://i/x/)",
            "a package index cannot be reached",
            True,
        ),
        ("error: No interpreter found for Python 3.99", "install it, or set python in the venv", False),
        ("error: something else", "uv failed: error: something else", False),
    ],
)
def test_what_a_failure_means(line: str, said: str, temporary: bool) -> None:
    problem = failure(("Using Python 3.11", line))
    assert said in str(problem)
    assert problem.temporary is temporary


def test_uv_sees_no_secret_of_the_daemon() -> None:
    own = {"PATH": "/bin", "WEBUI_API_KEY": "s", "HF_TOKEN": "s", "https_proxy": "p", "UV_OFFLINE": "1"}
    own["PIP_CONFIG_FILE"] = os.devnull
    seen = environment(own, Venv(), Path("/cache"), Path("/pythons"))
    assert "s" not in seen.values()
    assert seen["https_proxy"] == "p"
    assert seen["UV_OFFLINE"] == "1"
    assert seen["UV_CACHE_DIR"] == "/cache"


def test_the_venvs_own_index_wins_over_the_hosts() -> None:
    own = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "https://host",
        "PIP_EXTRA_INDEX_URL": "https://more",
    }
    venv = Venv(index_url="https://own", extra_index_urls=("https://extra",), find_links=("/wheels",))
    seen = environment(own, venv, Path("/cache"), Path("/pythons"))
    assert seen["UV_DEFAULT_INDEX"] == "https://own"
    assert seen["UV_INDEX"] == "https://extra https://more"
    assert seen["UV_FIND_LINKS"] == "/wheels"


def stand_in(directory: Path, script: str) -> str:
    """An executable that stands for uv."""
    file = directory / "uv"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("script", "phases"),
    [
        ("echo 'Installed 2 packages'; sleep 0.5", {"compiling bytecode", ""}),
        ("echo Resolving dependencies; sleep 0.5", {"resolving"}),
        ("echo Resolving dependencies; for i in 1 2 3; do sleep 0.2; echo .; done", {"resolving", ""}),
    ],
    ids=["silent-here", "silent-on-the-network", "drawing"],
)
async def test_a_working_uv_shows_that_it_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, phases: set[str]
) -> None:
    """Without this the runtime would take minutes of compiling bytecode for a stall."""
    monkeypatch.setattr(uv, "SIGN_S", 0.1)
    monkeypatch.setattr(uv.uv, "find_uv_bin", lambda: stand_in(tmp_path, script))
    reports = Reports()
    await uv.run([], dict(os.environ), tmp_path, (), reports)
    assert set(reports.phases) == phases
    assert len(reports) < 10


async def test_signs_of_life_are_a_second_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo .; sleep 0.02; done"
    monkeypatch.setattr(uv.uv, "find_uv_bin", lambda: stand_in(tmp_path, script))
    reports = Reports()
    await uv.run([], dict(os.environ), tmp_path, (), reports)
    assert len(reports) <= 1


async def test_cancelling_a_uv_that_has_just_ended_is_a_cancellation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uv.uv, "find_uv_bin", lambda: stand_in(tmp_path, "echo Resolving; exec sleep 600"))
    kill = os.killpg

    def too_late(group: int, number: int) -> None:
        kill(group, number)
        raise ProcessLookupError

    monkeypatch.setattr(os, "killpg", too_late)
    began = asyncio.Event()
    monkeypatch.setattr(Output, "feed", lambda *_: began.set())
    running = asyncio.create_task(uv.run([], dict(os.environ), tmp_path, (), Reports()))
    await asyncio.wait_for(began.wait(), 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
