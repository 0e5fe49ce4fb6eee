"""KServe's rules for Standard mode: from an InferenceService to Deployments, Services, HTTPRoutes, and to its status.

Pure functions, after KServe's master of 2026-08 (the control plane of 0.21): components/predictor.go from
`canaryReplicaCount` on, ingress/httproute_reconciler.go and `PropagateRawStatus` (facts/kserve.md 6.1). Autoscalers are
not stood in for: a Deployment has its least number of replicas.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from sandbox.interfaces import Manifest, RevisionKey, RevisionTemplate
from sandbox.kube import kserve_spec, kserve_status
from sandbox.kube import pods as pod_rules
from sandbox.kube.conditions import FALSE, TRUE, aggregate, condition, find, info, listed, renamed, state

_AUTOSCALING = "autoscaling.knative.dev/"
_FIXED = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")
PORT, CONTAINER_PORT = 80, 8080


def service_name(isvc: Manifest, predictor: Manifest) -> str:
    """The name of a predictor's Deployment and Service."""
    middle = f"-{predictor['name']}" if predictor.get("name") else ""
    return f"{isvc['metadata']['name']}{middle}-predictor"


def stable_name(isvc: Manifest) -> str:
    return service_name(isvc, isvc["spec"]["predictor"])


def canaries(isvc: Manifest) -> list[Manifest]:
    return list(isvc["spec"].get("canary") or [])


def canary_replicas(isvc: Manifest, canary: Manifest) -> int:
    """What the canary says, or its share of the stable predictor's replicas: 0 at 0 %."""
    given = canary["predictor"].get("minReplicas")
    if given is not None:
        return int(given)
    stable, percent = int(isvc["spec"]["predictor"].get("minReplicas", 1)), int(canary.get("trafficPercent", 0))
    return math.ceil(stable * percent / 100)


def stable_replicas(isvc: Manifest) -> int:
    """The stable predictor's replicas, less those of canaries that are ready; never less than one for that."""
    wanted = int(isvc["spec"]["predictor"].get("minReplicas", 1))
    ready = _ready_names(isvc.get("status", {}))
    taken = sum(canary_replicas(isvc, one) for one in canaries(isvc) if one["predictor"]["name"] in ready)
    return max(wanted - taken, 1) if taken else wanted


def merged(stable: Manifest, over: Manifest) -> Manifest:
    """mergo.Merge with override: what is empty in `over` takes nothing away, a list replaces a list."""
    result = copy.deepcopy(stable)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        elif value or key not in result:
            result[key] = copy.deepcopy(value)
    return result


def canary_predictor(isvc: Manifest, canary: Manifest) -> Manifest:
    predictor = merged(isvc["spec"]["predictor"], canary["predictor"])
    return {k: v for k, v in predictor.items() if k not in _FIXED}


def deployment(
    isvc: Manifest, predictor: Manifest, runtime: Manifest, replicas: int, owner: list[Manifest]
) -> Manifest:
    """The Deployment of one predictor. Replicas are no part of its template: they change without a restart."""
    name, meta = service_name(isvc, predictor), isvc["metadata"]
    one = {**isvc, "spec": {**isvc["spec"], "predictor": predictor}}
    template = kserve_spec.revision_template(one, runtime)
    annotations = {k: v for k, v in template["metadata"]["annotations"].items() if not k.startswith(_AUTOSCALING)}
    labels = template["metadata"]["labels"] | {"app": f"{pod_rules.APP_PREFIX}{name}"}
    return {
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": owner,
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": labels["app"]}},
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": template["spec"]},
        },
    }


def core_service(deployment: Manifest) -> Manifest:
    """The Service before a Deployment's pods."""
    meta, ports = deployment["metadata"], [{"name": "http", "port": PORT, "targetPort": CONTAINER_PORT}]
    return {
        "metadata": {k: v for k, v in meta.items() if k in ("name", "namespace", "labels", "ownerReferences")},
        "spec": {"type": "ClusterIP", "selector": deployment["spec"]["selector"]["matchLabels"], "ports": ports},
    }


