"""Whole ways back in Standard mode, from each stage that a release can leave behind."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from tests.patience import LIMIT, until
from tests.releases import left

from model_release.cluster import rollout
from model_release.cluster.change import Baseline
from model_release.cluster.manifest import predictor_name
from model_release.cluster.progress import State
from model_release.cluster.release import Release
from model_release.cluster.settle import assess_rolled_back, is_clean, roll_back, settle, settle_step
from model_release.errors import NotSettled, SmokeFailed
from sandbox.interfaces import Phase, PodState


def named(version: str) -> str:
    return f"digits-{predictor_name('digits', f's3://models/digits/versions/{version}/')}-predictor"


V1, V2, V3 = (named(f"v{n}") for n in (1, 2, 3))


@pytest.fixture
def standard(live: Any) -> Any:
    """The service of the model file is in Standard mode."""
    live.service = {"mode": "standard"}
    return live


def quietly(_: str) -> None:
    """Nothing is barred by name in Standard mode: each version has a name of its own."""


def release_of(baseline: Baseline, canary: str | None = V2, **said: Any) -> Release:
    return left("models", "digits", baseline, canary, **said)


@pytest.mark.parametrize("stage", ["claimed", "staged", "starting", "open", "draining"])
def test_from_each_stage_the_baseline_has_everything_again(standard: Any, asked: Any, stage: str) -> None:
    standard.released("v1")
    baseline = rollout.baseline_of(standard.get(), asked("v2", mode="standard"))
    if stage == "starting":
        standard.pods.phases["v2"] = PodState(Phase.STARTING, 0, pods=("v2-0",))
        rollout.stage(standard.services, asked("v2", mode="standard"), baseline)
    elif stage != "claimed":
        baseline, canary = standard.stage("v2", baseline)
        if stage != "staged":
            standard.shift(canary, 30)
        if stage == "draining":
            (entry,) = standard.get().canaries
            standard.services.patch(standard.get(), {"spec": {"canary": [{**entry, "trafficPercent": 100}]}})
    assert standard.settle(baseline, V2) == f"{V1} has all of the traffic"
    standard.assert_clean("v1")
    generation = standard.get().raw["metadata"]["generation"]
    assert standard.settle(baseline, V2) == f"{V1} has all of the traffic"
    assert standard.get().raw["metadata"]["generation"] == generation
    assert {key.name for key in standard.pods.running} == {V1}


def test_0_percent_comes_first_and_the_entry_goes_after_the_traffic(standard: Any) -> None:
    standard.released("v1")
    baseline, canary = standard.stage("v2")
    standard.shift(canary, 30)
    progress = settle_step(standard.services, release_of(baseline), quietly)
    assert str(progress) == f"set to 0 %; {V1} gets all of the traffic"
    assert standard.get().canary_percent == 0
    assert standard.until(partial(_rolled_back, baseline)).state is State.READY
    assert standard.get().traffic == {V1: 100, V2: 0}
    assert not is_clean(standard.get(), release_of(baseline))
    roll_back(standard.services, release_of(baseline), quietly)
    assert standard.get().entry is not None, "a roll-back leaves the cleaning up to settle"


def _rolled_back(baseline: Baseline, live: Any) -> Any:
    return assess_rolled_back(live, release_of(baseline))


def test_a_promotion_that_was_proven_is_finished(standard: Any) -> None:
    standard.released("v1")
    baseline, canary = standard.stage("v2")
    standard.shift(canary, 30)
    (entry,) = standard.get().canaries
    standard.services.patch(standard.get(), {"spec": {"canary": [{**entry, "trafficPercent": 100}]}})
    assert standard.settle(baseline, V2, promoted=True) == f"{V2} was promoted and has all of the traffic"
    standard.assert_clean("v2")
    assert standard.settle(baseline, V2, promoted=True) == f"{V2} was promoted and has all of the traffic"


def test_a_promotion_that_was_never_written_is_rolled_back(standard: Any) -> None:
    standard.released("v1")
    baseline, canary = standard.stage("v2")
    standard.shift(canary, 30)
    assert standard.settle(baseline, V2, promoted=True) == f"{V1} has all of the traffic"
    standard.assert_clean("v1")


def test_late_the_old_version_comes_back_as_a_canary_and_is_asked_before(standard: Any) -> None:
    standard.released("v1")
    baseline, canary = standard.stage("v2")
    standard.shift(canary, 30)
    standard.promote(canary, 30)
    before = len(standard.door.history)
    asked: list[tuple[str, dict[str, int]]] = []
    said = settle(
        standard.services,
        release_of(baseline),
        quietly,
        deadline=LIMIT,
        poll=0.01,
        prove=lambda live: asked.append((str(live.tag_url("latest")), live.serving)),
    )
    assert said == f"{V1} has all of the traffic"
    assert (f"http://{V1}.models.svc.cluster.local", {V2: 100}) in asked
    standard.assert_clean("v1")
    # Nobody else ever had a share on the way.
    assert standard.door.history[before:] == [{V1: 100}]


def test_late_and_not_proven_the_promoted_one_keeps_serving(standard: Any) -> None:
    standard.released("v1")
    baseline, canary = standard.stage("v2")
    standard.shift(canary, 30)
    standard.promote(canary, 30)

    def refuse(_: Any) -> None:
        raise SmokeFailed("answered 503")

    def told() -> bool:
        with pytest.raises(NotSettled) as late:
            settle(standard.services, release_of(baseline), quietly, deadline=1, poll=0.01, prove=refuse)
        return "is not proven: answered 503" in str(late.value)

    until(told)  # a busy machine may not come as far in the first second
    assert standard.get().serving == {V2: 100}
    assert standard.get().canary_percent == 0


def test_a_first_deployment_that_was_never_proven_goes(standard: Any) -> None:
    baseline, canary = standard.stage("v1")
    assert canary.baseline is None
    said = standard.settle(baseline, V1)
    assert said == "models/digits does not exist; no traffic to settle"
    assert standard.services.get("models", "digits") is None


def test_a_first_deployment_that_went_live_stays(standard: Any) -> None:
    baseline, _ = standard.stage("v1")
    assert standard.settle(baseline, V1, promoted=True) == f"{V1} was promoted and has all of the traffic"
    standard.assert_clean("v1")


def test_somebody_elses_promotion_is_told_and_rolled_back_to_the_baseline(standard: Any) -> None:
    standard.released("v1")
    baseline, canary = standard.stage("v2")
    standard.shift(canary, 30)
    standard.edit({"spec": {"predictor": standard.get().template, "canary": None}})
    assert standard.settle(baseline, V2) == f"{V1} has all of the traffic"
    standard.assert_clean("v1")


def test_proven_and_then_replaced_by_another_hand_is_left_alone(standard: Any) -> None:
    standard.released("v1")
    baseline, canary = standard.stage("v2")
    standard.shift(canary, 30)
    standard.promote(canary, 30)
    standard.released("v3")
    with pytest.raises(NotSettled, match=f"{V2} was promoted, and {V3} came after it"):
        standard.settle(baseline, V2, promoted=True, deadline=0.3)
    assert standard.get().serving == {V3: 100}


def test_a_hand_on_the_stable_predictor_is_undone(standard: Any) -> None:
    standard.released("v1")
    baseline, _ = standard.stage("v2")
    standard.edit({"spec": {"predictor": {"timeout": 7, "maxReplicas": 3}}})
    assert standard.settle(baseline, V2) == f"{V1} has all of the traffic"
    assert standard.get().template == baseline.template


def test_made_by_hand_without_a_name_it_comes_back_with_one(standard: Any, asked: Any) -> None:
    by_hand = asked("v1", mode="standard")
    del by_hand["spec"]["predictor"]["name"], by_hand["spec"]["predictor"]["serviceAccountName"]
    standard.services.create(by_hand)
    while standard.get().serving != {"digits-predictor": 100}:
        pass
    baseline, canary = standard.stage("v2")
    assert canary.baseline == baseline.revision == "digits-predictor"
    standard.shift(canary, 30)
    standard.promote(canary, 30)
    assert standard.settle(baseline, V2, deadline=LIMIT) == f"{V1} has all of the traffic"
    standard.assert_clean("v1")


def test_a_deleted_service_is_told(standard: Any) -> None:
    standard.released("v1")
    baseline, _ = standard.stage("v2")
    standard.services.delete(standard.get())
    while standard.services.get("models", "digits") is not None:
        pass
    with pytest.raises(NotSettled, match=f"was deleted; {V1} is gone with it"):
        standard.settle(baseline, V2, deadline=0.3)
