"""Engines that are kept from the network, by real namespaces where this host allows them."""

import asyncio
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from supervisord_llm.config.signature import signature
from supervisord_llm.engines import namespace
from supervisord_llm.engines.engine import LocalEngine
from supervisord_llm.engines.network import VARIABLE, Network, entering, look
from supervisord_llm.engines.tree import read_process
from supervisord_llm.runtime.ports import Reach
from tests.engines.conftest import Fleet, make_model, stats_of

HERE = look({})
needs_namespaces = pytest.mark.skipif(HERE.by != "namespace", reason=f"no namespaces here: {HERE.why_not}")
NOBODY = 65534

ISOLATED, HOST = make_model(network="isolated"), make_model(network="host")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path, network=HERE)
    yield fleet
    await fleet.end()


@pytest.fixture
def listener() -> Iterator[str]:
    """The address of somebody who listens on this host's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


async def reaches(engine: LocalEngine, address: str) -> bool:
    connector = aiohttp.UnixConnector(str(engine.socket))
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.get(f"http://e/fake/reach/{address}") as reply,
    ):
        return bool((await reply.json())["reached"])


@needs_namespaces
async def test_an_isolated_engine_reaches_itself_and_nobody_else(fleet: Fleet, listener: str) -> None:
    engine = await fleet.ready()
    assert await reaches(engine, "own")
    assert not await reaches(engine, listener)
    own = Path(f"/proc/{engine.process.pid}/ns/net").readlink()
    assert own != Path("/proc/self/ns/net").readlink()


@needs_namespaces
async def test_an_engine_with_the_hosts_network_reaches_others(fleet: Fleet, listener: str) -> None:
    engine = await fleet.ready(config={"network": "host"})
    assert await reaches(engine, listener)


@needs_namespaces
async def test_two_isolated_engines_have_a_network_each(fleet: Fleet) -> None:
    one, other = await fleet.ready(model="one"), await fleet.ready(model="other")
    namespaces = {Path(f"/proc/{each.process.pid}/ns/net").readlink() for each in (one, other)}
    assert len(namespaces) == 2


@needs_namespaces
async def test_it_is_the_same_process_with_the_same_arguments(fleet: Fleet) -> None:
    plain = await fleet.ready(model="alpha", config={"network": "host"})
    await plain.stop(kill=True)
    words = {}
    for network in ("host", "isolated"):
        engine = await fleet.ready(model="alpha", config={"network": network})
        pid = engine.process.pid
        process = read_process(pid)
        assert process is not None
        assert process.session == pid
        assert process.identity == (pid, engine.process.tree.start_time)
        assert (await stats_of(engine))["pid"] == pid
        words[network] = Path(f"/proc/{pid}/cmdline").read_text()
        await engine.stop(kill=True)
    assert words["host"] == words["isolated"]


@needs_namespaces
async def test_what_an_isolated_engine_leaves_is_found_and_killed(fleet: Fleet) -> None:
    engine = await fleet.ready("leaves_grandchild,engine_core")
    stats = await stats_of(engine)
    os.kill(stats["pid"], 9)
    await asyncio.wait_for(engine.wait(), 5)
    assert [read_process(stats[name]) for name in ("core_pid", "grandchild_pid")] == [None, None]


@needs_namespaces
def test_what_cannot_be_run_is_told_as_a_shell_does(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/no/such/python\n")
    program.chmod(0o755)
    done = subprocess.run(entering((str(program),)), capture_output=True, text=True, check=False)
    assert done.returncode == namespace.CANNOT_RUN
    assert done.stderr == f"cannot run {program}: No such file or directory\n"


TELL = """
import json, os, socket, sys
with open(sys.argv[1], "w"): pass
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
with socket.create_server(("127.0.0.1", 0)) as own:
    socket.create_connection(own.getsockname(), timeout=1).close()
try:
    socket.create_connection(sys.argv[2].split(":"), timeout=1)
    reached = True
except OSError:
    reached = False
