"""Evaluation before traffic: the version that this run releases answers labelled images, and so does the stable one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_release.errors import ClusterRefused, ClusterUnavailable, SpecError
from model_release.spec import Evaluation, ModelSpec
from model_release.tasks import connections, records
from model_release.tasks.build import BuildOperator
from model_release.tasks.proof import version_in
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from model_release.build import steps

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
        from model_release.build import steps

        limits = limits_of(self.spec, run)
        asked = request(self.spec, run, self.resolved(context), limits, *stable_uri(self.spec, run, limits))
        store, say = connections.builds(self.spec), _line_by_line(self.log.info)
        return concluded(self.spec, run, steps.run(store, asked, self.root, connections.reach, say))


def request(
    spec: ModelSpec, run: Run, resolved: dict[str, Any], limits: Evaluation, stable: str | None, no_stable: str | None
) -> steps.Request:
    """What this run asks the step for, wherever it is done."""
    from model_release.build import steps

    version = resolved.get("version")
    return steps.Request(
        "evaluate",
        version or resolved["build"],
        spec.service.name,
        resolved.get("fingerprint", ""),
        precision=spec.build.precision,
        runtime=spec.runtime,
        version=version,
        evaluation=limits.model_dump(mode="json", exclude_none=True),
        stable=stable,
        no_stable=no_stable,
        picture=PICTURE.format(release=run.release),
        release=run.release,
    )


def concluded(spec: ModelSpec, run: Run, found: dict[str, Any]) -> dict[str, Any]:
    """Records what came of the step, and fails where a gate did; returns the summary."""
    from model_release.build import evaluate as evaluation

    records.change(spec, run, lambda record: setattr(record, "evaluation", found))
    evaluation.check(found)
    return evaluation.summary(found)


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
    if version_in(uri) is None:
        return None, f"{uri}, which {spec.service.key} serves, is no version of this project"
    return uri, None


def serving(spec: ModelSpec) -> str | None:
    """The storage URI of what is stable; None when nothing is, or nobody knows it."""
    from model_release.cluster.leases import Leases
    from model_release.cluster.rollout import stable_template
    from model_release.cluster.services import InferenceServices

    service, client = spec.service, connections.cluster()
    live = InferenceServices(client).get(service.namespace, service.name)
    if live is None:
        return None
    lease = Leases(client).read(service.namespace, service.name)
    template = stable_template(live, lease.known if lease else None)
    uri = (template or {}).get("model", {}).get("storageUri")
    return None if uri is None else str(uri)


def _line_by_line(info: Any) -> Any:
    """A callable for text that may hold percent signs."""
    return lambda text: info("%s", text)
