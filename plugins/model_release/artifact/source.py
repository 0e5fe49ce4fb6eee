"""Where a checkpoint comes from, and whether it is one that can be released.

A source is a folder or an S3 prefix in Hugging Face format: `config.json`, `preprocessor_config.json` and
`model.safetensors` (or its index and shards). It either is a checkpoint itself or holds candidates, each in a
folder named by the time it was made (`20261122T230000`): the newest one counts.

Only the files that matter are fetched, only safetensors are read, and a checkpoint that brings its own code is
refused: nothing that came from outside is ever run.
"""

from __future__ import annotations

import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_release.artifact import files
from model_release.artifact.s3 import folders, keys, split_uri, talking_about
from model_release.errors import CheckpointError

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_CANDIDATE = re.compile(r"\d{8}T\d{6}Z?")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


@dataclass(frozen=True)
class Checkpoint:
    """A fetched and checked checkpoint.

    `origin` is where it came from, for people and records. `fingerprint` is the SHA-256 over the names and
    digests of its files: equal for equal content wherever it lay. `candidate` is the folder that was chosen,
    and `commit` the source's own name for the content, where it has one.
    """

    directory: Path
    origin: str
    fingerprint: str
    architecture: str
    labels: tuple[str, ...]
    candidate: str | None = None
    commit: str | None = None


def fetch(
    source: Mapping[str, str],
    destination: Path,
    *,
    s3: Any | None = None,
    base: Path | None = None,
    not_later_than: datetime | None = None,
) -> Checkpoint:
    """Brings the checkpoint of `source` into `destination` and checks it.

    `source` has one key: `{"directory": path}` or `{"s3": "s3://bucket/prefix/"}`, the latter with `s3`, a boto3
    client. A relative path is below `base` (default: the working directory), and is recorded as it was given: the
    worker's own paths are nobody's business. `not_later_than` picks the newest candidate made by then (a backfill
    of an earlier date); a source without candidates does not heed it.

    Run again, the destination is replaced by what the source holds now. Raises `CheckpointError` (what is
    missing or wrong, and where), `SpecError` for an address that is none, and the store's errors.
    """
    known = ", ".join(_SOURCES)
    if len(source) != 1 or next(iter(source)) not in _SOURCES:
        raise CheckpointError(f"a source has one of {known}, not {', '.join(map(str, source)) or 'nothing'}")
    ((kind, address),) = source.items()
    place = _SOURCES[kind](str(address), s3, base or Path())
    candidate = None
    if CONFIG not in place.names():
        candidate = newest_candidate(place.folders(), not_later_than)
        if candidate is None:
            until = f" made by {not_later_than:%Y-%m-%d %H:%M:%S %Z}" if not_later_than else ""
            raise CheckpointError(
                f"{place.origin} holds neither {CONFIG} nor a candidate{until} in a folder named like 20261122T230000"
            )
        place = place.inside(candidate)
    with files.replaced(destination) as fresh:
        _bring(place, fresh)
        labels, architecture = _check(fresh, place.origin)
    return Checkpoint(
        directory=destination,
        origin=place.origin,
        fingerprint=files.combined(files.digests(destination)),
        architecture=architecture,
        labels=labels,
        candidate=candidate,
    )


