"""The estimate of what a model takes, against published figures."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.sizing.architecture import parse
from supervisord_llm.core.sizing.estimating import (
    CONTEXT_BYTES,
    captured_sizes,
    estimate,
    overhead_bytes,
    suggest_max_model_len,
)
from supervisord_llm.core.sizing.fields import UnknownArchitecture
from supervisord_llm.core.sizing.kv_cache import bytes_per_token, sequence_bytes
from supervisord_llm.core.sizing.parameters import count
from supervisord_llm.core.sizing.serving import DEFAULT_SEQUENCES, Serving, read_serving
from supervisord_llm.core.sizing.weights import Tensor, loaded_bytes, tally
from tests.core.published import (
    DEEPSEEK_V3,
    FALCON_7B,
    GEMMA_3_27B,
    GIB,
    GPT_OSS_20B,
    JAMBA,
    LLAMA_8B,
    LLAMA_70B,
    MISTRAL_7B,
    MODELS,
    PHI_3_MINI,
    QWEN3_NEXT,
    QWEN_7B,
    Published,
)

PUBLISHED_KV = [model for model in MODELS if model.kv is not None]


def told(config: dict[str, Any], **serving: Any) -> Estimate:
    return estimate(parse(config), count(config), Serving(**serving))


# --- against published figures ----------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_weights_counted_from_the_config_are_within_5_percent(model: Published) -> None:
    serving = read_serving(model.flags)
    found = estimate(parse(model.config), count(model.config), serving).weights_bytes
    assert found == pytest.approx(model.weights, rel=0.05)


@pytest.mark.parametrize("model", PUBLISHED_KV, ids=lambda model: model.name)
def test_kv_bytes_per_token_are_within_1_percent(model: Published) -> None:
    assert model.kv is not None
    assert bytes_per_token(parse(model.config), Serving()) == pytest.approx(model.kv, rel=0.01)


def test_there_are_enough_models_in_the_tables() -> None:
    assert len(MODELS) >= 15
    assert len(PUBLISHED_KV) >= 15


def test_on_each_of_four_gpus_llama_70b_takes_what_vllm_logged() -> None:
    """LMCache's FAQ: 32.06 GB hold 420,208 tokens on each of four H100."""
    found = bytes_per_token(parse(LLAMA_70B), Serving(tensor_parallel=4))
    assert found == pytest.approx(32.06 * GIB / 420_208, rel=0.01)


def test_the_state_of_linear_attention_is_as_published() -> None:
    """Qwen3.5-2B: 18 layers of 16 x 128 x 128 in float32 are 18.0 MiB, beside the last few inputs."""
    config = QWEN3_NEXT | {
        "num_hidden_layers": 24,
        "linear_num_value_heads": 16,
        "linear_num_key_heads": 16,
    }
    state = parse(config).state_bytes
    assert state == pytest.approx(18 * 2**20, rel=0.05)
    assert state > 18 * 2**20


# --- weights ----------------------------------------------------------------------------------

PLAIN = parse(LLAMA_8B)


def tensor(name: str, dtype: str, *shape: int) -> Tensor:
    size = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1, "I32": 4}[dtype]
    elements = 1
    for side in shape:
        elements *= side
    return Tensor(name, dtype, shape, size * elements)


def test_float32_is_loaded_as_16_bits_unless_asked_for() -> None:
    weights = tally([tensor("model.layers.0.mlp.up_proj.weight", "F32", 100, 10)], PLAIN)
    assert estimate(PLAIN, weights, Serving()).weights_bytes == 2000
    assert estimate(PLAIN, weights, Serving(dtype="float32")).weights_bytes == 4000
    assert estimate(PLAIN, weights, Serving(dtype="half")).weights_bytes == 2000


def test_what_is_quantised_stays_as_it_is_stored() -> None:
    stored = [
        tensor("model.layers.0.mlp.up_proj.qweight", "I32", 16, 10),
        tensor("model.layers.0.mlp.up_proj.weight_scale_inv", "F32", 2, 2),
        tensor("model.layers.0.mlp.down_proj.weight", "F8_E4M3", 10, 10),
        tensor("model.layers.0.self_attn.q_proj.weight.absmax", "U8", 40),
    ]
    assert loaded_bytes(tally(stored, PLAIN), 2, "") == 16 * 10 * 4 + 4 * 4 + 100 + 40


