"""How a run ends: settled, and with one true sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_release.errors import ReleaseFailed, RolledBack
from model_release.tasks import notify, records, telemetry
from model_release.tasks.base import TROUBLE, ReleaseOperator
from model_release.tasks.canary import BACK_FROM
from model_release.tasks.run import Run
from model_release.tasks.service import ReleasedService

if TYPE_CHECKING:
    from model_release.judging.record import Record

CLOSED = "closed"  # the XCom key under which `settle` leaves why the canary's traffic was taken back


class Settle(ReleaseOperator):
    """The teardown of the claim. Whatever happened before it (success, failure, kill, "mark failed"), it reads the live
    state, brings the traffic to a proven revision and the stable template into the spec, and gives the lease free.

    It fails the run, and keeps the lease so that no other release begins, when it cannot. Run again, it finds the
    lease given free and does nothing.
    """

    def release(self, context: Any, run: Run) -> str:
        released = ReleasedService(self.spec, run)
        lease = released.leases.read(released.namespace, released.name)
        claim = lease.claim if lease else None
        if claim is None or claim.owner.identity != released.owner.identity:
            return f"this run holds no claim on {self.spec.service.key}; nothing to settle"
        # A claim that was marked successful by hand may still have had in hand what an earlier run had left.
        release = claim.left.as_release(released.namespace, released.name)
        sentence = "nothing was touched"
        order = claim.order
        if why := claim.went_back:
            context["ti"].xcom_push(key=CLOSED, value=why)
        if release is not None:
            sentence = released.settle(release, self.log.info)
            live = released.live()
            released.record_traffic("settle", live.serving.get(str(claim.canary), 0) if live else 0, live)
        if order is not None:
            released.record(lambda record: record.record_approval(order.when, order.who, order.kind, order.why))
        released.leases.release(released.namespace, released.name, released.owner)
        self.log.info("Settled: %s", sentence)
        return sentence


class Report(ReleaseOperator):
    """Says how the release ended, in one sentence: as its own log, as its result, in the record. A release that was
    rolled back, or came to nothing, ends as a failed run whose last task says why. Run again, it says the same."""

    def release(self, context: Any, run: Run) -> str:
        outcome, sentence, settled = self.ending(context, run)
        ti = context["ti"]
        ends: list[tuple[str | None, Record]] = []

        def finish(record: Record) -> None:
            ends.append((record.ended, record))
            _finish(record, outcome, sentence)

        try:
            records.change(self.spec, run, finish)
            # Said again, it is not counted again; a later try of the write may find what an earlier one wrote.
            if ends and ends[0][0] != ends[-1][1].ended:
                telemetry.released(ends[-1][1])
        finally:
            self.tell(ti, run, outcome, sentence)
        made = ti.xcom_pull(task_ids="publish") or ti.xcom_pull(task_ids="resolve", key="resolved") or {}
        version = made.get("version", "")
        line = f"{' '.join(filter(None, [self.spec.model, version]))}: {sentence}"
        line += f" Settled: {settled}." if settled else ""
        self.log.info("%s", line)
        if outcome in ("promoted", "first", "nothing_new", "published"):
            return line
        context["ti"].xcom_push(key="return_value", value=line)
        raise RolledBack(line) if outcome == "rolled_back" else ReleaseFailed(line)

    def ending(self, context: Any, run: Run) -> tuple[str, str, str | None]:
        """Outcome, its sentence, and what `settle` said; from the states of this run's tasks and what they left."""
        ti = context["ti"]
        states = ti.get_task_states(run.dag_id, run_ids=[run.run_id])[run.run_id]
        settled = ti.xcom_pull(task_ids="settle")
        failed = [task for task, state in states.items() if state == "failed" and task != self.task_id]
        failed.sort(key=lambda task: task != "look_back")  # the last one is told; this stands beside the way
        closed = ti.xcom_pull(task_ids="settle", key=CLOSED)
        if closed and "settle" not in failed:
            return "rolled_back", str(closed), settled
        if states.get("roll_back") == "success" and failed in ([], ["settle"]):
            why = self.why_back(ti)
            return "rolled_back", f"{why} {self.trouble(ti, 'settle')}" if failed else why, settled
        if failed:
            return "failed", self.trouble(ti, failed[-1] if "settle" not in failed else "settle"), settled
        if states.get("go_live") == "success":
            return "first", "live at 100 %, the first version of the service.", None
        if states.get("go_direct") == "success":
            return "promoted", f"all traffic at once, without a canary, as {run.who} asked: {run.params['note']}", None
        if states.get("promote") == "success":
            return "promoted", self.last_reason(ti), None
        resolved = ti.xcom_pull(task_ids="resolve", key="resolved") or {}
        if resolved.get("nothing_new") or (ti.xcom_pull(task_ids="stage") or {}).get("kind") == "nothing_new":
            return "nothing_new", "the stable version already; nothing new.", None
        if states.get("publish") == "success" and not run.moves_traffic:
            return "published", "published; no traffic was moved.", None
        return "failed", "the run was ended before it came to a decision.", settled

    def trouble(self, ti: Any, task: str) -> str:
        """The one line of a task that failed."""
        why = ti.xcom_pull(task_ids=task, key=TROUBLE) or "it was ended from outside: marked by hand, killed or lost"
        return f"task {task} failed: {why}"

    def tell(self, ti: Any, run: Run, outcome: str, sentence: str) -> None:
        """Tells people, also while the store that keeps the record is away."""
        undecided = ti.xcom_pull(task_ids="decide", key=BACK_FROM) == "inconclusive"
        event = notify.INCONCLUSIVE if undecided and outcome == "rolled_back" else notify.OF_OUTCOME.get(outcome)
        if event is not None:
            notify.tell(self.spec, run, event, sentence, attempt=ti.try_number)

    def why_back(self, ti: Any) -> str:
        """The sentence of the verdict that turned the release back."""
        for task in ("decide", "decide_bake"):
            if back := ti.xcom_pull(task_ids=task, key="back"):
                return str(back)
        return ""

    def last_reason(self, ti: Any) -> str:
        """The sentence of the verdict that promoted."""
        verdict = ti.xcom_pull(task_ids="canary") or {}
        return str(verdict.get("reason", ""))


def _finish(record: Record, outcome: str, sentence: str) -> None:
    """A report that says the same again keeps its time; what `promote` noted for the case of a crash gives way."""
    if outcome == "nothing_new" and record.outcome in ("promoted", "first"):
        return  # the run was cleared: what it finds to be stable is what it had made stable
    said = (record.outcome, record.reason) == (outcome, sentence)
    record.finish(outcome, sentence, (said and record.ended) or records.now())
