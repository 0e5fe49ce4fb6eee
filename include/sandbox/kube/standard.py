"""KServe's rules for Standard mode: from an InferenceService to Deployments, Services, HTTPRoutes, and to its status.

Pure functions, after KServe's master of 2026-08 (the control plane of 0.21): components/predictor.go from
`canaryReplicaCount` on, ingress/httproute_reconciler.go and `PropagateRawStatus` (docs/facts.md#standard-mode).
Autoscalers are not stood in for: a Deployment has its least number of replicas.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from sandbox.interfaces import Manifest, RevisionKey, RevisionTemplate
from sandbox.kube import kserve_spec, kserve_status
from sandbox.kube import pods as pod_rules
from sandbox.kube.conditions import FALSE, TRUE, aggregate, condition, explained, find, info, listed, renamed
from sandbox.kube.seed import Addresses

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


def stable_replicas(isvc: Manifest, ready: set[str]) -> int:
    """The stable predictor's replicas, less those of the canaries that are `ready`; never less than one for that."""
    wanted = int(isvc["spec"]["predictor"].get("minReplicas", 1))
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
        image=container.get("image", ""),
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
    ready, wanted, before = pod_rules.ready_count(pods), deployment["spec"]["replicas"], deployment.get("status", {})
    available = explained("Available", TRUE, "MinimumReplicasAvailable", "Deployment has minimum availability.")
    if ready < wanted:
        text = "Deployment does not have minimum availability."
        available = explained("Available", FALSE, "MinimumReplicasUnavailable", text)
    replica_set = pod_rules.replica_set(deployment["metadata"]["name"], deployment["spec"]["template"])
    done = explained("Progressing", TRUE, "NewReplicaSetAvailable", f"{replica_set} has successfully progressed.")
    # Progress is not lost again: pods that end later are told of by Available alone.
    was_done = (find(before, "Progressing") or {}).get("message") == done["message"]
    progressing = done
    if ready < wanted and not was_done:
        progressing = explained("Progressing", TRUE, "ReplicaSetUpdated", f"{replica_set} is progressing.")
        if late:
            text = f"{replica_set} has timed out progressing."
            progressing = explained("Progressing", FALSE, "ProgressDeadlineExceeded", text)
    counts = {
        "replicas": len(pods),
        "updatedReplicas": len(pods),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": max(wanted - ready, 0),
    }
    return {
        "observedGeneration": deployment["metadata"]["generation"],
        **{k: v for k, v in counts.items() if v},
        "conditions": listed((available, progressing), before, now),
    }


def canary_statuses(isvc: Manifest, deployments: dict[str, Manifest]) -> list[Manifest]:
    """Ready is "one replica is available"; the percent is the spec's and says nothing of the route."""
    return [
        {
            "modelStatus": {"transitionStatus": ""},
            "name": one["predictor"]["name"],
            "ready": _available(deployments.get(service_name(isvc, one["predictor"]))) > 0,
            "trafficPercent": one.get("trafficPercent", 0),
        }
        for one in canaries(isvc)
    ]


def _available(deployment: Manifest | None) -> int:
    return int((deployment or {}).get("status", {}).get("availableReplicas", 0))


def predictor_condition(deployment: Manifest | None) -> Manifest:
    """PropagateRawStatus: PredictorReady from the stable Deployment's conditions."""
    status = (deployment or {}).get("status", {})
    available, progressing = find(status, "Available"), find(status, "Progressing")
    if available is None or progressing is None:
        return condition("PredictorReady", FALSE)
    return renamed(available if available["status"] == FALSE else progressing, "PredictorReady")


def http_routes(
    isvc: Manifest, ready: set[str] | None, addresses: Addresses, domain: str, owner: list[Manifest]
) -> list[Manifest]:
    """The service's own route and the predictor's, with a weight for each canary that is `ready`.

    `ready` None is KServe 0.20, which knows of no weights: everything goes to the stable predictor.
    """
    meta, stable = isvc["metadata"], stable_name(isvc)
    shares = [(stable, 1)]  # the Gateway API's default
    if ready is not None and canaries(isvc):
        told = [one for one in canaries(isvc) if one["predictor"]["name"] in ready]
        shares = [(stable, 100 - sum(one["trafficPercent"] for one in told))]
        shares += [(service_name(isvc, one["predictor"]), one["trafficPercent"]) for one in told]
    refs = [
        {
            "group": "",
            "kind": "Service",
            "name": name,
            "namespace": meta["namespace"],
            "port": PORT,
            "weight": weight,
        }
        for name, weight in shares
    ]
    gateway = {"group": "gateway.networking.k8s.io", "kind": "Gateway"}
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
                "hostnames": [addresses.host(name, meta["namespace"], domain.rsplit(":", 1)[0])],
                "parentRefs": [{**gateway, "name": "kserve-ingress-gateway", "namespace": "kserve"}],
                "rules": [{"matches": [match], "backendRefs": refs}],
            },
        }
        for name in (meta["name"], f"{meta['name']}-predictor")
    ]


def weights(route: Manifest) -> dict[str, int]:
    """Percent of each Service in a route."""
    refs = route["spec"]["rules"][0]["backendRefs"]
    total = sum(ref["weight"] for ref in refs)
    return {ref["name"]: round(100 * ref["weight"] / total) for ref in refs} if total else {}


