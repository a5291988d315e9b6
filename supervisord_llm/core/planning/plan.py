"""What the memory of the GPUs is spoken for, model by model, and which models fit together. Pure.

The figures are those that the scheduler places by (ledger.py, placement.py): the plan is what happens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from supervisord_llm.core.explain import gib
from supervisord_llm.core.fleet import Engine, Fleet, Gpu, Stranger
from supervisord_llm.core.frozen import replace
from supervisord_llm.core.ledger import adjusted_estimate, foreign_bytes, free_bytes, grant_bytes, held_bytes
from supervisord_llm.core.placement import impossible
from supervisord_llm.core.planning import spending, together
from supervisord_llm.core.planning.suggest import LongestContext, suggestions
from supervisord_llm.core.planning.together import Need
from supervisord_llm.core.state import HAS_PROCESS

Source = Literal["configured", "measured", "estimated", "whole budget", "no GPU"]
"""Where a grant comes from, in the order of preference; the last is for a model on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlan:
    """One GPU. None is "cannot be learnt"."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    budget_bytes: int
    held_bytes: int
    """What the engines on it were granted."""
    used_bytes: int | None
    """What everybody holds of it."""
    foreign_bytes: int | None
    """What others than our engines hold of it."""
    strangers: tuple[Stranger, ...]
    free_bytes: int
    """What is left for grants now."""
    models: tuple[str, ...]
    """Those whose engine is on it now."""
    lost: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGpu:
    """What a model takes of one GPU that it may run on; `why_not` is "" where it fits there."""

    gpu: int
    grant_bytes: int
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """One model. The parts are bytes of each of its GPUs, None where there is no estimate of them."""

    name: str
    source: Source
    where: str
    """Where it may run, in words: "GPU 0", "any GPU", "2 equal GPUs", "the CPU"."""
    gpu_count: int
    grant_bytes: int | None
    """What it takes of each GPU, the most where they differ; None on the CPU."""
    weights_bytes: int | None = None
    kv_bytes: int | None = None
    overhead_bytes: int | None = None
    max_model_len: int | None = None
    full_sequences: float | None = None
    """How many sequences of that length its KV cache holds at once."""
    on: tuple[OnGpu, ...] = ()
    gpus: tuple[int, ...] = ()
    """Where its engine is now."""
    fits: bool = True
    """Alone, on this host as it is: it would not be refused."""
    why_not: str = ""
    doubt: str = ""
    """Why its next start may fail, although it would be tried, as a sentence."""
    suggestions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A model that does not fit beside a set, and what it lacks there."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Models that fit at once, awake, where each would be, and why no other one fits beside them."""

    models: tuple[str, ...]
    gpus: tuple[tuple[int, ...], ...]
    """Of each of `models`."""
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole. Models that fit nowhere, and those on the CPU, are in no set."""

    gpus: tuple[GpuPlan, ...]
    models: tuple[ModelPlan, ...]
    together: tuple[Together, ...]
    is_complete: bool
    """Whether `together` has every largest set; else it has some, each model in one at least."""


def plan(fleet: Fleet, longest_context: LongestContext | None = None) -> Plan:
    """The plan of a fleet as it stands. Takes milliseconds, a tenth of a second at worst.

    `longest_context` knows the models better than their estimates; without it suggestions are cautious.
    """
    holders = tuple(engine for engine in fleet if engine.state in HAS_PROCESS)
    cards = tuple(_gpu(gpu, fleet, holders) for gpu in fleet.gpus.values())
    room = {
        card.index: free_bytes(fleet.gpus[card.index], (), card.foreign_bytes or 0)
        for card in cards
        if not card.lost
    }
    models = tuple(_model(engine, fleet, room, longest_context) for engine in fleet)
    needs = [
        Need(model.name, fleet.engines[model.name].spec.pinned, model.gpu_count, _grants(model))
        for model in models
        if model.fits and model.on and len(_grants(model)) >= model.gpu_count
    ]
    kinds = {index: gpu.total_bytes for index, gpu in fleet.gpus.items()}
    found = together.largest_sets(needs, room, kinds)
    return Plan(
        gpus=cards,
        models=models,
        together=tuple(_together(each, needs, room) for each in found.sets),
        is_complete=found.is_complete,
    )


def as_json(plan: Plan) -> dict[str, Any]:
    """What GET /admin/plan answers: models by name, sizes in bytes."""
    document = asdict(plan)
    document["models"] = {model.pop("name"): model for model in document["models"]}
    for card in document["gpus"]:
        card["models"] = list(card["models"])
    return document


def source(engine: Engine) -> Source:
    """Where the model's grant comes from."""
    if engine.spec.pinned == ():
        return "no GPU"
    if engine.spec.grant is not None:
        return "configured"
    if engine.learnt.footprint_bytes is not None:
        return "measured"
    return "whole budget" if engine.estimate is None else "estimated"


def _gpu(gpu: Gpu, fleet: Fleet, holders: tuple[Engine, ...]) -> GpuPlan:
    sample = fleet.samples.get(gpu.index)
    on_it = tuple(engine for engine in holders if gpu.index in engine.gpus)
    foreign = foreign_bytes(sample, on_it)
    used = None if sample is None else sample.used_bytes
    lost = "" if sample is None else sample.lost
    return GpuPlan(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        total_bytes=gpu.total_bytes,
        budget_bytes=gpu.budget_bytes,
        held_bytes=held_bytes(on_it, {gpu.index: gpu})[gpu.index],
        used_bytes=used,
        foreign_bytes=None if used is None else foreign,
        strangers=() if sample is None else sample.strangers,
        free_bytes=0 if lost else max(0, free_bytes(gpu, on_it, foreign)),
        models=tuple(engine.name for engine in on_it),
        lost=lost,
    )


