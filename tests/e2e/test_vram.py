"""VRAM is law, seen from outside: the daemon, the real nvidia-ml-py on a stub of NVML, and clients over HTTP.

What the stub's GPUs hold is what the fake engines say they do.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import psutil
import pytest

from tests.e2e.house import House, chat, running
from tests.gpu.nvml import Card, StubNvml

MIB = 1024**2
GIB = 1024**3
ONE_CARD = (Card("GPU-aaaa", 24 * 1024),)


@dataclass
class GpuHouse:
    """A house whose daemon sees the stub's GPUs."""

    house: House
    nvml: StubNvml
    web: aiohttp.ClientSession

    def fake(self, fake: str = "", *, mib: int = 0, **keys: Any) -> dict[str, object]:
        """A model whose engine holds `mib` of each of its GPUs while it is awake."""
        env = {"STUB_NVML_STATE": str(self.nvml.state), "FAKE_VRAM_MIB": str(mib)} | keys.pop("env", {})
        return self.house.fake(fake, env=env, **({"min_residency": "0s"} | keys))

    async def say(self, model: str, **more: object) -> tuple[int, Any]:
        """The status and the text, or the error, of one chat."""
        async with self.web.post("/v1/chat/completions", json=chat(model, **more)) as answer:
            body = await answer.json()
            return answer.status, body["choices"][0]["message"]["content"] if answer.ok else body["error"]

    async def admin(self, verb: str, model: str) -> tuple[int, Any]:
        path = str(self.house.root / "runtime" / "control.sock")
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as control,
            control.post(f"http://daemon/admin/{verb}", json={"model": model}) as answer,
        ):
            return answer.status, await answer.json()

    async def admin_get(self, what: str) -> Any:
        path = str(self.house.root / "runtime" / "control.sock")
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as control,
            control.get(f"http://daemon/admin/{what}") as answer,
        ):
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def look(self) -> Any:
        return await self.admin_get("status")

    async def until(self, holds: Callable[[Any], bool], timeout_s: float = 15) -> Any:
        """The first status of which `holds` is true."""
        status = None
        try:
            async with asyncio.timeout(timeout_s):
                while not holds(status := await self.look()):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"never came about: {status}\n{self.house.log[-3000:]}")
        return status

    async def state(self, model: str, state: str, timeout_s: float = 15) -> Any:
        """Wait until the model is in the state; what the status says of it then."""
        status = await self.until(lambda status: status["models"][model]["state"] == state, timeout_s)
        return status["models"][model]

    def argv(self, model: str) -> list[str]:
        """How the running engine was launched."""
        words = next(
            (words for words in self._argvs() if words[words.index("--served-model-name") + 1] == model), None
        )
        assert words is not None, f"no engine of {model} runs"
        return words

    def flag(self, model: str, flag: str) -> str | None:
        argv = self.argv(model)
        return argv[argv.index(flag) + 1] if flag in argv else None

    def pid(self, model: str) -> int:
        for process in self.house.engines():
            with contextlib.suppress(psutil.Error, ValueError):
                words = process.cmdline()
                if words[words.index("--served-model-name") + 1] == model:
                    return process.pid
        raise AssertionError(f"no engine of {model} runs")

    def _argvs(self) -> list[list[str]]:
        found = []
        for process in self.house.engines():
            with contextlib.suppress(psutil.Error):
                if "--served-model-name" in (words := process.cmdline()):
                    found.append(words)
        return found

    def told(self, text: str) -> bool:
        return text in self.house.log


@pytest.fixture
async def gpus(house: House, web: aiohttp.ClientSession) -> GpuHouse:
    nvml = StubNvml(house.root)
    house.environ |= nvml.environ
    return GpuHouse(house, nvml, web)