def workload(deployment: Manifest) -> RevisionTemplate:
    """The part of a Deployment that whoever runs it needs to know."""
    meta, spec = deployment["metadata"], deployment["spec"]
    pod = spec["template"]
    container = pod["spec"]["containers"][0]
    return RevisionTemplate(
        key=RevisionKey(meta["namespace"], meta["name"]),
        service=meta["labels"][kserve_spec.SERVICE_LABEL],
        storage_uri=pod["metadata"]["annotations"].get(kserve_spec.SOURCE_URI, ""),
        replicas=spec["replicas"],
        env={e["name"]: str(e["value"]) for e in container.get("env", []) if "value" in e},
        timeout_seconds=pod["spec"].get("timeoutSeconds", kserve_spec.DEFAULT_TIMEOUT),
    )


def pods(deployment: Manifest, found: list[Manifest]) -> list[Manifest]:
    """Pods as a revision has them, under a Deployment's labels and owner."""
    meta = deployment["metadata"]
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": meta["name"], "uid": meta["uid"]}
    for pod in found:
        pod["metadata"]["labels"] = dict(deployment["spec"]["template"]["metadata"]["labels"])
        pod["metadata"]["ownerReferences"] = [{**owner, "controller": True, "blockOwnerDeletion": True}]
    return found


def deployment_status(deployment: Manifest, pods: list[Manifest], late: bool, now: str) -> Manifest:
    """Replicas and conditions. `late`: the progress deadline has passed without enough ready pods."""
    ready, wanted = pod_rules.ready_count(pods), deployment["spec"]["replicas"]
    text = "Deployment does not have minimum availability."
    available = condition("Available", TRUE if ready >= wanted else FALSE, "MinimumReplicasUnavailable", text)
    progressing: Manifest = {"type": "Progressing", "status": TRUE, "reason": "ReplicaSetUpdated"}
    if ready >= wanted:
        progressing["reason"] = "NewReplicaSetAvailable"
    elif late:
        said = f'ReplicaSet "{deployment["metadata"]["name"]}" has timed out progressing.'
        progressing = condition("Progressing", FALSE, "ProgressDeadlineExceeded", said)
    counts = {"replicas": len(pods), "readyReplicas": ready, "availableReplicas": ready}
    return {
        "observedGeneration": deployment["metadata"]["generation"],
        **{k: v for k, v in counts.items() if v},
        "conditions": listed((available, progressing), deployment.get("status", {}), now),
    }


def canary_statuses(isvc: Manifest, deployments: dict[str, Manifest]) -> list[Manifest]:
    """Ready is "one replica is available"; the percent is the spec's and says nothing of the route."""
    return [
        {
            "name": one["predictor"]["name"],
            "ready": _available(deployments.get(service_name(isvc, one["predictor"]))) > 0,
            "trafficPercent": one.get("trafficPercent", 0),
        }
        for one in canaries(isvc)
    ]


def _available(deployment: Manifest | None) -> int:
    return int((deployment or {}).get("status", {}).get("availableReplicas", 0))


def _ready_names(status: Manifest) -> set[str]:
    return {one["name"] for one in status.get("canaryStatuses", []) if one["ready"]}


def predictor_condition(deployment: Manifest | None) -> Manifest:
    """PropagateRawStatus: PredictorReady from the stable Deployment's conditions."""
    status = (deployment or {}).get("status", {})
    available, progressing = find(status, "Available"), find(status, "Progressing")
    if available is None or progressing is None:
        return condition("PredictorReady", FALSE)
    if available["status"] == FALSE:
        return renamed(available, "PredictorReady")
    return renamed(progressing if progressing["status"] == FALSE else available, "PredictorReady")


def http_routes(isvc: Manifest, domain: str, weighs: bool, owner: list[Manifest]) -> list[Manifest]:
    """The service's own route and the predictor's, with a weight for each canary that is ready.

    `weighs` False is KServe 0.20, which knows of no weights: everything goes to the stable predictor.
    """
    meta, stable = isvc["metadata"], stable_name(isvc)
    shares: list[tuple[str, int | None]] = [(stable, None)]
    if weighs and canaries(isvc):
        ready = _ready_names(isvc.get("status", {}))
        told = [one for one in canaries(isvc) if one["predictor"]["name"] in ready]
        shares = [(stable, 100 - sum(one["trafficPercent"] for one in told))]
        shares += [(service_name(isvc, one["predictor"]), one["trafficPercent"]) for one in told]
    refs = [
        {"kind": "Service", "name": name, "namespace": meta["namespace"], "port": PORT}
        | ({} if weight is None else {"weight": weight})
        for name, weight in shares
    ]
    match = {"path": {"type": "RegularExpression", "value": "^/.*$"}}
    return [
        {
            "metadata": {
                "name": name,
                "namespace": meta["namespace"],
                "labels": {kserve_spec.SERVICE_LABEL: meta["name"]},
                "ownerReferences": owner,
            },
            "spec": {
                "hostnames": [host(name, meta["namespace"], domain)],
                "parentRefs": [{"kind": "Gateway", "name": "kserve-ingress-gateway", "namespace": "kserve"}],
                "rules": [{"matches": [match], "backendRefs": refs}],
            },
        }
        for name in (meta["name"], f"{meta['name']}-predictor")
    ]


