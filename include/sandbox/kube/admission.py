"""KServe's two webhooks for InferenceServices: defaulting (what you read is not what you wrote) and validation.

Pure functions, after KServe v0.20's inference_service_defaults.go and inference_service_validation.go
(docs/facts.md#the-webhooks). The messages are KServe's own.
"""

from __future__ import annotations

import copy
import re

from sandbox.interfaces import Manifest
from sandbox.kube import canary_admission, quantities, schema
from sandbox.kube.errors import ApiError, denied, invalid
from sandbox.kube.resources import INFERENCE_SERVICES

VALIDATOR = "inferenceservice.kserve-webhook-server.validator"
DEPLOYMENT_MODE = "serving.kserve.io/deploymentMode"
KNATIVE, STANDARD = "Knative", "Standard"
DEFAULT_RESOURCES = {"cpu": "1", "memory": "2Gi"}

FRAMEWORKS = (
    "sklearn", "xgboost", "tensorflow", "pytorch", "triton", "onnx", "huggingface", "pmml", "lightgbm", "paddle",
)  # fmt: skip
_MODES = {"Serverless": KNATIVE, "RawDeployment": STANDARD}
_NAME = "[a-z]([-a-z0-9]*[a-z0-9])?"
_AUTOSCALERS = ("hpa", "keda", "external", "none")
_KPA_METRICS = ("concurrency", "rps")
_SCHEMES = (
    "gs://", "s3://", "pvc://", "file://", "https://", "http://", "hdfs://", "webhdfs://", "oci://", "hf://", "git://",
)  # fmt: skip


def mode(isvc: Manifest, cluster_default: str = KNATIVE) -> str:
    """The deployment mode of an InferenceService, in today's words."""
    annotated = isvc["metadata"].get("annotations", {}).get(DEPLOYMENT_MODE, cluster_default)
    return _MODES.get(annotated, str(annotated))


def default(isvc: Manifest, cluster_default: str = KNATIVE) -> Manifest:
    """What the mutating webhook makes of an InferenceService. Doing it twice changes nothing more."""
    isvc = copy.deepcopy(isvc)
    annotations = dict(isvc["metadata"].get("annotations") or {})
    if DEPLOYMENT_MODE in annotations or cluster_default == STANDARD:
        annotations[DEPLOYMENT_MODE] = mode(isvc, cluster_default)
    predictor = isvc.get("spec", {}).get("predictor")
    if isinstance(predictor, dict):
        for framework in FRAMEWORKS:
            if isinstance(short := predictor.get(framework), dict):
                # A short form replaces `model` wholesale, also one that is already there.
                predictor["model"] = {"modelFormat": {"name": framework}, **short}
                del predictor[framework]
        model = predictor.get("model")
        if isinstance(model, dict):
            annotations |= _default_model(model)
        quantities.make_canonical(predictor)
    for canary in _canary_predictors(isvc):
        # Of a canary's model the webhook only writes out what Go does: no defaults come from there.
        if isinstance(model := canary.get("model"), dict):
            model.setdefault("name", "")
        quantities.make_canonical(canary)
    if annotations:
        isvc["metadata"]["annotations"] = annotations
    return isvc


