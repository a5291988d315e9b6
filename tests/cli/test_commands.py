"""Commands as a person types them, against a real gateway behind the control socket."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from supervisord_llm import __version__
from supervisord_llm.config.problem import Problem
from supervisord_llm.core.routes.route import Route
from supervisord_llm.errors import LaunchError
from tests.cli.conftest import Cli, House

# --- drive ----------------------------------------------------------


async def test_start_status_stop(cli: Cli, house: House) -> None:
    started = await cli("start", "coder3b")
    assert (started.code, started.out, started.err) == (0, "coder: ready\n", "")

    status = await cli("status")
    assert status.code == 0
    head, _, header, coder, chat, _, gpu, unknown = status.out.splitlines()
    assert head.startswith(f"llm-supervisor {__version__}, up ")
    assert head.endswith("1 of 2 models ready")
    assert header.split() == ["MODEL", "STATE", "GPU", "IN", "FLIGHT", "WAITING", "UP", "IDLE"]
    assert coder.split()[:5] == ["coder", "ready", "0", "0", "0"]
    assert chat.split() == ["chat", "stopped", "-", "0", "0", "-", "-"]
    assert gpu.startswith("GPU 0  ")
    assert gpu.endswith("coder")
    assert unknown == "GPU figures: unknown, NVML does not answer"

    stopped = await cli("stop", "coder")
    assert (stopped.code, stopped.out) == (0, "coder: stopped\n")


async def test_sleep_wake_switch(cli: Cli, house: House) -> None:
    await cli("start", "coder")
    assert (await cli("sleep", "coder")).out == "coder: sleeping\n"
    assert (await cli("status")).out.splitlines()[3].split()[:2] == ["coder", "sleeping"]
    assert (await cli("wake", "coder3b")).out == "coder: ready\n"
    assert house.launcher.engines[0].naps == ["sleep 1", "wake 1"]
    switched = await cli("switch", "chat")
    assert (switched.code, switched.out) == (0, "chat: ready\n")
    assert json.loads((await cli("status", "--json")).out)["models"]["coder"]["state"] in (
        "stopping",
        "stopped",
    )


async def test_orders_to_a_route(cli: Cli, house: House) -> None:
    both = Route(name="both", members=("chat", "coder"))
    house.gateway.configure(replace(house.gateway.settings.config, routes={"both": both}))
    assert (await cli("start", "both")).out == "chat: ready\n"
    status = (await cli("status")).out
    assert re.search(r"^both +ready +least-busy +chat 0, coder 0$", status, re.MULTILINE)
    stopped = await cli("stop", "both")
    assert (stopped.code, stopped.out) == (0, "chat: stopped\ncoder: stopped\n")


async def test_a_model_that_cannot_sleep_says_what_to_do(cli: Cli, house: House) -> None:
    done = await cli("sleep", "chat")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("cannot put chat to sleep: ")


async def test_restart_is_a_new_life(cli: Cli, house: House) -> None:
    await cli("start", "coder")
    assert (await cli("restart", "coder")).out == "coder: ready\n"
    assert len(house.launcher.engines) == 2


async def test_a_start_that_fails_says_why_and_exits_1(cli: Cli, house: House) -> None:
    house.launcher.error = LaunchError("no such executable")
    done = await cli("start", "coder")
    assert (done.code, done.out) == (1, "")
    assert "cannot start coder: no such executable" in done.err
    assert "no such executable" in (await cli("status")).out


async def test_an_unknown_model_is_answered_with_the_near_one(cli: Cli, house: House) -> None:
    for command in (("start", "codr"), ("logs", "codr"), ("pull", "codr")):
        done = await cli(*command)
        assert done.code == 1
        assert "codr" in done.err
        assert "coder" in done.err


async def test_reload_tells_what_changed(cli: Cli, house: House) -> None:
    done = await cli("reload")
    assert (done.code, done.out) == (0, "added: chat\n")


async def test_reload_of_a_wrong_file_prints_every_problem_and_exits_78(cli: Cli, house: House) -> None:
    cli.config.write_text("this is not TOML\n[paths]")  # the socket must be found all the same
    cli.config.with_name("conf.d").mkdir()
    (cli.folder / "conf.d" / "paths.toml").write_text('[paths]\nruntime = "run"\n')
    house.problems = [Problem(cli.config, 1, "a", "cannot be"), Problem(cli.config, 2, "b", "cannot be")]
    done = await cli("reload")
    assert done.code == 78
    for problem in house.problems:
        assert str(problem) in done.err.splitlines()


async def test_a_file_that_is_not_toml_does_not_leave_one_in_the_dark(cli: Cli, house: House) -> None:
    """The daemon runs where [paths] says, which nobody can read any more."""
    cli.config.write_text(cli.config.read_text() + "[models.new\n")
    line = len(cli.config.read_text().splitlines())
    done = await cli("reload")
    assert (done.code, done.out) == (78, "")
    assert done.err.startswith(f"{cli.config}:{line}: cannot read it as TOML: ")
    done = await cli("status")
    assert done.code == 1
    first, second = done.err.splitlines()
    assert first.startswith(f"cannot tell [paths]: {cli.config} is not TOML")
    assert second.startswith("cannot reach the daemon at ")


# --- look ----------------------------------------------------------


async def test_status_as_json_is_what_the_daemon_says(cli: Cli, house: House) -> None:
    found = json.loads((await cli("status", "--json")).out)
    assert list(found["models"]) == ["coder", "chat"]
    assert found["pid"] == os.getpid()


async def test_watch_goes_on_until_ctrl_c_and_exits_130(cli: Cli, house: House) -> None:
    process = await cli.start("status", "--watch", "--json")
    assert process.stdout is not None
    for _ in range(2):
        assert "models" in json.loads(await asyncio.wait_for(process.stdout.readline(), 10))
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, err) == (130, b"")


async def test_logs_prints_the_last_lines(cli: Cli, house: House) -> None:
    assert (await cli("logs", "coder")).out == "".join(f"line {number}\n" for number in range(5))
    assert (await cli("logs", "coder", "-n", "2", "--json")).out == '{"line": "line 3"}\n{"line": "line 4"}\n'


async def test_logs_follow_goes_on_with_what_comes(cli: Cli, house: House) -> None:
    process = await cli.start("logs", "coder", "-f", "-n", "1")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"line 4\n"
    await house.tail.coming.put("one more \x1b[1mline")
    assert await process.stdout.readline() == b"one more \x1b[1mline\n"
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 130


async def test_a_reader_that_leaves_ends_the_command_quietly(cli: Cli, house: House) -> None:
    command = f"{sys.executable} -m supervisord_llm logs coder -f --config {cli.config} | head -n 1"
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}", stdout=-1, stderr=-1
    )
    await asyncio.sleep(0)
    feeding = asyncio.ensure_future(_feed(house))
    out, err = await asyncio.wait_for(shell.communicate(), 20)
    feeding.cancel()
    assert (out, err) == (b"line 0\n141\n", b"")


async def _feed(house: House) -> None:
    """Lines until nobody listens any more: only a write tells a command that its reader is gone."""
    while True:
        await house.tail.coming.put("more")
        await asyncio.sleep(0.05)


async def test_events_are_told_with_their_reasons(cli: Cli, house: House) -> None:
    await cli("start", "coder")
    done = await cli("events")
    assert done.code == 0
    assert re.search(r"^\d{4}-\d\d-\d\dT\S+Z  starts coder on GPU 0\b", done.out, re.MULTILINE)
    last = json.loads((await cli("events", "--json", "-n", "1")).out)
    assert set(last) == {"at", "model", "text", "is_bad"}


async def test_events_follow_goes_on_with_those_to_come(cli: Cli, house: House) -> None:
    process = await cli.start("events", "-f", "-n", "0")
    assert process.stdout is not None
    waiting = asyncio.ensure_future(process.stdout.readline())
    while not waiting.done():  # the follower may not be there yet: make news until it is
        house.runtime.events.add("chat", "something happened")
        await asyncio.sleep(0.02)
    assert waiting.result().decode().endswith("chat: something happened\n")
    process.send_signal(signal.SIGTERM)
    await process.wait()


# --- without a daemon ----------------------------------------------------------


@pytest.mark.parametrize(
    "command", [("status",), ("start", "coder"), ("logs", "coder"), ("events",), ("reload",)]
)
async def test_no_daemon_is_said_with_the_way_to_start_one(cli: Cli, command: tuple[str, ...]) -> None:
    done = await cli(*command)
    assert (done.code, done.out) == (1, "")
    assert str(cli.folder / "run" / "control.sock") in done.err
    assert "is it running? start it with `systemctl start llm-supervisor`" in done.err


async def test_config_is_taken_before_and_after_the_command(cli: Cli, tmp_path: Path) -> None:
    other = tmp_path / "other" / "config.toml"
    for place in (("--config", str(other), "status"), ("status", "--config", str(other))):
        other.parent.mkdir(exist_ok=True)
        other.write_text('[paths]\nruntime = "elsewhere"\n')
        assert str(tmp_path / "other" / "elsewhere" / "control.sock") in (await cli(*place)).err


async def test_an_invalid_configuration_is_78_with_all_problems(cli: Cli) -> None:
    cli.config.write_text("[server]\nlisen = 1\ndefault_model = 5\n")
    for command in ("check", "serve", "pull"):
        done = await cli(command, *(["--all"] if command == "pull" else []))
        assert done.code == 78, command
        assert len(done.err.splitlines()) == 2
        assert 'did you mean "listen"?' in done.err
    as_json = await cli("check", "--json")
    assert as_json.code == 78
    assert len(json.loads(as_json.out)["problems"]) == 2


async def test_wrong_usage_is_2(cli: Cli) -> None:
    for command in (
        (),
        ("strat",),
        ("start",),
        ("pull",),
        ("pull", "coder", "--all"),
        ("logs", "x", "-n", "-1"),
    ):
        done = await cli(*command)
        assert (done.code, done.out) == (2, ""), command


async def test_schema_and_version(cli: Cli) -> None:
    assert "properties" in json.loads((await cli("schema")).out)
    assert (await cli("--version")).out == f"llm-supervisor {__version__}\n"


def test_a_glance_imports_nothing_slow(cli: Cli) -> None:
    """`status` is to answer within 150 ms; importing any of these takes a third of that and more."""
    slow = {"asyncio", "aiohttp", "ssl", "email", "dotenv", "pynvml", "supervisord_llm.config"}
    program = (
        "import sys; from supervisord_llm.cli.main import main; main(['status']); "
        f"print({slow} & set(sys.modules))"
    )
    environ = {**os.environ, "LLM_SUPERVISOR_CONFIG": str(cli.config)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_a_daemon_that_goes_away_midway_is_a_sentence(cli: Cli) -> None:
    (cli.folder / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(cli.folder / "run" / "control.sock"))
        listener.listen()
        environ = {**os.environ, "LLM_SUPERVISOR_CONFIG": str(cli.config)}
        command = [sys.executable, "-m", "supervisord_llm", "status"]
        with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b'HTTP/1.0 200 OK\r\n\r\n{"models": ')
            _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err.startswith("cannot read the answer of the daemon")
