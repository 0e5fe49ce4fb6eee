"""Where a checkpoint comes from, and whether it is one that can be released.

A source is a folder, an S3 prefix or a repository of the hub, in Hugging Face format: `config.json`,
`preprocessor_config.json` and `model.safetensors` (or its index and shards). A folder or prefix either is a checkpoint
itself or holds candidates, each in a folder named by the time it was made (`20261122T230000`): the newest one counts.
In a repository the newest commit does.

Only the files that matter are fetched, only safetensors are read, and a checkpoint that brings its own code is
refused: nothing that came from outside is ever run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_release.artifact import files
from model_release.artifact.hub import HubAccess, HubPlace
from model_release.artifact.origins import DirectoryPlace, Log, Place, PrefixPlace
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
    `commit` the source's own name for the content, and `time` when either was made, where the source has them.
    """

    directory: Path
    origin: str
    fingerprint: str
    architecture: str
    labels: tuple[str, ...]
    candidate: str | None = None
    commit: str | None = None
    time: datetime | None = None


def fetch(
    source: Mapping[str, str],
    destination: Path,
    *,
    s3: Any | None = None,
    base: Path | None = None,
    hub: HubAccess | None = None,
    not_later_than: datetime | None = None,
    log: Log | None = None,
) -> Checkpoint:
    """Brings the checkpoint of `source` into `destination` and checks it.

    `source` is `{"directory": path}`, `{"s3": "s3://bucket/prefix/"}` with `s3`, a boto3 client, or
    `{"hub": "owner/name"}` with `hub`, how it is reached (default: as the environment says). A relative path is below
    `base` (default: the working directory), and is recorded as it was given: the worker's own paths are nobody's
    business. `log` hears how downloads get on.

    `not_later_than` picks the newest candidate, or the newest commit of the branch, made by then (a backfill of an
    earlier date); a source without candidates does not heed it. `"revision"` beside the place names the one to take:
    the folder of a candidate; of the hub a tag or commit, which is that very one, or a branch (default: main).

    Run again, the destination is replaced by what the source holds now. Raises `CheckpointError` (what is
    missing or wrong, and where), `SpecError` for an address that is none, `SourceUnavailable` while the hub does not
    answer, and the store's errors.
    """
    revision = source.get("revision")
    place = _place(source, s3, base or Path(), hub or HubAccess(), not_later_than, log or (lambda _: None))
    candidate = None
    if place.commit is None and (revision or CONFIG not in place.names()):
        candidate = _candidate(place, revision, not_later_than)
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
        commit=place.commit,
        time=candidate_time(candidate) if candidate else place.time,
    )


def _place(
    source: Mapping[str, str], s3: Any | None, base: Path, hub: HubAccess, not_later_than: datetime | None, log: Log
) -> Place:
    match sorted(key for key in source if key != "revision"):
        case ["directory"]:
            return DirectoryPlace(source["directory"], base)
        case ["s3"]:
            return PrefixPlace(source["s3"], s3, log)
        case ["hub"]:
            return HubPlace(source["hub"], source.get("revision"), not_later_than, hub, log)
        case others:
            raise CheckpointError(f"a source has one of directory, s3, hub, not {', '.join(others) or 'nothing'}")


def _candidate(place: Place, revision: str | None, not_later_than: datetime | None) -> str:
    """The candidate that `revision` names, or the newest."""
    there = place.folders()
    if revision is None:
        newest = newest_candidate(there, not_later_than)
        if newest is None:
            until = f" made by {not_later_than:%Y-%m-%d %H:%M:%S %Z}" if not_later_than else ""
            raise CheckpointError(
                f"{place.origin} holds neither {CONFIG} nor a candidate{until} in a folder named like 20261122T230000"
            )
        return newest
    if revision not in there or candidate_time(revision) is None:
        known = f"the newest is {newest_candidate(there)}" if newest_candidate(there) else "it holds none"
        raise CheckpointError(f"{place.origin} has no candidate {revision!r}; {known}")
    return revision


def candidate_time(name: str) -> datetime | None:
    """When the candidate in the folder `name` (`20261122T230000`, UTC) was made; None for other people's folders."""
    if not _CANDIDATE.fullmatch(name):
        return None
    try:
        return datetime.strptime(name.rstrip("Z"), "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def newest_candidate(names: Iterable[str], not_later_than: datetime | None = None) -> str | None:
    """The newest of the folder names that are times (`20261122T230000`, UTC), up to `not_later_than`; None where
    there is none. Names that are no times are other people's folders."""
    times = {name: time for name in names if (time := candidate_time(name)) is not None}
    if not_later_than is not None:
        limit = not_later_than if not_later_than.tzinfo else not_later_than.replace(tzinfo=UTC)
        times = {name: time for name, time in times.items() if time <= limit}
    return max(times, key=lambda name: (times[name], name), default=None)


def _bring(place: Place, target: Path) -> None:
    there = set(place.names())
    missing = [name for name in (CONFIG, PROCESSOR) if name not in there]
    weights = [WEIGHTS] if WEIGHTS in there else [INDEX] if INDEX in there else []
    if not weights:
        pickled = sorted(name for name in there if name.endswith(_PICKLED))
        if pickled:
            raise CheckpointError(
                f"{place.looked_at} has its weights only in {pickled[0]}, a format that can run code when it is "
                "opened; save them as safetensors (model.save_pretrained does)"
            )
        missing.append(WEIGHTS)
    if missing:
        raise CheckpointError(f"{place.looked_at} lacks {', '.join(missing)}")
    for name in (CONFIG, PROCESSOR, *weights):
        place.bring(name, target / name)
    if weights == [INDEX]:
        shards = _shards(target / INDEX, place.origin)
        absent = sorted(shards - there)
        if absent:
            raise CheckpointError(f"{place.looked_at} lacks {', '.join(absent)}, named in {INDEX}")
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
