"""Full-size configurations, of the most downloaded classifiers' architectures: random weights, real sizes."""

from __future__ import annotations

from cases import Case

_224 = {"height": 224, "width": 224}
_CONVNEXT = {"size": {"shortest_edge": 224}, "crop_pct": 0.875}

#: Named after the checkpoint whose configuration it is.
FULL: tuple[Case, ...] = (
    Case("vit", "vit-base-patch16-224", {}, {}),
    Case("vit", "vit-tiny-patch16-224", {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}),
    Case("vit", "vit-base-patch32-384", {"image_size": 384, "patch_size": 32}, {"size": {"height": 384, "width": 384}}),
    Case(
        "resnet",
        "resnet-18",
        {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
        _CONVNEXT,
    ),
    Case("resnet", "resnet-50", {}, _CONVNEXT),
    Case("resnet", "resnet-101", {"depths": [3, 4, 23, 3]}, _CONVNEXT),
    Case("convnext", "convnext-tiny-224", {}, _CONVNEXT),
    Case("convnextv2", "convnextv2-tiny-22k-384", {"image_size": 384}, {"size": {"shortest_edge": 384}}),
    Case("swin", "swin-tiny-patch4-window7-224", {}, {}),
    Case(
        "swinv2",
        "swinv2-tiny-patch4-window8-256",
        {"image_size": 256, "window_size": 8},
        {"size": {"height": 256, "width": 256}},
    ),
    Case(
        "deit",
        "deit-tiny-patch16-224",
        {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
        {"size": {"height": 256, "width": 256}},
    ),
    Case("beit", "beit-base-patch16-224", {"use_relative_position_bias": True}, {}),
    Case("mobilenet_v1", "mobilenet_v1_1.0_224", {}, {}),
    Case("mobilenet_v2", "mobilenet_v2_1.0_224", {}, {}),
    Case("mobilevit", "mobilevit-small", {}, {"size": {"shortest_edge": 288}}),
    Case("mobilevitv2", "mobilevitv2-1.0-imagenet1k-256", {}, {"size": {"shortest_edge": 288}}),
    Case(
        "efficientnet",
        "efficientnet-b0",
        {"image_size": 224, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
        {"size": _224, "resample": 0},
    ),
    Case("regnet", "regnet-y-040", {}, _CONVNEXT),
    Case("siglip", "siglip-base-patch16-224", {}, {}),
    Case(
        "dinov2",
        "dinov2-small-imagenet1k-1-layer",
        {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14},
        {"size": {"shortest_edge": 256}},
    ),
    Case("segformer", "mit-b0", {}, {"size": {"height": 512, "width": 512}}),
    Case("poolformer", "poolformer_s12", {}, {}),
    Case("levit", "levit-128S", {}, {}),
    Case("cvt", "cvt-13", {}, _CONVNEXT),
    Case("clip", "clip-vit-base-patch32", {}, {}),
)
