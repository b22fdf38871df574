"""Text encoders with a classification head, on padded batches."""

from __future__ import annotations

from functools import partial

from tests.zoo.hf import COMMON, TRANSFORMER, entry, padded, tokens

_encoder = partial(entry, family="text", base=TRANSFORMER, inputs=padded, fields="logits")

TABLE = (
    _encoder(
        "roberta",
        "RobertaForSequenceClassification",
        "embedding 1, heads 2, head-size 4, neurons 3",
        notes=[],
    ),
    _encoder(
        "electra",
        "ElectraForSequenceClassification",
        "embedding 2, heads 2, head-size 4, neurons 3",
        "embedding_size=18",
        notes=[],
    ),
    _encoder(
        "deberta",
        "DebertaForSequenceClassification",
        "",
        "relative_attention=True, pos_att_type=['c2p', 'p2c'], max_relative_positions=9",
    ),
    _encoder(
        "deberta_v2",
        "DebertaV2ForSequenceClassification",
        "",
        "relative_attention=True, pos_att_type=['c2p', 'p2c'], position_buckets=4, "
        "norm_rel_ebd='layer_norm', share_att_key=True",
    ),
    _encoder(
        "albert",
        "AlbertForSequenceClassification",
        "",
        "embedding_size=18",
    ),
    _encoder(
        "distilbert",
        "DistilBertForSequenceClassification",
        "",
        "dim=24, n_layers=2, n_heads=4, hidden_dim=40",
    ),
    _encoder(
        "mpnet",
        "MPNetForSequenceClassification",
        "",
    ),
    _encoder(
        "funnel",
        "FunnelForSequenceClassification",
        "",
        "block_sizes=[1, 1], num_decoder_layers=1, d_model=24, n_head=4, d_head=5, d_inner=40",
        base=COMMON,
    ),
    _encoder(
        "xlnet",
        "XLNetForSequenceClassification",
        "",
        "d_model=24, n_layer=2, n_head=4, d_inner=40, d_head=6",
        base=COMMON,
    ),
    _encoder(
        "big_bird",
        "BigBirdForSequenceClassification",
        "",
        "attention_type='original_full'",
    ),
    _encoder(
        "nystromformer",
        "NystromformerForSequenceClassification",
        "",
        "segment_means_seq_len=7, num_landmarks=7",
    ),
    _encoder(
        "fnet",
        "FNetForSequenceClassification",
        "",
        inputs=tokens,
    ),
    _encoder(
        "convbert",
        "ConvBertForSequenceClassification",
        "",
        "embedding_size=24, conv_kernel_size=3",
    ),
    _encoder(
        "squeezebert",
        "SqueezeBertForSequenceClassification",
        "",
        "embedding_size=24, q_groups=2, k_groups=2, v_groups=2, post_attention_groups=1, "
        "intermediate_groups=2, output_groups=2",
    ),
    _encoder(
        "modernbert",
        "ModernBertForSequenceClassification",
        "",
        "cls_token_id=1, sep_token_id=2, local_attention=4, global_attn_every_n_layers=2",
    ),
    _encoder(
        "mobilebert",
        "MobileBertForSequenceClassification",
        "",
        "embedding_size=12, intra_bottleneck_size=16, intermediate_size=20",
    ),
    _encoder(
        "roformer",
        "RoFormerForSequenceClassification",
        "",
        "embedding_size=18",
    ),
    _encoder(
        "esm",
        "EsmForSequenceClassification",
        "",
        "position_embedding_type='rotary', mask_token_id=3",
    ),
)
