"""The sensor that drives the canary and waits for its end, and the branch that acts on it."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseBranchOperator, BaseSensorOperator
from airflow.sdk.exceptions import TaskDeferred

from model_release import errors
from model_release.cluster.release import Cause
from model_release.errors import CanaryLost, ClusterUnavailable
from model_release.tasks import ask, driving, links, records, service
from model_release.tasks.base import ReleaseOperator, telling
from model_release.tasks.run import Run
from model_release.tasks.service import ReleasedService
from model_release.tasks.triggers import CanaryTrigger

if TYPE_CHECKING:
    from model_release.cluster.release import Release
    from model_release.judging import Past
    from model_release.release.drive import Drive
    from model_release.spec import ModelSpec

# Between the drive's own end and Airflow's: the drive must be the one that ends it, with a reason.
_SLACK = timedelta(minutes=30)


class CanarySensor(ReleaseOperator, BaseSensorOperator):
    """Waits, in the triggerer, while the canary is opened, looked at, widened and promoted or taken back: each look is
    a log line. Where the model file wants a person's word, it asks, and the canary is looked at meanwhile.

    Returns what was decided, in a sentence. Run again while the canary is open, it goes on by the model file that the
    release began with, and reads the same windows, or asks again; run again when its traffic was taken back, it fails
    with what is in the lease about that.
    """

    def release(self, context: Any, run: Run) -> Any:
        released = ReleasedService(self.spec, run)
        now, canary = released.resumed(), released.canary()
        service.check_answered(now)
        links.push_for(context["ti"], self.spec, [name for name in (canary.revision, canary.baseline) if name])
        if now.watches and now.watches[-1].beside_question and not now.promoted:
            # The try that had asked is gone, and its question with it: nobody could answer that one any more.
            self._ask(context, run, now.watches[-1].why)
        self.log.info("Driving %s beside %s", canary.revision, canary.baseline)
        self._drive(run, now)

    def ended(self, context: Any, event: dict[str, Any]) -> str:
        """The drive is over: it is recorded; or a person is asked now."""
        with telling(self, context):
            run = Run.of(context, self.spec)
            now = self._recorded(run, event)
            if event["decision"] == "ask":
                self._ask(context, run, str(event["reason"]), driving.told(event))
            return self._told(now, str(event["reason"]))

    def answered(self, context: Any, event: dict[str, Any]) -> str:
        """Somebody answered, the evidence turned, or nobody answered in time."""
        with telling(self, context):
            run = Run.of(context, self.spec)
            if "chosen_options" in event:
                return self._person(context, run, event)
            now = self._recorded(run, event)
            if now.closed is not None and now.cause in (Cause.DEADLINE, Cause.NO_DATA):
                self._approved(run, records.now(), "nobody", "rollback", now.closed)
            return self._told(now, str(event["reason"]))

    def _drive(self, run: Run, now: Release, *, question: str | None = None, before: Past | None = None) -> NoReturn:
        """Hands the canary to the triggerer, which goes on from what the lease says. `before`: stable's past, where it
        was read already."""
        spec = driving.began_with(now, self.spec)
        longest = self._longest(spec)
        before = before or self._past(run, now)
        raise TaskDeferred(
            trigger=CanaryTrigger(
                spec=spec.model_dump_json(),
                canary=now.as_canary.as_dict(),
                run=asdict(run),
                deadline=(datetime.now(UTC) + longest).isoformat(),
                past=json.dumps(before.to_dict(), separators=(",", ":")),
                **({} if question is None else {"question": question}),
            ),
            method_name=self.ended.__name__ if question is None else self.answered.__name__,
            timeout=longest + _SLACK,
        )

    def _past(self, run: Run, now: Release) -> Past:
        """What stable did before the release. Read in a worker and handed on: a triggerer that is started again has the
        same, and no look waits for it. From Prometheus, not from the record: no store is in a canary's way."""
        found, told = driving.past(driving.began_with(now, self.spec), now, ReleasedService(self.spec, run).claimed())
        self.log.info("%s", told)
        return found

    def _longest(self, spec: ModelSpec) -> timedelta:
        rollout = spec.rollout
        return 2 * rollout.longest + spec.answer_within + rollout.ready_within

    def _recorded(self, run: Run, event: dict[str, Any]) -> Release:
        """The release after what the drive said, which is recorded; or the trouble that ended it, raised."""
        if name := event.get("error"):
            raise getattr(errors, name)(event["sentence"])
        released = ReleasedService(self.spec, run)
        now = released.held()
        order = now.order

        def edit(record: Any) -> None:
            driving.put(record, self.spec, event)
            if order is not None:
                record.record_approval(order.when, order.who, order.kind, order.why)

        released.record(edit)
        return now

    def _told(self, now: Release, reason: str) -> str:
        said = f"{now.stage}: {now.closed or reason}"
        self.log.info("%s", said)
        return said

    # -- a person's word -----------------------------------------------------------------------------------------------

    def _ask(self, context: Any, run: Run, why: str, before: Past | None = None) -> NoReturn:
        from model_release.release import advance

        released, asked = ReleasedService(self.spec, run), datetime.now(UTC)
        now = released.note_by(lambda now: advance.ask(now, records.moment(asked), why))
        ask.ask(context["ti"], driving.began_with(now, self.spec), run, now, why, asked)
        self.log.info("Asked: %s", why)
        self._drive(run, now, question=str(context["ti"].id), before=before)

    def _person(self, context: Any, run: Run, event: dict[str, Any]) -> str:
        from model_release.release import advance

        answer, heard = ask.read(event), records.now()
        self.log.info("%s", answer.sentence)
        released = ReleasedService(self.spec, run)
        before = driving.told(event)
        if answer.chosen == ask.LONGER:
            now = released.note_by(lambda now: advance.watch_longer(now, records.now()))
            self._approved(run, heard, answer.who, answer.decision, answer.reason)
            self._drive(run, now, before=before)
        now = released.claim()
        spec = driving.began_with(now, self.spec)
        # Who wants it closed waits for nothing, and nothing is judged then.
        if answer.chosen == ask.PROMOTE:
            before = before or self._past(run, now)
        drive = driving.drive(spec, now.as_canary, run, "worker", before)
        if answer.chosen == ask.PROMOTE:
            # Evidence goes before an answer that crossed it: looked at once more, at the share that it has.
            drive.look()
            if released.held().closed is None:
                rules = driving.rules(spec)
                now = released.note_by(lambda now: advance.go_on(now, records.now(), rules, answer.sentence))
                if not now.promoted:
                    self._approved(run, heard, answer.who, answer.decision, answer.reason)
                    self._drive(run, now, before=before)
        else:
            drive.close(answer.sentence, Cause.PERSON)
        self._finish(drive, spec)
        # Traffic before words: a store that hangs must not keep a canary open that somebody wants closed.
        self._approved(run, heard, answer.who, answer.decision, answer.reason)
        now = self._recorded(run, driving.outcome(drive))
        crossed = answer.chosen == ask.PROMOTE and now.closed is not None
        return self._told(now, answer.sentence) + (" (the answer crossed the evidence)" if crossed else "")

    def _finish(self, drive: Drive, spec: ModelSpec) -> None:
        """Drives to the end here, where a person has decided: the traffic moves in the worker that heard the answer."""
        import time

        end = time.monotonic() + max(service.ROUTE_SECONDS, spec.rollout.ready_within.total_seconds())
        while drive.done is None:
            for line in drive.look():
                self.log.info("%s", line)
            if drive.done is None and time.monotonic() >= end:
                raise ClusterUnavailable("what was answered has not taken effect yet")
            time.sleep(drive.pause if drive.done is None else 0)

    def _approved(self, run: Run, when: str, who: str, decision: str, reason: str) -> None:
        records.change(self.spec, run, lambda record: record.record_approval(when, who, decision, reason))