told = {"uid": os.getuid(), "gid": os.getgid(), "caps": status["CapEff"].strip(), "reached": reached}
print(json.dumps(told))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_stays_who_they_are(listener: str) -> None:
    python = next((each for each in (sys.executable, "/usr/bin/python3") if is_for_all(Path(each))), None)
    if python is None:
        pytest.skip("no Python that everybody can run")
    with tempfile.TemporaryDirectory(prefix="llms-") as name:
        place = Path(name)
        place.chmod(0o777)
        launcher, made = place / "namespace.py", place / "made"
        launcher.write_text(Path(namespace.__file__).read_text())
        done = subprocess.run(
            [python, "-IS", launcher, python, "-IS", "-c", TELL, made, listener],
            capture_output=True,
            text=True,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            check=False,
        )
        if done.stderr.startswith("cannot isolate"):
            pytest.skip(f"no namespaces for ordinary users here: {done.stderr}")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told == {"uid": NOBODY, "gid": NOBODY, "caps": "0" * 16, "reached": False}
        assert (made.stat().st_uid, made.stat().st_gid) == (NOBODY, NOBODY)


def is_for_all(python: Path) -> bool:
    places = (python, python.resolve())
    return all(each.stat().st_mode & 0o001 for place in places for each in (place, *place.parents))


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take them away")
def test_where_there_are_none_the_reason_is_found() -> None:
    look = "import os; from supervisord_llm.engines.network import look; print(look({}))"
    script = f"echo 0 >/proc/sys/user/max_net_namespaces && exec {sys.executable} -c '{look}'"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "by='nothing'" in done.stdout
    assert "user.max_net_namespaces allows no more" in done.stdout


@pytest.mark.parametrize(
    ("network", "model", "reach", "note"),
    [
        (Network("unit"), ISOLATED, "isolated", ""),
        (Network("unit"), HOST, "isolated", "install the drop-in internet.conf"),
        (Network("namespace"), ISOLATED, "isolated", ""),
        (Network("namespace"), HOST, "host", ""),
        (Network("nothing", "not permitted"), ISOLATED, "host", "from the network: not perm"),
        (Network("nothing", "not permitted"), HOST, "host", ""),
    ],
)
def test_how_far_an_engine_gets_and_why_not_as_configured(
    network: Network, model: object, reach: str, note: str
) -> None:
    told = network.reach(model)  # type: ignore[arg-type]
    assert told.network == reach
    assert (note in told.network_note) if note else told.network_note == ""
    assert network.enters(model) == (network.by == "namespace" and reach == "isolated")  # type: ignore[arg-type]


def test_the_unit_says_that_it_isolates() -> None:
    assert look({VARIABLE: "isolated"}) == Network("unit")


def test_models_of_one_trouble_are_told_together() -> None:
    models = [make_model("a"), make_model("b"), make_model("c", network="host")]
    assert [*Network("nothing", "no").notes(models).values()] == [["a", "b"]]


def test_it_is_part_of_what_an_engine_is_launched_with() -> None:
    assert signature(ISOLATED) == signature(make_model())
    assert signature(ISOLATED) != signature(HOST)


REMOTE = dataclasses.replace(ISOLATED, engine="remote", url="https://api.example.com/v1")


@pytest.mark.parametrize("url", ["https://api.example.com/v1", "http://192.168.1.20:8000/v1"])
def test_the_unit_keeps_the_daemon_from_models_elsewhere_and_the_drop_in_is_named(url: str) -> None:
    model = dataclasses.replace(REMOTE, url=url)
    assert "install the drop-in remote.conf" in Network("unit").reach(model).network_note
    assert Network("namespace").reach(model) == Reach("host")
    assert Network("nothing", "not permitted").reach(model) == Reach("host")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_server_on_this_machine_is_reached_from_the_unit(host: str) -> None:
    model = dataclasses.replace(REMOTE, url=f"http://{host}:8000/v1")
    assert Network("unit").reach(model).network_note == ""