async def test_a_measured_footprint_is_the_next_grant_also_after_a_restart_of_the_daemon(
    gpus: GpuHouse,
) -> None:
    # The weights say little, so the estimate is the overhead; then it turns out to hold 9 GiB.
    gpus.house.configure({"a": gpus.fake(mib=9 * 1024, gpus=[0])})
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        first = await gpus.until(lambda status: status["models"]["a"]["used_bytes"] is not None)
        assert first["models"]["a"]["used_bytes"] == [9 * GIB]
        await gpus.until(lambda status: status["gpus"][0]["held_bytes"] == 9 * GIB)
        async with gpus.web.get("/health") as answer:
            assert (await answer.json())["models"]["a"]["vram_used"] == 9 * GIB
        kv = gpus.flag("a", "--kv-cache-memory-bytes")
        assert kv is not None
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        assert gpus.flag("a", "--gpu-memory-utilization") == "0.3750"
        assert gpus.flag("a", "--kv-cache-memory-bytes") == kv
    gpus.house.configure({"a": gpus.fake(mib=9 * 1024, gpus=[0], flags={"max-model-len": 2048})})
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        assert gpus.flag("a", "--gpu-memory-utilization") != "0.3750", "a changed config measures again"


async def test_memory_of_strangers_counts_and_the_refusal_names_them(gpus: GpuHouse) -> None:
    gpus.nvml.set_cards(*ONE_CARD)
    stranger = await asyncio.create_subprocess_exec("sleep", "100")
    try:
        gpus.nvml.hold(stranger.pid, 0, 12 * 1024)
        gpus.house.configure({"a": gpus.fake(vram="14GiB", gpus="auto")})
        async with running(gpus.house):
            status, error = await gpus.say("a")
            assert (status, error["code"]) == (503, "no_vram")
            assert f"sleep, pid {stranger.pid}, 12.0 GiB" in error["message"]
            asked = asyncio.create_task(gpus.say("a"))
            await gpus.state("a", "queued")
            gpus.nvml.release(stranger.pid)
            assert (await asked)[0] == 200, "it left while the request waited"
    finally:
        stranger.kill()
        await stranger.wait()


async def test_a_start_waits_until_memory_is_back(gpus: GpuHouse) -> None:
    gpus.nvml.say("lingering_s 2")
    gpus.house.configure(
        {
            "a": gpus.fake(mib=19 * 1024, vram="20GiB", gpus=[0]),
            "b": gpus.fake(mib=19 * 1024, vram="20GiB", gpus=[0]),
        }
    )
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        await gpus.until(lambda status: status["models"]["a"]["used_bytes"] is not None)
        asked = asyncio.create_task(gpus.say("b"))
        await gpus.state("a", "stopped")
        waiting = (await gpus.look())["models"]["b"]
        assert waiting["state"] == "queued", waiting
        assert (await asked)[0] == 200


async def test_without_figures_of_processes_the_difference_is_the_footprint(gpus: GpuHouse) -> None:
    """As on WSL2."""
    gpus.nvml.say("wsl")
    gpus.house.configure({"a": gpus.fake(mib=1280, gpus=[0]), "b": gpus.fake(mib=1024, gpus=[0])})
    async with running(gpus.house):
        for model, size in (("a", 1280 * MIB), ("b", 1024 * MIB)):
            assert (await gpus.say(model))[0] == 200
            await gpus.until(lambda status: status["models"][model]["used_bytes"] == [size])  # noqa: B023


