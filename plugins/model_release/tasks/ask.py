"""A person's word between a watch and its decision, with the evidence beside the question.

Airflow's human-in-the-loop machinery, on a task that is deferred and not parked: Airflow resumes it when somebody
answers, and our own trigger resumes it when the canary, which is watched all the while, turns bad. A parked task could
not be woken by evidence.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NoReturn

from model_release.spec import format_duration
from model_release.tasks import notify, records, service
from model_release.tasks.base import telling
from model_release.tasks.run import Run
from model_release.tasks.service import ReleasedService
from model_release.tasks.triggers import BACK
from model_release.tasks.watch import WatchCanary

PROMOTE, LONGER = "Promote", "Watch longer"
OPTIONS = [PROMOTE, BACK, LONGER]

_ASKED = "asked"  # the XCom key under which this try keeps the moment of the question and its number


class Ask(WatchCanary):
    """Hands the verdict of the task `watch` on, or asks a person first: before a promotion, or where the judge cannot
    tell, as the model file's `approval` says.

    While the question is open the canary is watched on, and evidence against it withdraws the question and rolls back.
    No answer by the deadline, no data, or a task that was marked by hand, is no approval. "Watch longer" begins a watch
    with a deadline of its own, after which there may be another question.

    Returns what a watch returns, with who decided: {"decision", "reason", "revision", "by"}. Run again, it asks again;
    an answer that was given before counts no more.
    """

    def __init__(self, *, watch: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.watch = watch

    def release(self, context: Any, run: Run) -> Any:
        verdict = context["ti"].xcom_pull(task_ids=self.watch)
        # Who has ordered the promotion already is not asked for it.
        if verdict and "by" not in verdict and verdict["decision"] in self._asked_about:
            self._ask(context, run, str(verdict["reason"]), number=0)
        return verdict

    @property
    def _asked_about(self) -> tuple[str, ...]:
        return ("promote",) if self.spec.approval == "before_promote" else ("inconclusive",)

    def _ask(self, context: Any, run: Run, why: str, *, number: int) -> NoReturn:
        from airflow.sdk.execution_time.hitl import upsert_hitl_detail

        ti, canary, asked = context["ti"], service.canary(context), datetime.now(UTC)
        deadline = asked + self.spec.answer_within
        ti.xcom_push(key=_ASKED, value={"at": asked.isoformat(), "number": number})
        upsert_hitl_detail(
            ti_id=ti.id,
            options=OPTIONS,
            subject=f"{self.spec.model}: promote {canary.revision}?",
            body=self._body(why, canary.revision, run, deadline),
            defaults=[BACK],
            params={
                "reason": {
                    "value": "",
                    "description": "Why; kept in the decision record.",
                    "schema": {"type": ["string", "null"], "maxLength": 1000, "title": "Reason"},
                    "source": "task",
                }
            },
        )
        self.log.info("Asked until %s: %s", deadline.isoformat(timespec="seconds"), why)
        notify.tell(
            self.spec,
            run,
            notify.NEEDS_YOU,
            f"{canary.revision} waits for an answer. {why}",
            which=f"{self.task_id} {number}",
        )
        question = str(ti.id)
        self.defer_until(deadline, asked, canary, run, self._beside(number), self.answered.__name__, question=question)

    def _beside(self, number: int) -> dict[str, Any]:
        return self.spec.policy(self.percent, guard=True, again=number + 1)

    def _body(self, why: str, revision: str, run: Run, deadline: datetime) -> str:
        """Markdown. Nothing in it comes from a form or a label."""
        step = f"{self.percent} % of {self.spec.service.key}"
        plan = " → ".join(map(str, (*self.spec.rollout.steps, 100)))
        would = why.removeprefix("Promoted: ")
        return "\n\n".join(
            [
                f"**{revision}** takes {step}; the plan is {plan} %.",
                f"The judge says: {why}" if would == why else f"The judge would promote it: {would}",
                f"It is watched on meanwhile: evidence against it rolls it back at once and withdraws this question. "
                f"No answer until {deadline:%Y-%m-%d %H:%M} UTC rolls it back, too.",
                f"[The release]({run.page}) · [The run]({run.url})",
            ]
        )

    def answered(self, context: Any, event: dict[str, Any]) -> Any:
        """Somebody answered, the evidence turned, or nobody answered in time."""
        with telling(self, context):
            run = Run.of(context, self.spec)
            asked = context["ti"].xcom_pull(task_ids=self.task_id, key=_ASKED)
            if "chosen_options" in event:
                return self._person(context, run, event, asked)
            return self._nobody(context, run, event, asked)

    def _nobody(self, context: Any, run: Run, event: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        since = datetime.fromisoformat(asked["at"])
        released = ReleasedService(self.spec, run)
        verdict = self.verdict_on(context, event, released, since, self._beside(asked["number"]))
        if "by" in verdict:
            return verdict
        if verdict["decision"] == "rollback":
            return {**verdict, "by": "the judge, while a person was asked"}
        late = datetime.now(UTC) >= since + self.spec.answer_within
        waited = format_duration(self.spec.answer_within)
        why = f"Nobody answered within {waited}: rolled back." if late else f"Not watched: {verdict['reason']}"
        records.change(self.spec, run, lambda record: record.record_approval(asked["at"], "nobody", "rollback", why))
        return {**verdict, "decision": "rollback", "reason": why, "by": "nobody"}

    def _person(self, context: Any, run: Run, event: dict[str, Any], asked: dict[str, Any]) -> Any:
        (chosen,) = event["chosen_options"]
        who = str((event.get("responded_by_user") or {}).get("name") or "somebody unknown")
        reason = str((event.get("params_input") or {}).get("reason") or "")
        decision = {PROMOTE: "promote", BACK: "rollback", LONGER: "watch longer"}[chosen]
        when = records.now()
        records.change(self.spec, run, lambda record: record.record_approval(when, who, decision, reason))
        said = f"{who} says {decision}" + (f": {reason}" if reason else "")
        self.log.info("%s", said)
        canary = service.canary(context)
        if chosen == LONGER:
            number, now = asked["number"] + 1, datetime.now(UTC)
            context["ti"].xcom_push(key=_ASKED, value={"at": now.isoformat(), "number": number})
            longer = self.spec.policy(self.percent, again=number)
            self.defer_until(now + self.spec.rollout.deadline, now, canary, run, longer, self.watched.__name__)
        verdict = {"decision": decision, "reason": f"{said}.", "revision": canary.revision, "by": who}
        if chosen == PROMOTE and (against := self._turned(run, canary, asked)):
            return {**verdict, "decision": "rollback", "reason": against}
        return verdict

    def watched(self, context: Any, event: dict[str, Any]) -> Any:
        """The longer watch that somebody asked for is over."""
        with telling(self, context):
            run = Run.of(context, self.spec)
            asked = context["ti"].xcom_pull(task_ids=self.task_id, key=_ASKED)
            since, longer = datetime.fromisoformat(asked["at"]), self.spec.policy(self.percent, again=asked["number"])
            verdict = self.verdict_on(context, event, ReleasedService(self.spec, run), since, longer)
            settled = ("rollback",) if "promote" in self._asked_about else ("rollback", "promote")
            if "by" not in verdict and verdict["decision"] not in settled:
                self._ask(context, run, str(verdict["reason"]), number=asked["number"])
            return {"by": "the judge", **verdict}

    def _turned(self, run: Run, canary: Any, asked: dict[str, Any]) -> str | None:
        """What the windows since the question say against the canary: an answer may cross the evidence."""
        from dataclasses import asdict

        from model_release.tasks.look import Watch

        now = datetime.now(UTC)
        watch = Watch.begin(
            spec=self.spec.model_dump_json(),
            canary=canary.as_dict(),
            percent=self.percent,
            opened=asked["at"],
            deadline=(now + self.spec.rollout.window).isoformat(),
            run=asdict(run),
            said=self._beside(asked["number"]),
        )
        watch.look(now)
        if watch.lost:
            return watch.lost
        verdict = watch.judge.verdict()
        return f"{verdict.reason} (the answer crossed the evidence)" if verdict.decision == "rollback" else None
