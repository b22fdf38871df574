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
    ),
    _encoder(
        "electra",
        "ElectraForSequenceClassification",
        "embedding 2, heads 2, head-size 4, neurons 3",
        "embedding_size=18",
    ),
    _encoder(
        "deberta",
        "DebertaForSequenceClassification",
        "embedding 1, heads 2, head-size 4, units 3, neurons 3",
        "relative_attention=True, pos_att_type=['c2p', 'p2c'], max_relative_positions=9",
    ),
    _encoder(
        "deberta_v2",
        "DebertaV2ForSequenceClassification",
        "embedding 1, head-size 4, neurons 3",
        "relative_attention=True, pos_att_type=['c2p', 'p2c'], position_buckets=4, "
        "norm_rel_ebd='layer_norm', share_att_key=True",
    ),
    _encoder(
        "albert",
        "AlbertForSequenceClassification",
        "embedding 2, heads 1, head-size 2, neurons 2",
        "embedding_size=18",
    ),
    _encoder(
        "distilbert",
        "DistilBertForSequenceClassification",
        "embedding 1, heads 2, head-size 4, neurons 3",
        "dim=24, n_layers=2, n_heads=4, hidden_dim=40",
    ),
    _encoder(
        "mpnet",
        "MPNetForSequenceClassification",
        "embedding 1, heads 1, head-size 4, neurons 3",
    ),
    _encoder(
        "funnel",
        "FunnelForSequenceClassification",
        "neurons 9",
        "block_sizes=[1, 1], num_decoder_layers=1, d_model=24, n_head=4, d_head=5, d_inner=40",
        base=COMMON,
    ),
    _encoder(
        "xlnet",
        "XLNetForSequenceClassification",
        "units 17, embedding 1, neurons 3",
        "d_model=24, n_layer=2, n_head=4, d_inner=40, d_head=6",
        base=COMMON,
        notes="has other ops",
    ),
    _encoder(
        "big_bird",
        "BigBirdForSequenceClassification",
        "embedding 1, heads 2, head-size 4, neurons 4",
        "attention_type='original_full'",
    ),
    _encoder(
        "nystromformer",
        "NystromformerForSequenceClassification",
        "embedding 1, heads 2, head-size 2, neurons 3",
        "segment_means_seq_len=7, num_landmarks=7",
    ),
    _encoder(
        "fnet",
        "FNetForSequenceClassification",
        "embedding 1, neurons 3",
        inputs=tokens,
        stops={"axis:model.fnet/embedding": "mixes it"},
    ),
    _encoder(
        "rembert",
        "RemBertForSequenceClassification",
        "embedding 2, heads 2, head-size 4, neurons 3",
        "input_embedding_size=18",
    ),
    _encoder(
        "convbert",
        "ConvBertForSequenceClassification",
        "embedding 1, heads 4, head-size 4, neurons 3",
        "embedding_size=24, conv_kernel_size=3",
    ),
    _encoder(
        "squeezebert",
        "SqueezeBertForSequenceClassification",
        "kv-groups 1, embedding 1, query-heads 2, head-size 4, channels 2, neurons 1",
        "embedding_size=24, q_groups=2, k_groups=2, v_groups=2, post_attention_groups=1, "
        "intermediate_groups=2, output_groups=2",
    ),
    _encoder(
        "modernbert",
        "ModernBertForSequenceClassification",
        "embedding 2, heads 2, head-size 2, neurons 2",
        "cls_token_id=1, sep_token_id=2, local_attention=4, global_attn_every_n_layers=2",
        stops={"axis:model.model.layers.0.attn.Wqkv/neurons": "taken apart by unbind"},
    ),
    _encoder(
        "mobilebert",
        "MobileBertForSequenceClassification",
        "embedding 2, heads 2, head-size 4, neurons 13",
        "embedding_size=12, intra_bottleneck_size=16, intermediate_size=20",
    ),
    _encoder(
        "roformer",
        "RoFormerForSequenceClassification",
        "embedding 2, head-size 3, heads 2, neurons 3",
        "embedding_size=18",
    ),
    _encoder(
        "esm",
        "EsmForSequenceClassification",
        "embedding 1, heads 2, head-size 3, neurons 3, units 1",
        "position_embedding_type='rotary', mask_token_id=3",
    ),
)
