"""Version → traffic, on a service that was claimed: stage, smoke, promote, roll back. In between is the canary.

Each task reads the live state first and does what is left to do; each change is verified by the names of revisions
before the task ends, and recorded. The lease holds what the next one, or whoever cleans up, has to know.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseBranchOperator
from airflow.sdk.exceptions import TaskDeferred

from model_release.errors import CanaryLost, ClusterUnavailable, NotSettled, RevisionFailed
from model_release.tasks import connections, records, service
from model_release.tasks.base import ReleaseOperator, telling
from model_release.tasks.foresight import foresee
from model_release.tasks.proof import prover
from model_release.tasks.run import Run
from model_release.tasks.service import ROUTE_SECONDS, ReleasedService
from model_release.tasks.triggers import SLACK, RevisionTrigger

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.lease import Claim
    from model_release.cluster.rollout import Baseline, Canary


class Stage(ReleaseOperator):
    """Makes sure that the judge will see the service, brings the version into the cluster at 0 %, and waits, in the
    triggerer, until its revision is ready.

    Run again: what is written is not written again; what is ready is found ready.
    """

    def __init__(self, *, root: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    def release(self, context: Any, run: Run) -> Any:
        from model_release.cluster.rollout import Kind, plan_change, stage

        self.verify(service.published(context)["version"])
        released = ReleasedService(self.spec, run)
        wanted = released.wanted(self.root, service.published(context)["uri"])
        baseline, live = released.baseline(), released.live()
        change = plan_change(live, wanted)
        self.log.info("%s", change.sentence)
        if change.kind is Kind.NOTHING and change.revision == baseline.revision:
            return {"kind": "nothing_new", "sentence": change.sentence, "canary": None}
        claim = released.claim()
        if live is not None and change.kind is Kind.NEW and claim.template is not None:
            baseline = self._after_another(released, claim, live, wanted)
        if baseline.revision is not None:
            plan = foresee(self.spec, baseline.revision, self.log.info)
            released.record(lambda record: setattr(record, "plan", plan))
        claim = released.note(stage="staging")
        staged = stage(released.services, wanted, baseline, claim.template)
        template = staged.template_digest
        released.note(template=template, created=staged.uid if baseline.uid is None else None)
        raise self._waiting(wanted, baseline, template, datetime.now(UTC) + self.spec.rollout.ready_within)

    def _after_another(
        self, released: ReleasedService, claim: Claim, live: InferenceService, wanted: dict[str, Any]
    ) -> Baseline:
        """The baseline, noted, of a template that is about to be written after another one of this run: what that had
        promoted is what this one stands beside, and the revision that it had staged is not the one to be waited for."""
        from model_release.cluster.rollout import baseline_of

        baseline = replace(released.baseline(), created=live.latest_created)
        if not claim.promoted or live.rolled_out != claim.canary:
            released.note(baseline=baseline)
            return baseline
        stable = baseline_of(live, wanted)
        released.note(baseline=stable, canary=None, promoted=False, template=None)
        released.record(lambda record: setattr(record, "baseline", service.recorded(stable)))
        return stable

    def _waiting(
        self, wanted: dict[str, Any], baseline: Baseline, template: str | None, deadline: datetime
    ) -> TaskDeferred:
        return TaskDeferred(
            trigger=RevisionTrigger(
                wanted=wanted, baseline=baseline.as_dict(), template=template, deadline=deadline.isoformat()
            ),
            method_name=self.is_ready.__name__,
            timeout=deadline - datetime.now(UTC) + SLACK,
        )

    def verify(self, version: str) -> None:
        """The version is, byte by byte, what was published, and signed where the model file wants it signed."""
        from model_release.store import signing

        store, wanted = connections.store(self.spec.store), self.spec.signing
        if wanted is None:
            store.version(version)
        else:
            signing.check_version(store, version, signing.key_file(wanted.public_key, self.root))

    def is_ready(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        """Looks for itself at what the trigger saw."""
        with telling(self, context):
            return self._is_ready(context, event, Run.of(context, self.spec))

    def _is_ready(self, context: Any, event: dict[str, Any], run: Run) -> dict[str, Any]:
        from model_release.cluster.progress import State
        from model_release.cluster.rollout import assess_staged, canary_of

        gone = (State.LOST, State.WRONG_BASELINE)
        if event["state"] in gone:
            raise CanaryLost(event["sentence"])
        if event["state"] == State.FAILED.value:
            raise RevisionFailed(event["sentence"])
        if event["state"] != State.READY.value:
            raise RevisionFailed(f"not ready in time: {event['sentence']}")
        released = ReleasedService(self.spec, run)
        claim = released.claim()
        baseline, template, live = released.baseline(), claim.template, released.live()
        wanted = released.wanted(self.root, service.published(context)["uri"])
        progress = assess_staged(live, wanted, baseline, template)
        if progress.state in gone:
            raise CanaryLost(progress.sentence)
        if live is None or progress.state is not State.READY:
            # A pod that missed a probe between the two looks has the rest of its time; it has not failed.
            deadline = datetime.fromisoformat(event["deadline"])
            if datetime.now(UTC) >= deadline:
                raise ClusterUnavailable(f"was ready and is not: {progress.sentence}")
            self.log.info("Was ready and is not: %s", progress.sentence)
            raise self._waiting(wanted, baseline, template, deadline)
        canary = canary_of(live, baseline)
        # No share is open any more: one that was, before this task was cleared, will be opened anew, at its own moment.
        # Nor is a promotion that was begun then worth anything, unless it was done.
        promoted = claim.promoted and claim.canary == canary.revision and not live.is_split
        released.note(
            stage="staged", canary=canary.revision, percent=None, opened_at=None, promoted=promoted, watches=()
        )
        released.record(lambda record: setattr(record, "canary", {"revision": canary.revision}))
        released.record_traffic("stage", 0 if baseline.revision else 100, live)
        self.log.info("%s", progress.sentence)
        return {
            "kind": "canary" if baseline.revision else "first",
            "sentence": progress.sentence,
            "canary": canary.as_dict(),
        }


class Smoke(ReleaseOperator, BaseBranchOperator):
    """Asks the staged revision, which has no traffic, for real predictions, and compares them with what its archive
    answered when it was built. Then the branch: to the canary, past it for a first deployment or where the form says
    so, or to nothing where nothing is new. Run again, it asks again.
    """

    def __init__(self, *, first: str, direct: str, canary: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first, self.direct, self.canary = first, direct, canary

    def execute(self, context: Any) -> Any:
        return BaseBranchOperator.execute(self, context)

    def choose_branch(self, context: Any) -> str | list[str]:
        with telling(self, context):
            found = service.staged(context)
            if found["kind"] == "nothing_new":
                return []
            run = Run.of(context, self.spec)
            self.ask(context, ReleasedService(self.spec, run))
        if found["kind"] == "first":
            return self.first
        return self.direct if run.rollout == "direct" else self.canary

    def ask(self, context: Any, released: ReleasedService) -> None:
        """Raises `SmokeFailed` unless the staged revision itself answers as it should."""
        from model_release.cluster.rollout import check_untouched
        from model_release.cluster.smoke import smoke, smoke_url

        canary, live = service.canary(context), released.live()
        check_untouched(live, canary)
        store = connections.store(self.spec.store)
        sample = store.smoke(store.version(service.published(context)["version"]))
        answered = smoke(smoke_url(live), self.spec.service.name, sample, ingress=connections.ingress())  # type: ignore[arg-type]
        # Another revision could have come up between the two reads and answered in its place.
        check_untouched(released.live(), canary)
        context["ti"].xcom_push(key=service.ANSWERED, value=canary.revision)
        self.log.info(
            "%s answers %d images as it should, in %.0f ms",
            canary.revision,
            len(answered.answers),
            1000 * answered.seconds,
        )


class GoLive(ReleaseOperator):
    """The first deployment: KServe gave the revision all of the traffic when it became ready, for there was no other.
    Verified by name, and recorded. Run again, it finds it so."""

    outcome = "first"

    def release(self, context: Any, run: Run) -> dict[str, Any]:
        from model_release.cluster.rollout import assess_promoted

        released, canary = ReleasedService(self.spec, run), service.canary(context)
        claim = released.claim()
        self.check_proven(context, canary.revision)
        if not claim.promoted:
            # Before the write: whoever comes after a crash has to know that this revision was proven.
            claim = released.note(stage=f"{self.task_id} begun", promoted=True)
        self.move(released, canary)
        progress = released.verified(lambda: assess_promoted(released.live(), canary), self.log.info)
        if claim.stage != self.task_id:
            claim = released.note(stage=self.task_id, percent=None, opened_at=records.now())
            released.record_traffic(self.task_id, 100, released.live())
        released.record(lambda record: record.finish(self.outcome, progress.sentence, records.now()))
        return {"promoted_at": claim.opened_at, "revision": canary.revision}

    def check_proven(self, context: Any, revision: str) -> None:
        """The smoke prediction is all the proof that a first deployment can have."""
        if service.staged(context)["kind"] != "first":
            raise CanaryLost(f"{revision} stands beside a stable revision: it goes live by a promotion, or not at all")
        service.check_answered(context, revision)

    def move(self, released: ReleasedService, canary: Canary) -> None:
        """KServe has done it."""


class GoDirect(GoLive):
    """All of the traffic at once, without a canary, to a version that was live before: somebody asked for it in the
    form and said why. It has answered its smoke prediction, and the bake watches it. Run again, it finds it so."""

    outcome = "promoted"

    def check_proven(self, context: Any, revision: str) -> None:
        run = Run.of(context, self.spec)
        if run.rollout != "direct":
            raise CanaryLost(
                f"nobody asked for {revision} to go live without a canary; the run's form says {run.rollout}"
            )
        service.check_answered(context, revision)

    def release(self, context: Any, run: Run) -> dict[str, Any]:
        done = super().release(context, run)
        opened = str(context["dag_run"].run_after.isoformat(timespec="milliseconds"))
        records.change(
            self.spec,
            run,
            lambda record: record.record_approval(opened, run.who, "direct", str(run.params.get("note"))),
        )
        return done

    def move(self, released: ReleasedService, canary: Canary) -> None:
        from model_release.cluster.rollout import promote

        promote(released.services, canary, 0)


class Promote(GoLive):
    """Verifies that the canary has all of the traffic: the revision that was judged, by name, and no other. The drive
    promoted it when the evidence was there; what it could not finish is finished here. Run again, it finds it so."""

    outcome = "promoted"

    def __init__(self, *, judged_by: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.judged_by = judged_by

    def check_proven(self, context: Any, revision: str) -> None:
        verdict = context["ti"].xcom_pull(task_ids=self.judged_by) or {}
        if (verdict.get("decision"), verdict.get("revision")) != ("promote", revision):
            raise CanaryLost(f"no verdict of {self.judged_by} says to promote {revision}; nothing is promoted unproven")

    def move(self, released: ReleasedService, canary: Canary) -> None:
        from model_release.cluster.rollout import promote

        promote(released.services, canary, self.spec.rollout.steps[-1])


class RollBack(ReleaseOperator):
    """Takes the traffic off the canary at once, and verifies by name that the baseline has it: during the canary and,
    late, after its promotion. Bringing the stable template back into the spec is left to `settle`, which needs no
    haste. Run again, it finds it rolled back."""

    def release(self, context: Any, run: Run) -> dict[str, Any]:
        from model_release.cluster.progress import State, wait
        from model_release.cluster.settle import assess_rolled_back, roll_back

        released = ReleasedService(self.spec, run)
        # From here on this canary is not proven any more, whatever a crash leaves behind. What the drive has taken back
        # is recorded already.
        claim = released.note_by(
            lambda claim: replace(claim, promoted=False, stage=claim.stage if claim.closed else "rolling back"),
            going_back=True,
        )
        release = claim.as_release(released.namespace, released.name)
        if release is None:
            raise CanaryLost("no baseline was recorded: nothing was touched, and there is nothing to roll back to")
        remember = released.leases.bar(released.namespace, released.name, released.owner)
        prove = prover(release.baseline.storage_uri, self.log.info)

        def step() -> Any:
            current = released.held()
            return assess_rolled_back(
                roll_back(released.services, replace(release, barred=current.barred), remember, prove), release
            )

        # Where KServe no longer knows the baseline as the revision before, it has to start anew from its template.
        seconds = max(ROUTE_SECONDS, self.spec.rollout.ready_within.total_seconds())
        progress = wait(step, seconds, poll=0.5, tell=lambda told: self.log.info("%s", told.sentence))
        if progress.state is not State.READY:
            raise NotSettled(f"the roll-back did not take effect: {progress.sentence}")
        if claim.stage != "rolled back":
            released.note(going_back=True, stage="rolled back", percent=0)
            released.record_traffic(self.task_id, 0, released.live())
        return {"revision": progress.revision, "sentence": progress.sentence}
