"""Whole ways forward against the real API server of the sandbox and its controllers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from tests.releases import OWNER

from model_release.cluster import rollout
from model_release.cluster.change import Baseline, Canary, Novelty
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.progress import Patience, State
from model_release.errors import (
    CanaryLost,
    ClusterRefused,
    ForeignService,
    RevisionFailed,
    SpecError,
)
from sandbox.interfaces import Phase, PodState

Asked = Callable[..., dict[str, Any]]
R1, R2, R3 = (f"digits-predictor-0000{n}" for n in (1, 2, 3))


def test_three_releases_promote_without_an_unproven_share(live: Any) -> None:
    names = live.released("v1", "v2", "v3")
    assert names == [R1, R2, R3]
    assert live.door.now == {R3: 100}
    assert live.get().canary_percent is None
    assert live.get().previous_rolled_out == R2
    # Nothing but what was asked for was ever served: each split names the two that belong together.
    assert live.door.history == [
        *([{}] if live.door.history[0] == {} else []),
        {R1: 100}, {R1: 50, R2: 50}, {R2: 100}, {R2: 50, R3: 50}, {R3: 100},
    ]  # fmt: skip


def test_staged_at_0_and_reachable_by_tag(live: Any) -> None:
    live.released("v1")
    _, canary = live.stage("v2")
    isvc = live.get()
    assert isvc.traffic == {R2: 0, R1: 100}
    assert isvc.tag_url("latest") == "http://latest-digits-predictor.models.localhost"
    assert canary == Canary("models", "digits", isvc.uid, R2, R1, isvc.template_digest, isvc.started)
    assert Canary.from_dict(canary.as_dict()) == canary
    assert live.door.most(R2) == 0


@pytest.mark.parametrize("mode", ["knative", "standard"])
def test_a_first_deployment_that_was_never_proven_gives_way_to_another(live: Any, asked: Asked, mode: str) -> None:
    """Its run was cleared before it had answered, and its newest candidate is another one by now."""
    live.service = {"mode": mode} if mode == "standard" else {}
    baseline, unproven = live.stage("v1")
    template, wanted = live.get().template_digest, asked("v2", **live.service)
    before = replace(baseline, created=unproven.revision)
    written = rollout.stage(live.services, wanted, before, template, by=OWNER.identity).template_digest
    progress = live.until(partial(rollout.assess_staged, wanted=wanted, baseline=before, template=written))
    assert progress.state is State.READY, progress
    assert progress.revision != unproven.revision
    live.assert_clean("v2")


def test_each_verb_twice_writes_once(live: Any, asked: Asked) -> None:
    live.released("v1")
    baseline, canary = live.stage("v2")

    def written() -> Any:
        """What a verb can write; the status is KServe's, which still comes to rest after a verb is done."""
        isvc = live.get()
        return isvc.raw["metadata"]["generation"], isvc.annotations, isvc.labels

    def again(verb: Callable[[], object]) -> None:
        verb()
        before = written()
        verb()
        assert written() == before

    again(lambda: rollout.stage(live.services, asked("v2"), baseline))
    live.shift(canary, 10)
    again(lambda: rollout.shift(live.services, canary, 10))
    live.promote(canary, 10)
    again(lambda: rollout.promote(live.services, canary, 10))
    # A stage that is run again after the promotion must not take it back.
    again(lambda: rollout.stage(live.services, asked("v2"), baseline))
    progress = live.until(partial(rollout.assess_staged, wanted=asked("v2"), baseline=baseline))
    assert (progress.state, progress.revision) == (State.READY, R2)
    with pytest.raises(CanaryLost, match=r"split .* was removed"):
        rollout.shift(live.services, canary, 10)
    assert live.get().serving == {R2: 100}


def test_stage_again_closes_an_open_canary(live: Any, asked: Asked) -> None:
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 30)
    live.stage("v2", baseline)
    assert live.get().serving == {R1: 100}
    assert live.get().latest_created == R2


def test_plan(live: Any, asked: Asked) -> None:
    assert rollout.plan_change(None, asked("v1")).kind is Novelty.FIRST
    live.released("v1")
    assert rollout.plan_change(live.get(), asked("v1")).kind is Novelty.NOTHING
    assert rollout.plan_change(live.get(), asked("v2")).kind is Novelty.NEW
    live.stage("v2")
    change = rollout.plan_change(live.get(), asked("v2"))
    assert (change.kind, change.revision) == (Novelty.STAGED, R2)
    assert rollout.plan_change(live.get(), asked("v1")).kind is Novelty.NEW


@pytest.mark.parametrize("percent", [-1, 0, 100, 101])
def test_percent_out_of_range(live: Any, percent: int) -> None:
    live.released("v1")
    _, canary = live.stage("v2")
    with pytest.raises(SpecError, match=f"^{percent} % is no step"):
        rollout.shift(live.services, canary, percent)
    assert live.get().traffic == {R2: 0, R1: 100}


