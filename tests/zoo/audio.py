"""Speech and sound models."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tests.zoo.hf import TRANSFORMER, Inputs, entry, mapping, numbers, tokens

_WAVE = mapping(
    "conv_dim=[12, 16], conv_kernel=[5, 3], conv_stride=[3, 2], num_feat_extract_layers=2, "
    "num_conv_pos_embeddings=6, num_conv_pos_embedding_groups=3, apply_spec_augment=False, "
    "mask_time_prob=0.0, mask_feature_prob=0.0, layerdrop=0.0, feat_extract_norm='layer', "
    "classifier_proj_size=14"
)
_SPEECH = mapping(
    "d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, "
    "decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=44, encoder_layerdrop=0.0, "
    "decoder_layerdrop=0.0, decoder_start_token_id=1, num_mel_bins=10, "
    "max_source_positions=12, max_target_positions=13"
)

_sound = partial(entry, family="audio", base=TRANSFORMER, fields="logits")
_wave = numbers(input_values=(100,))


def _decoded(features: Inputs) -> Inputs:
    """Features for the encoder, and token ids for the decoder."""

    def made(dtype: torch.dtype) -> dict[str, Tensor]:
        return {**features(dtype), "decoder_input_ids": tokens(dtype, 5)["input_ids"]}

    return made


TABLE = (
    _sound(
        "wav2vec2",
        "Wav2Vec2ForSequenceClassification",
        "embedding 3, groups 1, heads 2, head-size 4, neurons 3",
        _WAVE,
        inputs=_wave,
    ),
    _sound(
        "hubert",
        "HubertForSequenceClassification",
        "embedding 3, groups 1, heads 2, head-size 4, neurons 3",
        _WAVE,
        inputs=_wave,
    ),
    _sound(
        "wavlm",
        "WavLMForSequenceClassification",
        "embedding 3, heads 1, head-size 4, neurons 5",
        _WAVE,
        "num_conv_pos_embedding_groups=4, num_buckets=8, max_bucket_distance=12",
        inputs=_wave,
        notes="has other ops",
    ),
    _sound(
        "sew",
        "SEWForSequenceClassification",
        "embedding 4, groups 1, heads 2, head-size 4, neurons 4",
        _WAVE,
        "squeeze_factor=2",
        inputs=_wave,
    ),
    _sound(
        "wav2vec2_conformer",
        "Wav2Vec2ConformerForSequenceClassification",
        "embedding 3, units 6, neurons 5, heads 2, head-size 4, channels 2",
        _WAVE,
        "position_embeddings_type='relative', conv_depthwise_kernel_size=3, "
        "max_source_positions=20",
        inputs=_wave,
    ),
    _sound(
        "whisper",
        "WhisperForConditionalGeneration",
        "channels 1, embedding 2, heads 4, head-size 8, neurons 3",
        _SPEECH,
        inputs=_decoded(numbers(input_features=(10, 24))),
    ),
    _sound(
        "speech_to_text",
        "Speech2TextForConditionalGeneration",
        "channels 1, embedding 2, heads 4, head-size 8, neurons 3",
        _SPEECH,
        "num_conv_layers=2, conv_kernel_sizes=[3, 3], conv_channels=16, "
        "input_feat_per_channel=10, input_channels=1",
        inputs=_decoded(numbers(input_features=(24, 10))),
    ),
    _sound(
        "audio_spectrogram_transformer",
        "ASTForAudioClassification",
        "embedding 1, heads 2, head-size 4, neurons 2",
        "patch_size=4, frequency_stride=3, time_stride=3, max_length=16, num_mel_bins=10",
        inputs=numbers(input_values=(16, 10)),
    ),
)
