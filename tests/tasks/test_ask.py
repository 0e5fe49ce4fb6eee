"""A person's word: when it is asked for, what counts as one, and that the evidence goes before it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.execution_time import hitl

from model_release.judging import Policy
from model_release.judging.record import Record
from model_release.serving.lease import Claim, Owner
from model_release.spec import ModelSpec
from model_release.tasks import ask, look, records, watch
from model_release.tasks.ask import BACK, LONGER, PROMOTE, Ask
from model_release.tasks.triggers import CanaryTrigger

from .test_watch import CANARY, window

OWNER = Owner("release_digits", "manual__1", "http://airflow/1", "http://airflow")
GOOD = {"decision": "promote", "reason": "Promoted: 0 of 300.", "revision": "digits-00002", "windows": 9}
UNCLEAR = {"decision": "inconclusive", "reason": "Cannot tell.", "revision": "digits-00002", "windows": 9}
BAD = {"decision": "rollback", "reason": "Rolled back: 90 of 100.", "revision": "digits-00002", "windows": 2}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, ti: Any) -> dict[str, Any]:
    """The record, and what was asked of people."""
    started = datetime.now(UTC).isoformat()
    seen: dict[str, Any] = {
        "record": Record.new("r", model="digits", service="models/digits", version=None, started=started),
        "asked": [],
        "turned": None,
    }

    class Service:
        def __init__(self, spec: ModelSpec, run: Any) -> None: ...

        def claim(self) -> Claim:
            return Claim(OWNER, percent=50)

        def record(self, edit: Any) -> None:
            edit(seen["record"])

    monkeypatch.setattr(ask, "ReleasedService", Service)
    monkeypatch.setattr(watch, "ReleasedService", Service)
    monkeypatch.setattr(records, "change", lambda spec, run, edit, store=None: edit(seen["record"]))
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **said: seen["asked"].append(said))
    monkeypatch.setattr(Ask, "_turned", lambda self, run, canary, asked: seen["turned"])
    ti.xcoms["stage", "return_value"] = {"kind": "canary", "sentence": "…", "canary": CANARY}
    return seen


def asking(spec: ModelSpec, approval: str, ti: Any, verdict: Any) -> Ask:
    ti.xcoms["watch_50", "return_value"] = verdict
    ti.task_id = "ask_50"
    return Ask(task_id="ask_50", spec=spec.model_copy(update={"approval": approval}), percent=50, watch="watch_50")


def deferred(task: Ask, context: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context)
    return raised.value


@pytest.mark.parametrize(
    ("approval", "verdict"),
    [
        ("before_promote", BAD),
        ("before_promote", UNCLEAR),
        ("before_promote", None),
        ("on_inconclusive", GOOD),
        ("on_inconclusive", BAD),
    ],
)
def test_where_nobody_needs_to_be_asked_the_verdict_goes_through(
    spec: ModelSpec, context: Any, ti: Any, world: Any, approval: str, verdict: Any
) -> None:
    assert asking(spec, approval, ti, verdict).execute(context) == verdict
    assert world["asked"] == []


@pytest.mark.parametrize(("approval", "verdict"), [("before_promote", GOOD), ("on_inconclusive", UNCLEAR)])
def test_a_question_shows_the_figures_and_the_canary_is_watched_meanwhile(
    spec: ModelSpec, context: Any, ti: Any, world: Any, approval: str, verdict: Any
) -> None:
    raised = deferred(asking(spec, approval, ti, verdict), context)
    (question,) = world["asked"]
    assert question["options"] == [PROMOTE, BACK, LONGER]
    assert question["defaults"] == [BACK]
    says = "The judge would promote it: 0 of 300." if verdict is GOOD else f"The judge says: {UNCLEAR['reason']}"
    assert says in question["body"].splitlines()
    assert "/dags/release_digits/runs/" in question["body"]
    assert isinstance(raised.trigger, CanaryTrigger)
    guard = Policy.from_dict(raised.trigger.given["said"])
    assert guard.guard, "these windows can stop it and never promote it"
    assert raised.trigger.deadline - datetime.now(UTC) > spec.answer_within - timedelta(minutes=1)
    assert raised.method_name == "answered"
    assert raised.trigger.given["question"] == ti.id, "who watches hears an answer that came too soon"


def answer(chosen: str, reason: str = "") -> dict[str, Any]:
    who = {"id": "7", "name": "ada"}
    when = datetime.now(UTC)
    return {"chosen_options": [chosen], "params_input": {"reason": reason}, "responded_at": when,
            "responded_by_user": who, "timedout": False}  # fmt: skip


def test_who_says_promote_is_in_the_record_with_the_reason(spec: ModelSpec, context: Any, ti: Any, world: Any) -> None:
    task = asking(spec, "on_inconclusive", ti, UNCLEAR)
    deferred(task, context)
    said = task.answered(context, answer(PROMOTE, "night: no traffic, and tested by hand"))
    assert said["decision"] == "promote"
    assert said["revision"] == "digits-00002"
    assert said["reason"] == "ada says promote: night: no traffic, and tested by hand."
    (entry,) = world["record"].approvals
    assert (entry["who"], entry["decision"]) == ("ada", "promote")


def test_evidence_goes_before_an_answer_that_crossed_it(spec: ModelSpec, context: Any, ti: Any, world: Any) -> None:
    task = asking(spec, "before_promote", ti, GOOD)
    deferred(task, context)
    world["turned"] = "Rolled back: 90 of 100 canary requests failed."
    said = task.answered(context, answer(PROMOTE))
    assert (said["decision"], said["reason"]) == ("rollback", world["turned"])


def test_who_says_roll_back_is_obeyed(spec: ModelSpec, context: Any, ti: Any, world: Any) -> None:
    task = asking(spec, "before_promote", ti, GOOD)
    deferred(task, context)
    assert task.answered(context, answer(BACK, "wrong day"))["decision"] == "rollback"


def test_evidence_against_it_rolls_back(spec: ModelSpec, context: Any, ti: Any, world: Any) -> None:
    task = asking(spec, "before_promote", ti, GOOD)
    deferred(task, context)
    event = {"windows": [window(number, bad=90) for number in range(4)], "final": False, "trouble": ""}
    said = task.answered(context, event)
    assert said["decision"] == "rollback"
    assert "canary requests failed" in said["reason"]


ORDER = {"kind": "promote", "who": "grace", "why": "outage 41", "when": "2026-03-01T02:00:00+00:00",
         "revision": "digits-00002"}  # fmt: skip


def test_who_has_ordered_the_promotion_is_not_asked_for_it(spec: ModelSpec, context: Any, ti: Any, world: Any) -> None:
    ordered = {**GOOD, "by": "grace"}
    assert asking(spec, "before_promote", ti, ordered).execute(context) == ordered
    assert world["asked"] == []


@pytest.mark.parametrize(("approval", "verdict"), [("before_promote", GOOD), ("on_inconclusive", UNCLEAR)])
def test_an_order_to_promote_answers_the_question(
    spec: ModelSpec, context: Any, ti: Any, world: Any, approval: str, verdict: Any
) -> None:
    task = asking(spec, approval, ti, verdict)
    deferred(task, context)
    event = {"windows": [window(1, bad=0)], "final": False, "trouble": "", "order": ORDER}
    for resumed in (task.answered, task.watched):
        said = resumed(context, event)
        assert (said["decision"], said["by"]) == ("promote", "grace")
        assert "outage 41" in said["reason"]
    assert len(world["asked"]) == 1


def test_silence_is_no_approval(spec: ModelSpec, context: Any, ti: Any, world: Any) -> None:
    task = asking(spec, "before_promote", ti, GOOD)
    deferred(task, context)
    long_ago = datetime.now(UTC) - spec.answer_within - timedelta(seconds=1)
    ti.xcoms["ask_50", "asked"] = {"at": long_ago.isoformat(), "number": 0}
    said = task.answered(context, {"windows": [window(1, bad=0)], "final": True, "trouble": ""})
    assert (said["decision"], said["reason"]) == ("rollback", "Nobody answered within 4h: rolled back.")
    assert world["record"].approvals[0]["who"] == "nobody"


def test_a_canary_that_nobody_can_see_is_not_left_open_for_an_answer(
    spec: ModelSpec, context: Any, ti: Any, world: Any
) -> None:
    task = asking(spec, "before_promote", ti, GOOD)
    deferred(task, context)
    event = {"windows": [], "final": True, "trouble": "Prometheus cannot be reached"}
    said = task.answered(context, event)
    assert said["decision"] == "rollback"
    assert "Prometheus cannot be reached" in said["reason"]


def test_watching_longer_has_an_end_and_an_allowance_of_its_own(
    spec: ModelSpec, context: Any, ti: Any, world: Any
) -> None:
    task = asking(spec, "on_inconclusive", ti, UNCLEAR)
    deferred(task, context)
    with pytest.raises(TaskDeferred) as raised:
        task.answered(context, answer(LONGER))
    trigger = raised.value.trigger
    assert isinstance(trigger, CanaryTrigger)
    policy = Policy.from_dict(trigger.given["said"])
    assert not policy.guard
    assert policy.needed_against == 2 * Policy.from_dict(task.spec.policy(50)).needed_against
    assert trigger.deadline - datetime.now(UTC) <= spec.rollout.deadline
    with pytest.raises(TaskDeferred) as again:
        task.watched(context, {"windows": [], "final": True, "trouble": ""})
    assert again.value.method_name == "answered", "still unclear: asked again"
    assert len(world["asked"]) == 2


def test_the_release_holds_its_promise_however_often_one_watches_longer(spec: ModelSpec) -> None:
    """Every watch has its share of the chance to roll a good canary back; together they have no more than all of it."""
    asks = spec.model_copy(update={"approval": "before_promote"})
    watches = [asks.policy(step) for step in asks.rollout.steps] + [asks.policy(None)]
    watches += [asks.policy(50, guard=True, again=number + 1) for number in range(50)]
    watches += [asks.policy(50, again=number) for number in range(1, 50)]
    metrics = len(Policy.from_dict(watches[0]).deciding)
    risk = sum(metrics / Policy.from_dict(one).needed_against for one in watches)
    assert risk <= asks.judge.false_rollback


def test_a_look_that_turned_is_asked_for_when_an_answer_comes(
    spec: ModelSpec, context: Any, ti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`_turned` itself: it begins a watch since the question and looks once."""
    from types import SimpleNamespace

    from model_release.tasks.run import Run

    begun: dict[str, Any] = {}

    def begin(**given: Any) -> Any:
        begun.update(given)
        verdict = SimpleNamespace(decision="rollback", reason="Rolled back: 9 of 10.")
        return SimpleNamespace(look=lambda now: None, lost=None, judge=SimpleNamespace(verdict=lambda: verdict))

    monkeypatch.setattr(look.Watch, "begin", begin)
    task = asking(spec, "before_promote", ti, GOOD)
    canary = SimpleNamespace(as_dict=lambda: CANARY)
    at = datetime.now(UTC).isoformat()
    assert task._turned(Run.of(context, spec), canary, {"at": at, "number": 0}) == (
        "Rolled back: 9 of 10. (the answer crossed the evidence)"
    )
    assert begun["opened"] == at
    assert begun["said"]["guard"] is True
