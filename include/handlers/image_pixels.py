"""From a picture to what the model takes. Needs Pillow and NumPy, nothing else.

`preprocess` does to an upright 8-bit RGB picture what the checkpoint's own processor does. Its options are those of
a Hugging Face `preprocessor_config.json`, by their own names; where a processor has rules of its own, export has
written them down as plain sizes (`model_release.build.pixels`), and has compared the pixels. So a model that was
exported is a model whose input is reproduced here; whatever goes wrong here is ours (5xx), but for `BadInput`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

#: Pictures over this are refused before they are decoded: 50 megapixels are what the largest phone cameras
#: send, and 150 MB once decoded.
MAX_PIXELS = 50_000_000

#: Of pictures whose shape the model's input keeps: 12 bytes a pixel there, and some 50 on the way. Together for a
#: request.
MAX_KEPT_PIXELS = 10_000_000

# Pixels that are converted at a time, where a conversion needs copies.
_BAND = 4_000_000

OPTIONS = (
    "do_convert_rgb",
    "box",
    "do_align_long_axis",
    "crop_share",
    "do_resize",
    "size",
    "size_divisor",
    "patches",
    "resample",
    "do_thumbnail",
    "do_pad",
    "do_center_crop",
    "crop_size",
    "round_crop",
    "do_rescale",
    "rescale_factor",
    "rescale_offset",
    "do_normalize",
    "image_mean",
    "image_std",
    "include_top",
    "do_flip_channel_order",
)

Pixels = npt.NDArray[np.float32]


class BadInput(ValueError):
    """The client sent something that is no image; the message says what and what would be right."""


def preprocess(image: Image.Image, options: Mapping[str, Any]) -> Pixels:
    """The model's input for one RGB picture: float32, shape [3, height, width].

    The colour that `info["transparency"]` names becomes white where the processor has `do_convert_rgb`, and is a colour
    like any other where it has not (`transformers.image_transforms.convert_to_rgb`).

    Same operations in the same order and precision as transformers' `PilBackend._preprocess` and the processors that
    have steps of their own: `crop_share` is Perceiver's, `do_align_long_axis`, `do_thumbnail` and `do_pad` (with `box`)
    are Donut's, `size_divisor` is TextNet's, `patches` are SigLIP2's, `rescale_offset` and `include_top` are
    EfficientNet's, `round_crop` is timm's. Options that are absent are off.

    Raises `BadInput` for a strip so long that resizing it would need more than `MAX_PIXELS`.
    """
    if options.get("do_convert_rgb") and image.info.get("transparency") is not None:
        image = in_bands(image, _over_white)
    box = options.get("box") or {}
    if options.get("do_align_long_axis"):
        image = _aligned(image, box["width"], box["height"])
    if options.get("crop_share"):
        image = _crop_share(image, options["crop_share"])
    if options["do_resize"]:
        image = _resize(image, options)
    if options.get("do_thumbnail"):
        image = _thumbnail(image, box["width"], box["height"], options["resample"])
    pixels: npt.NDArray[Any] = np.asarray(image)
    if options.get("do_pad"):
        pixels = _padded(pixels, box["height"], box["width"])
    if options["do_center_crop"]:
        crop = options["crop_size"]
        pixels = _center_crop(pixels, crop["height"], crop["width"], options.get("round_crop", False))
    levels = _levels(options)
    order = (2, 1, 0) if options.get("do_flip_channel_order") else (0, 1, 2)
    result = np.empty((3, *pixels.shape[:2]), np.float32)
    for place, channel in enumerate(order):
        # No level is over 255: `clip` only spares NumPy a copy in which it would look for one.
        np.take(levels[:, channel], pixels[..., channel], out=result[place], mode="clip")
    return result


def _levels(options: Mapping[str, Any]) -> Pixels:
    """What the processor makes of each of the 256 levels in each channel, [256, 3]: computed once for a level, and not
    for each pixel that has it, which is the same to the last bit."""
    levels: npt.NDArray[Any] = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    if options["do_rescale"]:
        levels = (levels.astype(np.float64) * options["rescale_factor"]).astype(np.float32)
        if options.get("rescale_offset"):
            levels -= 1
    if options["do_normalize"]:
        levels = levels.astype(np.float32) - np.asarray(options["image_mean"], np.float32)
    # EfficientNet's divides once more.
    for _ in range(bool(options["do_normalize"]) + bool(options.get("include_top"))):
        levels = levels.astype(np.float32) / np.asarray(options["image_std"], np.float32)
    return levels.astype(np.float32)


def keeps_shape(options: Mapping[str, Any]) -> bool:
    """Whether a picture's own width and height decide how large the model's input gets."""
    size = options.get("size") or {}
    resized = options["do_resize"] and ("height" in size or options.get("patches"))
    return not (resized or options["do_center_crop"] or options.get("do_pad"))


def in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The picture converted some rows at a time: these conversions take several times the picture's memory."""
    rows = max(1, _BAND // image.width)
    if rows >= image.height:
        return convert(image)
    converted = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        converted.paste(convert(band), (0, top))
    return converted


def _over_white(image: Image.Image) -> Image.Image:
    picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB")


def _aligned(image: Image.Image, width: int, height: int) -> Image.Image:
    """Turned by 90 degrees where the long side would lie across the model's."""
    across = (width < height and image.width > image.height) or (width > height and image.width < image.height)
    return image.transpose(Image.Transpose.ROTATE_270) if across else image


def _crop_share(image: Image.Image, share: Mapping[str, float]) -> Image.Image:
    """The middle of the picture: these shares of its shorter side."""
    short = min(image.size)
    width, height = int(share["width"] * short), int(share["height"] * short)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _resize(image: Image.Image, options: Mapping[str, Any]) -> Image.Image:
    size, resample = options["size"], Image.Resampling(options["resample"])
    if options.get("patches"):
        return image.resize(_in_patches(image, options["patches"]["side"], options["patches"]["most"]), resample)
    edge, divisor = size.get("shortest_edge"), options.get("size_divisor") or 1
    if not edge:
        return image.resize((size["width"], size["height"]), resample)
    width, height = _by_shortest_edge(image, edge, MAX_KEPT_PIXELS if keeps_shape(options) else MAX_PIXELS)
    return image.resize((-(-width // divisor) * divisor, -(-height // divisor) * divisor), resample)


def _by_shortest_edge(image: Image.Image, edge: int, limit: int) -> tuple[int, int]:
    short, long = sorted(image.size)
    length = int(edge * long / short)
    if edge * length > limit:
        raise BadInput(f"a strip of {image.width}x{image.height} pixels; its sides are too far apart to be resized")
    return (edge, length) if image.width <= image.height else (length, edge)


def _in_patches(image: Image.Image, side: int, most: int) -> tuple[int, int]:
    """(width, height) in whole patches, in the picture's shape as nearly as `most` of them allow: the search of
    transformers' `get_image_size_for_max_num_patches`, step for step."""

    def patches(scale: float) -> tuple[int, int]:
        width, height = (max(1, math.ceil(length * scale / side)) for length in image.size)
        return width, height

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        scale = (low + high) / 2
        if math.prod(patches(scale)) <= most:
            low = scale
        else:
            high = scale
    width, height = patches(low)
    return width * side, height * side


def _thumbnail(image: Image.Image, width: int, height: int, resample: int) -> Image.Image:
    """As large as it fits into width x height; never larger than it is."""
    width, height = min(image.width, width), min(image.height, height)
    if (width, height) == image.size:
        return image
    if image.height > image.width:
        width = int(image.width * height / image.height)
    elif image.width > image.height:
        height = int(image.height * width / image.width)
    return image.resize((max(1, width), max(1, height)), Image.Resampling(resample))


def _padded(pixels: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    rows, columns = pixels.shape[:2]
    top, left = (height - rows) // 2, (width - columns) // 2
    return np.pad(pixels, ((top, height - rows - top), (left, width - columns - left), (0, 0)))


def _center_crop(pixels: npt.NDArray[Any], height: int, width: int, rounded: bool) -> npt.NDArray[Any]:
    """The middle of [rows, columns, 3], padded with black where the picture is smaller. Where the middle is between two
    pixels, transformers (image_transforms.center_crop) and torchvision (`rounded`) take different ones."""
    rows, columns = pixels.shape[:2]
    canvas = np.zeros((max(height, rows), max(width, columns), 3), pixels.dtype)
    over = 0 if rounded else 1
    top, left = (canvas.shape[0] - rows + over) // 2, (canvas.shape[1] - columns + over) // 2
    canvas[top : top + rows, left : left + columns] = pixels
    if rounded:
        top, left = round((canvas.shape[0] - height) / 2), round((canvas.shape[1] - width) / 2)
    else:
        top, left = top + (rows - height) // 2, left + (columns - width) // 2
    return canvas[max(0, top) : top + height, max(0, left) : left + width]
