"""The entry of `spec.canary`: what has to be laid over the stable predictor to get another version.

KServe merges it over `spec.predictor` with mergo, which takes nothing away: a field that is absent or empty leaves
stable's as it is. What a canary cannot say is refused, for a promotion would change the pods that were judged.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

from model_release.cluster.inference_service import Template
from model_release.cluster.manifest import holds
from model_release.cluster.standard.view import SCALING, StandardService
from model_release.errors import ClusterRefused


def content(template: Template) -> Template:
    """What makes the predictor's pods: neither its name nor its size."""
    return {key: value for key, value in template.items() if key not in (*SCALING, "name")}


def canary_entry(live: StandardService, wanted: Template) -> dict[str, Any]:
    """The entry that makes `wanted` the canary beside what is stable now, at 0 %.

    Raises:
        ClusterRefused: it lacks a field that stable has, which a canary cannot take out.
    """
    stable = content(live.stable_template)
    if lost := sorted(_lost(stable, content(wanted))):
        raise ClusterRefused(
            f"{live.key} has {', '.join(lost)}, and the model file has it no more; in Standard mode a canary is laid "
            "over the stable predictor and takes nothing away: give the field a value, or take it out of the stable "
            "predictor by hand (kubectl edit), which restarts its pods"
        )
    over = _difference(stable, content(wanted))
    # The webhook wants a whole kind of predictor: its format and where it lies.
    whole = {key: wanted["model"][key] for key in ("modelFormat", "storageUri") if wanted["model"].get(key)}
    predictor = {**over, "model": {**whole, **over.get("model", {})}, "name": wanted["name"], "minReplicas": 1}
    return {"predictor": predictor, "trafficPercent": 0}


def at_percent(live: StandardService, entry: dict[str, Any], percent: int) -> dict[str, Any]:
    """The entry with another share, and with its part of the replicas.

    KServe takes a canary's replicas from stable's: it gets as many as its share needs, by KServe's own formula, and one
    at 0 %, where that would give none (components/predictor.go, canaryReplicaCount).
    """
    changed = copy.deepcopy(entry)
    least = int(live.stable_template.get("minReplicas") or 1)
    changed["predictor"]["minReplicas"] = max(1, math.ceil(least * percent / 100))
    changed["trafficPercent"] = percent
    return changed


def differences(live: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Paths of what `wanted` has and `live` has not (`manifest.holds`)."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        for key, value in wanted.items():
            yield from differences(live.get(key), value, f"{path}.{key}" if path else key)
    elif not holds(live, wanted, quantity=".requests." in path or ".limits." in path):
        yield path


def _difference(stable: Template, wanted: Template) -> Template:
    over: Template = {}
    for key, value in wanted.items():
        if holds(stable.get(key), value, quantity=key in ("requests", "limits")):
            continue
        below = stable.get(key)
        over[key] = (
            _difference(below, value) if isinstance(value, dict) and isinstance(below, dict) else copy.deepcopy(value)
        )
    return over


def _lost(stable: Any, wanted: Any, path: str = "spec.predictor") -> Iterator[str]:
    """Fields that stable has, and that `wanted` says must be absent or empty."""
    for key, value in wanted.items():
        if isinstance(value, dict) and value:
            yield from _lost(stable.get(key) if isinstance(stable.get(key), dict) else {}, value, f"{path}.{key}")
        elif not value and stable.get(key):
            yield f"{path}.{key}"
