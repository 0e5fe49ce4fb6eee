"""How a run ends: what `settle` leaves in the lease, what `report` says. The words: tests/release/test_outcome.py."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from model_release.cluster.change import Baseline
from model_release.cluster.lease import Lease
from model_release.cluster.release import Cause, Order, Owner, Phase, Release
from model_release.errors import NotSettled, ReleaseFailed, RolledBack
from model_release.judging.record import Record
from model_release.release.outcome import Outcome
from model_release.spec import ModelSpec
from model_release.tasks import finish, records, telemetry
from model_release.tasks.finish import Report, Settle
from model_release.tasks.run import Run
from model_release.tasks.service import ReleasedService

from .cluster import Kube

BUILT = dict.fromkeys(("resolve", "export", "archive", "publish"), "success")
CLAIMED = {**BUILT, **dict.fromkeys(("claim", "stage", "smoke"), "success")}
OPEN = {**CLAIMED, "canary": "running"}
PUBLISHED = {("publish", "return_value"): {"version": "0123456789abcdef", "uri": "s3://…/"}}
SETTLED = "digits-00001 has all of the traffic"
EVIDENCE = "Rolled back: 9 of 30 canary requests failed."


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    kept = Record.new("r", model="digits", service="models/digits", version=None, started="2026-03-01T02:00:00+00:00")
    minutes = itertools.count(20)
    monkeypatch.setattr(records, "change", lambda spec, run, edit: edit(kept))
    monkeypatch.setattr(records, "read", lambda spec, run: kept)
    monkeypatch.setattr(records, "now", lambda: f"2026-03-01T02:{next(minutes)}:00.000+00:00")
    return kept


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(telemetry, "released", lambda ended: seen.append((ended.outcome, ended.cause)))
    return seen


class Ending:
    """A run of which the lease holds `release`, and whose tasks ended as `states` says."""

    def __init__(self, kube: Kube, spec: ModelSpec, context: Any, ti: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kube, self.spec, self.context, self.ti = kube, spec, context, ti
        self.run = Run.of(context, spec)
        self.owner = ReleasedService(spec, self.run).owner
        monkeypatch.setattr(ReleasedService, "settle", lambda *_: SETTLED)
        ti.states, ti.xcoms = dict(OPEN), dict(PUBLISHED)

    def claims(self, edit: Any) -> None:
        assert isinstance(self.kube.leases.acquire("models", "digits", self.owner, "r"), Lease)
        self.kube.leases.update("models", "digits", self.owner, edit)

    def settle(self) -> str:
        self.ti.task_id = "settle"
        said = Settle(task_id="settle", spec=self.spec).execute(self.context)
        self.ti.states["settle"], self.ti.xcoms["settle", "return_value"] = "success", said
        return str(said)

    def report(self) -> str:
        self.ti.task_id = "report"
        self.ti.states["report"] = "running"
        return str(Report(task_id="report", spec=self.spec).execute(self.context))

    @property
    def last(self) -> Release:
        lease = self.kube.leases.read("models", "digits")
        assert lease is not None
        assert lease.last is not None
        return lease.last


@pytest.fixture
def ending(kube: Kube, spec: ModelSpec, context: Any, ti: Any, monkeypatch: pytest.MonkeyPatch) -> Ending:
    return Ending(kube, spec, context, ti, monkeypatch)


def promoted(release: Release) -> Release:
    return replace(release, phase=Phase.PROMOTED, word="Promoted: 0 of 300.", promoted_at="x")


def turned_back(release: Release) -> Release:
    return release.close(EVIDENCE, Cause.EVIDENCE)


def test_a_release_that_was_promoted_ends_well(ending: Ending, record: Record, counted: list[Any]) -> None:
    ending.claims(promoted)
    ending.settle()
    assert ending.last.phase is Phase.SETTLED
    assert ending.report() == "digits 0123456789abcdef: Promoted: 0 of 300."
    assert (record.outcome, record.reason, record.cause) == ("promoted", "Promoted: 0 of 300.", None)
    assert counted == [("promoted", None)]


def test_one_that_was_turned_back_fails_its_run_with_the_sentence(
    ending: Ending, record: Record, counted: list[Any], ti: Any
) -> None:
    ending.claims(turned_back)
    ti.states |= {"canary": "failed"}
    ti.xcoms["canary", "trouble"] = EVIDENCE
    ending.settle()
    for _ in range(2):
        with pytest.raises(RolledBack) as raised:
            ending.report()
        line = f"digits 0123456789abcdef: {EVIDENCE} Settled: nothing was touched."
        assert str(raised.value) == ti.xcoms["report", "return_value"] == line
    assert (record.outcome, record.reason, record.cause) == ("rolled_back", EVIDENCE, Cause.EVIDENCE)
    assert record.ended == "2026-03-01T02:20:00.000+00:00", "said again, it keeps its time"
    assert counted == [("rolled_back", Cause.EVIDENCE)]


def test_what_failed_is_recorded_before_anything_is_taken_back(
    ending: Ending, record: Record, ti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger that still drives the canary would take the settled template for another hand's change, and say so."""
    ending.claims(lambda now: replace(now, baseline=Baseline(revision="m-00001")))
    ti.states |= {"canary": "failed"}
    seen: list[str | None] = []

    def settle(*_: Any) -> str:
        seen.append(ending.last.trouble)
        return "settled"

    monkeypatch.setattr(ReleasedService, "settle", settle)
    monkeypatch.setattr(ReleasedService, "record_traffic", lambda *_: None)
    ending.settle()
    assert seen == [ending.last.trouble]
    assert str(seen[0]).startswith("task canary failed: ")


