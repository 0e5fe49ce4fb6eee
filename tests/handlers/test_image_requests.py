"""Every way in which clients write a request, and what is refused by name."""

from __future__ import annotations

import base64
import codecs
import gzip
import io
import json
import struct
from typing import Any

import image_input
import image_pixels
import numpy as np
import pytest
from image_input import BadInput, read_image
from image_requests import Model, read_request
from PIL import Image

OPTIONS: dict[str, Any] = {
    **dict.fromkeys(image_pixels.OPTIONS),
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": 8, "width": 8},
    "resample": 2,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": False,
}
MODEL = Model("tiny", "1.0", OPTIONS, (8, 8), "softmax")
PHOTO = Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8))
LABELS = [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.1}]


def encoded(encoding: str, picture: Image.Image = PHOTO, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, encoding, **options)
    return buffer.getvalue()


PNG = encoded("PNG")
TEXT = base64.b64encode(PNG).decode()
V1 = {"instances": [{"data": TEXT}]}
PIXELS = {"name": "x", "shape": [1, 20, 30, 3], "datatype": "UINT8", "data": np.asarray(PHOTO).tolist()}
BYTES = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [TEXT]}


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


WAYS: dict[str, dict[str, Any]] = {
    "bytes": {"body": PNG},
    "base64 in bytes": {"body": TEXT.encode()},
    "base64 as text": {"body": TEXT},
    "gzip": {"body": gzip.compress(PNG)},
    "gzip of JSON": {"body": gzip.compress(as_json(V1))},
    "a form with any name": {"photo.of.me": PNG},
    "JSON with a byte order mark": {"body": codecs.BOM_UTF8 + as_json(V1)},
    "JSON text with a byte order mark": {"body": "\ufeff" + json.dumps(V1)},
    "JSON in UTF-16": {"body": json.dumps(V1).encode("utf-16")},
    "JSON string": {"body": as_json(TEXT)},
    "parsed": {"body": V1},
    "Hugging Face": {"body": {"inputs": TEXT}},
    "Hugging Face, a list": {"body": {"inputs": [TEXT]}},
    "one instance": {"body": {"data": TEXT}},
    "tensorflow's key": {"body": {"instances": [{"image_bytes": {"b64": TEXT}}]}},
    "URL-safe": {"body": {"data": base64.urlsafe_b64encode(PNG).decode()}},
    "unpadded": {"body": {"data": TEXT.rstrip("=")}},
    "DATA URL": {"body": {"data": f"DATA:image/PNG;base64,{TEXT}"}},
    "V2 bytes": {"body": {"inputs": [BYTES]}},
    "V2 bytes, TorchServe's shape": {"body": {"inputs": [{**BYTES, "shape": [-1]}]}},
    "V2 pixels": {"body": {"inputs": [PIXELS]}},
    "V2 pixels, flat": {"body": {"inputs": [{**PIXELS, "data": np.asarray(PHOTO).flatten().tolist()}]}},
    "V2 without its first axis": {"body": {"inputs": [{**PIXELS, "shape": [20, 30, 3]}]}},
}
EXPECTED = image_pixels.preprocess(PHOTO, OPTIONS)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_same_picture_in_every_way(way: str) -> None:
    request = read_request(WAYS[way], MODEL)
    assert request.top_k is None
    (pixels,) = request.inputs
    np.testing.assert_array_equal(pixels, EXPECTED)


