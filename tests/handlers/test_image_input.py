"""Pixels equal to the checkpoint's own processor, for any kind of picture; and every bad input refused."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import image_input
import numpy as np
import pytest
from image_input import BadInput, read_image, read_instances
from image_pixels import preprocess
from PIL import Image

from model_release.build import pixels
from model_release.errors import CheckpointError

SQUARE = {"height": 32, "width": 32}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit.image_processing_pil_vit.ViTImageProcessorPil", {"size": SQUARE}),
    "vit-oblong": ("vit.image_processing_pil_vit.ViTImageProcessorPil", {"size": {"height": 24, "width": 40}}),
    "vit-lanczos": ("vit.image_processing_pil_vit.ViTImageProcessorPil", {"size": SQUARE, "resample": 1}),
    "vit-imagenet": (
        "vit.image_processing_pil_vit.ViTImageProcessorPil",
        {"size": SQUARE, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    ),
    "vit-unscaled": ("vit.image_processing_pil_vit.ViTImageProcessorPil", {"size": SQUARE, "do_rescale": False}),
    "vit-raw": (
        "vit.image_processing_pil_vit.ViTImageProcessorPil",
        {"size": SQUARE, "do_rescale": False, "do_normalize": False},
    ),
    "vit-half": ("vit.image_processing_pil_vit.ViTImageProcessorPil", {"size": SQUARE, "rescale_factor": 1 / 127.5}),
    "vit-as-it-comes": ("vit.image_processing_pil_vit.ViTImageProcessorPil", {"do_resize": False}),
    "deit": (
        "deit.image_processing_pil_deit.DeiTImageProcessorPil",
        {"size": {"height": 37, "width": 37}, "crop_size": SQUARE},
    ),
    "deit-pads": (
        "deit.image_processing_pil_deit.DeiTImageProcessorPil",
        {"size": {"height": 21, "width": 30}, "crop_size": {"height": 32, "width": 25}},
    ),
    "beit": ("beit.image_processing_pil_beit.BeitImageProcessorPil", {"size": SQUARE, "do_center_crop": False}),
    "convnext": ("convnext.image_processing_pil_convnext.ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}}),
    "convnext-384": ("convnext.image_processing_pil_convnext.ConvNextImageProcessorPil", {}),
    "bit": (
        "bit.image_processing_pil_bit.BitImageProcessorPil",
        {"size": {"shortest_edge": 41}, "crop_size": {"height": 32, "width": 32}},
    ),
    "clip": (
        "clip.image_processing_pil_clip.CLIPImageProcessorPil",
        {"size": {"shortest_edge": 33}, "crop_size": {"height": 33, "width": 33}},
    ),
    # Those with rules of their own.
    "convnext-384-null": ("convnext.image_processing_pil_convnext.ConvNextImageProcessorPil", {"crop_pct": None}),
    "efficientnet": (
        "efficientnet.image_processing_pil_efficientnet.EfficientNetImageProcessorPil",
        {"size": SQUARE, "include_top": True},
    ),
    "efficientnet-offset": (
        "efficientnet.image_processing_pil_efficientnet.EfficientNetImageProcessorPil",
        {"size": SQUARE, "include_top": False, "rescale_offset": True, "rescale_factor": 1 / 127.5},
    ),
    "mobilevit": (
        "mobilevit.image_processing_pil_mobilevit.MobileViTImageProcessorPil",
        {"size": {"shortest_edge": 36}, "crop_size": SQUARE, "do_flip_channel_order": True},
    ),
    "levit": (
        "levit.image_processing_pil_levit.LevitImageProcessorPil",
        {"size": {"shortest_edge": 32}, "crop_size": SQUARE},
    ),
    "poolformer": ("poolformer.image_processing_pil_poolformer.PoolFormerImageProcessorPil", {"crop_size": SQUARE}),
    "textnet": (
        "textnet.image_processing_pil_textnet.TextNetImageProcessorPil",
        {"size": {"shortest_edge": 64}, "size_divisor": 32},
    ),
    "perceiver": (
        "perceiver.image_processing_pil_perceiver.PerceiverImageProcessorPil",
        {"size": SQUARE, "crop_size": {"height": 36, "width": 36}},
    ),
    "donut": (
        "donut.image_processing_pil_donut.DonutImageProcessorPil",
        {"size": {"height": 64, "width": 48}, "do_align_long_axis": True},
    ),
    "siglip2": (
        "siglip2.image_processing_pil_siglip2.Siglip2ImageProcessorPil",
        {"patch_size": 8, "max_num_patches": 41},
    ),
}


def processor(name: str, **changes: Any) -> Any:
    import importlib

    path, settings = PROCESSORS[name]
    module, _, kind = path.rpartition(".")
    return getattr(importlib.import_module(f"transformers.models.{module}"), kind)(**{**settings, **changes})


def options_of(processor: Any) -> dict[str, Any]:
    return pixels.options_of(processor)


def photo(width: int, height: int, channels: int = 3) -> np.ndarray:
    """Noise over gradients: every operation leaves its mark on it."""
    random = np.random.default_rng(width * 1000 + height)
    rows, columns = np.mgrid[0:height, 0:width]
    base = np.stack([(rows * 3 + columns * (5 + channel)) % 200 for channel in range(channels)], -1)
    return (base + random.integers(0, 56, base.shape)).astype(np.uint8)


def encoded(image: Image.Image, encoding: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, encoding, **options)
    return buffer.getvalue()


def expected(processor: Any, picture: Image.Image) -> np.ndarray:
    return np.asarray(pixels.processed(processor, picture))


@pytest.mark.parametrize("size", [(32, 32), (57, 40), (40, 57), (17, 300), (7, 5), (640, 427)], ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_processors(name: str, size: tuple[int, int]) -> None:
    own = processor(name)
    picture = read_image(encoded(Image.fromarray(photo(*size))))
    result = preprocess(picture, options_of(own))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected(own, picture))


def test_channels_are_turned_round_when_each_has_been_normalised_by_its_own_mean() -> None:
    options = options_of(processor("mobilevit"))
    options |= {"do_normalize": True, "image_mean": [0.0, 0.25, 0.5], "image_std": [1.0, 0.5, 0.25]}
    result = preprocess(Image.new("RGB", (40, 40), (51, 102, 204)), options)
    np.testing.assert_allclose(result[:, 0, 0], [(0.8 - 0.5) / 0.25, (0.4 - 0.25) / 0.5, 0.2], rtol=1e-6)


def transparent_palette() -> bytes:
    image = Image.fromarray(photo(57, 40)).quantize(32)
    return encoded(image, transparency=3)


MODES: dict[str, bytes] = {
    "grey": encoded(Image.fromarray(photo(57, 40, 1)[..., 0])),
    "bilevel": encoded(Image.fromarray(photo(57, 40, 1)[..., 0]).convert("1")),
    "palette": encoded(Image.fromarray(photo(57, 40)).quantize(32)),
    "palette with transparency": transparent_palette(),
    "palette with shades of transparency": encoded(
        Image.fromarray(photo(57, 40)).quantize(32), transparency=bytes(range(0, 256, 8))
    ),
    "transparent grey": encoded(Image.fromarray(photo(57, 40, 1)[..., 0] // 32), transparency=3),
    "transparent colour": encoded(Image.fromarray(photo(57, 40)), transparency=tuple(photo(57, 40)[20, 20].tolist())),
    "transparent black of two": encoded(Image.fromarray(photo(57, 40, 1)[..., 0]).convert("1"), transparency=0),
    "transparent GIF": encoded(Image.fromarray(photo(57, 40)).quantize(32), "GIF", transparency=3),
    "RGBA": encoded(Image.fromarray(photo(57, 40, 4))),
    "RGBA WEBP": encoded(Image.fromarray(photo(57, 40, 4)), "WEBP", lossless=True),
    "grey with alpha": encoded(Image.fromarray(photo(57, 40, 2))),
    "CMYK": encoded(Image.fromarray(photo(57, 40, 4), "CMYK"), "JPEG"),
    "JPEG": encoded(Image.fromarray(photo(57, 40)), "JPEG", quality=80),
    "progressive JPEG": encoded(Image.fromarray(photo(57, 40)), "JPEG", progressive=True),
    "WEBP": encoded(Image.fromarray(photo(57, 40)), "WEBP"),
    "GIF of two frames": encoded(
        Image.fromarray(photo(57, 40)), "GIF", save_all=True, append_images=[Image.fromarray(photo(57, 40)[::-1])]
    ),
    "BMP": encoded(Image.fromarray(photo(57, 40)), "BMP"),
    "TIFF": encoded(Image.fromarray(photo(57, 40)), "TIFF"),
}


@pytest.mark.parametrize("converts", [True, False, None])
@pytest.mark.parametrize("mode", MODES)
def test_any_mode_as_a_pipeline_converts_it(mode: str, converts: bool | None) -> None:
    """transformers.ImageClassificationPipeline.preprocess: load_image, and then the processor."""
    from transformers.image_utils import load_image

    own = processor("vit", do_convert_rgb=converts)
    result = preprocess(read_image(MODES[mode]), options_of(own))
    np.testing.assert_array_equal(result, expected(own, load_image(Image.open(io.BytesIO(MODES[mode])))))


@pytest.mark.parametrize("mode", ["palette with transparency", "transparent GIF", "transparent grey"])
def test_a_transparent_colour_is_white_where_the_processor_converts_and_itself_elsewhere(mode: str) -> None:
    picture = read_image(MODES[mode])
    raw = {**options_of(processor("vit-raw")), "do_resize": False}
    there = (np.asarray(picture) == picture.info["transparency"]).all(-1)
    assert 0 < there.sum() < there.size
    whitened = np.where(there[..., None], 255, np.asarray(picture))
    np.testing.assert_array_equal(preprocess(picture, {**raw, "do_convert_rgb": True}).transpose(1, 2, 0), whitened)
    np.testing.assert_array_equal(preprocess(picture, raw).transpose(1, 2, 0), np.asarray(picture))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_seen_upright(orientation: int) -> None:
    upright = Image.fromarray(photo(57, 40))
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = upright.transpose(turn) if turn is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    own = processor("vit")
    result = preprocess(read_image(encoded(stored, exif=exif)), options_of(own))
    np.testing.assert_array_equal(result, expected(own, upright))


@pytest.mark.parametrize("encoding", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_the_same_picture_in_eight(encoding: str) -> None:
    eight = photo(57, 40, 1)[..., 0]
    sixteen = Image.fromarray(eight.astype(np.uint16) * 257)
    assert sixteen.mode == "I;16"
    own = processor("vit")
    result = preprocess(read_image(encoded(sixteen, encoding)), options_of(own))
    np.testing.assert_array_equal(result, expected(own, Image.fromarray(eight).convert("RGB")))


def test_an_instance_may_be_written_in_several_ways() -> None:
    raw = MODES["JPEG"]
    text = base64.b64encode(raw).decode()
    ways: list[Any] = [
        raw,
        text,
        f"data:image/jpeg;base64,{text}",
        "\n".join([text[:76], text[76:]]),
        {"data": text},
        {"b64": text},
        {"image": {"b64": text}},
        {"image": text},
        {"body": raw},
    ]
    pictures = {read_image(way).tobytes() for way in ways}
    assert len(pictures) == 1


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises a huge picture; its data hold none of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


BAD: dict[str, tuple[Any, str]] = {
    "no image": (b"no image at all", "15 bytes that are no image"),
    "truncated": (MODES["JPEG"][:300], "cannot be decoded"),
    "empty": (b"", "empty image"),
    "empty text": ("", "empty image"),
    "not base64": ("käse!", "not base64"),
    "base64 of nothing sensible": ("bm8gaW1hZ2U=", "8 bytes that are no image"),
    "number": (42, "int where an image"),
    "null": (None, "NoneType where an image"),
    "list of pixels": ([[0, 1], [2, 3]], "list where an image"),
    "wrong key": (
        {"picture": "aaaa"},
        "no image under any of data, b64, image, image_bytes, bytes, body (found picture)",
    ),
    "empty object": ({}, "(found nothing)"),
    "bomb": (png_of(9000, 9000), "81000000 pixels, over the limit of 50 megapixels"),
    "larger bomb": (png_of(60000, 60000), "3600000000 pixels, over the limit of 50 megapixels"),
    "32-bit samples": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32-bit samples"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no image"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_row_and_reason(name: str) -> None:
    value, reason = BAD[name]
    good = base64.b64encode(MODES["grey"]).decode()
    with pytest.raises(BadInput) as refusal:
        read_instances([{"data": good}, value], options_of(processor("vit")))
    assert str(refusal.value).startswith("instances[1]: ")
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("instances", [None, [], {}, "text", {"data": "x"}], ids=repr)
def test_instances_must_be_a_list_with_something_in_it(instances: Any) -> None:
    with pytest.raises(BadInput, match="at least one instance"):
        read_instances(instances, options_of(processor("vit")))


def test_every_bad_row_is_named_up_to_five() -> None:
    with pytest.raises(BadInput, match=r"instances\[0\].*instances\[4\].*and 3 more"):
        read_instances([b"x"] * 8, options_of(processor("vit")))


def test_too_many_instances_are_refused_before_any_is_decoded() -> None:
    with pytest.raises(BadInput, match="65 instances in one request; the limit is 64"):
        read_instances([b"x"] * 65, options_of(processor("vit")))


def test_a_strip_is_refused_instead_of_filling_the_memory() -> None:
    strip = encoded(Image.new("RGB", (1, 60_000)))
    with pytest.raises(BadInput, match=r"instances\[0\]: a strip of 1x60000 pixels"):
        read_instances([strip], options_of(processor("bit", size={"shortest_edge": 224})))


def test_large_images_that_nobody_makes_small_are_limited_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_input, "MAX_PIXELS", 2_000_000)
    images = [encoded(Image.new("RGB", (1000, 900)))] * 3
    assert len(read_instances(images[:2], options_of(processor("vit-as-it-comes")))) == 2
    with pytest.raises(BadInput, match=r"up to \[2\] are together over the limit of 2 megapixels"):
        read_instances(images, options_of(processor("vit-as-it-comes")))
    assert len(read_instances(images, options_of(processor("vit")))) == 3


@pytest.mark.parametrize("mode", MODES)
def test_damaged_bytes_are_refused_or_read_and_never_anything_else(mode: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(MODES[mode])
        for place in random.integers(0, len(damaged), random.integers(1, 12)):
            damaged[place] = random.integers(0, 256)
        try:
            read = read_image(bytes(damaged[: random.integers(1, len(damaged) + 1)]))
        except BadInput:
            continue
        assert read.mode == "RGB"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"do_pad": True, "pad_size": {"height": 64, "width": 64}}, "do_pad"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "size"),
        ({"size": {"max_height": 32, "max_width": 64}}, "size"),
        ({"resample": 17}, "resample"),
        ({"image_std": [0.5]}, "image_std"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "crop_size"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_reproduced_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        pixels.options_of(processor("vit", **change))
    fault = str(refusal.value).partition("'s ")[2]
    assert fault.startswith(f"{named}=")
