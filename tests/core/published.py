"""Well-known models: what their config.json says, and what others published of their weights and KV cache.

No figure is computed by the code under test. Where the sources are:

    index     total_size in the repository's model.safetensors.index.json, or the size of its one file
    hub       number of parameters that the Hugging Face hub shows, at 16 bits each
    card      the model card or technical report, at 16 bits each unless said otherwise
    log       "Model loading took X GiB" (earlier: "Loading model weights took X GB", also 2**30) of vLLM
    Jamba     table 1 of arXiv:2403.19887: KV cache at 256K tokens, 16 bits
    ISCA      table 1 of arXiv:2505.09343 ("Insights into DeepSeek-V3"): KV cache per token, bf16
    gallery   "KV cache / token (bf16)" of sebastianraschka.com/llm-architecture-gallery
    LMCache   docs.lmcache.ai, FAQ: gigabytes and tokens of the KV cache by vLLM's log on an H100
    MLPerf    kv_cache_benchmark of mlcommons/storage: KV cache per token of each model
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One model. `kv` is in bytes a token, None where no figure was found."""

    name: str
    config: Mapping[str, Any]
    weights: float
    kv: float | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)


def _llama(**config: Any) -> dict[str, Any]:
    return {"model_type": "llama", "torch_dtype": "bfloat16", "tie_word_embeddings": False, **config}


