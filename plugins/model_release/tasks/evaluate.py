"""Evaluation before traffic: the version that this run releases answers labelled images, and so does the stable one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from model_release.errors import ClusterRefused, ClusterUnavailable, SpecError, StoreRefused, VersionDamaged
from model_release.spec import Evaluation, ModelSpec
from model_release.tasks import connections, records
from model_release.tasks.build import BuildOperator
from model_release.tasks.proof import version_in
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from model_release.artifact.evaluation.answers import Subject
    from model_release.artifact.store import Store

PICTURE = "releases/{release}.confusion.png"


class Evaluate(BuildOperator):
    """Lets the packaged archive answer the model file's labelled images, compares it with the stable version on the
    same images, records what came of it, and fails when a gate of the model file does.

    The archive is the one that `archive` left, or that of the version which `resolve` found. Its result is the summary
    that `publish` writes into `version.json`. Run again, the answers are read from the store: no image is asked twice.

    A service that is not there, or whose stable version is none of this project's, is not compared with, and the record
    says so. A cluster that does not answer is tried again where traffic is to be moved and regressions are limited.
    """

    def release(self, context: Any, run: Run) -> dict[str, Any]:
        from model_release.artifact import evaluate as evaluation
        from model_release.artifact.evaluation.images import labelled

        limits = limits_of(self.spec, run)
        say = _line_by_line(self.log.info)
        images = labelled(limits.data, self.root, connections.s3, say)
        self.log.info(
            "%d images of %d labels at %s (digest %s, of their %s)",
            *(len(images.truth), len(images.support), images.uri, images.digest[:16], images.digest_of),
        )
        store = connections.store(self.spec.store)
        with TemporaryDirectory(prefix="evaluation-") as scratch:
            candidate = self.candidate(context, store, Path(scratch))
            stable = self.stable(run, limits)
            found, picture = evaluation.evaluate(limits, images, candidate, stable, store, log=say)
        for line in evaluation.lines(found):
            say(line)
        store.write_bytes(PICTURE.format(release=run.release), picture, "image/png")
        records.change(self.spec, run, lambda record: setattr(record, "evaluation", found))
        evaluation.check(found)
        return evaluation.summary(found)

    def candidate(self, context: Any, store: Store, scratch: Path) -> Subject:
        """The archive that this run releases."""
        from model_release.artifact import archive
        from model_release.artifact.evaluation import answers

        resolved = self.resolved(context)
        if "version" in resolved:
            return answers.published(store.version(resolved["version"]), connections.s3())
        store.unstash(f"{resolved['build']}/archive", scratch / "archive")
        return answers.built(archive.load(scratch / "archive", self.spec.service.name))

    def stable(self, run: Run, limits: Evaluation) -> Subject | str:
        """The version that serves now, or why there is none to compare with."""
        from model_release.artifact.evaluation.answers import published

        uri, why_not = stable_uri(self.spec, run, limits)
        named = version_in([], uri)
        if named is None:
            return str(why_not)
        prefix, version = named
        try:
            return published(connections.store(prefix).version(version), connections.s3())
        except (StoreRefused, VersionDamaged) as error:
            return f"the stable version cannot be read: {error}"


def limits_of(spec: ModelSpec, run: Run) -> Evaluation:
    """The model file's limits. A version that the form names is not held against stable: who asks for an older one
    knows that it was worse, and the comparison is in the record all the same."""
    if spec.evaluation is None:
        raise SpecError(f"the model file of {spec.model} has no evaluation; take the task out of the DAG")
    if run.params.get("version"):
        return spec.evaluation.model_copy(update={"max_regressions": None})
    return spec.evaluation


def stable_uri(spec: ModelSpec, run: Run, limits: Evaluation) -> tuple[str | None, str | None]:
    """(storage URI of the version that is stable, None), or (None, why there is none to compare with).

    Raises `ClusterUnavailable` or `ClusterRefused` where traffic is to be moved and regressions are limited: a limit is
    not passed by because nobody could be asked.
    """
    try:
        uri = serving(spec)
    except (ClusterUnavailable, ClusterRefused) as error:
        if run.moves_traffic and limits.max_regressions is not None:
            raise
        return None, f"the cluster does not say which version is stable: {error}"
    if uri is None:
        return None, f"no version of {spec.service.key} is known to be stable"
    if version_in([], uri) is None:
        return None, f"{uri}, which {spec.service.key} serves, is no version of this project"
    return uri, None


def serving(spec: ModelSpec) -> str | None:
    """The storage URI of the revision that was last rolled out; None when there is none, or nobody knows it.

    During a release the spec holds the canary's template, and after some the template of one that was rolled back; the
    lease then remembers the stable one's.
    """
    from model_release.serving.inference_service import InferenceServices
    from model_release.serving.lease import Leases

    service, client = spec.service, connections.cluster()
    live = InferenceServices(client).get(service.namespace, service.name)
    if live is None or live.rolled_out is None:
        return None
    if live.latest_created == live.rolled_out:
        return live.storage_uri
    lease = Leases(client).read(service.namespace, service.name)
    known = lease.known if lease else None
    if known is None or (known.uid, known.revision) != (live.uid, live.rolled_out):
        return None
    return known.storage_uri


def _line_by_line(info: Any) -> Any:
    """A callable for text that may hold percent signs."""
    return lambda text: info("%s", text)
