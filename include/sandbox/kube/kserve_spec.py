"""KServe's rules, first half: from an InferenceService to the Knative Service that it asks for.

Pure functions, after KServe v0.20's ksvc_reconciler.go and predictor.go. Nothing here knows of promotions or
roll-backs: those follow from the traffic block and from who is "rolled out" (docs/facts.md#the-traffic-split).
"""

from __future__ import annotations

import copy

from sandbox.interfaces import Manifest, RevisionKey, RevisionTemplate
from sandbox.kube import knative
from sandbox.kube import pods as pod_rules
from sandbox.kube.patches import strategic

STOP = "serving.kserve.io/stop"
TAG_ROUTING = "serving.kserve.io/enable-tag-routing"
SOURCE_URI = "internal.serving.kserve.io/storage-initializer-sourceuri"
ROLLOUT_DURATION = "serving.knative.dev/rollout-duration"
SERVICE_LABEL = "serving.kserve.io/inferenceservice"

# Annotations of the InferenceService that stay out of the revision template (constants.go); every other one is
# copied, so that adding or changing it makes a new revision.
NOT_COPIED = (
    "autoscaling.knative.dev/min-scale",
    "autoscaling.knative.dev/max-scale",
    SOURCE_URI,
    "kubectl.kubernetes.io/last-applied-configuration",
    "modelFormat",
    ROLLOUT_DURATION,
)
_VISIBILITY = "networking.knative.dev/visibility"
_EXTENSION_FIELDS = (
    "annotations", "autoScaling", "batcher", "canaryTrafficPercent", "containerConcurrency", "deploymentStrategy",
    "labels", "logger", "maxReplicas", "minReplicas", "model", "name", "scaleMetric", "scaleMetricType",
    "scaleTarget", "storageContainerName", "storageUris", "timeout", "workerSpec",
)  # fmt: skip
_MODEL_FIELDS = ("modelFormat", "name", "protocolVersion", "runtime", "runtimeVersion", "storage", "storageUri")
DEFAULT_TIMEOUT = 300


def service_name(isvc: Manifest) -> str:
    predictor_name = isvc["spec"]["predictor"].get("name")
    middle = f"-{predictor_name}" if predictor_name else ""
    return f"{isvc['metadata']['name']}{middle}-predictor"


def is_stopped(isvc: Manifest) -> bool:
    return bool(isvc["metadata"].get("annotations", {}).get(STOP, "").lower() == "true")


def traffic_targets(isvc: Manifest) -> list[Manifest]:
    """The traffic block of createKnativeService: two targets when a canary is asked for and a baseline is known."""
    latest: Manifest = {"latestRevision": True, "percent": 100}
    if isvc["metadata"].get("annotations", {}).get(TAG_ROUTING) == "true":
        latest["tag"] = "latest"
    percent = isvc["spec"]["predictor"].get("canaryTrafficPercent")
    baseline = predictor_status(isvc.get("status", {})).get("latestRolledoutRevision")
    if percent is None or not baseline:
        return [latest]
    latest["percent"] = percent
    if percent >= 100:
        return [latest]
    rest = {"revisionName": baseline, "latestRevision": False, "percent": 100 - percent, "tag": "prev"}
    return [latest, rest]


