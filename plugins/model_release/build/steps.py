"""The heavy steps of a build, each from what the step before left in the store to what the next one finds there.

A worker runs them, or a pod of their own: `Request` says everything that a step needs, and travels as a document in the
store, beside the builds. What comes back in it is small; artefacts stay in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from model_release import errors
from model_release.build import runtimes
from model_release.errors import ArchiveError, ReleaseError, SpecError, StoreRefused, VersionDamaged

if TYPE_CHECKING:
    from model_release.build.evaluation.answers import Subject
    from model_release.build.evaluation.images import LabelledImages
    from model_release.spec import ModelSpec
    from model_release.store.store import Store

Log = Callable[[str], None]
Name = Literal["export", "archive", "evaluate"]


@dataclass(frozen=True)
class Request:
    """What a step is asked for.

    Attributes:
        build: the name of the build, or of the version that is evaluated.
        service: the InferenceService's name, which the archive bears.
        fingerprint: the checkpoint's.
        toolchain: what whoever asks would build with; a machine with other packages refuses.
        version: of `evaluate`: the version in the store; None for the archive that the build left.
        evaluation: of `evaluate`: the model file's section.
        stable: of `evaluate`: the stable version's storage URI.
        no_stable: of `evaluate`: why there is no stable version to compare with; None where there is one.
        picture: of `evaluate`: where the confusion matrix goes.
        release: whose request it is: runs that build the same, as dates of one backfill, ask each for itself.
        fold: of `export`: the model file's `build.fold`.
        precision: of `export` and `evaluate`: the model file's `build.precision`.
        response_timeout: of `export` and `archive`: seconds, the model file's `service.timeout`.
        batching: of `export` and `archive`: the model file's `service.batching`, as {"max", "within_ms"}.
        runtime: what will serve it, the model file's `runtime`.
    """

    step: Name
    build: str
    service: str
    fingerprint: str = ""
    toolchain: dict[str, str] | None = None
    version: str | None = None
    evaluation: dict[str, Any] | None = None
    stable: str | None = None
    no_stable: str | None = None
    picture: str = ""
    release: str = ""
    fold: bool = False
    precision: str = "float32"
    response_timeout: int = 60
    batching: dict[str, int] | None = None
    runtime: str = runtimes.DEFAULT

    @property
    def key(self) -> str:
        """Where the request is, below the store's prefix."""
        return "/".join(filter(None, ("builds", self.build, self.release, f"{self.step}.request.json")))


def asked_of(spec: ModelSpec) -> dict[str, Any]:
    """What a model file says that shapes an archive: arguments of `Request` and of `export.toolchain`."""
    batching = spec.service.batching
    return {
        "fold": spec.build.fold,
        "precision": spec.build.precision,
        "response_timeout": spec.service.timeout_seconds,
        "batching": batching.told if batching else None,
    }


def ask(store: Store, request: Request) -> None:
    """Leaves a request in the store, in place of an earlier one of this step and whatever came of that."""
    _, etag = store.read_json(request.key)
    store.write_json(request.key, {"request": asdict(request), "result": None, "error": None}, if_match=etag)


def answer(store: Store, key: str, root: Path, reach: Callable[[str], Any], log: Log) -> None:
    """Does what the request at `key` asks for, and leaves the result, or the error, beside it. May run twice.

    Raises what the step raises. A request that was replaced meanwhile keeps its place: `StoreUnavailable`.
    """
    document, etag = store.read_json(key)
    try:
        request = Request(**document["request"])
    except (TypeError, KeyError) as error:
        raise SpecError(f"{store.uri}{key} is no request of this project: {error!r}") from error
    try:
        result = run(store, request, root, reach, log)
    except ReleaseError as error:
        told = {"kind": type(error).__name__, "message": str(error)}
        store.write_json(key, {**document, "error": told}, if_match=etag)
        raise
    store.write_json(key, {**document, "result": result}, if_match=etag)


def answered(store: Store, request: Request) -> dict[str, Any] | None:
    """What came of a request: the result, or None where nothing has come yet. Raises the step's own error, and
    `ArchiveError` where another request stands there."""
    document, _ = store.read_json(request.key)
    if document is None:
        return None
    if document["request"] != asdict(request):
        raise ArchiveError(f"{store.uri}{request.key} holds another run's request; run this task again")
    if told := document["error"]:
        kind = getattr(errors, str(told["kind"]), None)
        if isinstance(kind, type) and issubclass(kind, ReleaseError):
            raise kind(str(told["message"]))
        raise ArchiveError(f"{told['kind']}: {told['message']}")
    return None if document["result"] is None else dict(document["result"])


def run(store: Store, request: Request, root: Path, reach: Callable[[str], Any], log: Log) -> dict[str, Any]:
    """Does the step here and now. `root` is the project's folder; `reach` gives the client of the
    store that an address names, for images and versions."""
    handler = runtimes.handler(root, request.runtime)
    if request.toolchain is not None:
        _check_toolchain(request.toolchain, handler)
    with TemporaryDirectory(prefix=f"{request.step}-") as scratch:
        if request.step == "export":
            return export_checkpoint(store, request, handler, Path(scratch), log)
        if request.step == "archive":
            return archive_export(store, request, handler, Path(scratch), log)
        return evaluate_archive(store, request, root, Path(scratch), reach, log)


