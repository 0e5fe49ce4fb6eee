"""Where a checkpoint comes from, and whether it is one that can be released.

A source is a folder, a store's prefix, a repository of the hub or a model of an MLflow registry, in Hugging Face's
format: `config.json`, `preprocessor_config.json` (or `processor_config.json`; timm's checkpoints have neither) and
`model.safetensors` (or its index and shards). A folder or prefix either is a checkpoint itself or holds candidates,
each in a folder named by the time it was made (`20261122T230000`): the newest one counts. In a repository the newest
commit does, in a registry the version at which an alias stands.

Only the files that matter are fetched, only safetensors are read, and a checkpoint that brings its own code is
refused: nothing that came from outside is ever run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model_release.build import inspection, labels, timm_config
from model_release.build.hub import HubAccess, HubFolder
from model_release.build.registry import CURE, Registry
from model_release.errors import CheckpointError, SourceUnavailable, SpecError
from model_release.store import files
from model_release.store.bucket import MAX_FILE
from model_release.store.folder import Directory, Folder, Log, Prefix, WritableFolder

Reach = Callable[[str], Any]

CONFIG = labels.CONFIG
PROCESSOR = inspection.PROCESSOR
PROCESSORS = inspection.PROCESSORS
WEIGHTS = "model.safetensors"
INDEX = inspection.INDEX

_CANDIDATE = re.compile(r"\d{8}T\d{6}Z?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_ADAPTER = "adapter_config.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


@dataclass(frozen=True)
class Checkpoint:
    """A fetched and checked checkpoint.

    `origin` is where it came from, for people and records. `digests` is {name: SHA-256} of its files, `fingerprint` one
    over all of these: equal for equal content wherever it lay. `candidate` is the folder that was chosen,
    `commit` the source's own name for the content, and `time` when either was made, where the source has them.
    """

    directory: Path
    origin: str
    fingerprint: str
    architecture: str
    labels: tuple[str, ...]
    digests: Mapping[str, str]
    candidate: str | None = None
    commit: str | None = None
    time: datetime | None = None

    @property
    def identity(self) -> str:
        """As `newest` names it: another candidate has another one."""
        return _identity(self.origin, self.commit)


def fetch(
    source: Mapping[str, str],
    destination: Path,
    *,
    reach: Reach | None = None,
    base: Path | None = None,
    hub: HubAccess | None = None,
    mlflow: Registry | None = None,
    not_later_than: datetime | None = None,
    log: Log | None = None,
) -> Checkpoint:
    """Brings the checkpoint of `source` into `destination` and checks it.

    `source` is `{"directory": path}`, `{"s3": "s3://bucket/prefix/"}` (or `gcs`, or `azure`) with `reach`, which gives
    the client of the store that an address names, `{"hub": "owner/name"}` with `hub`, how it is reached (default: as
    the environment says), or `{"mlflow": "models:/name@alias"}` with `mlflow`, the server, and with `reach` where that
    keeps its files in a store. A relative path is below `base` (default: the working directory), and is recorded as it
    was given: the worker's own paths are nobody's business. `log` hears how downloads get on, and what is to be known
    of the labels.

    `not_later_than` picks the newest candidate, or the newest commit of the branch, made by then (a backfill of an
    earlier date); a source without candidates does not heed it. `"revision"` beside the place names the one to take:
    the folder of a candidate; of the hub a tag or commit, which is that very one, or a branch (default: main); of a
    registry a version's number or an alias.

    Run again, the destination is replaced by what the source holds now. Raises `CheckpointError` (what is
    missing or wrong, and where), `SpecError` for an address that is none, `SourceUnavailable` while the hub does not
    answer or where the source is changed meanwhile, and the store's errors.
    """
    revision = source.get("revision")
    place = _place(source, reach, base or Path(), hub or HubAccess(), mlflow, not_later_than, log or (lambda _: None))
    candidate = None
    _no_adapter(place)
    if place.commit is None and (revision or CONFIG not in place.names()):
        candidate = _candidate(place, revision, not_later_than)
        place = place.inside(candidate)
    with files.replaced(destination) as fresh:
        _bring(place, fresh)
        named, architecture, notes = inspection.check(fresh, place.origin)
    for note in notes:
        (log or (lambda _: None))(f"note: {note}")
    digests = files.digests(destination)
    return Checkpoint(
        directory=destination,
        origin=place.origin,
        fingerprint=files.combined(digests),
        architecture=architecture,
        labels=named,
        digests=digests,
        candidate=candidate,
        commit=place.commit,
        time=candidate_time(candidate) if candidate else place.time,
    )


def newest(
    source: Mapping[str, str],
    *,
    reach: Reach | None = None,
    base: Path | None = None,
    hub: HubAccess | None = None,
    mlflow: Registry | None = None,
) -> str | None:
    """The `identity` of what `fetch` would bring now, by names alone: nothing is fetched, but for the config.json of
    what has no processor, which is whole if it is timm's. None while there is no candidate, or the newest one is not
    whole yet. For who waits for a new one.

    Raises what `fetch` raises, and `CheckpointError` for a place that holds one checkpoint and no candidates: how it
    was, once it is changed, nobody knows.
    """
    place = _place(source, reach, base or Path(), hub or HubAccess(), mlflow, None, lambda _: None)
    if place.commit is not None:
        return _identity(place.origin, place.commit)
    if CONFIG in place.names():
        raise CheckpointError(f"{place.origin} holds one checkpoint, and no candidates that could be told apart")
    candidate = newest_candidate(place.folders(last=CONFIG))
    if candidate is None:
        return None
    chosen = place.inside(candidate)
    there = set(chosen.names())
    if CONFIG not in there or not there & {WEIGHTS, INDEX}:
        return None
    whole = bool(there & {PROCESSOR, PROCESSORS}) or _is_timm(chosen)
    return _identity(chosen.origin, None) if whole else None


def _is_timm(place: Folder) -> bool:
    with TemporaryDirectory(prefix="config-") as scratch:
        if place.size(CONFIG) > inspection.MAX_TEXT:
            return False
        place.bring(CONFIG, config := Path(scratch, CONFIG))
        return timm_config.is_timm(inspection.read_json(config, place.origin))


def _identity(origin: str, commit: str | None) -> str:
    return f"{origin} {commit}" if commit else origin


def _place(
    source: Mapping[str, str],
    reach: Reach | None,
    base: Path,
    hub: HubAccess,
    mlflow: Registry | None,
    not_later_than: datetime | None,
    log: Log,
) -> Folder:
    match sorted(key for key in source if key != "revision"):
        case ["directory"]:
            found = Directory(source["directory"], base)
            if not found.path.is_dir():
                raise CheckpointError(f"{found.path} is no folder; the model file's source must name one that exists")
            return found
        case ["s3" | "gcs" | "azure" as kind]:
            if reach is None:
                raise CheckpointError(f"{source[kind]} needs a client; set the connection of the model's store")
            return Prefix(reach(source[kind]), source[kind], log)
        case ["hub"]:
            return HubFolder(source["hub"], _revision(source.get("revision")), not_later_than, hub, log)
        case ["mlflow"]:
            if mlflow is None:
                raise CheckpointError(f"{source['mlflow']} needs the address of an MLflow server; {CURE}")
            return mlflow.folder(source["mlflow"], _revision(source.get("revision")), not_later_than, reach, log)
        case others:
            raise CheckpointError(
                f"a source has one of directory, s3, gcs, azure, hub, mlflow, not {', '.join(others) or 'nothing'}"
            )


def candidates_of(source: Mapping[str, str], base: Path, reach: Reach | None) -> WritableFolder:
    """Where a training puts its candidates: `{"directory": path}` (relative to `base`), or a store's prefix, with
    `reach` as `fetch` takes it. Raises `SpecError` for any other source."""
    if directory := source.get("directory"):
        return Directory(directory, base)
    prefix = source.get("s3") or source.get("gcs") or source.get("azure")
    if prefix and reach is not None:
        return Prefix(reach(prefix), prefix)
    raise SpecError("a training needs a source that candidates can be put into: directory, s3, gcs or azure")


def _revision(named: str | None) -> str | None:
    """A name of git's, which is also part of a path in the hub's cache; or a registry's number or alias."""
    if named is not None and (not _REVISION.fullmatch(named) or ".." in named):
        raise SpecError(
            f"{named!r} is no revision of the hub or a registry; a branch, tag or full commit is right, or a version's "
            "number or alias"
        )
    return named


