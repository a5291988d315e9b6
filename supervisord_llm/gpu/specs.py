"""From a configuration and this host's GPUs to what the core knows of each model. Pure."""

from collections.abc import Sequence

from supervisord_llm.config.checks import gpus_needed
from supervisord_llm.config.model import Config, Model, Queue, Share
from supervisord_llm.config.signature import signature
from supervisord_llm.core.fleet import Gpu, Grant, ModelSpec
from supervisord_llm.core.ledger import grant_bytes
from supervisord_llm.gpu.budget import pin


def model_specs(config: Config, gpus: Sequence[Gpu]) -> tuple[ModelSpec, ...]:
    """One spec a model, in the config's order."""
    return tuple(_spec(model, config.server.drain_timeout_s, gpus) for model in config.models.values())


def memory_fraction(spec: ModelSpec, gpus: Sequence[Gpu]) -> float | None:
    """The grant as a fraction of the card, for the engine's own limit; the least where cards differ.

    None without a GPU.
    """
    return min((grant_bytes(spec, gpu) / gpu.total_bytes for gpu in gpus), default=None)


def _spec(model: Model, drain_timeout_s: float, gpus: Sequence[Gpu]) -> ModelSpec:
    pinned = pin(model.gpus, gpus)
    queue = model.queue or Queue()
    return ModelSpec(
        name=model.name,
        signature=signature(model),
        disabled=f"cannot start {model.name}: {pinned.why_not}" if pinned.why_not else "",
        pinned=pinned.indices,
        gpu_count=gpus_needed(model),
        grant=_grant(model),
        keep=model.keep,
        max_concurrent=model.max_concurrent,
        queue_when_busy=model.queue is not None,
        queue_size=queue.size,
        queue_timeout_s=queue.timeout_s,
        stop_after_s=model.idle_stop_after_s,
        min_residency_s=model.min_residency_s,
        start_timeout_s=model.start_timeout_s,
        stall_timeout_s=model.stall_timeout_s,
        drain_timeout_s=drain_timeout_s,
        restart_tries=model.restart.tries,
        restart_window_s=model.restart.window_s,
        backoff_s=model.restart.backoff_s,
    )


def _grant(model: Model) -> Grant:
    match model.vram:
        case "auto":
            return None
        case Share(fraction):
            return float(fraction)
        case size:
            return size
