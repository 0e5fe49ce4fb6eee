"""What a picture's file says of itself before it is decoded: how many pieces it is in, and which way is up.

Own reading where Pillow's takes memory first and asks later, or refuses whole pictures for one odd number. Needs
Pillow, nothing else; what is wrong is the client's (`BadInput`).
"""

from __future__ import annotations

import re
import resource
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from image_pixels import MAX_PIXELS, BadInput
from PIL import Image

#: How often a JPEG may go over its picture. Encoders write some ten scans; each costs as much as a whole decoding,
#: and a few bytes of a file.
MAX_SCANS = 64
#: Pieces of a TIFF, and tiles of a JPEG 2000: each takes memory of its own before anything is decoded.
MAX_PIECES = 65_535
MAX_TILES = 4_096

# The next marker of a JPEG that is no part of compressed data (ISO/IEC 10918-1, B.1.1).
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
# How a JPEG 2000 begins (ISO/IEC 15444-1, A.4): start of codestream, then its size.
_CODESTREAM = b"\xff\x4f\xff\x51"
# What brings a picture upright, by EXIF's orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def refuse_pieces(raw: bytes) -> None:
    """Refuses what is in so many pieces that their list alone fills the memory."""
    if raw[:2] in (b"II", b"MM"):
        pieces = max((count for tag, _, count, _ in _tags(raw) if tag in (273, 324)), default=0)
        if pieces > MAX_PIECES:
            raise BadInput(f"a TIFF in {pieces} strips or tiles; the limit is {MAX_PIECES}")
    # A picture in a JP2 file has a size of its own, beside that of the file.
    if raw[4:8] == b"jP  " or raw[:4] == _CODESTREAM:
        for found in re.finditer(re.escape(_CODESTREAM), raw):
            header = raw[found.end() : found.end() + 38]
            if len(header) < 38:
                continue
            _, _, right, bottom, left, top, wide, high, *_, components = struct.unpack(">HHIIIIIIIIH", header)
            width, height = max(0, right - left), max(0, bottom - top)
            if width * height > MAX_PIXELS:
                raise BadInput(f"image of {width}x{height} pixels, {over_limit()}")
            tiles = -(-width // max(wide, 1)) * -(-height // max(high, 1))
            if tiles > MAX_TILES or components > 4:
                raise BadInput(f"a JPEG 2000 of {tiles} tiles and {components} channels; known: {MAX_TILES} and 4")


def scans(jpeg: bytes) -> int:
    """How many scans the first picture of a JPEG has."""
    count, at = 0, 0
    while (marker := _MARKER.search(jpeg, at)) and marker[1] != b"\xd9":  # the end of the picture
        count, at = count + (marker[1] == b"\xda"), marker.end()
        if marker[1] not in (b"\x01", b"\xd8"):  # these two have no length and no content
            at += int.from_bytes(jpeg[at : at + 2], "big")
    return count


def upright(image: Image.Image) -> Image.Image:
    """The picture as EXIF or XMP say it is to be seen. Own reading: Pillow's refuses whole pictures for one odd number
    in their EXIF, and writes EXIF anew, which nobody needs here."""
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # turned by the decoder
    exif = image.info.get("exif")
    profile = image.info.get("Raw profile type exif")
    if not exif and isinstance(profile, str):
        with suppress(ValueError):
            exif = bytes.fromhex("".join(profile.split("\n")[3:]))
    if isinstance(exif, bytes):
        exif = exif.removeprefix(b"Exif\0\0")
        for tag, kind, count, value in _tags(exif):
            if tag == 0x0112 and count == 1:
                order = "<" if exif[:2] == b"II" else ">"
                return int(struct.unpack(order + ("H" if kind == 3 else "I"), value[: 2 if kind == 3 else 4])[0])
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    found = re.search(rb"tiff:Orientation(?:=\"|>)([1-8])", xmp.encode() if isinstance(xmp, str) else bytes(xmp))
    return int(found[1]) if found else 1


def _tags(tiff: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The entries of a TIFF's (and so EXIF's) first directory: tag, type, count, value or where it is. Ends where the
    bytes do."""
    if tiff[:2] not in (b"II", b"MM") or len(tiff) < 8:
        return
    order = "<" if tiff[:2] == b"II" else ">"
    big = struct.unpack(order + "H", tiff[2:4])[0] == 43
    with suppress(struct.error):
        at = struct.unpack_from(order + ("Q" if big else "I"), tiff, 8 if big else 4)[0]
        entries = struct.unpack_from(order + ("Q" if big else "H"), tiff, at)[0] if at < len(tiff) else 0
        at += 8 if big else 2
        for _ in range(min(entries, len(tiff) // 12)):
            yield struct.unpack_from(order + ("HHQ8s" if big else "HHI4s"), tiff, at)
            at += 20 if big else 12


class NotAlone(BaseException):
    """What was to be read limits the memory of the whole process, and other threads are at work. No error of a
    picture's: nothing but `Turns` is to catch it."""


class Turns:
    """Many threads at once, or one alone. Who waits to be alone comes before others that come later."""

    def __init__(self) -> None:
        self._changed, self._many, self._waiting, self._one = threading.Condition(), 0, 0, False

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Beside others, and none of them alone. Not within another one of the same thread."""
        with self._changed:
            self._changed.wait_for(lambda: not self._one and not self._waiting)
            self._many += 1
        _here.beside = True
        try:
            yield
        finally:
            _here.beside = False
            with self._changed:
                self._many -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While nobody else is at work."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._one and not self._many)
            self._waiting, self._one = self._waiting - 1, True
        try:
            yield
        finally:
            with self._changed:
                self._one = False
                self._changed.notify_all()


_here = threading.local()


@contextmanager
def memory(more: int) -> Iterator[None]:
    """What runs inside may take `more` bytes than the process has by now. Needs Linux; elsewhere there is no limit.

    It is one limit for all threads: what others take meanwhile would be missing here or there, and two that overlap
    would leave it behind for ever. So beside other threads it is `NotAlone`.

    Raises `BadInput` where Python itself did not get its memory; decoders raise errors of their own.
    """
    if getattr(_here, "beside", False):
        raise NotAlone
    try:
        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = taken + more if before == resource.RLIM_INFINITY else min(before, taken + more)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    except MemoryError:
        raise BadInput(f"a picture that takes more than {more >> 20} MiB, far more than its size") from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def over_limit(limit: int | None = None) -> str:
    return f"over the limit of {(limit or MAX_PIXELS) // 1_000_000} megapixels"
