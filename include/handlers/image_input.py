"""From what a client sends to pictures, and on to what the model takes. Needs Pillow and NumPy, nothing else.

`read_image` turns bytes into an upright 8-bit RGB picture, and whatever goes wrong there is the client's
(`BadInput`, answered with 400). What comes after it (`image_pixels.preprocess`) is ours (5xx).
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import threading
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any
from urllib.parse import unquote

import numpy as np
from image_headers import (
    MAX_SCANS,
    memory,
    over_limit,
    refuse_pieces,
    scans,
    upright,
)
from image_pixels import (
    MAX_KEPT_PIXELS,
    MAX_PIXELS,
    BadInput,
    Pixels,
    in_bands,
    keeps_shape,
    preprocess,
)
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

# Not in every serving image.
try:
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    READS_HEIC = True
except ImportError:
    READS_HEIC = False

# Else each picture starts as many threads as the node has CPUs.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

#: Pillow reads WebP through libwebp's decoder of animations, which holds five copies of the picture.
MAX_WEBP_PIXELS = 25_000_000
#: One request is one batch, and its memory grows with each instance.
MAX_INSTANCES = 64
#: All pictures of a request, before they are made small: a black picture of 50 megapixels is a file of some kilobytes,
#: and half a second's work.
MAX_REQUEST_PIXELS = 200_000_000
#: What is decoded at all. Pillow knows many more, some of which start other programs (EPS) or are seldom fuzzed.
#: TGA has no signature, so it comes last.
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
    "AVIF",
    "JPEG2000",
    "ICO",
    *(("HEIF",) if READS_HEIC else ()),
)
FORMATS += ("TGA",)
#: Where an instance keeps its picture.
KEYS = ("data", "b64", "image", "image_bytes", "bytes", "body")

# How large an AVIF is, its container says, and its decoder takes what the video inside is. It gets what an honest
# one needs (10 bits, three planes, and twice as RGB), and some to spare.
_BYTES_A_PIXEL = 32
_SPARE = 96_000_000
# Shorter than any picture is: words look alike.
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{40,}=*\s*")
_ORDINARY = str.maketrans("-_", "+/")
_PLAIN_PPM = re.compile(rb"P[1-7]\s")


class Allowance:
    """How many pixels the pictures of a request may still have, whether or not they turn out to be readable."""

    def __init__(self) -> None:
        self._left = MAX_REQUEST_PIXELS

    def take(self, width: int, height: int) -> None:
        self._left -= width * height
        if self._left < 0:
            limit = MAX_REQUEST_PIXELS // 1_000_000
            raise BadInput(f"the pictures up to here have together more than {limit} megapixels; send fewer at a time")


def read_instances(instances: object, options: Mapping[str, Any], where: str = "instances") -> list[Pixels]:
    """The model's inputs for a V1 request's `instances`, in order; each float32 [3, height, width].

    One picture after the other is decoded and made small, so that only one is ever large. `where` is what the list
    is called in the request; a single picture outside of any list has none.
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
            inputs.append(pixels_of(read_image(instance, allowance), options))
        except BadInput as error:
            faults.append(f"{where}[{row}]: {error}" if where else str(error))
            continue
        # Only a processor that does not resize lets it come to this.
        total += inputs[-1][0].size
        limit = min(MAX_KEPT_PIXELS, MAX_PIXELS)
        if total > limit:
            raise BadInput(f"the instances up to [{row}] are together {over_limit(limit)}")
    if faults:
        raise BadInput("; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else ""))
    return inputs


def pixels_of(picture: Image.Image, options: Mapping[str, Any]) -> Pixels:
    """The model's input for one RGB picture. Raises `BadInput` for one that is too large and would stay so."""
    if keeps_shape(options) and not options["do_resize"] and picture.width * picture.height > MAX_KEPT_PIXELS:
        raise BadInput(f"image of {picture.width}x{picture.height} pixels, {over_limit(MAX_KEPT_PIXELS)}")
    return preprocess(picture, options)


def read_image(value: object, allowance: Allowance | None = None) -> Image.Image:
    """The upright 8-bit RGB picture in bytes, base64 text, or an object with one of `KEYS`.

    EXIF rotation is applied, as every viewer does; EXIF that cannot be read turns nothing. 16-bit grey is scaled to 8
    bits (Pillow's own conversion would clip it at 255, which turns the picture white). Of transparency is kept what
    `transformers.pipeline` keeps (`image_utils.load_image`): an alpha channel is dropped, and so is a palette's with
    shades; one colour that the file calls transparent stays noted in `info["transparency"]`, for `preprocess`. Of an
    animation it is the first picture.

    What a header promises is held against the limits before anything is decoded, and counted against `allowance`.
    """
    raw = _bytes(value)
    try:
        with _PILLOWS_OWN_LIMIT:
            refuse_pieces(raw)
            try:
                image = _decoded(raw, allowance)
            except OSError as error:
                image = _without_its_end(raw, error)
            # A copy would be another 200 MB.
            image = upright(image)
            return _rgb(image)
    except BadInput:
        raise
    except UnidentifiedImageError:
        raise BadInput(_unknown(raw)) from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r"[0-9]+", str(error))
        raise BadInput(f"image of {pixels[0] if pixels else 'far more'} pixels, {over_limit()}") from None
    except MemoryError:
        raise
    # Pillow's decoders raise whatever they stumble over (OSError, struct.error, IndexError, zlib.error …), and
    # all that they can stumble over here is the client's bytes.
    except Exception as error:
        raise BadInput(f"the image cannot be decoded: {' '.join(str(error).split())[:200]}") from None


