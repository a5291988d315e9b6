"""Who holds how much of which GPU: derived from the states, never counted up and down.

grant     what a model takes of a GPU: configured, else measured, else estimated, else the whole budget
held      what its engine counts for while it has processes: its grant, or what it is seen to use if more
foreign   what others use of the card: other programs, the driver, memory that is not back yet
free      what is left for grants: of the budget, and of the card itself
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.fleet import Engine, Gpu, GpuSample
from supervisord_llm.core.state import HAS_PROCESS, State

RESIDUE_BYTES = 1280 * 1024**2
"""What a sleeping engine is taken to hold of each GPU until it is measured: CUDA context and graphs.

0.8-1.2 GiB were seen: vllm-project/vllm#32714, NVIDIA-NeMo/RL#223.
"""


def grant_bytes(engine: Engine, gpu: Gpu) -> int:
    """What the model takes of `gpu`. More than the budget means that it cannot run there."""
    grant = engine.spec.grant
    if isinstance(grant, int):
        return grant
    if grant is not None:
        return int(gpu.total_bytes * grant)
    learnt, estimate = engine.learnt.footprint_bytes, engine.estimate
    if learnt is not None and learnt <= gpu.budget_bytes:
        return learnt
    if estimate is None:
        return gpu.budget_bytes
    # A card with less than it would like gives all it has, as long as one sequence fits.
    wanted = estimate.total_bytes if learnt is None else learnt
    return min(wanted, max(gpu.budget_bytes, estimate.least_bytes))


def kv_bytes(engine: Engine, granted_bytes: Iterable[int]) -> int | None:
    """The KV cache to order on each GPU; None: unknown, vLLM measures what its limit leaves."""
    granted = min(granted_bytes, default=0)
    learnt, estimate = engine.learnt, adjusted_estimate(engine)
    if isinstance(engine.spec.grant, int):
        return learnt.kv_bytes
    if engine.spec.grant is not None:  # a share: cards differ
        return None
    if learnt.kv_bytes is not None and granted >= (learnt.footprint_bytes or 0):  # not on a smaller card
        return learnt.kv_bytes
    if estimate is None:
        return None
    left = granted - estimate.weights_bytes - estimate.overhead_bytes
    if left < estimate.least_kv_bytes:  # the estimate is above what was measured: vLLM knows better
        return None
    return min(left, estimate.kv_bytes)


def adjusted_estimate(engine: Engine) -> Estimate | None:
    """The estimate, with the flags that were changed since it ran out of GPU memory."""
    estimate, changed = engine.estimate, dict(engine.learnt.adjusted)
    if estimate is None or not changed:
        return estimate
    length = min(estimate.max_model_len, changed.get("max-model-len", estimate.max_model_len))
    sequences = min(estimate.sequences, changed.get("max-num-seqs", estimate.sequences))
    shorter = length / max(estimate.max_model_len, 1)
    least = int(estimate.least_kv_bytes * shorter)
    wanted = int(estimate.kv_bytes * shorter * sequences / max(estimate.sequences, 1))
    return replace(
        estimate,
        max_model_len=length,
        sequences=sequences,
        least_kv_bytes=least,
        kv_bytes=max(wanted, least),
    )


def memory_fraction(granted_bytes: tuple[int, ...], gpus: Iterable[Gpu]) -> float | None:
    """A grant as a share of the card, for the engine's own limit: the least where cards differ."""
    shares = [size / gpu.total_bytes for size, gpu in zip(granted_bytes, gpus, strict=True)]
    return min(shares, default=None)


def residue_bytes(engine: Engine, index: int) -> int:
    """What it will go on holding of GPU `index` while it sleeps, as far as is known."""
    learnt = engine.learnt.residue_bytes
    return min(granted_on(engine, index), RESIDUE_BYTES if learnt is None else learnt)


def granted_on(engine: Engine, index: int) -> int:
    """What `engine` may hold of GPU `index`, from its launch until it is reaped."""
    if engine.gpus == (index,):
        return engine.granted_bytes[0]
    return sum(size for gpu, size in zip(engine.gpus, engine.granted_bytes, strict=True) if gpu == index)


def held_on(engine: Engine, index: int) -> int:
    """What it counts for: its grant, or what it uses where that is more. Its neighbours must not suffer."""
    if engine.used_bytes is None:
        return granted_on(engine, index)
    if engine.gpus == (index,):
        return max(engine.used_bytes[0], engine.granted_bytes[0])
    return max(_used_on(engine, index), granted_on(engine, index))


def held_bytes(engines: Iterable[Engine], gpus: Mapping[int, Gpu]) -> dict[int, int]:
    """Bytes granted on each GPU, by index. Engines on a GPU that is gone hold nothing."""
    held = dict.fromkeys(gpus, 0)
    for engine in engines:
        if engine.state in HAS_PROCESS:
            for index in engine.gpus:
                if index in held:
                    held[index] += granted_on(engine, index)
    return held


def foreign_bytes(sample: GpuSample | None, holders: Iterable[Engine]) -> int:
    """What is used of a card and not by our engines; 0 where nothing can be told.

    Where the driver does not say what is whose (WSL2), or not of all, engines use what they hold; one
    launched after the look is not in its figures.
    """
    if sample is None or sample.used_bytes is None:
        return 0
    ours = _seen_bytes(sample, holders)
    if ours is None:
        ours = sum(held_on(engine, sample.index) for engine in _in_figures(sample, holders))
    return max(0, sample.used_bytes - ours)


def unexplained_bytes(sample: GpuSample | None, holders: Iterable[Engine]) -> int:
    """What is used of a card by nobody that is known: the driver's own, and what is not back yet."""
    if sample is None or sample.used_bytes is None:
        return 0
    ours = _seen_bytes(sample, holders)
    if ours is None:
        ours = sum(_used_on(engine, sample.index) for engine in _in_figures(sample, holders))
    return max(0, sample.used_bytes - ours - sum(stranger.used_bytes for stranger in sample.strangers))


def _seen_bytes(sample: GpuSample, holders: Iterable[Engine]) -> int | None:
    """What the driver says our engines use; None where it does not say it of all that serve."""
    if sample.engines is None:
        return None
    for each in holders:
        if each.state is State.READY and each.since < sample.at and each.name not in sample.engines:
            return None
    return sum(sample.engines.values())


def _in_figures(sample: GpuSample, holders: Iterable[Engine]) -> Iterator[Engine]:
    return (each for each in holders if each.state is not State.STARTING or each.since < sample.at)


def _used_on(engine: Engine, index: int) -> int:
    """What it is last known to use, which may be less than it holds."""
    if engine.used_bytes is None:
        granted = granted_on(engine, index)
        learnt = engine.learnt.footprint_bytes if engine.state is State.READY else None
        return granted if learnt is None else min(learnt, granted)
    return sum(size for gpu, size in zip(engine.gpus, engine.used_bytes, strict=True) if gpu == index)


def limit_bytes(gpu: Gpu, foreign: int) -> int:
    """What all engines together may hold: of the budget, and of the card itself less what others use.

    Strangers use the part outside the budget first.
    """
    return min(gpu.budget_bytes, gpu.total_bytes - gpu.reserve_bytes - foreign)


def free_bytes(gpu: Gpu, holders: tuple[Engine, ...], foreign: int) -> int:
    """What `gpu` has left for grants. Negative where somebody holds too much."""
    return limit_bytes(gpu, foreign) - sum(held_on(engine, gpu.index) for engine in holders)
