"""Whether a checkpoint's files are ones that may be opened, and an image classifier.

Looks at JSON and at lengths only: nothing here loads a model. What is refused is what could run code (`auto_map`,
kernels of the hub), and what a few bytes could make a worker do without end: a million labels, a picture size of
40 000, a header as large as a model. The limits are far beyond what real classifiers have.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model_release.errors import CheckpointError

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
INDEX = "model.safetensors.index.json"

#: Bytes of a JSON file, and of the JSON at the head of a safetensors file. ImageNet-21k's labels, twice, are 3 MB.
MAX_TEXT = 16 * 1024**2
#: ImageNet-21k has 21 843.
MAX_LABELS = 100_000
#: Characters of one label.
MAX_LABEL = 500
#: Pixels of a side of the model's input.
MAX_SIDE = 4096

_SIZES = ("size", "crop_size", "image_size")
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def check(directory: Path, origin: str) -> tuple[tuple[str, ...], str]:
    """The labels, in the order of the head's outputs, and the architecture of the checkpoint in `directory`.

    Raises `CheckpointError`, naming `origin`, for one that must not be loaded or is no image classifier.
    """
    config, processor = read_json(directory / CONFIG, origin), read_json(directory / PROCESSOR, origin)
    for name, content in ((CONFIG, config), (PROCESSOR, processor)):
        for key, value in _entries(content):
            _no_code(f"{origin}: {name}", key, value)
            _no_giant(f"{origin}: {name}", key, value)
    for weights in sorted(directory.glob("*.safetensors")):
        _small_header(weights, origin)
    named = config.get("architectures")
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    classifiers = [name for name in architectures if "ForImageClassification" in name]
    if not classifiers:
        found = (
            f"its architecture is {', '.join(architectures)}" if architectures else "its config names no architecture"
        )
        raise CheckpointError(f"{origin} is no image classifier: {found}; expected …ForImageClassification")
    return labels_of(config, origin), classifiers[0]


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


def labels_of(config: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    """The labels in the order of the head's outputs, as transformers reads them."""
    named, count = config.get("id2label"), config.get("num_labels")
    number = len(named) if isinstance(named, dict) and named else count
    if isinstance(number, int) and number > MAX_LABELS:
        raise CheckpointError(f"{origin}: {CONFIG} has {number} labels; the limit is {MAX_LABELS}")
    if not named and isinstance(count, int) and count > 0:
        return tuple(f"LABEL_{index}" for index in range(count))
    if not isinstance(named, dict) or not named:
        raise CheckpointError(f"{origin}: {CONFIG} has no id2label, so nobody knows what the classes are called")
    try:
        labels = {int(index): str(label) for index, label in named.items()}
    except ValueError:
        raise CheckpointError(f"{origin}: id2label in {CONFIG} has a key that is no number") from None
    if sorted(labels) != list(range(len(labels))):
        raise CheckpointError(f"{origin}: id2label in {CONFIG} does not count from 0 to {len(labels) - 1} without gaps")
    for index, label in labels.items():
        if len(label) > MAX_LABEL:
            raise CheckpointError(
                f"{origin}: label {index} in {CONFIG} has {len(label)} characters; the limit is {MAX_LABEL}"
            )
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in label):
            raise CheckpointError(f"{origin}: label {index} in {CONFIG} has a character that is no text: {label!r}")
    label, times = Counter(labels.values()).most_common(1)[0]
    if times > 1:
        raise CheckpointError(f"{origin}: id2label in {CONFIG} has the label {label!r} twice")
    return tuple(labels[index] for index in range(len(labels)))


def read_json(path: Path, origin: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises `CheckpointError` for what is none, or too long to be read."""
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
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if MAX_TEXT < length <= weights.stat().st_size:
        raise CheckpointError(
            f"{origin}: {weights.name} has a header of {length / 1e6:.0f} MB; the limit is {MAX_TEXT / 1e6:.0f} MB"
        )
