"""Mixtures of experts."""

from __future__ import annotations

from functools import partial

from tests.zoo.hf import TRANSFORMER, entry, mapping, tokens

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
        "embedding 1, kv-groups 2, query-heads 2, head-size 3, neurons 2, experts 2",
        "num_local_experts=5",
    ),
    _experts(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 3, neurons 4, experts 2",
        "num_experts=5, shared_expert_intermediate_size=28",
    ),
    _experts(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 3, neurons 2, experts 2",
        "num_experts=5, head_dim=8",
    ),
    _experts(
        "olmoe",
        "OlmoeForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 3, neurons 2, experts 2",
        "num_experts=5",
    ),
    _experts(
        "phimoe",
        "PhimoeForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 2, neurons 2",
        "num_local_experts=5",
        notes="has other ops",
    ),
    _experts(
        "granitemoe",
        "GraniteMoeForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 3, neurons 2, experts 2",
        "num_local_experts=5",
    ),
    _experts(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        "embedding 5, heads 2, head-size 5, neurons 3, experts 1",
        _DEEPSEEK,
        onnx="complex numbers",
    ),
    _experts(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        "embedding 5, heads 2, head-size 5, neurons 3, experts 1",
        _DEEPSEEK,
    ),
    _experts(
        "gpt_oss",
        "GptOssForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 3, neurons 2, experts 2",
        "num_local_experts=5, head_dim=8, sliding_window=4",
    ),
    _experts(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 5, neurons 3, experts 1",
        "n_routed_experts=5, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1",
    ),
)