def test_what_the_model_itself_takes_goes_in_as_it_is() -> None:
    tensor = {"name": "x", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": EXPECTED.tolist()}
    (pixels,) = read_request({"body": {"inputs": [tensor]}}, MODEL).inputs
    np.testing.assert_array_equal(pixels, EXPECTED)


@pytest.mark.parametrize(
    "fields",
    [
        {"body": {**V1, "parameters": {"top_k": 3}}},
        {"body": {**V1, "top_k": 3}},
        {"body": {"inputs": TEXT, "parameters": {"top_k": 3, "function_to_apply": "softmax"}}},
        {"body": {"inputs": [BYTES], "parameters": {"top_k": 3}}},
        {"body": {"data": TEXT, "top_k": 3}},
        {"body": PNG, "top_k": bytearray(b"3")},
        {"file": PNG, "top_k": "3"},
    ],
    ids=lambda fields: ", ".join(fields),
)
def test_top_k_is_honoured_wherever_it_stands(fields: dict[str, Any]) -> None:
    assert read_request(fields, MODEL).top_k == 3


def test_answers_have_the_shape_of_their_protocol() -> None:
    def answer(body: Any) -> Any:
        return read_request({"body": body}, MODEL).answer([LABELS])

    assert answer(PNG) == answer({"inputs": TEXT}) == LABELS
    assert answer({"inputs": [TEXT]}) == [LABELS]
    assert answer(V1) == {"predictions": [LABELS]}
    label = {"name": "label", "datatype": "BYTES", "shape": [1, 2], "data": ["cat", "dog"]}
    score = {"name": "score", "datatype": "FP32", "shape": [1, 2], "data": [0.9, 0.1]}
    told = {"model_name": "tiny", "model_version": "1.0"}
    assert answer({"inputs": [BYTES]}) == {**told, "outputs": [label, score]}
    assert answer({"id": "7", "inputs": [BYTES], "outputs": [{"name": "score"}]}) == {
        "id": "7",
        **told,
        "outputs": [score],
    }


def v2(**changes: Any) -> dict[str, Any]:
    return {"body": {"inputs": [{**BYTES, **changes}]}}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"body": {**V1, "signature_name": "x"}}, "unknown field 'signature_name'; known are instances"),
    "unknown option": ({"body": {"inputs": TEXT, "options": {}}}, "unknown field 'options'"),
    "unknown parameter": ({"body": {**V1, "parameters": {"topk": 3}}}, "unknown field of parameters: 'topk'"),
    "parameters of a kind": ({"body": {**V1, "parameters": [3]}}, "parameters: expected an object"),
    "two pictures in an instance": ({"body": {"instances": [{"data": TEXT, "b64": TEXT}]}}, "expected one of data"),
    "unknown in an instance": ({"body": {"instances": [{"data": TEXT, "target": 0}]}}, "(found data, target)"),
    "two pictures in a form": ({"a": PNG, "b": PNG}, "expected one picture, found 'a', 'b'"),
    "nothing": ({}, "expected one picture, found nothing"),
    "JSON as a form": ({'{"instances": []}': ""}, "Content-Type: application/json"),
    "top_k 0": ({"body": {**V1, "top_k": 0}}, "top_k: 0; right would be a whole number from 1 on"),
    "top_k true": ({"body": {**V1, "top_k": True}}, "top_k: true"),
    "top_k in words": ({"body": PNG, "top_k": "three"}, "top_k: 'three'"),
    "other function": ({"body": {**V1, "function_to_apply": "none"}}, "function_to_apply: 'none'; this model's"),
    "half a gzip": ({"body": gzip.compress(PNG)[:-9]}, "gzip with its end missing"),
    "damaged gzip": ({"body": b"\x1f\x8b" + bytes(40)}, "begins like gzip and is none"),
    "gzip of zeros": ({"body": gzip.compress(bytes(40_000_000))}, "over the limit of 32 MiB when unpacked"),
    "JSON and none": ({"body": b'{"instances": ['}, "begins like JSON and is none"),
    "V2 unknown": ({"body": {"inputs": [BYTES], "priority": 1}}, "unknown field 'priority'"),
    "V2 two tensors": ({"body": {"inputs": [BYTES, BYTES]}}, "inputs: 2 tensors"),
    "V2 datatype": (v2(datatype="INT64"), "inputs[0].datatype: 'INT64'; right would be BYTES, UINT8 or FP32"),
    "V2 shape": (v2(shape=[2]), "inputs[0].shape: [2] does not fit what is in data"),
    "V2 no shape": (v2(shape=None), "inputs[0].shape: null"),
    "V2 huge shape": (v2(shape=[2**31 - 1] * 9), "does not fit"),
    "V2 binary": (v2(parameters={"binary_data_size": 9}), 'inputs[0].parameters: {"binary_data_size": 9}'),
    "V2 no picture": (v2(data=["bm8gaW1hZ2U="]), "inputs[0].data[0]: 8 bytes that are no image"),
    "V2 pixel 256": ({"body": {"inputs": [{**PIXELS, "shape": [1, 1, 1, 3], "data": [0, 1, 256]}]}}, "from 0 to 255"),
    "V2 ragged": ({"body": {"inputs": [{**PIXELS, "data": [[1, 2], [3]]}]}}, "does not fit what is in data"),
    "V2 words": ({"body": {"inputs": [{**PIXELS, "data": ["a"]}]}}, "inputs[0].data: not numbers alone"),
    "V2 channels": ({"body": {"inputs": [{**PIXELS, "shape": [1, 3, 20, 30]}]}}, "RGB pixels, [n, height, width, 3]"),
    "V2 other size": (v2(datatype="FP32", shape=[1, 3, 1, 1], data=[0, 0, 0]), "preprocessed: [n, 3, 8, 8]"),
    "V2 infinite": (v2(datatype="FP32", shape=[1, 3, 8, 8], data=[1e38] * 192), "beyond ±1000"),
    "V2 NaN": (v2(datatype="FP32", shape=[1, 3, 8, 8], data=[float("nan")] * 192), "beyond ±1000"),
    "V2 output": ({"body": {"inputs": [BYTES], "outputs": [{"name": "x"}]}}, "outputs[0]: 'x'; right would be label"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_by_name(name: str) -> None:
    fields, reason = REFUSED[name]
    with pytest.raises(BadInput) as refusal:
        read_request(fields, MODEL)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("encoding", ["AVIF", "HEIF", "JPEG2000", "TGA", "ICO", "PPM", "BMP"])
def test_a_format_is_read_as_its_library_reads_it(encoding: str) -> None:
    raw = encoded(encoding)
    with Image.open(io.BytesIO(raw)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_image(raw)), expected)


