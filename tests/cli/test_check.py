"""`check`: what it finds out about a host, and its exit code."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from supervisord_llm.cli import host
from supervisord_llm.cli.host import Fact, facts
from supervisord_llm.config.load import load
from supervisord_llm.config.model import Config
from supervisord_llm.gpu.sensor import NO_DRIVER, GpuReading, GpuSeen
from tests.cli.conftest import Cli, House

GIB = 1024**3
CARD = GpuReading((GpuSeen(index=0, uuid="GPU-a", name="Card", total_bytes=24 * GIB, free_bytes=24 * GIB),))
Written = Callable[..., Config]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """A configuration whose [models.m] has these lines."""

    def write(*lines: str, listen: str = "127.0.0.1:0", more: str = "") -> Config:
        model = "\n".join(lines)
        (tmp_path / "config.toml").write_text(
            f'[server]\nlisten = ["{listen}"]\n[auth]\nrequired = false\n{more}\n'
            '[paths]\nstate = "state"\ncache = "cache"\nruntime = "run"\n'
            f'[models.m]\nsource = "org/m"\n{model}\n'
        )
        return load(tmp_path / "config.toml")

    return write


def found(config: Config, reading: GpuReading = CARD, *missing: str, **how: bool) -> list[Fact]:
    return list(
        facts(config, reading, lambda _: list(missing), lambda _: "", is_serving=how.get("is_serving", False))
    )


def bad(config: Config, reading: GpuReading = CARD, *missing: str) -> list[str]:
    return [f"{fact.where}: {fact.text}" for fact in found(config, reading, *missing) if fact.level == "bad"]


def test_nothing_bad_on_a_host_that_has_it_all(written: Written, tmp_path: Path) -> None:
    there = found(written())
    assert {fact.level for fact in there} == {"ok"}
    assert Fact("ok", "gpus.0", "Card, 24.0 GiB, 21.6 GiB of it for engines") in there
    assert Fact("ok", "models.m", "can start") in there
    assert list(tmp_path.iterdir()) == [tmp_path / "config.toml"], "check made something"


def test_without_a_gpu_auto_means_the_cpu_and_is_no_fault(written: Written) -> None:
    without = found(written(), GpuReading(problems=(NO_DRIVER,)))
    assert Fact("hint", "gpus", f'{NO_DRIVER}; gpus = "auto" means CPU here') in without
    assert not [fact for fact in without if fact.level == "bad"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("gpus = [1]", "gpus = [1], but this host has no GPU 1; it has 0 (GPU-a)"),
        ('gpus = ["GPU-b"]', "gpus = ['GPU-b'], but this host has no GPU GPU-b"),
        ('vram = "23GiB"', "it can never fit"),
        ("tensor_parallel = 2", "it takes 2 equal GPUs"),
    ],
)
def test_a_model_that_this_host_can_never_run_is_bad(written: Written, line: str, why: str) -> None:
    (text,) = bad(written(line))
    assert text.startswith("models.m: cannot start m: ")
    assert why in text


def test_a_budget_of_a_gpu_that_is_not_there_is_a_hint(written: Written) -> None:
    config = written(more='[gpus.5]\nbudget = "1GiB"')
    assert Fact("hint", "gpus", "gpus.5 is set, but this host has no GPU 5; it has 0 (GPU-a)") in found(
        config
    )


def test_what_pull_makes_is_a_hint_and_what_only_a_person_can_make_is_bad(written: Written) -> None:
    config = written('venv = { path = "gone" }')
    venv = f"the venv {config.files[0].parent / 'gone'} has no bin/vllm"
    weights = "the weights of org/m are not downloaded"
    assert bad(config, CARD, venv, weights) == [f"models.m: {venv}"]
    assert Fact("hint", "models.m", weights) in found(config, CARD, venv, weights)


def test_a_preflight_that_refuses_is_bad(written: Written) -> None:
    told = list(facts(written(), CARD, lambda _: [], lambda _: "cannot read it", is_serving=False))
    assert Fact("bad", "models.m", "cannot read it") in told
    assert Fact("ok", "models.m", "can start") not in told


def test_a_port_that_another_program_has_is_bad_unless_it_is_our_daemon(written: Written) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        config = written(listen=address)
        (text,) = bad(config)
        assert text.startswith(f"server.listen[0]: cannot listen on {address}: Address already in use by ")
        assert f"(pid {os.getpid()})" in text
        served = Fact("ok", "server.listen[0]", f"{address} is served by the running daemon")
        assert served in found(config, is_serving=True)


def test_an_address_of_another_host_is_bad(written: Written) -> None:
    (text,) = bad(written(listen="192.0.2.1:8000"))
    assert "cannot listen on 192.0.2.1:8000: Cannot assign requested address" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_bad(written: Written, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o500)
    (text,) = bad(written())
    assert text.startswith(f"paths.state: cannot write to {tmp_path / 'state'}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_bad(written: Written, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    (text,) = bad(written())
    assert text.startswith(f"paths.cache: cannot write to {tmp_path / 'cache'}")


@pytest.mark.parametrize("name", [".env", "llm-supervisor.env", "secret", "key.pem"])
def test_keys_that_everyone_may_read_are_a_hint(written: Written, tmp_path: Path, name: str) -> None:
    for mode, levels in ((0o644, ["hint"]), (0o640, [])):
        for file in ("secret", name):
            (tmp_path / file).write_text("KEY=abc\n")
            (tmp_path / file).chmod(0o600)
        (tmp_path / name).chmod(mode)
        tls = '[server.tls]\ncert = "cert.pem"\nkey = "key.pem"\n'
        config = written(more=f'[clients.c]\nkey_file = ["secret"]\n{tls}')
        assert [fact.level for fact in found(config) if fact.where == "keys"] == levels


def test_little_disk_is_a_hint(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "LITTLE_DISK_BYTES", sys.maxsize)
    assert [fact.level for fact in found(written()) if fact.where == "disk"] == ["hint"]


def test_aiohttp_without_its_extensions_is_a_hint(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [fact.level for fact in found(written()) if fact.where == "aiohttp"] == ["hint"]


async def test_the_command_prints_a_line_a_fact_and_a_summary(cli: Cli) -> None:
    done = await cli("check")
    assert (done.code, done.err) == (0, "")
    *lines, empty, last = done.out.splitlines()
    assert lines[0] == f"ok    config: {cli.config} is valid"
    assert {line.split()[0] for line in lines} == {"ok", "hint"}
    assert any(line.startswith("hint  models.coder: ") and "not pinned" in line for line in lines)
    assert (empty, last.partition(",")[0]) == ("", "nothing bad")


async def test_a_bad_fact_is_exit_1(cli: Cli) -> None:
    cli.config.write_text(cli.config.read_text() + '[models.lost]\nsource = "./lost"\n')
    done = await cli("check")
    assert done.code == 1
    assert f"bad   models.lost: the weights {cli.folder / 'lost'} do not exist" in done.out
    assert done.out.splitlines()[-1].startswith("1 bad, ")
    as_json = await cli("check", "--json")
    found = json.loads(as_json.out)
    assert as_json.code == 1
    assert found["problems"] == []
    assert [fact["where"] for fact in found["facts"] if fact["level"] == "bad"] == ["models.lost"]


async def test_the_running_daemon_may_have_its_port(cli: Cli, house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        cli.config.write_text(cli.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        done = await asyncio.wait_for(cli("check"), 20)
    assert done.code == 0
    assert f"127.0.0.1:{port} is served by the running daemon" in done.out


def test_what_is_kept_and_what_has_no_room_beside_it_is_a_hint(written: Written) -> None:
    model = 'source = "org/m"\ngpus = [0]\n'
    more = f'[models.a]\n{model}keep = true\nvram = "12GiB"\n[models.b]\n{model}vram = "10GiB"\n'
    hints = {fact.where: fact.text for fact in found(written('vram = "5GiB"', more=more))}
    assert hints["models.b"] == "can start", "the last word on it"
    texts = [fact.text for fact in found(written('vram = "5GiB"', more=more)) if fact.level == "hint"]
    assert texts == ["it can never start while a (keep = true) is ready"]
    both = more + "keep = true\n"
    texts = [fact.text for fact in found(written('vram = "5GiB"', more=both)) if fact.level == "hint"]
    why = "a and b (keep = true) take 22.0 GiB of GPU 0, whose budget is 21.6 GiB"
    assert texts == [f"{why}, so not all of them can be ready at once"] * 2


def test_gpus_that_do_not_answer_are_bad_and_not_none(written: Written) -> None:
    why = "NVML does not answer within 6 s"
    unknown = found(written(), GpuReading(problems=(why,)))
    assert Fact("bad", "gpus", f"it is not known which GPUs can be used: {why}") in unknown
    assert not [fact for fact in unknown if "means CPU here" in fact.text]
    assert [fact.level for fact in unknown if fact.where == "models.m"] == ["bad"]


WINDOWS = """
[schedule]
timezone = "Asia/Kolkata"
windows = [
    { name = "first", from = "01:00", to = "05:00", only = ["m"] },
    { name = "hidden", from = "02:00", to = "03:00", only = ["m"] },
]
"""


def test_the_zone_the_window_and_the_next_three_switches_are_told(written: Written) -> None:
    schedule = written(more=WINDOWS).schedule
    assert schedule is not None
    monday = datetime(2026, 6, 1, 19, 30, tzinfo=UTC)  # Tuesday 01:00 there
    told = list(host._schedule(schedule, monday))
    until = "until 05:00 (Asia/Kolkata), then no window"
    covered = "others that stand before it in the list cover its hours"
    assert [(fact.level, fact.text) for fact in told] == [
        ("ok", "Asia/Kolkata, where it is Tue 01:00"),
        ("ok", f'window "first" of the schedule is in force: only m may run, {until}'),
        ("ok", "Tue 2026-06-02 05:00: no window"),
        ("ok", 'Wed 2026-06-03 01:00: window "first"'),
        ("ok", "Wed 2026-06-03 05:00: no window"),
        ("hint", f'window "hidden" is never in force: {covered}'),
    ]
    assert {fact.where for fact in found(written(more=WINDOWS))} > {"schedule", "schedule.timezone"}
    assert "schedule" not in {fact.where for fact in found(written())}
