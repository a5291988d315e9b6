"""Who holds how much of which GPU: derived from the states, never counted up and down."""

from collections.abc import Iterable, Mapping

from supervisord_llm.core.fleet import Engine, Gpu, ModelSpec
from supervisord_llm.core.state import HOLDS_GRANT


def grant_bytes(spec: ModelSpec, gpu: Gpu) -> int:
    """What `spec` takes of `gpu`: its bytes, its share of the total, or the whole budget."""
    match spec.grant:
        case None:
            return gpu.budget_bytes
        case int(size):
            return size
        case float(share):
            return int(gpu.total_bytes * share)


def granted_on(engine: Engine, index: int) -> int:
    """What `engine` holds of GPU `index`, from its launch until it is reaped."""
    return sum(size for gpu, size in zip(engine.gpus, engine.granted_bytes, strict=True) if gpu == index)


def held_bytes(engines: Iterable[Engine], gpus: Mapping[int, Gpu]) -> dict[int, int]:
    """Bytes granted on each GPU, by index. Engines on a GPU that is gone hold nothing."""
    held = dict.fromkeys(gpus, 0)
    for engine in engines:
        if engine.state in HOLDS_GRANT:
            for index in engine.gpus:
                if index in held:
                    held[index] += granted_on(engine, index)
    return held