def _candidate(place: Folder, revision: str | None, not_later_than: datetime | None) -> str:
    """The candidate that `revision` names, or the newest."""
    there = place.folders(last=CONFIG)
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


def _no_adapter(place: Folder) -> None:
    """transformers applies an adapter that lies beside the weights, and only the weights would be fetched."""
    if _ADAPTER in place.names():
        raise CheckpointError(
            f"{place.looked_at} holds a LoRA adapter ({_ADAPTER}), which changes a model's weights; merge it into them "
            "(merge_and_unload of peft does) and save the model without it"
        )


def _bring(place: Folder, target: Path) -> None:
    _no_adapter(place)
    there = set(place.names())
    tags: dict[str, str | None] = {}

    def bring(name: str) -> None:
        tags[name] = place.tag(name)
        place.bring(name, target / name)

    def bring_text(name: str) -> None:
        if place.size(name) > inspection.MAX_TEXT:
            raise inspection.too_large(name, place.size(name), place.origin)
        bring(name)

    if CONFIG in there:
        bring_text(CONFIG)
        inspection.check_kind(target / CONFIG, place.origin)
    processors = [name for name in (PROCESSOR, PROCESSORS) if name in there]
    weights = [WEIGHTS] if WEIGHTS in there else [INDEX] if INDEX in there else []
    # timm's have one file for both.
    whole = processors or (CONFIG in there and timm_config.is_timm(inspection.read_json(target / CONFIG, place.origin)))
    missing = [CONFIG] * (CONFIG not in there) + [PROCESSOR] * (not whole)
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
    for name in (*processors, *(name for name in weights if name == INDEX)):
        bring_text(name)
    if weights == [INDEX]:
        weights = sorted(inspection.shards_of(target / INDEX, place.origin))
        absent = [name for name in weights if name not in there]
        if absent:
            raise CheckpointError(f"{place.looked_at} lacks {', '.join(absent)}, named in {INDEX}")
    total = sum(place.size(name) for name in weights)
    if total > MAX_FILE:
        raise CheckpointError(
            f"{place.origin} has {total / 1e9:.1f} GB of weights; an archive of more than {MAX_FILE / 1e9:.1f} GB "
            "cannot be published"
        )
    for name in weights:
        bring(name)
    # Labels of one checkpoint and weights of another may fit each other, and answer wrong.
    if changed := [name for name, tag in tags.items() if place.tag(name) != tag]:
        raise SourceUnavailable(f"{place.origin}: {changed[0]} was changed while it was read; a retry reads it whole")
