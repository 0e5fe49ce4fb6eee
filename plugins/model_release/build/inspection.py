"""Whether a checkpoint's files are ones that may be opened, and an image classifier.

Looks at JSON and at lengths only: nothing here loads a model. What is refused is what could run code (`auto_map`,
kernels of the hub), and what a few bytes could make a worker do without end: a million labels, a picture size of
40 000, a header as large as a model. The limits are far beyond what real classifiers have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model_release.build import timm_config
from model_release.build.labels import CONFIG, labels_of
from model_release.errors import CheckpointError

PROCESSOR = "preprocessor_config.json"
#: The newer form: settings of several processors, the image's among them. transformers prefers it.
PROCESSORS = "processor_config.json"
INDEX = "model.safetensors.index.json"

#: Bytes of a JSON file, and of the JSON at the head of a safetensors file. ImageNet-21k's labels, twice, are 3 MB.
MAX_TEXT = 16 * 1024**2
#: Pixels of a side of the model's input.
MAX_SIDE = 4096

_SIZES = ("size", "crop_size", "image_size", "input_size", "img_size")
# Mapped to image classification by transformers, and no network from pixels to labels that TorchScript could hold.
_NOT_SERVED = {
    "DinatForImageClassification": "its attention is natten's, a library of CUDA kernels that TorchScript "
    "does not have; Swin and ConvNeXt are built alike without it",
    "ShieldGemma2ForImageClassification": "it is asked in words, a policy beside each image, and a request has the "
    "image alone",
}
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def check(directory: Path, origin: str) -> tuple[tuple[str, ...], str, list[str]]:
    """The labels, in the order of the head's outputs, the architecture of the checkpoint in `directory`, and notes on
    both.

    Raises `CheckpointError`, naming `origin`, for one that must not be loaded or is no image classifier.
    """
    config = read_json(directory / CONFIG, origin)
    processors = {
        name: read_json(directory / name, origin) for name in (PROCESSORS, PROCESSOR) if (directory / name).exists()
    }
    for name, content in ((CONFIG, config), *processors.items()):
        for key, value in _entries(content):
            _no_code(f"{origin}: {name}", key, value)
            _no_giant(f"{origin}: {name}", key, value)
    timm = timm_config.is_timm(config)
    if (
        not timm
        and PROCESSOR not in processors
        and not isinstance(processors.get(PROCESSORS, {}).get("image_processor"), dict)
    ):
        raise CheckpointError(f"{origin} lacks {PROCESSOR}: {PROCESSORS} says nothing of an image_processor")
    for weights in sorted(directory.glob("*.safetensors")):
        _small_header(weights, origin)
    architecture = f"{timm_config.network(config, origin)[0]} of timm" if timm else _architecture(config, origin)
    labels, notes = labels_of(config, origin)
    return labels, architecture, notes


def check_kind(config: Path, origin: str) -> None:
    """Raises `CheckpointError` for what says in its `config.json` that it is a checkpoint of another kind, before its
    weights are fetched."""
    content = read_json(config, origin)
    for name in _architectures(content):
        if reason := _NOT_SERVED.get(name):
            raise CheckpointError(f"{origin} is a {name}, which cannot be exported: {reason}")
    if timm_config.is_timm(content):
        timm_config.network(content, origin)
        timm_config.options(content, origin)


def _architecture(config: dict[str, Any], origin: str) -> str:
    architectures = _architectures(config)
    classifiers = [name for name in architectures if "ForImageClassification" in name]
    if not classifiers:
        found = (
            f"its architecture is {', '.join(architectures)}" if architectures else "its config names no architecture"
        )
        raise CheckpointError(f"{origin} is no image classifier: {found}; expected …ForImageClassification")
    if config.get("problem_type") == "regression":
        raise CheckpointError(f"{origin}: {CONFIG} has problem_type regression: the model gives values and no classes")
    return classifiers[0]


def _architectures(config: dict[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []


def shards_of(index: Path, origin: str) -> set[str]:
    """The files that an index of sharded weights names: names alone, never a path."""
    content = read_json(index, origin).get("weight_map")
    shards = list(content.values()) if isinstance(content, dict) else []
    strange = [name for name in shards if not re.fullmatch(r"[\w.-]+\.safetensors", str(name))]
    if strange or not shards:
        raise CheckpointError(
            f"{origin}: {INDEX} names {f'{strange[0]!r}, which is no shard' if strange else 'no shards'}"
        )
    return set(shards)


def read_json(path: Path, origin: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises `CheckpointError` for what is none, or too long to be read."""
    _no_pointer(path, origin)
    if path.stat().st_size > MAX_TEXT:
        raise too_large(path.name, path.stat().st_size, origin)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{origin}: {path.name} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{origin}: {path.name} is no JSON object")
    return content


def too_large(name: str, size: int, origin: str) -> CheckpointError:
    """What is said of a JSON file over the limit."""
    return CheckpointError(f"{origin}: {name} has {size / 1e6:.0f} MB; the limit is {MAX_TEXT / 1e6:.0f} MB")


def _entries(content: object) -> Iterator[tuple[str, Any]]:
    """Every key of every object in a JSON document, with what it says."""
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from part.items()
        if isinstance(part, dict | list):
            waiting += part.values() if isinstance(part, dict) else part


def _no_code(where: str, key: str, value: Any) -> None:
    if key == "auto_map" and value:
        raise CheckpointError(f"{where} has auto_map, which runs the checkpoint's own code; that is never done")
    if key in _IMPLEMENTATIONS and "/" in json.dumps(value):
        raise CheckpointError(f"{where} has {key} {value!r}, a kernel of the hub, which is code; that is never run")


def _no_giant(where: str, key: str, value: Any) -> None:
    if key not in _SIZES:
        return
    sides = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    for side in sides:
        if isinstance(side, int | float) and not side <= MAX_SIDE:
            raise CheckpointError(f"{where} has {key} {value!r}; the limit for a side is {MAX_SIDE}")


def _small_header(weights: Path, origin: str) -> None:
    """safetensors takes headers up to 100 MB, which takes it minutes. One that is longer than the file it refuses."""
    _no_pointer(weights, origin)
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if MAX_TEXT < length <= weights.stat().st_size:
        raise CheckpointError(
            f"{origin}: {weights.name} has a header of {length / 1e6:.0f} MB; the limit is {MAX_TEXT / 1e6:.0f} MB"
        )


def _no_pointer(path: Path, origin: str) -> None:
    """What a clone without git-lfs has instead of a large file: three lines (git-lfs/docs/spec.md)."""
    with path.open("rb") as file:
        head = file.read(1024)
    if not head.startswith(b"version https://git-lfs"):
        return
    size = re.search(rb"^size (\d+)$", head, re.MULTILINE)
    told = f" of {int(size[1]) / 1e6:.0f} MB" if size else ""
    raise CheckpointError(f"{origin}: {path.name} is a Git LFS pointer to a file{told}; `git lfs pull` brings the file")
