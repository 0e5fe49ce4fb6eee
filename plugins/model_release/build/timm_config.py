"""What a timm checkpoint's config.json says: which network, what its classes are called, what pixels it takes.

Two forms are read alike: the one that timm itself pushes to the hub (`architecture`, `pretrained_cfg`), and what
transformers' timm_wrapper saves. Neither has a preprocessor_config.json: `pretrained_cfg` says what one would.
Nothing here imports timm or torch.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_release.errors import CheckpointError

#: Pillow's numbers (`Image.Resampling`) by timm's names.
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}

# What timm takes where a configuration says nothing (timm.data.config.resolve_data_config).
_DEFAULTS: dict[str, Any] = {
    "input_size": [3, 224, 224],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
# A network's name and no address: with "hf-hub:" or "local-dir:" before it timm would fetch, or open a pickle.
_NAME = re.compile(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?")
# Arguments of timm.create_model that open files, fetch, or make something else than a classifier of RGB pictures.
_NOT_OF_THE_NETWORK = re.compile(
    "pretrained.*|checkpoint_path|cache_dir|scriptable|exportable|no_jit|model_name|num_classes|features_only|in_chans"
    "|feature_cfg|kwargs_filter|out_indices"
)
# By how many classes there are, as timm itself tells ImageNet's subsets apart (timm.data.infer_imagenet_subset).
_SYNSETS = {
    1000: "imagenet_synsets.txt",
    11221: "imagenet21k_miil_synsets.txt",
    11821: "imagenet12k_synsets.txt",
    21841: "imagenet22k_synsets.txt",
    21842: "imagenet22k_ms_synsets.txt",
    21843: "imagenet21k_goog_synsets.txt",
}
_NAMES = "imagenet_synset_to_lemma.txt"


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of timm's, in either form."""
    bare = isinstance(config.get("architecture"), str) and "pretrained_cfg" in config
    return bare or config.get("model_type") == "timm_wrapper"


def network(config: Mapping[str, Any], origin: str) -> tuple[str, dict[str, Any]]:
    """timm's name for the network, and its own arguments. Raises `CheckpointError` for what is no such name, and for
    arguments that say more than how the network is built."""
    name, arguments = config.get("architecture"), config.get("model_args") or {}
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CheckpointError(f"{origin}: config.json has architecture {name!r}; timm's is a name such as resnet50")
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{origin}: config.json has model_args {arguments!r}; an object would be right")
    for key in arguments:
        if _NOT_OF_THE_NETWORK.fullmatch(key):
            raise CheckpointError(f"{origin}: config.json has model_args.{key}, which is not taken from a checkpoint")
    if count(config) == 0:
        raise CheckpointError(f"{origin} is no image classifier: config.json has num_classes 0, so {name} has no head")
    return name, arguments


def count(config: Mapping[str, Any]) -> Any:
    """How many classes it says that there are; None where it says nothing."""
    said = config.get("num_classes", config.get("num_labels"))
    return _settings(config).get("num_classes") if said is None else said


def imagenet_names(classes: Any) -> list[str] | None:
    """What ImageNet's classes are called in timm, which says so nowhere in a checkpoint of `classes` of them; None for
    any other number."""
    synsets, package = _SYNSETS.get(classes), importlib.util.find_spec("timm")
    if synsets is None or package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "data" / "_info"
    with (folder / _NAMES).open(encoding="utf-8", newline="") as file:
        names = dict(csv.reader(file, delimiter="\t"))
    return [names[synset] for synset in (folder / synsets).read_text(encoding="utf-8").split()]


def options(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The handler's options (`image_pixels.OPTIONS`) for what timm's eval transform does, as transformers' processor
    for these checkpoints asks for it: `test_input_size` and `test_crop_pct` are not heeded.

    Raises `CheckpointError`, naming the field, for what the handler cannot do alike.
    """
    said = _settings(config)

    def refuse(name: str, known: str) -> CheckpointError:
        return CheckpointError(f"{origin}: config.json has pretrained_cfg.{name} {said[name]!r} (known: {known})")

    for name in ("in_chans", "chans", "img_size"):
        if said.get(name) is not None:
            raise refuse(name, "nothing; input_size says it")
    found = {name: default if said.get(name) in (None, "") else said[name] for name, default in _DEFAULTS.items()}
    size, share = found["input_size"], found["crop_pct"] or _DEFAULTS["crop_pct"]
    if not _numbers(size, 3) or size[0] != 3 or not all(isinstance(side, int) and side > 0 for side in size):
        raise refuse("input_size", "3 channels, height, width")
    if not isinstance(share, int | float) or not 0.5 <= share <= 2:
        raise refuse("crop_pct", "from 0.5 to 2")
    if found["interpolation"] not in RESAMPLING:
        raise refuse("interpolation", ", ".join(RESAMPLING))
    for name in ("mean", "std"):
        if _numbers(found[name], 1):
            found[name] = list(found[name]) * 3
        if not _numbers(found[name], 3) or (name == "std" and not all(found[name])):
            raise refuse(name, f"one number or three{', none of them 0' if name == 'std' else ''}")
    if found["crop_mode"] not in ("center", "squash"):
        raise refuse("crop_mode", "center, squash")
    height, width = (math.floor(side / share) for side in size[1:])
    if found["crop_mode"] == "center" and size[1] != size[2]:
        raise refuse("input_size", "a square, where crop_mode is center")
    if not height or not width:
        raise refuse("input_size", "two pixels or more a side, where crop_pct is over 1")
    squashed = found["crop_mode"] == "squash"
    return {
        "do_resize": True,
        "size": {"height": height, "width": width} if squashed else {"shortest_edge": height},
        "resample": RESAMPLING[found["interpolation"]],
        "do_center_crop": True,
        "crop_size": {"height": size[1], "width": size[2]},
        "round_crop": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(found["mean"]),
        "image_std": list(found["std"]),
    }


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    said = config.get("pretrained_cfg")
    return said if isinstance(said, dict) else {}


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(one) in (int, float) for one in value)
