"""What the judge says today of traffic that has passed: for runs that build a version again and move nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from model_release.errors import MetricsRefused, MetricsUnavailable
from model_release.tasks import connections, records, service
from model_release.tasks.base import ReleaseOperator
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from model_release.judging import Policy, Verdict, Window
    from model_release.judging.record import Record


class LookBack(ReleaseOperator):
    """Judges the version's last canary again, by the limits of today's model file.

    The counts are read anew from Prometheus where it still has that time, else they are those of the decision record;
    the answer says which. A version that never was a canary has no traffic to judge, which is said as well. Skipped in
    runs that move traffic: they are judged by their own. Run again, it looks again.
    """

    def release(self, context: Any, run: Run) -> dict[str, Any]:
        from model_release.release.index import History

        if run.moves_traffic:
            raise AirflowSkipException("this run moves traffic and is judged by it")
        version = service.published(context)["version"]
        past = self.last_canary(History(connections.store(self.spec.store)), version, run.release)
        told = self.judged(past) if past else {"of": None, "steps": [], "sentence": f"{version} never was a canary."}
        records.change(self.spec, run, lambda record: setattr(record, "retrospect", told))
        self.log.info("%s", told["sentence"])
        return told

    def last_canary(self, history: Any, version: str, but: str) -> Record | None:
        """The newest decision record, `but` this run's own, in which the version was judged."""
        for entry in history.entries(model=self.spec.model):
            if entry.version == version and entry.release != but:
                record: Record | None = history.record(entry.release)
                if record is not None and record.canary and any(step["windows"] for step in record.steps):
                    return record
        return None

    def judged(self, past: Record) -> dict[str, Any]:
        """`record.retrospect`: of which release, and for each of its steps what is said now, from which counts."""
        from model_release.judging import EvidenceError, Policy, judge
        from model_release.judging.replay import in_place

        steps = []
        counted: dict[str, list[Window]] = {}
        carried = {opened for step in past.steps for opened, _ in step.get("carried", ())}
        for step in past.steps:
            # A step at 100 % is the bake, in which nothing stands beside the canary.
            today = Policy.from_dict(self.spec.policy(None if step["percent"] == 100 else step["percent"]))
            policy = in_place(today, Policy.from_dict(step["policy"]))
            source, windows = self.counts(past, step, policy)
            counted[step["opened"]] = windows
            before = [one for opened, n in step.get("carried", ()) for one in counted.get(opened, [])[:n]]
            try:
                over = step["opened"] not in carried
                verdict: Verdict | None = judge(policy, [*before, *windows], past.past_of(step), final=over)
                reason = verdict.reason if verdict else ""
            except EvidenceError as error:
                verdict, reason = None, f"cannot be judged by today's limits: {error}"
            then = (step.get("verdict") or {}).get("decision")
            now = verdict.decision if verdict else None
            steps.append({"percent": step["percent"], "opened": step["opened"], "then": then, "decision": now,
                          "reason": reason, "counts": source})  # fmt: skip
        said = "; ".join(f"{one['percent']} %: {one['reason']} (counts from {one['counts']})" for one in steps)
        return {
            "of": past.release,
            "time": records.now(),
            "steps": steps,
            "sentence": f"As {past.release} went: {said}",
        }

    def counts(self, past: Record, step: dict[str, Any], policy: Policy) -> tuple[str, list[Window]]:
        """Where the counts of a step come from, and they."""
        from model_release.judging.replay import asked_for
        from model_release.judging.window import windows_from
        from model_release.metrics import WindowReader

        recorded = [asked_for(window, policy) for window in windows_from(step["windows"], "windows")]
        canary, baseline = past.canary or {}, past.baseline or {}
        namespace = past.service.partition("/")[0]
        ends = [window.end for window in recorded if window.end]
        if not ends:
            return "the decision record", recorded
        try:
            read = WindowReader(
                connections.prometheus(),
                self.spec.judge,
                namespace=namespace,
                canary=str(canary.get("revision")),
                stable=None if step["percent"] == 100 else baseline.get("revision"),
                start=datetime.fromisoformat(step["opened"]),
                window=timedelta(seconds=step["window_seconds"]),
            ).read(datetime.fromisoformat(ends[-1]), now=datetime.now(UTC))
        except (MetricsRefused, MetricsUnavailable) as error:
            self.log.warning("Prometheus cannot tell: %s", error)
            read = []
        # Where a part is forgotten, or not read, the rest would tell of another release than the one there was.
        whole = len(read) >= len(recorded) and all(map(_has_what, read, recorded))
        own = any(side.totals for window in recorded for side in (window.canary, window.stable) if side)
        if whole and not own and any(window.canary.requests for window in read):
            return "Prometheus", [asked_for(window, policy) for window in read]
        return "the decision record", recorded


def _has_what(now: Window, then: Window) -> bool:
    """Whether the window was counted now on each side on which it was counted then."""
    sides = (now.canary, then.canary), (now.stable, then.stable)
    return all(
        there is None or there.requests is None or (here is not None and here.requests is not None)
        for here, there in sides
    )
