"""What LoRA adapters take of an engine."""

from typing import Any

import pytest

from supervisord_llm.core.sizing.architecture import parse
from supervisord_llm.core.sizing.estimating import estimate
from supervisord_llm.core.sizing.lora import adapter_bytes, flags_of, rank_of
from supervisord_llm.core.sizing.parameters import count
from supervisord_llm.core.sizing.serving import Serving, read_serving
from tests.core.published import GPT_OSS_20B, LLAMA_8B

MIB = 1024**2

LLAMA_LAYER = {  # in and out of each linear layer of Llama 3.1 8B
    "q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "o": (4096, 4096),
    "gate": (4096, 14336), "up": (4096, 14336), "down": (14336, 4096),
}  # fmt: skip


def test_every_layer_has_room_for_the_highest_rank() -> None:
    layer = sum(into + out for into, out in LLAMA_LAYER.values())
    rank, embeddings = 16, 2 * 128256
    expected = 2 * rank * (32 * layer + embeddings)
    assert adapter_bytes(parse(LLAMA_8B), Serving(adapters=1, adapter_rank=rank)) == expected
    assert expected == pytest.approx(88 * MIB, rel=0.01)


def test_it_grows_with_adapters_and_ranks_and_shrinks_with_gpus() -> None:
    def taken(**serving: Any) -> int:
        return adapter_bytes(parse(LLAMA_8B), Serving(**serving))

    assert taken() == 0
    assert taken(adapters=4, adapter_rank=8) == 4 * taken(adapters=1, adapter_rank=8)
    assert taken(adapters=1, adapter_rank=64) == 8 * taken(adapters=1, adapter_rank=8)
    assert taken(adapters=1) / 2 < taken(adapters=1, tensor_parallel=4) < taken(adapters=1)


def test_experts_each_have_their_own() -> None:
    assert adapter_bytes(parse(GPT_OSS_20B), Serving(adapters=1, adapter_rank=8)) > 100 * MIB


def test_it_is_part_of_the_estimate_by_the_flags_that_vllm_gets() -> None:
    flags = flags_of([8, 64], {})
    told = [
        estimate(parse(LLAMA_8B), count(LLAMA_8B), read_serving(each)).total_bytes for each in ({}, flags)
    ]
    assert told[1] - told[0] == adapter_bytes(parse(LLAMA_8B), Serving(adapters=2, adapter_rank=64))


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        ({"r": 8}, 8),
        ({"r": 8, "rank_pattern": {"q_proj": 32, "k_proj": 4}}, 32),
        ({"r": "8"}, None),
        ({"r": True}, None),
        ({"r": 0, "rank_pattern": None}, None),
        ({}, None),
    ],
)
def test_the_rank_is_the_highest_of_any_layer(config: dict[str, object], rank: int | None) -> None:
    assert rank_of(config) == rank
