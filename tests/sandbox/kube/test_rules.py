"""Single rules of KServe and Knative that no recorded scenario shows by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox.interfaces import Phase
from sandbox.kube import admission, knative, kserve_spec, routing, seed
from sandbox.kube.conditions import aggregate, condition, find, listed
from sandbox.kube.errors import ApiError
from sandbox.kube.ownership import Writer
from sandbox.kube.patches import merge
from sandbox.kube.resources import CONFIGMAPS

NOW = "2026-01-01T00:00:00Z"
CONFIG = {"metadata": {"name": "a", "namespace": "models", "generation": 3}, "spec": {}}


def revision(number: int, ready: str, message: str = "") -> Any:
    labels = {knative.GENERATION: str(number)}
    conditions = listed([condition("Ready", ready, "", message)], {}, NOW)
    return {"metadata": {"name": f"a-0000{number}", "labels": labels}, "status": {"conditions": conditions}}


def configured(former: str, *revisions: Any) -> Any:
    configuration = {**CONFIG, "status": {"latestReadyRevisionName": former}}
    return knative.configuration_status(configuration, list(revisions), NOW)


def test_latest_ready_never_goes_backwards() -> None:
    status = configured("a-00002", revision(1, "True"), revision(2, "False"), revision(3, "Unknown"))
    assert status["latestReadyRevisionName"] == "a-00002"
    assert status["latestCreatedRevisionName"] == "a-00003"


def test_latest_ready_is_the_newest_that_is_ready() -> None:
    status = configured("a-00001", revision(1, "True"), revision(2, "True"), revision(3, "False", "no"))
    assert status["latestReadyRevisionName"] == "a-00002"
    assert find(status, "Ready")["message"] == 'Revision "a-00003" failed with message: no.'


def test_a_service_says_when_its_parts_are_out_of_date() -> None:
    meta = {"name": "a", "generation": 2}
    lagging = {"metadata": meta, "spec": {"traffic": []}, "status": {"observedGeneration": 1}}
    status = knative.service_status({"metadata": meta}, lagging, lagging, NOW)
    assert {c["type"]: c.get("reason") for c in status["conditions"]} == dict.fromkeys(
        ("ConfigurationsReady", "Ready", "RoutesReady"), "OutOfDate"
    )


def test_a_service_says_when_traffic_is_not_migrated_yet() -> None:
    ready = {"observedGeneration": 1, "conditions": listed([condition("Ready", "True")], {}, NOW)}
    config = {"metadata": {"generation": 1}, "status": {**ready, "latestReadyRevisionName": "a-00002"}}
    target = {"latestRevision": True, "percent": 100}
    told = {**ready, "traffic": [{**target, "revisionName": "a-00001"}]}
    route = {"metadata": {"generation": 1}, "spec": {"traffic": [target]}, "status": told}
    status = knative.service_status({"metadata": {"generation": 1}}, config, route, NOW)
    assert find(status, "Ready")["reason"] == "TrafficNotMigrated"
    assert find(status, "ConfigurationsReady")["status"] == "True"


@pytest.mark.parametrize(
    ("pinned", "status", "text"),
    [
        (None, "False", 'Revision "a-00001" referenced in traffic not found.'),
        (revision(1, "Unknown"), "Unknown", 'Revision "a-00001" is not yet ready.'),
        (revision(1, "False"), "False", 'Revision "a-00001" failed to become ready.'),
    ],
)
def test_a_pinned_revision_must_be_ready_or_the_former_traffic_stays(pinned: Any, status: str, text: str) -> None:
    former = [{"revisionName": "a-00002", "latestRevision": True, "percent": 100}]
    route = {
        "metadata": {"name": "a", "namespace": "models", "generation": 1},
        "spec": {"traffic": [{"revisionName": "a-00001", "percent": 100}]},
        "status": {"traffic": former},
    }
    resolution = routing.resolve(route, CONFIG, {"a-00001": pinned} if pinned else {}, "localhost")
    assert resolution.traffic is None
    told = routing.route_status(route, resolution, False, "localhost", NOW)
    assert told["traffic"] == former
    ready = find(told, "Ready")
    assert (ready["status"], ready["reason"], ready["message"]) == (status, "RevisionMissing", text)


@pytest.mark.parametrize(("text", "seconds"), [("600s", 600), ("10m", 600), ("1h30m", 5400), ("500ms", 0.5), ("", 42)])
def test_progress_deadline_is_a_go_duration(text: str, seconds: float) -> None:
    annotations = {knative.PROGRESS_DEADLINE: text} if text else {}
    assert knative.progress_deadline({"metadata": {"annotations": annotations}}, 42) == seconds


def test_a_failed_part_outweighs_one_that_is_not_known() -> None:
    unknown, failed = condition("A", "Unknown", "Wait"), condition("B", "False", "Broken", "why")
    assert aggregate("Ready", (unknown, failed)) == condition("Ready", "False", "Broken", "why")


def test_a_condition_keeps_its_time_until_it_changes() -> None:
    before = {"conditions": listed([condition("A", "True"), condition("B", "True")], {}, NOW)}
    later = listed([condition("A", "True"), condition("B", "False", "x")], before, "2026-01-02T00:00:00Z")
    assert [c["lastTransitionTime"] for c in later] == [NOW, "2026-01-02T00:00:00Z"]


def test_what_the_template_takes_over(manifest: Any) -> None:
    annotations = {"team": "a", "autoscaling.knative.dev/target": "7", "serving.knative.dev/rollout-duration": "9s"}
    isvc = merge(admission.admit(manifest(maxReplicas=3, annotations=annotations), None), {"metadata": {"uid": "u"}})
    runtime = merge(seed.TORCHSERVE, {"kind": "ClusterServingRuntime"})
    service = kserve_spec.knative_service(isvc, runtime)
    template = service["spec"]["template"]
    assert template["metadata"]["annotations"] == {
        "team": "a",
        "autoscaling.knative.dev/target": "7",
        "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
        "autoscaling.knative.dev/min-scale": "1",
        "autoscaling.knative.dev/max-scale": "3",
        "internal.serving.kserve.io/storage-initializer-sourceuri": "s3://models/digits/versions/v1/",
        "prometheus.kserve.io/port": "8082",
        "prometheus.kserve.io/path": "/metrics",
    }
    assert service["metadata"]["annotations"] == {"serving.knative.dev/rollout-duration": "9s"}
    assert template["metadata"]["labels"]["serviceEnvelope"] == "kserve"


def test_runtime_version_replaces_the_tag_and_v2_the_envelope(manifest: Any) -> None:
    model = {"runtimeVersion": "0.12.0", "protocolVersion": "v2", "resources": {"limits": {"cpu": "2"}}}
    isvc = admission.admit(merge(manifest(), {"spec": {"predictor": {"model": model}}}), None)
    container = kserve_spec.revision_template(isvc, seed.TORCHSERVE)["spec"]["containers"][0]
    assert container["image"] == "pytorch/torchserve-kfs:0.12.0"
    assert {e["name"]: e["value"] for e in container["env"]} == {
        "TS_SERVICE_ENVELOPE": "kservev2",
        "PROTOCOL_VERSION": "v2",
    }
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "2Gi"}


def test_defaulting_twice_changes_nothing_more(manifest: Any) -> None:
    once = admission.default(manifest(annotations={admission.DEPLOYMENT_MODE: "Serverless"}))
    assert once["metadata"]["annotations"][admission.DEPLOYMENT_MODE] == "Knative"
    assert admission.default(once) == once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": {"predictor": {"containers": [{"name": "x"}]}}}, "exactly one of"),
        ({"spec": {"predictor": {"model": None}}}, "exactly one of"),
        ({"spec": {"predictor": {"model": {"name": "x"}}}}, "the 'name' field is not allowed in standard predictor"),
        ({"spec": {"predictor": {"model": {"storageUri": "ftp://x"}}}}, r"StorageUri \[ftp://x\] is not supported"),
        ({"spec": {"predictor": {"minReplicas": -1}}}, "'MinReplicas' cannot be less than 0"),
        ({"spec": {"predictor": {"containerConcurrency": -1}}}, "parallelism cannot be less than 0"),
        ({"spec": {"predictor": {"scaleMetric": "cpu"}}}, r"\[cpu\] is not a supported metric"),
        (
            {"spec": {"predictor": {"deploymentStrategy": {"type": "Recreate"}}}},
            "only supported for raw deployment mode",
        ),
        ({"metadata": {"annotations": {"serving.kserve.io/autoscalerClass": "x"}}}, "not a supported autoscaler class"),
        ({"spec": {"canary": [{"predictor": {}}]}}, "canary is only supported in Standard deployment mode"),
    ],
)
def test_webhook_refusals(manifest: Any, change: Any, message: str) -> None:
    with pytest.raises(ApiError, match=message) as refused:
        admission.admit(merge(manifest(), change), None)
    assert refused.value.code == 403


async def test_a_cluster_whose_default_is_standard_says_so(stack: Any, manifest: Any) -> None:
    key = (CONFIGMAPS, seed.KSERVE_NAMESPACE, seed.CONFIG_NAME)
    config = merge(
        stack.registry.get(*key), {"data": {"deploy": json.dumps({"defaultDeploymentMode": "RawDeployment"})}}
    )
    stack.registry.update(*key, config, Writer("test"))
    await stack.apply(manifest())
    status = stack.isvc()["status"]
    assert status["deploymentMode"] == "Standard"
    assert [one["type"] for one in status["conditions"]] == ["IngressReady", "PredictorReady", "Ready", "Stopped"]
    assert stack.workloads.running() == {"digits-predictor"}


async def test_two_services_do_not_disturb_each_other(stack: Any, manifest: Any) -> None:
    for name in ("a", "b"):
        await stack.apply(manifest(name))
        await stack.become(f"{name}-predictor-00001")
    await stack.apply(manifest("a", "v2", percent=30))
    await stack.become("a-predictor-00002", Phase.CRASHED, "no", 1)
    assert stack.router.routes["a.models.localhost"] == {"a-predictor-00001": 100}
    assert stack.router.routes["b.models.localhost"] == {"b-predictor-00001": 100}
    assert find(stack.isvc("b")["status"], "Ready")["status"] == "True"
