"""A checkpoint's own processor, and what the handler needs to do the same (`include/handlers/image_pixels.py`).

Most processors of transformers are settings for the same few steps. Those with rules of their own are translated here
into plain sizes, or into one of the steps that the handler knows beside them; what is neither is refused by name. The
pixels are compared afterwards, so a processor that changes its ways in a new transformers is found out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image

from model_release.build import timm_config, timm_model
from model_release.build.inspection import read_json
from model_release.build.labels import CONFIG
from model_release.build.told import first_line
from model_release.errors import CheckpointError

PIXEL_LIMIT = 1e-5

_KNOWN = {
    *("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_flip_channel_order"),
    *("do_pad", "do_align_long_axis", "do_thumbnail", "do_color_quantize"),
    # About segmentation maps.
    "do_reduce_labels",
}
# What SigLIP2's processor gives: patches, which of them are none, and how many rows and columns they are.
_NAFLEX = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
# At or above this edge ConvNeXt's processor squeezes to a square, below it crops.
_WARPED_FROM = 384

Settings = dict[str, Any]


def load(directory: Path) -> Any:
    """The processor of the checkpoint in `directory`, as transformers makes it without torchvision; a timm checkpoint's
    is timm's eval transform.

    Raises `CheckpointError` for one that it cannot make, or that is not one for a picture's pixels.
    """
    config = read_json(directory / CONFIG, "checkpoint")
    if timm_config.is_timm(config):
        return timm_model.EvalTransform(timm_config.options(config, "checkpoint"))
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            directory, backend="pil", trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        if "torchvision" in str(error):
            raise CheckpointError(
                "the checkpoint's image processor exists for torchvision alone, whose resizing the handler does not "
                "have; save the checkpoint with a processor that has a PIL form"
            ) from error
        raise CheckpointError(f"transformers cannot load preprocessor_config.json: {first_line(error)}") from error
    known = (["pixel_values"], ["input_ids"], _NAFLEX)
    if processor.model_input_names not in known:
        raise CheckpointError(
            f"{_kind(processor)} gives {', '.join(processor.model_input_names)}; the exported model takes pixel_values"
        )
    return processor


def options_of(processor: Any) -> dict[str, Any]:
    """The handler's options (`image_pixels.OPTIONS`) for this processor.

    Raises `CheckpointError` that names each setting which the handler cannot reproduce.
    """
    if isinstance(processor, timm_model.EvalTransform):
        return dict(processor.options)
    settings = _plain(processor.to_dict())
    kind = _kind(processor)
    faults: list[str] = []
    if kind in _RULES:
        _RULES[kind](settings, faults)
    faults += _faults(settings)
    if faults:
        raise CheckpointError(f"the handler cannot reproduce {kind}'s {'; '.join(faults)}")
    box = settings.get("box")
    return {
        "do_convert_rgb": bool(settings.get("do_convert_rgb")),
        "box": box,
        "do_align_long_axis": bool(box and settings.get("do_align_long_axis")),
        "crop_share": settings.get("crop_share"),
        "do_resize": bool(settings.get("do_resize")),
        "size": settings["size"] or None,
        "size_divisor": settings.get("size_divisor"),
        "patches": settings.get("patches"),
        "resample": None if settings.get("resample") is None else int(settings["resample"]),
        "do_thumbnail": bool(box and settings.get("do_thumbnail")),
        # Others pad the pictures of one batch to each other's size: nothing for a picture alone.
        "do_pad": bool(box and settings.get("do_pad")),
        "do_center_crop": bool(settings.get("do_center_crop")),
        "crop_size": settings["crop_size"] or None,
        "do_rescale": bool(settings.get("do_rescale")),
        "rescale_factor": settings.get("rescale_factor"),
        "rescale_offset": bool(settings.get("rescale_offset")),
        "do_normalize": bool(settings.get("do_normalize")),
        "image_mean": settings.get("image_mean"),
        "image_std": settings.get("image_std"),
        "include_top": bool(settings.get("include_top")),
        "do_flip_channel_order": bool(settings.get("do_flip_channel_order")),
    }


def processed(processor: Any, picture: Image.Image) -> Any:
    """The pixels that the checkpoint's own processor makes of a picture: float32, [3, height, width]."""
    plain = {"do_color_quantize": False} if hasattr(processor, "do_color_quantize") else {}
    made = processor(images=picture, return_tensors="np", **plain)
    pixels = np.asarray(made["pixel_values"][0], np.float32)
    if processor.model_input_names != _NAFLEX:
        return pixels
    rows, columns = made["spatial_shapes"][0]
    side = processor.patch_size
    patches = pixels[: rows * columns].reshape(rows, columns, side, side, 3)
    return patches.transpose(4, 0, 2, 1, 3).reshape(3, rows * side, columns * side)


