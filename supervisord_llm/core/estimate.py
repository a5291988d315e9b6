"""What a model will take of a GPU, as the fleet knows it; sizing/ tells how it is found out."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one engine is expected to hold of each of its GPUs, in bytes."""

    weights_bytes: int
    kv_bytes: int
    """KV cache for all the sequences it must hold, each at full length."""
    least_kv_bytes: int
    """KV cache for one sequence at full length: with less, vLLM does not start."""
    overhead_bytes: int
    """CUDA context, graphs, activations and the room for LoRA adapters."""
    host_bytes: int
    """Weights of all ranks together: the RAM that an engine asleep at level 1 takes."""
    max_model_len: int
    sequences: int
    kv_bytes_per_token: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.overhead_bytes

    @property
    def least_bytes(self) -> int:
        return self.weights_bytes + self.least_kv_bytes + self.overhead_bytes
