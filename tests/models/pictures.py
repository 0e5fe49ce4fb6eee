"""Ten pictures as people send them, by name; each the bytes of a file."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def pictures() -> dict[str, bytes]:
    """The same on every machine."""
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "photo": _file(_photo(160, 120), "JPEG", quality=90),
        "grey": _file(_photo(96, 130).convert("L"), "PNG"),
        "palette": _file(_photo(120, 90).quantize(64), "PNG"),
        "RGBA": _file(_transparent(_photo(101, 77)), "PNG"),
        "CMYK": _file(_photo(88, 140).convert("CMYK"), "JPEG"),
        "EXIF-turned": _file(_photo(150, 70), "JPEG", exif=turned),
        "1x1": _file(_photo(1, 1), "PNG"),
        "very wide": _file(_photo(900, 30), "PNG"),
        "16-bit": _file(Image.fromarray(sixteen_bits()), "PNG"),
        "tall": _file(_photo(40, 500), "JPEG"),
    }


def sixteen_bits() -> np.ndarray:
    """Samples up to 65535, as scanners and microscopes give them."""
    return np.asarray(_photo(80, 64).convert("L")).astype(np.uint16) * 257


def _photo(width: int, height: int) -> Image.Image:
    """Soft patches of colour under grain: something for every operation to act on."""
    random = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(random.integers(0, 255, (5, 6, 3), np.uint8)).resize((width, height), 3)
    grain = random.integers(-12, 13, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + grain).clip(0, 255).astype(np.uint8))


def _transparent(image: Image.Image) -> Image.Image:
    alpha = np.linspace(0, 255, image.width * image.height).reshape(image.height, image.width).astype(np.uint8)
    image.putalpha(Image.fromarray(alpha))
    return image


def _file(image: Image.Image, encoding: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, encoding, **options)
    return buffer.getvalue()