def _model(
    engine: Engine, fleet: Fleet, room: Mapping[int, int], longest_context: LongestContext | None
) -> ModelPlan:
    spec = engine.spec
    asked = tuple(fleet.gpus) if spec.pinned is None else spec.pinned
    candidates = tuple(fleet.gpus[index] for index in asked if index in fleet.gpus)
    on = tuple(_on(engine, gpu, room) for gpu in candidates)
    is_on_cpu = spec.pinned == () or (spec.pinned is None and not fleet.gpus)
    count = 0 if is_on_cpu else len(asked) if spec.pinned is not None else spec.gpu_count
    if spec.disabled or len(candidates) < len(asked):
        why_not = impossible(engine, fleet)
    else:
        why_not = _why_not(engine, on, count, fleet)
    doubt = spending.doubt(engine, (each.grant_bytes for each in on if not each.why_not))
    if why_not and engine.state in spending.SERVES:
        why_not, doubt = "", f"{engine.name} is {engine.state}; its next start would be refused: {why_not}"
    grant = max((each.grant_bytes for each in on if not each.why_not), default=None)
    if grant is None:
        grant = max((each.grant_bytes for each in on), default=None)
    return ModelPlan(
        name=engine.name,
        source="no GPU" if is_on_cpu else source(engine),
        where=_where(engine, count),
        gpu_count=count,
        grant_bytes=grant,
        on=on,
        gpus=engine.gpus,
        fits=not why_not,
        why_not=why_not,
        doubt="" if why_not else doubt,
        suggestions=_ways_out(engine, fleet, room, longest_context) if count and (why_not or doubt) else (),
        **(spending.parts_on_cpu(engine) if is_on_cpu else spending.parts(engine, grant)),
    )


def _ways_out(
    engine: Engine, fleet: Fleet, room: Mapping[int, int], longest_context: LongestContext | None
) -> tuple[str, ...]:
    if engine.spec.disabled:  # not for want of memory
        return ()
    judged = replace(engine, estimate=adjusted_estimate(engine))
    return suggestions(judged, fleet, room, longest_context)


def _on(engine: Engine, gpu: Gpu, room: Mapping[int, int]) -> OnGpu:
    grant, why_not = grant_bytes(engine, gpu), ""
    if gpu.index not in room:
        why_not = f"GPU {gpu.index} is lost"
    elif grant > gpu.budget_bytes:
        why_not = f"it needs {gib(grant)} of a budget of {gib(gpu.budget_bytes)} on GPU {gpu.index}"
    elif grant > room[gpu.index]:
        left = gib(max(0, room[gpu.index]))
        why_not = f"it needs {gib(grant)}, and other programs leave {left} of GPU {gpu.index}"
    return OnGpu(gpu=gpu.index, grant_bytes=grant, why_not=why_not)


def _why_not(engine: Engine, on: tuple[OnGpu, ...], count: int, fleet: Fleet) -> str:
    """Why it does not fit, told of the first GPU that is not enough."""
    kinds = [fleet.gpus[each.gpu].total_bytes for each in on if not each.why_not]
    most = len(kinds) if engine.spec.pinned is not None else max(map(kinds.count, kinds), default=0)
    if most >= count:
        return ""
    too_few = f"it takes {count} equal GPUs, and there are {most} with room for it"
    why = next((each.why_not for each in on if each.why_not), too_few)
    return f"cannot start {engine.name}: {why}"


def _where(engine: Engine, count: int) -> str:
    if count == 0:
        return "-" if engine.spec.disabled else "another machine" if engine.spec.elsewhere else "the CPU"
    if engine.spec.pinned is not None:
        return f"GPU {' and '.join(map(str, engine.spec.pinned))}"
    return "any GPU" if count == 1 else f"{count} equal GPUs"


def _grants(model: ModelPlan) -> dict[int, int]:
    return {each.gpu: each.grant_bytes for each in model.on if not each.why_not}


def _together(found: together.Set, needs: Iterable[Need], room: Mapping[int, int]) -> Together:
    free = dict(room)
    by_name = {need.name: need for need in needs}
    for name, gpus in found.items():
        for index in gpus:
            free[index] -= by_name[name].grants[index]
    return Together(
        models=tuple(found),
        gpus=tuple(found.values()),
        left_out=tuple(
            LeftOut(name=name, why=_lacks(need, free)) for name, need in by_name.items() if name not in found
        ),
    )


def _lacks(need: Need, free: Mapping[int, int]) -> str:
    """What keeps a model out beside a set that fills the GPUs, told of the one that comes nearest."""
    short = {index: grant - free[index] for index, grant in need.grants.items()}
    if need.pinned is None:
        ordered = sorted(short.items(), key=lambda item: (item[1], item[0]))
        index, missing = ordered[min(need.count, len(ordered)) - 1]
    else:
        index, missing = max(short.items(), key=lambda item: item[1])
    if missing <= 0:
        return "with these it would need other GPUs"
    return f"{gib(missing)} short on GPU {index}"
