"""From what a client sends to pictures, settings and the shape of the answer. Needs NumPy and Pillow, nothing else.

A request is one of these, each as it is or gzipped (docs/requests.md):

* a picture's own bytes, or base64 text: in the body, or in the one field of a form, whatever its name;
* `{"instances": [{"data": "<base64>"}, …]}`, KServe's protocol V1;
* `{"inputs": [{"name", "shape", "datatype", "data"}]}`, KServe's protocol V2 (Open Inference Protocol);
* `{"inputs": "<base64>"}` or a list of such, as Hugging Face's clients send it; `{"data": "<base64>"}`.

`top_k` and `function_to_apply` may stand beside the pictures, in `parameters`, or in a form. What is not
known is refused by name: a setting that is ignored gives an answer to another question.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from image_input import (
    KEYS,
    MAX_INSTANCES,
    Allowance,
    pixels_of,
    read_instances,
)
from image_pixels import BadInput, Pixels
from PIL import Image

#: TorchServe's `max_request_size`: what a client could have sent without gzip.
MAX_BODY = 33_554_432
#: What a client may ask for beside the pictures.
SETTINGS = ("top_k", "function_to_apply")
#: Of a V2 tensor FP32: beyond this there are no preprocessed pixels, and a network may overflow.
LARGEST_VALUE = 1000.0

Label = dict[str, Any]

_GZIP = b"\x1f\x8b"
_EXPECTED = 'an image, base64 text, {"instances": [{"data": "<base64>"}, …]} or {"inputs": …}'


@dataclass(frozen=True)
class Model:
    """What a request is read for. `preprocessing` are the processor's options, `input_size` is (height, width)."""

    name: str
    version: str
    preprocessing: Mapping[str, Any]
    input_size: tuple[int, int]
    activation: str


@dataclass(frozen=True)
class Request:
    """The model's inputs, float32 [3, height, width] each; how many labels are wanted (None: as the model has it);
    and how the labels of each input become the body of the answer."""

    inputs: list[Pixels]
    top_k: int | None
    answer: Callable[[list[list[Label]]], Any]


def read_request(fields: Mapping[str, Any], model: Model) -> Request:
    """Reads one row of TorchServe's: `body`, or the fields of a form.

    Raises `BadInput` in one line that names the field.
    """
    settings = {name: value for name, value in fields.items() if name in SETTINGS}
    pictures = {name: value for name, value in fields.items() if name not in SETTINGS}
    if len(pictures) != 1:
        names = ", ".join(repr(str(name)[:40]) for name in list(pictures)[:5]) or "nothing"
        raise BadInput(f"expected one picture, found {names}; right would be {_EXPECTED}")
    ((name, value),) = pictures.items()
    if name.lstrip().startswith(("{", "[")):
        raise BadInput("JSON that came as a form; send it with Content-Type: application/json")
    body = _parsed(value)
    if isinstance(body, dict):
        return _object(body, settings, model)
    if isinstance(body, list):
        raise BadInput(f"the body is a list; right would be {_EXPECTED}")
    return Request(pixels_in([body], "", model), _top_k(settings, model), lambda labels: labels[0])


def _object(body: dict[str, Any], settings: dict[str, Any], model: Model) -> Request:
    inputs = body.get("inputs")
    if isinstance(inputs, list) and any(isinstance(one, dict) and "datatype" in one for one in inputs):
        return _tensors(body, settings, model)
    kind = next((name for name in ("instances", "inputs") if name in body), None)
    _known(body, (kind, "parameters", *SETTINGS) if kind else (*KEYS, "parameters", *SETTINGS), "field")
    top_k = _top_k({**settings, **_own(body), **_parameters(body)}, model)
    if kind == "instances":
        return Request(read_instances(body[kind], model.preprocessing), top_k, lambda labels: {"predictions": labels})
    if isinstance(inputs, list):
        return Request(pixels_in(inputs, "inputs", model), top_k, lambda labels: labels)
    picture = inputs if kind else {key: body[key] for key in KEYS if key in body}
    return Request(pixels_in([picture], "", model), top_k, lambda labels: labels[0])


