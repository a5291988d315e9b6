"""Servers that are not vLLM, as real processes: at a port or a socket, robbed of it, adopted, ended."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisord_llm.core.events import Cause
from supervisord_llm.core.state import State
from supervisord_llm.engines import engine as engine_module
from supervisord_llm.engines import listening, records
from supervisord_llm.engines.adoption import adoptable
from supervisord_llm.engines.ask import ask
from supervisord_llm.engines.engine import LocalEngine
from supervisord_llm.engines.network import Network
from supervisord_llm.errors import EngineError, LaunchError, ProvisionError
from supervisord_llm.runtime.ports import Progressing
from tests.engines.conftest import Fleet, Successor, make_model, stats_of
from tests.engines.test_process import alive

SERVER = str(Path(__file__).parents[1] / "fakes" / "fake_server.py")


def server(faults: str = "", *words: str, at: str = "--port={port}", **fields: Any) -> dict[str, Any]:
    """The fields of a model that the stand-in serves."""
    command = [sys.executable, "-IS", SERVER, at, f"--faults={faults}", *words]
    return {"engine": "command", "command": command, **fields}


async def launch(fleet: Fleet, faults: str = "", *words: str, **fields: Any) -> LocalEngine:
    return await fleet.launch(config=server(faults, *words, **fields))


async def ready(fleet: Fleet, faults: str = "", *words: str, **fields: Any) -> LocalEngine:
    engine = await launch(fleet, faults, *words, **fields)
    await asyncio.wait_for(engine.ready(), 10)
    return engine


def port_of(engine: LocalEngine) -> int:
    port = engine.file.record.port
    assert port is not None
    return port


@contextmanager
def stranger(port: int, *words: str) -> Iterator[int]:
    """The pid of a server that is nobody's engine, once it answers."""
    process = subprocess.Popen([sys.executable, "-IS", SERVER, f"--port={port}", *words])
    try:
        deadline = time.monotonic() + 10
        while not any(each.pid == process.pid for each in listening.listeners(port)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def on_port(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port that the next engines get, whoever has it by then."""
    port = listening.free_port()
    monkeypatch.setattr(listening, "free_port", lambda taken: port)
    return port


# ---- life --------------------------------------------------------------------------------------------------


async def test_it_serves_at_a_port_of_the_loopback(fleet: Fleet) -> None:
    engine = await ready(fleet, "", "--name={model}", "--gpus={gpus}")
    port = port_of(engine)
    assert engine.backend.origin == f"http://127.0.0.1:{port}"
    assert port < listening.ephemeral_begin()
    answer = await ask(engine.backend, "POST", "/v1/chat/completions", {"model": "x"})
    assert b"I am x." in answer.body
    stats = await stats_of(engine)
    assert stats["argv"] == ["--name=alpha", "--gpus="]
    assert stats["env"]["LLM_SUPERVISOR_LAUNCH"] == engine.file.record.marker
    assert os.getsid(stats["pid"]) == stats["pid"] == engine.process.pid
    assert Path(f"/proc/{stats['pid']}/oom_score_adj").read_text().strip() == "500"
    assert engine.kv_bytes is None
    await engine.stop(kill=False)
    ended = await engine.wait()
    assert (ended.code, ended.reason) == (-signal.SIGTERM, "stopped as asked")
    assert f"--port={port}" in ended.command
    assert ended.tail == ("loading the model",)
    assert list(fleet.paths.engines.iterdir()) == []
    assert listening.listeners(port) == []


async def test_it_serves_at_a_socket(fleet: Fleet) -> None:
    engine = await ready(fleet, at="--socket={socket}")
    assert engine.backend.socket == records.socket_path(fleet.paths.engines, "alpha")
    assert engine.file.record.port is None
    await engine.stop(kill=False)
    assert list(fleet.paths.engines.iterdir()) == []


async def test_its_health_is_where_and_what_it_says(fleet: Fleet) -> None:
    await ready(fleet, "no_content", "--health=/ready?deep", health="/ready?deep")
    engine = await launch(fleet, "", "--health=/elsewhere")
    await fleet.said("loading the model")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.ready(), 0.5)


async def test_one_that_answers_while_it_loads_is_not_ready_before(fleet: Fleet) -> None:
    engine = await launch(fleet, "unhealthy=0.6")
    before = time.monotonic()
    await asyncio.wait_for(engine.ready(), 10)
    assert time.monotonic() - before > 0.5


async def test_two_never_get_the_same_port_while_they_load(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [listening.free_port() for _ in range(3)]
    monkeypatch.setattr(listening.random, "sample", lambda population, k: few)  # type: ignore[attr-defined]
    engines = [
        await fleet.launch(model=f"m{n}", config=server("never_listens")) for n in range(len(set(few)))
    ]
    assert len({port_of(engine) for engine in engines}) == len(engines)
    with pytest.raises(LaunchError, match="cannot find a free TCP port"):
        await fleet.launch(model="more", config=server("never_listens"))


async def test_a_program_that_went_away_is_a_clear_error(fleet: Fleet) -> None:
    with pytest.raises(ProvisionError, match="cannot run /nowhere/x: there is no such file"):
        await fleet.launch(config={"engine": "command", "command": ["/nowhere/x", "{port}"]})
    assert not fleet.paths.engines.exists()


# ---- ends --------------------------------------------------------------------------------------------------


async def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, term_timeout_s=0.3)
    engine = await ready(fleet, "ignores_sigterm,leaves_grandchild")
    stats = await stats_of(engine)
    await engine.stop(kill=False)
    assert (await engine.wait()).code == -signal.SIGKILL
    assert not alive(stats["grandchild_pid"])
    await fleet.end()


async def test_one_that_dies_takes_its_grandchildren_along(fleet: Fleet) -> None:
    engine = await ready(fleet, "dies_after=0.3,leaves_grandchild")
    stats = await stats_of(engine)
    ended = await asyncio.wait_for(engine.wait(), 5)
    assert (ended.code, ended.reason) == (1, "exited with code 1: loading the model; see its `command`")
    assert not alive(stats["grandchild_pid"])


async def test_what_it_said_last_tells_why_it_ended(fleet: Fleet) -> None:
    engine = await launch(fleet, "no_such_fault")
    ended = await asyncio.wait_for(engine.wait(), 5)
    assert ended.reason == "exited with code 1: AssertionError: {'no_such_fault': ''}; see its `command`"


async def test_gpu_memory_that_ran_out_changes_no_flag_of_vllm(fleet: Fleet) -> None:
    engine = await launch(fleet, "out_of_gpu_memory")
    ended = await asyncio.wait_for(engine.wait(), 5)
    assert ended.cause is Cause.OTHER
    assert ended.reason.startswith("exited with code 1: ran out of GPU memory (CUDA error: out of memory); ")


# ---- whether it hangs --------------------------------------------------------------------------------------


class Busy:
    """Chats with an engine, and which of them have not ended."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        self.numbers: set[int] = set()

    def in_flight(self) -> frozenset[int]:
        return frozenset(self.numbers)

    async def chat(self, number: int) -> None:
        try:
            await ask(self.engine.backend, "POST", "/v1/chat/completions", {"model": "x"})
        finally:
            self.numbers.remove(number)

    @asynccontextmanager
    async def chats(self, *numbers: int) -> AsyncIterator[None]:
        """These are going on, sent in this order."""
        self.numbers |= set(numbers)
        tasks = []
        for number in numbers:
            tasks.append(asyncio.create_task(self.chat(number)))
            await asyncio.sleep(0.05)
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def asked(self) -> Progressing | None:
        return await self.engine.progressing(self.in_flight)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "METRICS_S", 0.4)


@pytest.mark.parametrize("metrics", ["", ",bad_metrics"])
async def test_silence_of_one_that_answers_while_it_works_is_news(
    fleet: Fleet, hurried: None, metrics: str
) -> None:
    engine = await ready(fleet, "slow=60" + metrics)
    busy = Busy(engine)
    async with busy.chats(1):
        signs = [await busy.asked() for _ in range(3)]
        assert [(sign.running, sign.tokens) for sign in signs if sign] == [(1, 1), (1, 2), (1, 3)]
        os.kill(engine.process.pid, signal.SIGSTOP)
        with pytest.raises(EngineError, match=r"^cannot tell how far alpha is: no answer within 0\.4 s; see"):
            await busy.asked()
        async with busy.chats(2):  # it was never seen to answer beside two
            assert await busy.asked() == Progressing(2, 4)
        with pytest.raises(EngineError):
            await busy.asked()


async def test_silence_of_one_that_was_never_seen_to_answer_while_it_works_is_not(
    fleet: Fleet, hurried: None
) -> None:
    engine = await ready(fleet, "slow=60,one_at_a_time")
    busy = Busy(engine)
    assert await busy.asked() == Progressing(0, 1)
    async with busy.chats(1):
        assert await busy.asked() is None


async def test_an_answer_between_two_requests_says_nothing_of_what_it_can_beside_one(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await ready(fleet, "slow=0.5,one_at_a_time")
    busy = Busy(engine)
    assert await busy.asked() == Progressing(0, 1)
    async with busy.chats(1, 2):
        assert await busy.asked() is not None, "once those before it have been answered"
        async with busy.chats(3):
            assert await busy.asked() is not None
    monkeypatch.setattr(engine_module, "METRICS_S", 0.2)
    async with busy.chats(4):
        assert await busy.asked() is None


async def test_one_that_is_silent_from_the_first_is_left_alone(fleet: Fleet, hurried: None) -> None:
    engine = await ready(fleet, "slow=60")
    busy = Busy(engine)
    async with busy.chats(1):
        os.kill(engine.process.pid, signal.SIGSTOP)
        assert await busy.asked() is None


# ---- whose port it is --------------------------------------------------------------------------------------


async def test_a_stranger_on_its_port_is_never_taken_for_it(fleet: Fleet, on_port: int) -> None:
    """It is healthy, and the engine lives, but has not come to listen."""
    with stranger(on_port) as pid:
        engine = await launch(fleet, "never_listens")
        waiting = asyncio.create_task(engine.ready())
        ended = await asyncio.wait_for(engine.wait(), 5)
        assert ended.reason.startswith(f"cannot use the port {on_port}: ")
        assert f"pid {pid}, listens there, which is no process of this engine" in ended.reason
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        assert alive(pid)


async def test_one_whose_port_was_taken_meanwhile_tells_so(fleet: Fleet, on_port: int) -> None:
    with stranger(on_port):
        engine = await launch(fleet)
        ended = await asyncio.wait_for(engine.wait(), 5)
        assert ended.code == 1
        assert "Address already in use; somebody took its port" in ended.reason


async def test_one_that_shares_its_port_with_an_orphan_is_not_used(fleet: Fleet, on_port: int) -> None:
    """SO_REUSEPORT: both listen, and the kernel would deal requests out to both."""
    with stranger(on_port, "--faults=reuse_port") as pid:
        engine = await launch(fleet, "reuse_port")
        waiting = asyncio.create_task(engine.ready())
        ended = await asyncio.wait_for(engine.wait(), 5)
        assert f"pid {pid}, listens there" in ended.reason
        waiting.cancel()


async def test_a_stranger_on_another_address_is_in_nobodys_way(fleet: Fleet, on_port: int) -> None:
    with stranger(on_port, "--host=127.0.0.7"):
        engine = await ready(fleet)
        assert port_of(engine) == on_port


def wrapped() -> dict[str, Any]:
    """A server under a shell that outlives it."""
    command = ["/bin/sh", "-c", '"$@" & wait; exec sleep 60', "sh", *server()["command"]]
    return {"engine": "command", "command": command}


@pytest.mark.parametrize("heir", [False, True])
async def test_one_whose_server_is_gone_under_its_wrapper_is_ended(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, heir: bool
) -> None:
    """Nobody listens then, or somebody else does: the leader's death does not tell, for it lives."""
    monkeypatch.setattr(listening, "LOOK_S", 0.1)
    engine = await fleet.ready(config=wrapped())
    port = port_of(engine)
    await asyncio.sleep(0.3)
    assert not engine.process.gone
    os.kill((await stats_of(engine))["pid"], signal.SIGKILL)
    if heir:
        with stranger(port):
            ended = await asyncio.wait_for(engine.wait(), 5)
    else:
        ended = await asyncio.wait_for(engine.wait(), 5)
    assert ended.reason.startswith(f"cannot use the port {port}: ")
    assert ended.reason.endswith("this engine listens there; the next start has another") or heir


async def test_a_port_that_anybody_has_is_not_free() -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        with closing(socket.create_server((host, 0))) as taken:
            assert not listening.is_free(taken.getsockname()[1])
    port = listening.free_port()
    assert listening.is_free(port)
    assert port != listening.free_port({port})


async def test_who_listens_at_what_is_seen(fleet: Fleet) -> None:
    engine = await ready(fleet)
    tree = engine.process.tree
    found = listening.look(port_of(engine), tree)
    assert (found.why_not, found.exposed, [each.pid for each in found.own]) == ("", (), [engine.process.pid])
    other = await fleet.launch(model="beta", config=server("never_listens"))
    assert "pid " in listening.look(port_of(engine), other.process.tree).why_not
    assert listening.look(listening.free_port(), tree).why_not == "no process of this engine listens there"


async def test_one_that_all_can_reach_is_warned_of_once(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        engine = await ready(fleet, "", "--host=0.0.0.0")
        await engine.stop(kill=True)
    await ready(fleet)
    [warning] = [each.message for each in caplog.records]
    assert warning == (
        "models.alpha.command: its server listens on 0.0.0.0, where others reach it past all keys; "
        "have it listen on 127.0.0.1 or on {socket}"
    )


# ---- after the daemon's death ------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["--port={port}", "--socket={socket}"])
async def test_it_outlives_its_daemon_and_serves_on(successor: Successor, at: str) -> None:
    await successor.inherit({"config": server("leaves_grandchild", at=at)})
    stats, before = successor.stats["alpha"], successor.record()
    successor.models["alpha"] = make_model(**server(at=at))
    engine = await successor.adopt()
    await asyncio.wait_for(engine.ready(), 5)
    assert engine.backend == before.backend
    assert engine.process.pid == stats["pid"] == (await stats_of(engine))["pid"]
    await engine.stop(kill=False)
    assert (await engine.wait()).reason == "stopped as asked"
    assert not alive(stats["grandchild_pid"])
    assert list(successor.paths.engines.iterdir()) == []


async def test_one_that_is_not_healthy_where_it_says_is_not_adopted(successor: Successor) -> None:
    await successor.inherit({"config": server()})
    verdict = await adoptable(successor.record(), "/elsewhere")
    assert verdict.state is None
    assert verdict.reason.startswith("GET /elsewhere answers 404")
    assert (await adoptable(successor.record())).state is State.READY


async def test_one_whose_port_is_a_strangers_by_now_is_not_adopted(successor: Successor) -> None:
    """Its server died under its wrapper, which lives; an orphan has the port, and is healthy."""
    await successor.inherit({"config": wrapped()})
    record = successor.record()
    assert record.port is not None
    os.kill(successor.stats["alpha"]["pid"], signal.SIGKILL)
    while listening.listeners(record.port):
        await asyncio.sleep(0.02)
    with stranger(record.port) as pid:
        verdict = await adoptable(record)
        assert verdict.state is None
        assert verdict.reason.startswith(f"its port {record.port} is not its own: ")
        [done] = await successor.sweep()
        assert done.startswith("ended the engine of alpha ")
        assert alive(pid)


# ---- the network -------------------------------------------------------------------------------------------

ISOLATES = Network("namespace")


def test_one_at_a_port_stays_in_the_network_of_the_daemon() -> None:
    model = make_model(**server())
    assert not ISOLATES.enters(model)
    reach = ISOLATES.reach(model)
    assert reach.network == "host"
    assert reach.network_note.startswith(
        "cannot isolate it from the network: a server that listens on a port "
    )
    assert Network("unit").reach(model).network == "isolated"
    assert ISOLATES.reach(make_model(**server(network="host"))).network_note == ""


def test_one_at_a_socket_has_a_network_of_its_own() -> None:
    model = make_model(**server(at="--socket={socket}"))
    assert ISOLATES.enters(model)
    assert ISOLATES.reach(model).network_note == ""
