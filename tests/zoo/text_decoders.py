"""Language models with a causal decoder."""

from __future__ import annotations

from functools import partial

from tests.zoo.hf import TRANSFORMER, entry, tokens

_BASE = {**TRANSFORMER, "num_key_value_heads": 2}

_decoder = partial(entry, family="text", base=_BASE, inputs=tokens, fields="logits")

TABLE = (
    _decoder(
        "gpt_neo",
        "GPTNeoForCausalLM",
        "embedding 1, heads 2, head-size 4, neurons 2",
        "num_layers=2, num_heads=4, attention_types=[[['global', 'local'], 1]], window_size=4",
    ),
    _decoder(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        "embedding 1, heads 2, head-size 5, neurons 2",
        "rotary_pct=0.5",
    ),
    _decoder(
        "gptj",
        "GPTJForCausalLM",
        "embedding 1, heads 2, head-size 5, neurons 2",
        "n_embd=24, n_layer=2, n_head=4, n_positions=13, rotary_dim=4",
    ),
    _decoder(
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        "embedding 1, heads 2, head-size 4, neurons 2",
        "n_embd=24, n_layer=2, n_head=4, n_positions=13, n_inner=40",
    ),
    _decoder(
        "opt",
        "OPTForCausalLM",
        "embedding 2, heads 2, head-size 4, neurons 2",
        "ffn_dim=40, word_embed_proj_dim=18, layerdrop=0.0",
    ),
    _decoder(
        "bloom",
        "BloomForCausalLM",
        "embedding 1, head-size 2, neurons 2",
        "n_layer=2, n_head=4",
        stops={"axis:model.transformer.h/heads": "values depend on position"},
    ),
    _decoder(
        "falcon",
        "FalconForCausalLM",
        "embedding 1, heads 2, head-size 1, units 2",
        "new_decoder_architecture=False, multi_query=True, alibi=False, ffn_hidden_size=40",
    ),
    _decoder(
        "falcon_gqa",
        "FalconForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 1, units 2",
        "new_decoder_architecture=True, num_kv_heads=2, alibi=False, ffn_hidden_size=40",
    ),
    _decoder(
        "mpt",
        "MptForCausalLM",
        "embedding 1, head-size 4, neurons 2",
        "d_model=24, n_layers=2, n_heads=4, max_seq_len=13, expansion_ratio=2",
        stops={"axis:model.transformer.blocks/heads": "values depend on position"},
    ),
    _decoder(
        "mistral",
        "MistralForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 3, neurons 2",
        "sliding_window=4, head_dim=8",
    ),
    _decoder(
        "qwen3",
        "Qwen3ForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 3, neurons 2",
        "head_dim=8",
    ),
    _decoder(
        "gemma2",
        "Gemma2ForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 3, neurons 2",
        "head_dim=8, sliding_window=4",
    ),
    _decoder(
        "gemma3",
        "Gemma3ForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 4, neurons 2",
        "head_dim=8, sliding_window=4, layer_types=['sliding_attention', 'full_attention']",
    ),
    _decoder(
        "phi",
        "PhiForCausalLM",
        "embedding 1, heads 2, head-size 5, neurons 2",
        "partial_rotary_factor=0.67, num_key_value_heads=4",
    ),
    _decoder(
        "stablelm",
        "StableLmForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 4, neurons 2",
        "partial_rotary_factor=0.34",
    ),
    _decoder(
        "olmo2",
        "Olmo2ForCausalLM",
        "embedding 1, kv-groups 2, query-heads 2, head-size 3, neurons 2",
    ),
)
