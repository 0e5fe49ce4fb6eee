"""The InferenceService of a release, as the tasks of one run see it: cluster, lease, record, in one hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_release.cluster.release import Phase
from model_release.errors import CanaryLost, ClusterUnavailable, NotSettled, ServiceBusy
from model_release.spec import ModelSpec
from model_release.tasks import connections, records
from model_release.tasks.proof import prover
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from model_release.cluster.change import Baseline, Canary
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.progress import Progress
    from model_release.cluster.release import Owner, Release
    from model_release.judging.record import Record


# A change of the split reaches the gateway in seconds; minutes mean that something is wrong.
ROUTE_SECONDS = 120.0


class ReleasedService:
    """Clients are made when it is: once for each task."""

    def __init__(self, spec: ModelSpec, run: Run) -> None:
        from model_release.cluster.leases import Leases
        from model_release.cluster.services import InferenceServices

        client = connections.cluster()
        self.spec, self.run = spec, run
        self.namespace, self.name = spec.service.namespace, spec.service.name
        self.services, self.leases = InferenceServices(client), Leases(client)
        self.server = str(client.configuration.host)

    @property
    def owner(self) -> Owner:
        """This run, as the lease names its holder."""
        from model_release.cluster.release import Owner

        return Owner(self.run.dag_id, self.run.run_id, self.run.url, self.run.installation)

    def live(self) -> InferenceService | None:
        """The service as it is now; None when there is none."""
        return self.services.get(self.namespace, self.name)

    def claim(self) -> Release:
        """What this run has recorded in the lease that it holds.

        Raises:
            ServiceBusy: this run does not hold the lease (any more): `settle` gave it free, or it passed on.
            RolledBack: this release was ordered back, or its canary was closed: it goes no further.
        """
        release = self.held()
        release.check_goes_on()
        return release

    def resumed(self) -> Release:
        """`claim`, for a task that moves the release on. What a `settle` that could not end had recorded as failed is
        over with it: the run was cleared since, and goes on. Again: the same. Errors: see `claim`."""
        now = self.claim()
        return now if now.trouble is None else self.note(trouble=None)

    def held(self) -> Release:
        """`claim`, for what has to be done even when the release goes no further."""
        lease = self.leases.read(self.namespace, self.name)
        release = lease.release if lease else None
        if release is None or release.owner.identity != self.owner.identity:
            holder = f"{release.owner.dag_id} {release.owner.run_id} holds it" if release else "nobody holds it"
            raise ServiceBusy(
                f"this run has no claim on {self.spec.service.key} (any more): {holder}; clear the run's task claim, "
                "and what follows it runs again"
            )
        return release

    def claimed(self) -> datetime:
        """When this run took the lease that it holds: the same whenever it is asked."""
        lease = self.leases.read(self.namespace, self.name)
        return datetime.fromisoformat(lease.since) if lease and lease.since else datetime.now(UTC)

    def baseline(self) -> Baseline:
        """What served before this release touched anything."""
        return self.claim().stable

    def canary(self) -> Canary:
        """What this run staged. Errors: see `claim`; CanaryLost where it staged nothing yet."""
        return self.claim().as_canary

    def note(self, *, going_back: bool = False, **fields: Any) -> Release:
        """Records fields of the release in the lease, where whoever comes after a crash finds them. Errors: see
        `claim`; with `going_back` the release need not go on."""
        return self.note_by(lambda now: replace(now, **fields), going_back=going_back)

    def note_by(self, edit: Callable[[Release], Release], *, going_back: bool = False) -> Release:
        """`note`, of what depends on the release as it is when it is written; `edit` must only compute."""

        def change(now: Release) -> Release:
            if not going_back:
                now.check_goes_on()
            return edit(now)

        lease = self.leases.update(self.namespace, self.name, self.owner, change)
        return lease.release or self.held()

    def wanted(self, root: Path, version_uri: str) -> dict[str, Any]:
        """The manifest of the version that is released."""
        from model_release.cluster.manifest import load_base, manifest

        return manifest(self.spec, version_uri, load_base(root / "include" / "manifests" / "inference_service.yaml"))

    def has_live(self, wanted: dict[str, Any]) -> bool:
        """Whether the manifest's revision has all of the traffic by name, and no release is changing that."""
        from model_release.cluster.change import Novelty
        from model_release.cluster.rollout import plan_change

        lease, live = self.leases.read(self.namespace, self.name), self.live()
        if live is None or (lease is not None and lease.holder is not None):
            return False
        change = plan_change(live, wanted)
        return change.kind is Novelty.NOTHING and not live.is_split and live.gateway == {change.revision: 100}

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
        lease = self.leases.read(self.namespace, self.name)
        release = lease.release if lease else None
        if release is None or release.baseline is None or release.owner.identity != self.owner.identity:
            return
        live = self.live()
        # By the spec, not by the phase: a task that was killed may have opened it, or begun to promote it, untold.
        if release.is_first or live is None or not live.is_split or not live.canary_percent:
            return
        log("%s is open at %d %%, and this run was cleared: taken back", live.latest_created, live.canary_percent)
        try:
            self.take_back(replace(release, phase=Phase.CLOSING), ROUTE_SECONDS, log)
        except NotSettled as error:
            raise ClusterUnavailable(str(error)) from error
        self.note_by(_staged_again, going_back=True)
        self.record_traffic(task, 0, self.live())

    def take_back(self, release: Release, seconds: float, log: Callable[..., None]) -> Progress:
        """`release.back.take_back`, under the lease that this run holds."""
        from model_release.release.back import take_back

        return take_back(
            self.services,
            release,
            self.leases.bar(self.namespace, self.name, self.owner),
            seconds=seconds,
            prove=prover(release.stable.storage_uri, log),
            tell=lambda progress: log("%s", progress.sentence),
        )

    def settle(self, release: Release, log: Callable[..., None]) -> str:
        """`cluster.settle.settle`, under the lease that this run holds, with the smoke prediction as the proof."""
        from model_release.cluster.settle import settle

        return settle(
            self.services,
            release,
            self.leases.bar(self.namespace, self.name, self.owner),
            prove=prover(release.stable.storage_uri, log),
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


def check_answered(release: Release) -> None:
    """Nothing, when what this run staged answered its smoke prediction. A task smoke that somebody marked successful by
    hand asked nobody."""
    if release.phase in (Phase.CLAIMED, Phase.STAGED):
        raise CanaryLost(f"task smoke did not ask {release.canary} (was it marked by hand?): it gets no traffic")


def _staged_again(release: Release) -> Release:
    """At 0 %, with nothing decided: where it was before its canary was opened."""
    return replace(release, phase=Phase.STAGED, watches=(), word=None, promoted_at=None)


def published(context: Any) -> dict[str, str]:
    """The version that this run releases: {"version", "uri"}."""
    found = context["ti"].xcom_pull(task_ids="publish")
    if not found:
        raise CanaryLost("task publish left no version in this run; clear it, and what follows it runs again")
    return dict(found)
