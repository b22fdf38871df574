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
        "",
        _VIT,
    ),
    _image(
        "beit",
        "BeitForImageClassification",
        "",
        _VIT,
        "use_relative_position_bias=True, drop_path_rate=0.0, out_indices=[1]",
    ),
    _image(
        "dinov2",
        "Dinov2ForImageClassification",
        "",
        _VIT,
    ),
    _image(
        "dinov3_vit",
        "DINOv3ViTModel",
        "",
        _VIT,
        "num_attention_heads=3, num_register_tokens=2",
        fields="pooler_output",
    ),
    _image(
        "swin",
        "SwinForImageClassification",
        "",
        "image_size=16, patch_size=2, embed_dim=12, depths=[2, 1], num_heads=[2, 3], "
        "window_size=4, drop_path_rate=0.0",
    ),
    _image(
        "swinv2",
        "Swinv2ForImageClassification",
        "",
        "image_size=16, patch_size=2, embed_dim=12, depths=[2, 1], num_heads=[2, 3], "
        "window_size=4, drop_path_rate=0.0",
    ),
    _image(
        "convnextv2",
        "ConvNextV2ForImageClassification",
        "",
        "hidden_sizes=[12, 20], depths=[1, 1], num_stages=2, patch_size=2",
    ),
    _image(
        "resnet_hf",
        "ResNetForImageClassification",
        "",
        "embedding_size=12, hidden_sizes=[16, 20], depths=[1, 1]",
    ),
    _image(
        "regnet",
        "RegNetForImageClassification",
        "",
        "embedding_size=12, hidden_sizes=[16, 24], depths=[1, 1], groups_width=8",
    ),
    _image(
        "mobilenet_v2",
        "MobileNetV2ForImageClassification",
        "",
        "depth_multiplier=0.25, min_depth=4, image_size=16",
    ),
    _image(
        "mobilevit",
        "MobileViTForImageClassification",
        "",
        "hidden_sizes=[12, 16, 20], neck_hidden_sizes=[4, 6, 8, 10, 12, 14, 24], "
        "num_attention_heads=2, image_size=32, patch_size=2, mlp_ratio=2.0, expand_ratio=2.0, "
        "last_hidden_size=24",
        inputs=pixels(32),
    ),
    _image(
        "efficientnet_hf",
        "EfficientNetForImageClassification",
        "",
        "width_coefficient=0.25, depth_coefficient=0.3, in_channels=[16, 24], out_channels=[24, "
        "40], kernel_sizes=[3, 5], strides=[1, 2], num_block_repeats=[1, 1], expand_ratios=[1, "
        "3], depthwise_padding=[], hidden_dim=32, image_size=16, drop_connect_rate=0.0",
    ),
    _image(
        "poolformer",
        "PoolFormerForImageClassification",
        "",
        "hidden_sizes=[12, 20], depths=[1, 1], num_encoder_blocks=2, patch_sizes=[3, 3], "
        "strides=[2, 2], padding=[1, 1], drop_path_rate=0.0",
    ),
    _image(
        "segformer",
        "SegformerForSemanticSegmentation",
        "",
        "hidden_sizes=[12, 20], depths=[1, 1], num_encoder_blocks=2, sr_ratios=[2, 1], "
        "patch_sizes=[3, 3], strides=[2, 2], num_attention_heads=[2, 4], mlp_ratios=[2, 2], "
        "decoder_hidden_size=14, drop_path_rate=0.0",
    ),
    _image(
        "pvt",
        "PvtForImageClassification",
        "",
        "image_size=16, hidden_sizes=[12, 20], depths=[1, 1], num_encoder_blocks=2, "
        "sequence_reduction_ratios=[2, 1], patch_sizes=[2, 2], strides=[2, 2], "
        "num_attention_heads=[2, 4], mlp_ratios=[2, 2], drop_path_rate=0.0",
    ),
    _image(
        "levit",
        "LevitForImageClassification",
        "",
        "image_size=64, hidden_sizes=[12, 20], num_attention_heads=[2, 3], depths=[1, 1], "
        "key_dim=[4, 5], drop_path_rate=0, mlp_ratio=[2, 2], attention_ratio=[2, 2], "
        "down_ops=[['Subsample', 4, 3, 2, 2, 2], ['']]",
        inputs=pixels(64),
    ),
    _image(
        "focalnet",
        "FocalNetForImageClassification",
        "",
        "image_size=16, patch_size=2, embed_dim=12, hidden_sizes=[12, 24], depths=[1, 1], "
        "focal_levels=[2, 1], focal_windows=[3, 3], drop_path_rate=0.0",
    ),
    _image(
        "cvt",
        "CvtForImageClassification",
        "",
        "patch_sizes=[3, 3], patch_stride=[2, 2], patch_padding=[1, 1], embed_dim=[12, 20], "
        "num_heads=[2, 4], depth=[1, 1], mlp_ratio=[2.0, 2.0], attention_drop_rate=[0.0, 0.0], "
        "drop_rate=[0.0, 0.0], drop_path_rate=[0.0, 0.0], qkv_bias=[True, True], "
        "cls_token=[False, True], qkv_projection_method=['dw_bn', 'dw_bn'], kernel_qkv=[3, 3], "
        "padding_kv=[1, 1], stride_kv=[2, 2], padding_q=[1, 1], stride_q=[1, 1]",
    ),
    _image(
        "dpt",
        "DPTForDepthEstimation",
        "",
        _VIT,
        "num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 10, 12, "
        "14], fusion_hidden_size=12, readout_type='project', is_hybrid=False, head_in_index=-1",
        fields="predicted_depth",
    ),
    _image(
        "yolos",
        "YolosForObjectDetection",
        "",
        _VIT,
        "image_size=[16, 16], num_detection_tokens=3",
        fields="logits pred_boxes",
    ),
    _image(
        "videomae",
        "VideoMAEForVideoClassification",
        "",
        _VIT,
        "num_frames=2, tubelet_size=2",
        inputs=numbers(pixel_values=(2, 3, 16, 16)),
    ),
)
