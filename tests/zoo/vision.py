"""Image models."""

from __future__ import annotations

from functools import partial

from tests.models import CLASSES
from tests.zoo.hf import entry, mapping, numbers, pixels

_VIT = mapping(
    "hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, "
    "image_size=16, patch_size=4"
)
_BASE = {"num_labels": CLASSES}

_image = partial(entry, family="vision", base=_BASE, inputs=pixels(16), fields="logits")

TABLE = (
    _image(
        "deit",
        "DeiTForImageClassification",
        "embedding 1, heads 2, head-size 4, neurons 2",
        _VIT,
    ),
    _image(
        "beit",
        "BeitForImageClassification",
        "embedding 1, heads 2, head-size 4, neurons 2",
        _VIT,
        "use_relative_position_bias=True, drop_path_rate=0.0, out_indices=[1]",
    ),
    _image(
        "dinov2",
        "Dinov2ForImageClassification",
        "embedding 1, units 1, heads 2, head-size 4, neurons 2",
        _VIT,
    ),
    _image(
        "dinov3_vit",
        "DINOv3ViTModel",
        "units 1, heads 2, head-size 3, neurons 2",
        _VIT,
        "num_attention_heads=3, num_register_tokens=2",
        fields="pooler_output",
        notes="has other ops",
    ),
    _image(
        "swin",
        "SwinForImageClassification",
        "embedding 2, heads 3, head-size 6, neurons 3",
        "image_size=16, patch_size=2, embed_dim=12, depths=[2, 1], num_heads=[2, 3], "
        "window_size=4, drop_path_rate=0.0",
    ),
    _image(
        "swinv2",
        "Swinv2ForImageClassification",
        "embedding 2, heads 3, neurons 6, units 3, head-size 6",
        "image_size=16, patch_size=2, embed_dim=12, depths=[2, 1], num_heads=[2, 3], "
        "window_size=4, drop_path_rate=0.0",
    ),
    _image(
        "convnextv2",
        "ConvNextV2ForImageClassification",
        "embedding 4",
        "hidden_sizes=[12, 20], depths=[1, 1], num_stages=2, patch_size=2",
    ),
    _image(
        "resnet_hf",
        "ResNetForImageClassification",
        "channels 7",
        "embedding_size=12, hidden_sizes=[16, 20], depths=[1, 1]",
    ),
    _image(
        "regnet",
        "RegNetForImageClassification",
        "channels 9, groups 2",
        "embedding_size=12, hidden_sizes=[16, 24], depths=[1, 1], groups_width=8",
    ),
    _image(
        "mobilenet_v2",
        "MobileNetV2ForImageClassification",
        "channels 25",
        "depth_multiplier=0.25, min_depth=4, image_size=16",
    ),
    _image(
        "efficientnet_hf",
        "EfficientNetForImageClassification",
        "channels 7",
        "width_coefficient=0.25, depth_coefficient=0.3, in_channels=[16, 24], out_channels=[24, "
        "40], kernel_sizes=[3, 5], strides=[1, 2], num_block_repeats=[1, 1], expand_ratios=[1, "
        "3], depthwise_padding=[], hidden_dim=320, image_size=16, drop_connect_rate=0.0",
    ),
    _image(
        "poolformer",
        "PoolFormerForImageClassification",
        "embedding 2, channels 2",
        "hidden_sizes=[12, 20], depths=[1, 1], num_encoder_blocks=2, patch_sizes=[3, 3], "
        "strides=[2, 2], padding=[1, 1], drop_path_rate=0.0",
        fast=True,
    ),
    _image(
        "segformer",
        "SegformerForSemanticSegmentation",
        "embedding 3, heads 2, head-size 4, channels 3, neurons 2",
        "hidden_sizes=[12, 20], depths=[1, 1], num_encoder_blocks=2, sr_ratios=[2, 1], "
        "patch_sizes=[3, 3], strides=[2, 2], num_attention_heads=[2, 4], mlp_ratios=[2, 2], "
        "decoder_hidden_size=14, drop_path_rate=0.0",
    ),
    _image(
        "pvt_v2",
        "PvtV2ForImageClassification",
        "embedding 3, heads 2, head-size 4, channels 2",
        "image_size=16, hidden_sizes=[12, 20], depths=[1, 1], num_encoder_blocks=2, "
        "sr_ratios=[2, 1], patch_sizes=[3, 3], strides=[2, 2], num_attention_heads=[2, 4], "
        "mlp_ratios=[2, 2], drop_path_rate=0.0",
    ),
    _image(
        "levit",
        "LevitForImageClassification",
        "channels 3, heads 3, head-size 6, neurons 4",
        "image_size=64, hidden_sizes=[12, 20], num_attention_heads=[2, 3], depths=[1, 1], "
        "key_dim=[4, 5], drop_path_rate=0, mlp_ratio=[2, 2], attention_ratio=[2, 2], "
        "down_ops=[['Subsample', 4, 3, 2, 2, 2], ['']]",
        inputs=pixels(64),
    ),
    _image(
        "focalnet",
        "FocalNetForImageClassification",
        "embedding 2, channels 4, neurons 2",
        "image_size=16, patch_size=2, embed_dim=12, hidden_sizes=[12, 24], depths=[1, 1], "
        "focal_levels=[2, 1], focal_windows=[3, 3], drop_path_rate=0.0",
    ),
    _image(
        "cvt",
        "CvtForImageClassification",
        "embedding 2, neurons 12",
        "patch_sizes=[3, 3], patch_stride=[2, 2], patch_padding=[1, 1], embed_dim=[12, 20], "
        "num_heads=[2, 4], depth=[1, 2], mlp_ratio=[2.0, 2.0], attention_drop_rate=[0.0, 0.0], "
        "drop_rate=[0.0, 0.0], drop_path_rate=[0.0, 0.0], qkv_bias=[True, True], "
        "cls_token=[False, True], qkv_projection_method=['dw_bn', 'dw_bn'], kernel_qkv=[3, 3], "
        "padding_kv=[1, 1], stride_kv=[2, 2], padding_q=[1, 1], stride_q=[1, 1]",
    ),
    _image(
        "yolos",
        "YolosForObjectDetection",
        "embedding 1, heads 2, head-size 4, neurons 6",
        _VIT,
        "image_size=[16, 16], num_detection_tokens=3",
        fields="logits pred_boxes",
    ),
    _image(
        "videomae",
        "VideoMAEForVideoClassification",
        "embedding 1, heads 2, head-size 4, neurons 2",
        _VIT,
        "num_frames=2, tubelet_size=2",
        inputs=numbers(pixel_values=(2, 3, 16, 16)),
    ),
)