def test_only_linear_layers_shrink_when_they_are_quantised_while_loading() -> None:
    weights = tally(
        [
            tensor("model.embed_tokens.weight", "BF16", 100, 10),
            tensor("lm_head.weight", "BF16", 100, 10),
            tensor("model.layers.0.mlp.gate.weight", "BF16", 8, 10),
            tensor("model.layers.0.input_layernorm.weight", "BF16", 10),
            tensor("model.layers.0.mlp.gate_proj.weight", "BF16", 64, 10),
        ],
        PLAIN,
    )
    rest = 2 * (1000 + 1000 + 80 + 10)
    assert loaded_bytes(weights, 2, "") == rest + 2 * 640
    assert loaded_bytes(weights, 2, "fp8") == rest + 640
    assert loaded_bytes(weights, 2, "bitsandbytes") == rest + 640 * 0.5625


def test_a_quantised_checkpoint_is_not_quantised_again() -> None:
    config = LLAMA_8B | {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
    plain = told(config)
    assert told(config, quantization="bitsandbytes") == plain


def test_a_tied_output_layer_and_the_layers_for_speculation_are_not_counted() -> None:
    tied = parse(LLAMA_8B | {"tie_word_embeddings": True})
    drafting = parse(DEEPSEEK_V3)
    head, extra = (
        tensor("lm_head.weight", "BF16", 9, 9),
        tensor("model.layers.61.eh_proj.weight", "BF16", 9, 9),
    )
    last = tensor("model.layers.60.mlp.up_proj.weight", "BF16", 9, 9)
    assert tally([head], tied) == ()
    assert loaded_bytes(tally([head], PLAIN), 2, "") == 162
    assert tally([extra], drafting) == ()
    assert loaded_bytes(tally([last, extra], drafting), 2, "") == 162
    assert tally([tensor("mtp.layers.0.weight", "BF16", 9, 9)], PLAIN) == ()


def test_a_family_that_ties_by_default_is_known() -> None:
    told_nothing = {name: value for name, value in FALCON_7B.items() if name != "tie_word_embeddings"}
    assert parse(told_nothing).tied
    assert not parse({k: v for k, v in LLAMA_8B.items() if k != "tie_word_embeddings"}).tied


def test_gpus_share_the_weights_and_main_memory_holds_all_of_them() -> None:
    alone, shared = told(LLAMA_8B), told(LLAMA_8B, tensor_parallel=2, pipeline_parallel=2)
    assert shared.weights_bytes == pytest.approx(alone.weights_bytes / 4, rel=1e-6)
    assert shared.host_bytes == alone.host_bytes == alone.weights_bytes
    offloaded = told(LLAMA_8B, offload_bytes=GIB)
    assert offloaded.weights_bytes == alone.weights_bytes - GIB


# --- KV cache ---------------------------------------------------------------------------------


def test_one_shared_head_is_kept() -> None:
    """Falcon-7B, multi-query: key and value of 64 in each of 32 layers, whatever num_kv_heads says."""
    assert bytes_per_token(parse(FALCON_7B), Serving()) == 2 * 64 * 32 * 2


def test_heads_are_divided_until_each_gpu_has_one() -> None:
    per_token = [bytes_per_token(PLAIN, Serving(tensor_parallel=n)) for n in (1, 2, 8, 16)]
    assert per_token == [131072, 65536, 16384, 16384]


def test_mla_is_whole_on_every_gpu() -> None:
    architecture = parse(DEEPSEEK_V3)
    assert bytes_per_token(architecture, Serving(tensor_parallel=8)) == 70_272


@pytest.mark.parametrize(
    ("dtype", "share"),
    [
        ("auto", 1),
        ("fp8", 0.5),
        ("fp8_e4m3", 0.5),
        ("bfloat16", 1),
        ("nvfp4", 9 / 32),
        ("int8_per_token_head", 33 / 64),
    ],
)
def test_the_kv_dtype_counts(dtype: str, share: float) -> None:
    assert bytes_per_token(PLAIN, Serving(kv_cache_dtype=dtype)) == 131072 * share


def test_a_sliding_window_bounds_a_sequence() -> None:
    """Mistral-7B-v0.1: 4096 tokens and the step in flight, to the next block and one more."""
    architecture = parse(MISTRAL_7B)
    serving = Serving(max_num_batched_tokens=2048)
    kept = 4095 + 2048 + 1 + 16
    assert sequence_bytes(architecture, serving, 32768) == kept * 131072
    assert sequence_bytes(architecture, serving, 4096) == (4096 + 16) * 131072
    unbounded = replace(serving, bounds_windows=False)
    assert sequence_bytes(architecture, unbounded, 32768) == 32768 * 131072


def test_alternating_layers_are_half_bounded() -> None:
    """gpt-oss-20b: 12 layers see everything, 12 the last 128 tokens."""
    architecture = parse(GPT_OSS_20B)
    layer = 2 * 8 * 64 * 2
    found = sequence_bytes(architecture, Serving(max_num_batched_tokens=2048), 131072)
    assert found == 12 * layer * (131072 + 2176 + 16)


def test_the_pattern_of_gemma_3_is_known_and_its_last_group_padded() -> None:
    """Of 62 layers every sixth sees everything: 10; the 52 others make six groups of 10."""
    architecture = parse(GEMMA_3_27B)
    assert sorted((kind.layers, kind.window) for kind in architecture.attention) == [(10, None), (52, 1024)]
    layer = 2 * 16 * 128 * 2
    found = sequence_bytes(architecture, Serving(max_num_batched_tokens=1024), 131072)
    assert found == pytest.approx(layer * (10 * 131072 + 60 * (2048 + 16)), rel=0.001)
    assert architecture.max_model_len == 131072


def test_layers_without_attention_cost_the_same_at_any_length() -> None:
    for config, attending in ((JAMBA, 4), (QWEN3_NEXT, 12)):
        architecture = parse(config)
        assert sum(kind.layers for kind in architecture.attention) == attending
        one, two = (sequence_bytes(architecture, Serving(), length) for length in (16384, 32768))
        assert two - one == 16384 * bytes_per_token(architecture, Serving())
        assert one - architecture.state_bytes == two - one


MAMBA_2 = {"ssm_state_size": 128, "mamba_num_heads": 8, "mamba_head_dim": 64}


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"layer_types": ["full_attention", "linear_attention"] * 16, "mamba_d_state": 16}, 16),
        ({"hybrid_override_pattern": "M-M*" * 8, **MAMBA_2}, 8),
        ({"model_type": "gemma3n", "num_kv_shared_layers": 12}, 20),
        ({"model_type": "qwen2", "sliding_window": 512, "max_window_layers": 8}, 32),
        ({"model_type": "bert"}, 0),
        ({"model_type": "mamba", "state_size": 16}, 0),
    ],
)  # fmt: skip
def test_which_layers_attend(config: dict[str, Any], layers: int) -> None:
    assert sum(kind.layers for kind in parse(LLAMA_8B | config).attention) == layers