def test_a_server_without_pillow_heif_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_input, "READS_HEIC", False)
    monkeypatch.setattr(image_input, "FORMATS", ("PNG", "TGA"))
    with pytest.raises(BadInput, match=r"HEIC, which this server does not read .* send JPEG"):
        read_image(encoded("HEIF"))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 20}, {"subsampling": 0}], ids=str)
def test_c5_a_jpeg_without_its_end_marker_is_the_picture(options: dict[str, Any]) -> None:
    whole = encoded("JPEG", **options)
    expected = read_image(whole)
    assert read_image(whole[:-2]).tobytes() == expected.tobytes()
    assert read_image(whole[:-1]).tobytes() == expected.tobytes()
    with pytest.raises(BadInput, match="cannot be decoded"):
        read_image(whole[: len(whole) * 3 // 4])


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    body = b"".join(struct.pack(">HHI4s", *entry) for entry in entries)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries)) + body + bytes(4) + b"\xff\xff\xff\xff\0\0\0\0"


TURNED = (0x0112, 3, 1, b"\0\6\0\0")
AFTER = struct.pack(">I", 8 + 2 + 24 + 4)
ODD = {
    "signed fraction": (exif((0x011A, 10, 1, AFTER), TURNED), True),
    "count of billions": (exif((0x010F, 2, 0xFFFFFFFF, AFTER), TURNED), True),
    "unknown type": (exif((0x011A, 99, 1, AFTER), TURNED), True),
    "rubbish": (b"Exif\0\0rubbish", False),
    "cut off": (exif(TURNED)[:20], False),
    "orientation 60000": (exif((0x0112, 3, 1, b"\xea\x60\0\0")), False),
}


@pytest.mark.parametrize("encoding", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", ODD)
def test_c5_odd_exif_does_not_take_the_picture(name: str, encoding: str) -> None:
    block, turned = ODD[name]
    plain = read_image(encoded(encoding))
    seen = read_image(encoded(encoding, exif=block))
    expected = plain.transpose(Image.Transpose.ROTATE_270) if turned else plain
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(expected))