def _tensors(body: dict[str, Any], settings: dict[str, Any], model: Model) -> Request:
    _known(body, ("id", "inputs", "outputs", "parameters"), "field")
    top_k = _top_k({**settings, **_parameters(body)}, model)
    if len(body["inputs"]) != 1 or not isinstance(body["inputs"][0], dict):
        raise BadInput(f"inputs: {len(body['inputs'])} tensors; right would be one, with all pictures in it")
    name, wanted = body.get("id"), _outputs(body.get("outputs"))
    if name is not None and not isinstance(name, str):
        raise BadInput("id: not text")
    pixels = _tensor(body["inputs"][0], model)

    def answer(labels: list[list[Label]]) -> Any:
        shape = [len(labels), len(labels[0])]
        outputs = [
            {"name": one, "datatype": kind, "shape": shape, "data": [item[one] for row in labels for item in row]}
            for one, kind in (("label", "BYTES"), ("score", "FP32"))
            if one in wanted
        ]
        told = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
        return told if name is None else {"id": name, **told}

    return Request(pixels, top_k, answer)


def _tensor(tensor: dict[str, Any], model: Model) -> list[Pixels]:
    _known(tensor, ("name", "shape", "datatype", "data", "parameters"), "field of inputs[0]:")
    kind, shape, data = tensor.get("datatype"), tensor.get("shape"), tensor.get("data")
    written = {"BYTES": "base64", "UINT8": "np", "FP32": "np"}.get(str(kind))
    if written is None:
        raise BadInput(f"inputs[0].datatype: {str(kind)[:40]!r}; right would be BYTES, UINT8 or FP32")
    told = tensor.get("parameters") or {}
    if told not in ({}, {"content_type": written}):
        raise BadInput(f"inputs[0].parameters: {_short(told)}; right would be none (binary tensors are not read)")
    if not isinstance(data, list) or not data:
        raise BadInput("inputs[0].data: expected a list with something in it")
    if not isinstance(shape, list) or not all(type(length) is int and -1 <= length < 2**31 for length in shape):
        raise BadInput(f"inputs[0].shape: {_short(shape)}; right would be a list of lengths")
    try:
        if kind == "BYTES":
            texts = [text for row in data for text in (row if isinstance(row, list) else [row])]
            np.empty(len(texts), bool).reshape(shape)
            return pixels_in(texts, "inputs[0].data", model)
        numbers = np.asarray(data)
        if numbers.dtype.kind not in "iuf":
            raise BadInput("inputs[0].data: not numbers alone")
        numbers = numbers.reshape(shape)
    except BadInput:
        raise
    except (ValueError, OverflowError):
        raise BadInput(f"inputs[0].shape: {_short(shape)} does not fit what is in data") from None
    if numbers.ndim == 3:
        numbers = numbers[None]
    return _pictures(numbers, model) if kind == "UINT8" else _ready_made(numbers, model)


def _pictures(numbers: Any, model: Model) -> list[Pixels]:
    if numbers.ndim != 4 or numbers.shape[3] != 3 or 0 in numbers.shape:
        raise BadInput(f"inputs[0].shape: {list(numbers.shape)}; UINT8 are RGB pixels, [n, height, width, 3]")
    if numbers.dtype.kind == "f" or numbers.min() < 0 or numbers.max() > 255:
        raise BadInput("inputs[0].data: UINT8 are whole numbers from 0 to 255")
    _few(len(numbers))
    allowance = Allowance()
    for _ in numbers:
        allowance.take(numbers.shape[2], numbers.shape[1])
    return [pixels_of(Image.fromarray(one.astype(np.uint8)), model.preprocessing) for one in numbers]


def _ready_made(numbers: Any, model: Model) -> list[Pixels]:
    wanted = (3, *model.input_size)
    if numbers.ndim != 4 or numbers.shape[1:] != wanted or not len(numbers):
        raise BadInput(
            f"inputs[0].shape: {list(numbers.shape)}; FP32 is what the model itself takes, preprocessed: "
            f"[n, {', '.join(map(str, wanted))}]; for RGB pixels use UINT8, [n, height, width, 3]"
        )
    _few(len(numbers))
    if not np.abs(numbers).max() <= LARGEST_VALUE:  # NaN is not
        raise BadInput(f"inputs[0].data: a value beyond ±{LARGEST_VALUE:.0f} is no preprocessed pixel")
    return list(numbers.astype(np.float32))


