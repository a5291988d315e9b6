"""From a configuration and this host's GPUs to what the core knows of each model. Pure."""

from collections.abc import Callable

from supervisord_llm.config.checks.checks import gpus_needed, memory_flags
from supervisord_llm.config.model import Config, Model, Queue, Share
from supervisord_llm.config.signature import signature
from supervisord_llm.core.fleet import Grant, Learnt, ModelSpec
from supervisord_llm.core.sizing.serving import whole
from supervisord_llm.gpu.budget import Budgets, Pin, pin

MAX_NUM_SEQS = 256
"""vLLM's own, where the flag is not set."""

PROBE_STALL_S = 60.0
"""Of a model elsewhere: its own `stall_timeout` is about answers, and a probe takes seconds."""


def nothing_learnt(model: str, signature: str) -> Learnt:
    """For who only asks what is configured."""
    return Learnt()


def model_specs(
    config: Config, there: Budgets, learnt: Callable[[str, str], Learnt] = nothing_learnt
) -> tuple[ModelSpec, ...]:
    """One spec for each model that has an engine, in the config's order.

    `learnt(model, signature)` is what is on disk about it.
    """
    return tuple(_spec(model, config, there, learnt) for model in config.with_engines)


def _spec(model: Model, config: Config, there: Budgets, learnt: Callable[[str, str], Learnt]) -> ModelSpec:
    pinned = pin("auto" if model.is_numbered and not there.gpus else model.gpus, there)
    default = config.server.default_model
    queue = model.queue or Queue()
    signed = signature(model)
    return ModelSpec(
        name=model.name,
        signature=signed,
        disabled=_disabled(model, pinned),
        pinned=pinned.indices,
        gpu_count=gpus_needed(model),
        grant=_grant(model),
        keep=model.keep,
        max_concurrent=model.max_concurrent,
        queue_when_busy=model.queue is not None,
        queue_size=queue.size,
        queue_timeout_s=queue.timeout_s,
        stop_after_s=model.idle_stop_after_s,
        sleep_after_s=model.idle_sleep_after_s,
        sleep_level=model.sleep_level,
        max_num_seqs=whole(model.flags.get("max-num-seqs")) or MAX_NUM_SEQS,
        max_model_len=model.max_model_len or whole(model.flags.get("max-model-len")),
        elsewhere=model.engine == "remote",
        comes_back=default is not None and model.name == config.engine_of(default),
        learnt=learnt(model.name, signed),
        min_residency_s=model.min_residency_s,
        start_timeout_s=model.start_timeout_s,
        stall_timeout_s=PROBE_STALL_S if model.engine == "remote" else model.stall_timeout_s,
        drain_timeout_s=config.server.drain_timeout_s,
        restart_tries=model.restart.tries,
        restart_window_s=model.restart.window_s,
        backoff_s=model.restart.backoff_s,
    )


def _disabled(model: Model, pinned: Pin) -> str:
    if model.no_key:
        return f"cannot start {model.name}: {model.no_key}"
    if pinned.why_not:
        return f"cannot start {model.name}: {pinned.why_not}"
    flags = memory_flags(model)
    if flags and pinned.indices != ():  # on the CPU it sizes main memory, which nobody grants
        return (
            f"cannot start {model.name}: its flag {flags[0]} would size GPU memory beside the grant; "
            f"remove it and see `vram`, or set gpus = []"
        )
    return ""


def _grant(model: Model) -> Grant:
    match model.vram:
        case "auto":
            return None
        case Share(fraction):
            return float(fraction)
        case size:
            return size
