"""Text encoders with a classification head, on padded batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.zoo.entry import Entry
from tests.zoo.hf import TRANSFORMER, Inputs, entry, padded, tokens


def _encoder(
    name: str,
    model: str,
    reach: Mapping[str, int],
    inputs: Inputs = padded,
    options: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Entry:
    return entry(
        name, "text", model, "logits", inputs, reach, {**TRANSFORMER, **(options or {})}, **rest
    )


TABLE = (
    _encoder("roberta", "RobertaForSequenceClassification", {}),
    _encoder("electra", "ElectraForSequenceClassification", {}, options={"embedding_size": 18}),
    _encoder("deberta", "DebertaForSequenceClassification", {}, options={"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 9}),
    _encoder("deberta_v2", "DebertaV2ForSequenceClassification", {}, options={"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4, "norm_rel_ebd": "layer_norm", "share_att_key": True}),
    _encoder("albert", "AlbertForSequenceClassification", {}, options={"embedding_size": 18}),
    _encoder("distilbert", "DistilBertForSequenceClassification", {}, options={"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40}),
    _encoder("mpnet", "MPNetForSequenceClassification", {}),
    _encoder("funnel", "FunnelForSequenceClassification", {}, options={"block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 24, "n_head": 4, "d_head": 5, "d_inner": 40}),
    _encoder("xlnet", "XLNetForSequenceClassification", {}, options={"d_model": 24, "n_layer": 2, "n_head": 4, "d_inner": 40, "d_head": 6}),
    _encoder("longformer", "LongformerForSequenceClassification", {}, options={"attention_window": 4}),
    _encoder("big_bird", "BigBirdForSequenceClassification", {}, options={"attention_type": "original_full"}),
    _encoder("nystromformer", "NystromformerForSequenceClassification", {}, options={"segment_means_seq_len": 7, "num_landmarks": 7}),
    _encoder("fnet", "FNetForSequenceClassification", {}, inputs=tokens),
    _encoder("rembert", "RemBertForSequenceClassification", {}, options={"input_embedding_size": 18}),
    _encoder("convbert", "ConvBertForSequenceClassification", {}, options={"embedding_size": 24, "conv_kernel_size": 3}),
    _encoder("squeezebert", "SqueezeBertForSequenceClassification", {}, options={"embedding_size": 24, "q_groups": 2, "k_groups": 2, "v_groups": 2, "post_attention_groups": 1, "intermediate_groups": 2, "output_groups": 2}),
    _encoder("modernbert", "ModernBertForSequenceClassification", {}, options={"local_attention": 4, "global_attn_every_n_layers": 2}),
    _encoder("mobilebert", "MobileBertForSequenceClassification", {}, options={"embedding_size": 12, "intra_bottleneck_size": 16, "intermediate_size": 20}),
    _encoder("ibert", "IBertForSequenceClassification", {}),
    _encoder("roformer", "RoFormerForSequenceClassification", {}, options={"embedding_size": 18}),
    _encoder("camembert", "CamembertForSequenceClassification", {}),
    _encoder("xlm", "XLMForSequenceClassification", {}, options={"emb_dim": 24, "n_layers": 2, "n_heads": 4}),
    _encoder("megatron_bert", "MegatronBertForSequenceClassification", {}),
    _encoder("nomic_bert", "NomicBertModel", {}),
    _encoder("canine", "CanineForSequenceClassification", {}, options={"num_hash_buckets": 19, "local_transformer_stride": 4, "downsampling_rate": 2}),
    _encoder("esm", "EsmForSequenceClassification", {}, options={"position_embedding_type": "rotary", "mask_token_id": 3}),
    _encoder("layoutlm", "LayoutLMForSequenceClassification", {}),
    _encoder("roberta_prelayernorm", "RobertaPreLayerNormForSequenceClassification", {}),
    _encoder("data2vec_text", "Data2VecTextForSequenceClassification", {}),
    _encoder("ernie", "ErnieForSequenceClassification", {}),
)