def test_a_first_deployment_has_no_split(live: Any) -> None:
    baseline, canary = live.stage("v1")
    assert baseline == Baseline()
    assert live.get().canary_percent is None
    with pytest.raises(SpecError, match="first deployment"):
        rollout.shift(live.services, canary, 10)
    rollout.promote(live.services, canary, 0)
    assert live.get().serving == {R1: 100}


def test_foreign_service_is_left_alone(live: Any, asked: Asked) -> None:
    foreign = asked("v0")
    foreign["metadata"]["labels"] = {}
    del foreign["spec"]["predictor"]["serviceAccountName"]
    before = live.services.create(foreign)
    with pytest.raises(ForeignService, match="kubectl label inferenceservice -n models digits"):
        rollout.stage(live.services, asked("v1"), Baseline(uid=before.uid))
    assert live.get().template == before.template


def test_standard_mode_is_refused(live: Any, asked: Asked) -> None:
    standard = asked("v0")
    standard["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = "Standard"
    del standard["spec"]["predictor"]["serviceAccountName"]
    before = live.services.create(standard)
    with pytest.raises(ClusterRefused, match="Standard mode"):
        rollout.stage(live.services, asked("v1"), Baseline(uid=before.uid))


def test_a_failed_download_is_told_with_its_own_words(live: Any, asked: Asked) -> None:
    live.released("v1")
    live.pods.phases["v2"] = PodState(
        Phase.DOWNLOAD_FAILED, message="Failed to fetch model. No model found in versions/v2/.", exit_code=1
    )
    baseline = rollout.baseline_of(live.get(), asked("v2"))
    rollout.stage(live.services, asked("v2"), baseline)
    patience, at = Patience(), iter(range(0, 10_000, 5))
    progress = live.until(lambda isvc: patience.judge(rollout.assess_staged(isvc, asked("v2"), baseline), next(at)))
    assert progress.state is State.FAILED
    assert progress.sentence == (
        f"{R2} fails to load (exit code 1): Failed to fetch model. No model found in versions/v2/."
    )
    assert live.door.now == {R1: 100}
    # The same version once more: nothing changed, so the reason is told again instead of waited for.
    live.edit({"spec": {"predictor": {"canaryTrafficPercent": None}}})
    with pytest.raises(RevisionFailed, match="No model found"):
        rollout.plan_change(live.get(), asked("v2"))


def test_a_missing_runtime_is_told(live: Any, asked: Asked) -> None:
    live.released("v1")
    broken = asked("v2", runtime="not-there")
    baseline = rollout.baseline_of(live.get(), broken)
    rollout.stage(live.services, broken, baseline)
    progress = live.until(
        lambda isvc: Patience().judge(rollout.assess_staged(isvc, broken, baseline), 0.0), deadline=0.5
    )
    assert progress.state is State.FAILING
    assert "Waiting for runtime to become available" in progress.sentence
    assert "versions/v1/" in str(baseline.storage_uri)
    assert live.settle(baseline) == f"{R1} has all of the traffic"
    assert live.get().template == baseline.template


def test_the_late_roll_back_race_is_seen_and_mended(live: Any, asked: Asked) -> None:
    live.released("v1", "v2")
    baseline = rollout.baseline_of(live.get(), asked("v3"))
    assert baseline.revision == R2
    live.late_configuration(4)
    rollout.stage(live.services, asked("v3"), baseline)
    progress = live.until(partial(rollout.assess_staged, wanted=asked("v3"), baseline=baseline))
    assert progress.state is State.WRONG_BASELINE
    assert f"with {R1} and not with {R2}" in progress.sentence
    sentence = live.settle(baseline, progress.revision)
    isvc = live.get()
    assert sentence == f"{isvc.latest_created} has all of the traffic"
    assert isvc.storage_uri == "s3://models/digits/versions/v2/"
    assert isvc.canary_percent is None
    assert live.door.most(R3) == 0 or isvc.latest_created == R3
    # And anew, against the restored one.
    restored = isvc.latest_created
    again, canary = live.stage("v3")
    assert again.revision == restored
    live.shift(canary, 20)
    assert live.door.now == {canary.revision: 20, restored: 80}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"canaryTrafficPercent": 60}, "should be at 10 %; the spec says 60 %"),
        ({"maxReplicas": 2}, "template of models/digits is not the one that was staged"),
        ({"canaryTrafficPercent": None}, "the spec says None %"),
    ],
)
def test_another_hand_is_named(live: Any, change: dict[str, Any], said: str) -> None:
    live.released("v1")
    _, canary = live.stage("v2")
    live.shift(canary, 10)
    rollout.check_untouched(live.get(), canary, 10)
    live.edit({"spec": {"predictor": change}})
    field = next(iter(change))
    with pytest.raises(CanaryLost) as lost:
        rollout.check_untouched(live.get(), canary, 10)
    assert said in str(lost.value)
    if change[field] is not None:
        assert "last changed by kubectl-edit at 20" in str(lost.value)
        assert f"spec.predictor.{field}" in str(lost.value)
    progress = rollout.assess_split(live.get(), canary, 10)
    assert progress.state is State.LOST
    if change[field] is None:
        return  # promoted by hand: there is nothing left to promote
    with pytest.raises(CanaryLost):
        rollout.promote(live.services, canary, 10)


