"""One release at a time for each InferenceService: a `coordination.k8s.io/v1` Lease that the releasing run holds.

`max_active_runs` does not hold across backfills, DAGs and installations; the cluster itself does. The Lease also
carries the release itself (`cluster.release`): what whoever comes after a crash must know. It is not an annotation on
the InferenceService because each of those makes a new revision (facts/kserve.md 3.2).

A lease never expires by the clock: its holder may be a run that waits for a person. It is taken over only from a
run that the caller has looked up and found over, and what that run left behind goes along (`Release.inherited`)
until it was settled. A Lease that was given free stays, with its last release, and is held by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from model_release.cluster.change import Baseline
from model_release.cluster.manifest import MANAGED_BY
from model_release.cluster.objects import Kind, Objects, retrying
from model_release.cluster.release import Owner, Release
from model_release.errors import ClusterRefused, ServiceBusy

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

T = TypeVar("T")

KIND = Kind("coordination.k8s.io", "v1", "leases", "the Lease API")
RELEASE = "model-release/claim"  # as the first edition called it
KNOWN = "model-release/known-baseline"
FROZEN = "model-release/frozen"
LOOKED_BY = "model-release/looked-by"
# Seconds after which a lease that nobody renews says that nobody looks: the guard then closes an open canary.
LEASE_SECONDS = 60
# The guard's own lease in a namespace that it looks at; not named as a service's is. Its beat is some seconds long.
GUARD = "release-guard"
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


class Leases:
    """The leases of a cluster.

    Args:
        api_client: from the provider's `KubernetesHook`; may be shared by threads.
    """

    def __init__(self, api_client: ApiClient) -> None:
        self._objects = Objects(api_client, KIND)

    def read(self, namespace: str, service: str) -> Lease | None:
        """The lease as it is now; None when the service was never claimed."""
        found = self._objects.get(namespace, _name(service))
        return None if found is None else Lease(found)

    def all(self, namespaces: Collection[str]) -> list[Lease]:
        """Every lease that a release ever took, in all namespaces that may be listed: the whole cluster's or, where the
        API refuses that, those of `namespaces`. What is left of a service outlives its model file."""
        try:
            return self.within(None)
        except ClusterRefused:
            return [one for each in sorted(namespaces) for one in self.within(each)]

    def within(self, namespace: str | None) -> list[Lease]:
        """Every lease that a release ever took in the namespace; None: in the whole cluster."""
        label, value = MANAGED_BY
        found = self._objects.list(namespace, f"{label}={value}")
        return [Lease(one) for one in found if one["metadata"]["name"].startswith(_name(""))]

    def write(self, lease: Lease, release: Release) -> Release:
        """Records the release in the lease as it was read, by a hand that is not its holder's.

        Raises:
            WriteConflict: somebody has written it since.
        """
        return Lease(self._objects.patch(lease.raw, _body(release))).release or release

    def acquire(
        self, namespace: str, service: str, owner: Owner, record: str = "", *, over: Owner | None = None
    ) -> Lease | Held:
        """Take the service for `owner`, or say who has it.

        Again by the same owner: the lease with all that was recorded in it. A frozen service is refused to
        everybody but the owner that already holds it.

        Args:
            over: evidence that this owner's run is over, looked up by the caller. If it is the holder, the lease
                passes on, and what it recorded is `Release.inherited` until it is cleared.
        """

        def attempt() -> Lease | Held:
            live = self.read(namespace, service)
            if live is None:
                body = _body(Release(owner, record))
                body["spec"]["acquireTime"] = body["spec"]["renewTime"]
                return Lease(self._objects.create(namespace, _new(namespace, service, body)))
            if live.holder == owner.identity:
                return Lease(self._objects.patch(live.raw, {"spec": {"renewTime": _now()}}))
            there = live.release
            by, stage = (there.owner, there.stage) if there else (None, "")
            if live.frozen is not None:
                return Held(f"{namespace}/{service}", by, stage, live.since, live.frozen)
            if live.holder and (over is None or over.identity != live.holder):
                return Held(f"{namespace}/{service}", by, stage, live.since)
            # A run that died before it recorded a baseline touched nothing, but may itself have inherited.
            left = there.left if there is not None else None
            body = _body(Release(owner, record, inherited=left if left is not None and left.baseline else None))
            transitions = int((live.raw.get("spec") or {}).get("leaseTransitions") or 0) + 1
            body["spec"] |= {"acquireTime": body["spec"]["renewTime"], "leaseTransitions": transitions}
            return Lease(self._objects.patch(live.raw, body))

        return retrying(attempt)

    def update(self, namespace: str, service: str, owner: Owner, change: Callable[[Release], Release]) -> Lease:
        """Record something of the release. `change` may be called more than once and must only compute.

        Raises:
            ServiceBusy: `owner` does not hold the lease (any more).
        """

        def attempt() -> Lease:
            live, release = self._held(namespace, service, owner)
            changed = change(release)
            if changed == release:
                return live
            return Lease(self._objects.patch(live.raw, _body(changed)))

        return retrying(attempt)

    def _held(self, namespace: str, service: str, owner: Owner) -> tuple[Lease, Release]:
        live = self.read(namespace, service)
        release = live.release if live is not None and live.holder == owner.identity else None
        if live is None or release is None:
            holder = (live.holder if live is not None else None) or "nobody"
            raise ServiceBusy(f"the lease of {namespace}/{service} is held by {holder}, not by {owner.identity}")
        return live, release

    def renew(self, namespace: str, service: str, owner: Owner, by: str) -> Lease:
        """`owner`'s release is looked at, by the hand `by`: Kubernetes' own heartbeat. Again: the later moment stands.

        Raises:
            ServiceBusy: `owner` does not hold the lease (any more).
        """

        def attempt() -> Lease:
            live, _ = self._held(namespace, service, owner)
            beat = {"renewTime": _now(), "leaseDurationSeconds": LEASE_SECONDS}
            return Lease(self._objects.patch(live.raw, {"metadata": {"annotations": {LOOKED_BY: by}}, "spec": beat}))

        return retrying(attempt)

    def guard(self, namespace: str) -> Lease | None:
        """The guard's own lease in the namespace; None when none ever ran."""
        found = self._objects.get(namespace, GUARD)
        return None if found is None else Lease(found)

    def beat(self, namespace: str) -> None:
        """The guard says that it runs. Two guards write the same lease."""

        def attempt() -> None:
            spec = {"renewTime": _now(), "leaseDurationSeconds": GUARD_SECONDS, "holderIdentity": "guard"}
            live = self._objects.get(namespace, GUARD)
            if live is not None:
                self._objects.patch(live, {"spec": spec})
                return
            api = {"apiVersion": f"{KIND.group}/{KIND.version}", "kind": "Lease"}
            self._objects.create(
                namespace,
                {
                    **api,
                    "metadata": {"name": GUARD, "namespace": namespace, "labels": dict([MANAGED_BY])},
                    "spec": spec,
                },
            )

        retrying(attempt)

    def bar(self, namespace: str, service: str, owner: Owner) -> Callable[[str], None]:
        """The `remember` of `settle`: adds a revision to the release's `barred`."""

        def remember(revision: str) -> None:
            self.update(namespace, service, owner, lambda now: replace(now, barred=_with(now.barred, revision)))

        return remember

    def give_free(
        self, namespace: str, service: str, owner: Owner, change: Callable[[Release], Release] = lambda ended: ended
    ) -> bool:
        """The service is free, if `owner` holds it, and what is recorded of its release last; False when it does not
        (any more). Again: False."""

        def attempt() -> bool:
            live = self.read(namespace, service)
            if live is None or live.holder != owner.identity:
                return False
            release = live.release
            body: dict[str, Any] = _body(change(release)) if release is not None else {"spec": {"renewTime": _now()}}
            body["spec"] |= {"holderIdentity": None}
            self._objects.patch(live.raw, body)
            return True

        return retrying(attempt)

    def freeze(self, namespace: str, service: str, reason: str | None) -> Lease:
        """No release may begin until lifted, for `reason`; None lifts it. A release under way goes on."""

        def attempt() -> Lease:
            live = self.read(namespace, service)
            if live is None:
                live = Lease(self._objects.create(namespace, _new(namespace, service, {})))
            return Lease(self._objects.patch(live.raw, {"metadata": {"annotations": {FROZEN: reason}}}))

        return retrying(attempt)


