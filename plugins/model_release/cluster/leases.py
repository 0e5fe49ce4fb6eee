"""The calls that read and write leases: one release at a time for each InferenceService (`cluster.lease`)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from model_release.cluster.lease import (
    FROZEN,
    GUARD,
    GUARD_SECONDS,
    KIND,
    LEASE_SECONDS,
    LOOKED_BY,
    Held,
    Lease,
    lease_body,
    lease_name,
    moment,
    new_lease,
)
from model_release.cluster.manifest import MANAGED_BY
from model_release.cluster.objects import CustomObjects, WriteConflict, retrying
from model_release.cluster.release import Owner, Release
from model_release.errors import ClusterRefused, ServiceBusy

if TYPE_CHECKING:
    from kubernetes.client import ApiClient


class Leases:
    """The leases of a cluster.

    Args:
        api_client: from the provider's `KubernetesHook`; may be shared by threads.
    """

    def __init__(self, api_client: ApiClient) -> None:
        self._objects = CustomObjects(api_client, KIND)

    def read(self, namespace: str, service: str) -> Lease | None:
        """The lease as it is now; None when the service was never claimed."""
        found = self._objects.get(namespace, lease_name(service))
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
        return [Lease(one) for one in found if one["metadata"]["name"].startswith(lease_name(""))]

    def write(self, lease: Lease, release: Release) -> Release:
        """Records the release in the lease as it was read, by a hand that is not its holder's.

        Raises:
            WriteConflict: somebody has written it since.
        """
        return Lease(self._objects.patch(lease.raw, lease_body(release))).release or release

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
                body = lease_body(Release(owner, record))
                body["spec"]["acquireTime"] = body["spec"]["renewTime"]
                return Lease(self._objects.create(namespace, new_lease(namespace, service, body)))
            if live.holder == owner.identity:
                return Lease(self._objects.patch(live.raw, {"spec": {"renewTime": moment()}}))
            there = live.release
            by, stage = (there.owner, there.stage) if there else (None, "")
            if live.frozen is not None:
                return Held(f"{namespace}/{service}", by, stage, live.since, live.frozen)
            if live.holder and (over is None or over.identity != live.holder):
                return Held(f"{namespace}/{service}", by, stage, live.since)
            # A run that died before it recorded a baseline touched nothing, but may itself have inherited.
            left = there.left if there is not None else None
            body = lease_body(Release(owner, record, inherited=left if left is not None and left.baseline else None))
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
            return Lease(self._objects.patch(live.raw, lease_body(changed)))

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
            beat = {"renewTime": moment(), "leaseDurationSeconds": LEASE_SECONDS}
            return Lease(self._objects.patch(live.raw, {"metadata": {"annotations": {LOOKED_BY: by}}, "spec": beat}))

        return retrying(attempt, WriteConflict)

    def guard(self, namespace: str) -> Lease | None:
        """The guard's own lease in the namespace; None when none ever ran."""
        found = self._objects.get(namespace, GUARD)
        return None if found is None else Lease(found)

    def beat(self, namespace: str) -> None:
        """The guard says that it runs. Two guards write the same lease."""

        def attempt() -> None:
            spec = {"renewTime": moment(), "leaseDurationSeconds": GUARD_SECONDS, "holderIdentity": "guard"}
            live = self._objects.get(namespace, GUARD)
            if live is not None:
                label, value = MANAGED_BY
                if (live["metadata"].get("labels") or {}).get(label) != value:
                    raise ClusterRefused(
                        f"Lease {namespace}/{GUARD} is somebody else's: it has no label {label}={value}"
                    )
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
            self.update(namespace, service, owner, lambda kept: replace(kept, barred=_with(kept.barred, revision)))

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
            body: dict[str, Any] = (
                lease_body(change(release)) if release is not None else {"spec": {"renewTime": moment()}}
            )
            body["spec"] |= {"holderIdentity": None}
            self._objects.patch(live.raw, body)
            return True

        return retrying(attempt)

    def freeze(self, namespace: str, service: str, reason: str | None) -> Lease:
        """No release may begin until lifted, for `reason`; None lifts it. A release under way goes on."""

        def attempt() -> Lease:
            live = self.read(namespace, service)
            if live is None:
                live = Lease(self._objects.create(namespace, new_lease(namespace, service, {})))
            return Lease(self._objects.patch(live.raw, {"metadata": {"annotations": {FROZEN: reason}}}))

        return retrying(attempt)


def _with(revisions: tuple[str, ...], revision: str) -> tuple[str, ...]:
    return revisions if revision in revisions else (*revisions, revision)