def test_the_cache_is_for_every_sequence_and_one_is_the_least() -> None:
    found = told(LLAMA_8B, max_model_len=8192, sequences=3)
    assert found.kv_bytes == (3 * 8192 + 16) * 131072
    assert found.least_kv_bytes == (8192 + 16) * 131072
    assert (found.sequences, found.max_model_len, found.kv_bytes_per_token) == (3, 8192, 131072)
    auto = told(LLAMA_8B, fits_length=True, sequences=3)
    assert auto.kv_bytes == (3 * 131072 + 16) * 131072
    assert auto.least_kv_bytes == (1024 + 16) * 131072


# --- context length ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "length"),
    [
        ({}, 131072),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
            131072,
        ),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        ({"rope_scaling": {"rope_type": "longrope"}, "original_max_position_embeddings": 4096}, 4096),
        ({"rope_scaling": {"rope_type": "mrope"}}, 131072),
        ({"model_max_length": 9000}, 9000),
        ({"max_position_embeddings": None}, 2048),
    ],
)
def test_the_context_is_what_vllm_derives(change: dict[str, Any], length: int) -> None:
    assert parse(LLAMA_8B | change).max_model_len == length


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (8192, 8192),
        ("8192", 8192),
        ("8k", 8000),
        ("8K", 8192),
        ("25.6k", 25600),
        ("1.5K", None),
        ("auto", None),
        (-1, None),
        (True, None),
        ("much", None),
    ],
)
def test_max_model_len_is_read_as_vllm_reads_it(value: object, length: int | None) -> None:
    assert read_serving({"max_model_len": value}).max_model_len == length
    assert read_serving({"max-model-len": value}).fits_length == (value in ("auto", -1))


def test_sequences_come_from_the_model_then_the_flag_then_the_default() -> None:
    assert read_serving({}).sequences == DEFAULT_SEQUENCES
    assert read_serving({"max-num-seqs": 12}).sequences == 12
    assert read_serving({}, max_concurrent=3).sequences == 3
    assert read_serving({"max-num-seqs": 2}, max_concurrent=3).sequences == 2


