"""Tiny configurations of every architecture, each with the variants that its processors and heads have."""

from __future__ import annotations

from typing import Any

SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
SQUARE = {"height": 32, "width": 32}
CUT = {"size": {"shortest_edge": 36}, "crop_size": SQUARE}

#: By model_type: the tiny configuration, the processor's settings, and what varies.
TINY: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, tuple[dict[str, Any], dict[str, Any]]]]] = {
    "beit": (
        SMALL,
        {"size": SQUARE, "crop_size": SQUARE},
        {
            "relative position bias": ({"use_relative_position_bias": True}, {}),
            "cut": ({}, {"size": {"height": 36, "width": 36}, "do_center_crop": True}),
        },
    ),
    "bit": (
        {"embedding_size": 16, **STAGES, "num_groups": 4},
        CUT,
        {"bottleneck": ({"layer_type": "bottleneck"}, {}), "same padding": ({"global_padding": "SAME"}, {})},
    ),
    "clip": (
        {"vision_config": {**SMALL, "projection_dim": 16}, "text_config": {"hidden_size": 32}, "projection_dim": 16},
        CUT,
        {},
    ),
    "convnext": (
        {**STAGES, "image_size": 32},
        {"size": {"shortest_edge": 32}},
        {
            "at 384": ({}, {"size": {"shortest_edge": 384}}),
            "at 384, crop_pct null": ({}, {"size": {"shortest_edge": 384}, "crop_pct": None}),
        },
    ),
    "convnextv2": ({**STAGES, "image_size": 32}, {"size": {"shortest_edge": 32}}, {}),
    # Its third stage takes the third of as many drop rates as it is deep.
    "cvt": (
        {"embed_dim": [8, 16, 16], "num_heads": [1, 1, 2], "depth": [1, 2, 3]},
        {"size": {"shortest_edge": 32}},
        {},
    ),
    "data2vec-vision": (SMALL, {"size": SQUARE, "crop_size": SQUARE}, {}),
    "deit": (
        SMALL,
        {"size": {"height": 38, "width": 38}, "crop_size": SQUARE},
        {"with teacher": ({}, {}), "whole picture": ({}, {"size": SQUARE, "do_center_crop": False})},
    ),
    # natten is not to be had here.
    "dinat": ({"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "kernel_size": 3}, {"size": SQUARE}, {}),
    "dinov2": (
        SMALL,
        CUT,
        {
            "SwiGLU": ({"use_swiglu_ffn": True}, {}),
            "at another size": ({"image_size": 64}, {}),
        },
    ),
    "dinov2_with_registers": (SMALL, CUT, {}),
    "donut-swin": (
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        {"size": SQUARE},
        {
            "oblong": ({"image_size": [64, 32]}, {"size": {"height": 64, "width": 32}}),
            "long axis": ({"image_size": [64, 32]}, {"size": {"height": 64, "width": 32}, "do_align_long_axis": True}),
        },
    ),
    "efficientnet": (
        {
            "image_size": 32,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.25,
            "hidden_dim": 320,
        },
        {"size": SQUARE},
        {
            "without include_top": ({}, {"include_top": False}),
            "rescale_offset": ({}, {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
        },
    ),
    "focalnet": (
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [1, 1],
            "hidden_sizes": [16, 32],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
        CUT,
        {"layerscale": ({"use_layerscale": True}, {}), "post layernorm": ({"use_post_layernorm": True}, {})},
    ),
    "hgnet_v2": (
        {
            "embedding_size": 8,
            "stem_channels": [3, 4, 8],
            "depths": [1, 1],
            "hidden_sizes": [16, 32],
            "stage_in_channels": [8, 16],
            "stage_mid_channels": [8, 8],
            "stage_out_channels": [16, 32],
            "stage_num_blocks": [1, 1],
            "stage_downsample": [False, True],
            "stage_light_block": [False, False],
            "stage_kernel_size": [3, 3],
            "stage_numb_of_layers": [2, 2],
        },
        CUT,
        {},
    ),
    "hiera": (
        {
            "image_size": [32, 32],
            "patch_size": [3, 3],
            "patch_stride": [4, 4],
            "patch_padding": [1, 1],
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "masked_unit_size": [4, 4],
            "num_query_pool": 1,
            "query_stride": [2, 2],
        },
        CUT,
        {},
    ),
    "ijepa": (SMALL, {"size": SQUARE}, {}),
    "imagegpt": (
        {"vocab_size": 9, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2},
        {
            "size": {"height": 8, "width": 8},
            "clusters": [[a, b, -a] for a in (-0.8, 0.7) for b in (-0.6, 0.1, 0.9, 0.3)],
        },
        {},
    ),
    "levit": (
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [1, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "attention_ratio": [2, 2, 2],
            "mlp_ratio": [2, 2, 2],
        },
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
        {"with teacher": ({}, {})},
    ),
    "metaclip_2": (
        {"vision_config": {**SMALL, "projection_dim": 16}, "text_config": {"hidden_size": 32}, "projection_dim": 16},
        CUT,
        {},
    ),
    "mobilenet_v1": (
        {"image_size": 32, "depth_multiplier": 0.25},
        CUT,
        {"TensorFlow's padding off": ({"tf_padding": False}, {})},
    ),
    "mobilenet_v2": (
        {"image_size": 32, "depth_multiplier": 0.25},
        CUT,
        {"TensorFlow's padding off": ({"tf_padding": False}, {})},
    ),
    "mobilevit": (
        {
            "image_size": 32,
            "hidden_sizes": [16, 16, 24],
            "neck_hidden_sizes": [8, 8, 16, 16, 16, 24, 32],
            "num_attention_heads": 2,
        },
        CUT,
        {"RGB": ({}, {"do_flip_channel_order": False})},
    ),
    "mobilevitv2": (
        {"image_size": 64, "width_multiplier": 0.25},
        {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
        {},
    ),
    "perceiver": (
        {
            "num_latents": 8,
            "d_latents": 16,
            "num_blocks": 1,
            "num_self_attends_per_block": 1,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 1,
            "image_size": 32,
        },
        {"size": SQUARE, "crop_size": {"height": 36, "width": 36}},
        {"Fourier": ({}, {}), "ConvProcessing": ({}, {})},
    ),
    "poolformer": (
        {"image_size": 32, **STAGES},
        {"size": {"shortest_edge": 32}, "crop_size": SQUARE},
        {
            "square": ({}, {"size": SQUARE}),
            "crop_pct null": ({}, {"crop_pct": None}),
        },
    ),
    "pp_lcnet": (
        {"scale": 0.25},
        {"image_processor_type": "PPLCNetImageProcessor"},
        {"another processor": ({}, {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}})},
    ),
    "pvt": (
        {
            # Its configuration has a count of its own, of ImageNet's.
            "num_labels": 11,
            "image_size": 32,
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 16, 16, 16],
            "num_attention_heads": [1, 2, 2, 2],
        },
        {"size": SQUARE},
        {},
    ),
    "pvt_v2": (
        {
            "image_size": 32,
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 16, 16, 16],
            "num_attention_heads": [1, 2, 2, 2],
            "sr_ratios": [4, 2, 2, 1],
        },
        {"size": SQUARE},
        {"linear attention": ({"linear_attention": True}, {})},
    ),
    "regnet": (
        {"embedding_size": 8, **STAGES, "groups_width": 4},
        {"size": {"shortest_edge": 32}},
        {"X layers": ({"layer_type": "x"}, {})},
    ),
    "resnet": (
        {"embedding_size": 8, **STAGES},
        {"size": {"shortest_edge": 32}},
        {
            "basic": ({"layer_type": "basic"}, {}),
            "50 layers": ({"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [3, 4, 6, 3]}, {}),
            "each image its own shape": (
                {},
                {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "do_center_crop": False},
            ),
        },
    ),
    "segformer": (
        {
            "image_size": 32,
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 16, 16, 16],
            "num_attention_heads": [1, 2, 2, 2],
        },
        {"size": SQUARE},
        {"do_reduce_labels": ({}, {"do_reduce_labels": True})},
    ),
    "shieldgemma2": ({"text_config": {}}, {}, {}),
    "siglip": ({"vision_config": SMALL, "text_config": {"hidden_size": 32}}, {"size": SQUARE}, {}),
    "siglip2": (
        {"vision_config": {**SMALL, "num_patches": 16}, "text_config": {"hidden_size": 32}},
        {"patch_size": 8, "max_num_patches": 16},
        {"more patches": ({}, {"max_num_patches": 41})},
    ),
    "swiftformer": (
        {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [16, 16, 32, 32], "mlp_ratio": 2},
        {"size": {"height": 64, "width": 64}},
        {},
    ),
    "swin": (
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4},
        {"size": SQUARE},
        {
            "absolute positions": ({"use_absolute_embeddings": True}, {}),
            "at another size": ({}, {"size": {"height": 40, "width": 56}}),
        },
    ),
    "swinv2": (
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4},
        {"size": SQUARE},
        {"pretrained windows": ({"pretrained_window_sizes": [2, 2]}, {})},
    ),
    "textnet": (
        {
            "image_size": [64, 64],
            "stem_num_channels": 3,
            "stem_out_channels": 8,
            "hidden_sizes": [8, 8, 16, 16, 16],
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3]], [[3, 3]], [[3, 1]]],
            "conv_layer_strides": [[2], [2], [2], [2]],
        },
        {"size": {"shortest_edge": 64}},
        {"cut": ({}, {"do_center_crop": True, "crop_size": {"height": 64, "width": 64}})},
    ),
    # timm has small ones of its own for tests.
    "timm_wrapper": (
        {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 0.95}},
        {},
        {
            "timm's own form": ({"architecture": "test_resnet"}, {}),
            "ViT": (
                {
                    "architecture": "test_vit",
                    "model_args": {"img_size": 64},
                    "pretrained_cfg": {
                        "input_size": [3, 64, 64],
                        "crop_pct": 1.0,
                        "crop_mode": "squash",
                        "mean": [0.5, 0.5, 0.5],
                        "std": [0.5, 0.5, 0.5],
                    },
                },
                {},
            ),
            "MobileNetV3": ({"architecture": "mobilenetv3_small_050"}, {}),
            "EfficientNet": (
                {
                    "architecture": "test_efficientnet",
                    "pretrained_cfg": {
                        "input_size": [3, 61, 61],
                        "interpolation": "bilinear",
                        "mean": [0.5],
                        "std": [0.2],
                    },
                },
                {},
            ),
            "ConvNeXt": ({"architecture": "test_convnext"}, {}),
            "several labels at once": ({"problem_type": "multi_label_classification"}, {}),
            "border": ({"pretrained_cfg": {"crop_mode": "border"}}, {}),
        },
    ),
    "vit": (
        SMALL,
        {"size": SQUARE},
        {
            "tanh-GELU": ({"hidden_act": "gelu_pytorch_tanh"}, {}),
            "quick GELU": ({"hidden_act": "quick_gelu"}, {}),
            "several labels at once": ({"problem_type": "multi_label_classification"}, {}),
            "tuples": ({"return_dict": False}, {}),
            "eager attention": ({"attn_implementation": "eager"}, {}),
            "hidden states": ({"output_hidden_states": True}, {}),
            "oblong": ({"image_size": [24, 40]}, {"size": {"height": 24, "width": 40}}),
            "RGB by the processor": ({}, {"do_convert_rgb": True}),
            "size as one number": ({}, {"size": 32}),
            "size as text": ({}, {"size": "32"}),
            "scalar mean": ({}, {"image_mean": 0.5, "image_std": 0.25}),
            "rescale_factor null": ({}, {"rescale_factor": None}),
            "not rescaled": ({}, {"do_rescale": False, "image_mean": [127.0] * 3, "image_std": [60.0] * 3}),
            "nearest": ({}, {"resample": 0}),
            "Lanczos": ({}, {"resample": 1}),
        },
    ),
    "vit_msn": (SMALL, {"size": SQUARE}, {}),
}
