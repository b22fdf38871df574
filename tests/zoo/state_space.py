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
        "",
        "state_size=5, expand=2, conv_kernel=3, time_step_rank=3",
    ),
    _scan(
        "mamba2",
        "Mamba2ForCausalLM",
        "",
        "state_size=5, expand=2, conv_kernel=3, num_heads=6, head_dim=8, n_groups=2, chunk_size=4",
    ),
    _scan(
        "rwkv",
        "RwkvForCausalLM",
        "",
        "attention_hidden_size=20, rescale_every=0, context_length=13",
    ),
    _scan(
        "recurrent_gemma",
        "RecurrentGemmaForCausalLM",
        "",
        "lru_width=28, attention_window_size=4, num_hidden_layers=3, block_types=['recurrent', "
        "'recurrent', 'attention'], num_key_value_heads=1",
    ),
    _scan(
        "jamba",
        "JambaForCausalLM",
        "",
        "attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, "
        "expert_layer_offset=1, num_experts=3, mamba_d_state=5, mamba_d_conv=3, "
        "mamba_dt_rank=3, use_mamba_kernels=False",
    ),
    _scan(
        "bamba",
        "BambaForCausalLM",
        "",
        _MAMBA2,
        "attn_layer_indices=[1], attn_rotary_emb=4",
    ),
    _scan(
        "zamba2",
        "Zamba2ForCausalLM",
        "",
        "mamba_d_state=5, mamba_d_conv=3, n_mamba_heads=6, mamba_ngroups=2, chunk_size=4, "
        "num_mem_blocks=1, adapter_rank=6, use_mem_rope=True, num_key_value_heads=4, "
        "layers_block_type=['mamba', 'hybrid'], hybrid_layer_ids=[1]",
    ),
    _scan(
        "falcon_h1",
        "FalconH1ForCausalLM",
        "",
        _MAMBA2,
        "mamba_d_ssm=48, head_dim=6",
    ),
    _scan(
        "nemotron_h",
        "NemotronHForCausalLM",
        "",
        "hybrid_override_pattern='M*-', layers_block_type=['mamba', 'attention', 'mlp'], "
        "num_hidden_layers=3, mamba_num_heads=6, mamba_head_dim=8, n_groups=2, "
        "ssm_state_size=5, conv_kernel=3, chunk_size=4, head_dim=6",
    ),
    _scan(
        "lfm2",
        "Lfm2ForCausalLM",
        "",
        "layer_types=['conv', 'full_attention'], conv_L_cache=3, block_ff_dim=40, "
        "block_auto_adjust_ff_dim=False",
    ),
    _scan(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        "",
        "layer_types=['linear_attention', 'full_attention'], head_dim=8, "
        "linear_conv_kernel_dim=3, linear_key_head_dim=6, linear_value_head_dim=5, "
        "linear_num_key_heads=2, linear_num_value_heads=4, num_experts=3, "
        "num_experts_per_tok=2, moe_intermediate_size=20, shared_expert_intermediate_size=28, "
        "partial_rotary_factor=0.5",
    ),
)
