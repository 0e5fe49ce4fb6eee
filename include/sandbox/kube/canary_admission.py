"""What KServe's webhook says of `spec.canary` and of a predictor's name: inference_service_validation.go, 0.20 on.

Pure functions; the messages are KServe's own (docs/facts.md#the-webhooks).
"""

from __future__ import annotations

from sandbox.interfaces import Manifest

_FIXED = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")


def name_problem(new: Manifest, old: Manifest) -> str | None:
    """A predictor takes another's Deployment over by its name, which makes sense for another model only."""
    same = new.get("model", {}).get("storageUri") == old.get("model", {}).get("storageUri")
    if new.get("name", "") != old.get("name", "") and same:
        return "predictor.name change requires a model change (e.g. storageUri)"
    return None


def problem(isvc: Manifest, standard: bool) -> str | None:
    canaries, stable = isvc["spec"].get("canary") or [], isvc["spec"]["predictor"]
    if not canaries:
        return None
    if not standard:
        return "canary is only supported in Standard deployment mode"
    if "model" not in stable:
        return "canary requires a stable predictor with a model (multi-model serving is not supported with canary)"
    names: set[str] = set()
    for number, canary in enumerate(canaries):
        predictor = canary.get("predictor") or {}
        name, percent = predictor.get("name", ""), canary.get("trafficPercent", 0)
        if not name:
            return f"canary[{number}] predictor.name is required"
        if name in names:
            return f'canary predictor.name "{name}" is duplicated'
        if name == stable.get("name", ""):
            return f'canary predictor.name "{name}" conflicts with stable predictor name'
        if not 0 <= percent <= 100:
            return f'canary "{name}" trafficPercent must be between 0 and 100, got {percent}'
        if "model" not in predictor and "containers" not in predictor:
            return f'canary "{name}" predictor: exactly one of [model containers] must be specified in PredictorSpec'
        for field in _FIXED:
            if predictor.get(field):
                return f'canary "{name}" must not set {field} (canary uses fixed replicas)'
        least, allowed = predictor.get("minReplicas"), stable.get("minReplicas", 1)
        if least is not None and least > allowed:
            text = f"minReplicas ({least}) must not exceed stable predictor minReplicas ({allowed})"
            return f'canary "{name}" {text}'
        names.add(name)
    total = sum(canary.get("trafficPercent", 0) for canary in canaries)
    return f"sum of canary trafficPercent values ({total}) must be <= 100" if total > 100 else None