def test_a_run_that_was_cleared_since_takes_that_word_away_and_goes_on(ending: Ending, spec: ModelSpec) -> None:
    """Where settle cannot end it keeps the lease, with what had failed in it; again there is nothing to take away."""
    ending.claims(lambda now: replace(now, trouble="task canary failed: lost"))
    released = ReleasedService(spec, ending.run)
    for _ in range(2):
        assert released.resumed().trouble is None
        assert ending.last.trouble is None


def test_what_was_ordered_before_that_is_what_is_settled(
    ending: Ending, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promotion that was ordered while settle asked how its run had failed must not be taken back unheard."""
    ending.claims(lambda now: replace(now, baseline=Baseline(revision="m-00001"), phase=Phase.OPEN, canary="m-00002"))
    order = Order("promote", "anna", "because", "at two", "m-00002")

    def trouble_of(*_: Any, **__: Any) -> str:
        ending.kube.leases.update(
            "models", "digits", ending.owner, lambda now: replace(now, order=order, phase=Phase.PROMOTED)
        )
        return "task canary failed: lost"

    seen: list[Phase] = []
    monkeypatch.setattr(finish, "trouble_of", trouble_of)
    monkeypatch.setattr(ReleasedService, "settle", lambda _, left, *__: seen.append(left.phase) or "settled")
    monkeypatch.setattr(ReleasedService, "record_traffic", lambda *_: None)
    ending.settle()
    assert seen == [Phase.PROMOTED]
    assert [one["who"] for one in record.approvals] == ["anna"]


def test_a_task_that_was_killed_is_told_by_its_name(ending: Ending, record: Record, ti: Any) -> None:
    ending.claims(lambda now: now)
    ti.states |= {"canary": "failed", "decide": "upstream_failed"}
    ending.settle()
    with pytest.raises(ReleaseFailed, match="task canary failed: it was ended from outside: marked by hand, killed"):
        ending.report()
    assert record.outcome == "failed"


def test_a_run_whose_tasks_were_deleted_ends_with_a_sentence(ending: Ending, record: Record, ti: Any) -> None:
    ending.claims(lambda now: now)
    ti.states = {"claim": "success"}
    ending.settle()
    with pytest.raises(ReleaseFailed, match="the run was ended before it came to a decision"):
        ending.report()
    assert (ending.last.phase, record.outcome, record.cause) == (Phase.SETTLED, "failed", "refused")


def test_what_cannot_be_settled_keeps_the_lease_and_is_told_first(
    ending: Ending, record: Record, ti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_release.cluster.change import Baseline

    def refuses(*_: Any) -> str:
        raise NotSettled("models/digits is not settled: nobody knows")

    ending.claims(lambda now: replace(promoted(now), baseline=Baseline("1", "digits-00001")))
    monkeypatch.setattr(ReleasedService, "settle", refuses)
    with pytest.raises(NotSettled):
        ending.settle()
    ti.states["settle"] = "failed"
    with pytest.raises(ReleaseFailed, match="task settle failed: models/digits is not settled: nobody knows"):
        ending.report()
    assert ending.kube.leases.read("models", "digits").holder == ending.owner.identity


def test_what_another_release_has_taken_since_is_told_by_the_record(ending: Ending, record: Record) -> None:
    """A run in line is as fast as the report."""
    ending.claims(turned_back)
    ending.settle()
    other = Owner("release_digits", "another", "", ending.owner.installation)
    assert isinstance(ending.kube.leases.acquire("models", "digits", other), Lease)
    with pytest.raises(RolledBack, match="9 of 30"):
        ending.report()
    assert record.cause == Cause.EVIDENCE


def test_a_cluster_that_is_away_leaves_the_record(ending: Ending, record: Record) -> None:
    ending.claims(turned_back)
    ending.settle()
    before = (record.outcome, record.reason, record.cause, record.ended)
    ending.kube.fault("get", "leases", status=503, times=50)
    with pytest.raises(RolledBack, match="9 of 30"):
        ending.report()
    assert (record.outcome, record.reason, record.cause, record.ended) == before
    assert record.cause == Cause.EVIDENCE


@pytest.mark.parametrize(
    ("states", "xcoms", "rollout", "outcome"),
    [
        (BUILT, {}, "none", "published"),
        ({"resolve": "success"}, {("resolve", "resolved"): {"nothing_new": True}}, "auto", "nothing_new"),
        (BUILT, {}, "auto", None),
    ],
)
def test_a_run_that_claims_nothing_ends_well_when_it_did_what_it_was_to_do(
    ending: Ending, record: Record, ti: Any, states: Any, xcoms: Any, rollout: str, outcome: str | None
) -> None:
    ti.states, ti.xcoms = {**states, "claim": "skipped", "settle": "skipped"}, xcoms
    ending.context["params"]["rollout"] = rollout
    with nullcontext() if outcome else pytest.raises(ReleaseFailed):
        ending.report()
    assert record.outcome == (outcome or "failed")
    assert ending.kube.leases.read("models", "digits") is None


@pytest.mark.parametrize("failed", ["resolve", "export", "archive", "publish", "claim"])
def test_a_run_that_claimed_nothing_is_told_by_the_task_that_failed(
    ending: Ending, record: Record, ti: Any, failed: str
) -> None:
    ti.states = {**BUILT, failed: "failed", "settle": "upstream_failed"}
    ti.xcoms = {(failed, "trouble"): "what was wrong"}
    with pytest.raises(ReleaseFailed, match=f"digits: task {failed} failed: what was wrong"):
        ending.report()
    assert record.cause == ("refused" if failed == "claim" else "before traffic")


def test_what_was_ended_beside_the_way_is_not_told_for_what_ended_the_release(ending: Ending, ti: Any) -> None:
    """A run that is marked failed takes along each task that Airflow still holds for running."""
    ti.states = {**BUILT, "claim": "success", "stage": "failed", "look_back": "failed"}
    said = finish.trouble_of(ti, ending.run, but="report")
    assert str(said).startswith("task stage failed: it was ended from outside")
    ti.states["stage"] = "skipped"
    assert str(finish.trouble_of(ti, ending.run, but="report")).startswith("task look_back failed: ")


@pytest.mark.parametrize("before", ["promoted", "first"])
def test_a_run_that_finds_stable_what_it_made_stable_does_not_forget_that(
    ending: Ending, record: Record, before: str
) -> None:
    """Cleared as a whole after its end. Who asks the history whether the version was live, asks for this word."""
    record.finish(before, "0 of 300 failed", "2026-03-01T02:10:00.000+00:00")
    ending.claims(lambda now: replace(now, cause=Cause.NOTHING_NEW))
    ending.settle()
    assert "nothing new" in ending.report()
    assert (record.outcome, record.reason, record.ended) == (before, "0 of 300 failed", "2026-03-01T02:10:00.000+00:00")


def test_the_record_ends_when_the_release_does_and_not_at_the_promotion(ending: Ending, record: Record) -> None:
    record.finish("promoted", "digits-00002 has all of the traffic", "2026-03-01T02:10:00.000+00:00")
    ending.claims(promoted)
    ending.settle()
    assert record.ended == "2026-03-01T02:20:00.000+00:00"
    ending.report()
    assert record.ended == "2026-03-01T02:20:00.000+00:00", "a report that is run again says the same"


def test_a_release_is_counted_once_whatever_becomes_of_the_stores_answer(
    spec: ModelSpec, context: Any, record: Record, counted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store wrote the end and its answer was lost: the second try finds what the first one wrote."""
    monkeypatch.setattr(records, "change", lambda spec, run, edit: (edit(record), edit(record)))
    for _ in range(2):
        finish.finish(spec, Run.of(context, spec), Outcome("promoted", "0 of 300"))
    assert counted == [("promoted", None)]
