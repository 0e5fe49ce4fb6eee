"""The sensor that drives the canary and waits for its end, and the branch that acts on it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseBranchOperator, BaseSensorOperator
from airflow.sdk.exceptions import TaskDeferred

from model_release import errors
from model_release.errors import CanaryLost, ClusterUnavailable
from model_release.tasks import ask, driving, links, records, service
from model_release.tasks.base import ReleaseOperator, telling
from model_release.tasks.run import Run
from model_release.tasks.service import ReleasedService
from model_release.tasks.triggers import CanaryTrigger

if TYPE_CHECKING:
    from model_release.cluster.lease import Claim
    from model_release.release.drive import Drive
    from model_release.spec import ModelSpec

# Between the drive's own end and Airflow's: the drive must be the one that ends it, with a reason.
_SLACK = timedelta(minutes=30)

BACK_FROM = "back_from"  # the XCom key under which a branch that goes back leaves the decision that sent it there


class CanarySensor(ReleaseOperator, BaseSensorOperator):
    """Waits, in the triggerer, while the canary is opened, looked at, widened and promoted or taken back: each look is
    a log line. Where the model file wants a person's word, it asks, and the canary is looked at meanwhile.

    Returns {"decision", "reason", "revision", "traffic": when the gateway had which share}, and "by" where a person
    decided. Run again while the canary is open, it goes on by the model file that the release began with, and reads the
    same windows, or asks again; run again when its traffic was taken back, it fails with what is in the lease about
    that.
    """

    def release(self, context: Any, run: Run) -> Any:
        released, canary = ReleasedService(self.spec, run), service.canary(context)
        service.check_answered(context, canary.revision)
        claim = released.claim()
        links.push_for(context["ti"], self.spec, [name for name in (canary.revision, canary.baseline) if name])
        if claim.watches and claim.watches[-1].beside_question and not claim.promoted:
            # The try that had asked is gone, and its question with it: nobody could answer that one any more.
            self._ask(context, run, claim.watches[-1].why)
        self.log.info("Driving %s beside %s", canary.revision, canary.baseline)
        self._drive(context, run, claim)

    def ended(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        """The drive is over: it is recorded; or a person is asked now."""
        with telling(self, context):
            run = Run.of(context, self.spec)
            verdict = self._verdict(context, run, event)
            if verdict["decision"] == "ask":
                self._ask(context, run, str(verdict["reason"]))
            return verdict

    def answered(self, context: Any, event: dict[str, Any]) -> Any:
        """Somebody answered, the evidence turned, or nobody answered in time."""
        with telling(self, context):
            run = Run.of(context, self.spec)
            if "chosen_options" in event:
                return self._person(context, run, event)
            verdict = self._verdict(context, run, event)
            if verdict["decision"] == "promote":
                return verdict
            who = "nobody" if verdict["decision"] == "inconclusive" else "the judge, while a person was asked"
            if who == "nobody":
                self._approved(run, records.now(), who, "rollback", str(verdict["reason"]))
            return {**verdict, "by": who}

    def _drive(self, context: Any, run: Run, claim: Claim, *, question: str | None = None) -> NoReturn:
        """Hands the canary to the triggerer, which goes on from what the lease says."""
        spec = driving.began_with(claim, self.spec)
        longest = self._longest(spec)
        raise TaskDeferred(
            trigger=CanaryTrigger(
                spec=spec.model_dump_json(),
                canary=service.canary(context).as_dict(),
                run=asdict(run),
                deadline=(datetime.now(UTC) + longest).isoformat(),
                **({} if question is None else {"question": question}),
            ),
            method_name=self.ended.__name__ if question is None else self.answered.__name__,
            timeout=longest + _SLACK,
        )

    def _longest(self, spec: ModelSpec) -> timedelta:
        rollout = spec.rollout
        return len(rollout.steps) * rollout.deadline + spec.answer_within + rollout.ready_within

    def _verdict(self, context: Any, run: Run, event: dict[str, Any]) -> dict[str, Any]:
        """What the drive said, recorded; or the trouble that ended it, raised."""
        if name := event.get("error"):
            raise getattr(errors, name)(event["sentence"])
        released = ReleasedService(self.spec, run)
        order = released.held().order

        def edit(record: Any) -> None:
            driving.put(record, self.spec, event)
            if order is not None:
                record.record_approval(order.when, order.who, order.kind, order.why)

        released.record(edit)
        self.log.info("%s: %s", event["decision"], event["reason"])
        said_by = {"by": order.who} if order is not None and order.kind == "promote" else {}
        told = {key: event[key] for key in ("decision", "reason", "revision")}
        return {**told, "traffic": event["moved"], **said_by}

    # -- a person's word -----------------------------------------------------------------------------------------------

    def _ask(self, context: Any, run: Run, why: str) -> NoReturn:
        from model_release.release import advance

        released, asked = ReleasedService(self.spec, run), datetime.now(UTC)
        claim = released.note_by(lambda claim: advance.ask(claim, records.moment(asked), why))
        ask.ask(context["ti"], driving.began_with(claim, self.spec), run, claim, why, asked)
        self.log.info("Asked: %s", why)
        self._drive(context, run, claim, question=str(context["ti"].id))

    def _person(self, context: Any, run: Run, event: dict[str, Any]) -> Any:
        from model_release.release import advance

        answer, heard = ask.read(event), records.now()
        self.log.info("%s", answer.sentence)
        released, canary = ReleasedService(self.spec, run), service.canary(context)
        if answer.chosen == ask.LONGER:
            claim = released.note_by(lambda claim: advance.watch_longer(claim, records.now()))
            self._approved(run, heard, answer.who, answer.decision, answer.reason)
            self._drive(context, run, claim)
        claim = released.claim()
        spec = driving.began_with(claim, self.spec)
        drive = driving.drive(spec, canary, run, "worker")
        if answer.chosen == ask.PROMOTE:
            # Evidence goes before an answer that crossed it: looked at once more, at the share that it has.
            drive.look()
            now = released.held()
            if now.closed is None:
                rules = driving.rules(spec)
                claim = released.note_by(lambda claim: advance.go_on(claim, records.now(), rules, answer.sentence))
                if not claim.promoted:
                    self._approved(run, heard, answer.who, answer.decision, answer.reason)
                    self._drive(context, run, claim)
        else:
            drive.close(answer.sentence)
        self._finish(drive, spec)
        # Traffic before words: a store that hangs must not keep a canary open that somebody wants closed.
        self._approved(run, heard, answer.who, answer.decision, answer.reason)
        verdict = self._verdict(context, run, driving.outcome(drive))
        crossed = answer.chosen == ask.PROMOTE and verdict["decision"] != "promote"
        reason = f"{verdict['reason']} (the answer crossed the evidence)" if crossed else answer.sentence
        return {**verdict, "reason": reason, "by": answer.who}

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

        ti, released, canary = context["ti"], ReleasedService(self.spec, run), service.canary(context)
        found = ti.xcom_pull(task_ids="promote") or ti.xcom_pull(task_ids="go_direct") or {}
        if not released.claim().promoted or "promoted_at" not in found:
            raise CanaryLost("nothing was promoted in this run; clear the run's task promote")
        links.push_for(ti, self.spec, [name for name in (canary.revision, canary.baseline) if name])
        self._drive(context, run, released.note_by(lambda claim: advance.bake(claim, found["promoted_at"])))

    def _longest(self, spec: ModelSpec) -> timedelta:
        return spec.rollout.bake + spec.rollout.ready_within


class Decide(ReleaseOperator, BaseBranchOperator):
    """The branch: onward on "promote" for the very revision that is staged, back on everything else.

    After the bake (`onward` None) it is the other way round: back only on evidence against. A sensor that left no
    verdict, as when somebody marked it successful, has proven nothing. Run again, it decides the same.
    """

    def __init__(self, *, watch: str, onward: str | None, back: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.watch, self.onward, self.back = watch, onward, back

    def execute(self, context: Any) -> Any:
        return BaseBranchOperator.execute(self, context)

    def choose_branch(self, context: Any) -> str | list[str]:
        with telling(self, context):
            verdict = context["ti"].xcom_pull(task_ids=self.watch)
            staged = service.canary(context).revision
        if self.onward is None and (verdict or {}).get("decision") != "rollback":
            return []
        if not verdict:
            reason = f"task {self.watch} left no verdict (was it marked by hand?): nothing is proven"
        elif verdict["revision"] != staged:
            reason = f"{verdict['revision']} was judged, and {staged} is staged"
        elif self.onward and verdict["decision"] == "promote":
            self.log.info("Onward to %s: %s", self.onward, verdict["reason"])
            return self.onward
        else:
            reason = verdict["reason"]
        self.log.warning("Back: %s", reason)
        context["ti"].xcom_push(key="back", value=reason)
        context["ti"].xcom_push(key=BACK_FROM, value=(verdict or {}).get("decision"))
        return self.back
