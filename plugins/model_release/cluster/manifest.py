"""The manifest that a release asks for, and how it compares with what is live.

Manifests are merged as data. Nothing of a model file or a version ever becomes part of a text that is parsed again.
"""

from __future__ import annotations

import copy
import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from model_release.cluster.inference_service import InferenceService, Template
from model_release.errors import SpecError
from model_release.spec import ModelSpec

MANAGED_BY = ("app.kubernetes.io/managed-by", "model-release")
TAG_ROUTING = "serving.kserve.io/enable-tag-routing"
DEPLOYMENT_MODE = "serving.kserve.io/deploymentMode"
# By which the handler (include/handlers/image_slices.py) is told what to count its answers by.
SLICES = "MODEL_SLICES"

Manifest = dict[str, Any]


def load_base(path: Path) -> Manifest:
    """The base manifest, one YAML document.

    Raises:
        SpecError: not readable, not YAML, or no InferenceService.
    """
    try:
        base = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: not a manifest: {error}") from error
    if not isinstance(base, dict) or base.get("kind") != "InferenceService":
        raise SpecError(f"{path}: not a manifest of an InferenceService (kind: InferenceService)")
    return base


def manifest(spec: ModelSpec, version_uri: str, base: Manifest) -> Manifest:
    """The InferenceService for one version of a model: `base`, with the model's file over it.

    A None in it says that the field must be absent. The split (`canaryTrafficPercent`) is never part of it.

    Raises:
        SpecError: `version_uri` does not end in `/`; KServe would load its siblings too (docs/facts.md#s3-prefixes). In
            Standard mode also: the service's name leaves no room for a version's.
    """
    if not version_uri.endswith("/"):
        raise SpecError(f"storage URI {version_uri!r} must end in '/'; without it KServe also loads what begins alike")
    service = spec.service
    quantities = service.resources.quantities
    ours: Manifest = {
        "metadata": {
            "name": service.name,
            "namespace": service.namespace,
            "labels": dict([MANAGED_BY]),
            "annotations": {TAG_ROUTING: "true"},
        },
        "spec": {
            "predictor": {
                "minReplicas": service.min_replicas,
                "maxReplicas": service.max_replicas,
                "containerConcurrency": service.container_concurrency,
                "timeout": service.timeout_seconds,
                "serviceAccountName": service.service_account,
                "model": {
                    "runtime": spec.serving_runtime,
                    "storageUri": version_uri,
                    "resources": {"requests": dict(quantities), "limits": dict(quantities)},
                },
            }
        },
    }
    if service.slices:
        there = base.get("spec", {}).get("predictor", {}).get("model", {}).get("env") or []
        counted = {"name": SLICES, "value": ",".join(service.slices)}
        ours["spec"]["predictor"]["model"]["env"] = [*there, counted]
    merged: Manifest = merge(base, ours)
    # Ready must mean that the model is loaded: Knative's own probe only asks whether the port is open, and
    # a server may open it for a model that failed too (docs/facts.md#ready-does-not-mean-loaded).
    probe = merged["spec"]["predictor"]["model"].get("readinessProbe")
    if probe is not None:
        probe["httpGet"]["path"] = f"/v1/models/{service.name}"
    merged["spec"]["predictor"].pop("canaryTrafficPercent", None)
    if service.mode == "standard":
        # The predictor's name is the revision's: each version has a Deployment and a Service of its own.
        merged["spec"]["predictor"]["name"] = predictor_name(service.name, version_uri)
        merged["metadata"]["annotations"][DEPLOYMENT_MODE] = "Standard"
        merged["metadata"]["annotations"].pop(TAG_ROUTING)
    return merged


def predictor_name(service: str, version_uri: str) -> str:
    """The name of a version's predictor in Standard mode: a DNS label, the same at any time.

    `v` and ten digits: the version's own first ones, or those of its address where that names no version of ours.

    Raises:
        SpecError: the label `app: isvc.<service>-<name>-predictor`, which KServe makes of it, would be too long.
    """
    found = re.search(r"/([0-9a-f]{16})/$", version_uri)
    digest = found[1] if found else hashlib.sha256(version_uri.encode()).hexdigest()
    name = f"v{digest[:10]}"
    if (over := len(f"isvc.{service}-{name}-predictor") - 63) > 0:
        raise SpecError(f"service.name {service} is {over} characters too long for Standard mode")
    return name


def mode_of(wanted: Manifest) -> str:
    """Knative or Standard: what a manifest of ours asks for."""
    return "Standard" if wanted["metadata"].get("annotations", {}).get(DEPLOYMENT_MODE) == "Standard" else "Knative"


def template_of(wanted: Manifest) -> Template:
    """`spec.predictor` of a manifest of ours."""
    return dict(wanted["spec"]["predictor"])


def matches(live: InferenceService, wanted: Manifest) -> bool:
    """Whether the spec that is live already is `wanted`: each field of it is there; the webhook's own may be more."""
    labels, annotations = wanted["metadata"].get("labels", {}), wanted["metadata"].get("annotations", {})
    return (
        holds(live.template, template_of(wanted))
        and holds(live.labels, labels)
        and holds(live.annotations, annotations)
    )


def holds(live: Any, wanted: Any, *, quantity: bool = False) -> bool:
    """Whether `live` has everything that `wanted` has. None in `wanted` is "absent"; lists are compared in whole.

    KServe's webhook adds defaults and rewrites quantities (1000m becomes 1), so equality is never to be had.
    """
    if wanted is None:
        return live is None
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            holds(live.get(key), value, quantity=quantity or key in ("requests", "limits", "sizeLimit"))
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(live, list) and len(live) == len(wanted) and all(map(holds, live, wanted))
    if quantity and live is not None and live != wanted:
        from kubernetes.utils.quantity import parse_quantity

        return bool(parse_quantity(live) == parse_quantity(wanted))
    return bool(live == wanted)


def merge(under: Any, over: Any) -> Any:
    """`over` laid on `under`, dict by dict; lists and scalars replace. Neither is changed."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return copy.deepcopy(over)
    merged = copy.deepcopy(under)
    for key, value in over.items():
        merged[key] = merge(merged.get(key), value)
    return merged


def without_none(value: Any) -> Any:
    """The manifest for a first write, where "absent" needs no word."""
    if isinstance(value, dict):
        return {key: without_none(below) for key, below in value.items() if below is not None}
    return value


def replacement(live: Any, wanted: Any) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) that makes `live` equal to `wanted`: what `wanted` lacks is removed.

    What the webhook had added is removed with it, and added anew by the webhook in the same write.
    """
    patch: dict[str, Any] = {}
    for key in {**live, **wanted}:
        old, new = live.get(key), wanted.get(key)
        if new is None:
            if old is not None:
                patch[key] = None
        elif isinstance(old, dict) and isinstance(new, dict):
            if below := replacement(old, new):
                patch[key] = below
        elif old != new:
            patch[key] = copy.deepcopy(without_none(new))
    return patch