def accepted(route: Manifest, now: str) -> Manifest:
    """The route's status once the gateway acts on it."""
    before = route.get("status", {}).get("parents", [{}])[0].get("conditions", [])
    bare = [{k: v for k, v in one.items() if k != "observedGeneration"} for one in before]
    wanted = [{**explained(type_, TRUE, type_), "message": ""} for type_ in ("Accepted", "ResolvedRefs")]
    conditions = listed(wanted, {"conditions": bare}, now)
    seen = [{**one, "observedGeneration": route["metadata"]["generation"]} for one in conditions]
    parent = {"parentRef": route["spec"]["parentRefs"][0], "controllerName": "sandbox/gateway"}
    return {"parents": [{**parent, "conditions": seen}]}


def is_acted_on(route: Manifest) -> bool:
    parents = route.get("status", {}).get("parents", [])
    seen = [one["observedGeneration"] for parent in parents for one in parent["conditions"]]
    return bool(seen) and set(seen) == {route["metadata"]["generation"]}


def ingress_condition(routes: list[Manifest | None]) -> Manifest:
    """Whether the predictor's and the service's route are there, and whether a gateway says no to them.

    KServe does not ask for which generation it says so: a weight that is written counts as done at once.
    """
    for component, route in zip(("Predictor", "InferenceService"), routes, strict=True):
        if route is None:
            text = f"{component} HTTPRoute not created"
            return condition("IngressReady", FALSE, f"{component} Deployment NotReady", text)
        parents = route.get("status", {}).get("parents", [])
        if not parents:
            return condition("IngressReady", FALSE, "ParentStatusNotAvailable", f"{component} HttpRouteNotReady")
        for refused in (c for parent in parents for c in parent["conditions"] if c["status"] == FALSE):
            return condition("IngressReady", FALSE, refused["reason"], f"{component} {refused['message']}")
    return condition("IngressReady", TRUE)


def canary_condition(statuses: list[Manifest], stopped: bool) -> Manifest:
    ready = all(one["ready"] for one in statuses)
    reason = kserve_status.STOPPED if stopped else "AllCanariesReady" if ready else "CanariesNotReady"
    return info(explained("CanaryPredictorReady", TRUE if ready and not stopped else FALSE, reason))


@dataclass(frozen=True)
class Observed:
    """What KServe finds of an InferenceService in Standard mode."""

    runtime: Manifest
    canaries: list[Manifest]  # `canary_statuses`
    stable: Manifest | None  # its Deployment
    pods: list[Manifest]  # the stable predictor's
    ingress: Manifest  # `ingress_condition`


def status_after(isvc: Manifest, observed: Observed, addresses: Addresses, domain: str, now: str) -> Manifest:
    meta, before, stable = isvc["metadata"], isvc.get("status", {}), stable_name(isvc)
    predictor = predictor_condition(observed.stable)
    top = aggregate("Ready", (observed.ingress, predictor))
    conditions = [observed.ingress, predictor, top, info(condition("Stopped", FALSE))]
    component: dict[str, Any] = dict(kserve_spec.predictor_status(before))
    if predictor["status"] == TRUE:
        component["url"] = f"http://{addresses.host(stable, meta['namespace'], domain)}"
    settled = {"latestCreatedRevision": "", "latestReadyRevision": ""}
    model = kserve_status.propagate_model(
        before.get("modelStatus", {}), top["status"] == TRUE, settled, observed.pods, {}
    )
    # It is the Deployment's, which moves with neither percent nor canary.
    generation = (observed.stable or {}).get("status", {}).get("observedGeneration")
    url, address = before.get("url"), before.get("address")
    if observed.ingress["status"] == TRUE:
        url = f"http://{addresses.host(meta['name'], meta['namespace'], domain)}"
        address = {"url": f"http://{stable}.{meta['namespace']}.svc.cluster.local"}
    told = {"observedGeneration": generation, "url": url, "address": address}
    return {
        kserve_status.runtime_field(observed.runtime): observed.runtime["metadata"]["name"],
        "components": {"predictor": component},
        "deploymentMode": "Standard",
        "modelStatus": model,
        **{k: v for k, v in told.items() if v},
        **_canary_part(observed.canaries, conditions, before, now),
    }


def status_stopped(isvc: Manifest, runtime: Manifest, statuses: list[Manifest], now: str) -> Manifest:
    """As in Knative mode; the canaries are still told of. A start opens them again with the percents of the spec."""
    status = kserve_status.status_stopped(isvc, runtime, now)
    conditions = [{k: v for k, v in c.items() if k != "lastTransitionTime"} for c in status["conditions"]]
    part = _canary_part(statuses, conditions, isvc.get("status", {}), now, stopped=True)
    return {**status, "deploymentMode": "Standard", **part}


def _canary_part(
    statuses: list[Manifest], conditions: list[Manifest], before: Manifest, now: str, stopped: bool = False
) -> Manifest:
    """The conditions with the canaries' own, and their statuses: both only where there are canaries."""
    if not statuses:
        return {"conditions": listed(conditions, before, now)}
    with_theirs = [*conditions, canary_condition(statuses, stopped)]
    return {"conditions": listed(with_theirs, before, now), "canaryStatuses": statuses}
