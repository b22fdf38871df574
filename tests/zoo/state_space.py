"""State-space models, linear recurrences, and hybrids of them with attention."""

from __future__ import annotations

from functools import partial

from tests.zoo.hf import TRANSFORMER, entry, mapping, tokens

_BASE = {**TRANSFORMER, "num_key_value_heads": 2, "experts_implementation": "batched_mm"}
_MAMBA2 = mapping(
    "mamba_n_heads=6, mamba_d_head=8, mamba_n_groups=2, mamba_d_state=5, mamba_d_conv=3, "
    "mamba_expand=2, mamba_chunk_size=4"
)

_scan = partial(entry, family="state-space", base=_BASE, inputs=tokens, fields="logits")

TABLE = (
    _scan(
        "mamba",
        "MambaForCausalLM",
        "embedding 1, channels 2, head-size 2, neurons 2",
        "state_size=5, expand=2, conv_kernel=3, time_step_rank=3",
        notes="has other ops",
    ),
    _scan(
        "mamba2",
        "Mamba2ForCausalLM",
        "embedding 5, channels 4",
        "state_size=5, expand=2, conv_kernel=3, num_heads=6, head_dim=8, n_groups=2, chunk_size=4",
        notes="has other ops",
    ),
    _scan(
        "rwkv",
        "RwkvForCausalLM",
        "embedding 1, neurons 4",
        "attention_hidden_size=20, rescale_every=0, context_length=13",
    ),
    _scan(
        "recurrent_gemma",
        "RecurrentGemmaForCausalLM",
        "embedding 1, channels 4, neurons 3, heads 1, head-size 3",
        "lru_width=28, attention_window_size=4, num_hidden_layers=3, block_types=['recurrent', "
        "'recurrent', 'attention'], num_key_value_heads=1",
    ),
    _scan(
        "jamba",
        "JambaForCausalLM",
        "embedding 2, channels 1, head-size 3, neurons 2, kv-groups 1, query-heads 1, experts 1",
        "attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, "
        "expert_layer_offset=1, num_experts=3, mamba_d_state=5, mamba_d_conv=3, "
        "mamba_dt_rank=3, use_mamba_kernels=False",
    ),
    _scan(
        "bamba",
        "BambaForCausalLM",
        "embedding 3, neurons 2, channels 2, kv-groups 1, query-heads 1, head-size 3",
        _MAMBA2,
        "attn_layer_indices=[1], attn_rotary_emb=4",
        notes="has other ops",
    ),
    _scan(
        "zamba2",
        "Zamba2ForCausalLM",
        "embedding 6, channels 4, neurons 3, heads 1, head-size 2",
        "mamba_d_state=5, mamba_d_conv=3, n_mamba_heads=6, mamba_ngroups=2, chunk_size=4, "
        "num_mem_blocks=1, adapter_rank=6, use_mem_rope=True, num_key_value_heads=4, "
        "layers_block_type=['mamba', 'hybrid'], hybrid_layer_ids=[1]",
        notes="has other ops",
    ),
    _scan(
        "falcon_h1",
        "FalconH1ForCausalLM",
        "embedding 1, neurons 2, channels 8, kv-groups 2, query-heads 2, head-size 3",
        _MAMBA2,
        "mamba_d_ssm=48, head_dim=6",
        notes="has other ops",
    ),
    _scan(
        "nemotron_h",
        "NemotronHForCausalLM",
        "embedding 3, channels 2, kv-groups 1, query-heads 1, head-size 2, neurons 1",
        "hybrid_override_pattern='M*-', layers_block_type=['mamba', 'attention', 'mlp'], "
        "num_hidden_layers=3, mamba_num_heads=6, mamba_head_dim=8, n_groups=2, "
        "ssm_state_size=5, conv_kernel=3, chunk_size=4, head_dim=6",
        notes="has other ops",
    ),
    _scan(
        "lfm2",
        "Lfm2ForCausalLM",
        "embedding 1, channels 1, neurons 2, kv-groups 1, query-heads 1, head-size 2",
        "layer_types=['conv', 'full_attention'], conv_L_cache=3, block_ff_dim=40, "
        "block_auto_adjust_ff_dim=False",
        fast=True,
    ),
)
