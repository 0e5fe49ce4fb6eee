"""The InferenceService of a release, as the tasks of one run see it: cluster, lease, record, in one hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_release.errors import CanaryLost, ClusterUnavailable, ServiceBusy
from model_release.spec import ModelSpec
from model_release.tasks import connections, records
from model_release.tasks.proof import prover
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.lease import Claim, Owner
    from model_release.cluster.progress import Progress
    from model_release.cluster.rollout import Baseline, Canary
    from model_release.cluster.settle import Release
    from model_release.judging.record import Record


ANSWERED = "answered"  # the XCom key under which task smoke names the revision that answered


# A change of the split reaches the gateway in seconds; minutes mean that something is wrong.
ROUTE_SECONDS = 120.0


class ReleasedService:
    """Clients are made when it is: once for each task."""

    def __init__(self, spec: ModelSpec, run: Run) -> None:
        from model_release.cluster.inference_service import InferenceServices
        from model_release.cluster.lease import Leases

        client = connections.cluster()
        self.spec, self.run = spec, run
        self.namespace, self.name = spec.service.namespace, spec.service.name
        self.services, self.leases = InferenceServices(client), Leases(client)
        self.server = str(client.configuration.host)

    @property
    def owner(self) -> Owner:
        """This run, as the lease names its holder."""
        from model_release.cluster.lease import Owner

        return Owner(self.run.dag_id, self.run.run_id, self.run.url, self.run.installation)

    def live(self) -> InferenceService | None:
        """The service as it is now; None when there is none."""
        return self.services.get(self.namespace, self.name)

    def claim(self) -> Claim:
        """What this run has recorded in the lease that it holds.

        Raises:
            ServiceBusy: this run does not hold the lease (any more): `settle` gave it free, or it passed on.
            RolledBack: this release was ordered back, or its canary was closed: it goes no further.
        """
        claim = self.held()
        claim.check_goes_on()
        return claim

    def held(self) -> Claim:
        """`claim`, for what has to be done even when the release goes no further."""
        lease = self.leases.read(self.namespace, self.name)
        claim = lease.claim if lease else None
        if claim is None or claim.owner.identity != self.owner.identity:
            holder = f"{claim.owner.dag_id} {claim.owner.run_id} holds it" if claim else "nobody holds it"
            raise ServiceBusy(
                f"this run has no claim on {self.spec.service.key} (any more): {holder}; clear the run's task claim, "
                "and what follows it runs again"
            )
        return claim

    def baseline(self) -> Baseline:
        """What served before this release touched anything."""
        baseline = self.claim().baseline
        if baseline is None:
            raise CanaryLost(f"no baseline of {self.spec.service.key} was recorded; clear the run's task claim")
        return baseline

    def note(self, *, going_back: bool = False, **fields: Any) -> Claim:
        """Records fields of the claim in the lease, where whoever comes after a crash finds them. Errors: see `claim`;
        with `going_back` the release need not go on."""
        return self.note_by(lambda claim: replace(claim, **fields), going_back=going_back)

    def note_by(self, edit: Callable[[Claim], Claim], *, going_back: bool = False) -> Claim:
        """`note`, of what depends on the claim as it is when it is written; `edit` must only compute."""

        def change(claim: Claim) -> Claim:
            if not going_back:
                claim.check_goes_on()
            return edit(claim)

        lease = self.leases.update(self.namespace, self.name, self.owner, change)
        return lease.claim or self.held()

    def wanted(self, root: Path, version_uri: str) -> dict[str, Any]:
        """The manifest of the version that is released."""
        from model_release.cluster.manifest import load_base, manifest

        return manifest(self.spec, version_uri, load_base(root / "include" / "manifests" / "inference_service.yaml"))

    def has_live(self, wanted: dict[str, Any]) -> bool:
        """Whether the manifest's revision has all of the traffic by name, and no release is changing that."""
        from model_release.cluster.rollout import Kind, plan_change

        lease, live = self.leases.read(self.namespace, self.name), self.live()
        if live is None or (lease is not None and lease.holder is not None):
            return False
        change = plan_change(live, wanted)
        return change.kind is Kind.NOTHING and not live.is_split and live.gateway == {change.revision: 100}

    def check_untouched(self, canary: Canary, percent: int | None) -> None:
        """Nothing, when what is live still is what this release opened; else `CanaryLost`, with who changed what.

        Args:
            percent: as in `cluster.rollout.check_untouched`.
        """
        from model_release.cluster.rollout import check_untouched

        check_untouched(self.live(), canary, percent)

    def verified(self, assess: Callable[[], Progress], say: Callable[[str], None]) -> Progress:
        """Waits until the change that was just written has taken effect, by the names of revisions.

        Raises:
            CanaryLost: what is live is no longer what this release opened.
            ClusterUnavailable: it has not taken effect within two minutes; trying again may help.
        """
        from model_release.cluster.progress import State, wait

        progress = wait(assess, ROUTE_SECONDS, poll=0.5, tell=lambda told: say(told.sentence))
        if progress.state is State.LOST:
            raise CanaryLost(progress.sentence)
        if progress.state is not State.READY:
            raise ClusterUnavailable(f"the change has not taken effect: {progress.sentence}")
        return progress

    def close(self, task: str, log: Callable[..., None]) -> None:
        """Takes the traffic off a canary that an earlier try of this run had opened, and that nobody watches since the
        run was cleared. Again, or where none is open: does nothing.

        Raises:
            ClusterUnavailable: it has not taken effect yet; trying again may help.
        """
        from model_release.cluster.settle import assess_rolled_back, roll_back

        lease = self.leases.read(self.namespace, self.name)
        claim = lease.claim if lease else None
        release = claim.as_release(self.namespace, self.name) if claim else None
        if claim is None or release is None or claim.owner.identity != self.owner.identity:
            return
        live = self.live()
        # By the spec, not by the claim: a task that was killed may have opened it, or begun to promote it, untold.
        if release.baseline.revision is None or live is None or not live.is_split or not live.canary_percent:
            return
        log("%s is open at %d %%, and this run was cleared: taken back", live.latest_created, live.canary_percent)
        release = replace(release, promoted=False)
        prove = prover(release.baseline.storage_uri, log)
        roll_back(self.services, release, self.leases.bar(self.namespace, self.name, self.owner), prove)
        self.verified(lambda: assess_rolled_back(self.live(), release), log)
        self.note(going_back=True, stage="cleared", percent=None, opened_at=None, promoted=False, watches=())
        self.record_traffic(task, 0, self.live())

    def settle(self, release: Release, log: Callable[..., None]) -> str:
        """`cluster.settle.settle`, under the lease that this run holds, with the smoke prediction as the proof."""
        from model_release.cluster.settle import settle

        return settle(
            self.services,
            release,
            self.leases.bar(self.namespace, self.name, self.owner),
            prove=prover(release.baseline.storage_uri, log),
            tell=lambda progress: log("%s", progress.sentence),
        )

    def record(self, edit: Callable[[Record], None]) -> Record:
        """Adds to the decision record."""
        return records.change(self.spec, self.run, edit)

    def record_traffic(self, task: str, percent: int, live: InferenceService | None) -> None:
        """A change of traffic that was verified, with the time and each revision's share."""
        shares, when = dict(live.serving) if live else {}, records.now()
        self.record(lambda record: record.record_traffic(when, task, percent, shares))


