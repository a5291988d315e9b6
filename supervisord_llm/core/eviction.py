"""Which idle engines make room on a GPU. Busy ones never do."""

from collections.abc import Iterable

from supervisord_llm.core.fleet import Engine, Gpu
from supervisord_llm.core.ledger import granted_on


def is_evictable(engine: Engine, now: float) -> bool:
    """Idle, not kept, and ready for long enough to have been worth its start."""
    return engine.is_idle and not engine.spec.keep and now >= engine.since + engine.spec.min_residency_s


def victims(engines: Iterable[Engine], gpu: Gpu, missing_bytes: int, now: float) -> tuple[str, ...] | None:
    """Names of the engines on `gpu` to stop so that `missing_bytes` come free, longest idle first.

    None where even all of them would not do.
    """
    chosen: list[str] = []
    candidates = [engine for engine in engines if gpu.index in engine.gpus and is_evictable(engine, now)]
    for engine in sorted(candidates, key=lambda engine: engine.last_used):
        if missing_bytes <= 0:
            break
        chosen.append(engine.name)
        missing_bytes -= granted_on(engine, gpu.index)
    return tuple(chosen) if missing_bytes <= 0 else None