class InvalidSpec(Exception):
    """No runtime for this InferenceService; told in `status.modelStatus` with one of KServe's reasons."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def choose_runtime(isvc: Manifest, runtimes: list[Manifest]) -> Manifest:
    """The runtime that is named, or the first that takes the model's format by itself.

    `runtimes` are the namespace's and the cluster's, in that order. Raises InvalidSpec.
    """
    model = isvc["spec"]["predictor"].get("model", {})
    wanted, name = model.get("modelFormat", {}), model.get("runtime")
    if name:
        found = next((r for r in runtimes if r["metadata"]["name"] == name), None)
        if found is None:
            raise InvalidSpec("RuntimeNotRecognized", "Waiting for runtime to become available")
        if found["spec"].get("disabled"):
            raise InvalidSpec("RuntimeDisabled", "Specified runtime is disabled")
        if not _supports(found, wanted):
            text = "Specified runtime does not support specified framework/version"
            raise InvalidSpec("NoSupportingRuntime", text)
        return found
    for runtime in runtimes:
        if not runtime["spec"].get("disabled") and _supports(runtime, wanted, auto=True):
            return runtime
    raise InvalidSpec("NoSupportingRuntime", "No runtime found to support specified framework/version")


def _supports(runtime: Manifest, wanted: Manifest, auto: bool = False) -> bool:
    return any(
        f["name"] == wanted.get("name")
        and (wanted.get("version") in (None, f.get("version")))
        and (f.get("autoSelect", False) or not auto)
        for f in runtime["spec"].get("supportedModelFormats", [])
    )


def knative_service(isvc: Manifest, runtime: Manifest) -> Manifest:
    """The Knative Service that an InferenceService asks for now: revision template and traffic."""
    meta = isvc["metadata"]
    annotations = {k: v for k, v in meta.get("annotations", {}).items() if k == ROLLOUT_DURATION}
    return {
        "metadata": {
            "name": service_name(isvc),
            "namespace": meta["namespace"],
            "labels": {SERVICE_LABEL: meta["name"], "component": "predictor"},
            "annotations": annotations,
            "ownerReferences": [
                {"apiVersion": isvc["apiVersion"], "kind": isvc["kind"], "name": meta["name"], "uid": meta["uid"],
                 "controller": True, "blockOwnerDeletion": True},
            ],
        },
        "spec": {"template": revision_template(isvc, runtime), "traffic": traffic_targets(isvc)},
    }  # fmt: skip


def revision_template(isvc: Manifest, runtime: Manifest) -> Manifest:
    """What goes into a revision. Two templates that differ are two revisions; the percent is not in it."""
    meta, predictor = isvc["metadata"], isvc["spec"]["predictor"]
    model = predictor.get("model", {})
    annotations = {k: v for k, v in meta.get("annotations", {}).items() if k not in NOT_COPIED}
    annotations |= runtime["spec"].get("annotations", {}) | predictor.get("annotations", {})
    annotations |= _autoscaling(predictor)
    if "storageUri" in model:
        annotations[SOURCE_URI] = model["storageUri"]
    envelope = "kservev2" if model.get("protocolVersion") == "v2" else "kserve"
    labels = {k: v for k, v in meta.get("labels", {}).items() if k != _VISIBILITY}
    labels |= predictor.get("labels", {})
    labels |= {SERVICE_LABEL: meta["name"], "component": "predictor", "serviceEnvelope": envelope}
    spec = {k: copy.deepcopy(v) for k, v in predictor.items() if k not in _EXTENSION_FIELDS}
    spec["containers"] = [_container(model, runtime, envelope)]
    spec["containerConcurrency"] = predictor.get("containerConcurrency", 0)
    spec["timeoutSeconds"] = predictor.get("timeout", DEFAULT_TIMEOUT)
    if "timeout" in predictor:
        spec["responseStartTimeoutSeconds"] = predictor["timeout"]
    return {"metadata": {"annotations": annotations, "labels": labels}, "spec": spec}


def _autoscaling(predictor: Manifest) -> dict[str, str]:
    prefix = "autoscaling.knative.dev/"
    written = {
        f"{prefix}class": "kpa.autoscaling.knative.dev",
        f"{prefix}min-scale": str(predictor.get("minReplicas", 1)),
    }
    for field, name in (("maxReplicas", "max-scale"), ("scaleTarget", "target"), ("scaleMetric", "metric")):
        if field in predictor:
            written[prefix + name] = str(predictor[field])
    return written


def _container(model: Manifest, runtime: Manifest, envelope: str) -> Manifest:
    """The runtime's container with the model's own fields merged over it, and the envelope filled in."""
    base: Manifest = next((c for c in runtime["spec"]["containers"] if c["name"] == pod_rules.MAIN), {})
    own = {k: v for k, v in model.items() if k not in _MODEL_FIELDS}
    merged: Manifest = strategic(base, own)
    merged["name"] = pod_rules.MAIN
    if version := model.get("runtimeVersion"):
        merged["image"] = f"{merged.get('image', '').rsplit(':', 1)[0]}:{version}"
    version = model.get("protocolVersion", "v1")
    env = [{**e, "value": e["value"].replace("{{.Labels.serviceEnvelope}}", envelope)} if "value" in e else e
           for e in merged.get("env", [])]  # fmt: skip
    merged["env"] = [*env, {"name": "PROTOCOL_VERSION", "value": version}]
    return merged


def workload(revision: Manifest) -> RevisionTemplate:
    """The part of a revision that whoever runs it needs to know."""
    meta, spec = revision["metadata"], revision["spec"]
    container = spec["containers"][0]
    return RevisionTemplate(
        key=RevisionKey(meta["namespace"], meta["name"]),
        service=meta["labels"][SERVICE_LABEL],
        storage_uri=meta["annotations"].get(SOURCE_URI, ""),
        image=container.get("image", ""),
        replicas=knative.min_scale(revision),
        env={e["name"]: str(e["value"]) for e in container.get("env", []) if "value" in e},
        container_concurrency=spec.get("containerConcurrency", 0),
        timeout_seconds=spec.get("timeoutSeconds", DEFAULT_TIMEOUT),
    )


def predictor_status(status: Manifest) -> Manifest:
    """The predictor's part of a status, empty before there is one."""
    found: Manifest = status.get("components", {}).get("predictor", {})
    return found
