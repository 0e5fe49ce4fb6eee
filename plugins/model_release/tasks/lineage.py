"""What a release makes of what, for OpenLineage: nothing unless its provider is installed in Airflow and sends.

The provider asks a task when it has ended (`ReleaseOperator.get_openlineage_facets_on_complete`); the task noted what
it did while it ran. Datasets are named as OpenLineage's naming has them: a bucket's address and a path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from model_release.errors import SpecError
from model_release.spec import ModelSpec
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

#: The key of this project's own facets.
FACET = "modelRelease"


@dataclass(frozen=True)
class Data:
    """A dataset: a checkpoint, a version, or an InferenceService. `about` is this project's facet of it."""

    namespace: str
    name: str
    version: str | None = None
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lineage:
    """What one task made of what. `about` is this project's facet of the run."""

    inputs: tuple[Data, ...] = ()
    outputs: tuple[Data, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)


def published(spec: ModelSpec, run: Run, version: str, uri: str, source: dict[str, Any], metadata: Any) -> Lineage:
    """Of `publish`: the checkpoint that the version was built of, and the version."""
    built = {
        key: metadata.get(key) for key in ("fingerprint", "runtime", "evaluation") if metadata.get(key) is not None
    }
    inputs = (_checkpoint(source),) if source.get("origin") else ()
    return Lineage(inputs, (_version(uri, version, built),), _run(spec, run, version))


def live(spec: ModelSpec, run: Run, version: str | None, uri: str, how: str, verdict: str | None) -> Lineage:
    """Of a task that changes what users get: the version, and the InferenceService that serves it now."""
    service = Data("kserve", spec.service.key, version, {"how": how, "uri": uri})
    about = _run(spec, run, version) | ({"verdict": verdict} if verdict else {})
    return Lineage((_version(uri, version, {}),), (service,), about)


def ended(spec: ModelSpec, run: Run, version: str | None, outcome: str, sentence: str) -> Lineage:
    """Of `report`: how it ended, and where its record is."""
    return Lineage(about=_run(spec, run, version) | {"outcome": outcome, "verdict": sentence})


def as_openlineage(told: Lineage | None) -> OperatorLineage | None:
    """As the provider takes it. Only called where that is installed."""
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import DatasetFacet, RunFacet, dataset_version_dataset

    if told is None:
        return None

    def facets(data: Data) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if data.version:
            found["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(data.version)
        if data.about:
            found[FACET] = DatasetFacet().with_additional_properties(**data.about)
        return found

    return OperatorLineage(
        inputs=[InputDataset(one.namespace, one.name, facets=facets(one)) for one in told.inputs],
        outputs=[OutputDataset(one.namespace, one.name, facets=facets(one)) for one in told.outputs],
        run_facets={FACET: RunFacet().with_additional_properties(**told.about)},
    )


def _run(spec: ModelSpec, run: Run, version: str | None) -> dict[str, Any]:
    record = f"{spec.store}releases/{run.release}.json"
    return {"model": spec.model, "version": version, "release": run.release, "record": record, "page": run.page}


def _checkpoint(source: dict[str, Any]) -> Data:
    origin = str(source["origin"])
    about = {key: source[key] for key in ("candidate", "commit", "time", "architecture") if source.get(key)}
    version = source.get("commit") or source.get("candidate")
    if origin.startswith("directory:"):
        return Data("file", origin.removeprefix("directory:"), version, about)
    if origin.startswith("models:/"):
        return Data("mlflow", origin.removeprefix("models:/").rpartition("/")[0], origin.rpartition("/")[2], about)
    if origin.endswith(f"@{source.get('commit')}"):  # a repository of the hub
        hub = urlsplit(origin.removesuffix(f"@{source['commit']}"))
        return Data(f"{hub.scheme}://{hub.netloc}", hub.path.strip("/"), version, about)
    return Data(*_place(origin), version, about)


def _version(uri: str, version: str | None, about: dict[str, Any]) -> Data:
    return Data(*_place(uri), version, about)


def _place(uri: str) -> tuple[str, str]:
    """(namespace, name) of a prefix of a store; of anything else its own words."""
    from model_release.store.objects import address

    try:
        where = address(uri)
    except SpecError:
        return "model-release", uri
    return where.place, where.prefix.rstrip("/")
