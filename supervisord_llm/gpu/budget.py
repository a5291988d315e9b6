"""From what the configuration allows and what the host has to the GPUs and the policy of the fleet. Pure.

The budget is the law: a share of the card or a size, [gpus.K] before [vram].budget, never more than the card
has. [vram].reserve is taken off it. Where configuration and host disagree, the host wins and a
sentence says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from supervisord_llm.config.model import Config, Share, Vram
from supervisord_llm.core.fleet import Gpu, Policy
from supervisord_llm.gpu.sensor import GpuLost, GpuReading, GpuSeen


@dataclass(frozen=True, slots=True)
class Budgets:
    """The usable GPUs in index order, and what the host's owner should know, one sentence each."""

    gpus: tuple[Gpu, ...] = ()
    facts: tuple[str, ...] = ()
    lost: tuple[GpuLost, ...] = ()
    """Those that the driver counts and could not read, and that were never usable."""
    unknown: str = ""
    """Why it cannot be told which GPUs can be used, where there is none: that is not to have none."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Where a model may run: GPU indices, () for CPU, None where the scheduler chooses.

    `why_not` is a sentence where the configuration asks for what the host has not; then `indices` is ().
    """

    indices: tuple[int, ...] | None
    why_not: str = ""


def budgets(vram: Vram, gpu_budgets: Mapping[str, int | Share], reading: GpuReading) -> Budgets:
    """Give every GPU of the reading its budget. Keys of `gpu_budgets` are indices ("0") or UUIDs."""
    gpus: list[Gpu] = []
    facts = list(reading.problems)
    for seen in reading.gpus:
        if seen.total_bytes is None:
            facts.append(f"GPU {seen.index} ({seen.name}) does not tell its memory size and is left out")
            continue
        own = [(key, budget) for key, budget in gpu_budgets.items() if _names(key, seen)]
        key, budget = own[0] if own else ("", vram.budget)
        facts += [f"gpus.{other} and gpus.{key} are the same GPU: gpus.{key} counts" for other, _ in own[1:]]
        allowed = _bytes_of(budget, seen.total_bytes)
        if allowed > seen.total_bytes:
            where = f"gpus.{key}.budget" if key else "vram.budget"
            card = f"GPU {seen.index} ({seen.name}) has {_gib(seen.total_bytes)}"
            facts.append(f"{where} is {_gib(allowed)}, but {card}: all of it is the budget")
        budget_bytes = max(0, min(allowed, seen.total_bytes) - vram.reserve_bytes)
        if budget_bytes == 0:
            facts.append(f"the budget of GPU {seen.index} is nothing once vram.reserve is taken off")
        gpus.append(
            Gpu(
                index=seen.index,
                uuid=seen.uuid,
                name=seen.name,
                total_bytes=seen.total_bytes,
                budget_bytes=budget_bytes,
                reserve_bytes=vram.reserve_bytes,
            )
        )
    counted: tuple[GpuSeen | GpuLost, ...] = (*reading.gpus, *reading.lost)
    facts += [
        f"gpus.{key} is set, but {_not_there(key, reading.gpus)}"
        for key in gpu_budgets
        if not reading.unknown and not any(_names(key, each) for each in counted)
    ]
    return Budgets(tuple(gpus), tuple(facts), reading.lost, reading.unknown)


def policy(config: Config, host_total_bytes: int | None) -> Policy:
    """What [vram] and [host] say for the fleet as a whole; `host_total_bytes` is the host's main memory.

    Without that figure a share of it is no limit.
    """
    wanted = config.host.ram_budget
    is_unknown = isinstance(wanted, Share) and host_total_bytes is None
    return Policy(
        enforce=config.vram.enforce,
        tolerance=config.vram.tolerance.fraction,
        host_budget_bytes=None if is_unknown else _bytes_of(wanted, host_total_bytes or 0),
    )


def pin(wanted: Literal["auto"] | tuple[int | str, ...], there: Budgets) -> Pin:
    """Resolve a model's `gpus`. "auto" is the scheduler's choice, or the CPU where there is no GPU."""
    if there.unknown and wanted:
        return Pin((), _unknown(wanted, there))
    if wanted == "auto":
        return Pin(None if there.gpus else ())
    indices: list[int] = []
    for key in wanted:
        found = next((gpu.index for gpu in there.gpus if _names(str(key), gpu)), None)
        if found is None:
            lost = _lost(str(key), there)
            return Pin((), lost or f"gpus = {list(wanted)}, but {_not_there(str(key), there.gpus)}")
        if found in indices:
            return Pin((), f"gpus = {list(wanted)} names GPU {found} twice")
        indices.append(found)
    return Pin(tuple(indices))


def _unknown(wanted: Literal["auto"] | tuple[int | str, ...], there: Budgets) -> str:
    lost = "" if wanted == "auto" else next(filter(None, (_lost(str(key), there) for key in wanted)), "")
    way_out = "it is asked for again until it is known, and gpus = [] means the CPU"
    return lost or f"it is not known which GPUs can be used: {there.unknown}; {way_out}"


def _lost(key: str, there: Budgets) -> str:
    """Why the GPU of this index or UUID is not usable; "" where it is not one of the lost."""
    found = next((each for each in there.lost if _names(key, each)), None)
    if found is None and not key.isdecimal():  # it may be one whose UUID was never learnt
        found = next((each for each in there.lost if not each.uuid), None)
    return f"GPU {found.index} is lost: {found.why}; or change its `gpus`" if found is not None else ""


def _names(key: str, gpu: Gpu | GpuSeen | GpuLost) -> bool:
    return key == str(gpu.index) or key.lower() == gpu.uuid.lower()


def _not_there(key: str, gpus: Sequence[Gpu | GpuSeen]) -> str:
    there = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus)
    return f"this host has no GPU {key}; it has {there or 'none'}"


def _bytes_of(budget: int | Share, total_bytes: int) -> int:
    return int(budget.fraction * total_bytes) if isinstance(budget, Share) else budget


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**3:.1f} GiB"
