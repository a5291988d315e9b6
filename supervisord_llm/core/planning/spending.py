"""How a grant is spent, and whether it is enough for a start. Pure."""

from collections.abc import Iterable
from typing import Any

from supervisord_llm.core.explain import gib
from supervisord_llm.core.fleet import Engine
from supervisord_llm.core.ledger import adjusted_estimate
from supervisord_llm.core.state import State

SERVES = (State.STARTING, State.READY, State.SLEEPING, State.WAKING)
"""A request for it is not refused, whatever becomes of the next start."""


def parts(engine: Engine, grant: int | None) -> dict[str, Any]:
    """How a grant is spent. vLLM gives to the KV cache what the rest leaves of its limit."""
    estimate = adjusted_estimate(engine)
    kv, overhead = engine.learnt.kv_bytes, None if estimate is None else estimate.overhead_bytes
    if estimate is None:
        length = dict(engine.learnt.adjusted).get("max-model-len", engine.spec.max_model_len)
        return {"kv_bytes": kv, "max_model_len": length}
    if grant is not None:
        left = max(0, grant - estimate.weights_bytes)
        if kv is not None:
            overhead = max(0, left - kv)
        else:
            kv = max(0, left - estimate.overhead_bytes)
    one = estimate.kv_bytes / max(estimate.sequences, 1)
    return {
        "weights_bytes": estimate.weights_bytes,
        "kv_bytes": estimate.kv_bytes if kv is None else kv,
        "overhead_bytes": overhead,
        "max_model_len": estimate.max_model_len,
        "full_sequences": round(kv / one, 1) if kv is not None and one else None,
    }


def parts_on_cpu(engine: Engine) -> dict[str, Any]:
    """Of main memory. The KV cache is told where its size is configured; else the launch chooses it."""
    estimate, ordered = engine.estimate, engine.spec.grant
    length = engine.spec.max_model_len if estimate is None else estimate.max_model_len
    return {
        "weights_bytes": None if estimate is None else estimate.weights_bytes,
        "kv_bytes": ordered if isinstance(ordered, int) and not engine.spec.disabled else None,
        "max_model_len": length,
    }


def doubt(engine: Engine, grants: Iterable[int]) -> str:
    """What speaks against its next start, which is tried all the same."""
    if (
        engine.state is State.FAILED and engine.retry_at > engine.since
    ):  # else a fact of the host was against it
        return engine.last_error.partition("\n")[0]
    estimate = adjusted_estimate(engine)
    has_started = engine.learnt.start_s is not None or engine.state in SERVES
    if engine.spec.grant is None or estimate is None or has_started:  # vLLM knows better than an estimate
        return ""
    granted = max(grants, default=None)
    if granted is None or granted >= estimate.least_bytes:
        return ""
    length, least = estimate.max_model_len, gib(estimate.least_bytes)
    return (
        f"{engine.name} may not start: its grant is {gib(granted)}, "
        f"and one sequence of {length} tokens needs about {least}"
    )