def recorded(baseline: Baseline) -> dict[str, Any] | None:
    """The baseline as the decision record has it."""
    return {"revision": baseline.revision, "storage_uri": baseline.storage_uri} if baseline.revision else None


def staged(context: Any) -> dict[str, Any]:
    """What task `stage` found and left: {"kind", "sentence", "canary": {…} | None}."""
    found = context["ti"].xcom_pull(task_ids="stage")
    if not found:
        raise CanaryLost(
            "task stage left no result in this run; clear the run's task claim, and what follows it runs again"
        )
    return dict(found)


def check_answered(context: Any, revision: str) -> None:
    """Nothing, when this very revision answered its smoke prediction in this run. A task smoke that somebody marked
    successful by hand asked nobody."""
    if context["ti"].xcom_pull(task_ids="smoke", key=ANSWERED) != revision:
        raise CanaryLost(f"task smoke did not ask {revision} (was it marked by hand?): it gets no traffic")


def canary(context: Any) -> Canary:
    """The canary that this run staged."""
    from model_release.cluster.rollout import Canary

    found = staged(context)["canary"]
    if not found:
        raise CanaryLost("this run staged no canary")
    return Canary.from_dict(found)


def published(context: Any) -> dict[str, str]:
    """The version that this run releases: {"version", "uri"}."""
    found = context["ti"].xcom_pull(task_ids="publish")
    if not found:
        raise CanaryLost("task publish left no version in this run; clear it, and what follows it runs again")
    return dict(found)
