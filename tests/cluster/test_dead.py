"""A dead canary loses its users at once: 0 %, and its failed Revision is deleted where it holds the route."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from tests.cluster.recordings import moments
from tests.releases import left

from model_release.cluster import rollout
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.progress import State
from model_release.cluster.release import Release
from model_release.cluster.rollout import death_of
from model_release.cluster.settle import assess_rolled_back, roll_back
from model_release.errors import CanaryLost, ClusterRefused, NotSettled


def test_a_dead_canary_is_seen_by_what_the_real_controllers_say() -> None:
    canary = "digits-predictor-00002"
    told = {round(moment.t, 2): death_of(moment.live, canary) for moment in moments("crash")}
    assert not any(said for t, said in told.items() if t < 15.87 or t > 28.8)
    assert all("is dead: Container failed with: ModuleNotFoundError" in str(told[t]) for t in (15.87, 15.93, 23.69))


def test_last_words_that_are_a_whole_log_are_told_by_their_beginning_and_end() -> None:
    raw = copy.deepcopy(next(one.live.raw for one in moments("crash") if death_of(one.live, "digits-predictor-00002")))
    (condition,) = [one for one in raw["status"]["conditions"] if one["type"] == "PredictorConfigurationReady"]
    log = "\n".join(f"line {number}" for number in range(500))
    begun = condition["message"].partition("message:")[0]
    condition["message"] = f"{begun}message: Container failed with: {log}."
    said = death_of(InferenceService(raw), "digits-predictor-00002")
    assert said is not None
    assert "Container failed with: line 0 line 1 " in said
    assert said.endswith("line 499.")
    assert len(said) < 400


@pytest.mark.parametrize(
    ("name", "dead", "way"), [("crash", 2, "is deleted"), ("stable-crashes", 1, "promotion would")]
)
def test_a_frozen_route_is_told_and_its_share_is_the_old_one(name: str, dead: int, way: str) -> None:
    frozen = [one.live for one in moments(name) if one.live and one.live.frozen_by == f"digits-predictor-0000{dead}"]
    asked = [live for live in frozen if live.canary_percent != 30]
    assert asked
    for live in asked:
        release = left(live.namespace, "digits", rollout.Baseline(live.uid, "digits-predictor-00001"))
        said = assess_rolled_back(live, release)
        assert live.gateway is not None
        assert (said.state, live.gateway.get("digits-predictor-00002")) == (State.WAITING, 30)
        assert way in said.sentence


def test_a_canary_of_a_stopped_service_is_lost_and_nothing_is_claimed_on_it() -> None:
    seen = [one.live for one in moments("stopped") if one.live]
    wanted = {"metadata": {"name": "digits", "namespace": "models"}, "spec": {"predictor": seen[0].template}}
    before = next(live for live in seen if live.latest_ready == "digits-predictor-00002" and live.canary_percent == 0)
    baseline = rollout.baseline_of(seen[3], wanted) if seen[3].rolled_out else rollout.Baseline(seen[0].uid)
    canary = rollout.canary_of(before, baseline)
    stopped = [live for live in seen if live.is_stopped]
    after = [live for live in seen if live.started not in (None, canary.started)]
    assert stopped
    assert after
    for live in stopped:
        with pytest.raises(CanaryLost, match="is stopped"):
            rollout.check_untouched(live, canary)
        with pytest.raises(ClusterRefused, match="start it first"):
            rollout.baseline_of(live, wanted)
    for live in after:
        with pytest.raises(CanaryLost, match="was stopped and started"):
            rollout.check_untouched(live, canary)


def test_17_12_knatives_refusal_fails_and_its_webhook_away_is_waited_for() -> None:
    """Number 12, as the real controllers say both: `failed calling webhook` passes by itself."""
    from model_release.cluster.progress import trouble_of

    said = [trouble_of(one.live, None) for one in moments("refused") if one.live]
    refused = [one for one in said if one is not None]
    assert {one.state for one in refused} == {State.FAILING}
    assert "expected 0 <= 900 <= 600: spec.template.spec.timeoutSeconds" in refused[-1].sentence
    away = [one for one in (trouble_of(one.live, None) for one in moments("webhook-away") if one.live) if one]
    assert {one.state for one in away} == {State.WAITING}
    assert any("failed calling webhook" in one.sentence for one in away)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_dead_canary_is_let_go_where_that_may_be_done(live: Any, monkeypatch: Any, allowed: bool) -> None:
    from sandbox.interfaces import Phase, PodState

    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 30)
    uid = live.services.revision("models", canary.revision)["metadata"]["uid"]
    live.pods.phases["v2"] = PodState(Phase.CRASHED, 0, message="OutOfMemory", exit_code=1)
    dead = live.until(
        lambda isvc: rollout.Progress(State.READY if death_of(isvc, canary.revision) else State.WAITING, "")
    )
    assert dead.state is State.READY
    if not allowed:
        monkeypatch.setattr(live.services, "delete_revision", _forbidden)
    release = left("models", "digits", baseline, canary.revision)

    def back(_: Any) -> Any:
        return assess_rolled_back(roll_back(live.services, release, live.barred.append), release)

    assert live.until(back).state is State.READY
    # The baseline, or its content in the revision that was made of the template meanwhile.
    assert live.door.now in ({baseline.revision: 100}, {"digits-predictor-00003": 100})
    anew = live.services.revision("models", canary.revision)
    assert (anew["metadata"]["uid"] != uid) is allowed


def _forbidden(_: Any) -> None:
    raise ClusterRefused("delete revisions: forbidden")


def _promoted_and_dead(live: Any) -> tuple[Any, Any]:
    """The second revision was promoted, and dies for good."""
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 50)
    live.promote(canary, 50)
    _dies(live, canary)
    return baseline, canary


def _dies(live: Any, canary: Any) -> None:
    from sandbox.interfaces import Phase, PodState

    live.pods.phases["v2"] = PodState(Phase.CRASHED, 0, message="OutOfMemory", exit_code=1)
    progress = live.until(
        lambda isvc: rollout.Progress(State.READY if death_of(isvc, canary.revision) else State.WAITING, "")
    )
    assert progress.state is State.READY


def _back(live: Any, release: Release) -> Any:
    return live.until(lambda _: assess_rolled_back(roll_back(live.services, release, live.barred.append), release))


def test_one_that_dies_after_its_promotion_is_let_go_before_0_percent_is_written(live: Any) -> None:
    """The old revision takes over as it is: no new pod has to come up for that."""
    baseline, canary = _promoted_and_dead(live)
    told = assess_rolled_back(live.get(), left("models", "digits", baseline, canary.revision)).sentence
    assert f"frozen by the dead {canary.revision}, which was promoted" in told
    mark = len(live.door.history)
    assert _back(live, left("models", "digits", baseline, canary.revision)).state is State.READY
    assert live.door.history[mark:] == [{baseline.revision: 100}]
    assert live.get().latest_created == canary.revision, "no third revision was needed"
    assert live.get().canary_percent == 0
    # Made anew and ready, it gets nothing.
    live.pods.phases.clear()
    live.settle(baseline, canary.revision)
    live.assert_clean("v1")
    assert not any(canary.revision in shares for shares in live.door.history[mark:])


def test_one_that_dies_while_its_promotion_is_taken_back(live: Any) -> None:
    """0 % was written, and KServe had not seen it act when the revision died."""
    baseline, canary = _promoted_and_dead(live)
    live.edit({"spec": {"predictor": {"canaryTrafficPercent": 0}}})
    mark = len(live.door.history)
    assert _back(live, left("models", "digits", baseline, canary.revision)).state is State.READY
    assert live.door.history[mark:] == [{baseline.revision: 100}]
    assert live.get().canary_percent == 0


@pytest.mark.parametrize("kept", ["no right", "a canary of nobody's in between"])
def test_one_that_dies_after_its_promotion_and_cannot_be_let_go(
    live: Any, asked: Any, monkeypatch: Any, kept: str
) -> None:
    """What Knative would fall back to must be the baseline. Else the stable template comes back as a new revision."""
    live.released("v1")
    if kept == "no right":
        baseline, canary = live.stage("v2")
    else:
        known, _ = live.stage("v3")
        baseline, canary = live.stage("v2", rollout.baseline_of(live.get(), asked("v2"), known))
    live.shift(canary, 50)
    live.promote(canary, 50)
    _dies(live, canary)
    if kept == "no right":
        monkeypatch.setattr(live.services, "delete_revision", _forbidden)
    mark = len(live.door.history)
    assert _back(live, left("models", "digits", baseline, canary.revision)).state is State.READY
    newest = live.get().latest_created
    assert newest not in (baseline.revision, canary.revision)
    assert live.door.history[mark:] == [{newest: 100}]
    live.settle(baseline, canary.revision)
    live.assert_clean("v1")


def test_17_8_a_person_gets_no_unasked_revision_in_place_of_a_dead_one(live: Any, monkeypatch: Any) -> None:
    """Number 8: the frozen route reaches nothing new at 0 %, so what has the stable template cannot be asked."""
    baseline, canary = _promoted_and_dead(live)
    monkeypatch.setattr(live.services, "delete_revision", _forbidden)
    release = replace(left("models", "digits", baseline, canary.revision), insist=True)
    told = f"{canary.revision} is dead, so digits-predictor-00003, which has the stable template, cannot be asked"
    with pytest.raises(NotSettled, match=told):
        live.until(lambda _: assess_rolled_back(roll_back(live.services, release, live.barred.append, _asks), release))
    assert live.door.most("digits-predictor-00003") == 0


def _asks(_: Any) -> None:
    """It would answer, if it could be reached."""
