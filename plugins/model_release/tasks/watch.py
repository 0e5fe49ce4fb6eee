"""The sensor that waits for evidence, and the branch that acts on it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseBranchOperator, BaseSensorOperator
from airflow.sdk.exceptions import TaskDeferred

from model_release import errors
from model_release.errors import CanaryLost
from model_release.tasks import links, records, service
from model_release.tasks.base import ReleaseOperator, telling
from model_release.tasks.run import Run
from model_release.tasks.service import ReleasedService
from model_release.tasks.triggers import CanaryTrigger

if TYPE_CHECKING:
    from model_release.serving.rollout import Canary

# Between the watch's own deadline and Airflow's: the watch must be the one that ends it, with a reason.
_SLACK = timedelta(minutes=5)

BACK_FROM = "back_from"  # the XCom key under which a branch that goes back leaves the decision that sent it there


class WatchCanary(ReleaseOperator, BaseSensorOperator):
    """Waits, in the triggerer, until the judge has an answer for the canary at `percent`; each look is a log line.

    Returns {"decision", "reason", "revision"}. Run again while the canary is open, it reads the same windows from the
    opening on and comes to the same answer; run again when nothing is open, it fails and says so.
    """

    def __init__(self, *, percent: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.percent = percent

    def opened(self, context: Any, released: ReleasedService) -> tuple[datetime, datetime]:
        """When the windows begin, and the moment after which there are no more."""
        claim = released.claim()
        if claim.percent != self.percent or claim.opened_at is None:
            raise CanaryLost(f"no canary of this run is open at {self.percent} %; clear the task that opens it")
        opened = datetime.fromisoformat(claim.opened_at)
        return opened, opened + self.spec.rollout.deadline

    def release(self, context: Any, run: Run) -> Any:
        released = ReleasedService(self.spec, run)
        canary = service.canary(context)
        opened, deadline = self.opened(context, released)
        # The trigger would see it as well. A task that is tried again after that ends here, and settling begins sooner.
        released.check_untouched(canary, self.percent)
        links.push_for(context["ti"], self.spec, [name for name in (canary.revision, canary.baseline) if name])
        self.log.info("Watching %s since %s, until %s at the latest", canary.revision, opened, deadline)
        self.defer_until(deadline, opened, canary, run, self.spec.policy(self.percent), self.judged.__name__)

    def defer_until(
        self,
        deadline: datetime,
        opened: datetime,
        canary: Canary,
        run: Run,
        said: dict[str, Any],
        then: str,
        **more: Any,
    ) -> NoReturn:
        """Watches on in the triggerer, judging by the policy `said`, until it decides or the deadline comes."""
        raise TaskDeferred(
            trigger=CanaryTrigger(
                spec=self.spec.model_dump_json(),
                canary=canary.as_dict(),
                percent=self.percent,
                opened=opened.isoformat(),
                deadline=deadline.isoformat(),
                run=asdict(run),
                said=said,
                **more,
            ),
            method_name=then,
            timeout=max(deadline - datetime.now(UTC), timedelta(0)) + _SLACK,
        )

    def judged(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        """Judges what the trigger counted once more, and records it."""
        with telling(self, context):
            return self._judged(context, event, Run.of(context, self.spec))

    def _judged(self, context: Any, event: dict[str, Any], run: Run) -> dict[str, Any]:
        released = ReleasedService(self.spec, run)
        opened, _ = self.opened(context, released)
        return self.verdict_on(context, event, released, opened, self.spec.policy(self.percent))

    def verdict_on(
        self,
        context: Any,
        event: dict[str, Any],
        released: ReleasedService,
        opened: datetime,
        said: dict[str, Any],
    ) -> dict[str, Any]:
        """The verdict on what the trigger counted since `opened`, by the policy `said`; it is recorded. Where a person
        ordered the promotion meanwhile, that is the decision, and `by` has the name."""
        from model_release.judging import Policy, Window, judge
        from model_release.serving.lease import Order
        from model_release.tasks.look import stable_trouble

        if name := event.get("error"):
            raise getattr(errors, name)(event["sentence"])
        canary, policy = service.canary(context), Policy.from_dict(said)
        windows = [Window.from_dict(window) for window in event["windows"]]
        verdict = judge(policy, windows, final=event["final"])
        order = Order(**event["order"]) if event.get("order") else None

        def edit(record: Any) -> None:
            records.put_step(
                record,
                self.spec,
                percent=self.percent,
                opened=opened,
                policy=policy,
                windows=windows,
                final=event["final"],
                verdict=verdict,
            )
            if order is not None:
                record.record_approval(order.when, order.who, order.kind, order.why)

        released.record(edit)
        decision, reason = verdict.decision, verdict.reason
        reason += f" ({event['trouble']})" if event.get("trouble") else ""
        if order is not None:
            decision, reason = "promote", f"{order} (The judge: {reason})"
        elif decision != "promote" and (trouble := stable_trouble(policy, windows)):
            reason += f" {trouble}"
        self.log.info("%s: %s", decision, reason)
        said_by = {"by": order.who} if order is not None else {}
        return {
            "decision": decision,
            "reason": reason,
            "revision": canary.revision,
            "windows": verdict.windows_used,
            **said_by,
        }


class WatchBake(WatchCanary):
    """Watches on after the promotion, the promoted revision alone, for the time that the model file gives.

    Only evidence against it ends the bake early.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(percent=None, **kwargs)

    def opened(self, context: Any, released: ReleasedService) -> tuple[datetime, datetime]:
        ti = context["ti"]
        found = ti.xcom_pull(task_ids="promote") or ti.xcom_pull(task_ids="go_direct") or {}
        if not released.claim().promoted or "promoted_at" not in found:
            raise CanaryLost("nothing was promoted in this run; clear the run's task promote")
        promoted = datetime.fromisoformat(found["promoted_at"])
        return promoted, promoted + self.spec.rollout.bake


class Decide(ReleaseOperator, BaseBranchOperator):
    """The branch: onward on "promote" for the very revision that is staged, back on everything else.

    After the bake (`onward` None) it is the other way round: back only on evidence against. A watch that left no
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
