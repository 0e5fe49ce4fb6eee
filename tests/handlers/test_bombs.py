"""Small files that would fill the memory: refused before they are decoded, in a process whose memory is measured; and
good requests with some bytes changed: read or refused, and never anything else."""

from __future__ import annotations

import gzip
import io
import json
import random
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from image_input import BadInput, read_image
from image_requests import read_request
from PIL import Image

from .test_image_requests import MODEL, PHOTO, PNG, WAYS, as_json, encoded

HANDLERS = Path(__file__).resolve().parents[2] / "include" / "handlers"
_CHILD = """
import io, json, resource, sys
sys.path.insert(0, sys.argv[1])
import image_input
from PIL import Image, ImageFile
for kind in ("JPEG", "PNG", "WEBP", "AVIF"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    image_input.read_image(buffer.getvalue())
decoded = []
load = ImageFile.ImageFile.load
ImageFile.ImageFile.load = lambda image: (decoded.append(image.size), load(image))[1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    said = str(image_input.read_image(sys.stdin.buffer.read()).size)
except image_input.BadInput as error:
    said = f"refused: {error}"
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"said": said, "megabytes": peak / 1024, "decoded": decoded}))
"""


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def ico(inner: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(inner), 22) + inner


def tiff(strips: int) -> bytes:
    entries = [(256, 4, 1, 1), (257, 4, 1, strips), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    entries += [(273, 4, strips, 200), (278, 4, 1, 1), (279, 4, strips, 200)]
    entries.sort()
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(struct.pack("<HHII", *one) for one in entries)
    return head.ljust(200, b"\0") + struct.pack("<I", 1) * strips


def jpeg2000(width: int, height: int, tile: int, components: int) -> bytes:
    size = struct.pack(">HHIIIIIIIIH", 38 + 3 * components, 0, width, height, 0, 0, tile, tile, 0, 0, components)
    return b"\xff\x4f\xff\x51" + size + b"\x07\x01\x01" * components


def avif(width: int, height: int) -> bytes:
    raw = encoded("AVIF", Image.new("RGB", (64, 64)))
    at = raw.index(b"ispe") + 8
    return raw[:at] + struct.pack(">II", width, height) + raw[at + 8 :]


def lying_avif() -> bytes:
    """A black picture of 10000x10000 (Pillow, speed 10, 4:2:0), whose container says 64x64."""
    raw = (HANDLERS.parents[1] / "tests" / "data" / "10000x10000.avif").read_bytes()
    at = raw.index(b"ispe") + 8
    return raw[:at] + struct.pack(">II", 64, 64) + raw[at + 8 :]


BOMBS: dict[str, tuple[bytes, str]] = {
    "PNG": (png(30_000, 30_000), "900000000 pixels, over the limit"),
    "PNG zTXt": (png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))), "cannot be decoded"),
    "WebP": (encoded("WEBP", Image.new("RGB", (6000, 6000))), "over the limit of 25 megapixels"),
    "GIF": (encoded("GIF", Image.new("L", (9000, 9000))), "81000000 pixels, over the limit"),
    "TIFF": (encoded("TIFF", Image.new("1", (30_000, 20_000)), compression="group4"), "600000000 pixels, over"),
    "TIFF of strips": (tiff(2_000_000), "a TIFF in 2000000 strips or tiles; the limit is 65535"),
    "AVIF": (avif(12_000, 12_000), "144000000 pixels, over the limit"),
    "AVIF that lies": (lying_avif(), "cannot be decoded"),
    "ICO": (ico(png(12_000, 12_000)), "144000000 pixels, over the limit"),
    "JPEG 2000": (jpeg2000(20_000, 20_000, 1000, 3), "image of 20000x20000 pixels, over the limit"),
    "JPEG 2000 of tiles": (jpeg2000(7000, 7000, 30, 3), "54756 tiles"),
    "JPEG 2000 of channels": (jpeg2000(70, 70, 70, 9000), "9000 channels"),
}


def in_a_child(raw: bytes) -> Any:
    done = subprocess.run([sys.executable, "-c", _CHILD, str(HANDLERS)], input=raw, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", BOMBS)
def test_17_20_a_bomb_is_refused_before_it_is_decoded(name: str) -> None:
    """Number 20."""
    raw, reason = BOMBS[name]
    found = in_a_child(raw)
    assert found["said"].startswith("refused: ")
    assert reason in found["said"]
    assert found["megabytes"] < 300
    assert [size for size in found["decoded"] if size[0] * size[1] > 1_000_000] == []


def test_after_a_refused_picture_there_is_memory_as_before() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(BadInput):
        read_image(lying_avif())
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert read_image(encoded("AVIF", Image.new("RGB", (1600, 1200)))).size == (1600, 1200)


@pytest.mark.parametrize("encoding", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_thousands_of_frames_one_is_decoded(encoding: str) -> None:
    frames = [Image.new("L", (64, 64), number % 251) for number in range(300 if encoding == "AVIF" else 2000)]
    buffer = io.BytesIO()
    frames[0].save(buffer, encoding, save_all=True, append_images=frames[1:])
    found = in_a_child(buffer.getvalue())
    assert found["said"] == "(64, 64)"
    assert found["megabytes"] < 300


def test_a_profile_that_swells_is_left_out() -> None:
    found = in_a_child(png(1, 1, (b"iCCP", b"a\0\0" + zlib.compress(bytes(200_000_000)))))
    assert found["megabytes"] < 300


def changed_requests(count: int) -> Iterator[bytes]:
    """Good requests with up to eight places changed, lost or doubled."""
    kinds = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "HEIF", "TGA"]
    good = [encoded(kind, PHOTO) for kind in kinds] + [gzip.compress(PNG)]
    good += [as_json(fields["body"]) for fields in WAYS.values() if isinstance(fields.get("body"), dict)]
    chance = random.Random(16)
    for _ in range(count):
        changed = bytearray(chance.choice(good))
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(changed))
            what = chance.random()
            if what < 0.6:
                changed[at] = chance.randrange(256)
            elif what < 0.8:
                del changed[at : at + chance.randint(1, 9)]
            else:
                changed[at:at] = changed[at : at + chance.randint(1, 9)]
        yield bytes(changed)


def test_five_hundred_changed_requests_are_read_or_refused() -> None:
    read, refused = 0, []
    for changed in changed_requests(500):
        try:
            inputs = read_request({"body": changed}, MODEL).inputs
        except BadInput as error:
            refused.append(str(error))
        else:
            assert [one.shape for one in inputs] == [(3, 8, 8)]
            read += 1
    assert read > 20
    assert len(refused) > 200
    assert not [reason for reason in refused if "\n" in reason]
