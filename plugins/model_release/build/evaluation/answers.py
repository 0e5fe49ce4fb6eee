"""The answers of a packaged archive to labelled images, asked once and then kept in the store.

`evaluations/<archive>-<images>.json`, named by the first 16 digits of the archive's SHA-256 (which covers model,
labels, preprocessing and handler) and of the images' digest: a retry, a backfill, another run and the next release,
for which this version is the stable one, find it there.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from model_release.build import processes, runtimes
from model_release.build.evaluation.images import LabelledImages
from model_release.build.evaluation.measures import Answer
from model_release.build.inspection import MAX_TEXT
from model_release.errors import ArchiveError, StoreUnavailable, VersionDamaged
from model_release.store import files
from model_release.store.folder import Prefix
from model_release.store.store import version_name

if TYPE_CHECKING:
    from model_release.build.archive import Archive
    from model_release.store.store import Store, Version

FORMAT = 1

_BASE_SECONDS = 600.0
_SECONDS_AN_IMAGE = 10.0  # some seventy times what a ViT-base takes on two cores (benchmarks/README.md)


@dataclass(frozen=True)
class Subject:
    """An archive whose answers are asked for. `bring(folder)` gives its file, downloaded there where it must be."""

    version: str
    sha256: str
    labels: tuple[str, ...]
    bring: Callable[[Path], Path] = field(repr=False)


def built(archive: Archive) -> Subject:
    """The archive that a build left, under the name that it will have as a version."""
    version = version_name(files.digests(archive.directory))
    return Subject(version, archive.sha256, labels_of(archive.file), lambda _: archive.file)


def published(version: Version, client: Any) -> Subject:
    """A version in the store, fetched with its store's client and held to its SHA-256. Raises `VersionDamaged`."""
    found = runtimes.archives(version.files)
    labels = version.metadata.get("labels")
    if len(found) != 1 or not labels:
        raise VersionDamaged(f"{version.storage_uri} has {len(found)} archives and {len(labels or ())} labels")
    sha256 = str(version.files[found[0]]["sha256"])

    def bring(folder: Path) -> Path:
        target = folder / f"{version.name}{runtimes.of_archive(Path(found[0])).SUFFIX}"
        Prefix(client, version.storage_uri).bring(found[0], target)
        if files.sha256(target) != sha256:
            raise VersionDamaged(f"{version.storage_uri}{found[0]} is not what its version.json says")
        return target

    return Subject(version.name, sha256, tuple(map(str, labels)), bring)


def labels_of(file: Path) -> tuple[str, ...]:
    """The labels that the archive's model knows, in the order of its outputs."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open("model.json") as content:
            return tuple(json.loads(content.read(MAX_TEXT))["labels"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ArchiveError(f"{file.name} has no model.json with labels: {error}") from error


def answers(
    subject: Subject,
    images: LabelledImages,
    store: Store,
    *,
    batch: int,
    scratch: Path,
    log: Callable[[str], None],
) -> dict[str, Answer]:
    """{image: answer} of all `images`, from the store, or asked now and kept there.

    `batch` images at once; `scratch` is a folder for downloads. Run again, it reads what it kept. Raises
    `ArchiveError` when the handler does not load or not one image got an answer, and the store's errors.
    """
    key, identity = _place(subject.sha256, images)
    kept, tag = store.read_json(key)
    if _holds(kept, identity):
        log(f"the answers of version {subject.version} to these {len(images.truth)} images are in the store: {key}")
        return {name: Answer(*answer) for name, answer in kept["answers"].items()}
    pairs = images.bring(scratch, log)
    found = run(subject.bring(scratch), pairs, batch=batch, what=f"version {subject.version}", log=log)
    content = {**identity, "answers": {name: astuple(answer) for name, answer in found.items()}}
    try:
        store.write_json(key, content, if_match=tag)
    except StoreUnavailable as error:
        log(f"the answers were not kept and will be asked for again: {error}")
    return found


def are_kept(sha256: str, images: LabelledImages, store: Store) -> bool:
    """Whether the archive of this digest was asked for these images already: its answers can be had without it."""
    key, identity = _place(sha256, images)
    return _holds(store.read_json(key)[0], identity)


def _place(sha256: str, images: LabelledImages) -> tuple[str, dict[str, Any]]:
    """Where the answers are, and what is said there of whose they are."""
    key = f"evaluations/{sha256[:16]}-{images.digest[:16]}.json"
    return key, {"format": FORMAT, "archive": sha256, "images": images.digest}


def _holds(kept: Any, identity: dict[str, Any]) -> bool:
    return kept is not None and all(kept.get(name) == value for name, value in identity.items())


def run(
    archive: Path, images: list[tuple[str, Path]], *, batch: int, what: str, log: Callable[[str], None]
) -> dict[str, Answer]:
    """{image: answer}, asked of the archive in a process of its own. Raises `ArchiveError`."""
    log(f"asking {what} for {len(images)} images, {batch} at once")
    with TemporaryDirectory(prefix="evaluate-") as folder:
        request = {
            "archive": str(archive.resolve()),
            "images": [[name, str(file.resolve())] for name, file in images],
            "batch": batch,
            "output": str(Path(folder, "answers.json")),
        }
        Path(folder, "request.json").write_text(json.dumps(request), encoding="utf-8")
        report = processes.run(
            ["-m", "model_release.build.evaluation.ask", str(Path(folder, "request.json"))],
            what=f"the evaluation of {what}",
            log=log,
            env=processes.environment(PYTHONPATH=str(processes.PACKAGE_ROOT), HOME=folder, TMPDIR=folder),
            timeout=_BASE_SECONDS + _SECONDS_AN_IMAGE * len(images),
            cwd=Path(folder),
        )
        rows = json.loads(Path(folder, "answers.json").read_text(encoding="utf-8"))
    found = {name: Answer(label, score, fault) for name, label, score, fault in rows}
    seconds = max(report["seconds"], 1e-3)
    log(
        f"{what} answered {len(found)} images in {seconds:.1f} s ({len(found) / seconds:.1f} images/s), "
        f"loaded in {report['load_seconds']:.1f} s"
    )
    if all(answer.label is None for answer in found.values()):
        raise ArchiveError(
            f"{what} has no answer to any of the images ({len(found)}); the first: {next(iter(found.values())).fault}"
        )
    return found
