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

from model_release.cluster.release import Cause, Phase
from model_release.errors import CanaryLost, ClusterUnavailable, RevisionFailed
from model_release.tasks import connections, lineage, records, registry, service
from model_release.tasks.assets import back_live, emit, live_asset
from model_release.tasks.base import ReleaseOperator, telling
from model_release.tasks.driving import began_with
from model_release.tasks.foresight import foresee
from model_release.tasks.run import Run
from model_release.tasks.service import ROUTE_SECONDS, ReleasedService
from model_release.tasks.shadow import compare
from model_release.tasks.triggers import SLACK, RevisionTrigger

if TYPE_CHECKING:
    from model_release.cluster.change import Baseline, Canary
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.release import Release


class Stage(ReleaseOperator):
    """Makes sure that the judge will see the service, brings the version into the cluster at 0 %, and waits, in the
    triggerer, until its revision is ready.

    Run again: what is written is not written again; what is ready is found ready.
    """

    def __init__(self, *, root: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    def release(self, context: Any, run: Run) -> Any:
        from model_release.cluster.change import Novelty
        from model_release.cluster.rollout import plan_change, stage
        from model_release.release.plan import as_chosen

        self.verify(service.published(context)["version"])
        released = ReleasedService(self.spec, run)
        wanted = released.wanted(self.root, service.published(context)["uri"])
        baseline, live = released.baseline(), released.live()
        change = plan_change(live, wanted)
        self.log.info("%s", change.sentence)
        if change.kind is Novelty.NOTHING and change.revision == baseline.revision:
            released.note(cause=Cause.NOTHING_NEW)
            return change.sentence
        now = released.resumed()
        if live is not None and change.kind is Novelty.NEW and now.template is not None:
            baseline = self._after_another(released, now, live, wanted)
            now = released.claim()
        if baseline.revision is not None:
            plan = foresee(self.spec, baseline.revision, baseline.started, self.log.info)
            released.record(lambda record: setattr(record, "plan", plan))
            if None in (self.spec.rollout.deadline, self.spec.rollout.bake):
                # The release goes by these, whatever a later plan would say.
                chosen = as_chosen(self.spec, plan["deadline_minutes"], plan["bake_minutes"])
                released.note(spec=chosen.model_dump_json())
        if not now.promoted:  # what is staged again after its promotion stays promoted, where it is found so
            now = released.note(phase=Phase.STAGED, watches=(), word=None, promoted_at=None, cause=None)
        by, created = now.owner.identity, now.created
        staged = stage(released.services, wanted, baseline, now.template, by=by, created=created)
        template = staged.template_digest
        released.note(template=template, created=staged.uid if baseline.uid is None else None)
        raise self._waiting(wanted, baseline, template, datetime.now(UTC) + self.spec.rollout.ready_within)

    def _after_another(
        self, released: ReleasedService, now: Release, live: InferenceService, wanted: dict[str, Any]
    ) -> Baseline:
        """The baseline, noted, of a template that is about to be written after another one of this run: what that had
        promoted is what this one stands beside, and the revision that it had staged is not the one to be waited for."""
        from model_release.cluster.rollout import baseline_of

        baseline = replace(released.baseline(), created=live.latest_created)
        if not now.promoted or live.rolled_out != now.canary:
            released.note(baseline=baseline)
            return baseline
        stable = baseline_of(live, wanted, None)
        released.note(baseline=stable, canary=None, phase=Phase.CLAIMED, template=None, word=None, promoted_at=None)
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

    def is_ready(self, context: Any, event: dict[str, Any]) -> str:
        """Looks for itself at what the trigger saw."""
        with telling(self, context):
            return self._is_ready(context, event, Run.of(context, self.spec))

    def _is_ready(self, context: Any, event: dict[str, Any], run: Run) -> str:
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
        now, live = released.claim(), released.live()
        baseline, template = now.stable, now.template
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
        found: dict[str, Any] = {"canary": canary.revision, "template": canary.template, "started": canary.started}
        # No share is open any more: one that was, before this task was cleared, will be opened anew, at its own moment.
        # Nor is a promotion that was begun then worth anything, unless it was done.
        if now.promoted and now.canary == canary.revision and not live.is_split:
            released.note(**found, phase=Phase.PROMOTED, watches=())
        else:
            released.note(**found, phase=Phase.STAGED, watches=(), word=None, promoted_at=None)
        released.record(lambda record: setattr(record, "canary", {"revision": canary.revision}))
        released.record_traffic("stage", 0 if baseline.revision else 100, live)
        self.log.info("%s", progress.sentence)
        return progress.sentence


class Smoke(ReleaseOperator, BaseBranchOperator):
    """Asks the staged revision, which has no traffic, for real predictions, and compares them with what its archive
    answered when it was built; and, where the model file has a shadow, it and the stable revision for sample pictures.
    Then the branch: to the canary, past it for a first deployment or where the form says so, or to nothing where
    nothing is new. Run again, it asks again.
    """

    def __init__(self, *, root: Path, first: str, direct: str, canary: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.first, self.direct, self.canary = root, first, direct, canary

    def execute(self, context: Any) -> Any:
        return BaseBranchOperator.execute(self, context)

    def choose_branch(self, context: Any) -> str | list[str]:
        with telling(self, context):
            run = Run.of(context, self.spec)
            released = ReleasedService(self.spec, run)
            now = released.claim()
            if now.cause is Cause.NOTHING_NEW:
                return []
            self.ask(context, released)
            rollout = began_with(now, self.spec).rollout
            # Nothing is beside a first deployment, and who asks for one at once does not wait for it. One that is open
            # has passed it: this task was cleared, and stable's address gives some of it by now.
            beside = not now.is_first and run.rollout != "direct" and now.phase in (Phase.STAGED, Phase.PROVEN)
            if rollout.shadow is not None and beside:
                compare(released, rollout.shadow, rollout.window, self.root, self.log)
            asked = now.canary

            def proven(later: Release) -> Release:
                # A try that was given up may end when the run has staged another one, which nobody asked yet.
                staged = later.phase is Phase.STAGED and later.canary == asked
                return replace(later, phase=Phase.PROVEN) if staged else later

            released.note_by(proven)
        if now.is_first:
            return self.first
        return self.direct if run.rollout == "direct" else self.canary

    def ask(self, context: Any, released: ReleasedService) -> None:
        """Raises `SmokeFailed` unless the staged revision itself answers as it should."""
        from model_release.cluster.rollout import check_untouched
        from model_release.cluster.smoke import smoke, smoke_url

        canary, live = released.canary(), released.live()
        check_untouched(live, canary)
        store = connections.store(self.spec.store)
        sample = store.smoke(store.version(service.published(context)["version"]))
        answered = smoke(smoke_url(live), self.spec.service.name, sample, ingress=connections.ingress())  # type: ignore[arg-type]
        # Another revision could have come up between the two reads and answered in its place.
        check_untouched(released.live(), canary)
        self.log.info(
            "%s answers %d images as it should, in %.0f ms",
            canary.revision,
            len(answered.answers),
            1000 * answered.seconds,
        )


class GoLive(ReleaseOperator):
    """The first deployment: KServe gave the revision all of the traffic when it became ready, for there was no other.
    Verified by name, and recorded. Run again, it finds it so."""

    def release(self, context: Any, run: Run) -> str:
        from model_release.cluster.rollout import assess_promoted
        from model_release.release.outcome import outcome_of

        released = ReleasedService(self.spec, run)
        now, canary = released.resumed(), released.canary()
        word = self.word(now, run)
        if not now.promoted:
            # Before the write: whoever comes after a crash has to know that this revision was proven.
            now = released.note(phase=Phase.PROMOTED, word=word)
        self.move(released, canary)
        progress = released.verified(lambda: assess_promoted(released.live(), canary), self.log.info)
        if now.promoted_at is None:
            now = released.note(promoted_at=records.now())
            released.record_traffic(self.task_id, 100, released.live())
        outcome = outcome_of(now)
        record = released.record(lambda record: record.finish(outcome.kind, progress.sentence, records.now()))
        registry.note(self.spec, record, run.page)
        made = service.published(context)
        told = {"version": made["version"], "uri": made["uri"], "service": self.spec.service.key, "how": self.task_id}
        emit(context, live_asset(self.spec), {**told, "release": run.page})
        self.lineage = lineage.live(self.spec, run, made["version"], made["uri"], self.task_id, outcome.sentence)
        return progress.sentence

    def word(self, now: Release, run: Run) -> str:
        """That on which it goes live. The smoke prediction is all the proof that a first deployment can have.

        Raises:
            CanaryLost: there is no such word.
        """
        if not now.is_first:
            raise CanaryLost(
                f"{now.canary} stands beside a stable revision: it goes live by a promotion, or not at all"
            )
        service.check_answered(now)
        return "live at 100 %, the first version of the service."

    def move(self, released: ReleasedService, canary: Canary) -> None:
        """KServe has done it."""


class GoDirect(GoLive):
    """All of the traffic at once, without a canary, to a version that was live before: somebody asked for it in the
    form and said why. It has answered its smoke prediction, and the bake watches it. Run again, it finds it so."""

    def release(self, context: Any, run: Run) -> str:
        done = super().release(context, run)
        opened = str(context["dag_run"].run_after.isoformat(timespec="milliseconds"))
        note = str(run.params.get("note"))
        records.change(self.spec, run, lambda record: record.record_approval(opened, run.who, "direct", note))
        return done

    def word(self, now: Release, run: Run) -> str:
        if run.rollout != "direct":
            raise CanaryLost(
                f"nobody asked for {now.canary} to go live without a canary; the run's form says {run.rollout}"
            )
        service.check_answered(now)
        return f"all traffic at once, without a canary, as {run.who} asked: {run.params['note']}"

    def move(self, released: ReleasedService, canary: Canary) -> None:
        from model_release.cluster.rollout import promote

        promote(released.services, canary, 0)


class Promote(GoLive):
    """Verifies that the canary has all of the traffic: the revision that was judged, by name, and no other. The drive
    promoted it when the evidence was there; what it could not finish is finished here. Run again, it finds it so."""

    def word(self, now: Release, run: Run) -> str:
        if not now.promoted or now.word is None:
            raise CanaryLost(f"no verdict says to promote {now.canary}; nothing is promoted unproven")
        return now.word

    def move(self, released: ReleasedService, canary: Canary) -> None:
        from model_release.cluster.rollout import promote

        watches = released.claim().watches
        promote(released.services, canary, (watches[-1].percent if watches else None) or 0)


class RollBack(ReleaseOperator):
    """Takes the traffic off the canary at once, and verifies by name that the baseline has it: during the canary and,
    late, after its promotion. Bringing the stable template back into the spec is left to `settle`, which needs no
    haste. Run again, it finds it rolled back."""

    def release(self, context: Any, run: Run) -> str:
        from model_release.release.back import restored
        from model_release.release.index import version_of

        released = ReleasedService(self.spec, run)
        # From here on this canary is not proven any more, whatever a crash leaves behind. What the drive has taken back
        # is recorded already.
        by_hand = "Rolled back: task roll_back was run, and nobody had decided anything"
        now = released.note_by(lambda now: now.close(by_hand, Cause.PERSON), going_back=True)
        if now.baseline is None:
            raise CanaryLost("no baseline was recorded: nothing was touched, and there is nothing to roll back to")
        # Where KServe no longer knows the baseline as the revision before, it has to start anew from its template.
        seconds = max(ROUTE_SECONDS, self.spec.rollout.ready_within.total_seconds())
        progress = released.take_back(now, seconds, self.log.info)
        if now.phase is not Phase.RESTORED:
            restored(released.leases, released.namespace, released.name, released.owner)
            released.record_traffic(self.task_id, 0, released.live())
        if now.promoted_at is not None and now.stable.storage_uri is not None:
            uri = now.stable.storage_uri
            told = {"version": version_of(uri), "uri": uri, "service": self.spec.service.key, "how": self.task_id}
            emit(context, live_asset(self.spec), {**told, "release": run.page}, back_live(self.spec))
            self.lineage = lineage.live(self.spec, run, told["version"], uri, self.task_id, None)
        return progress.sentence