def _canary_predictors(isvc: Manifest) -> list[Manifest]:
    entries = isvc.get("spec", {}).get("canary")
    listed = [one.get("predictor") for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    return [one for one in listed if isinstance(one, dict)]


def _default_model(model: Manifest) -> dict[str, str]:
    model.setdefault("name", "")  # Go writes the field out, empty
    resources = model.setdefault("resources", {})
    if isinstance(resources, dict):
        for part in ("limits", "requests"):
            resources[part] = {**DEFAULT_RESOURCES, **(resources.get(part) or {})}
    model_format = model.get("modelFormat")
    if not isinstance(model_format, dict) or not model_format.get("name"):
        return {}
    return {"modelFormat": str(model_format["name"])}


def admit(new: Manifest, old: Manifest | None, cluster_default: str = KNATIVE, kserve: str = "0.21") -> Manifest:
    """Default, prune by the CRD's schema, validate: the object as it is stored. `kserve` is the release to act as.

    Raises:
        ApiError: 422 for a field of the wrong type or a missing one, 403 with the webhook's message otherwise.
    """
    new = default(new, cluster_default)
    new, findings = schema.prune(new, schema.inference_service(kserve))
    name = new["metadata"]["name"]
    if findings.problems:
        raise invalid(INFERENCE_SERVICES, name, *findings.problems)
    if problem := _problem(new, old, cluster_default):
        raise denied(VALIDATOR, problem)
    return new


def unknown_fields(obj: Manifest) -> list[str]:
    """Paths that the CRD does not know; `kubectl apply` refuses them, other clients get a warning."""
    return schema.prune(obj, schema.inference_service())[1].unknown


def strict_decoding_error(unknown: list[str]) -> ApiError:
    listed = ", ".join(f'unknown field "{path}"' for path in unknown)
    head = 'InferenceService in version "v1beta1" cannot be handled as a InferenceService: strict decoding error'
    return ApiError(400, "BadRequest", f"{head}: {listed}")


def _problem(new: Manifest, old: Manifest | None, cluster_default: str) -> str | None:
    name, predictor = new["metadata"]["name"], new["spec"]["predictor"]
    if old is not None and (was := mode(old, cluster_default)) != (wanted := mode(new, cluster_default)):
        return f"update rejected: deploymentMode cannot be changed from '{was}' to '{wanted}'"
    if not re.fullmatch(_NAME, name):
        return (
            f'the InferenceService "{name}" is invalid: a InferenceService name must consist of lower case '
            "alphanumeric characters or '-', and must start with alphabetical character. "
            f'(e.g. "my-name" or "abc-123", regex used for validation is \'{_NAME}\')'
        )
    autoscaler = new["metadata"].get("annotations", {}).get("serving.kserve.io/autoscalerClass")
    if autoscaler is not None and autoscaler not in _AUTOSCALERS:
        return f"[{autoscaler}] is not a supported autoscaler class type"
    if old is not None and (problem := canary_admission.name_problem(predictor, old["spec"]["predictor"])):
        return problem
    kinds = [k for k in ("model", "containers") if predictor.get(k)]
    if len(kinds) != 1:
        return f"exactly one of [{' '.join((*FRAMEWORKS, 'model', 'containers'))}] must be specified in PredictorSpec"
    model = predictor.get("model", {})
    if model.get("name"):
        return "the 'name' field is not allowed in standard predictor"
    return (
        _storage_problem(model)
        or _extension_problem(predictor, mode(new, cluster_default))
        or canary_admission.problem(new, new["metadata"].get("annotations", {}).get(DEPLOYMENT_MODE) == STANDARD)
    )


def _storage_problem(model: Manifest) -> str | None:
    uri = model.get("storageUri")
    if uri is None or uri.startswith(_SCHEMES) or "://" not in uri:
        return None
    return (
        f"storageUri, must be one of: [{', '.join(_SCHEMES)}] or match https://{{}}.blob.core.windows.net/{{}}/{{}} "
        f"or be an absolute or relative local path. StorageUri [{uri}] is not supported"
    )


def _extension_problem(predictor: Manifest, deployment_mode: str) -> str | None:
    least, most = predictor.get("minReplicas"), predictor.get("maxReplicas", 0)
    if least is not None and least < 0:
        return "'MinReplicas' cannot be less than 0"
    if most < 0:
        return "'MaxReplicas' cannot be less than 0"
    if least is not None and most and least > most:
        return "'MinReplicas' cannot be greater than MaxReplicas"
    if predictor.get("containerConcurrency", 0) < 0:
        return "parallelism cannot be less than 0"
    metric = predictor.get("scaleMetric")
    if metric is not None and deployment_mode == KNATIVE and metric not in _KPA_METRICS:
        return f"[{metric}] is not a supported metric"
    if predictor.get("deploymentStrategy") and deployment_mode == KNATIVE:
        return "customizing deploymentStrategy is only supported for raw deployment mode"
    return None
