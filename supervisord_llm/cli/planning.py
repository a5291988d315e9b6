"""The fleet that a daemon would begin with, for `check`, and for `plan` where no daemon runs."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from supervisord_llm.config.model import Config, Model
from supervisord_llm.config.parse import is_local
from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.fleet import Engine, Fleet, GpuSample, Stranger
from supervisord_llm.core.planning.plan import as_json, plan
from supervisord_llm.engines.preflight import preflight
from supervisord_llm.errors import ProvisionError
from supervisord_llm.gpu.budget import budgets
from supervisord_llm.gpu.learnt import LearntStore
from supervisord_llm.gpu.sensor import GpuReading, GpuSeen
from supervisord_llm.gpu.specs import model_specs
from supervisord_llm.gpu.watcher import look_once
from supervisord_llm.provision.provisioner import Provisioner

AT_ONCE = 4
"""Models estimated at the same time: one whose weights are not here may have to ask the hub."""


def local_plan(config: Config) -> dict[str, Any]:
    """What GET /admin/plan would answer if a daemon had just begun with `config`."""
    reading = asyncio.run(look_once())
    provisioner = Provisioner(config, cuda=reading.may_have_gpus)
    fleet = resting_fleet(config, reading)
    on_gpus = [engine.name for engine in fleet if engine.spec.pinned != ()]
    known = asyncio.run(_estimates(provisioner, on_gpus)) if fleet.gpus else {}
    samples = {seen.index: _sample(seen) for seen in reading.gpus}
    fleet = resting_fleet(config, reading, known.get)
    engines = {engine.name: _judged(engine, why_never(config, provisioner, engine.name)) for engine in fleet}
    fleet = replace(fleet, engines=MappingProxyType(engines), samples=MappingProxyType(samples))
    problems = list(reading.problems) if reading.may_have_gpus else []
    return as_json(plan(fleet, provisioner.suggest_max_model_len)) | {"problems": problems}


def why_never(config: Config, provisioner: Provisioner, name: str) -> str:
    """What the daemon would say instead of launching it, memory apart, as far as that can be known already.

    "" where nothing speaks against it, or only what a `pull` makes is missing.
    """
    model = config.models[name]
    broken = [str(path) for path in broken_paths(model)]
    if broken:
        return next((fact for fact in provisioner.facts(name) if any(path in fact for path in broken)), "")
    return refusal(config, provisioner, model)


def refusal(config: Config, provisioner: Provisioner, model: Model) -> str:
    """Why the daemon would not launch what is there of the model; "" where it would."""
    weights: Path | None = None
    venv: Path | None = None
    try:
        if model.engine == "vllm":
            weights, venv = Path(provisioner.weights_of(model.name)), provisioner.venv_of(model.name)
            model = provisioner.located(model.name)
    except ProvisionError:
        return ""  # missing, which is another matter
    try:
        preflight(model, weights, venv, config.paths.cache)
    except ProvisionError as error:
        return str(error)
    return ""


def broken_paths(model: Model) -> Iterator[Path]:
    """What the configuration names, is not there, and no `pull` can make."""
    if model.engine != "vllm":
        return
    venv = model.venv.path if model.venv is not None else None
    if venv is not None and not (venv / "bin" / "vllm").is_file():
        yield venv
    for each in (model, *model.adapters):
        if is_local(each.source) and not Path(each.source).exists():
            yield Path(each.source)


def _judged(engine: Engine, why: str) -> Engine:
    if not why or engine.spec.disabled:
        return engine
    return replace(engine, spec=replace(engine.spec, disabled=f"cannot start {engine.name}: {why}"))


def resting_fleet(
    config: Config, reading: GpuReading, estimate: Callable[[str], Estimate | None] = lambda _: None
) -> Fleet:
    """The fleet that a daemon would begin with: every model with what is known of it, and nothing running."""
    there = budgets(config.vram, config.gpu_budgets, reading)
    gpus = there.gpus
    specs = model_specs(config, there, LearntStore(config.paths.learnt).load)
    engines = {
        spec.name: Engine(spec=spec, learnt=spec.learnt, estimate=estimate(spec.name)) for spec in specs
    }
    return Fleet(engines=MappingProxyType(engines), gpus=MappingProxyType({gpu.index: gpu for gpu in gpus}))


async def _estimates(provisioner: Provisioner, models: list[str]) -> dict[str, Estimate | None]:
    places = asyncio.Semaphore(AT_ONCE)

    async def estimate(model: str) -> Estimate | None:
        async with places:
            return await provisioner.estimate(model)

    return dict(zip(models, await asyncio.gather(*map(estimate, models)), strict=True))


def _sample(seen: GpuSeen) -> GpuSample:
    """Without a daemon every program on the GPU is a stranger."""
    strangers = tuple(
        Stranger(pid=process.pid, name=_name(process.pid), used_bytes=process.used_bytes)
        for process in seen.processes or ()
    )
    return GpuSample(
        index=seen.index,
        at=0.0,
        used_bytes=seen.used_bytes,
        engines=None if seen.processes is None else {},
        strangers=strangers,
        utilization=seen.utilization,
        temperature_c=seen.temperature_c,
    )


def _name(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).name()
    return "a process"
