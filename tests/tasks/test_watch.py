"""The sensor before and after its wait, and the branch that acts on its verdict."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from model_release.tasks.watch import Decide, WatchBake, WatchCanary

from model_release import errors
from model_release.errors import CanaryLost, MetricsRefused
from model_release.judging import Policy, Window, judge
from model_release.judging.record import Record
from model_release.serving.lease import Claim, Owner
from model_release.spec import ModelSpec
from model_release.tasks import links, watch
from model_release.tasks.run import Run
from model_release.tasks.triggers import CanaryTrigger

CANARY = {
    "namespace": "models",
    "name": "digits",
    "uid": "1",
    "revision": "digits-00002",
    "baseline": "digits-00001",
    "template": "0123456789abcdef",
}
OPENED = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
OWNER = Owner("release_digits", "manual__1", "http://airflow/1", "http://airflow")


class Service:
    """Stands in for `ReleasedService`: a claim in the lease, and a record that is kept here."""

    claimed = Claim(OWNER, stage="open at 25 %", percent=25, opened_at=OPENED.isoformat())
    kept: Record
    changed = False

    def __init__(self, spec: ModelSpec, run: Any) -> None:
        pass

    def claim(self) -> Claim:
        return self.claimed

    def check_untouched(self, canary: Any, percent: int | None) -> None:
        if self.changed:
            raise CanaryLost(f"{canary.revision} is not at {percent} % any more")

    def record(self, edit: Any) -> None:
        edit(self.kept)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, ti: Any) -> type[Service]:
    class OneService(Service):
        """Of this test alone."""

    OneService.kept = Record.new("r", model="digits", service="models/digits", version=None, started=OPENED.isoformat())
    monkeypatch.setattr(watch, "ReleasedService", OneService)
    monkeypatch.setattr(links, "push_for", lambda *_: None)
    ti.xcoms["stage", "return_value"] = {"kind": "canary", "sentence": "…", "canary": CANARY}
    return OneService


def window(number: int, bad: int, *, alone: bool = False) -> dict[str, Any]:
    start = OPENED + timedelta(seconds=3 * number)
    stable = None if alone else {"requests": 300, "bad": {"errors": 0}}
    canary = {"requests": 100, "bad": {"errors": bad}}
    end = start + timedelta(seconds=3)
    return {"start": start.isoformat(), "end": end.isoformat(), "canary": canary, "stable": stable}


class TestWatch:
    def watching(self, spec: ModelSpec, percent: int = 25) -> WatchCanary:
        return WatchCanary(task_id=f"watch_{percent}", spec=spec, percent=percent)

    def test_it_defers_with_all_that_the_trigger_has_to_know(
        self, spec: ModelSpec, context: Any, service: type[Service]
    ) -> None:
        with pytest.raises(TaskDeferred) as deferred:
            self.watching(spec).execute(context)
        trigger = deferred.value.trigger
        assert isinstance(trigger, CanaryTrigger)
        assert trigger.given == {
            "spec": spec.model_dump_json(),
            "canary": CANARY,
            "percent": 25,
            "opened": OPENED.isoformat(),
            "deadline": (OPENED + spec.rollout.deadline).isoformat(),
            "run": asdict(Run.of(context, spec)),
            "said": spec.policy(25),
        }
        assert ModelSpec.model_validate_json(trigger.given["spec"]) == spec
        assert deferred.value.method_name == "judged"

    def test_the_watch_ends_itself_before_airflow_does(
        self, spec: ModelSpec, context: Any, service: type[Service]
    ) -> None:
        now = datetime.now(UTC)
        service.claimed = replace(service.claimed, opened_at=now.isoformat())
        with pytest.raises(TaskDeferred) as deferred:
            self.watching(spec).execute(context)
        assert deferred.value.timeout is not None
        assert deferred.value.timeout > now + spec.rollout.deadline - datetime.now(UTC)

    @pytest.mark.parametrize("percent", [None, 0, 50])
    def test_it_watches_nothing_that_this_run_did_not_open(
        self, spec: ModelSpec, context: Any, service: type[Service], percent: int | None, ti: Any
    ) -> None:
        service.claimed = replace(service.claimed, percent=percent)
        with pytest.raises(CanaryLost, match="no canary of this run is open at 25 %"):
            self.watching(spec).execute(context)
        assert ti.xcoms["this", "trouble"].startswith("no canary of this run is open")

    def test_what_somebody_changed_meanwhile_is_not_waited_for(
        self, spec: ModelSpec, context: Any, service: type[Service], ti: Any
    ) -> None:
        service.changed = True
        with pytest.raises(CanaryLost):
            self.watching(spec).execute(context)
        assert ti.xcoms["this", "trouble"] == "digits-00002 is not at 25 % any more"

    def test_it_judges_the_counts_itself_and_records_them(
        self, spec: ModelSpec, context: Any, service: type[Service]
    ) -> None:
        windows = [window(number, bad=60) for number in range(20)]
        event = {"windows": windows, "final": False, "trouble": ""}
        answer = self.watching(spec).judged(context, event)
        verdict = judge(Policy.from_dict(spec.policy(25)), [Window.from_dict(one) for one in windows])
        assert verdict.decision == "rollback"
        assert answer == {
            "decision": "rollback",
            "reason": verdict.reason,
            "revision": "digits-00002",
            "windows": verdict.windows_used,
        }
        (step,) = service.kept.steps
        assert (step["percent"], step["opened"], step["window_seconds"]) == (25, "2026-03-01T02:00:00.000+00:00", 3.0)
        assert step["windows"] == windows
        assert step["verdict"] == verdict.to_dict()
        assert service.kept.differences() == []

    def test_told_twice_it_is_recorded_once(self, spec: ModelSpec, context: Any, service: type[Service]) -> None:
        event = {"windows": [window(0, bad=0)], "final": True, "trouble": ""}
        first = self.watching(spec).judged(context, event)
        assert self.watching(spec).judged(context, event) == first
        assert len(service.kept.steps) == 1

    def test_the_end_of_the_watch_without_evidence_is_inconclusive_and_says_what_was_in_the_way(
        self, spec: ModelSpec, context: Any, service: type[Service]
    ) -> None:
        answer = self.watching(spec).judged(context, {"windows": [], "final": True, "trouble": "timed out"})
        assert answer["decision"] == "inconclusive"
        assert answer["reason"].endswith(" (timed out)")

    @pytest.mark.parametrize("kind", [CanaryLost, MetricsRefused])
    def test_what_ended_the_watch_is_the_tasks_own_trouble(
        self, spec: ModelSpec, context: Any, service: type[Service], ti: Any, kind: type[errors.ReleaseError]
    ) -> None:
        with pytest.raises(kind, match="somebody was here"):
            self.watching(spec).judged(context, {"error": kind.__name__, "sentence": "somebody was here"})
        assert ti.xcoms["this", "trouble"] == "somebody was here"
        assert service.kept.steps == []


class TestBake:
    def test_it_watches_the_promoted_revision_from_the_promotion_on(
        self, spec: ModelSpec, context: Any, service: type[Service], ti: Any
    ) -> None:
        service.claimed = replace(service.claimed, promoted=True, percent=None)
        ti.xcoms["promote", "return_value"] = {"promoted_at": OPENED.isoformat(), "revision": "digits-00002"}
        with pytest.raises(TaskDeferred) as deferred:
            WatchBake(task_id="bake", spec=spec).execute(context)
        given = deferred.value.trigger.given
        assert given["percent"] is None
        assert given["opened"] == OPENED.isoformat()
        assert given["deadline"] == (OPENED + spec.rollout.bake).isoformat()

    @pytest.mark.parametrize("promoted", [True, False])
    def test_it_watches_nothing_that_was_not_promoted(
        self, spec: ModelSpec, context: Any, service: type[Service], ti: Any, promoted: bool
    ) -> None:
        service.claimed = replace(service.claimed, promoted=promoted)
        ti.xcoms["promote", "return_value"] = None if promoted else {"promoted_at": OPENED.isoformat()}
        with pytest.raises(CanaryLost, match="nothing was promoted in this run"):
            WatchBake(task_id="bake", spec=spec).execute(context)

    def test_it_is_recorded_at_100_percent_and_judged_alone(
        self, spec: ModelSpec, context: Any, service: type[Service], ti: Any
    ) -> None:
        service.claimed = replace(service.claimed, promoted=True, percent=None)
        ti.xcoms["promote", "return_value"] = {"promoted_at": OPENED.isoformat(), "revision": "digits-00002"}
        windows = [window(number, bad=60, alone=True) for number in range(20)]
        event = {"windows": windows, "final": False, "trouble": ""}
        answer = WatchBake(task_id="bake", spec=spec).judged(context, event)
        assert answer["decision"] == "rollback"
        assert service.kept.steps[0]["percent"] == 100
        assert service.kept.differences() == []


def decide(spec: ModelSpec, onward: str | None = "promote") -> Decide:
    return Decide(task_id="decide_50", spec=spec, watch="watch_50", onward=onward, back="roll_back")


def verdict(decision: str, revision: str = "digits-00002") -> dict[str, Any]:
    return {"decision": decision, "reason": f"said {decision}", "revision": revision, "windows": 3}


@pytest.mark.parametrize(
    ("found", "way", "reason"),
    [
        (verdict("promote"), "promote", None),
        (verdict("rollback"), "roll_back", "said rollback"),
        (verdict("inconclusive"), "roll_back", "said inconclusive"),
        (verdict("continue"), "roll_back", "said continue"),
        (verdict("promote", "digits-00003"), "roll_back", "digits-00003 was judged, and digits-00002 is staged"),
        (None, "roll_back", "task watch_50 left no verdict (was it marked by hand?): nothing is proven"),
    ],
)
def test_only_a_verdict_for_the_staged_revision_leads_onward(
    spec: ModelSpec, context: Any, service: Any, ti: Any, found: Any, way: str, reason: str | None
) -> None:
    ti.xcoms["watch_50", "return_value"] = found
    assert decide(spec).choose_branch(context) == way
    assert ti.xcom_pull("this", "back") == reason


@pytest.mark.parametrize(
    ("found", "way", "reason"),
    [
        (verdict("promote"), [], None),
        (verdict("inconclusive"), [], None),
        (None, [], None),
        (verdict("rollback"), "roll_back", "said rollback"),
        (verdict("rollback", "digits-00003"), "roll_back", "digits-00003 was judged, and digits-00002 is staged"),
    ],
)
def test_after_the_bake_only_evidence_against_leads_back_and_says_why(
    spec: ModelSpec, context: Any, service: Any, ti: Any, found: Any, way: str | list[str], reason: str | None
) -> None:
    ti.xcoms["watch_50", "return_value"] = found
    assert decide(spec, onward=None).choose_branch(context) == way
    assert ti.xcom_pull("this", "back") == reason


def test_a_run_that_staged_nothing_decides_nothing(spec: ModelSpec, context: Any, service: Any, ti: Any) -> None:
    ti.xcoms["watch_50", "return_value"] = verdict("promote")
    ti.xcoms["stage", "return_value"] = None
    with pytest.raises(CanaryLost, match="task stage left no result in this run"):
        decide(spec).choose_branch(context)
    assert "stage left no result" in ti.xcoms["this", "trouble"]
