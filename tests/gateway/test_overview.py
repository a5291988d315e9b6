"""The close look: what is told of memory, and why things are as they are."""

import asyncio
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.events import Estimated, GpusSampled
from supervisord_llm.core.fleet import Gpu, GpuSample, Stranger
from supervisord_llm.core.state import State
from supervisord_llm.gateway.ports import Facts
from supervisord_llm.runtime.ports import Usage
from tests.gateway.conftest import Build, House, config, model, running

GIB = 1024**3
CARD = Gpu(index=0, uuid="GPU-a", name="Card", total_bytes=24 * GIB, budget_bytes=20 * GIB)
SECOND = Gpu(index=1, uuid="GPU-b", name="Card", total_bytes=24 * GIB, budget_bytes=20 * GIB)
BLENDER = Stranger(pid=4711, name="blender", used_bytes=3 * GIB)


def look(house: House, **engines: int) -> None:
    """A look at the first GPU: what these models and a stranger hold."""
    sample = GpuSample(
        index=0,
        at=asyncio.get_running_loop().time(),
        used_bytes=sum(engines.values()) + BLENDER.used_bytes,
        engines=engines,
        strangers=(BLENDER,),
        utilization=0.5,
        temperature_c=61,
    )
    house.runtime.dispatch(GpusSampled(samples=(sample,)))


async def status(house: House) -> Any:
    return (await house.ask("GET", "/admin/status", control=True)).json


async def samples(house: House) -> dict[tuple[str, ...], float]:
    """Name and label values of each sample of /metrics."""
    text = (await house.ask("GET", "/metrics")).body.decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_memory_that_was_measured_is_told_everywhere(build: Build) -> None:
    async with build(config(model("alpha", vram=6 * GIB), model("beta")), gpus=(CARD, SECOND)) as house:
        await house.runtime.start("alpha")
        look(house, alpha=5 * GIB)
        told = await status(house)
        alpha = told["models"]["alpha"]
        assert (alpha["gpus"], alpha["grant_bytes"], alpha["used_bytes"]) == ([0], [6 * GIB], [5 * GIB])
        first, second = told["gpus"]
        assert (first["held_bytes"], first["used_bytes"], first["stranger_bytes"]) == (
            6 * GIB,
            8 * GIB,
            3 * GIB,
        )
        assert first["strangers"] == [{"pid": 4711, "name": "blender", "used_bytes": 3 * GIB}]
        assert (first["utilization"], first["temperature_c"], first["lost"]) == (0.5, 61, "")
        assert second["used_bytes"] is None
        assert second["stranger_bytes"] is None
        health = (await house.ask("GET", "/health")).json["models"]
        assert (health["alpha"]["vram_used"], health["beta"]["vram_used"]) == (5 * GIB, None)
        found = await samples(house)
    assert found["llm_supervisor_gpu_budget_bytes", "0", "GPU-a"] == 20 * GIB
    assert found["llm_supervisor_gpu_granted_bytes", "0", "GPU-a"] == 6 * GIB
    assert found["llm_supervisor_gpu_used_bytes", "0", "GPU-a"] == 8 * GIB
    assert found["llm_supervisor_gpu_stranger_bytes", "0", "GPU-a"] == 3 * GIB
    assert found["llm_supervisor_gpu_utilization_ratio", "0", "GPU-a"] == 0.5
    assert found["llm_supervisor_gpu_temperature_celsius", "0", "GPU-a"] == 61
    assert found["llm_supervisor_gpu_lost", "0", "GPU-a"] == 0
    assert found["llm_supervisor_engine_granted_bytes", "0", "alpha"] == 6 * GIB
    assert found["llm_supervisor_engine_used_bytes", "0", "alpha"] == 5 * GIB
    assert ("llm_supervisor_gpu_used_bytes", "1", "GPU-b") not in found, "what is not known is not 0"


async def test_a_lost_gpu_is_told(build: Build) -> None:
    async with build(config(model("alpha", vram=6 * GIB)), gpus=(CARD,)) as house:
        at = asyncio.get_running_loop().time()
        house.runtime.dispatch(GpusSampled(samples=(GpuSample(index=0, at=at, lost="fell off the bus"),)))
        (gpu,) = (await status(house))["gpus"]
        assert (gpu["lost"], gpu["used_bytes"]) == ("fell off the bus", None)
        assert (await samples(house))["llm_supervisor_gpu_lost", "0", "GPU-a"] == 1


async def test_an_estimate_is_told_and_planned_with(build: Build) -> None:
    estimate = Estimate(
        weights_bytes=5 * GIB,
        kv_bytes=4 * GIB,
        least_kv_bytes=GIB,
        overhead_bytes=GIB,
        host_bytes=5 * GIB,
        max_model_len=8192,
        sequences=4,
        kv_bytes_per_token=GIB // 8192,
    )
    async with build(config(model("alpha"), model("cpu")), gpus=(CARD,)) as house:
        house.runtime.dispatch(Estimated(model="alpha", signature="", estimate=estimate))
        told = (await status(house))["models"]["alpha"]["estimate"]
        assert (told["weights_bytes"], told["total_bytes"]) == (5 * GIB, 10 * GIB)
        plan = (await house.ask("GET", "/admin/plan", control=True)).json
    alpha = plan["models"]["alpha"]
    assert (alpha["source"], alpha["grant_bytes"], alpha["fits"]) == ("estimated", 10 * GIB, True)
    assert plan["gpus"][0]["budget_bytes"] == 20 * GIB
    assert [each["models"] for each in plan["together"]] == [["alpha"], ["cpu"]]