def _bytes(value: object) -> bytes:
    while isinstance(value, dict):  # no recursion: a client says how deep it goes
        given = {key: inner for key, inner in value.items() if inner is not None}
        names = ", ".join(str(name)[:40] for name in list(given)[:5]) or "nothing"
        found = [key for key in given if key in KEYS]
        if not found:
            raise BadInput(f"no image under any of {', '.join(KEYS)} (found {names})")
        if len(given) > 1:
            raise BadInput(f"expected one of {', '.join(KEYS)} and nothing else (found {names})")
        value = given[found[0]]
    if isinstance(value, (bytes, bytearray)) and value.isascii() and not _PLAIN_PPM.match(value):
        # Of pictures only plain PPM is text; so this is base64, or the reason why not is told as that.
        text = value.decode("ascii")
        value = text if _BASE64.fullmatch(text) or text[:5].lower() == "data:" else value
    if isinstance(value, str):
        value = _from_base64(value)
    if not isinstance(value, (bytes, bytearray)):
        raise BadInput(f"{type(value).__name__} where an image (bytes or base64 text) was expected")
    if not value:
        raise BadInput("empty image")
    return bytes(value)


def _from_base64(text: str) -> bytes:
    """Base64 of either alphabet, with or without its padding, alone or in a data URL."""
    text = text.lstrip("\ufeff \t\r\n")
    if text[:5].lower() == "data:" and "," in text:
        text = unquote(text.split(",", 1)[1])
    text = "".join(text.split()).rstrip("=").translate(_ORDINARY)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadInput("text that is not base64") from None


class _PillowsOwnLimit:
    """Pillow itself refuses what is over the limit, also inside of other pictures (ICO). It does so at twice what it
    is told, and warns before. That is told to all threads at once: the first one in says it, and the last one out
    takes it back."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
                self._before.enter_context(warnings.catch_warnings())
                Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.close()


_PILLOWS_OWN_LIMIT = _PillowsOwnLimit()


def _decoded(raw: bytes, allowance: Allowance | None) -> Image.Image:
    with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
        limit = MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS
        if image.width * image.height > limit:
            raise BadInput(f"image of {image.width}x{image.height} pixels, {over_limit(limit)}")
        # MPO is a JPEG with more pictures behind it.
        if image.format in ("JPEG", "MPO") and scans(raw) > MAX_SCANS:
            raise BadInput(f"a JPEG of more than {MAX_SCANS} scans; save it anew, as baseline or progressive")
        if allowance:
            allowance.take(image.width, image.height)
        if image.format != "AVIF":
            image.load()
            return image
        with memory(_SPARE + _BYTES_A_PIXEL * image.width * image.height):
            image.load()
    return image


def _without_its_end(raw: bytes, error: OSError) -> Image.Image:
    """A JPEG that lacks its end marker and nothing else, which is a whole picture. Raises `error` for others.

    The decoder asks for more bytes and gets some, twice and each time others: where the picture is whole they are
    behind it and change nothing.
    """
    if isinstance(error, UnidentifiedImageError) or raw[:2] != b"\xff\xd8" or raw.rstrip(b"\0")[-2:] == b"\xff\xd9":
        raise error
    raw = raw.removesuffix(b"\xff")
    first, second = (_decoded(raw + filler * 4096 + b"\xff\xd9", None) for filler in (b"\x55", b"\xaa"))
    if first.tobytes() != second.tobytes():
        raise error
    return first


def _unknown(raw: bytes) -> str:
    if not READS_HEIC and raw[4:8] == b"ftyp" and raw[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return "HEIC, which this server does not read (it has no pillow-heif); send JPEG, PNG, WebP or AVIF"
    return f"{len(raw)} bytes that are no image; known are {', '.join(FORMATS)}"


def _rgb(image: Image.Image) -> Image.Image:
    # Pillow opens 16-bit PGM as "I", with white at 65535, and before 11 did so with PNG.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        converted: Image.Image = in_bands(image, _from_sixteen_bits)
        return converted
    if image.mode in ("I", "F"):
        raise BadInput(f"32-bit samples (mode {image.mode}) have no known white; send 8 or 16 bits")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