LLAMA_8B = _llama(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    max_position_embeddings=131072,
    rope_scaling={"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
)
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
LLAMA_405B = LLAMA_8B | {
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
}
LLAMA_1B = LLAMA_8B | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
LLAMA_2_7B = _llama(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=32000,
    max_position_embeddings=4096,
)
MISTRAL_7B = LLAMA_2_7B | {
    "model_type": "mistral",
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
}
MIXTRAL = MISTRAL_7B | {
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "torch_dtype": "bfloat16",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
}
QWEN_05B = QWEN_7B | {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
QWEN_72B = QWEN_7B | {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
QWEN3_8B: dict[str, Any] = {
    "model_type": "qwen3",
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
QWEN3_32B = QWEN3_8B | {
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
}
QWEN3_30B_A3B = QWEN3_8B | {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
QWEN3_NEXT: dict[str, Any] = {
    "model_type": "qwen3_next",
    "torch_dtype": "bfloat16",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "vocab_size": 151936,
    "max_position_embeddings": 262144,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "tie_word_embeddings": False,
}
GEMMA_2_9B: dict[str, Any] = {
    "model_type": "gemma2",
    "torch_dtype": "float32",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
GEMMA_3_27B: dict[str, Any] = {
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": SIGLIP,
}
GEMMA_3_12B: dict[str, Any] = {
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": SIGLIP,
}
PHI_3_MINI: dict[str, Any] = {
    "model_type": "phi3",
    "torch_dtype": "bfloat16",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rope_scaling": None,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
}
DEEPSEEK_V2_LITE: dict[str, Any] = {
    "model_type": "deepseek_v2",
    "torch_dtype": "bfloat16",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 102400,
    "max_position_embeddings": 163840,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    "tie_word_embeddings": False,
}
DEEPSEEK_V3 = DEEPSEEK_V2_LITE | {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "vocab_size": 129280,
    "num_nextn_predict_layers": 1,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}
GPT_OSS_20B: dict[str, Any] = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 131072,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "tie_word_embeddings": False,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    },
}
FALCON_7B: dict[str, Any] = {
    "model_type": "falcon",
    "torch_dtype": "bfloat16",
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_kv_heads": 71,
    "multi_query": True,
    "new_decoder_architecture": False,
    "vocab_size": 65024,
}
GPT_2_XL: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 1600,
    "n_layer": 48,
    "n_head": 25,
    "n_positions": 1024,
    "vocab_size": 50257,
}
OLMO_2_7B = LLAMA_2_7B | {"model_type": "olmo2", "vocab_size": 100352}
JAMBA: dict[str, Any] = {
    "model_type": "jamba",
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "mamba_expand": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_dt_rank": 256,
    "vocab_size": 65536,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": False,
}
OPT_125M: dict[str, Any] = {
    "model_type": "opt",
    "torch_dtype": "float16",
    "hidden_size": 768,
    "ffn_dim": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
}
QWEN2_VL_7B = QWEN_7B | {
    "model_type": "qwen2_vl",
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "num_heads": 16},
}


def _quantized(config: dict[str, Any], method: str, **details: Any) -> dict[str, Any]:
    return config | {"quantization_config": {"quant_method": method, **details}}


MODELS = (
    # meta-llama/Llama-3.1-8B: index; KV: MLPerf, gallery (Llama 3 8B)
    Published(name="Llama-3.1-8B", config=LLAMA_8B, weights=16_060_522_496, kv=128 * 1024),
    # meta-llama/Llama-3.1-70B: hub (70,553,706,496); KV: LMCache, on four GPUs
    Published(
        name="Llama-3.1-70B", config=LLAMA_70B, weights=2 * 70_553_706_496, kv=4 * 32.06 * GIB / 420_208
    ),
    # meta-llama/Llama-3.1-405B: card; KV: ISCA
    Published(name="Llama-3.1-405B", config=LLAMA_405B, weights=2 * 405e9, kv=516_096),
    # meta-llama/Llama-3.2-1B: index (one file); KV: gallery
    Published(name="Llama-3.2-1B", config=LLAMA_1B, weights=2_471_645_608, kv=32 * 1024),
    # meta-llama/Llama-2-7b-hf: hub (6,738,415,616); KV: Jamba, MLPerf
    Published(name="Llama-2-7B", config=LLAMA_2_7B, weights=2 * 6_738_415_616, kv=128 * GIB / 2**18),
    # Qwen/Qwen2.5-0.5B-Instruct: index (one file)
    Published(name="Qwen2.5-0.5B", config=QWEN_05B, weights=988_097_824),
    # Qwen/Qwen2.5-7B-Instruct: index
    Published(name="Qwen2.5-7B", config=QWEN_7B, weights=15_231_233_024),
    # Qwen/Qwen2.5-72B: index; KV: ISCA
    Published(name="Qwen2.5-72B", config=QWEN_72B, weights=145_412_407_296, kv=327_680),
    # Qwen/Qwen3-8B: index; KV: LMCache
    Published(name="Qwen3-8B", config=QWEN3_8B, weights=16_381_470_720, kv=50.32 * GIB / 366_400),
    # Qwen/Qwen3-32B: hub (32,762,123,264); KV: LMCache, on two GPUs
    Published(name="Qwen3-32B", config=QWEN3_32B, weights=2 * 32_762_123_264, kv=2 * 33.66 * GIB / 275_760),
    # Qwen/Qwen3-30B-A3B: hub (30,532,122,624)
    Published(name="Qwen3-30B-A3B", config=QWEN3_30B_A3B, weights=2 * 30_532_122_624),
    # Qwen/Qwen3-Next-80B-A3B-Instruct: card
    Published(name="Qwen3-Next-80B-A3B", config=QWEN3_NEXT, weights=2 * 80e9),
    # Qwen/Qwen2-VL-7B-Instruct: log
    Published(name="Qwen2-VL-7B", config=QWEN2_VL_7B, weights=15.53 * GIB),
    # mistralai/Mistral-7B-v0.1: index; KV: Jamba, MLPerf
    Published(name="Mistral-7B-v0.1", config=MISTRAL_7B, weights=14_483_464_192, kv=32 * GIB / 2**18),
    # mistralai/Mixtral-8x7B-v0.1: index; KV: Jamba
    Published(name="Mixtral-8x7B", config=MIXTRAL, weights=93_405_585_408, kv=32 * GIB / 2**18),
    # ai21labs/Jamba-v0.1: card (52B); KV: Jamba
    Published(name="Jamba-v0.1", config=JAMBA, weights=2 * 52e9, kv=4 * GIB / 2**18),
    # google/gemma-2-9b: hub (9,241,705,984), stored in float32, loaded in 16 bits
    Published(name="Gemma-2-9B", config=GEMMA_2_9B, weights=2 * 9_241_705_984),
    # google/gemma-3-27b-it: hub (27,432,406,640)
    Published(name="Gemma-3-27B", config=GEMMA_3_27B, weights=2 * 27_432_406_640),
    # google/gemma-3-12b-it: hub (12,187,325,040); KV: 768 KiB in float32, README of an MLX server, halved
    Published(name="Gemma-3-12B", config=GEMMA_3_12B, weights=2 * 12_187_325_040, kv=384 * 1024),
    # microsoft/Phi-3-mini-4k-instruct: hub (3,821,079,552)
    Published(name="Phi-3-mini", config=PHI_3_MINI, weights=2 * 3_821_079_552),
    # deepseek-ai/DeepSeek-V2-Lite: hub (15,706,484,224)
    Published(name="DeepSeek-V2-Lite", config=DEEPSEEK_V2_LITE, weights=2 * 15_706_484_224),
    # deepseek-ai/DeepSeek-V3: card: 671B without the 14B for speculation, in fp8; KV: ISCA
    Published(name="DeepSeek-V3", config=DEEPSEEK_V3, weights=671e9, kv=70_272),
    # openai/gpt-oss-20b: index
    Published(name="gpt-oss-20b", config=GPT_OSS_20B, weights=13_761_264_768),
    # tiiuae/falcon-7b: hub (7,217,189,760, of which 4 % are an output layer that equals the embedding)
    Published(name="Falcon-7B", config=FALCON_7B, weights=2 * 7_217_189_760),
    # openai-community/gpt2-xl: number of parameters in transformers; KV: gallery
    Published(name="GPT-2-XL", config=GPT_2_XL, weights=2 * 1_557_611_200, kv=300 * 1024),
    # allenai/OLMo-2-1124-7B: card (7.3B); KV: gallery
    Published(name="OLMo-2-7B", config=OLMO_2_7B, weights=2 * 7.3e9, kv=512 * 1024),
    # nm-testing/Meta-Llama-3-8B-Instruct-FP8: log (vLLM's documentation of fp8, 0.5)
    Published(
        name="Llama-3-8B-FP8",
        config=_quantized(LLAMA_8B, "fp8", activation_scheme="static"),
        weights=8.4596 * GIB,
    ),
    # Qwen/Qwen2.5-7B-Instruct-AWQ: log
    Published(
        name="Qwen2.5-7B-AWQ",
        config=_quantized(QWEN_7B, "awq", bits=4, group_size=128, zero_point=True),
        weights=5.20 * GIB,
    ),
    # Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4: log
    Published(
        name="Qwen2.5-7B-GPTQ-Int4",
        config=_quantized(QWEN_7B, "gptq", bits=4, group_size=128),
        weights=5.18 * GIB,
    ),
    # TheBloke/Llama-2-7b-Chat-GPTQ: card (3.90 GB)
    Published(
        name="Llama-2-7B-GPTQ",
        config=_quantized(LLAMA_2_7B, "gptq", bits=4, group_size=128),
        weights=3.90e9,
    ),
    # unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit: log
    Published(
        name="Llama-3.1-8B-bnb-4bit",
        config=_quantized(LLAMA_8B, "bitsandbytes", load_in_4bit=True, bnb_4bit_use_double_quant=True),
        weights=5.3541 * GIB,
    ),
    # facebook/opt-125m, quantised while loading: log (vLLM's documentation of fp8)
    Published(
        name="OPT-125M-in-flight-fp8",
        config=OPT_125M,
        weights=0.1550 * GIB,
        flags={"quantization": "fp8"},
    ),
)