def export_checkpoint(store: Store, request: Request, handler: Path, scratch: Path, log: Log) -> dict[str, Any]:
    """Checkpoint → what the runtime serves; returns its `parity`."""
    from model_release.build import export

    store.unstash(f"{request.build}/checkpoint", scratch / "checkpoint")
    made = export.export(
        scratch / "checkpoint",
        scratch / "export",
        handler=handler,
        fingerprint=request.fingerprint,
        fold=request.fold,
        precision=request.precision,
        response_timeout=request.response_timeout,
        batching=request.batching,
        log=log,
    )
    store.stash(f"{request.build}/export", made.directory)
    return {"parity": made.report["parity"]}


def archive_export(store: Store, request: Request, handler: Path, scratch: Path, log: Log) -> dict[str, Any]:
    """Export → an archive that answered real images; returns its `sha256` and `size` (bytes)."""
    from model_release.build import archive

    file = scratch / "archive" / runtimes.archive_file(runtimes.get(request.runtime), request.service)
    with archive.checker(file, scratch / "export", log=log) as check:
        store.unstash(f"{request.build}/export", scratch / "export")
        made = archive.archive(
            scratch / "export",
            request.service,
            handler,
            scratch / "archive",
            response_timeout=request.response_timeout,
            batching=request.batching,
            log=log,
        )
        check(made)
    known = {made.file.relative_to(made.directory).as_posix(): made.sha256}
    store.stash(f"{request.build}/archive", made.directory, known)
    return {"sha256": made.sha256, "size": made.size}


def evaluate_archive(
    store: Store, request: Request, root: Path, scratch: Path, reach: Callable[[str], Any], log: Log
) -> dict[str, Any]:
    """The archive on labelled images; returns the record's `evaluation`, and leaves the picture at its place. Whether a
    gate failed is for the caller to say (`evaluate.check`)."""
    from model_release.build import archive, evaluate
    from model_release.build.evaluation import answers
    from model_release.build.evaluation.images import labelled
    from model_release.spec import Evaluation
    from model_release.store.store import Store

    limits = Evaluation.model_validate(request.evaluation)
    images = labelled(limits.data, root, reach, log)
    log(
        f"{len(images.truth)} images of {len(images.support)} labels at {images.uri} (digest {images.digest[:16]}, of "
        f"their {images.digest_of})"
    )
    if request.version is not None:
        version = store.version(request.version)
        candidate = answers.published(version, reach(version.storage_uri))
    else:
        store.unstash(f"{request.build}/archive", scratch / "archive")
        candidate = answers.built(archive.load(scratch / "archive", request.service))
    float32 = in_float32(store, request, root, scratch, candidate, images, log)
    stable: answers.Subject | str = request.no_stable or ""
    if request.stable is not None:
        prefix, _, name = request.stable.rstrip("/").rpartition("versions/")
        try:
            stable = answers.published(Store(reach(prefix), prefix).version(name), reach(prefix))
        except (StoreRefused, VersionDamaged) as error:
            stable = f"the stable version cannot be read: {error}"
    found, picture = evaluate.evaluate(limits, images, candidate, stable, store, float32=float32, log=log)
    for line in evaluate.lines(found):
        log(line)
    store.write_bytes(request.picture, picture, "image/png")
    return found


def in_float32(
    store: Store,
    request: Request,
    root: Path,
    scratch: Path,
    candidate: Subject,
    images: LabelledImages,
    log: Log,
) -> Subject | str | None:
    """What a network in another precision is held to: the same checkpoint's archive in float32. It is made here, with
    the bytes that a release of it would have, and nothing of it is kept but its answers. Of a version that is in the
    store already those are all there is; or why there is nothing. None for a network in float32."""
    from model_release.build import archive, export
    from model_release.build.evaluation import answers

    if request.version is not None:
        about = store.version(request.version).metadata
        if about.get("precision", "float32") == "float32":
            return None
        exact = ((about.get("evaluation") or {}).get("float32") or {}).get("archive")
        if not exact or not answers.are_kept(exact, images, store):
            return f"version {request.version} was built without these images, and its checkpoint is gone"
        return answers.Subject("float32", exact, candidate.labels, lambda _: scratch)
    if request.precision == "float32":
        return None
    handler = runtimes.handler(root, request.runtime)
    log(f"exporting the checkpoint in float32, to hold {request.precision} to it")
    store.unstash(f"{request.build}/checkpoint", scratch / "checkpoint")
    asked: dict[str, Any] = {"handler": handler, "fingerprint": request.fingerprint, "log": log}
    made = export.export(scratch / "checkpoint", scratch / "float32", **asked)
    return answers.built(archive.archive(made.directory, request.service, handler, scratch / "exact", log=log))


def _check_toolchain(asked: dict[str, str], handler: Path) -> None:
    """Another toolchain would give other bytes under this build's name. A local label (+cpu, +cu126) is the same
    release of the package, and what differs by it the parity check measures."""
    from model_release.build.export import toolchain

    # What a model file asks for is no matter of the machine.
    settings = {name: asked[name] for name in ("fold", "precision", "response_timeout", "batching") if name in asked}
    here = toolchain(handler) | settings
    other = {
        name: (version, here.get(name, "nothing"))
        for name, version in asked.items()
        if version.split("+")[0] != here.get(name, "").split("+")[0]
    }
    if other:
        told = ", ".join(f"{name} {there} here and {wanted} there" for name, (wanted, there) in sorted(other.items()))
        raise ArchiveError(f"this image is not the worker's: {told}; build both of the same requirements.txt")