async def test_a_lost_gpu_ends_its_engines_refuses_the_pinned_and_moves_the_others(gpus: GpuHouse) -> None:
    gpus.nvml.set_cards(Card("GPU-aaaa", 24 * 1024), Card("GPU-bbbb", 24 * 1024))
    gpus.house.configure(
        {
            "pinned": gpus.fake(mib=4096, vram="5GiB", gpus=[1]),
            "free": gpus.fake(mib=4096, vram="5GiB", gpus="auto"),
            "other": gpus.fake(mib=4096, vram="6GiB", gpus=[0]),
        }
    )
    async with running(gpus.house):
        assert (await gpus.say("other"))[0] == 200  # so that GPU 1 has most room
        assert (await gpus.say("free"))[0] == 200
        assert (await gpus.say("pinned"))[0] == 200
        assert (await gpus.look())["models"]["free"]["gpus"] == [1]
        gpus.nvml.say("lost 1")
        await gpus.until(lambda status: status["gpus"][1]["lost"])
        status, error = await gpus.say("pinned")
        assert (status, error["code"]) == (503, "no_vram")
        assert "GPU 1 is lost: it fell off the bus" in error["message"]
        assert (await gpus.say("free"))[0] == 200
        assert (await gpus.look())["models"]["free"]["gpus"] == [0]
        assert (await gpus.look())["models"]["other"]["state"] == "ready"
        gpus.nvml.unsay("lost 1")
        await gpus.until(lambda status: not status["gpus"][1]["lost"], timeout_s=30)
        assert (await gpus.say("pinned"))[0] == 200


async def test_an_nvml_that_hangs_or_crashes_stops_nothing(gpus: GpuHouse) -> None:
    gpus.house.configure({"a": gpus.fake(mib=1024, vram="5GiB", gpus=[0])})
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        for trouble in ("crash", "hang"):
            gpus.nvml.say(trouble)
            await gpus.until(lambda status: status["gpus"][0]["used_bytes"] is None, timeout_s=20)
            assert (await gpus.say("a"))[0] == 200
            gpus.nvml.unsay(trouble)
            await gpus.until(lambda status: status["gpus"][0]["used_bytes"] is not None, timeout_s=20)


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        (("hang",), "NVML does not answer within 6 s"),
        (("crash",), "NVML crashed the process that asks it"),
        (("init-fails",), "cannot use the NVIDIA driver: Driver Not Loaded"),
        (("lost 0", "lost 1"), "GPU 0: it fell off the bus"),
    ],
    ids=["hangs", "crashes", "not-loaded", "all-lost"],
)
async def test_gpus_that_do_not_answer_at_the_start_are_taken_up_when_they_do(
    gpus: GpuHouse, trouble: tuple[str, ...], sentence: str
) -> None:
    gpus.house.configure(
        {
            "any": gpus.fake(mib=1024, vram="2GiB", gpus="auto"),
            "kept": gpus.fake(mib=1024, vram="2GiB", gpus=[1], keep=True),
            "cpu": gpus.fake(gpus=[]),
        }
    )
    gpus.nvml.say(*trouble)
    async with running(gpus.house):
        status, error = await gpus.say("any")
        assert (status, error["code"]) == (503, "no_vram")
        assert sentence in error["message"]
        assert "it is not known which GPUs can be used" in error["message"]
        assert (await gpus.say("kept"))[0] == 503
        assert (await gpus.say("cpu"))[0] == 200
        assert (await gpus.look())["gpus"] == []
        gpus.nvml.unsay(*trouble)
        await gpus.state("kept", "ready", timeout_s=30)
        assert (await gpus.say("any"))[0] == 200
        status = await gpus.look()
        assert [gpu["uuid"] for gpu in status["gpus"]] == ["GPU-aaaa", "GPU-bbbb"]
        assert status["models"]["any"]["gpus"] == [0]


async def test_one_gpu_that_is_lost_from_the_start_joins_when_it_is_back(gpus: GpuHouse) -> None:
    gpus.house.configure(
        {
            "first": gpus.fake(mib=1024, vram="2GiB", gpus=[0]),
            "second": gpus.fake(mib=1024, vram="2GiB", gpus="auto"),
        }
    )
    gpus.nvml.say("lost 0")
    async with running(gpus.house):
        status, error = await gpus.say("first")
        assert (status, error["code"]) == (503, "no_vram")
        assert "cannot start first: GPU 0 is lost: it fell off the bus" in error["message"]
        assert (await gpus.say("second"))[0] == 200
        before = gpus.pid("second")
        gpus.nvml.unsay("lost 0")
        await gpus.until(lambda status: len(status["gpus"]) == 2, timeout_s=30)
        assert (await gpus.say("first"))[0] == 200
        assert gpus.pid("second") == before