def newest_candidate(names: Iterable[str], not_later_than: datetime | None = None) -> str | None:
    """The newest of the folder names that are times (`20261122T230000`, UTC), up to `not_later_than`; None where
    there is none. Names that are no times are other people's folders."""
    times: dict[str, datetime] = {}
    for name in names:
        if _CANDIDATE.fullmatch(name):
            try:
                times[name] = datetime.strptime(name.rstrip("Z"), "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
            except ValueError:
                continue
    if not_later_than is not None:
        limit = not_later_than if not_later_than.tzinfo else not_later_than.replace(tzinfo=UTC)
        times = {name: time for name, time in times.items() if time <= limit}
    return max(times, key=lambda name: (times[name], name), default=None)


class _Source(ABC):
    """A place with files. A new kind of source (the Hugging Face hub) is one more of these in `_SOURCES`."""

    origin: str

    @abstractmethod
    def __init__(self, address: str, s3: Any | None, base: Path) -> None: ...

    @abstractmethod
    def names(self) -> list[str]:
        """Files right here, without those in folders."""

    @abstractmethod
    def folders(self) -> list[str]: ...

    @abstractmethod
    def inside(self, folder: str) -> _Source: ...

    @abstractmethod
    def bring(self, name: str, target: Path) -> None: ...


class _Directory(_Source):
    def __init__(self, address: str, s3: Any | None, base: Path) -> None:
        self._address, self._s3, self._base = address, s3, base
        self._path = base / address
        self.origin = f"directory:{address}"
        if not self._path.is_dir():
            raise CheckpointError(f"{self._path} is no folder; the model file's source must name one that exists")

    def names(self) -> list[str]:
        return [path.name for path in self._path.iterdir() if path.is_file()]

    def folders(self) -> list[str]:
        return [path.name for path in self._path.iterdir() if path.is_dir()]

    def inside(self, folder: str) -> _Source:
        return _Directory(f"{self._address.rstrip('/')}/{folder}", self._s3, self._base)

    def bring(self, name: str, target: Path) -> None:
        shutil.copyfile(self._path / name, target)


class _Prefix(_Source):
    def __init__(self, address: str, s3: Any | None, base: Path) -> None:
        if s3 is None:
            raise CheckpointError(f"{address} needs an S3 client; set the connection of the model's store")
        self._s3, self._base = s3, base
        self._bucket, self._prefix = split_uri(address)
        self.origin = f"s3://{self._bucket}/{self._prefix}"

    def names(self) -> list[str]:
        with talking_about(self.origin):
            found = keys(self._s3, self._bucket, self._prefix, delimiter="/")
            return [key[len(self._prefix) :] for key, _ in found]

    def folders(self) -> list[str]:
        with talking_about(self.origin):
            return folders(self._s3, self._bucket, self._prefix)

    def inside(self, folder: str) -> _Source:
        return _Prefix(f"{self.origin}{folder}/", self._s3, self._base)

    def bring(self, name: str, target: Path) -> None:
        with talking_about(self.origin + name):
            self._s3.download_file(self._bucket, self._prefix + name, str(target))


_SOURCES: dict[str, type[_Source]] = {"directory": _Directory, "s3": _Prefix}


def _bring(place: _Source, target: Path) -> None:
    there = set(place.names())
    missing = [name for name in (CONFIG, PROCESSOR) if name not in there]
    weights = [WEIGHTS] if WEIGHTS in there else [INDEX] if INDEX in there else []
    if not weights:
        pickled = sorted(name for name in there if name.endswith(_PICKLED))
        if pickled:
            raise CheckpointError(
                f"{place.origin} has its weights only in {pickled[0]}, a format that can run code when it is opened; "
                "save them as safetensors (model.save_pretrained does)"
            )
        missing.append(WEIGHTS)
    if missing:
        raise CheckpointError(f"{place.origin} lacks {', '.join(missing)}")
    for name in (CONFIG, PROCESSOR, *weights):
        place.bring(name, target / name)
    if weights == [INDEX]:
        shards = _shards(target / INDEX, place.origin)
        absent = sorted(shards - there)
        if absent:
            raise CheckpointError(f"{place.origin} lacks {', '.join(absent)}, named in {INDEX}")
        for name in sorted(shards):
            place.bring(name, target / name)


def _shards(index: Path, origin: str) -> set[str]:
    shards = set((_json(index, origin).get("weight_map") or {}).values())
    strange = [name for name in shards if not re.fullmatch(r"[\w.-]+\.safetensors", str(name))]
    if strange or not shards:
        raise CheckpointError(
            f"{origin}: {INDEX} names {f'{strange[0]!r}, which is no shard' if strange else 'no shards'}"
        )
    return shards


def _check(directory: Path, origin: str) -> tuple[tuple[str, ...], str]:
    config, processor = _json(directory / CONFIG, origin), _json(directory / PROCESSOR, origin)
    for name, content in ((CONFIG, config), (PROCESSOR, processor)):
        if content.get("auto_map"):
            raise CheckpointError(
                f"{origin}: {name} has auto_map, which runs the checkpoint's own code; that is never done"
            )
    architectures = [str(name) for name in config.get("architectures") or []]
    classifiers = [name for name in architectures if "ForImageClassification" in name]
    if not classifiers:
        found = (
            f"its architecture is {', '.join(architectures)}" if architectures else "its config names no architecture"
        )
        raise CheckpointError(f"{origin} is no image classifier: {found}; expected …ForImageClassification")
    return _labels(config, origin), classifiers[0]


def _labels(config: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    """The labels in the order of the head's outputs, as transformers reads them."""
    named, count = config.get("id2label"), config.get("num_labels")
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
    if len(set(labels.values())) < len(labels):
        twice = next(label for label in labels.values() if list(labels.values()).count(label) > 1)
        raise CheckpointError(f"{origin}: id2label in {CONFIG} has the label {twice!r} twice")
    return tuple(labels[index] for index in range(len(labels)))


def _json(path: Path, origin: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{origin}: {path.name} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{origin}: {path.name} is no JSON object")
    return content
