"""How an engine is told to serve, as far as its memory goes: read from vLLM's own flags. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_SEQUENCES = 4
"""Sequences whose KV cache is estimated where neither max_concurrent nor max-num-seqs says how many.

Room for a household or a small team, each at full length; more find room where they are shorter.
"""
DEFAULT_MAX_NUM_SEQS = 256
"""vLLM's own on most GPUs (1024 from 70 GiB of memory): `EngineArgs.get_batch_defaults`."""
DEFAULT_MAX_NUM_BATCHED_TOKENS = 8192
"""vLLM's own for its server on GPUs of 70 GiB and more; on smaller ones 2048, so that this is on the safe
side."""
DEFAULT_BLOCK_TOKENS = 16
DEFAULT_ADAPTER_RANK = 16
CPU_BLOCK_TOKENS = 128

_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_HUMAN = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What shapes the memory of an engine beside its model. The defaults are those of vLLM."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    on_gpu: bool = True
    max_model_len: int | None = None
    """None: what the model is made for."""
    fits_length: bool = False
    """max-model-len auto: vLLM shortens the context until it fits."""
    sequences: int = DEFAULT_SEQUENCES
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS
    max_num_batched_tokens: int = DEFAULT_MAX_NUM_BATCHED_TOKENS
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    quantization: str = ""
    enforce_eager: bool = False
    max_capture_size: int | None = None
    """The largest batch that gets a CUDA graph; None: vLLM's choice."""
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    bounds_windows: bool = True
    """False: layers with a sliding window keep all tokens all the same."""
    offload_bytes: int = 0
    """Weights of each GPU that stay in main memory."""
    adapters: int = 0
    """LoRA adapters that there is room for in one batch; 0: it serves none."""
    adapter_rank: int = DEFAULT_ADAPTER_RANK


def read_serving(
    flags: Mapping[str, object],
    *,
    tensor_parallel: int = 1,
    max_concurrent: int | None = None,
    on_gpu: bool = True,
) -> Serving:
    """From the flags of a model, in either spelling (max-model-len, max_model_len).

    A value that cannot be read counts as not set: vLLM is the one to complain about it.
    """
    told = {name.replace("_", "-"): value for name, value in flags.items()}
    max_num_seqs = whole(told.get("max-num-seqs"))
    length = told.get("max-model-len")
    offload = told.get("cpu-offload-gb")
    return Serving(
        tensor_parallel=max(tensor_parallel, 1),
        pipeline_parallel=whole(told.get("pipeline-parallel-size")) or 1,
        on_gpu=on_gpu,
        max_model_len=whole(length),
        fits_length=length in ("auto", -1, "-1"),
        sequences=min((each for each in (max_concurrent, max_num_seqs) if each), default=DEFAULT_SEQUENCES),
        max_num_seqs=max_num_seqs or DEFAULT_MAX_NUM_SEQS,
        max_num_batched_tokens=whole(told.get("max-num-batched-tokens")) or DEFAULT_MAX_NUM_BATCHED_TOKENS,
        dtype=_text(told.get("dtype"), "auto"),
        kv_cache_dtype=_text(told.get("kv-cache-dtype"), "auto"),
        quantization=_text(told.get("quantization"), ""),
        enforce_eager=told.get("enforce-eager") is True,
        max_capture_size=_capture(told),
        block_tokens=whole(told.get("block-size")) or (DEFAULT_BLOCK_TOKENS if on_gpu else CPU_BLOCK_TOKENS),
        bounds_windows=told.get("disable-hybrid-kv-cache-manager") is not True,
        adapters=(whole(told.get("max-loras")) or 1) if told.get("enable-lora") is True else 0,
        adapter_rank=whole(told.get("max-lora-rank")) or DEFAULT_ADAPTER_RANK,
        offload_bytes=int(offload * 2**30) if isinstance(offload, int | float) and offload > 0 else 0,
    )


def whole(value: object) -> int | None:
    """A flag's number above zero, as vLLM reads it: 8192, "8192", "8k" (8000), "8K" (8192), "25.6k"."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value > 0 else None
    if isinstance(value, str) and (found := _HUMAN.fullmatch(value.strip())):
        number, suffix = found.groups()
        if "." in number and not suffix.islower():  # a fraction of a binary unit is refused
            return None
        return int(float(number) * _SUFFIXES.get(suffix, 1)) or None
    return None


def _capture(told: Mapping[str, object]) -> int | None:
    sizes = told.get("cudagraph-capture-sizes")
    if isinstance(sizes, list):
        return max((size for each in sizes if (size := whole(each))), default=0)
    if told.get("max-cudagraph-capture-size") == 0:
        return 0
    return whole(told.get("max-cudagraph-capture-size"))


def _text(value: object, default: str) -> str:
    return value.lower() if isinstance(value, str) else default