async def test_a_driver_that_comes_later_is_found_by_a_reload_and_one_that_hangs_then_loses_nothing(
    gpus: GpuHouse,
) -> None:
    library = gpus.nvml.library
    library.rename(library.with_name("away"))
    gpus.house.configure({"a": gpus.fake(mib=1024, vram="2GiB", gpus=[1])})
    async with running(gpus.house):
        status, error = await gpus.say("a")
        assert (status, error["code"]) == (503, "no_vram")
        assert "this host has no GPU 1" in error["message"]
        library.with_name("away").rename(library)
        await asyncio.to_thread(gpus.house.cli, "reload")
        assert (await gpus.say("a"))[0] == 200
        gpus.nvml.say("hang")
        await asyncio.to_thread(gpus.house.cli, "reload")
        assert (await gpus.state("a", "ready"))["gpus"] == [1]
        assert (await gpus.say("a"))[0] == 200


@pytest.mark.parametrize("enforce", ["observe", "restart", "stop"])
async def test_an_engine_above_its_grant_is_dealt_with_and_its_neighbour_is_not(
    gpus: GpuHouse, enforce: str
) -> None:
    grows = {"FAKE_VRAM_GROWS": "3072:0.5"}
    gpus.house.configure(
        {
            "greedy": gpus.fake(mib=4096, vram="5GiB", gpus=[0], env=grows),
            "quiet": gpus.fake(mib=4096, vram="5GiB", gpus=[0]),
        },
        vram={"enforce": enforce},
    )
    async with running(gpus.house):
        assert (await gpus.say("quiet"))[0] == 200
        assert (await gpus.say("greedy"))[0] == 200
        pids = gpus.pid("quiet"), gpus.pid("greedy")
        async with asyncio.timeout(20):
            while not gpus.told("greedy holds 7.0 GiB of GPU 0 and was granted 5.0 GiB"):
                await asyncio.sleep(0.1)
        if enforce == "observe":
            await asyncio.sleep(1)
            assert gpus.pid("greedy") == pids[1]
        elif enforce == "restart":
            await gpus.until(lambda status: status["models"]["greedy"]["launch"] == 2)
        else:
            await gpus.until(lambda status: status["models"]["greedy"]["state"] in ("stopped", "backoff"))
            await asyncio.sleep(3)
            assert (await gpus.look())["models"]["greedy"]["state"] == "stopped"
        assert gpus.pid("quiet") == pids[0]
        assert (await gpus.say("quiet"))[0] == 200


async def test_out_of_gpu_memory_is_tried_again_with_fewer_sequences_and_that_is_remembered(
    gpus: GpuHouse,
) -> None:
    restart = {"backoff": "0.1s..1s"}
    gpus.house.configure({"a": gpus.fake("oom_while_loading=64", vram="5GiB", gpus=[0], restart=restart)})
    async with running(gpus.house):
        assert (await gpus.say("a")) == (200, "I am a.")
        assert gpus.flag("a", "--max-num-seqs") == "64"
        assert (await gpus.look())["models"]["a"]["adjusted"] == {"max-num-seqs": 64}
        assert gpus.told("its next start has max-num-seqs 64 in place of 256")
        assert "64" in gpus.house.cli("status").stdout
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        assert not gpus.told("its next start has max-num-seqs 16")


async def test_out_of_gpu_memory_for_good_never_starts_twice_alike(gpus: GpuHouse) -> None:
    restart = {"backoff": "0.05s..1s"}
    flags = {"max-model-len": 4096, "max-num-seqs": 8}
    gpus.house.configure({"a": gpus.fake("oom_always", vram="5GiB", gpus=[0], restart=restart, flags=flags)})
    async with running(gpus.house):
        status, error = await gpus.say("a")
        assert (status, error["code"]) == (503, "start_failed")
        assert "even with fewer sequences and a shorter context" in error["message"]
        launches = (await gpus.look())["models"]["a"]["launch"]
        assert launches == 3  # as configured, 4 sequences, 2048 tokens
        assert (await gpus.say("a"))[0] == 503
        await asyncio.sleep(1)
        assert (await gpus.look())["models"]["a"]["launch"] == launches


