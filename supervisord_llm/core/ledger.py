"""Who holds how much of which GPU: derived from the states, never counted up and down.

grant     what a model takes of a GPU: configured, else measured, else estimated, else the whole budget
held      what its engine counts for while it has processes: its grant, or what it is seen to use if more
foreign   what others use of the card: other programs, the driver, memory that is not back yet
free      what is left for grants: of the budget, and of the card itself
"""

from collections.abc import Iterable, Mapping

from supervisord_llm.core.fleet import Engine, Gpu, GpuSample
from supervisord_llm.core.state import HAS_PROCESS, State

RESIDUE_BYTES = 1280 * 1024**2
"""What a sleeping engine is taken to hold of each GPU until it is measured: CUDA context and graphs.

0.8-1.2 GiB were seen: vllm-project/vllm#32714, NVIDIA-NeMo/RL#223.
"""


def grant_bytes(engine: Engine, gpu: Gpu) -> int:
    """What the model takes of `gpu`. More than the budget means that it cannot run there."""
    match engine.spec.grant:
        case int(size):
            return size
        case float(share):
            return int(gpu.total_bytes * share)
        case None:
            if engine.learnt.footprint_bytes is not None:
                return engine.learnt.footprint_bytes
            if engine.estimate is None:
                return gpu.budget_bytes
            # A card with less than it would like gives all it has, as long as one sequence fits.
            return min(engine.estimate.total_bytes, max(gpu.budget_bytes, engine.estimate.least_bytes))


def kv_bytes(engine: Engine, granted_bytes: Iterable[int]) -> int | None:
    """The KV cache to order on each GPU; None: unknown, vLLM measures what its limit leaves."""
    if engine.learnt.kv_bytes is not None and not isinstance(engine.spec.grant, float):  # cards differ
        return engine.learnt.kv_bytes
    estimate = engine.estimate
    if engine.spec.grant is not None or estimate is None:
        return None
    left = min(granted_bytes, default=0) - estimate.weights_bytes - estimate.overhead_bytes
    wanted = estimate.kv_bytes * _adjusted_share(engine)
    return min(left, max(int(wanted), min(estimate.least_kv_bytes, left)))


def _adjusted_share(engine: Engine) -> float:
    """Of the KV cache in the estimate, what is needed with the flags as they were adjusted since."""
    adjusted = dict(engine.learnt.adjusted)
    assert engine.estimate is not None
    sequences, length = engine.estimate.sequences, engine.estimate.max_model_len
    share = min(1.0, adjusted.get("max-num-seqs", sequences) / max(sequences, 1))
    return share * min(1.0, adjusted.get("max-model-len", length) / max(length, 1))


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
    return sum(size for gpu, size in zip(engine.gpus, engine.granted_bytes, strict=True) if gpu == index)


def held_on(engine: Engine, index: int) -> int:
    """What it counts for: its grant, or what it uses where that is more. Its neighbours must not suffer."""
    if engine.used_bytes is None:
        return granted_on(engine, index)
    used = sum(size for gpu, size in zip(engine.gpus, engine.used_bytes, strict=True) if gpu == index)
    return max(used, granted_on(engine, index))


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

    Where the driver does not say what is whose (WSL2), or not of all, engines use what they hold.
    """
    if sample is None or sample.used_bytes is None:
        return 0
    if sample.engines is not None and all(
        engine.name in sample.engines
        for engine in holders
        if engine.state is State.READY and engine.since < sample.at
    ):
        ours = sum(sample.engines.values())
    else:
        ours = sum(granted_on(engine, sample.index) for engine in holders)
    return max(0, sample.used_bytes - ours)


def free_bytes(gpu: Gpu, holders: tuple[Engine, ...], foreign: int) -> int:
    """What `gpu` has left for grants: of its budget, and of the card less what strangers use.

    Strangers use the part outside the budget first. Negative where somebody holds too much.
    """
    held = sum(held_on(engine, gpu.index) for engine in holders)
    return min(gpu.budget_bytes, gpu.total_bytes - gpu.reserve_bytes - foreign) - held
