"""Knative's rules, first half: from a template to revisions, and what a Service tells of them and of its route.

Pure functions over Kubernetes objects; each takes the objects as stored and returns a status. They follow Knative's
controllers of 2026-08 (98e5ef90aa): pkg/reconciler/{service,configuration,revision}; the route's are in `routing`.
"""

from __future__ import annotations

import re
from datetime import datetime

from sandbox.interfaces import Manifest
from sandbox.kube import pods as pod_rules
from sandbox.kube import routing
from sandbox.kube.conditions import FALSE, TRUE, UNKNOWN, aggregate, condition, find, info, listed, renamed, state

MIN_SCALE = "autoscaling.knative.dev/min-scale"
PROGRESS_DEADLINE = "serving.knative.dev/progress-deadline"
CONFIGURATION = "serving.knative.dev/configuration"
GENERATION = "serving.knative.dev/configurationGeneration"
WEBHOOK = "validation.webhook.serving.knative.dev"
# What the API server says of a write while Knative's webhook does not answer.
WEBHOOK_AWAY = (
    'Internal error occurred: failed calling webhook "webhook.serving.knative.dev": failed to call webhook: '
    'Post "https://webhook.knative-serving.svc:443/defaulting?timeout=10s": context deadline exceeded'
)
LATE = "ProgressDeadlineExceeded"
MAX_TIMEOUT = 600  # max-revision-timeout-seconds of Knative's configmap config-defaults
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def revision_name(configuration: Manifest) -> str:
    """`<configuration>-00002`: the number is the configuration's generation, which only the template moves."""
    meta = configuration["metadata"]
    return f"{meta['name']}-{meta['generation']:05d}"


def validation_problems(service_spec: Manifest) -> list[str]:
    """What Knative's webhook finds wrong with a Service: percents, their sum, a timeout above its limit.

    They are listed by message and then by field, each with all of its fields, as Knative's FieldError does.
    """
    targets = service_spec.get("traffic", [])
    problems = [
        f"expected 0 <= {target['percent']} <= 100: spec.traffic[{n}].percent"
        for n, target in enumerate(targets)
        if not 0 <= target["percent"] <= 100
    ]
    total = sum(target["percent"] for target in targets)
    if total != 100:
        problems.append(f"Traffic targets sum to {total}, want 100: spec.traffic")
    seconds = service_spec["template"]["spec"].get("timeoutSeconds", 0)
    if not 0 <= seconds <= MAX_TIMEOUT:
        problems.append(f"expected 0 <= {seconds} <= {MAX_TIMEOUT}: spec.template.spec.timeoutSeconds")
    return sorted(problems)


def min_scale(revision: Manifest) -> int:
    """Pods that a revision needs to be ready. Scale to zero is not stood in for: at least one."""
    return max(1, int(revision["metadata"].get("annotations", {}).get(MIN_SCALE, 1)))


def progress_deadline(revision: Manifest, default: float) -> float:
    """Seconds that a revision has to become ready; the annotation is a Go duration (`600s`, `10m`)."""
    text = revision["metadata"].get("annotations", {}).get(PROGRESS_DEADLINE, "")
    parts = _DURATION.findall(text)
    return sum(float(n) * _SECONDS[unit] for n, unit in parts) if parts else default


def revision_status(revision: Manifest, pods: list[Manifest], late: bool, now: str) -> Manifest:
    """A revision's conditions from its pods; `late` says that its progress deadline has passed.

    Once ready, a revision stays ready when its pods go away (scaled to zero) or start again; only a container
    that ends with an error, with no other pod ready, takes it back, and it recovers by itself.
    """
    before = revision.get("status", {})
    ready = pod_rules.ready_count(pods)
    crashed = next((e for p in pods if (e := pod_rules.failure(pod_rules.container_status(p, pod_rules.MAIN)))), None)
    healthy, available = _unless_known(before, "ContainerHealthy"), _unless_known(before, "ResourcesAvailable")
    if ready >= min_scale(revision):
        healthy, available = condition("ContainerHealthy", TRUE), condition("ResourcesAvailable", TRUE)
    elif ready == 0 and crashed:
        text = f"Container failed with: {crashed.get('message', '')}"
        healthy = condition("ContainerHealthy", FALSE, f"ExitCode{crashed['exitCode']}", text)
    elif late and available["status"] == UNKNOWN:
        # The first pod's reason to wait, if it has one; else the Deployment's (docs/facts.md#the-progress-deadline).
        main = pod_rules.container_status(pods[0], pod_rules.MAIN) if pods else {}
        waiting = main.get("state", {}).get("waiting")
        replica_set = pod_rules.replica_set(f"{revision['metadata']['name']}-deployment", revision["spec"])
        text = f"{replica_set} has timed out progressing."
        reason, said = (waiting["reason"], waiting.get("message", "")) if waiting else (LATE, text)
        available = condition("ResourcesAvailable", FALSE, reason, said)
    top = aggregate("Ready", (healthy, available))
    active = condition("Active", FALSE, "NoTraffic", "The target is not receiving traffic.")
    if pods:
        text = "Requests to the target are being buffered as resources are provisioned."
        active = condition("Active", TRUE if ready else UNKNOWN, "Queued", text)
    return {
        "actualReplicas": ready,
        "desiredReplicas": len(pods),
        "observedGeneration": revision["metadata"]["generation"],
        "conditions": listed((healthy, available, top, info(active)), before, now),
    }


