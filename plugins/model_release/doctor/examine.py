"""All checks of one model, one after the other; a part that cannot be reached spoils only what it is needed for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from model_release.errors import ReleaseError
from model_release.spec import ModelSpec

from . import airflow, clocks, cluster, metrics, registry, samples, store
from .finding import Finding, Level

if TYPE_CHECKING:
    from model_release.build.registry import Registry
    from model_release.cluster.inference_service import InferenceService
    from model_release.metrics.prometheus import Prometheus
    from model_release.store.store import Store


T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The clients of one model's release. Each is asked for when a check needs it; what it raises becomes a finding.

    `role` is the file that says what the release calls in the cluster; `address` is Airflow's, None where the one who
    looks is not an Airflow; `samples` counts a shadow's pictures.
    """

    spec: ModelSpec
    role: Path
    cluster: Callable[[], Any]
    store: Callable[[], Store]
    prometheus: Callable[[], Prometheus]
    address: str | None = None
    mlflow: Callable[[], Registry] | None = None
    samples: Callable[[], int] | None = None


def examine(world: World) -> Iterator[Finding]:
    """The findings in the order in which one would mend them."""
    spec = world.spec
    client, trouble = _reached("cluster", world.cluster)
    yield from trouble
    live: InferenceService | None = None
    seen = False
    if client is not None and world.address is not None:
        yield from airflow.check(world.address, client)
    if client is not None:
        yield from _told("cluster", lambda: cluster.versions(client, spec))
        yield from _told("permissions", lambda: cluster.permissions(client, spec, world.role))
        yield from _told("guard", lambda: cluster.guard(client, spec))
        yield from _told("runtime", lambda: cluster.runtime(client, spec))
        try:
            live, findings = cluster.service(client, spec)
            seen = True
            yield from findings
        except ReleaseError as refused:
            yield _finding("service", refused)
    there, trouble = _reached("store", world.store)
    yield from trouble
    if there is not None:
        yield from _told("store", lambda: store.check(there))
    if spec.rollout.shadow is not None and world.samples is not None:
        yield from samples.check(world.samples, spec.rollout.shadow, needed=live is not None or not seen)
    prometheus, trouble = _reached("metrics", world.prometheus)
    yield from trouble
    if prometheus is not None:
        yield from _told("metrics", lambda: metrics.check(prometheus, spec, live, seen))
    if spec.source.mlflow and world.mlflow is not None:
        yield from registry.check(world.mlflow, spec)
    yield from clocks.check(client, there, prometheus)


def _reached(check: str, make: Callable[[], T]) -> tuple[T | None, list[Finding]]:
    """The client, or why there is none. Connections fail in as many ways as there are providers."""
    try:
        return make(), []
    except Exception as trouble:
        return None, [_finding(check, trouble)]


def _told(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except ReleaseError as trouble:
        yield _finding(check, trouble)


def _finding(check: str, trouble: Exception) -> Finding:
    fixed_by = getattr(trouble, "fixed_by", "whoever set the connection up")
    said = f"{type(trouble).__name__}: {' '.join(str(trouble).split())}"
    passing = bool(getattr(trouble, "transient", False))
    return Finding(check, Level.ERROR, said, f"can be fixed by {fixed_by}", passing)