def test_17_3_made_anew_under_the_same_name_is_lost(live: Any, asked: Asked) -> None:
    """Number 3."""
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.services.delete(live.get())
    while live.services.get("models", "digits") is not None:
        pass
    with pytest.raises(CanaryLost, match="was deleted"):
        rollout.check_untouched(None, canary)
    with pytest.raises(CanaryLost, match="deleted after it was claimed"):
        rollout.stage(live.services, asked("v2"), baseline)
    live.released("v1")
    with pytest.raises(CanaryLost, match="made anew"):
        rollout.check_untouched(live.get(), canary)


def test_another_hands_template_is_not_written_over(live: Any, asked: Asked) -> None:
    live.released("v1")
    baseline, _ = live.stage("v2")
    live.edit({"spec": {"predictor": {"containerConcurrency": 7}}})
    with pytest.raises(CanaryLost, match="got another template after it was claimed, last changed by kubectl-edit"):
        rollout.stage(live.services, asked("v2"), baseline)
    assert live.get().template["containerConcurrency"] == 7


def test_nor_one_that_kserve_has_not_acted_on_yet(live: Any, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    live.released("v1")
    baseline, past = rollout.baseline_of(live.get(), asked("v2")), live.get().status
    live.edit({"spec": {"predictor": {"containerConcurrency": 7}}})
    now = live.get()
    monkeypatch.setattr(live.services, "get", lambda *_: InferenceService({**now.raw, "status": past}))
    with pytest.raises(CanaryLost, match="got another template after it was claimed, last changed by kubectl-edit"):
        rollout.stage(live.services, asked("v2"), baseline)


def test_a_field_that_another_hand_adds_while_the_canary_starts(live: Any, asked: Asked) -> None:
    """All that was wanted is still there, so nothing but what was written tells of it."""
    live.released("v1")
    baseline = rollout.baseline_of(live.get(), asked("v2"))
    template = rollout.stage(live.services, asked("v2"), baseline).template_digest
    rollout.stage(live.services, asked("v2"), baseline, template)
    live.edit({"spec": {"predictor": {"terminationGracePeriodSeconds": 7}}})
    progress = rollout.assess_staged(live.get(), asked("v2"), baseline, template)
    assert progress.state is State.LOST
    assert "no longer has what was staged, last changed by kubectl-edit" in progress.sentence
    with pytest.raises(CanaryLost, match="got another template after it was claimed, last changed by kubectl-edit"):
        rollout.stage(live.services, asked("v2"), baseline, template)
    assert live.get().template["terminationGracePeriodSeconds"] == 7


@pytest.mark.parametrize("fault", [{"status": 500, "after_write": True}, {"status": 409}, {"status": 503}])
def test_a_whole_release_with_each_write_cut_off_once(live: Any, fault: dict[str, Any]) -> None:
    live.fault("create", times=1, **fault)
    live.released("v1")
    live.fault("patch", times=1, **fault)
    _, canary = live.stage("v2")
    live.fault("patch", times=1, **fault)
    live.shift(canary, 25)
    live.fault("patch", times=1, **fault)
    live.promote(canary, 25)
    assert not live.cluster.faults.active
    assert live.get().serving == {R2: 100}
    assert live.get().latest_created == R2


def test_retyped_quantities_are_no_change(live: Any, asked: Asked) -> None:
    live.released("v1")
    assert live.get().template["model"]["resources"]["limits"] == {"cpu": "1", "memory": "1Gi"}, "the API's form"
    same = asked("v1", resources={"cpu": "1000m", "memory": "1024Mi"})
    assert rollout.plan_change(live.get(), same).kind is Novelty.NOTHING
    assert rollout.plan_change(live.get(), asked("v1", resources={"cpu": "2"})).kind is Novelty.NEW
    assert rollout.plan_change(live.get(), asked("v1", service_account="s3-read-only")).kind is Novelty.NEW


def test_a_field_taken_out_of_the_model_file_goes(live: Any, asked: Asked) -> None:
    first = asked("v1", service_account="s3-read-only")
    rollout.stage(live.services, first, Baseline())
    assert live.until(partial(rollout.assess_staged, wanted=first, baseline=Baseline())).state is State.READY
    assert live.get().template["serviceAccountName"] == "s3-read-only"
    live.stage("v1")
    assert "serviceAccountName" not in live.get().template
    assert live.get().latest_created == R2