# --- overhead ---------------------------------------------------------------------------------


def test_the_activations_of_llama_8b_are_as_vllm_logged() -> None:
    """Llama-3-8B in vLLM 0.6: "PyTorch activation peak memory takes 1.19GiB"."""
    eager = Serving(enforce_eager=True, max_num_batched_tokens=8192, max_num_seqs=256)
    found = overhead_bytes(PLAIN, eager, 8192) - CONTEXT_BYTES
    assert found == pytest.approx(1.19 * GIB, rel=0.15)


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        ({}, 51),
        ({"max-num-seqs": 8}, 5),
        ({"max-num-seqs": 1}, 2),
        ({"enforce-eager": True}, 0),
        ({"max-cudagraph-capture-size": 4}, 3),
        ({"cudagraph-capture-sizes": [1, 2, 4, 8]}, 4),
        ({"max-cudagraph-capture-size": 0}, 0),
    ],
)
def test_the_sizes_that_are_captured(flags: dict[str, Any], sizes: int) -> None:
    assert captured_sizes(read_serving(flags)) == sizes


def test_without_a_gpu_there_is_no_context_and_no_graph() -> None:
    on_gpu, on_cpu = told(QWEN_7B), told(QWEN_7B, on_gpu=False)
    assert on_gpu.overhead_bytes > on_cpu.overhead_bytes + CONTEXT_BYTES
    assert on_gpu.total_bytes - on_cpu.total_bytes == on_gpu.overhead_bytes - on_cpu.overhead_bytes


# --- suggestions ------------------------------------------------------------------------------


def test_the_longest_context_that_fits_is_suggested() -> None:
    weights = count(LLAMA_8B)
    asked = Serving(max_model_len=131072)
    assert suggest_max_model_len(PLAIN, weights, asked, 80 * GIB) == 131072
    found = suggest_max_model_len(PLAIN, weights, asked, 22 * GIB)
    assert found is not None
    assert found % 1024 == 0
    assert told(LLAMA_8B, max_model_len=found).least_bytes <= 22 * GIB
    assert told(LLAMA_8B, max_model_len=found + 1024).least_bytes > 22 * GIB
    assert suggest_max_model_len(PLAIN, weights, asked, 15 * GIB) is None


def test_a_short_context_of_its_own_is_suggested_whole() -> None:
    config = PHI_3_MINI | {"max_position_embeddings": 1500}
    assert suggest_max_model_len(parse(config), count(config), Serving(), 80 * GIB) == 1500


# --- odd configs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "no num_hidden_layers"),
        ({"model_type": "whisper", "is_encoder_decoder": True}, "encoder"),
        (LLAMA_8B | {"hidden_size": "4096"}, "no hidden_size"),
        (LLAMA_8B | {"layer_types": ["mamba"] * 32}, "layers without attention"),
        (LLAMA_8B | {"attn_layer_period": 8, "attn_layer_offset": []}, "layers without attention"),
    ],
)
def test_a_config_that_does_not_tell_says_what_is_missing(config: dict[str, Any], why: str) -> None:
    with pytest.raises(UnknownArchitecture, match=why):
        parse(config)


def test_an_unknown_quantisation_cannot_be_counted_but_can_be_added_up() -> None:
    config = LLAMA_8B | {"quantization_config": {"quant_method": "novel"}}
    with pytest.raises(UnknownArchitecture, match="novel"):
        count(config)
    assert parse(config).quantization == "novel"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted(
    {key for config in (LLAMA_8B, GEMMA_3_27B, DEEPSEEK_V3, GPT_OSS_20B, QWEN3_NEXT, JAMBA) for key in config}
    | {"layer_types", "linear_attn_config", "hybrid_override_pattern", "attn_config", "head_dim", "layers"}
)


@given(
    base=st.sampled_from((LLAMA_8B, GEMMA_3_27B, DEEPSEEK_V3, GPT_OSS_20B, QWEN3_NEXT, JAMBA)),
    odd=st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=3),
)
def test_no_config_makes_it_fail_otherwise(base: dict[str, Any], odd: dict[str, Any]) -> None:
    config = base | odd
    try:
        found = estimate(parse(config), count(config), Serving())
    except UnknownArchitecture:
        return
    assert found.least_bytes <= found.total_bytes
    assert min(found.weights_bytes, found.kv_bytes, found.overhead_bytes) >= 0