async def test_a_hung_engine_is_dumped_and_replaced(gpus: GpuHouse) -> None:
    gpus.house.configure(
        {
            "a": gpus.fake(
                "freezes", vram="5GiB", gpus=[0], stall_timeout="2s", restart={"backoff": "0.1s..1s"}
            )
        },
        server={"drain_timeout": "1s"},
    )
    async with running(gpus.house):
        status, error = await gpus.say("a")
        assert (status, error["code"]) == (502, "engine_crashed")
        await gpus.until(lambda status: status["models"]["a"]["state"] in ("backoff", "stopped"))
        assert gpus.told("a hangs: 1 request in flight and not one token for 2 s")
        logs = gpus.house.cli("logs", "a", "-n", "200").stdout
        assert "Current thread" in logs, "every stack is in the engine's log"


# --- sleep


SLEEPY = {"sleep_after": "1s", "stop_after": "60s"}


async def test_an_idle_engine_falls_asleep_gives_its_memory_and_wakes(gpus: GpuHouse) -> None:
    gpus.house.configure(
        {
            "a": gpus.fake(mib=18 * 1024, vram="19GiB", gpus=[0], idle=SLEEPY),
            "b": gpus.fake(mib=15 * 1024, vram="16GiB", gpus=[0]),
        }
    )
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        pid = gpus.pid("a")
        await gpus.state("a", "sleeping")
        await gpus.until(lambda status: status["gpus"][0]["held_bytes"] == GIB)
        assert (await gpus.say("b"))[0] == 200, "there is room beside the sleeper"
        assert (await gpus.look())["models"]["a"]["state"] == "sleeping"
        assert (await gpus.say("a")) == (200, "I am a."), "b makes room and a wakes"
        assert gpus.pid("a") == pid
        assert (await gpus.look())["models"]["b"]["state"] == "stopped"
        assert gpus.told("a is awake after")


async def test_an_idle_engine_that_can_sleep_makes_room_asleep(gpus: GpuHouse) -> None:
    deep = {"sleep_level": 2}
    gpus.house.configure(
        {
            "a": gpus.fake(mib=18 * 1024, vram="19GiB", gpus=[0], idle=deep),
            "b": gpus.fake(mib=15 * 1024, vram="16GiB", gpus=[0], idle=deep),
        }
    )
    async with running(gpus.house):
        pids = []
        for model in ("a", "b", "a", "b"):
            assert (await gpus.say(model)) == (200, f"I am {model}.")
            pids.append(gpus.pid(model))
        assert pids[0] == pids[2]
        assert pids[1] == pids[3]


@pytest.mark.parametrize("fault", ["wake_fails", "wakes_wrong"])
async def test_a_sleeper_that_does_not_wake_well_is_started_anew(gpus: GpuHouse, fault: str) -> None:
    gpus.house.configure({"a": gpus.fake(fault, mib=4096, vram="5GiB", gpus=[0], idle={"sleep_level": 1})})
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        assert (await gpus.admin("sleep", "a"))[0] == 200
        pid = gpus.pid("a")
        assert (await gpus.say("a")) == (200, "I am a.")
        assert gpus.pid("a") != pid
        assert gpus.told("a is not put to sleep any more")
        status, answer = await gpus.admin("sleep", "a")
        assert status >= 400
        assert "cannot put a to sleep" in answer["error"]["message"]


async def test_a_sleeper_that_keeps_its_memory_is_stopped(gpus: GpuHouse) -> None:
    gpus.house.configure(
        {"a": gpus.fake("sleep_keeps_memory", mib=18 * 1024, vram="19GiB", gpus=[0], idle=SLEEPY)}
    )
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        await gpus.state("a", "stopped", timeout_s=30)
        assert gpus.told("its memory did not come back: asleep it still held 18.0 GiB of GPU 0")


