"""The Airflow assets of this project: what starts a release, and what other DAGs can follow (docs/assets.md).

The URIs are the project's own: two models may share a source, and Airflow wants one asset for each URI.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import Asset, AssetAlias, AssetWatcher

from model_release.spec import ModelSpec


def candidate_asset(spec: ModelSpec, project: Path | None = None) -> Asset:
    """The model's candidates. An event of a training has in its `extra`: `candidate` (the folder's name), `origin`
    (where it lies), `digest` (SHA-256, as `build.source` computes a checkpoint's fingerprint), `metrics` (a number by
    name) and `duration` (seconds of training). Where the model file has `source.watch`, the source is looked at, and an
    event of that has `payload`: what `watching.CandidateTrigger` saw. Every DAG that names the asset has to have the
    same watcher, or Airflow takes it away (docs/facts.md#watchers-are-of-the-last-dag); `project` is the folder that
    holds dags/ and include/, None where the asset is only a key.
    """
    watchers = []
    if project is not None and spec.source.watch is not None:
        from model_release.tasks.watching import CandidateTrigger

        watchers.append(AssetWatcher(f"watch_{spec.model}", CandidateTrigger.of(spec, project)))
    return Asset(
        name=f"candidate_{spec.model}",
        uri=f"x-model-release://candidates/{spec.model}",
        group="model-release",
        extra={"source": str(spec.source)},
        watchers=watchers,
    )


def version_asset(spec: ModelSpec) -> Asset:
    """The model's versions in the store: an event by each `publish`, also where the version was there already. Its
    `extra`: `version`, `uri` (where it lies), `origin` (what it was built of), `release` (the page)."""
    return Asset(
        name=f"version_{spec.model}",
        uri=f"x-model-release://versions/{spec.model}",
        group="model-release",
        extra={"store": spec.store},
    )


def live_asset(spec: ModelSpec) -> Asset:
    """What users get: an event when a version was promoted or went live otherwise, and when a promotion was taken back
    by its release. Its `extra`: `version`, `uri`, `service`, `how` (the task's id), `release` (the page)."""
    return Asset(
        name=f"live_{spec.model}",
        uri=f"x-model-release://live/{spec.model}",
        group="model-release",
        extra={"service": spec.service.key},
    )


def back_live(spec: ModelSpec) -> AssetAlias:
    """For the one task that changes what users get only sometimes: `roll_back`, of what was promoted."""
    return AssetAlias(name=f"back_live_{spec.model}", group="model-release")


def emit(context: Any, asset: Asset, extra: dict[str, Any], by: AssetAlias | None = None) -> None:
    """The event that Airflow stores when the task has succeeded; through an alias where not each success is one."""
    events = context["outlet_events"]
    if by is None:
        events[asset].extra = extra
    else:
        events[by].add(asset, extra=extra)
