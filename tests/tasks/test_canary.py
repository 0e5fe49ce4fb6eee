"""The sensor before and after its wait, a person's word in the middle, and the branch that acts on the verdict."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from model_release import errors
from model_release.cluster.release import Cause, Order, Phase, Release, Watched
from model_release.errors import CanaryLost, MetricsRefused, RolledBack, StoreUnavailable
from model_release.judging import Policy, Window, judge
from model_release.spec import ModelSpec
from model_release.tasks import records
from model_release.tasks.ask import BACK, LONGER, PROMOTE
from model_release.tasks.canary import Bake, Decide
from model_release.tasks.run import Run
from model_release.tasks.triggers import CanaryTrigger

from .sensed import CANARY, OPEN, OPENED, OWNER, PROMOTED, World, answer, deferred, event, sensor, world

__all__ = ["world"]


class TestTheSensor:
    def test_it_hands_over_all_that_the_trigger_has_to_know(self, spec: ModelSpec, context: Any, world: World) -> None:
        waits = deferred(sensor(spec).execute, context)
        trigger = waits.trigger
        assert isinstance(trigger, CanaryTrigger)
        assert {key: trigger.given[key] for key in ("spec", "canary", "run")} == {
            "spec": spec.model_dump_json(),
            "canary": {**CANARY, "started": None},
            "run": asdict(Run.of(context, spec)),
        }
        assert waits.method_name == "ended"

    def test_the_release_goes_on_by_the_model_file_that_it_began_with(
        self, spec: ModelSpec, context: Any, world: World
    ) -> None:
        """A2: the file is edited while the canary is open."""
        world.claim = replace(world.claim, spec=spec.model_dump_json())
        edited = spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"steps": (5, 90)})})
        trigger = deferred(sensor(edited).execute, context).trigger
        assert ModelSpec.model_validate_json(trigger.given["spec"]) == spec

    def test_the_drive_ends_itself_before_airflow_does(self, spec: ModelSpec, context: Any, world: World) -> None:
        waits = deferred(sensor(spec).execute, context)
        assert waits.timeout is not None
        assert waits.timeout > len(spec.rollout.steps) * spec.rollout.deadline + spec.answer_within

    def test_a_run_that_is_cleared_goes_on_in_spite_of_what_its_settle_had_recorded(
        self, spec: ModelSpec, context: Any, world: World
    ) -> None:
        """A settle that cannot end keeps the lease, with what had failed in it; the drive would let go at once."""
        world.claim = replace(OPEN, trouble="task canary failed: lost")
        deferred(sensor(spec).execute, context)
        assert world.claim == OPEN
        world.claim = replace(PROMOTED, trouble="task bake failed: lost")
        deferred(Bake(task_id="bake", spec=spec).execute, context)
        assert (world.claim.phase, world.claim.trouble) == (Phase.BAKING, None)

    def test_a_canary_that_never_answered_gets_nothing(self, spec: ModelSpec, context: Any, world: World) -> None:
        world.claim = replace(world.claim, phase=Phase.STAGED, watches=())
        with pytest.raises(CanaryLost, match="task smoke did not ask digits-00002"):
            sensor(spec).execute(context)

    @pytest.mark.parametrize(
        ("facts", "said"),
        [
            ({"closed": "nobody looked for 63 s"}, "nobody looked for 63 s"),
            ({"order": Order("roll_back", "anna", "because", "", None)}, "Rolled back by anna: because"),
        ],
    )
    def test_run_again_after_the_canary_was_closed_it_says_why(
        self, spec: ModelSpec, context: Any, world: World, ti: Any, facts: dict[str, Any], said: str
    ) -> None:
        world.claim = replace(world.claim, **facts)
        with pytest.raises(RolledBack, match=said):
            sensor(spec).execute(context)
        assert ti.xcoms["canary", "trouble"] == said

    def test_what_was_counted_and_moved_is_recorded_once(self, spec: ModelSpec, context: Any, world: World) -> None:
        said = event(spec, "rollback", bad=60, reason="60 of 100 failed")
        world.claim = world.claim.close("60 of 100 failed", Cause.EVIDENCE)
        for _ in range(2):
            answer = sensor(spec).ended(context, said)
        assert answer == "closing: 60 of 100 failed"
        (step,) = world.record.steps
        windows = [Window.from_dict(one) for one in said["steps"][0]["windows"]]
        verdict = judge(Policy.from_dict(spec.policy(50)), windows)
        assert verdict.decision == "rollback"
        assert step["verdict"] == verdict.to_dict()
        assert (step["percent"], step["opened"], step["window_seconds"]) == (50, "2026-03-01T02:00:00.000+00:00", 3.0)
        assert [(move["task"], move["percent"]) for move in world.record.traffic] == [("open_50", 50)]
        assert world.record.differences() == []

    def test_it_is_judged_by_the_policy_that_the_drive_had(self, spec: ModelSpec, context: Any, world: World) -> None:
        """A4: limits edited meanwhile must not judge the same windows otherwise."""
        said = event(spec, "rollback", bad=60)
        metric = spec.judge.metrics[0].model_copy(update={"max_rate": 0.99})
        edited = spec.model_copy(update={"judge": spec.judge.model_copy(update={"metrics": (metric,)})})
        sensor(edited).ended(context, said)
        assert world.record.steps[0]["verdict"]["decision"] == "rollback"

    @pytest.mark.parametrize("kind", [CanaryLost, MetricsRefused])
    def test_what_ended_the_drive_is_the_tasks_own_trouble(
        self, spec: ModelSpec, context: Any, world: World, ti: Any, kind: type[errors.ReleaseError]
    ) -> None:
        with pytest.raises(kind, match="somebody was here"):
            sensor(spec).ended(context, {"error": kind.__name__, "sentence": "somebody was here"})
        assert ti.xcoms["canary", "trouble"] == "somebody was here"
        assert world.record.steps == []

    def test_an_order_to_promote_is_on_record_with_its_name(self, spec: ModelSpec, context: Any, world: World) -> None:
        world.claim = replace(world.claim, order=Order("promote", "anna", "because", "at two", "digits-00002"))
        for _ in range(2):
            sensor(spec).ended(context, event(spec, "promote"))
        assert world.record.approvals == [{"time": "at two", "who": "anna", "decision": "promote", "reason": "because"}]


class TestBake:
    def test_it_looks_at_the_promoted_revision_from_the_promotion_on(
        self, spec: ModelSpec, context: Any, world: World, ti: Any
    ) -> None:
        world.claim = PROMOTED
        for _ in range(2):
            deferred(Bake(task_id="bake", spec=spec).execute, context)
        assert [(one.percent, one.opened_at) for one in world.claim.watches] == [
            (50, OPENED.isoformat()),
            (None, OPENED.isoformat()),
        ]

    @pytest.mark.parametrize("release", [OPEN, replace(PROMOTED, promoted_at=None)], ids=["open", "promoting"])
    def test_it_looks_at_nothing_that_was_not_promoted(
        self, spec: ModelSpec, context: Any, world: World, release: Release
    ) -> None:
        world.claim = release
        with pytest.raises(CanaryLost, match="nothing was promoted in this run"):
            Bake(task_id="bake", spec=spec).execute(context)

    def test_the_windows_of_the_bake_have_no_other_side(self, spec: ModelSpec, context: Any, world: World) -> None:
        Bake(task_id="bake", spec=spec).ended(context, event(spec, "rollback", bad=60, percent=None))
        assert world.record.steps[0]["percent"] == 100
        assert world.record.differences() == []


class TestAPersonsWord:
    def asking(self, spec: ModelSpec, context: Any, approval: str = "before_promote", reason: str = "…") -> Any:
        return deferred(sensor(spec, approval).ended, context, event(spec, "ask", reason=reason))

    @pytest.mark.parametrize(
        ("approval", "reason", "says"),
        [
            ("before_promote", "Promoted: 0 of 300.", "The judge would promote it: 0 of 300."),
            ("on_inconclusive", "Cannot tell.", "The judge says: Cannot tell."),
        ],
    )
    def test_a_question_shows_the_figures_and_the_canary_is_looked_at_meanwhile(
        self, spec: ModelSpec, context: Any, ti: Any, world: World, approval: str, reason: str, says: str
    ) -> None:
        waits = self.asking(spec, context, approval, reason)
        (question,) = world.asked
        assert question["options"] == [PROMOTE, BACK, LONGER]
        assert question["defaults"] == [BACK]
        assert says in question["body"].splitlines()
        assert "/dags/release_digits/runs/" in question["body"]
        assert isinstance(waits.trigger, CanaryTrigger)
        assert waits.method_name == "answered"
        assert waits.trigger.given["question"] == ti.id, "who looks hears an answer that came too soon"
        stretch = world.claim.watches[-1]
        assert (stretch.percent, stretch.beside_question) == (50, True)
        assert world.claim.watches[-2].until is not None

    def test_a_try_that_comes_after_the_one_that_had_asked_asks_again(
        self, spec: ModelSpec, context: Any, world: World, ti: Any
    ) -> None:
        """A task that was killed, or that Airflow took for lost, took its question with it."""
        self.asking(spec, context, reason="Promoted: 0 of 300.")
        ti.id = "0190f5c1-0000-7000-8000-000000000001"
        waits = deferred(sensor(spec, "before_promote").execute, context)
        assert waits.method_name == "answered"
        assert waits.trigger.given["question"] == ti.id
        assert [one["ti_id"] for one in world.asked] == ["0190f5c1-0000-7000-8000-000000000000", ti.id]
        assert "The judge would promote it: 0 of 300." in world.asked[-1]["body"].splitlines()

    def test_who_says_promote_is_in_the_record_with_the_reason(
        self, spec: ModelSpec, context: Any, world: World
    ) -> None:
        self.asking(spec, context)
        said = sensor(spec, "before_promote").answered(context, answer(PROMOTE, "night: tested by hand"))
        assert said == "promoted: ada says promote: night: tested by hand."
        assert world.claim.word == "ada says promote: night: tested by hand."
        assert world.claim.promoted, "the traffic moves in the worker that heard the answer"
        (entry,) = world.record.approvals
        assert (entry["who"], entry["decision"]) == ("ada", "promote")

    def test_who_says_promote_in_the_middle_sends_it_to_the_next_share(
        self, spec: ModelSpec, context: Any, world: World
    ) -> None:
        world.claim = replace(world.claim, watches=(Watched(25, OPENED.isoformat()),))
        self.asking(spec, context, "on_inconclusive")
        waits = deferred(sensor(spec, "on_inconclusive").answered, context, answer(PROMOTE))
        assert waits.method_name == "ended"
        assert (world.claim.percent, world.claim.promoted) == (50, False)

    def test_evidence_goes_before_an_answer_that_crossed_it(self, spec: ModelSpec, context: Any, world: World) -> None:
        self.asking(spec, context)
        world.turned = "Rolled back: 90 of 100 canary requests failed."
        said = sensor(spec, "before_promote").answered(context, answer(PROMOTE))
        assert world.claim.closed == world.turned
        assert said.endswith(" (the answer crossed the evidence)")

    def test_who_says_roll_back_is_obeyed_at_once(self, spec: ModelSpec, context: Any, world: World) -> None:
        self.asking(spec, context)
        sensor(spec, "before_promote").answered(context, answer(BACK, "wrong day"))
        assert (world.claim.closed, world.claim.cause) == ("ada says rollback: wrong day.", Cause.PERSON)

    def test_17_7_a_store_that_is_away_keeps_no_canary_open_that_somebody_wants_closed(
        self, spec: ModelSpec, context: Any, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Number 7: the traffic is taken back before the answer is recorded."""

        def away(*_: Any) -> None:
            assert world.claim.closed, "the record was written first"
            raise StoreUnavailable("away")

        self.asking(spec, context)
        monkeypatch.setattr(records, "change", away)
        with pytest.raises(StoreUnavailable):
            sensor(spec, "before_promote").answered(context, answer(BACK, "wrong day"))

    @pytest.mark.parametrize(("cause", "who"), [(Cause.EVIDENCE, []), (Cause.DEADLINE, ["nobody"])])
    def test_evidence_or_silence_ends_the_question(
        self, spec: ModelSpec, context: Any, world: World, cause: Cause, who: list[str]
    ) -> None:
        self.asking(spec, context)
        reason = "Nobody answered within 4h: rolled back."
        world.claim = world.claim.close(reason, cause)
        said = sensor(spec).answered(context, event(spec, "rollback", bad=60, reason=reason))
        assert said == f"closing: {reason}"
        assert [one["who"] for one in world.record.approvals] == who

    def test_watching_longer_has_an_end_and_may_lead_to_another_question(
        self, spec: ModelSpec, context: Any, world: World
    ) -> None:
        self.asking(spec, context)
        waits = deferred(sensor(spec, "before_promote").answered, context, answer(LONGER))
        assert waits.method_name == "ended"
        stretch = world.claim.watches[-1]
        assert (stretch.percent, stretch.beside_question, stretch.again) == (50, False, 1)
        self.asking(spec, context)
        assert len(world.asked) == 2

    def test_the_release_holds_its_promise_however_often_one_watches_longer(self, spec: ModelSpec) -> None:
        """All watches before the promotion go on with one test, which asks for the same evidence in each; it and the
        bake have no more than the whole chance to roll a good canary back."""
        asks = spec.model_copy(update={"approval": "before_promote"})
        watches = [asks.policy(step) for step in asks.rollout.steps]
        watches += [asks.policy(50, guard=True, answered=9), asks.policy(50, answered=20, least_windows=29)]
        (needed,) = {Policy.from_dict(one).needed_against for one in watches}
        bake = Policy.from_dict(asks.policy(None))
        metrics = len(Policy.from_dict(watches[0]).deciding)
        assert metrics / needed + len(bake.deciding) / bake.needed_against <= asks.judge.false_rollback