async def test_main_memory_for_sleepers_is_a_budget_too(gpus: GpuHouse) -> None:
    gpus.house.configure(
        {
            "a": gpus.fake(mib=4096, vram="5GiB", gpus=[0], idle=SLEEPY),
            "b": gpus.fake(mib=4096, vram="5GiB", gpus=[0], idle={"sleep_level": 1}),
        },
        host={"ram_budget": 1},
    )
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        async with asyncio.timeout(15):
            while not gpus.told("a is not put to sleep any more"):
                await asyncio.sleep(0.05)
        assert (await gpus.look())["models"]["a"]["state"] == "ready"


async def test_the_development_endpoints_that_sleep_needs_are_out_of_reach(gpus: GpuHouse) -> None:
    gpus.house.configure({"a": gpus.fake(mib=4096, vram="5GiB", gpus=[0], idle={"sleep_level": 1})})
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        for path in (
            "/sleep",
            "/wake_up",
            "/is_sleeping",
            "/collective_rpc",
            "/a/sleep",
            "/v1/sleep",
            "/a//sleep",
        ):
            async with gpus.web.post(path, json={"model": "a", "level": 1}) as answer:
                assert answer.status in (404, 405), path
        assert (await gpus.look())["models"]["a"]["state"] == "ready"


async def test_a_sleeper_that_is_killed_is_noticed_and_started_anew(gpus: GpuHouse) -> None:
    gpus.house.configure(
        {
            "a": gpus.fake(
                mib=4096, vram="5GiB", gpus=[0], idle={"sleep_level": 1}, restart={"backoff": "0.1s..1s"}
            )
        }
    )
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        assert (await gpus.admin("sleep", "a"))[0] == 200
        os.kill(gpus.pid("a"), signal.SIGKILL)
        assert (await gpus.say("a"))[0] == 200
        assert (await gpus.look())["models"]["a"]["launch"] == 2


# --- who comes first


async def test_nobody_starves_behind_an_engine_that_is_always_in_use(gpus: GpuHouse) -> None:
    slow = {"FAKE_TOKENS_PER_S": "5"}
    queue = {"size": 100, "timeout": "6s"}  # half of it is the fair wait
    gpus.house.configure(
        {
            "a": gpus.fake(mib=4096, vram="12GiB", gpus=[0], env=slow),
            "b": gpus.fake(mib=4096, vram="12GiB", gpus=[0], queue=queue),
        }
    )

    async def keep_busy() -> None:
        while True:
            await gpus.say("a")

    async with running(gpus.house):
        await gpus.say("a")
        crowd = [asyncio.create_task(keep_busy()) for _ in range(3)]
        try:
            assert (await gpus.say("b")) == (200, "I am b.")
        finally:
            for each in crowd:
                each.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
        assert gpus.told("a takes no new requests: it makes room for b")


async def test_plan_and_explain_say_why(gpus: GpuHouse) -> None:
    gpus.house.configure(
        {
            "a": gpus.fake(mib=9 * 1024, vram="15GiB", gpus=[0]),
            "b": gpus.fake(mib=9 * 1024, vram="10GiB", gpus="auto"),
            "huge": gpus.fake(vram="60GiB", gpus=[0]),
        }
    )
    without_daemon = gpus.house.cli("plan").stdout
    assert "huge" in without_daemon
    async with running(gpus.house):
        assert (await gpus.say("a"))[0] == 200
        plan = await gpus.admin_get("plan")
        assert {name: model["fits"] for name, model in plan["models"].items()} == {
            "a": True, "b": True, "huge": False,
        }  # fmt: skip
        assert plan["models"]["a"]["grant_bytes"] == 15 * GIB
        assert "15.0 GiB" in gpus.house.cli("plan").stdout
        async with asyncio.timeout(5):
            while "make room" not in (explained := await gpus.admin_get("explain/b"))["outlook"]:
                await asyncio.sleep(0.05)  # a was in use a moment ago
        assert explained["state"] == "stopped"