def compare(preprocess: Callable[..., Any], processor: Any, options: Settings, size: tuple[int, int]) -> float:
    """The largest difference between the handler's pixels and the processor's, on pictures of several shapes.

    Raises `CheckpointError` where it is over `PIXEL_LIMIT`.
    """
    height, width = size
    shapes = [(height, width)]
    if options["do_resize"] or options["do_center_crop"]:
        shapes += [(57, 40), (40, 57), (height * 2 + 1, width + 9), (301, 419), (1, 1), (9, 250)]
    worst = 0.0
    for number, (rows, columns) in enumerate(shapes):
        shown = picture(rows, columns, number)
        # As a file has it that calls one colour transparent.
        shown.info["transparency"] = shown.getpixel((0, 0))
        try:
            expected = processed(processor, shown)
        except ValueError as error:
            raise CheckpointError(
                f"{_kind(processor)} cannot read an image of {columns}x{rows}: {first_line(error)}"
            ) from error
        actual = preprocess(shown, options)
        same_shape = expected.shape == actual.shape
        difference = float(np.abs(expected - actual).max()) if same_shape else float("inf")
        if not difference <= PIXEL_LIMIT:
            raise CheckpointError(
                f"the handler cannot reproduce {_kind(processor)}: for an image of {columns}x{rows} its pixels "
                f"differ by {difference:.3g} (limit {PIXEL_LIMIT:g}); options {json.dumps(options)}"
            )
        worst = max(worst, difference)
    return worst


