"""Knative's rules, second half: from a route's targets to the split that users get.

Pure functions over Kubernetes objects, after Knative's pkg/reconciler/route: a Route resolves its targets to revisions
and writes an Ingress; the gateway acts on that, and only then does the Route say that it is ready.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from sandbox.interfaces import Manifest
from sandbox.kube.conditions import FALSE, TRUE, UNKNOWN, condition, listed, state


@dataclass(frozen=True)
class Resolution:
    """What a route's targets mean now: the traffic, or the reason why the former traffic has to stay."""

    traffic: list[Manifest] | None
    problem: Manifest | None = None


def resolve(route: Manifest, configuration: Manifest, revisions: dict[str, Manifest], domain: str) -> Resolution:
    """Targets → revisions. `latestRevision` is the configuration's latest *ready*.

    Each of them must be ready now, whatever its percent, also the latest, which was once and may have failed since:
    else no target changes (traffic.go, addConfigurationTarget and addRevisionTarget).
    """
    meta = route["metadata"]
    config_status = configuration.get("status", {})
    resolved: list[Manifest] = []
    for target in route["spec"]["traffic"]:
        if target.get("latestRevision"):
            name = config_status.get("latestReadyRevisionName")
            if not name:
                return Resolution(None, _unready_configuration(meta["name"], config_status))
        else:
            name = target["revisionName"]
        if problem := _unready_revision(name, revisions.get(name)):
            return Resolution(None, problem)
        entry = {**target, "revisionName": name, "latestRevision": bool(target.get("latestRevision"))}
        if "tag" in target:
            entry["url"] = f"http://{host(meta['name'], meta['namespace'], domain, target['tag'])}"
        resolved.append(entry)
    return Resolution(resolved)


def host(name: str, namespace: str, domain: str, tag: str = "") -> str:
    """`prev-digits-predictor.models.localhost:8080`; the domain carries the front door's port."""
    return f"{tag}-{name}.{namespace}.{domain}" if tag else f"{name}.{namespace}.{domain}"


def _unready_configuration(name: str, status: Manifest) -> Manifest:
    if state(status, "Ready") == FALSE:
        return condition("Ready", FALSE, "RevisionMissing", f'Configuration "{name}" does not have any ready Revision.')
    text = f'Configuration "{name}" is waiting for a Revision to become ready.'
    return condition("Ready", UNKNOWN, "RevisionMissing", text)


def _unready_revision(name: str, revision: Manifest | None) -> Manifest | None:
    if revision is None:
        return condition("Ready", FALSE, "RevisionMissing", f'Revision "{name}" referenced in traffic not found.')
    is_ready = state(revision.get("status", {}), "Ready")
    if is_ready == TRUE:
        return None
    text = "failed to become ready" if is_ready == FALSE else "is not yet ready"
    return condition("Ready", is_ready, "RevisionMissing", f'Revision "{name}" {text}.')


def ingress(route: Manifest, traffic: list[Manifest], domain: str, owner: list[Manifest]) -> Manifest:
    """The Ingress of a route: a rule for its own host, and one more for each tag, whatever its percent.

    Knative also writes rules for the hosts inside of the cluster; here nobody asks for those.
    """
    meta, bare = route["metadata"], domain.rsplit(":", 1)[0]
    namespace = meta["namespace"]
    split = [(name, percent) for name, percent in shares(traffic).items() if percent]
    rules = [_rule(host(meta["name"], namespace, bare), namespace, split)]
    for target in (one for one in traffic if "tag" in one):
        tagged = host(meta["name"], namespace, bare, target["tag"])
        rules.append(_rule(tagged, namespace, [(target["revisionName"], 100)]))
    return {
        "metadata": {
            "name": meta["name"],
            "namespace": namespace,
            "labels": {**meta.get("labels", {}), "serving.knative.dev/route": meta["name"]},
            "ownerReferences": owner,
        },
        "spec": {"rules": rules},
    }


def _rule(host: str, namespace: str, split: list[tuple[str, int]]) -> Manifest:
    splits = [
        {"serviceName": name, "serviceNamespace": namespace, "servicePort": 80, "percent": percent}
        for name, percent in split
    ]
    return {"hosts": [host], "visibility": "ExternalIP", "http": {"paths": [{"splits": splits}]}}


def splits(rule: Manifest) -> dict[str, int]:
    """Percent of each revision in one rule of an Ingress."""
    return {one["serviceName"]: one["percent"] for one in rule["http"]["paths"][0]["splits"]}


def ingress_status(ingress: Manifest, now: str) -> Manifest:
    """What the gateway says once it acts on an Ingress as it is now."""
    parts = (condition(type_, TRUE) for type_ in ("LoadBalancerReady", "NetworkConfigured", "Ready"))
    conditions = listed(parts, ingress.get("status", {}), now)
    return {"observedGeneration": ingress["metadata"]["generation"], "conditions": conditions}


def is_acted_on(ingress: Manifest) -> bool:
    return bool(ingress.get("status", {}).get("observedGeneration") == ingress["metadata"]["generation"])


def route_status(route: Manifest, resolution: Resolution, acted_on: bool, domain: str, now: str) -> Manifest:
    """A route's status. The traffic that it tells is what its Ingress asks for; `acted_on`: the gateway does it.

    Where a target has a problem the Ingress stays, and so does what is told of it.
    """
    meta, before = route["metadata"], route.get("status", {})
    traffic = before.get("traffic") if resolution.traffic is None else resolution.traffic
    top = resolution.problem or condition("Ready", TRUE)
    if resolution.problem is None and not acted_on:
        top = condition("Ready", UNKNOWN, "IngressNotConfigured", "Ingress has not yet been reconciled.")
    return {
        "url": f"http://{host(meta['name'], meta['namespace'], domain)}",
        "address": {"url": f"http://{meta['name']}.{meta['namespace']}.svc.cluster.local"},
        "observedGeneration": meta["generation"],
        "conditions": listed([top], before, now),
    } | ({"traffic": traffic} if traffic else {})


def shares(traffic: list[Manifest]) -> dict[str, int]:
    """Percent of the traffic by revision name; a revision that is named twice has the sum."""
    total: dict[str, int] = defaultdict(int)
    for target in traffic:
        total[target["revisionName"]] += target.get("percent", 0)
    return dict(total)


def is_migrated(route: Manifest, latest_ready: str | None) -> bool:
    """Whether a route's status tells what its spec asks for."""
    wanted = [
        (latest_ready if t.get("latestRevision") else t["revisionName"], t["percent"]) for t in route["spec"]["traffic"]
    ]
    return wanted == [(t["revisionName"], t["percent"]) for t in route["status"].get("traffic", [])]