def host(name: str, namespace: str, domain: str) -> str:
    """By the domainTemplate of the sandbox's KServe, `{{ .Name }}.{{ .Namespace }}.{{ .IngressDomain }}`: a service
    has the same address in both modes."""
    return f"{name}.{namespace}.{domain.rsplit(':', 1)[0]}"


def weights(route: Manifest) -> dict[str, int]:
    """Percent of each Service in a route; one without a weight counts 1."""
    refs = route["spec"]["rules"][0]["backendRefs"]
    total = sum(ref.get("weight", 1) for ref in refs)
    return {ref["name"]: round(100 * ref.get("weight", 1) / total) for ref in refs} if total else {}


def accepted(route: Manifest, now: str) -> Manifest:
    """The route's status once the gateway acts on it."""
    before = route.get("status", {}).get("parents", [{}])[0].get("conditions", [])
    bare = [{k: v for k, v in one.items() if k != "observedGeneration"} for one in before]
    conditions = listed((condition("Accepted", TRUE), condition("ResolvedRefs", TRUE)), {"conditions": bare}, now)
    seen = [{**one, "observedGeneration": route["metadata"]["generation"]} for one in conditions]
    parent = {"parentRef": route["spec"]["parentRefs"][0], "controllerName": "sandbox/gateway"}
    return {"parents": [{**parent, "conditions": seen}]}


def is_accepted(route: Manifest | None) -> bool:
    said = [c for parent in (route or {}).get("status", {}).get("parents", []) for c in parent["conditions"]]
    return bool(said) and all(c["status"] == TRUE for c in said)


def canary_condition(statuses: list[Manifest]) -> Manifest:
    ready = all(one["ready"] for one in statuses)
    reason = "AllCanariesReady" if ready else "CanariesNotReady"
    return {"type": "CanaryPredictorReady", "status": TRUE if ready else FALSE, "reason": reason, "severity": "Info"}


def status_after(
    isvc: Manifest, predictor: Manifest, routed: bool, found: list[Manifest], runtime: Manifest, domain: str, now: str
) -> Manifest:
    """The InferenceService's status. `isvc` carries the canaries' new statuses already; `found` are stable's pods."""
    meta, before = isvc["metadata"], isvc.get("status", {})
    text = "Predictor HTTPRoute not created"
    ingress = condition("IngressReady", TRUE if routed else FALSE, "Predictor Deployment NotReady", text)
    top = aggregate("Ready", (ingress, predictor))
    statuses = before.get("canaryStatuses", [])
    conditions = [ingress, predictor, top, info(condition("Stopped", FALSE))]
    conditions += [canary_condition(statuses)] if statuses else []
    component: dict[str, Any] = dict(kserve_spec.predictor_status(before))
    if predictor["status"] == TRUE:
        component["url"] = f"http://{meta['name']}-predictor.{meta['namespace']}.{domain}"
    settled = {"latestCreatedRevision": "", "latestReadyRevision": ""}
    status = {
        "clusterServingRuntimeName" if runtime["kind"] == "ClusterServingRuntime" else "servingRuntimeName":
            runtime["metadata"]["name"],
        "components": {"predictor": component},
        "conditions": listed(conditions, before, now),
        "deploymentMode": "Standard",
        "modelStatus": kserve_status.propagate_model(
            before.get("modelStatus", {}), state({"conditions": [top]}, "Ready") == TRUE, settled, found, {}
        ),
    } | ({"canaryStatuses": statuses} if statuses else {})  # fmt: skip
    url = before.get("url")
    if routed:
        url = f"http://{meta['name']}.{meta['namespace']}.{domain}"
    if url:
        local = f"{stable_name(isvc)}.{meta['namespace']}.svc.cluster.local"
        status |= {"url": url, "address": {"url": f"http://{local}"}}
    return status
