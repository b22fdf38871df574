"""Time-series models."""

from __future__ import annotations

from functools import partial

import torch

from tests.models import BATCH
from tests.zoo.hf import entry, joined, mapping, numbers

_PROBABILISTIC = mapping(
    "prediction_length=4, context_length=8, lags_sequence=[1, 2], num_time_features=2, "
    "input_size=1, d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, "
    "decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=44, encoder_layerdrop=0.0, "
    "decoder_layerdrop=0.0, use_cache=False, scaling=False"
)
_PATCHES = mapping(
    "context_length=12, patch_length=4, patch_stride=4, stride=4, num_input_channels=3, "
    "d_model=24, num_hidden_layers=2, num_layers=2, num_attention_heads=4, ffn_dim=40, "
    "prediction_length=5, path_dropout=0.0"
)

_series = partial(entry, family="series", base={})
_history = numbers(
    past_values=(10,),
    past_time_features=(10, 2),
    past_observed_mask=(10,),
    future_values=(4,),
    future_time_features=(4, 2),
)
_states = "last_hidden_state encoder_last_hidden_state"
_prices = joined(
    numbers(past_values=(16,)),
    lambda dtype: {
        "past_values_padding": torch.zeros(BATCH, 16, dtype=torch.int64),
        "freq": torch.arange(BATCH).reshape(BATCH, 1) % 3,
    },
)
_plays = joined(
    numbers(states=(6, 5), actions=(6, 4), rewards=(6, 1), returns_to_go=(6, 1)),
    lambda dtype: {
        "timesteps": torch.arange(6).repeat(BATCH, 1),
        "attention_mask": torch.ones(BATCH, 6, dtype=torch.int64),
    },
)

TABLE = (
    _series(
        "time_series_transformer",
        "TimeSeriesTransformerModel",
        "heads 3, head-size 6, neurons 2",
        _PROBABILISTIC,
        inputs=_history,
        fields=_states,
    ),
    _series(
        "informer",
        "InformerModel",
        "neurons 2, heads 3, head-size 6",
        _PROBABILISTIC,
        "attention_type='full'",
        inputs=_history,
        fields=_states,
    ),
    _series(
        "patchtst",
        "PatchTSTForPrediction",
        "neurons 3, heads 2, head-size 4",
        _PATCHES,
        "scaling=None, loss='mse'",
        inputs=numbers(past_values=(12, 3)),
        fields="prediction_outputs",
        fast=True,
    ),
    _series(
        "patchtst_classifier",
        "PatchTSTForClassification",
        "neurons 3, heads 2, head-size 4",
        _PATCHES,
        "num_targets=5, use_cls_token=True",
        inputs=numbers(past_values=(12, 3)),
        fields="prediction_logits",
    ),
    _series(
        "patchtsmixer",
        "PatchTSMixerForPrediction",
        "embedding 1, neurons 6",
        _PATCHES,
        "expansion_factor=2, mode='mix_channel', gated_attn=True, scaling=None",
        inputs=numbers(past_values=(12, 3)),
        fields="prediction_outputs",
    ),
    _series(
        "decision_transformer",
        "DecisionTransformerModel",
        "units 1, embedding 1, heads 2, head-size 4, neurons 2",
        "state_dim=5, act_dim=4, hidden_size=24, max_ep_len=9, n_layer=2, n_head=4, n_inner=40, "
        "n_positions=24, vocab_size=1",
        inputs=_plays,
        fields="state_preds action_preds return_preds",
    ),
)
