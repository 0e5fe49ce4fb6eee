"""KServe's rules, second half: from the Knative Service's status and the pods to the InferenceService's status.

Pure functions, after KServe v0.20's inference_service_status.go (docs/facts.md#who-is-rolled-out).
"""

from __future__ import annotations

import copy
from typing import Any

from sandbox.interfaces import Manifest
from sandbox.kube import pods as pod_rules
from sandbox.kube import routing
from sandbox.kube.conditions import FALSE, TRUE, UNKNOWN, aggregate, condition, find, info, listed, renamed, state
from sandbox.kube.kserve_spec import InvalidSpec, predictor_status

STOPPED = "Stopped"


def propagate_rollout(component: Manifest, service_status: Manifest) -> Manifest:
    """PropagateStatus: which revision counts as rolled out, from the Knative Service's status as it is."""
    component = dict(component)
    latest = service_status.get("latestReadyRevisionName")
    is_newest = latest == service_status.get("latestCreatedRevisionName")
    by_revision = routing.shares(service_status.get("traffic", []))
    for target in service_status.get("traffic", []):
        if not target.get("latestRevision") or target["revisionName"] != latest:
            continue
        rolled_out, previous = component.get("latestRolledoutRevision"), component.get("previousRolledoutRevision")
        if rolled_out != latest:
            if target["percent"] == 100:
                component["previousRolledoutRevision"] = rolled_out
                component["latestRolledoutRevision"] = latest
        elif is_newest and target["percent"] < 100 and by_revision[latest] == 100 and previous:
            component["latestRolledoutRevision"] = previous
    component["latestCreatedRevision"] = service_status.get("latestCreatedRevisionName")
    component["latestReadyRevision"] = latest
    component["traffic"] = service_status.get("traffic")
    if state(service_status, "Ready") == TRUE:
        component |= {k: service_status[k] for k in ("url", "address") if k in service_status}
    return {k: v for k, v in component.items() if v}


def propagate_model(before: Manifest, is_ready: bool, component: Manifest, pods: list[Manifest],
                    service_status: Manifest) -> Manifest:  # fmt: skip
    """PropagateModelStatus: how the newest revision's model fares, from that revision's first pod."""
    ready = pod_rules.ready_count(pods)
    model: Manifest = copy.deepcopy(before)
    model["copies"] = {"failedCopies": 0} | ({"totalCopies": ready} if ready else {})
    is_newest = component.get("latestCreatedRevision") == component.get("latestReadyRevision")
    if not pods:
        failed = any(c["status"] == FALSE for c in service_status.get("conditions", []))
        return _model_state(model, "FailedToLoad" if failed else "Pending")
    init = pod_rules.container_status(pods[0], pod_rules.INIT)
    if "running" in init.get("state", {}):
        # After an earlier end with an error KServe waits for how this attempt ends.
        return model if init.get("lastState") and "states" in model else _model_state(model, "Loading")
    if ended := _error(init):
        return _model_state(model, "FailedToLoad", ended)
    if is_ready and is_newest:
        return _model_state(model, "Loaded")
    main = pod_rules.container_status(pods[0], pod_rules.MAIN)
    if ended := _error(main):
        return _model_state(model, "FailedToLoad", ended)
    # Of a pod whose containers say nothing KServe takes nothing: what was told of the revision before stays.
    return _model_state(model, "Pending") if main else model


def _error(container: Manifest) -> Manifest | None:
    ended: Manifest = container.get("state", {}).get("terminated") or {}
    return ended if ended.get("reason") == "Error" else None


_TRANSITIONS = {"Loaded": "UpToDate", "FailedToLoad": "BlockedByFailedLoad"}


def _model_state(model: Manifest, target: str, ended: Manifest | None = None) -> Manifest:
    """`lastFailureInfo` is never cleared by a later success; only transitionStatus tells of today."""
    active = "Loaded" if target == "Loaded" else model.get("states", {}).get("activeModelState", "")
    model["states"] = {"activeModelState": active, "targetModelState": target}
    model["transitionStatus"] = _TRANSITIONS.get(target, "InProgress")
    if ended is not None:
        said: dict[str, Any] = {"reason": "ModelLoadFailed", "message": ended.get("message", "")}
        code = {"exitCode": ended["exitCode"]} if ended.get("exitCode") else {}
        model["lastFailureInfo"] = {k: v for k, v in said.items() if v} | code
    return model


