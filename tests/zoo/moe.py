"""Mixtures of experts."""

from __future__ import annotations

from functools import partial

from tests.zoo.hf import TRANSFORMER, entry, mapping, pair, tokens

# Experts in a form that torch.export follows; the default of `transformers` is an op of its own.
_BASE = {
    **TRANSFORMER,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "experts_implementation": "batched_mm",
}
_DEEPSEEK = mapping(
    "num_key_value_heads=4, n_routed_experts=5, n_shared_experts=1, n_group=1, topk_group=1, "
    "q_lora_rank=14, kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=8, "
    "first_k_dense_replace=1"
)

_experts = partial(entry, family="moe", base=_BASE, inputs=tokens, fields="logits")

TABLE = (
    _experts(
        "mixtral",
        "MixtralForCausalLM",
        "",
        "num_local_experts=5",
    ),
    _experts(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        "",
        "num_experts=5, shared_expert_intermediate_size=28",
    ),
    _experts(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "",
        "num_experts=5, head_dim=8",
    ),
    _experts(
        "olmoe",
        "OlmoeForCausalLM",
        "",
        "num_experts=5",
    ),
    _experts(
        "phimoe",
        "PhimoeForCausalLM",
        "",
        "num_local_experts=5",
    ),
    _experts(
        "granitemoe",
        "GraniteMoeForCausalLM",
        "",
        "num_local_experts=5",
    ),
    _experts(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        "",
        _DEEPSEEK,
    ),
    _experts(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        "",
        _DEEPSEEK,
    ),
    _experts(
        "gpt_oss",
        "GptOssForCausalLM",
        "",
        "num_local_experts=5, head_dim=8, sliding_window=4",
    ),
    _experts(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        "",
        "n_routed_experts=5, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1",
    ),
    _experts(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        "",
        "d_model=24, d_kv=5, d_ff=40, num_layers=2, num_decoder_layers=2, "
        "num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_heads=4, num_experts=3, "
        "expert_capacity=9",
        inputs=pair,
    ),
)