def _unless_known(before: Manifest, type_: str) -> Manifest:
    known = find(before, type_)
    return renamed(known, type_) if known else condition(type_, UNKNOWN, "Deploying")


def configuration_status(configuration: Manifest, revisions: list[Manifest], now: str) -> Manifest:
    """Which revision was created last and which was ready last; the latter goes backwards only when it was deleted.

    `revisions` are those of this configuration that its controller has seen: one that it makes in this very pass is
    not yet among them. That is how the deletion of the latest ready revision, which is made anew at once under the
    same name, leads back to the newest of the others that is ready (findAndSetLatestReadyRevision).
    """
    before = configuration.get("status", {})
    by_name = {r["metadata"]["name"]: r for r in revisions}
    created = revision_name(configuration)
    ready = before.get("latestReadyRevisionName", "")
    floor = generation_of(by_name[ready]) if ready in by_name else 0
    for revision in sorted(revisions, key=generation_of, reverse=True):
        in_range = floor <= generation_of(revision) <= configuration["metadata"]["generation"]
        if in_range and state(revision.get("status", {}), "Ready") == TRUE:
            ready = revision["metadata"]["name"]
            break
    latest = find(by_name.get(created, {}).get("status", {}), "Ready") or condition("Ready")
    if latest["status"] == FALSE:
        text = f'Revision "{created}" failed with message: {latest.get("message", "")}.'
        top = condition("Ready", FALSE, "RevisionFailed", text)
    else:
        top = condition("Ready", TRUE if ready == created else UNKNOWN)
    names = {"latestCreatedRevisionName": created} | ({"latestReadyRevisionName": ready} if ready else {})
    observed = {"observedGeneration": configuration["metadata"]["generation"]}
    return names | observed | {"conditions": listed([top], before, now)}


def generation_of(revision: Manifest) -> int:
    return int(revision["metadata"]["labels"][GENERATION])


def service_status(service: Manifest, configuration: Manifest, route: Manifest, now: str) -> Manifest:
    """A Knative Service's status: its configuration's and its route's, each only when they are up to date.

    While the configuration lags, its former revision names stay, but the route's traffic is taken over: this is
    the window of the late roll-back race (docs/facts.md#the-late-roll-back-race).
    """
    before = service.get("status", {})
    status = {k: v for k, v in before.items() if k not in ("conditions", "observedGeneration")}
    config_status, route_state = configuration.get("status", {}), route.get("status", {})
    lag = "The {} is still working to reflect the latest desired specification."
    if config_status.get("observedGeneration") == configuration["metadata"]["generation"]:
        for name in ("latestCreatedRevisionName", "latestReadyRevisionName"):
            status |= {name: config_status[name]} if name in config_status else {}
        configured = renamed(find(config_status, "Ready"), "ConfigurationsReady")
    else:
        configured = condition("ConfigurationsReady", UNKNOWN, "OutOfDate", lag.format("Configuration"))
    if route_state.get("observedGeneration") == route["metadata"]["generation"]:
        status |= {k: route_state[k] for k in ("url", "address", "traffic") if k in route_state}
        routed = renamed(find(route_state, "Ready"), "RoutesReady")
    else:
        routed = condition("RoutesReady", UNKNOWN, "OutOfDate", lag.format("Route"))
    if routed["status"] == TRUE and not routing.is_migrated(route, config_status.get("latestReadyRevisionName")):
        text = "Traffic is not yet migrated to the latest revision."
        routed = condition("RoutesReady", UNKNOWN, "TrafficNotMigrated", text)
    status["observedGeneration"] = service["metadata"]["generation"]
    status["conditions"] = listed((configured, routed, aggregate("Ready", (routed, configured))), before, now)
    return status


def started_at(revision: Manifest) -> datetime:
    return datetime.fromisoformat(revision["metadata"]["creationTimestamp"])
