"""KServe 0.21's Standard mode, rule by rule (docs/facts.md#standard-mode), and what 0.19 and 0.20 do instead."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.interfaces import Phase
from sandbox.kube import admission, standard
from sandbox.kube.conditions import find
from sandbox.kube.controller import Timing
from sandbox.kube.errors import ApiError
from sandbox.kube.patches import merge
from sandbox.kube.resources import CORE_SERVICES, DEPLOYMENTS, HTTP_ROUTES, INFERENCE_SERVICES

MODE = {"serving.kserve.io/deploymentMode": "RawDeployment"}
STABLE, CANARY = "digits-predictor", "digits-v2-predictor"


@pytest.fixture(name="manifest")
def in_standard_mode(manifest: Any) -> Any:
    """A service in Standard mode: `manifest("v1", canary={…}, minReplicas=2)`."""

    def make(version: str = "v1", canary: list[dict[str, Any]] | None = None, **predictor: Any) -> dict[str, Any]:
        made: dict[str, Any] = manifest(version=version, annotations=MODE, **predictor)
        return merge(made, {"spec": {"canary": canary}}) if canary else made

    return make


def canary(version: str = "v2", percent: int = 20, **predictor: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": "pytorch"}, "storageUri": f"s3://models/digits/versions/{version}/"}
    return {"predictor": {"name": version, "model": model, **predictor}, "trafficPercent": percent}


def backends(stack: Any, route: str = "digits") -> list[tuple[str, int]]:
    (rule,) = stack.object(HTTP_ROUTES, route)["spec"]["rules"]
    return [(ref["name"], ref["weight"]) for ref in rule["backendRefs"]]


def canaries(stack: Any) -> list[tuple[str, bool, int]]:
    return [(one["name"], one["ready"], one["trafficPercent"]) for one in stack.isvc()["status"]["canaryStatuses"]]


def said(status: dict[str, Any], kind: str) -> dict[str, Any]:
    found = find(status, kind)
    assert found is not None, f"no condition {kind}"
    return found


def names(stack: Any, kind: Any) -> set[str]:
    return {one["metadata"]["name"] for one in stack.registry.store.all(kind.id, "models")}


async def ready(stack: Any, *deployments: str, replicas: int = 1) -> None:
    for name in deployments:
        stack.workloads.set(name, Phase.READY, ready=replicas, namespace="models")
    await stack.settle()


async def test_one_predictor_has_a_deployment_a_service_and_two_routes(stack: Any, manifest: Any) -> None:
    await stack.apply(manifest())
    assert stack.workloads.running() == names(stack, DEPLOYMENTS) == names(stack, CORE_SERVICES) == {STABLE}
    status = stack.isvc()["status"]
    assert said(status, "PredictorReady")["reason"] == "MinimumReplicasUnavailable"
    assert names(stack, HTTP_ROUTES) == set(), "no route before the predictor is ready"
    assert "url" not in status["components"]["predictor"]
    await ready(stack, STABLE)
    status = stack.isvc()["status"]
    assert [one["type"] for one in status["conditions"]] == ["IngressReady", "PredictorReady", "Ready", "Stopped"]
    assert said(status, "Ready")["status"] == "True"
    assert status["deploymentMode"] == "Standard"
    assert status["modelStatus"]["transitionStatus"] == "UpToDate"
    assert backends(stack) == backends(stack, "digits-predictor") == [(STABLE, 1)]
    assert stack.router.routes["digits.models.localhost"] == {STABLE: 100}
    assert stack.router.routes[f"{STABLE}.models.svc.cluster.local"] == {STABLE: 100}


async def test_a_canary_has_the_runtime_that_it_names(stack: Any, manifest: Any) -> None:
    """buildPredictorResources in KServe 0.21: stable and canary alike."""
    other = canary()
    other["predictor"]["model"]["runtime"] = "model-release-kserve"
    await stack.apply(manifest(canary=[other]))

    def image(name: str) -> str:
        return str(stack.object(DEPLOYMENTS, name)["spec"]["template"]["spec"]["containers"][0]["image"])

    assert (image(STABLE), image(CANARY)) == ("pytorch/torchserve-kfs:0.9.0", "model-release-serving-kserve")


async def test_a_canary_gets_its_weight_once_it_is_ready(stack: Any, manifest: Any) -> None:
    await stack.apply(manifest(canary=[canary()]))
    await ready(stack, STABLE)
    assert backends(stack) == [(STABLE, 100)], "one that is not ready is left out"
    assert canaries(stack) == [("v2", False, 20)]
    assert said(stack.isvc()["status"], "CanaryPredictorReady")["reason"] == "CanariesNotReady"
    assert said(stack.isvc()["status"], "Ready")["status"] == "True", "a canary is no part of Ready"
    await ready(stack, CANARY)
    assert backends(stack) == backends(stack, "digits-predictor") == [(STABLE, 80), (CANARY, 20)]
    assert said(stack.isvc()["status"], "CanaryPredictorReady")["reason"] == "AllCanariesReady"
    assert stack.router.routes["digits.models.localhost"] == {STABLE: 80, CANARY: 20}
    await stack.become(CANARY, Phase.CRASHED, "out of memory", 137)
    assert backends(stack) == [(STABLE, 100)], "what it had goes back to stable"


async def test_while_stable_is_not_ready_the_routes_stay(stack: Any, manifest: Any) -> None:
    await stack.apply(manifest(canary=[canary()]))
    await ready(stack, STABLE, CANARY)
    await stack.become(STABLE, Phase.CRASHED, "out of memory", 137)
    await stack.patch({"spec": {"canary": [canary(percent=50)]}})
    assert backends(stack) == [(STABLE, 80), (CANARY, 20)]


async def test_a_promotion_by_name_keeps_the_process_and_deletes_the_former(stack: Any, manifest: Any) -> None:
    await stack.apply(manifest(canary=[canary()]))
    await ready(stack, STABLE, CANARY)
    before = stack.object(DEPLOYMENTS, CANARY)
    await stack.patch({"spec": {"predictor": {**canary()["predictor"], "minReplicas": 1}, "canary": None}})
    assert stack.object(DEPLOYMENTS, CANARY)["metadata"]["uid"] == before["metadata"]["uid"]
    assert stack.object(DEPLOYMENTS, CANARY)["spec"]["template"] == before["spec"]["template"]
    assert [key.name for key in stack.workloads.removed] == [STABLE]
    assert names(stack, DEPLOYMENTS) == names(stack, CORE_SERVICES) == {CANARY}
    assert backends(stack) == [(CANARY, 1)]
    assert "canaryStatuses" not in stack.isvc()["status"]
    assert find(stack.isvc()["status"], "CanaryPredictorReady") is None


async def test_a_canary_taken_out_is_deleted(stack: Any, manifest: Any) -> None:
    await stack.apply(manifest(canary=[canary()]))
    await ready(stack, STABLE, CANARY)
    await stack.patch({"spec": {"canary": None}})
    assert stack.workloads.running() == {STABLE}
    assert backends(stack) == [(STABLE, 1)]


@pytest.mark.parametrize(
    ("least", "percent", "given", "expected"),
    [(1, 0, None, 0), (1, 1, None, 1), (4, 25, None, 1), (4, 26, None, 2), (4, 100, None, 4), (4, 0, 1, 1)],
)
def test_replicas_of_a_canary(manifest: Any, least: int, percent: int, given: int | None, expected: int) -> None:
    more: dict[str, Any] = {} if given is None else {"minReplicas": given}
    isvc = manifest(minReplicas=least, canary=[canary(percent=percent, **more)])
    assert standard.canary_replicas(isvc, isvc["spec"]["canary"][0]) == expected


async def test_replicas_come_out_of_stables_once_the_canary_is_ready(stack: Any, manifest: Any) -> None:
    await stack.apply(manifest(minReplicas=3, maxReplicas=3, canary=[canary(percent=50)]))
    await ready(stack, STABLE, replicas=3)

    def replicas() -> dict[str, int]:
        return {name: stack.object(DEPLOYMENTS, name)["spec"]["replicas"] for name in (STABLE, CANARY)}

    assert replicas() == {STABLE: 3, CANARY: 2}
    await ready(stack, CANARY, replicas=2)
    assert replicas() == {STABLE: 1, CANARY: 2}
    await stack.patch({"spec": {"canary": [canary(percent=100)]}})
    assert replicas() == {STABLE: 1, CANARY: 3}, "stable never goes below one for a canary"


async def test_at_0_percent_without_replicas_of_its_own_a_canary_has_no_pod(stack: Any, manifest: Any) -> None:
    await stack.apply(manifest(canary=[canary(percent=0)]))
    await ready(stack, STABLE)
    assert stack.workloads.running() == {STABLE}
    assert stack.isvc()["status"]["canaryStatuses"][0]["ready"] is False


def test_a_canary_is_laid_over_stable_and_takes_nothing_away(manifest: Any) -> None:
    isvc = manifest(
        serviceAccountName="reader",
        timeout=60,
        maxReplicas=3,
        canary=[canary(timeout=0, labels={}, serviceAccountName="", nodeSelector={"a": "b"})],
    )
    merged = standard.canary_predictor(isvc, isvc["spec"]["canary"][0])
    assert merged["serviceAccountName"] == "reader"
    assert merged["timeout"] == 60
    assert merged["nodeSelector"] == {"a": "b"}
    assert merged["model"]["storageUri"].endswith("/v2/")
    assert "maxReplicas" not in merged


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([canary("")], r"canary\[0\] predictor.name is required"),
        ([canary(), canary()], 'canary predictor.name "v2" is duplicated'),
        ([canary(percent=101)], r"spec.canary\[0\].trafficPercent in body should be less than or equal to 100"),
        ([canary(percent=60), canary("v3", 50)], r"sum of canary trafficPercent values \(110\) must be <= 100"),
        ([canary(maxReplicas=2)], r'canary "v2" must not set maxReplicas \(canary uses fixed replicas\)'),
        ([canary(scaleTarget=2)], 'canary "v2" must not set scaleTarget'),
        ([canary(minReplicas=2)], r"minReplicas \(2\) must not exceed stable predictor minReplicas \(1\)"),
        ([{"predictor": {"name": "v2"}, "trafficPercent": 1}], "exactly one of"),
    ],
)
def test_webhook_refusals(manifest: Any, entries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ApiError, match=message):
        admission.admit(manifest(canary=entries), None)


def test_a_name_changes_with_the_model_only(manifest: Any) -> None:
    old = admission.admit(manifest(), None)
    with pytest.raises(ApiError, match=r"predictor.name change requires a model change \(e.g. storageUri\)"):
        admission.admit(merge(old, {"spec": {"predictor": {"name": "v2"}}}), old)
    new = merge(old, {"spec": {"predictor": canary()["predictor"]}})
    assert admission.admit(new, old)["spec"]["predictor"]["name"] == "v2"
    with pytest.raises(ApiError, match=r'canary predictor\.name "v2" conflicts with stable predictor name'):
        admission.admit(merge(new, {"spec": {"canary": [canary()]}}), old)


def test_before_0_20_name_and_canary_are_pruned_silently(manifest: Any) -> None:
    old = admission.admit(manifest(canary=[canary()], serviceAccountName="reader"), None, kserve="0.19")
    assert "canary" not in old["spec"]
    assert old["spec"]["predictor"]["serviceAccountName"] == "reader"
    named = merge(old, {"spec": {"predictor": canary()["predictor"]}})
    assert "name" not in admission.admit(named, old, kserve="0.19")["spec"]["predictor"]
    assert admission.admit(named, old, kserve="0.20")["spec"]["predictor"]["name"] == "v2"


async def test_0_20_runs_a_canary_and_gives_it_no_weight(make_stack: Any, manifest: Any) -> None:
    stack = make_stack(kserve="0.20")
    await stack.apply(manifest(canary=[canary(percent=50)]))
    await ready(stack, STABLE, CANARY)
    assert canaries(stack) == [("v2", True, 50)]
    assert backends(stack) == [(STABLE, 1)]
    assert stack.router.routes["digits.models.localhost"] == {STABLE: 100}


async def test_deployments_that_go_over_the_deadline_say_so(make_stack: Any, manifest: Any) -> None:
    stack = make_stack(timing=Timing(progress_deadline=0))
    await stack.apply(manifest())
    assert said(stack.object(DEPLOYMENTS, STABLE)["status"], "Progressing")["reason"] == "ProgressDeadlineExceeded"


async def test_a_service_that_is_deleted_takes_everything_along(stack: Any, manifest: Any) -> None:
    await stack.apply(manifest(canary=[canary()]))
    await ready(stack, STABLE, CANARY)
    stack.registry.delete(INFERENCE_SERVICES, "models", "digits")
    await stack.settle()
    assert stack.workloads.running() == set()
    assert names(stack, DEPLOYMENTS) == names(stack, CORE_SERVICES) == names(stack, HTTP_ROUTES) == set()
