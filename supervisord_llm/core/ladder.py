"""What is changed after an engine ran out of GPU memory: one named flag at a time, never nothing."""

from supervisord_llm.core.fleet import Engine

FEWEST_SEQUENCES = 4
SHORTEST_CONTEXT = 2048
"""Below these a model is of little use, and its memory goes elsewhere."""


def next_change(engine: Engine) -> tuple[str, int, int] | None:
    """The flag to change, its value so far and the next one; None at the end of the ladder.

    Fewer sequences come first: they shrink activations and CUDA graphs, and cost throughput under load. A
    shorter context comes after, for it turns long requests away.
    """
    adjusted = dict(engine.learnt.adjusted)
    sequences = adjusted.get("max-num-seqs", engine.spec.max_num_seqs)
    if sequences > FEWEST_SEQUENCES:
        return "max-num-seqs", sequences, max(FEWEST_SEQUENCES, sequences // 4)
    known = engine.spec.max_model_len or (engine.estimate.max_model_len if engine.estimate else None)
    context = adjusted.get("max-model-len", known)
    if context is not None and context > SHORTEST_CONTEXT:
        return "max-model-len", context, max(SHORTEST_CONTEXT, context // 2)
    return None


def adjusted(engine: Engine, flag: str, value: int) -> tuple[tuple[str, int], ...]:
    """The adjustments so far, with this one."""
    return tuple(sorted((dict(engine.learnt.adjusted) | {flag: value}).items()))