def _outputs(outputs: object) -> set[str]:
    """Which of the two outputs are wanted."""
    if outputs is None or outputs == []:
        return {"label", "score"}
    wanted = set()
    for number, one in enumerate(outputs if isinstance(outputs, list) else [outputs]):
        name = one.get("name") if isinstance(one, dict) else None
        if not isinstance(one, dict) or name not in ("label", "score"):
            raise BadInput(f"outputs[{number}]: {_short(name)}; right would be label or score")
        _known(one, ("name", "datatype", "shape", "parameters"), f"field of outputs[{number}]:")
        if one.get("parameters") not in (None, {}, {"binary_data": False}):
            raise BadInput(f"outputs[{number}].parameters: {_short(one['parameters'])}; answers are JSON")
        wanted.add(str(name))
    return wanted


def pixels_in(values: list[Any], where: str, model: Model) -> list[Pixels]:
    """The inputs for these pictures; faults say `where` they are, if that is anywhere."""
    return list(read_instances(values, model.preprocessing, where))


def _parsed(value: object) -> object:
    """The body without gzip, and as an object where it is JSON."""
    if isinstance(value, (bytes, bytearray)):
        value = _gunzipped(bytes(value)) if value[:2] == _GZIP else bytes(value)
        begins = value[:64].removeprefix(codecs.BOM_UTF8).lstrip()[:1]
        # A byte order mark of UTF-16 is the beginning of no picture but that of MPEG audio.
        if begins not in (b"{", b"[", b'"') and value[:2] not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return value
    elif not isinstance(value, str) or value.lstrip("\ufeff \t\r\n")[:1] not in ("{", "[", '"'):
        return value
    else:
        value = value.removeprefix("\ufeff")
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the body begins like JSON and is none: {str(error)[:200]}") from None


def _gunzipped(body: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        content = stream.decompress(body, MAX_BODY + 1)
    except zlib.error as error:
        raise BadInput(f"the body begins like gzip and is none: {error}") from None
    if len(content) > MAX_BODY:
        raise BadInput(f"the body is over the limit of {MAX_BODY >> 20} MiB when unpacked")
    if not stream.eof or stream.unused_data:
        raise BadInput("the body is gzip with its end missing, or with something behind it")
    return content


def _own(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in SETTINGS if name in body}


def _parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    parameters = body.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadInput('parameters: expected an object, such as {"top_k": 3}')
    _known(parameters, SETTINGS, "field of parameters:")
    return parameters


def _top_k(settings: Mapping[str, Any], model: Model) -> int | None:
    """Checks the settings. Text is what a form can say."""
    said = {name: bytes(value) if isinstance(value, bytearray) else value for name, value in settings.items()}
    said = {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value for name, value in said.items()
    }
    apply = said.get("function_to_apply")
    if apply not in (None, model.activation):
        raise BadInput(f"function_to_apply: {_short(apply)}; this model's scores are {model.activation}")
    top_k = said.get("top_k")
    if isinstance(top_k, str) and re.fullmatch(r"[0-9]{1,9}", top_k):
        top_k = int(top_k)
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise BadInput(f"top_k: {_short(top_k)}; right would be a whole number from 1 on")
    return top_k


def _known(given: Iterable[Any], known: tuple[Any, ...], what: str) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        names = ", ".join(_short(name) for name in unknown[:5])
        raise BadInput(f"unknown {what} {names}; known are {', '.join(known)}")


def _few(count: int) -> None:
    if count > MAX_INSTANCES:
        raise BadInput(f"{count} pictures in one request; the limit is {MAX_INSTANCES}")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str) if not isinstance(value, str) else repr(value[:40])
    return text if len(text) <= 80 else f"{text[:80]}…"
