"""What each way of promoting and rolling back really does (docs/facts.md#promoting-and-rolling-back), and what becomes
of revisions."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.interfaces import Phase, PodState, RevisionKey
from sandbox.kube import Timing
from sandbox.kube.conditions import find
from sandbox.kube.errors import ApiError
from sandbox.kube.ownership import Writer
from sandbox.kube.patches import merge
from sandbox.kube.resources import EVENTS, INFERENCE_SERVICES, PODS, REVISIONS

R1, R2, R3, R4 = (f"digits-predictor-0000{n}" for n in (1, 2, 3, 4))
TAGGED = {"serving.kserve.io/enable-tag-routing": "true"}
HOST = "digits.models.localhost"
WRITER = Writer("test")


async def canary_open(stack: Any, manifest: Any) -> None:
    """r2 at 30, r1 at 70."""
    await stack.apply(manifest(version="v1"))
    await stack.become(R1)
    await stack.apply(manifest(version="v2", percent=30))
    await stack.become(R2)
    assert stack.effective() == {R1: 70, R2: 30}


def rolled_out(stack: Any) -> tuple[str | None, str | None]:
    component = stack.predictor()
    return component.get("latestRolledoutRevision"), component.get("previousRolledoutRevision")


async def test_staged_apply_shows_the_canary_on_its_tag_before_any_traffic(stack: Any, manifest: Any) -> None:
    await stack.apply(manifest(version="v1", annotations=TAGGED))
    await stack.become(R1)
    await stack.apply(manifest(version="v2", percent=0, annotations=TAGGED))
    await stack.become(R2)
    assert stack.router.routes[HOST] == {R1: 100}
    assert stack.router.routes["latest-digits-predictor.models.localhost"] == {R2: 100}
    assert stack.router.routes["prev-digits-predictor.models.localhost"] == {R1: 100}
    latest, prev = stack.predictor()["traffic"]
    assert latest["url"] == "http://latest-digits-predictor.models.localhost:8080"
    assert prev["url"] == "http://prev-digits-predictor.models.localhost:8080"
    assert stack.isvc()["status"]["url"] == "http://digits.models.localhost:8080"
    await stack.percent(30)
    assert stack.router.routes[HOST] == {R1: 70, R2: 30}
    await stack.percent(None)
    assert stack.effective() == {R2: 100}
    assert rolled_out(stack) == (R2, R1)
    assert all(R3 not in shares for routes in stack.router.history for shares in routes.values())


async def test_promotion_together_with_another_change_makes_an_unjudged_third_revision(
    stack: Any, manifest: Any
) -> None:
    await canary_open(stack, manifest)
    await stack.apply(manifest(version="v2", percent=100, minReplicas=2))
    assert stack.effective() == {R2: 100}
    await stack.become(R3)
    assert stack.effective() == {R2: 100}  # one pod of two is not enough
    stack.workloads.set(R3, Phase.READY, ready=2)
    await stack.settle()
    assert stack.effective() == {R3: 100}
    assert rolled_out(stack) == (R3, R2)


async def test_restoring_the_template_at_30_leaves_the_bad_one_its_share(stack: Any, manifest: Any) -> None:
    await canary_open(stack, manifest)
    await stack.apply(manifest(version="v1", percent=30))
    assert stack.effective() == {R2: 30, R1: 70}
    await stack.become(R3)
    assert stack.effective() == {R3: 30, R1: 70}


async def test_clean_rollback_in_three_steps_never_shows_the_bad_one_again(stack: Any, manifest: Any) -> None:
    await canary_open(stack, manifest)
    await stack.percent(0)
    seen = len(stack.router.history)
    await stack.apply(manifest(version="v1", percent=0))
    await stack.become(R3)
    await stack.percent(None)
    assert stack.effective() == {R3: 100}
    assert rolled_out(stack) == (R3, R1)
    assert all(R2 not in routes[HOST] for routes in stack.router.history[seen - 1 :])


async def test_next_release_after_a_rollback_leaks_unless_it_is_staged(stack: Any, manifest: Any) -> None:
    await canary_open(stack, manifest)
    await stack.percent(0)
    await stack.apply(manifest(version="v3", percent=30))
    assert stack.effective() == {R2: 30, R1: 70}  # kserve#2130
    await stack.percent(0)
    assert stack.router.routes[HOST] == {R1: 100}


async def test_between_a_write_and_its_effect_the_status_is_first_behind_and_then_ahead(
    stack: Any, manifest: Any
) -> None:
    """Behind: Ready, of a generation that was. Ahead: the new share, of which the gateway has not said that it acts."""
    await canary_open(stack, manifest)
    observed = stack.isvc()["status"]["observedGeneration"]
    closed = merge(stack.isvc(), {"spec": {"predictor": {"canaryTrafficPercent": 0}}})
    stack.registry.update(INFERENCE_SERVICES, "models", "digits", closed, WRITER)
    seen = []
    while await stack.controller.round():
        status, users = stack.isvc()["status"], dict(stack.router.routes[HOST])
        ready = find(status, "PredictorReady")
        seen.append((status["observedGeneration"], ready.get("reason", ready["status"]), stack.effective(), users))
    old, new = {R1: 70, R2: 30}, {R1: 100, R2: 0}
    assert seen[0] == (observed, "True", old, old)
    assert (observed + 1, "IngressNotConfigured", new) in [one[:3] for one in seen]
    assert seen[-1] == (observed + 1, "True", new, {R1: 100})


async def test_late_rollback_passes_through_both_sides_on_r2(stack: Any, manifest: Any) -> None:
    await canary_open(stack, manifest)
    await stack.percent(None)
    generation = stack.service()["metadata"]["generation"]
    seen = len(stack.router.history)
    await stack.percent(0)
    assert stack.router.routes[HOST] == {R1: 100}
    assert rolled_out(stack) == (R1, R1)
    passed = [routes["prev-digits-predictor.models.localhost"] for routes in stack.router.history[seen:]]
    assert passed == [{R2: 100}, {R1: 100}]
    assert stack.service()["metadata"]["generation"] == generation + 2


async def test_late_rollback_starts_a_reserve_again_and_waits_for_it(make_stack: Any, manifest: Any) -> None:
    stack = make_stack(timing=Timing(reserve_grace=0.0))
    await canary_open(stack, manifest)
    await stack.percent(None)
    await stack.settle()
    assert stack.workloads.running() == {R2}
    assert stack.object(REVISIONS, R1)["status"]["actualReplicas"] == 0
    await stack.percent(0)
    assert stack.workloads.running() == {R1, R2}
    assert stack.router.routes[HOST] == {R2: 100}  # r1 does not answer yet
    assert find(stack.isvc()["status"], "PredictorRouteReady")["reason"] == "IngressNotConfigured"
    await stack.become(R1)
    assert stack.router.routes[HOST] == {R1: 100}
    assert stack.effective() == {R1: 100, R2: 0}


async def test_a_revision_at_zero_percent_keeps_its_pods(make_stack: Any, manifest: Any) -> None:
    stack = make_stack(timing=Timing(reserve_grace=0.0))
    await canary_open(stack, manifest)
    await stack.percent(0)
    await stack.settle()
    assert stack.workloads.running() == {R1, R2}


async def test_race_sends_the_baseline_share_to_the_old_revision_and_recovers(stack: Any, manifest: Any) -> None:
    await canary_open(stack, manifest)
    await stack.percent(None)
    stack.race("digits-predictor")
    await stack.apply(manifest(version="v3", percent=0))
    await stack.become(R3)
    prev = next(t for t in stack.predictor()["traffic"] if t.get("tag") == "prev")
    assert prev["revisionName"] == R1  # not the baseline r2
    await stack.apply(manifest(version="v2", percent=0))  # recovery: the baseline's content again
    await stack.become(R4)
    await stack.percent(None)
    assert stack.effective() == {R4: 100}
    assert rolled_out(stack) == (R4, R1)


async def test_percent_out_of_range_is_refused_by_knative_and_traffic_stays(stack: Any, manifest: Any) -> None:
    await canary_open(stack, manifest)
    await stack.percent(130)
    ready = find(stack.isvc()["status"], "PredictorReady")
    assert (ready["status"], ready["reason"]) == ("False", "ReconcileFailed")
    assert "expected 0 <= 130 <= 100: spec.traffic[0].percent" in ready["message"]
    assert stack.router.routes[HOST] == {R1: 70, R2: 30}
    reasons = [e["reason"] for e in stack.registry.store.all(EVENTS.id)]
    assert "InternalError" in reasons
    await stack.percent(30)
    assert find(stack.isvc()["status"], "PredictorReady")["status"] == "True"


@pytest.mark.parametrize(
    ("change", "is_new"),
    [
        ({"spec": {"predictor": {"canaryTrafficPercent": 40}}}, False),
        ({"spec": {"predictor": {"minReplicas": 2}}}, True),
        ({"spec": {"predictor": {"containerConcurrency": 3}}}, True),
        ({"spec": {"predictor": {"timeout": 30}}}, True),
        ({"spec": {"predictor": {"model": {"env": [{"name": "A", "value": "1"}]}}}}, True),
        ({"metadata": {"annotations": {"release-id": "7"}}}, True),
        ({"metadata": {"labels": {"commit": "abc"}}}, True),
        ({"metadata": {"annotations": {"autoscaling.knative.dev/min-scale": "2"}}}, False),
        ({"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}}, False),
    ],
)
async def test_what_makes_a_new_revision(stack: Any, manifest: Any, change: Any, is_new: bool) -> None:
    await stack.apply(manifest(version="v1"))
    await stack.become(R1)
    await stack.patch(change)
    assert stack.predictor()["latestCreatedRevision"] == (R2 if is_new else R1)


async def test_what_a_revision_is_run_with(stack: Any, manifest: Any) -> None:
    await stack.apply(manifest(containerConcurrency=3, timeout=60, minReplicas=2))
    template = stack.workloads.templates[RevisionKey("models", R1)]
    assert template.service == "digits"
    assert template.storage_uri == "s3://models/digits/versions/v1/"
    assert (template.replicas, template.container_concurrency, template.timeout_seconds) == (2, 3, 60)
    assert template.env == {"TS_SERVICE_ENVELOPE": "kserve", "PROTOCOL_VERSION": "v1"}


async def test_a_failed_revision_loses_its_pods_after_deadline_and_grace(make_stack: Any, manifest: Any) -> None:
    stack = make_stack(timing=Timing(progress_deadline=0.0, failed_grace=0.0))
    await stack.apply(manifest(version="v1"))
    await stack.settle()
    assert stack.workloads.running() == set()
    assert list(stack.registry.store.all(PODS.id)) == []
    status = stack.isvc()["status"]
    assert status["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad"
    message = find(status, "PredictorReady")["message"]
    assert message == 'Configuration "digits-predictor" does not have any ready Revision.'


async def test_stop_deletes_the_knative_service_and_its_removal_starts_anew(stack: Any, manifest: Any) -> None:
    await stack.apply(manifest(version="v1"))
    await stack.become(R1)
    await stack.patch({"metadata": {"annotations": {"serving.kserve.io/stop": "true"}}})
    with pytest.raises(ApiError, match="not found"):
        stack.service()
    assert find(stack.isvc()["status"], "Stopped")["status"] == "True"
    assert HOST not in stack.router.routes
    await stack.patch({"metadata": {"annotations": {"serving.kserve.io/stop": None}}})
    await stack.become(R1)
    assert stack.effective() == {R1: 100}


async def test_unknown_runtime_and_format_are_invalid_specs(stack: Any, manifest: Any) -> None:
    wrong = manifest("a")
    wrong["spec"]["predictor"]["model"]["runtime"] = "nope"
    await stack.apply(wrong)
    said = stack.isvc("a")["status"]["modelStatus"]
    assert (said["transitionStatus"], said["lastFailureInfo"]["reason"]) == ("InvalidSpec", "RuntimeNotRecognized")
    other = manifest("b")
    other["spec"]["predictor"]["model"]["modelFormat"] = {"name": "onnx"}
    await stack.apply(other)
    assert stack.isvc("b")["status"]["modelStatus"]["lastFailureInfo"]["reason"] == "NoSupportingRuntime"


async def test_a_ready_revision_that_crashes_is_told_and_keeps_its_traffic(stack: Any, manifest: Any) -> None:
    await stack.apply(manifest(version="v1"))
    await stack.become(R1)
    await stack.become(R1, Phase.CRASHED, "out of memory", 137)
    status = stack.isvc()["status"]
    assert find(status, "Ready")["status"] == "False"
    assert status["modelStatus"]["lastFailureInfo"] == {
        "reason": "ModelLoadFailed", "message": "out of memory", "exitCode": 137,
    }  # fmt: skip
    assert stack.effective() == {R1: 100}
    stack.workloads.states[RevisionKey("models", R1)] = PodState(Phase.READY, 1, pods=(f"{R1}-deployment-0",))
    await stack.settle()
    assert find(stack.isvc()["status"], "Ready")["status"] == "True"


async def test_a_splitter_that_fails_is_told_of(stack: Any, manifest: Any) -> None:
    """The status tells of the new share already, and that nobody acts on it yet."""
    await canary_open(stack, manifest)
    program = stack.router.program

    async def broken(_: Any) -> None:
        raise OSError("no splitter")

    stack.router.program = broken
    await stack.percent(100)
    assert stack.effective() == {R2: 100}
    assert find(stack.isvc()["status"], "PredictorReady")["reason"] == "IngressNotConfigured"
    assert stack.router.routes[HOST] == {R1: 70, R2: 30}
    stack.router.program = program
    await stack.settle()
    assert stack.router.routes[HOST] == {R2: 100}
    assert find(stack.isvc()["status"], "PredictorReady")["status"] == "True"