def status_after(isvc: Manifest, service: Manifest, pods: list[Manifest], runtime: Manifest, own_host: bool,
                 now: str) -> Manifest:  # fmt: skip
    """The InferenceService's status after a reconcile that found the Knative Service as `service`.

    `pods` are those of the newest revision. An address is told once the service has been ready: the Knative Service's,
    without `-predictor` where the InferenceService has an `own_host`. What a Service that is new does not say yet
    leaves what was told before: of one that was stopped, that it is.
    """
    before, told = isvc.get("status", {}), service.get("status", {})
    component = propagate_rollout(predictor_status(before), told)
    predictor = renamed(find(told, "Ready") or find(before, "PredictorReady"), "PredictorReady")
    was_ready = "url" in component
    ingress = condition("IngressReady", TRUE)
    if not was_ready:
        new = condition("IngressReady", UNKNOWN, "Predictor ingress not created")
        ingress = renamed(find(before, "IngressReady") or new, "IngressReady")
    top = aggregate("Ready", (ingress, predictor))
    configured = renamed(find(told, "ConfigurationsReady"), "PredictorConfigurationReady")
    routed = renamed(find(told, "RoutesReady"), "PredictorRouteReady")
    conditions = [
        ingress, predictor, top, info(configured), info(routed),
        info(_across("LatestDeploymentReady", configured)), info(_across("RoutesReady", routed)),
        info(condition("Stopped", FALSE)),
    ]  # fmt: skip
    status = {
        runtime_field(runtime): runtime["metadata"]["name"],
        "components": {"predictor": component},
        "conditions": listed(conditions, before, now),
        "deploymentMode": "Knative",
        "modelStatus": propagate_model(
            before.get("modelStatus", {}), top["status"] == TRUE, component, pods, told
        ),
        "observedGeneration": told.get("observedGeneration", 0),
    }  # fmt: skip
    if was_ready:
        local = f"http://{isvc['metadata']['name']}-predictor.{isvc['metadata']['namespace']}.svc.cluster.local"
        url, local = (own_address(one) if own_host else one for one in (component["url"], local))
        status |= {"url": url, "address": {"url": local}}
    return status


def own_address(component: str) -> str:
    """An InferenceService's own host, from its predictor's (getHostBasedServiceUrl)."""
    return component.replace("-predictor", "", 1)


def _across(type_: str, part: Manifest) -> Manifest:
    """PropagateCrossComponentStatus: says which component is in the way, not why."""
    return condition(type_, part["status"], f"{part['type']} not ready")


def status_refused(isvc: Manifest, message: str, now: str, wrong: InvalidSpec | None = None) -> Manifest:
    """The status after a reconcile that failed: all stays as it was, PredictorReady says why."""
    status: Manifest = copy.deepcopy(isvc.get("status", {}))
    predictor = condition("PredictorReady", FALSE, "ReconcileFailed", message)
    ingress = renamed(find(status, "IngressReady"), "IngressReady")
    top = aggregate("Ready", (ingress, predictor))
    replaced = {c["type"]: c for c in (predictor, ingress, top)}
    others = [{k: v for k, v in c.items() if k != "lastTransitionTime"} for c in status.get("conditions", [])]
    others = [c for c in others if c["type"] not in replaced]
    status["conditions"] = listed([*others, *replaced.values()], isvc.get("status", {}), now)
    status["deploymentMode"] = "Knative"
    if wrong is not None:
        model = status.setdefault("modelStatus", {"copies": {"failedCopies": 0}})
        active = model.get("states", {}).get("activeModelState", "")
        model["states"] = {"activeModelState": active, "targetModelState": "FailedToLoad"}
        model["transitionStatus"] = "InvalidSpec"
        model["lastFailureInfo"] = {"reason": wrong.reason, "message": wrong.message}
    return status


def status_stopped(isvc: Manifest, runtime: Manifest, now: str) -> Manifest:
    """With the stop annotation KServe clears the status: which revision was rolled out is forgotten too."""
    conditions = [condition(type_, FALSE, STOPPED) for type_ in ("IngressReady", "PredictorReady", "Ready")]
    return {
        "conditions": listed([*conditions, info(condition("Stopped", TRUE))], isvc.get("status", {}), now),
        "deploymentMode": "Knative",
        "modelStatus": {"transitionStatus": ""},
        runtime_field(runtime): runtime["metadata"]["name"],
    }


def runtime_field(runtime: Manifest) -> str:
    return "clusterServingRuntimeName" if runtime["kind"] == "ClusterServingRuntime" else "servingRuntimeName"