def _name(service: str) -> str:
    return f"model-release-{service}"


def _new(namespace: str, service: str, body: dict[str, Any]) -> dict[str, Any]:
    annotations = body.get("metadata", {}).get("annotations", {})
    metadata = {
        "annotations": {key: value for key, value in annotations.items() if value is not None},
        "name": _name(service),
        "namespace": namespace,
        "labels": dict([MANAGED_BY]),
    }
    return {
        "apiVersion": f"{KIND.group}/{KIND.version}",
        "kind": "Lease",
        "metadata": metadata,
        "spec": body.get("spec", {}),
    }


def _body(release: Release) -> dict[str, Any]:
    annotations: dict[str, Any] = {RELEASE: json.dumps(release.as_dict(), sort_keys=True)}
    if release.baseline is not None and release.baseline.template is not None:
        annotations[KNOWN] = json.dumps(release.baseline.as_dict(), sort_keys=True)
    beat = {"renewTime": _now(), "leaseDurationSeconds": LEASE_SECONDS}
    return {
        "metadata": {"annotations": {**annotations, LOOKED_BY: None}},
        "spec": {"holderIdentity": release.owner.identity, **beat},
    }


def _with(revisions: tuple[str, ...], revision: str) -> tuple[str, ...]:
    return revisions if revision in revisions else (*revisions, revision)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
