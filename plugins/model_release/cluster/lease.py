"""One release at a time for each InferenceService: a `coordination.k8s.io/v1` Lease that the releasing run holds.

`max_active_runs` does not hold across backfills, DAGs and installations; the cluster itself does. The Lease also
carries the release itself (`cluster.release`): what whoever comes after a crash must know. It is not an annotation on
the InferenceService because each of those makes a new revision (docs/facts.md#what-makes-a-new-revision).

A lease never expires by the clock: its holder may be a run that waits for a person. It is taken over only from a
run that the caller has looked up and found over, and what that run left behind goes along (`Release.inherited`)
until it was settled. A Lease that was given free stays, with its last release, and is held by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from model_release.cluster.change import Baseline
from model_release.cluster.manifest import MANAGED_BY
from model_release.cluster.objects import Kind
from model_release.cluster.release import Owner, Release
from model_release.errors import ClusterRefused

T = TypeVar("T")

KIND = Kind("coordination.k8s.io", "v1", "leases", "the Lease API")
RELEASE = "model-release/claim"  # as the first edition called it
KNOWN = "model-release/known-baseline"
FROZEN = "model-release/frozen"
LOOKED_BY = "model-release/looked-by"
# Seconds after which a lease that nobody renews says that nobody looks: the guard then closes an open canary.
LEASE_SECONDS = 60
# The guard's own lease in a namespace that it looks at: no service can have a name with a dot. Its beat is some seconds
# long.
GUARD = "model-release.guard"
GUARD_SECONDS = 30


@dataclass(frozen=True)
class Lease:
    """One Lease as read."""

    raw: dict[str, Any]

    @property
    def namespace(self) -> str:
        return str(self.raw["metadata"]["namespace"])

    @property
    def service(self) -> str:
        return str(self.raw["metadata"]["name"]).removeprefix("model-release-")

    @property
    def uid(self) -> str:
        """Its own in the whole world: a service of the same name in another cluster has another Lease."""
        return str(self.raw["metadata"]["uid"])

    @property
    def holder(self) -> str | None:
        """`Owner.identity` of who holds it."""
        return (self.raw.get("spec") or {}).get("holderIdentity") or None

    @property
    def release(self) -> Release | None:
        """What the holder recorded; None when nobody holds it, or somebody who is no release of ours.

        Raises:
            ClusterRefused: the record cannot be read, and why.
        """
        return self.last if self.holder else None

    @property
    def last(self) -> Release | None:
        """The last release that was recorded here, also when it is over. Errors: see `release`."""
        return self._read(RELEASE, lambda given: Release.from_dict(given, self.namespace, self.service))

    @property
    def known(self) -> Baseline | None:
        """The last baseline recorded here with its template, by whatever release; for `rollout.baseline_of`."""
        return self._read(KNOWN, Baseline.from_dict)

    def _read(self, key: str, read: Callable[[Any], T]) -> T | None:
        text = self._annotations.get(key)
        if text is None:
            return None
        try:
            return read(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            why = f"it is no whole JSON ({error})" if isinstance(error, json.JSONDecodeError) else str(error)
            raise ClusterRefused(
                f"Lease {self.namespace}/{self.raw['metadata']['name']}: annotation {key} cannot be read: {why}; "
                "see that the service's traffic is where it should be, then delete the Lease"
            ) from error

    @property
    def since(self) -> str:
        return str((self.raw.get("spec") or {}).get("acquireTime") or "")

    @property
    def renewed(self) -> str:
        return str((self.raw.get("spec") or {}).get("renewTime") or "")

    @property
    def duration(self) -> float:
        """Seconds after which it says, unrenewed, that nobody looks. A lease of an older edition has no word of it."""
        return float((self.raw.get("spec") or {}).get("leaseDurationSeconds") or LEASE_SECONDS)

    @property
    def looked_by(self) -> str | None:
        """The hand that renewed it last; None where that was a task that recorded something."""
        return self._annotations.get(LOOKED_BY)

    @property
    def frozen(self) -> str | None:
        """Why no release may begin; None when one may."""
        return self._annotations.get(FROZEN)

    @property
    def _annotations(self) -> dict[str, str]:
        return dict(self.raw["metadata"].get("annotations") or {})


@dataclass(frozen=True)
class Held:
    """The answer to whoever has to wait in line."""

    service: str  # namespace/name
    by: Owner | None  # None: held by nobody, but frozen
    stage: str = ""
    since: str = ""
    frozen: str | None = None

    def __str__(self) -> str:
        if self.frozen is not None:
            return f"{self.service} is frozen: {self.frozen}"
        if self.by is None:
            return f"{self.service} is held by somebody unknown since {self.since}"
        return (
            f"{self.service} is being released by {self.by.dag_id} {self.by.run_id} "
            f"({self.stage}, since {self.since}): {self.by.url}"
        )


def lease_name(service: str) -> str:
    """The name of a service's Lease."""
    return f"model-release-{service}"


def new_lease(namespace: str, service: str, body: dict[str, Any]) -> dict[str, Any]:
    """A Lease that is to be created."""
    annotations = body.get("metadata", {}).get("annotations", {})
    metadata = {
        "annotations": {key: value for key, value in annotations.items() if value is not None},
        "name": lease_name(service),
        "namespace": namespace,
        "labels": dict([MANAGED_BY]),
    }
    return {
        "apiVersion": f"{KIND.group}/{KIND.version}",
        "kind": "Lease",
        "metadata": metadata,
        "spec": body.get("spec", {}),
    }


def lease_body(release: Release) -> dict[str, Any]:
    """What is written of a release, whoever holds it; and that it was looked at now."""
    annotations: dict[str, Any] = {RELEASE: json.dumps(release.as_dict(), sort_keys=True)}
    if release.baseline is not None and release.baseline.template is not None:
        annotations[KNOWN] = json.dumps(release.baseline.as_dict(), sort_keys=True)
    beat = {"renewTime": moment(), "leaseDurationSeconds": LEASE_SECONDS}
    return {
        "metadata": {"annotations": {**annotations, LOOKED_BY: None}},
        "spec": {"holderIdentity": release.owner.identity, **beat},
    }


def moment() -> str:
    """This moment as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
