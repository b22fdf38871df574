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
        "",
        "num_layers=2, num_heads=4, attention_types=[[['global', 'local'], 1]], window_size=4",
    ),
    _decoder(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        "",
        "rotary_pct=0.5",
    ),
    _decoder(
        "gptj",
        "GPTJForCausalLM",
        "",
        "n_embd=24, n_layer=2, n_head=4, n_positions=13, rotary_dim=4",
    ),
    _decoder(
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        "",
        "n_embd=24, n_layer=2, n_head=4, n_positions=13, n_inner=40",
    ),
    _decoder(
        "opt",
        "OPTForCausalLM",
        "",
        "ffn_dim=40, word_embed_proj_dim=18, layerdrop=0.0",
    ),
    _decoder(
        "bloom",
        "BloomForCausalLM",
        "",
        "n_layer=2, n_head=4",
    ),
    _decoder(
        "falcon",
        "FalconForCausalLM",
        "",
        "new_decoder_architecture=False, multi_query=True, alibi=False, ffn_hidden_size=40",
    ),
    _decoder(
        "falcon_gqa",
        "FalconForCausalLM",
        "",
        "new_decoder_architecture=True, num_kv_heads=2, alibi=False, ffn_hidden_size=40",
    ),
    _decoder(
        "mpt",
        "MptForCausalLM",
        "",
        "d_model=24, n_layers=2, n_heads=4, max_seq_len=13, expansion_ratio=2",
    ),
    _decoder(
        "xglm",
        "XGLMForCausalLM",
        "",
        "d_model=24, num_layers=2, attention_heads=4, ffn_dim=40, layerdrop=0.0",
    ),
    _decoder(
        "qwen3",
        "Qwen3ForCausalLM",
        "",
        "head_dim=8",
    ),
    _decoder(
        "gemma2",
        "Gemma2ForCausalLM",
        "",
        "head_dim=8, sliding_window=4",
    ),
    _decoder(
        "gemma3",
        "Gemma3ForCausalLM",
        "",
        "head_dim=8, sliding_window=4, layer_types=['sliding_attention', 'full_attention']",
    ),
    _decoder(
        "phi",
        "PhiForCausalLM",
        "",
        "partial_rotary_factor=0.67, num_key_value_heads=4",
    ),
    _decoder(
        "stablelm",
        "StableLmForCausalLM",
        "",
        "partial_rotary_factor=0.34",
    ),
    _decoder(
        "olmo2",
        "Olmo2ForCausalLM",
        "",
    ),
)
