"""One release at a time for each InferenceService: a `coordination.k8s.io/v1` Lease that the releasing run holds.

`max_active_runs` does not hold across backfills, DAGs and installations; the cluster itself does. The Lease also
carries what whoever comes after a crash must know: the baseline, the canary, the stage. It is not an annotation on
the InferenceService because each of those makes a new revision (docs/facts.md#what-makes-a-new-revision).

A lease never expires by the clock: its holder may be a run that waits for a person. It is taken over only from a
run that the caller has looked up and found over, and what that run left behind goes along (`Claim.inherited`)
until it was settled. A released Lease object stays, with its last baseline, and is held by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from model_release.cluster.manifest import MANAGED_BY
from model_release.cluster.objects import Kind, Objects, WriteConflict, retrying
from model_release.cluster.rollout import Baseline
from model_release.cluster.settle import Release
from model_release.errors import ClusterRefused, RolledBack, ServiceBusy

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

T = TypeVar("T")

KIND = Kind("coordination.k8s.io", "v1", "leases", "the Lease API")
CLAIM = "model-release/claim"
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
class Owner:
    """The run that holds a lease. `installation` tells apart two Airflows that release into one cluster."""

    dag_id: str
    run_id: str
    url: str
    installation: str

    @property
    def identity(self) -> str:
        return f"{self.installation}/{self.dag_id}/{self.run_id}"


@dataclass(frozen=True)
class Order:
    """What a named person decided about the release under way, over the judge's head.

    `revision` is the canary that was meant: the order holds for no other. None: there was none yet, and none may come.
    """

    kind: Literal["promote", "roll_back"]
    who: str
    why: str
    when: str
    revision: str | None

    def __str__(self) -> str:
        done = "Promoted in spite of the judge" if self.kind == "promote" else "Rolled back"
        return f"{done} by {self.who}: {self.why}"


@dataclass(frozen=True)
class Watched:
    """A stretch of time in which the canary is looked at by one policy, at one share of the traffic.

    `percent` None: promoted, in its bake. `opened_at` None: the share was asked for, and the gateway does not have it
    yet. `until` None: it goes on. `beside_question`: a person is asked meanwhile, and these windows may stop the canary
    and never promote it, for `why`. `again`: the number of this further stretch at the same share.
    """

    percent: int | None
    opened_at: str | None = None
    until: str | None = None
    beside_question: bool = False
    again: int = 0
    why: str = ""


@dataclass(frozen=True)
class Claim:
    """What a release has recorded of itself. Everything but the owner is filled in as the release goes on."""

    owner: Owner
    release: str = ""
    stage: str = "claimed"
    baseline: Baseline | None = None
    canary: str | None = None
    percent: int | None = None
    opened_at: str | None = None
    promoted: bool = False
    barred: tuple[str, ...] = ()
    order: Order | None = None
    template: str | None = None  # InferenceService.template_digest of what was staged
    created: str | None = None  # the uid of the InferenceService that this release made
    inherited: Claim | None = None  # of a run that is over and whose release is not settled yet
    spec: str | None = None  # the model file that the release began with, as JSON: an edit counts from the next one on
    watches: tuple[Watched, ...] = ()  # oldest first; all but the last are over
    proven: str | None = None  # the word on which all of the traffic was asked for
    closed: str | None = None  # why the canary's traffic was taken back, whoever did it

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Claim:
        """Read back what `as_dict` wrote; a field that is unknown here is of a newer version, and is an error."""
        fields = dict(given)
        fields["owner"] = Owner(**fields["owner"])
        fields["barred"] = tuple(fields.get("barred") or ())
        fields["watches"] = tuple(Watched(**one) for one in fields.get("watches") or ())
        if fields.get("order") is not None:
            fields["order"] = Order(**fields["order"])
        for name, kind in (("baseline", Baseline), ("inherited", Claim)):
            if fields.get(name) is not None:
                fields[name] = kind.from_dict(fields[name])
        return cls(**fields)

    def check_goes_on(self) -> None:
        """Nothing, when the release may go on. A change that was written before the word was seen is undone by
        `settle`: nothing may be built upon it.

        Raises:
            RolledBack: a person ordered it back, or its canary was closed, and why.
        """
        if self.went_back is not None:
            raise RolledBack(self.went_back)

    @property
    def went_back(self) -> str | None:
        """Why the release goes back, or has; None while it goes on."""
        ordered = self.order is not None and self.order.kind == "roll_back"
        return self.closed or (str(self.order) if ordered else None)

    @property
    def left(self) -> Claim:
        """What is to be settled when this one's run is over: its own release or, when it touched nothing yet, the one
        that it had taken over, with what was barred since."""
        if self.baseline is not None or self.inherited is None:
            return replace(self, inherited=None)
        return replace(self.inherited, barred=tuple(dict.fromkeys((*self.inherited.barred, *self.barred))))

    def as_release(self, namespace: str, service: str) -> Release | None:
        """What `settle` needs; None when no baseline was recorded, and so nothing was touched."""
        if self.baseline is None:
            return None
        return Release(namespace, service, self.baseline, self.canary, self.promoted, self.barred, self.created)


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
    def claim(self) -> Claim | None:
        """What the holder recorded; None when nobody holds it, or somebody who is no release of ours.

        Raises:
            ClusterRefused: the record cannot be read.
        """
        return self.last if self.holder else None

    @property
    def last(self) -> Claim | None:
        """What the last holder recorded, whether it still holds it or not. Raises as `claim`."""
        return self._read(CLAIM, Claim.from_dict)

    @property
    def known(self) -> Baseline | None:
        """The last baseline recorded here with its template, by whatever release; for `rollout.baseline_of`."""
        return self._read(KNOWN, Baseline.from_dict)

    def _read(self, key: str, read: Callable[[Mapping[str, Any]], T]) -> T | None:
        text = self._annotations.get(key)
        if text is None:
            return None
        try:
            return read(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ClusterRefused(
                f"Lease {self.namespace}/{self.raw['metadata']['name']}: annotation {key} cannot be read ({error}); "
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

    def write(self, lease: Lease, claim: Claim) -> Claim:
        """Records the claim in the lease as it was read, by a hand that is not its holder's.

        Raises:
            WriteConflict: somebody has written it since.
        """
        return Lease(self._objects.patch(lease.raw, _body(claim))).claim or claim

    def acquire(
        self, namespace: str, service: str, owner: Owner, release: str = "", *, over: Owner | None = None
    ) -> Lease | Held:
        """Take the service for `owner`, or say who has it.

        Again by the same owner: the lease with all that was recorded in it. A frozen service is refused to
        everybody but the owner that already holds it.

        Args:
            over: evidence that this owner's run is over, looked up by the caller. If it is the holder, the lease
                passes on, and what it recorded is `claim.inherited` until it is cleared.
        """

        def attempt() -> Lease | Held:
            live = self.read(namespace, service)
            if live is None:
                body = _body(Claim(owner, release))
                body["spec"]["acquireTime"] = body["spec"]["renewTime"]
                return Lease(self._objects.create(namespace, _new(namespace, service, body)))
            if live.holder == owner.identity:
                return Lease(self._objects.patch(live.raw, {"spec": {"renewTime": _now()}}))
            claim = live.claim
            by, stage = (claim.owner, claim.stage) if claim else (None, "")
            if live.frozen is not None:
                return Held(f"{namespace}/{service}", by, stage, live.since, live.frozen)
            if live.holder and (over is None or over.identity != live.holder):
                return Held(f"{namespace}/{service}", by, stage, live.since)
            # A run that died before it recorded a baseline touched nothing, but may itself have inherited.
            left = claim.left if claim is not None else None
            body = _body(Claim(owner, release, inherited=left if left is not None and left.baseline else None))
            transitions = int((live.raw.get("spec") or {}).get("leaseTransitions") or 0) + 1
            body["spec"] |= {"acquireTime": body["spec"]["renewTime"], "leaseTransitions": transitions}
            return Lease(self._objects.patch(live.raw, body))

        return retrying(attempt)

    def update(self, namespace: str, service: str, owner: Owner, change: Callable[[Claim], Claim]) -> Lease:
        """Record something in the claim. `change` may be called more than once and must only compute.

        Raises:
            ServiceBusy: `owner` does not hold the lease (any more).
        """

        def attempt() -> Lease:
            live, claim = self._held(namespace, service, owner)
            changed = change(claim)
            if changed == claim:
                return live
            return Lease(self._objects.patch(live.raw, _body(changed)))

        return retrying(attempt)

    def _held(self, namespace: str, service: str, owner: Owner) -> tuple[Lease, Claim]:
        live = self.read(namespace, service)
        claim = live.claim if live is not None and live.holder == owner.identity else None
        if live is None or claim is None:
            holder = (live.holder if live is not None else None) or "nobody"
            raise ServiceBusy(f"the lease of {namespace}/{service} is held by {holder}, not by {owner.identity}")
        return live, claim

    def renew(self, namespace: str, service: str, owner: Owner, by: str) -> Lease:
        """`owner`'s release is looked at, by the hand `by`: Kubernetes' own heartbeat. Again: the later moment stands.

        Raises:
            ServiceBusy: `owner` does not hold the lease (any more).
        """

        def attempt() -> Lease:
            live, _ = self._held(namespace, service, owner)
            beat = {"renewTime": _now(), "leaseDurationSeconds": LEASE_SECONDS}
            return Lease(self._objects.patch(live.raw, {"metadata": {"annotations": {LOOKED_BY: by}}, "spec": beat}))

        return retrying(attempt, WriteConflict)

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
        """The `remember` of `settle`: adds a revision to the claim's `barred`."""

        def remember(revision: str) -> None:
            self.update(namespace, service, owner, lambda claim: replace(claim, barred=_with(claim.barred, revision)))

        return remember

    def release(self, namespace: str, service: str, owner: Owner) -> bool:
        """Give the service free, if `owner` holds it; False when it does not (any more). Again: False."""

        def attempt() -> bool:
            live = self.read(namespace, service)
            if live is None or live.holder != owner.identity:
                return False
            self._objects.patch(live.raw, {"spec": {"holderIdentity": None, "renewTime": _now()}})
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


def _body(claim: Claim) -> dict[str, Any]:
    annotations = {CLAIM: json.dumps(claim.as_dict(), sort_keys=True)}
    if claim.baseline is not None and claim.baseline.template is not None:
        annotations[KNOWN] = json.dumps(claim.baseline.as_dict(), sort_keys=True)
    beat = {"renewTime": _now(), "leaseDurationSeconds": LEASE_SECONDS}
    return {
        "metadata": {"annotations": {**annotations, LOOKED_BY: None}},
        "spec": {"holderIdentity": claim.owner.identity, **beat},
    }


def _with(revisions: tuple[str, ...], revision: str) -> tuple[str, ...]:
    return revisions if revision in revisions else (*revisions, revision)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