def decide(spec: ModelSpec, onward: str | None = "promote") -> Decide:
    return Decide(task_id="decide", spec=spec, watch="canary", onward=onward, back="roll_back")


NOTHING = "task canary decided nothing about digits-00002 (was it marked by hand?): nothing is proven"
BACK_TO = replace(OPEN, order=Order("roll_back", "anna", "because", "", None))


@pytest.mark.parametrize(
    ("found", "way", "reason", "cause"),
    [
        (PROMOTED, "promote", None, None),
        (OPEN.close("9 of 30", Cause.EVIDENCE), "roll_back", "9 of 30", Cause.EVIDENCE),
        (OPEN.close("Cannot tell.", Cause.NO_DATA), "roll_back", "Cannot tell.", Cause.NO_DATA),
        (OPEN, "roll_back", NOTHING, Cause.UNPROVEN),
        (replace(OPEN, phase=Phase.PROVEN, watches=()), "roll_back", NOTHING, Cause.UNPROVEN),
        (BACK_TO, "roll_back", "Rolled back by anna: because", Cause.PERSON),
    ],
)
def test_only_a_word_for_what_is_staged_leads_onward(
    spec: ModelSpec, context: Any, world: World, found: Release, way: str, reason: str | None, cause: Cause | None
) -> None:
    world.claim = found
    for _ in range(2):
        assert decide(spec).choose_branch(context) == way
    assert (world.claim.closed, world.claim.cause) == (reason, cause)


@pytest.mark.parametrize(
    ("found", "way", "reason"),
    [
        (PROMOTED, [], None),
        (replace(PROMOTED, phase=Phase.BAKING), [], None),
        (replace(PROMOTED, phase=Phase.BAKING).close("9 of 90", Cause.EVIDENCE), "roll_back", "9 of 90"),
    ],
)
def test_after_the_bake_only_what_was_turned_back_leads_back_and_says_why(
    spec: ModelSpec, context: Any, world: World, found: Release, way: str | list[str], reason: str | None
) -> None:
    world.claim = found
    assert decide(spec, onward=None).choose_branch(context) == way
    assert world.claim.closed == reason


def test_a_run_that_staged_nothing_decides_nothing(spec: ModelSpec, context: Any, world: World, ti: Any) -> None:
    world.claim = Release(OWNER, namespace="models", name="digits")
    with pytest.raises(CanaryLost, match="no canary of models/digits was staged in this run"):
        decide(spec).choose_branch(context)
    assert "was staged in this run" in ti.xcoms["canary", "trouble"]
