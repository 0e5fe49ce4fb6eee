"""Whole ways forward in Standard mode, against the real API server of the sandbox and its controllers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from model_release.cluster import rollout
from model_release.cluster.change import Baseline, Canary, Novelty
from model_release.cluster.manifest import predictor_name
from model_release.cluster.progress import Progress, State
from model_release.cluster.smoke import smoke_url, stable_url
from model_release.cluster.standard.view import StandardService
from model_release.errors import CanaryLost, SpecError
from sandbox.interfaces import Phase, PodState
from sandbox.kube.resources import DEPLOYMENTS, PODS
from sandbox.kube.resources import Kind as Resource

Asked = Callable[..., dict[str, Any]]


def named(version: str) -> str:
    return f"digits-{predictor_name('digits', f's3://models/digits/versions/{version}/')}-predictor"


V1, V2, V3 = (named(f"v{n}") for n in (1, 2, 3))


@pytest.fixture
def standard(live: Any) -> Any:
    """The service of the model file is in Standard mode."""
    live.service = {"mode": "standard"}
    return live


@pytest.fixture
def asked(asked: Asked) -> Asked:
    """The manifest of a version in Standard mode."""
    return partial(asked, mode="standard")


def objects(live: Any, kind: Resource) -> dict[str, dict[str, Any]]:
    registry = live.cluster._controller._inference_services.registry
    return {one["metadata"]["name"]: one for one in registry.store.all(kind.id, "models")}


def test_a_predictors_name_is_the_versions_own() -> None:
    uri = "s3://models/digits/versions/{}/"
    assert predictor_name("digits", uri.format("0123456789abcdef")) == "v0123456789"
    assert predictor_name("digits", uri.format("hand-made")) == predictor_name("digits", uri.format("hand-made"))
    assert predictor_name("digits", uri.format("hand-made")) != predictor_name("digits", uri.format("other"))
    assert predictor_name("d" * 36, uri.format("v1"))
    with pytest.raises(SpecError, match=r"service.name d+ is 1 characters too long for Standard mode"):
        predictor_name("d" * 37, uri.format("v1"))


def test_three_releases_promote_without_an_unproven_share(standard: Any) -> None:
    assert standard.released("v1", "v2", "v3") == [V1, V2, V3]
    assert [shares for shares in standard.door.history if shares] == [
        {V1: 100}, {V1: 50, V2: 50}, {V2: 100}, {V2: 50, V3: 50}, {V3: 100},
    ]  # fmt: skip
    isvc = standard.get()
    assert isinstance(isvc, StandardService)
    assert (isvc.canary_percent, isvc.rolled_out, isvc.latest_ready, isvc.previous_rolled_out) == (None, V3, V3, None)
    assert isvc.raw["spec"].get("canary") is None
    assert set(objects(standard, DEPLOYMENTS)) == {V3}


def test_staged_at_0_and_asked_at_its_own_service(standard: Any) -> None:
    standard.released("v1")
    assert smoke_url(standard.get()) == f"http://{V1}.models.svc.cluster.local"
    baseline, canary = standard.stage("v2")
    isvc = standard.get()
    assert isvc.traffic == {V1: 100, V2: 0}
    assert smoke_url(isvc) == f"http://{V2}.models.svc.cluster.local"
    assert stable_url(isvc) == f"http://{V1}.models.svc.cluster.local"
    assert canary == Canary("models", "digits", isvc.uid, V2, V1, isvc.template_digest, isvc.started)
    assert Canary.from_dict(canary.as_dict()) == canary
    assert Baseline.from_dict(baseline.as_dict()) == baseline
    assert baseline.storage_uri == "s3://models/digits/versions/v1/"
    assert standard.door.most(V2) == 0
    (entry,) = isvc.canaries
    assert entry == {
        "predictor": {
            "name": predictor_name("digits", "s3://models/digits/versions/v2/"),
            "minReplicas": 1,
            "model": {"modelFormat": {"name": "pytorch"}, "name": "", "storageUri": "s3://models/digits/versions/v2/"},
        },
        "trafficPercent": 0,
    }


def test_a_promotion_keeps_the_running_pods(standard: Any) -> None:
    standard.released("v1")
    _, canary = standard.stage("v2")
    before = {name: pod["metadata"]["uid"] for name, pod in objects(standard, PODS).items() if V2 in name}
    deployment = objects(standard, DEPLOYMENTS)[V2]
    standard.shift(canary, 30)
    standard.promote(canary, 30)
    after = objects(standard, DEPLOYMENTS)[V2]
    assert after["metadata"]["uid"] == deployment["metadata"]["uid"]
    assert after["spec"]["template"] == deployment["spec"]["template"]
    assert before
    assert {name: pod["metadata"]["uid"] for name, pod in objects(standard, PODS).items() if V2 in name} == before


def test_the_name_changes_hands_when_the_former_has_no_traffic_any_more(
    standard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    standard.released("v1")
    _, canary = standard.stage("v2")
    standard.shift(canary, 30)
    writes: list[tuple[dict[str, int], Any]] = []
    patch = standard.services.patch

    def seen(live: Any, change: dict[str, Any], **said: Any) -> Any:
        writes.append((live.serving, change["spec"]))
        return patch(live, change, **said)

    monkeypatch.setattr(standard.services, "patch", seen)
    standard.promote(canary, 30)
    (before, drain), (after, handing_over) = writes
    assert before == {V1: 70, V2: 30}
    assert (list(drain), drain["canary"][0]["trafficPercent"]) == (["canary"], 100)
    assert after == {V2: 100}
    assert handing_over["canary"] is None
    assert standard.get().service_of(handing_over["predictor"]["name"]) == V2


def test_each_verb_twice_writes_once(standard: Any, asked: Asked) -> None:
    standard.released("v1")
    baseline, canary = standard.stage("v2")

    def again(verb: Callable[[], object]) -> None:
        verb()
        before = standard.get().raw["metadata"]["generation"]
        verb()
        assert standard.get().raw["metadata"]["generation"] == before

    again(lambda: rollout.stage(standard.services, asked("v2"), baseline))
    standard.shift(canary, 10)
    again(lambda: rollout.shift(standard.services, canary, 10))
    standard.promote(canary, 10)
    again(lambda: rollout.promote(standard.services, canary, 10))
    # A stage that is run again after the promotion must not take it back.
    again(lambda: rollout.stage(standard.services, asked("v2"), baseline))
    again(lambda: rollout.stage(standard.services, asked("v2"), baseline, canary.template))
    progress = standard.until(
        partial(rollout.assess_staged, wanted=asked("v2"), baseline=baseline, template=canary.template)
    )
    assert (progress.state, progress.revision) == (State.READY, V2)
    with pytest.raises(CanaryLost, match=r"split .* was removed"):
        rollout.shift(standard.services, canary, 10)
    assert standard.get().serving == {V2: 100}


def test_stage_again_closes_an_open_canary(standard: Any) -> None:
    standard.released("v1")
    baseline, canary = standard.stage("v2")
    standard.shift(canary, 30)
    standard.stage("v2", baseline)
    assert standard.get().serving == {V1: 100}
    assert standard.get().latest_created == V2


def test_a_promotion_that_was_cut_off_goes_on(standard: Any) -> None:
    standard.released("v1")
    _, canary = standard.stage("v2")
    standard.shift(canary, 30)
    # The first of its two writes is done, and nothing more.
    standard.services.change("models", "digits", lambda live: {"spec": {"canary": _at(live, 100)}})
    progress = standard.until(lambda live: rollout.assess_promoted(live, canary), deadline=0.3)
    assert progress.state is State.WAITING
    standard.promote(canary, 30)
    assert standard.get().serving == {V2: 100}


def _at(live: StandardService, percent: int) -> list[dict[str, Any]]:
    return [{**live.canaries[0], "trafficPercent": percent}]


def test_plan(standard: Any, asked: Asked) -> None:
    assert rollout.plan_change(None, asked("v1")).kind is Novelty.FIRST
    standard.released("v1")
    assert rollout.plan_change(standard.get(), asked("v1")).kind is Novelty.NOTHING
    assert rollout.plan_change(standard.get(), asked("v2")).kind is Novelty.NEW
    standard.stage("v2")
    change = rollout.plan_change(standard.get(), asked("v2"))
    assert (change.kind, change.revision) == (Novelty.STAGED, V2)
    assert rollout.plan_change(standard.get(), asked("v3")).kind is Novelty.NEW


def test_another_canary_takes_the_place_of_a_leftover(standard: Any) -> None:
    standard.released("v1")
    _, canary = standard.stage("v2")
    standard.shift(canary, 30)
    _, newer = standard.stage("v3")
    assert newer.revision == V3
    assert standard.get().serving == {V1: 100}
    assert standard.door.most(V3) == 0


def test_replicas_follow_the_share(standard: Any) -> None:
    standard.service |= {"min_replicas": 4, "max_replicas": 4}
    for version in ("v1", "v2"):
        standard.pods.phases[version] = PodState(Phase.READY, 4, pods=tuple(f"{version}-{n}" for n in range(4)))
    standard.released("v1")
    _, canary = standard.stage("v2")

    def replicas() -> dict[str, int]:
        return {name: one["spec"]["replicas"] for name, one in objects(standard, DEPLOYMENTS).items()}

    assert replicas() == {V1: 3, V2: 1}
    standard.shift(canary, 50)
    assert replicas() == {V1: 2, V2: 2}
    standard.promote(canary, 50)
    assert replicas() == {V2: 4}


def test_a_model_that_never_comes_up_is_told_by_its_own_pods_and_takes_nothing(standard: Any, asked: Asked) -> None:
    standard.released("v1")
    standard.pods.phases["v2"] = PodState(
        Phase.DOWNLOAD_FAILED, 0, "No model found\nin versions/v2/.", 1, pods=("v2-0",)
    )
    baseline = rollout.baseline_of(standard.get(), asked("v2"))
    rollout.stage(standard.services, asked("v2"), baseline)
    progress = standard.until(_failing(partial(rollout.assess_staged, wanted=asked("v2"), baseline=baseline)))
    assert str(progress) == f"{V2} fails to load (exit code 1): No model found in versions/v2/."
    assert (progress.state, progress.revision, progress.grace) == (State.FAILED, V2, 10.0)
    # The routes name the weight of the one that is left; until the gateway has acted on that nobody serves for sure.
    standard.until(lambda isvc: Progress(State.READY if isvc.serving == {V1: 100} else State.WAITING, ""))
    assert standard.get().serving == {V1: 100}
    assert standard.get().ready
    # Who may not list pods waits for the deadline instead.
    standard.fault("list", "pods", status=403)
    progress = rollout.assess_staged(standard.get(), asked("v2"), baseline)
    assert (progress.state, str(progress)) == (State.WAITING, f"{V2} is starting")


def _failing(assess: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """FAILING ends the wait at once: nobody has to sit out a grace here."""

    def at_once(live: Any) -> Any:
        told = assess(live)
        return replace(told, state=State.FAILED) if told.state is State.FAILING else told

    return at_once


OTHER = {"modelFormat": {"name": "pytorch"}, "storageUri": "s3://models/digits/versions/other/"}


@pytest.mark.parametrize(
    "edit",
    [
        {"spec": {"predictor": {"terminationGracePeriodSeconds": 7}}},
        {"spec": {"canary": [{"predictor": {"name": "other", "model": OTHER}, "trafficPercent": 0}]}},
    ],
)
def test_another_hand_while_the_canary_starts(standard: Any, asked: Asked, edit: dict[str, Any]) -> None:
    """On the stable predictor or on the canary: told, and not written over by a stage that is run again."""
    standard.released("v1")
    baseline = rollout.baseline_of(standard.get(), asked("v2"))
    template = rollout.stage(standard.services, asked("v2"), baseline).template_digest
    rollout.stage(standard.services, asked("v2"), baseline, template)
    standard.edit(edit)
    by_hand = standard.get().raw["spec"]
    progress = rollout.assess_staged(standard.get(), asked("v2"), baseline, template)
    assert progress.state is State.LOST
    assert "no longer has what was staged, last changed by kubectl-edit" in progress.sentence
    with pytest.raises(CanaryLost, match="got another template after it was claimed, last changed by kubectl-edit"):
        rollout.stage(standard.services, asked("v2"), baseline, template)
    assert standard.get().raw["spec"] == by_hand


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"spec": {"predictor": {"timeout": 7}}}, "the template of models/digits is not the one that was staged"),
        ({"spec": {"predictor": {"minReplicas": 1, "labels": {"a": "b"}}}}, "template of models/digits is not the one"),
        ({"spec": {"canary": None}}, f"the canary {V2} was taken out of the spec of models/digits; {V1} is stable"),
        ("percent", f"{V2} should be at 10 %; the spec says 77 %"),
        ("model", "the template of models/digits is not the one that was staged"),
        ("other", f"models/digits has digits-other-predictor as its canary instead of {V2}"),
        ("promoted", f"{V2} should be at 10 %; it is the stable predictor"),
    ],
)
def test_hand_edits_are_found_and_named(standard: Any, edit: Any, said: str) -> None:
    standard.released("v1")
    _, canary = standard.stage("v2")
    standard.shift(canary, 10)
    live = standard.get()
    rollout.check_untouched(live, canary, 10)
    (entry,) = live.canaries
    by_hand = {
        "percent": {"spec": {"canary": [{**entry, "trafficPercent": 77}]}},
        "model": {"spec": {"canary": [{**entry, "predictor": {**entry["predictor"], "timeout": 7}}]}},
        "other": {"spec": {"canary": [{**entry, "predictor": {**entry["predictor"], "name": "other"}}]}},
        "promoted": {"spec": {"predictor": live.template, "canary": None}},
    }
    standard.edit(edit if isinstance(edit, dict) else by_hand[edit])
    with pytest.raises(CanaryLost) as lost:
        rollout.check_untouched(standard.get(), canary, 10)
    assert said in str(lost.value)
    assert "kubectl-edit" in str(lost.value) or edit == {"spec": {"canary": None}}
    progress = rollout.assess_split(standard.get(), canary, 10)
    assert progress.state is State.LOST
