"""What a model will take of a GPU, before it ever ran. Pure; sizes in bytes."""

from dataclasses import replace

from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.sizing import kv_cache
from supervisord_llm.core.sizing.architecture import Architecture
from supervisord_llm.core.sizing.lora import adapter_bytes
from supervisord_llm.core.sizing.serving import Serving
from supervisord_llm.core.sizing.weights import Weights, loaded_bytes

CONTEXT_BYTES = 768 * 1024**2
"""The CUDA context, kernels and cuBLAS workspaces of one process.

774 MiB were left of a whole engine put to sleep (NVIDIA-NeMo/RL#223); 0.4-0.5 GiB of it are there before
torch loads anything.
"""
NCCL_BYTES = 256 * 1024**2
"""Buffers between the GPUs of one engine: up to 32 channels of NCCL_BUFFSIZE (4 MiB), both to send and to
receive."""
GRAPH_BYTES = 12 * 1024**2
"""The CUDA graph of one batch size: 0.36-0.66 GiB are reported for vLLM's 51 sizes (gpustack/runner#251,
modelscope/ms-swift#6866). Where they were not counted, engines ran out of memory after their start
(vllm-project/vllm#57475)."""
LOGIT_BYTES = 10
"""The sampler's copies of one logit while vLLM profiles itself: 16 bits, then float32 twice."""
AUTO_LENGTH = 1024
"""The least context worth starting with where vLLM may shorten it (max-model-len auto)."""
STEP_TOKENS = 1024
"""Suggested lengths are multiples of this."""


def estimate(architecture: Architecture, weights: Weights, serving: Serving) -> Estimate:
    """What an engine takes of each of its GPUs (of main memory, where `serving.on_gpu` is false).

    Weights are divided by the number of GPUs: norms, which each has whole, are below one percent. Not counted
    are draft models and the encoder of images at work; the first start measures them.
    """
    length = serving.max_model_len or architecture.max_model_len
    quantized_by = "" if architecture.quantization else serving.quantization
    loaded = loaded_bytes(weights, kv_cache.dtype_bytes(architecture, serving), quantized_by)
    ranks = serving.tensor_parallel * serving.pipeline_parallel
    on_each = max(-(-loaded // ranks) - serving.offload_bytes, 0)
    spare = kv_cache.block_bytes(architecture, serving)
    one = kv_cache.sequence_bytes(architecture, serving, length)
    least = length
    if serving.fits_length:
        least = min(length, AUTO_LENGTH)
    return Estimate(
        weights_bytes=on_each,
        kv_bytes=serving.sequences * one + spare,
        least_kv_bytes=kv_cache.sequence_bytes(architecture, serving, least) + spare,
        overhead_bytes=overhead_bytes(architecture, serving, length),
        host_bytes=loaded,
        max_model_len=length,
        sequences=serving.sequences,
        kv_bytes_per_token=kv_cache.bytes_per_token(architecture, serving),
    )


def overhead_bytes(architecture: Architecture, serving: Serving, length: int) -> int:
    """All but weights and KV cache."""
    total = activation_bytes(architecture, serving, length) + adapter_bytes(architecture, serving)
    if serving.on_gpu:
        total += CONTEXT_BYTES + GRAPH_BYTES * captured_sizes(serving)
        if serving.tensor_parallel * serving.pipeline_parallel > 1:
            total += NCCL_BYTES
    return total


def activation_bytes(architecture: Architecture, serving: Serving, length: int) -> int:
    """The peak of one step with as many tokens and sequences as vLLM takes, which it tries out at start.

    Of each token the residual, the hidden state and an MLP's gate, up and product are there at once; with
    experts, those of each expert that the token goes to. 8 billion parameters of Llama 3.1: 1.1 GiB by this,
    1.19 GiB by vLLM's log.
    """
    tokens = min(serving.max_num_batched_tokens, serving.max_num_seqs * length)
    hidden, width = architecture.hidden, -(-architecture.mlp_width // serving.tensor_parallel)
    if architecture.experts_per_token:
        of_token = 3 * hidden + architecture.experts_per_token * (max(2 * width, hidden) + width)
    else:
        of_token = 2 * hidden + 3 * width
    logits = serving.max_num_seqs * architecture.vocab * LOGIT_BYTES
    return tokens * of_token * kv_cache.dtype_bytes(architecture, serving) + logits


def captured_sizes(serving: Serving) -> int:
    """How many batch sizes vLLM captures: 1, 2, 4, every 8th below 256, then every 16th up to the largest."""
    if serving.enforce_eager or serving.max_capture_size == 0:
        return 0
    largest = serving.max_capture_size or min(2 * serving.max_num_seqs, 512)
    small = sum(size <= largest for size in (1, 2, 4))
    return small + min(largest, 255) // 8 + max(largest - 240, 0) // 16


def suggest_max_model_len(
    architecture: Architecture, weights: Weights, serving: Serving, budget_bytes: int
) -> int | None:
    """The longest context with which the model starts within `budget_bytes` of each GPU.

    It is as long as the model is made for, else a multiple of STEP_TOKENS. None: it does not fit with any.
    """

    def fits(length: int) -> bool:
        asked = replace(serving, max_model_len=length, fits_length=False)
        return estimate(architecture, weights, asked).least_bytes <= budget_bytes

    longest = architecture.max_model_len
    if fits(longest):
        return longest
    least, most = 0, longest // STEP_TOKENS
    while least < most:
        middle = (least + most + 1) // 2
        if fits(middle * STEP_TOKENS):
            least = middle
        else:
            most = middle - 1
    return least * STEP_TOKENS or None
