"""A person's word, with the evidence beside the question.

Airflow's human-in-the-loop machinery, on a task that is deferred and not parked: Airflow resumes it when somebody
answers, and our own trigger resumes it when the canary, which is looked at all the while, turns bad. A parked task
could not be woken by evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from model_release.spec import ModelSpec
from model_release.tasks import notify
from model_release.tasks.run import Run
from model_release.tasks.triggers import BACK

if TYPE_CHECKING:
    from model_release.cluster.release import Release

PROMOTE, LONGER = "Promote", "Watch longer"
OPTIONS = [PROMOTE, BACK, LONGER]

_DECISIONS = {PROMOTE: "promote", BACK: "rollback", LONGER: "watch longer"}


@dataclass(frozen=True)
class Choice:
    """What a person chose, and why."""

    chosen: str
    who: str
    reason: str

    @property
    def decision(self) -> str:
        """As the record has it."""
        return _DECISIONS[self.chosen]

    @property
    def sentence(self) -> str:
        return f"{self.who} says {self.decision}" + (f": {self.reason}." if self.reason else ".")


def read(event: dict[str, Any]) -> Choice:
    """The answer as Airflow gives it."""
    (chosen,) = event["chosen_options"]
    who = str((event.get("responded_by_user") or {}).get("name") or "somebody unknown")
    return Choice(chosen, who, str((event.get("params_input") or {}).get("reason") or ""))


def ask(ti: Any, spec: ModelSpec, run: Run, now: Release, why: str, asked: datetime) -> None:
    """Asks whether the canary of this release is to be promoted. Again by the same try: the question is replaced."""
    from airflow.sdk.execution_time.hitl import upsert_hitl_detail

    upsert_hitl_detail(
        ti_id=ti.id,
        options=OPTIONS,
        subject=f"{spec.model}: promote {now.canary}?",
        body=_body(spec, run, now, why, asked + spec.answer_within),
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
    which = f"{ti.task_id} {now.percent} {now.watches[-1].again}"
    notify.tell(spec, run, notify.NEEDS_YOU, f"{now.canary} waits for an answer. {why}", which=which)


def _body(spec: ModelSpec, run: Run, now: Release, why: str, deadline: datetime) -> str:
    """Markdown. Nothing in it comes from a form or a label."""
    would = why.removeprefix("Promoted: ")
    return "\n\n".join(
        [
            f"**{now.canary}** takes {now.percent} % of {spec.service.key}; the plan is {spec.rollout.path}.",
            f"The judge says: {why}" if would == why else f"The judge would promote it: {would}",
            f"It is looked at meanwhile: evidence against it rolls it back at once and withdraws this question. "
            f"No answer until {deadline:%Y-%m-%d %H:%M} UTC rolls it back, too.",
            f"[The release]({run.page}) · [The run]({run.url})",
        ]
    )