class Bake(CanarySensor):
    """Looks on after the promotion, at the promoted revision alone, for the time that the model file gives. Only
    evidence against it ends the bake early, and takes the traffic back there and then."""

    def release(self, context: Any, run: Run) -> Any:
        from model_release.release import advance

        released = ReleasedService(self.spec, run)
        now = released.resumed()
        if now.promoted_at is None:
            raise CanaryLost("nothing was promoted in this run; clear the run's task promote")
        names = [name for name in (now.canary, now.stable.revision) if name]
        links.push_for(context["ti"], self.spec, names)
        self._drive(run, released.note_by(advance.bake))

    def _longest(self, spec: ModelSpec) -> timedelta:
        return 2 * spec.baked + spec.rollout.ready_within


class Decide(ReleaseOperator, BaseBranchOperator):
    """The branch: onward where all of the traffic was asked for on somebody's word, back on everything else.

    After the bake (`onward` None) it is the other way round: back only where the release was turned back. A sensor that
    left nothing in the lease, as when somebody marked it successful, has proven nothing. Run again, the same.
    """

    def __init__(self, *, watch: str, onward: str | None, back: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.watch, self.onward, self.back = watch, onward, back

    def execute(self, context: Any) -> Any:
        return BaseBranchOperator.execute(self, context)

    def choose_branch(self, context: Any) -> str | list[str]:
        with telling(self, context):
            released = ReleasedService(self.spec, Run.of(context, self.spec))
            now = released.held()
            revision = now.as_canary.revision
            if self.onward is None and now.went_back is None:
                return []
            if self.onward and now.went_back is None and now.promoted:
                self.log.info("Onward to %s: %s", self.onward, now.word)
                return self.onward
            unproven = f"task {self.watch} decided nothing about {revision} (was it marked by hand?): nothing is proven"
            why, cause = (now.went_back, Cause.PERSON) if now.went_back else (unproven, Cause.UNPROVEN)
            now = released.note_by(lambda now: now.close(why, cause), going_back=True)
            self.log.warning("Back: %s", now.closed)
            return self.back
