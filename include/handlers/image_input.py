"""From what a client sends to pictures, and on to what the model takes. Needs Pillow and NumPy, nothing else.

`read_image` turns bytes into an upright 8-bit RGB picture, and whatever goes wrong there is the client's
(`BadInput`, answered with 400). What comes after it (`image_pixels.preprocess`) is ours (5xx).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from image_pixels import (  # type: ignore[import-not-found]
    MAX_KEPT_PIXELS,
    MAX_PIXELS,
    BadInput,
    Pixels,
    keeps_shape,
    preprocess,
)
from PIL import Image, ImageOps, UnidentifiedImageError

#: Pillow reads WebP through libwebp's decoder of animations, which holds five copies of the picture.
MAX_WEBP_PIXELS = 25_000_000
#: One request is one forward pass, and its memory grows with each instance.
MAX_INSTANCES = 64
#: All pictures of a request, before they are made small: a black picture of 50 megapixels is a file of some kilobytes,
#: and half a second's work.
MAX_REQUEST_PIXELS = 200_000_000
#: How often a JPEG may go over its picture. Encoders write some ten scans; each costs as much as a whole decoding,
#: and a few bytes of a file.
MAX_SCANS = 64
#: What is decoded at all. Pillow knows many more, some of which start other programs (EPS) or are seldom fuzzed.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: Where an instance keeps its picture.
KEYS = ("data", "b64", "image", "body")

# Pixels that are converted at a time, where a conversion needs copies.
_BAND = 4_000_000
# The next marker of a JPEG that is no part of compressed data (ISO/IEC 10918-1, B.1.1).
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


class Allowance:
    """How many pixels the pictures of a request may still have, whether or not they turn out to be readable."""

    def __init__(self) -> None:
        self._left = MAX_REQUEST_PIXELS

    def take(self, width: int, height: int) -> None:
        self._left -= width * height
        if self._left < 0:
            limit = MAX_REQUEST_PIXELS // 1_000_000
            raise BadInput(f"the pictures up to here have together more than {limit} megapixels; send fewer at a time")


def read_instances(instances: object, options: Mapping[str, Any]) -> list[Pixels]:
    """The model's inputs for a V1 request's `instances`, in order; each float32 [3, height, width].

    One picture after the other is decoded and made small, so that only one is ever large.
    Raises `BadInput` naming every bad row (`instances[3]: not base64`), or saying that the list itself is wrong.
    """
    if not isinstance(instances, list) or not instances:
        raise BadInput('expected {"instances": [{"data": "<base64 image>"}, …]} with at least one instance')
    if len(instances) > MAX_INSTANCES:
        raise BadInput(f"{len(instances)} instances in one request; the limit is {MAX_INSTANCES}")
    inputs: list[Pixels] = []
    faults: list[str] = []
    total, allowance = 0, Allowance()
    for row, instance in enumerate(instances):
        try:
            inputs.append(_input(instance, options, allowance))
        except BadInput as error:
            faults.append(f"instances[{row}]: {error}")
            continue
        # Only a processor that does not resize lets it come to this.
        total += inputs[-1][0].size
        limit = min(MAX_KEPT_PIXELS, MAX_PIXELS)
        if total > limit:
            raise BadInput(f"the instances up to [{row}] are together {_over_limit(limit)}")
    if faults:
        raise BadInput("; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else ""))
    return inputs


def read_body(body: object, options: Mapping[str, Any]) -> tuple[list[Pixels], bool]:
    """The model's inputs for a body that came without envelope, and whether it was a V1 request.

    A body is the image's own bytes, base64 text, one instance as JSON, or `{"instances": […]}`.
    """
    if isinstance(body, (bytes, bytearray)) and bytes(body[:64]).lstrip()[:1] == b"{":
        try:
            body = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"the body begins like JSON and is none: {error}") from None
    if isinstance(body, dict) and "instances" in body:
        return read_instances(body["instances"], options), True
    return [_input(body, options, Allowance())], False


def read_image(value: object, allowance: Allowance | None = None) -> Image.Image:
    """The upright 8-bit RGB picture in bytes, base64 text, or an object with one of `KEYS`.

    EXIF rotation is applied, as every viewer does. 16-bit grey is scaled to 8 bits (Pillow's own conversion
    would clip it at 255, which turns the picture white). Transparency is dropped, whatever the checkpoint's
    processor says (`do_convert_rgb`), as `transformers.pipeline` does. Of an animation it is the first picture.

    What a header promises is held against the limits before anything is decoded, and counted against `allowance`.
    """
    raw = _bytes(value)
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            limit = MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS
            if image.width * image.height > limit:
                raise BadInput(f"image of {image.width}x{image.height} pixels, {_over_limit(limit)}")
            # MPO is a JPEG with more pictures behind it.
            if image.format in ("JPEG", "MPO") and _scans(raw) > MAX_SCANS:
                raise BadInput(f"a JPEG of more than {MAX_SCANS} scans; save it anew, as baseline or progressive")
            if allowance:
                allowance.take(image.width, image.height)
            image.load()
            # A copy would be another 200 MB.
            ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)
    except BadInput:
        raise
    except UnidentifiedImageError:
        raise BadInput(f"{len(raw)} bytes that are no image; known are {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise BadInput(f"image of far more pixels, {_over_limit()}") from None
    except MemoryError:
        raise
    # Pillow's decoders raise whatever they stumble over (OSError, struct.error, IndexError, zlib.error …), and
    # all that they can stumble over here is the client's bytes.
    except Exception as error:
        raise BadInput(f"the image cannot be decoded: {error}") from None


def _input(value: object, options: Mapping[str, Any], allowance: Allowance) -> Pixels:
    picture = read_image(value, allowance)
    if keeps_shape(options) and not options["do_resize"] and picture.width * picture.height > MAX_KEPT_PIXELS:
        raise BadInput(f"image of {picture.width}x{picture.height} pixels, {_over_limit(MAX_KEPT_PIXELS)}")
    return preprocess(picture, options)


def _bytes(value: object) -> bytes:
    while isinstance(value, dict):  # no recursion: a client says how deep it goes
        inner = next((value[key] for key in KEYS if value.get(key) is not None), None)
        if inner is None:
            names = ", ".join(sorted(map(str, value))[:5]) or "nothing"
            raise BadInput(f"no image under any of {', '.join(KEYS)} (found {names})")
        value = inner
    if isinstance(value, str):
        text = value.split(",", 1)[1] if value.startswith("data:") and "," in value else value
        try:
            value = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise BadInput("text that is not base64") from None
    if not isinstance(value, (bytes, bytearray)):
        raise BadInput(f"{type(value).__name__} where an image (bytes or base64 text) was expected")
    if not value:
        raise BadInput("empty image")
    return bytes(value)


def _scans(jpeg: bytes) -> int:
    """How many scans the first picture of a JPEG has."""
    count, at = 0, 0
    while (marker := _MARKER.search(jpeg, at)) and marker[1] != b"\xd9":  # the end of the picture
        count, at = count + (marker[1] == b"\xda"), marker.end()
        if marker[1] not in (b"\x01", b"\xd8"):  # these two have no length and no content
            at += int.from_bytes(jpeg[at : at + 2], "big")
    return count


def _rgb(image: Image.Image) -> Image.Image:
    # Pillow opens 16-bit PGM as "I", with white at 65535, and before 11 did so with PNG.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _in_bands(image, _from_sixteen_bits)
    if image.mode in ("I", "F"):
        raise BadInput(f"32-bit samples (mode {image.mode}) have no known white; send 8 or 16 bits")
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The picture converted some rows at a time: these conversions take several times the picture's memory."""
    rows = max(1, _BAND // image.width)
    if rows >= image.height:
        return convert(image)
    converted = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        converted.paste(convert(band), (0, top))
    return converted


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def _over_limit(limit: int | None = None) -> str:
    return f"over the limit of {(limit or MAX_PIXELS) // 1_000_000} megapixels"
