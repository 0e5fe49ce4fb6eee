"""How a run ends: settled, and with one true sentence (`release.outcome`)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from model_release.cluster.release import Phase
from model_release.errors import ClusterRefused, ClusterUnavailable
from model_release.release.outcome import Outcome, outcome_of, recorded, unclaimed, unsettled
from model_release.spec import ModelSpec
from model_release.tasks import lineage, notify, records, registry, telemetry
from model_release.tasks.base import TROUBLE, ReleaseOperator
from model_release.tasks.run import Run
from model_release.tasks.service import ReleasedService

if TYPE_CHECKING:
    from model_release.cluster.release import Release
    from model_release.judging.record import Record


class Settle(ReleaseOperator):
    """The teardown of the claim. Whatever happened before it (success, failure, kill, "mark failed"), it reads the live
    state, brings the traffic to a proven revision and the stable template into the spec, records how the release ended,
    and gives the lease free.

    It fails the run, and keeps the lease so that no other release begins, when it cannot. Run again, it finds the
    lease given free and does nothing.
    """

    def release(self, context: Any, run: Run) -> str:
        released = ReleasedService(self.spec, run)
        lease = released.leases.read(released.namespace, released.name)
        now = lease.release if lease else None
        if now is None or now.owner.identity != released.owner.identity:
            return f"this run holds no claim on {self.spec.service.key}; nothing to settle"
        # A claim that was marked successful by hand may still have had in hand what an earlier run had left.
        sentence, trouble = "nothing was touched", trouble_of(context["ti"], run, but=self.task_id)
        if now.left.baseline is not None:
            if trouble is not None:
                # Whoever still drives this canary would take what is done here for another hand's change. By what
                # was decided before this word, it is settled: the drive decides nothing after it.
                now = released.note(going_back=True, trouble=trouble)
            sentence = released.settle(now.left, self.log.info)
            live = released.live()
            released.record_traffic("settle", live.serving.get(str(now.canary), 0) if live else 0, live)
        if (order := now.order) is not None:
            released.record(lambda record: record.record_approval(order.when, order.who, order.kind, order.why))

        def ended(release: Release) -> Release:
            return replace(release, phase=Phase.SETTLED, trouble=trouble)

        finish(self.spec, run, outcome_of(ended(now)))
        released.leases.give_free(released.namespace, released.name, released.owner, ended)
        self.log.info("Settled: %s", sentence)
        return sentence


class Report(ReleaseOperator):
    """Says how the release ended, in one sentence: as its own log, as its result, in the record. A release that was
    rolled back, or came to nothing, ends as a failed run whose last task says why. Run again, it says the same."""

    def release(self, context: Any, run: Run) -> str:
        ti = context["ti"]
        outcome = self.outcome(ti, run)
        try:
            finish(self.spec, run, outcome)
        finally:  # people are told also while the store that keeps the record is away
            event = notify.event_of(outcome)
            if event is not None:
                notify.tell(self.spec, run, event, outcome.sentence, attempt=ti.try_number)
        made = ti.xcom_pull(task_ids="publish") or ti.xcom_pull(task_ids="resolve", key="resolved") or {}
        self.lineage = lineage.ended(self.spec, run, made.get("version"), outcome.kind, outcome.sentence)
        line = f"{' '.join(filter(None, [self.spec.model, made.get('version', '')]))}: {outcome.sentence}"
        if outcome.kind in ("rolled_back", "failed") and (settled := ti.xcom_pull(task_ids="settle")):
            line += f" Settled: {settled}."
        self.log.info("%s", line)
        ti.xcom_push(key="return_value", value=line)
        outcome.check(line)
        return line

    def outcome(self, ti: Any, run: Run) -> Outcome:
        """By the release that this run's `settle` left in the lease or, where another one has taken that since, by its
        record. A run that claimed nothing is told by its tasks."""
        states = _states(ti, run)
        if states.get("settle") in ("success", "failed"):
            found = self._settled(run)
            if states["settle"] == "failed":
                trouble = _told(ti, "settle")
                return unsettled(found, trouble) if found is not None else unclaimed(trouble=trouble)
            if found is not None:
                return found
        resolved = ti.xcom_pull(task_ids="resolve", key="resolved") or {}
        return unclaimed(
            trouble=trouble_of(ti, run, but=self.task_id),
            refused=states.get("claim") == "failed",
            nothing_new=resolved.get("nothing_new") or False,
            published=states.get("publish") == "success" and not run.moves_traffic,
        )

    def _settled(self, run: Run) -> Outcome | None:
        """What became of this run's release; None where it has none."""
        try:
            released = ReleasedService(self.spec, run)
            lease = released.leases.read(released.namespace, released.name)
            last = lease.last if lease else None
        except (ClusterRefused, ClusterUnavailable) as error:
            self.log.info("The lease does not say how it ended: %s", error)
        else:
            if last is not None and last.owner.identity == released.owner.identity:
                return outcome_of(last)
        record = records.read(self.spec, run)
        return recorded(record) if record is not None else None


def finish(spec: ModelSpec, run: Run, outcome: Outcome) -> None:
    """Records how the release ended, tells the model's registry, and counts it in Airflow's metrics. Said again, it is
    not counted again, and keeps its time; a later try of the write may find what an earlier one wrote."""
    ends: list[tuple[str | None, Record]] = []

    def edit(record: Record) -> None:
        ends.append((record.ended, record))
        if outcome.kind == "nothing_new" and record.outcome in ("promoted", "first"):
            return  # the run was cleared: what it finds to be stable is what it had made stable
        said = (record.outcome, record.reason) == (outcome.kind, outcome.sentence)
        record.finish(outcome.kind, outcome.sentence, (said and record.ended) or records.now(), outcome.cause)

    records.change(spec, run, edit)
    if ends and ends[0][0] != ends[-1][1].ended:
        telemetry.released(ends[-1][1])
    if ends:
        registry.note(spec, ends[-1][1], run.page)


def trouble_of(ti: Any, run: Run, *, but: str) -> str | None:
    """The line of the task that failed last, of all `but` this one; None when none did."""
    failed = [task for task, state in _states(ti, run).items() if state == "failed" and task not in (but, "settle")]
    failed.sort(key=lambda task: task != "look_back")  # the last one is told; this stands beside the way
    return _told(ti, failed[-1]) if failed else None


def _states(ti: Any, run: Run) -> dict[str, str | None]:
    return dict(ti.get_task_states(run.dag_id, run_ids=[run.run_id])[run.run_id])


def _told(ti: Any, task: str) -> str:
    why = ti.xcom_pull(task_ids=task, key=TROUBLE) or "it was ended from outside: marked by hand, killed or lost"
    return f"task {task} failed: {why}"