async def test_the_longest_context_is_asked_of_who_knows_the_weights(build: Build) -> None:
    asked: list[tuple[str, int]] = []

    def longest(name: str, budget_bytes: int) -> int:
        asked.append((name, budget_bytes))
        return 4096

    one, facts = config(model("alpha", vram=2 * GIB)), Facts(longest_context=longest)
    async with build(one, gpus=(CARD,), facts=facts) as house:
        estimate = Estimate(
            weights_bytes=GIB,
            kv_bytes=4 * GIB,
            least_kv_bytes=4 * GIB,
            overhead_bytes=0,
            host_bytes=GIB,
            max_model_len=8192,
            sequences=1,
            kv_bytes_per_token=GIB // 2048,
        )
        house.runtime.dispatch(Estimated(model="alpha", signature="", estimate=estimate))
        alpha = (await house.ask("GET", "/admin/plan", control=True)).json["models"]["alpha"]
    assert asked == [("alpha", 2 * GIB)]
    assert "fits with max-model-len 4096" in alpha["suggestions"]


async def test_who_waits_for_room_is_told_with_place_and_reason(build: Build) -> None:
    alpha, beta = model("alpha", vram=15 * GIB), model("beta", vram=12 * GIB)
    async with build(config(alpha, beta), gpus=(CARD,), held=("alpha", "beta")) as house:
        house.launcher.held["alpha"].set()
        async with (
            house.runtime.lease("alpha", source="webui") as lease,
            running(house.chat(model="beta")),
        ):
            await lease.admission
            await house.until(lambda: house.state("beta") is State.QUEUED)
            told = (await house.ask("GET", "/admin/explain/beta", control=True)).json
            assert (await status(house))["models"]["beta"]["place"] == 1
    assert (told["model"], told["state"], told["place"]) == ("beta", "queued", 1)
    (waiting,) = told["waiting"]
    assert (waiting["place"], waiting["source"]) == (1, "anonymous")
    assert waiting["waits_s"] >= 0
    assert "alpha (15.0 GiB" in waiting["reason"]
    assert told["grant"]["asks_bytes"] == {"0": 12 * GIB}
    assert told["grant"]["source"] == "configured"
    assert "beta" in told["summary"]
    assert told["outlook"]
    assert all(entry["model"] == "beta" for entry in told["decisions"])
    assert any("prepares beta" in entry["text"] for entry in told["decisions"])


async def test_an_explanation_takes_aliases_and_slashes_and_knows_its_models(build: Build) -> None:
    async with build(config(model("org/a", aliases=("a",)))) as house:
        for name in ("a", "org/a", "org%2Fa"):
            answer = await house.ask("GET", f"/admin/explain/{name}", control=True)
            assert answer.json["model"] == "org/a"
        missing = await house.ask("GET", "/admin/explain/b", control=True)
        assert (missing.status, missing.code) == (404, "model_not_found")


async def test_the_last_decisions_about_a_model_are_told(build: Build) -> None:
    async with build(config(model("alpha"), model("beta"))) as house:
        for number in range(30):
            house.runtime.events.add("alpha", f"{number}")
            house.runtime.events.add("beta", "something else")
        told = (await house.ask("GET", "/admin/explain/alpha", control=True)).json
    assert [entry["text"] for entry in told["decisions"]] == [f"{number}" for number in range(10, 30)]


async def test_evictions_sleeps_and_wakes_are_counted(build: Build, tmp_path: Path) -> None:
    alpha, beta = model("alpha", vram=15 * GIB, sleep_level=1), model("beta", vram=12 * GIB)
    async with build(config(alpha, beta), gpus=(CARD,), held=("alpha", "beta")) as house:
        for event in house.launcher.held.values():
            event.set()
        before = await samples(house)
        await house.runtime.start("alpha")
        await house.runtime.sleep("alpha")
        await house.runtime.wake("alpha")
        assert (await samples(house))["llm_supervisor_evictions_total", "alpha"] == 0, "a person asked for it"
        await house.runtime.start("beta")
        found = await samples(house)
    assert before["llm_supervisor_sleeps_total", "alpha", "asleep"] == 0
    assert found["llm_supervisor_sleeps_total", "alpha", "asleep"] == 2
    assert found["llm_supervisor_sleeps_total", "alpha", "failed"] == 0
    assert found["llm_supervisor_wakes_total", "alpha", "ready"] == 1
    assert found["llm_supervisor_evictions_total", "alpha"] == 1
    assert found["llm_supervisor_evictions_total", "beta"] == 0


async def test_what_an_engine_takes_of_the_host_is_told_or_null(build: Build) -> None:
    usages = {"alpha": Usage(memory_bytes=3 * GIB, cpu_s=1.5), "beta": Usage()}
    models = (model("alpha"), model("beta"), model("gamma"))
    async with build(config(*models), facts=Facts(usage=usages.get)) as house:
        told = (await status(house))["models"]
        assert [(told[each]["memory_bytes"], told[each]["cpu_s"]) for each in ("alpha", "beta", "gamma")] == [
            (3 * GIB, 1.5),
            (None, None),
            (None, None),
        ]
