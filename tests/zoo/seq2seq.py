"""Encoder-decoder language models."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tests.zoo.hf import COMMON, entry, mapping, pair

_T5 = mapping(
    "d_model=24, d_kv=5, d_ff=40, num_layers=1, num_decoder_layers=1, num_heads=4, "
    "relative_attention_num_buckets=6, decoder_start_token_id=0"
)
_BART = mapping(
    "d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, "
    "decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=44, encoder_layerdrop=0.0, "
    "decoder_layerdrop=0.0, decoder_start_token_id=1, max_position_embeddings=13"
)

_pair = partial(entry, family="text", base=COMMON, inputs=pair, fields="logits")


def _unmasked(dtype: torch.dtype) -> dict[str, Tensor]:
    """Token ids for both sides; with a mask ProphetNet adds up minima to minus infinity."""
    return {name: ids for name, ids in pair(dtype).items() if name != "attention_mask"}


TABLE = (
    _pair(
        "t5",
        "T5ForConditionalGeneration",
        "embedding 1, heads 3, head-size 6, neurons 2",
        _T5,
    ),
    _pair(
        "longt5",
        "LongT5ForConditionalGeneration",
        "embedding 2, neurons 4, heads 2, head-size 4",
        _T5,
        "local_radius=3",
    ),
    _pair(
        "bart",
        "BartForConditionalGeneration",
        "embedding 1, heads 3, head-size 6, neurons 2",
        _BART,
    ),
    _pair(
        "marian",
        "MarianMTModel",
        "embedding 1, heads 3, head-size 6, neurons 2",
        _BART,
    ),
    _pair(
        "prophetnet",
        "ProphetNetForConditionalGeneration",
        "embedding 1, neurons 10",
        "hidden_size=24, encoder_ffn_dim=40, num_encoder_layers=1, "
        "num_encoder_attention_heads=4, decoder_ffn_dim=44, num_decoder_layers=1, "
        "num_decoder_attention_heads=4, ngram=2, num_buckets=6, relative_max_distance=9, "
        "disable_ngram_loss=True",
        inputs=_unmasked,
    ),
    _pair(
        "pegasus_x",
        "PegasusXForConditionalGeneration",
        "neurons 5, heads 2, head-size 4",
        _BART,
        "num_global_tokens=3, block_size=4",
        stops={"axis:model.model/embedding": "values depend on position"},
    ),
)