def picture(height: int, width: int, number: int) -> Image.Image:
    """A picture with edges, gradients and grain, the same on every machine."""
    rows, columns = np.mgrid[0:height, 0:width]
    tile = max(2, min(height, width) // 4)
    check = ((rows // tile + columns // tile + number) % 2) * 96
    grain = (rows * 73 + columns * 151 + number * 37) % 31
    bands = [rows * 128 // height, columns * 128 // width, (rows + columns) * 128 // (height + width)]
    return Image.fromarray(np.stack([check + grain + band for band in bands], -1).astype(np.uint8))


def _kind(processor: Any) -> str:
    return type(processor).__name__.removesuffix("Pil").removesuffix("Fast")


def _plain(settings: Mapping[str, Any]) -> Settings:
    """The settings with sizes without their empty entries, and three numbers where one stands for all channels."""
    plain = dict(settings)
    for name in ("size", "crop_size"):
        plain[name] = {key: value for key, value in (settings.get(name) or {}).items() if value is not None}
    for name in ("image_mean", "image_std"):
        values = settings.get(name)
        plain[name] = [values] * 3 if isinstance(values, int | float) else None if values is None else list(values)
    return plain


def _faults(settings: Settings) -> list[str]:
    """What no step of the handler does, one clause each."""
    faults = []
    faults += [
        f"{name}={value!r}" for name, value in settings.items() if name[:3] == "do_" and value and name not in _KNOWN
    ]
    if settings.get("do_pad") and settings.get("pad_size"):
        faults.append(f"do_pad=True with pad_size={dict(settings['pad_size'])}")
    size, crop = settings["size"], settings["crop_size"]
    if settings.get("do_resize"):
        if set(size) not in ({"height", "width"}, {"shortest_edge"}) and not settings.get("patches"):
            faults.append(f"size={size} (known: height and width, or shortest_edge)")
        if settings.get("crop_pct") is not None:
            faults.append(f"crop_pct={settings['crop_pct']}")
        if settings.get("resample") not in set(Image.Resampling):
            faults.append(f"resample={settings.get('resample')!r}")
    if settings.get("do_center_crop") and set(crop) != {"height", "width"}:
        faults.append(f"crop_size={crop} (known: height and width)")
    if settings.get("do_rescale") and not isinstance(settings.get("rescale_factor"), int | float):
        faults.append(f"rescale_factor={settings.get('rescale_factor')!r} (known: a number)")
    for name in ("image_mean", "image_std"):
        values = settings.get(name)
        if settings.get("do_normalize") and (values is None or len(values) != 3):
            faults.append(f"{name}={values!r} (known: three numbers, for RGB)")
    return faults


def _convnext(settings: Settings, faults: list[str]) -> None:
    """Squeezed to a square from 384 on; below, the shorter side to edge/crop_pct and the middle cut out."""
    edge, share = settings["size"].get("shortest_edge"), settings.pop("crop_pct", None)
    if not settings.get("do_resize") or not edge:
        return
    square = {"height": edge, "width": edge}
    if edge >= _WARPED_FROM:
        settings["size"] = square
    elif share is None:
        faults.append(f"crop_pct=None below an edge of {_WARPED_FROM}")
    elif settings.get("do_center_crop") and settings["crop_size"] != square:
        faults.append(f"crop_size={settings['crop_size']} beside crop_pct, which crops to {edge}x{edge}")
    else:
        settings.update(size={"shortest_edge": int(edge / share)}, do_center_crop=True, crop_size=square)


def _poolformer(settings: Settings, _: list[str]) -> None:
    """The shorter side to edge/crop_pct, of a square too."""
    size, share = settings["size"], settings.pop("crop_pct", None)
    if share is None:
        return
    if "shortest_edge" in size or size.get("height") == size.get("width"):
        edge = size.get("shortest_edge") or size.get("height")
        settings["size"] = {"shortest_edge": int(edge / share)} if edge else size
    else:
        settings["size"] = {side: int(length / share) for side, length in size.items()}


def _levit(settings: Settings, _: list[str]) -> None:
    """The shorter side is made 256/224 times as long as it says."""
    if edge := settings["size"].get("shortest_edge"):
        settings["size"] = {"shortest_edge": int((256 / 224) * edge)}


def _mobilevit(settings: Settings, _: list[str]) -> None:
    """Blue first, and never normalized, whatever it says."""
    settings["do_normalize"] = False


def _perceiver(settings: Settings, faults: list[str]) -> None:
    """Cuts a share of the picture out before it resizes."""
    if not settings.pop("do_center_crop", False):
        return
    size, crop = settings["size"], settings["crop_size"]
    sides = ("height", "width")
    if any(side not in size or side not in crop or size[side] > crop[side] for side in sides):
        faults.append(f"size={size} with crop_size={crop} (known: height and width, the size within the crop)")
    else:
        settings["crop_share"] = {side: size[side] / crop[side] for side in sides}


def _donut(settings: Settings, faults: list[str]) -> None:
    """The shorter side to the model's shorter side, then as large as it fits, then padded."""
    size = settings["size"]
    if set(size) != {"height", "width"}:
        faults.append(f"size={size} (known: height and width)")
        return
    settings.update(box=size, size={"shortest_edge": min(size.values())})


def _siglip2(settings: Settings, faults: list[str]) -> None:
    """As many patches as are allowed, in the picture's own shape."""
    if not settings.get("do_resize"):
        faults.append("do_resize=False (known: True, which makes whole patches)")
    settings["patches"] = {"side": settings["patch_size"], "most": settings["max_num_patches"]}


def _imagegpt(settings: Settings, faults: list[str]) -> None:
    """Colours become numbers of a palette, which the exported model does itself."""
    if settings.get("do_color_quantize") and settings.get("clusters") is None:
        faults.append("do_color_quantize without clusters")


_RULES: dict[str, Callable[[Settings, list[str]], None]] = {
    "ConvNextImageProcessor": _convnext,
    "PoolFormerImageProcessor": _poolformer,
    "LevitImageProcessor": _levit,
    "MobileViTImageProcessor": _mobilevit,
    "PerceiverImageProcessor": _perceiver,
    "DonutImageProcessor": _donut,
    "ImageGPTImageProcessor": _imagegpt,
    "Siglip2ImageProcessor": _siglip2,
}
