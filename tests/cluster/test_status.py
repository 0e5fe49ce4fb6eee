"""The view and the pure assessments, over every step of the traces and every example of KServe's status."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.releases import left

from model_release.cluster import rollout
from model_release.cluster.change import Baseline, Canary
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.progress import Patience, Progress, State, wait
from model_release.cluster.settle import assess_rolled_back, is_clean
from model_release.errors import CanaryLost, ClusterRefused, ClusterUnavailable

DATA = Path(__file__).parents[1] / "data"
TRACES = json.loads((DATA / "canary-traffic-traces.json").read_text())
EXAMPLES = {
    example["name"]: example["status"] for example in json.loads((DATA / "isvc-status-examples.json").read_text())
}
R1, R2, R3 = (f"classifier-vit-predictor-0000{n}" for n in (1, 2, 3))
STEPS = [
    pytest.param(trace["steps"], number, id=f"{trace['scenario']}-{number}")
    for trace in TRACES
    for number in range(len(trace["steps"]))
]


def template(version: str) -> dict[str, Any]:
    return {"model": {"storageUri": f"s3://b/{version}/"}}


def asked(version: str) -> dict[str, Any]:
    return {"metadata": {"name": "classifier-vit", "namespace": "canary"}, "spec": {"predictor": template(version)}}


def service(status: dict[str, Any], version: str = "v1", percent: int | None = None) -> InferenceService:
    predictor = template(version) | ({} if percent is None else {"canaryTrafficPercent": percent})
    metadata = {
        "name": "classifier-vit", "namespace": "canary", "uid": "u", "resourceVersion": "1",
        "labels": {"app.kubernetes.io/managed-by": "model-release"},
    }  # fmt: skip
    return InferenceService({"metadata": metadata, "spec": {"predictor": predictor}, "status": status})


def at(step: dict[str, Any]) -> InferenceService:
    """One step of a trace as an InferenceService, with the conditions that go with its revisions."""
    component = step["status.components.predictor"]
    newest = step["revisionReady"][component["latestCreatedRevision"]]
    states = {
        "True": ("UpToDate", "Loaded"),
        "Unknown": ("InProgress", "Loading"),
        "False": ("BlockedByFailedLoad", "FailedToLoad"),
    }
    transition, target = states[newest]
    status = {
        "components": {"predictor": component},
        "conditions": [
            {"type": "Ready", "status": newest},
            {"type": "PredictorReady", "status": newest},
            {"type": "PredictorRouteReady", "status": "True"},
        ],
        "modelStatus": {"transitionStatus": transition, "states": {"targetModelState": target}},
        "deploymentMode": "Knative",
    }
    return service(status, step["spec"]["template"], step["spec"].get("canaryTrafficPercent"))


@pytest.mark.parametrize(("steps", "number"), STEPS)
def test_traffic_is_what_is_served(steps: list[dict[str, Any]], number: int) -> None:
    step = steps[number]
    isvc = at(step)
    assert isvc.traffic == step["effectiveTraffic"]
    assert isvc.canary_percent == step["spec"].get("canaryTrafficPercent")


@pytest.mark.parametrize(("steps", "number"), STEPS)
def test_no_assessment_says_ready_before_the_traffic_is_there(steps: list[dict[str, Any]], number: int) -> None:
    """For whatever was asked (each canary, baseline and percent), READY only with the traffic that goes with it."""
    isvc, served = at(steps[number]), steps[number]["effectiveTraffic"]
    served = {revision: percent for revision, percent in served.items() if percent}
    said_ready = 0
    for baseline in (R1, R2, R3, None):
        claim = Baseline(uid="u", revision=baseline, template=template("v1"))
        for version in ("v1", "v2", "v3", "v4"):
            staged = rollout.assess_staged(isvc, asked(version), claim)
            if staged.state is State.READY:
                said_ready += 1
                assert steps[number]["spec"]["template"] == version
                assert steps[number]["revisionReady"][str(staged.revision)] == "True"
                assert served in ({baseline: 100}, {staged.revision: 100})
        back = assess_rolled_back(isvc, left("canary", "classifier-vit", claim))
        if back.state is State.READY:
            said_ready += 1
            assert served == {back.revision: 100}
            assert back.revision == baseline or steps[number]["spec"]["template"] == "v1"
        for revision in (R1, R2, R3):
            canary = Canary("canary", "classifier-vit", "u", revision, baseline, isvc.template_digest)
            for percent in (10, 30, 70):
                if rollout.assess_split(isvc, canary, percent).state is State.READY:
                    said_ready += 1
                    assert served == {revision: percent, baseline: 100 - percent}
            if rollout.assess_promoted(isvc, canary).state is State.READY:
                said_ready += 1
                assert served == {revision: 100}
    if steps[number]["revisionReady"].get(R1) == "True" and steps[number]["spec"].get("canaryTrafficPercent") is None:
        assert said_ready or isvc.latest_created != isvc.latest_ready


def trace(name: str) -> list[InferenceService]:
    return [at(step) for step in next(t for t in TRACES if t["scenario"] == name)["steps"]]


def test_a_staged_release_step_by_step() -> None:
    # …, rolled back to 0, v3 staged at 0, v3 ready, v3 opened to 30
    *_, back, staged, ready, opened = trace("rollback_0_next_staged")
    baseline = rollout.baseline_of(back, asked("v3"), Baseline("u", R1, template("v1")))
    assert (baseline.revision, baseline.template, baseline.created) == (R1, template("v1"), R2)
    lagging = service(back.status, "v3", 0)
    states = [rollout.assess_staged(isvc, asked("v3"), baseline) for isvc in (lagging, staged, ready)]
    assert [(p.state, p.revision) for p in states] == [(State.WAITING, None), (State.WAITING, R3), (State.READY, R3)]
    canary = rollout.canary_of(ready, baseline)
    assert rollout.assess_split(opened, canary, 30).state is State.READY
    # Asked for in the spec, and not yet in status.
    asked_for = service(ready.status, "v3", 30)
    assert rollout.assess_split(asked_for, canary, 30).state is State.WAITING


def test_the_race_is_a_wrong_baseline_and_never_ready() -> None:
    *_, before, racing, ready = trace("race_c0")
    baseline = rollout.baseline_of(before, asked("v3"))
    assert baseline.revision == R2
    for isvc in (racing, ready):
        assert rollout.assess_staged(isvc, asked("v3"), baseline).state is State.WRONG_BASELINE


def test_the_trap_of_a_split_that_names_the_old_revision() -> None:
    isvc = service(EXAMPLES["03-canary-applied-not-ready"], "v2", 30)
    assert isvc.serving == {R1: 100}
    canary = Canary("canary", "classifier-vit", "u", R2, R1, isvc.template_digest)
    assert rollout.assess_split(isvc, canary, 30).state is State.LOST
    assert rollout.assess_staged(isvc, asked("v2"), Baseline("u", R1, created=R1)).state is State.LOST


def test_examples_as_a_view() -> None:
    isvc = service(EXAMPLES["04b-canary-open-tag-routing"], "v2", 30)
    assert isvc.traffic == {R2: 30, R1: 70}
    assert isvc.prev_revision == R1
    assert isvc.tag_url("latest") == "http://latest-classifier-vit-predictor.canary.example.com"
    assert isvc.url == "http://classifier-vit.canary.example.com"
    assert isvc.ready
    assert isvc.deployment_mode == "Knative"
    first = service(EXAMPLES["01-first-deploy-starting"])
    assert (first.latest_ready, first.rolled_out, first.url, first.traffic) == (None, None, None, {})
    assert first.conditions["PredictorReady"].reason == "RevisionMissing"
    assert not first.ready
    late = service(EXAMPLES["07-late-rollback"], "v2", 0)
    assert late.serving == {R1: 100}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("08-canary-storage-init-fails-early", "No model found in kserve/v2/."),
        ("10-canary-container-crash", "Traceback"),
    ],
)
def test_a_failing_load_fails_after_its_grace(name: str, words: str) -> None:
    isvc, patience = service(EXAMPLES[name], "v2", 0), Patience()
    progress = rollout.assess_staged(isvc, asked("v2"), Baseline("u", R1, created=R1))
    assert words in progress.sentence
    assert "(exit code 1)" in progress.sentence
    assert patience.judge(progress, 100.0).state is State.FAILING
    assert patience.judge(progress, 109.9).state is State.FAILING
    assert patience.judge(progress, 110.0).state is State.FAILED


def test_a_sign_that_passes_begins_a_new_grace() -> None:
    patience = Patience()
    failing = Progress(State.FAILING, "no room", grace=60.0)
    assert patience.judge(failing, 0.0).state is State.FAILING
    assert patience.judge(Progress(State.WAITING, "starting"), 50.0).state is State.WAITING
    assert patience.judge(failing, 61.0).state is State.FAILING
    assert patience.judge(failing, 121.0).state is State.FAILED


def test_a_failed_canary_of_before_is_no_sign_against_the_new_one() -> None:
    """K1: KServe never clears lastFailureInfo, and status lags: r2 failed, v3 was just written."""
    isvc = service(EXAMPLES["08-canary-storage-init-fails-early"], "v3", 0)
    progress = rollout.assess_staged(isvc, asked("v3"), Baseline("u", R1, created=R2))
    assert progress.state is State.WAITING


@pytest.mark.parametrize("transition", ["InProgress", "UpToDate", ""])
def test_k1_a_canary_that_is_ready_is_ready_whatever_the_models_status_stays_at(transition: str) -> None:
    """K1: it can stay InProgress for good (kserve/kserve#3686), with a failure of long ago."""
    ready = trace("rollback_0_next_staged")[-2]
    failure = {"reason": "ModelLoadFailed", "message": "of long ago", "exitCode": 1}
    told = {"transitionStatus": transition, "states": {"targetModelState": "Pending"}, "lastFailureInfo": failure}
    stale = service({**ready.status, "modelStatus": told}, "v3", 0)
    baseline = Baseline("u", R1, template("v1"), created=R2)
    progress = rollout.assess_staged(stale, asked("v3"), baseline)
    assert (progress.state, progress.revision) == (State.READY, R3)
    opened = service({**trace("rollback_0_next_staged")[-1].status, "modelStatus": told}, "v3", 30)
    assert rollout.assess_split(opened, rollout.canary_of(stale, baseline), 30).state is State.READY


def test_standard_mode_is_refused() -> None:
    with pytest.raises(ClusterRefused, match="Standard mode"):
        rollout.plan_change(service(EXAMPLES["11-standard-mode-spec-canary"]), asked("v2"))


def test_no_baseline_in_the_midst_of_a_roll_out() -> None:
    isvc = service(EXAMPLES["05-promoted"], "v2")
    component = {**EXAMPLES["05-promoted"]["components"]["predictor"], "latestRolledoutRevision": R1}
    midst = service({**EXAMPLES["05-promoted"], "components": {"predictor": component}}, "v2")
    assert rollout.baseline_of(isvc, asked("v3")).revision == R2
    with pytest.raises(ClusterUnavailable, match="in the midst of a roll-out"):
        rollout.baseline_of(midst, asked("v3"))


SERVED = EXAMPLES["05-promoted"]
COMPONENT = SERVED["components"]["predictor"]
ILL = [{**one, "status": "False"} if one["type"] != "Stopped" else one for one in SERVED["conditions"]]


@pytest.mark.parametrize(
    ("status", "stopped", "said"),
    [
        ({**SERVED, "components": {}}, "true", "is stopped"),
        ({}, "true", "is stopped"),
        ({}, None, "no revision of it was ever ready"),
        ({"components": None}, None, "no revision of it was ever ready"),
        ({"components": {"predictor": {**COMPONENT, "latestRolledoutRevision": ""}}}, None, "no revision of it was"),
        ({**SERVED, "conditions": ILL}, None, None),
        ({**SERVED, "conditions": []}, None, None),
        ({**SERVED, "modelStatus": {"states": {"activeModelState": "", "targetModelState": ""}}}, None, None),
        ({**SERVED, "components": {"predictor": {**COMPONENT, "traffic": []}}}, None, None),
    ],
    ids=[
        "stopped", "stopped, no status", "no status", "components null", "rolled out: empty",
        "scaled to nothing: not ready", "no conditions", "no model state", "no traffic",
    ],
)  # fmt: skip
def test_17_1_what_exists_is_never_a_first_deployment(status: Any, stopped: str | None, said: str | None) -> None:
    """Number 1: an unproven version would get all of the traffic at once. It is refused with the way out, or stands
    beside what serves."""
    there = service(status, "v2")
    if stopped is not None:
        there.raw["metadata"]["annotations"] = {"serving.kserve.io/stop": stopped}
    if said is not None:
        with pytest.raises(ClusterRefused, match=said) as refused:
            rollout.baseline_of(there, asked("v3"))
        assert ("start it first" if stopped else "see that it serves, or delete it") in str(refused.value)
        return
    found = rollout.baseline_of(there, asked("v3"))
    assert (found.uid, found.revision) == ("u", R2)


def test_17_1_a_status_that_is_lost_after_the_claim_makes_no_first_deployment() -> None:
    """Number 1: KServe holds users off a new template by the revision that its status calls rolled out; without one the
    template's revision would have everything, whatever share the spec says."""
    there = service({}, "v2")
    writes: list[Any] = []
    services: Any = SimpleNamespace(get=lambda *_: there, patch=lambda *args, **_: writes.append(args))
    claimed = rollout.baseline_of(service(SERVED, "v2"), asked("v3"))
    with pytest.raises(ClusterUnavailable, match=f"which revision is rolled out, and was {R2} when it was claimed"):
        rollout.stage(services, asked("v3"), claimed)
    assert writes == []


def test_promoted_example() -> None:
    isvc = service(EXAMPLES["05-promoted"], "v2")
    canary = Canary("canary", "classifier-vit", "u", R2, R1, isvc.template_digest)
    assert rollout.assess_promoted(isvc, canary).state is State.READY
    assert is_clean(isvc, left("canary", "classifier-vit", Baseline("u", R2, template("v2"))))
    with pytest.raises(CanaryLost, match="split of canary/classifier-vit was removed"):
        rollout.check_untouched(isvc, canary)


def test_wait_goes_on_through_an_outage_and_tells_each_sentence_once() -> None:
    now = iter(range(100))
    answers = iter([Progress(State.WAITING, "a"), ClusterUnavailable("away"), Progress(State.WAITING, "a"),
                    Progress(State.READY, "b")])  # fmt: skip
    told: list[str] = []

    def assess() -> Progress:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    progress = wait(assess, 50, clock=lambda: next(now), sleep=lambda _: None, tell=lambda p: told.append(p.sentence))
    assert progress.state is State.READY
    assert told == ["a", "b"]


def test_wait_ends_with_what_was_last() -> None:
    now = iter(range(100))
    last = wait(lambda: Progress(State.WAITING, "still"), 5, clock=lambda: next(now), sleep=lambda _: None)
    assert (last.state, last.sentence) == (State.WAITING, "still")
