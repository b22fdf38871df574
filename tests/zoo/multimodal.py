"""Models of several modalities."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tests.models import BATCH, VOCABULARY
from tests.zoo.hf import (
    TRANSFORMER,
    Inputs,
    entry,
    joined,
    mapping,
    numbers,
    padded,
    pixels,
    tokens,
)

_IMAGE = mapping(
    "hidden_size=36, num_hidden_layers=1, num_attention_heads=3, intermediate_size=44, "
    "image_size=16, patch_size=4, projection_dim=14"
)
_TEXT = {**TRANSFORMER, "num_hidden_layers": 1, "projection_dim": 14}


def _prompted(count: int, size: int = 16) -> Inputs:
    """Pixels, and token ids with `count` places for image features (token 36)."""

    def made(dtype: torch.dtype) -> dict[str, Tensor]:
        ids = torch.randint(3, VOCABULARY - 1, (BATCH, count + 5))
        ids[:, 2 : 2 + count] = VOCABULARY - 1
        return {"input_ids": ids, **pixels(size)(dtype)}

    return made


def _bytes(dtype: torch.dtype) -> dict[str, Tensor]:
    return {"inputs": tokens(dtype)["input_ids"]}


_two = {"text_config": _TEXT, "vision_config": _IMAGE, "projection_dim": 14}
_both = partial(entry, family="multimodal", base={}, inputs=joined(padded, pixels(16)))

TABLE = (
    _both(
        "clip",
        "CLIPModel",
        "embedding 2, heads 2, head-size 4, neurons 2",
        _two,
        fields="logits_per_image text_embeds",
    ),
    _both(
        "siglip",
        "SiglipModel",
        "embedding 3, heads 3, head-size 5, neurons 3",
        {
            "text_config": {
                **_TEXT,
                "hidden_size": 36,
                "num_attention_heads": 4,
                "projection_size": 36,
            },
            "vision_config": _IMAGE,
        },
        fields="logits_per_image",
    ),
    _both(
        "blip",
        "BlipForImageTextRetrieval",
        "embedding 2, heads 3, head-size 5, neurons 2, units 6",
        "image_text_hidden_size=14",
        {"text_config": {**_TEXT, "encoder_hidden_size": 36}, "vision_config": _IMAGE},
        fields="itm_score",
    ),
    _both(
        "clipseg",
        "CLIPSegForImageSegmentation",
        "embedding 3, heads 3, head-size 6, neurons 5",
        _two,
        "reduce_dim=12, extract_layers=[0], decoder_num_attention_heads=3, "
        "decoder_intermediate_size=20, conditional_layer=0",
        fields="logits",
        notes="dimension 0 of input inputs_0 is fixed a",
    ),
    _both(
        "flava",
        "FlavaModel",
        "embedding 2, heads 3, head-size 6, neurons 6, units 7",
        "hidden_size=24, projection_dim=14",
        {
            "text_config": _TEXT,
            "image_config": {**_IMAGE, "hidden_size": 24, "num_attention_heads": 4},
            "multimodal_config": {
                "hidden_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 3,
                "intermediate_size": 44,
            },
        },
        fields="multimodal_embeddings",
    ),
    _both(
        "lxmert",
        "LxmertModel",
        "embedding 1, heads 5, head-size 10, neurons 4",
        TRANSFORMER,
        "l_layers=1, r_layers=1, x_layers=1, visual_feat_dim=10, visual_pos_dim=4",
        fields="pooled_output",
        inputs=joined(padded, numbers(visual_feats=(5, 10), visual_pos=(5, 4))),
    ),
    _both(
        "llava",
        "LlavaForConditionalGeneration",
        "embedding 1, heads 1, head-size 5, neurons 4, kv-groups 2, query-heads 2",
        "image_token_index=36, image_token_id=36, vision_feature_layer=-1",
        {
            "vision_config": {**_IMAGE, "model_type": "clip_vision_model"},
            "text_config": {
                **TRANSFORMER,
                "model_type": "llama",
                "num_key_value_heads": 2,
                "max_position_embeddings": 40,
            },
        },
        fields="logits",
        inputs=_prompted(16),
        notes="dimension 0 of input inputs_1 is fixed a",
    ),
    _both(
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        "embedding 1, heads 3, head-size 5, neurons 3",
        "image_token_index=36, image_token_id=36, projection_dim=24",
        {
            "vision_config": {
                **_IMAGE,
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
            },
            "text_config": {
                **TRANSFORMER,
                "model_type": "gemma",
                "num_key_value_heads": 1,
                "head_dim": 8,
                "max_position_embeddings": 40,
            },
        },
        fields="logits",
        inputs=_prompted(16),
        stops={"axis:model.model.language_model/embedding": "every unit counts"},
    ),
)
