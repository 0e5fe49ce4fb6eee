"""The recordings of the real controllers (tests/data/real), as the objects that a reader would have had in turn."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_release.cluster.inference_service import InferenceService
from model_release.cluster.standard.view import StandardService

REAL = Path(__file__).parents[1] / "data" / "real"
NAMES = sorted(path.name.removesuffix(".json.gz") for path in REAL.glob("*.json.gz"))


@dataclass
class Gateway:
    """What users get: the split of the last Ingress that was acted on, or of the HTTPRoutes."""

    split: dict[str, int] | None = None
    routes: dict[str, dict[str, Any]] = field(default_factory=dict)
    _parts: dict[str, dict[str, int] | None] = field(default_factory=dict)

    def hear(self, event: dict[str, Any]) -> bool:
        """Whether it is the gateway's."""
        if event.get("kind") not in ("Ingress", "HTTPRoute"):
            return False
        name, given = event["object"]["metadata"]["name"], event["object"]
        if event["type"] == "DELETED":
            self._parts.pop(name, None)
            self.routes.pop(name, None)
        elif event["kind"] == "Ingress":
            self._parts[name] = _of_ingress(given)
        else:
            self.routes[name] = given
            self._parts[name] = _of_route(given)
        told = list(self._parts.values())
        self.split = told[0] if told and all(one == told[0] for one in told) else None
        return True


@dataclass(frozen=True)
class Moment:
    """One object of the service as a watch told it, with the truth beside it at that time.

    `acted`: the split that users get; None while the gateway has an older one than it was told, or none.
    """

    t: float
    live: InferenceService | None
    acted: dict[str, int] | None
    ready: dict[str, bool]  # each Revision's, or each canary Deployment's


def events(name: str) -> list[dict[str, Any]]:
    given: dict[str, Any] = json.loads(gzip.decompress((REAL / f"{name}.json.gz").read_bytes()))
    assert given["scenario"] == name, f"{name}.json.gz is the recording of {given['scenario']}"
    return list(given["events"])


def moments(name: str) -> Iterator[Moment]:
    """One for each object of the service and, in Standard mode, of its routes, which a reader reads with it."""
    gateway, raw, ready = Gateway(), dict[str, Any](), dict[str, bool]()
    for event in events(name):
        if "kind" not in event:
            continue
        kind, given = event["kind"], event["object"]
        of_gateway = gateway.hear(event)
        if kind == "Revision":
            told = (given.get("status") or {}).get("conditions") or []
            alive = event["type"] != "DELETED"
            ready[given["metadata"]["name"]] = alive and any(
                one["type"] == "Ready" and one["status"] == "True" for one in told
            )
        elif kind == "InferenceService":
            raw = {} if event["type"] == "DELETED" else _whole(given)
        if kind == "InferenceService" or (of_gateway and name.startswith("standard-") and raw):
            acted = {revision: share for revision, share in (gateway.split or {}).items() if share} or None
            yield Moment(event["t"], _seen(raw, gateway) if raw else None, acted, dict(ready))


def _whole(given: dict[str, Any]) -> dict[str, Any]:
    metadata = {"resourceVersion": "1", **given["metadata"]}
    return {**given, "metadata": {**metadata, "labels": {"app.kubernetes.io/managed-by": "model-release"}}}


def _seen(raw: dict[str, Any], gateway: Gateway) -> InferenceService:
    live = InferenceService(raw)
    if live.deployment_mode != "Standard":
        return live
    return StandardService(raw, tuple(gateway.routes.values()))


def _of_ingress(given: dict[str, Any]) -> dict[str, int] | None:
    status = given.get("status") or {}
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions") or [])
    if not ready or status.get("observedGeneration") != given["metadata"]["generation"]:
        return None
    shares: dict[str, int] = {}
    for split in given["rules"][0]["splits"]:
        shares[split["serviceName"]] = shares.get(split["serviceName"], 0) + split["percent"]
    return shares


def _of_route(given: dict[str, Any]) -> dict[str, int] | None:
    parents = (given.get("status") or {}).get("parents") or []
    generation = given["metadata"]["generation"]
    observed = [one.get("observedGeneration") for parent in parents for one in parent["conditions"]]
    if not observed or any(one != generation for one in observed):
        return None
    refs = given["spec"]["rules"][0]["backendRefs"]
    total = sum(ref.get("weight", 1) for ref in refs)
    return {ref["name"]: round(100 * ref.get("weight", 1) / total) for ref in refs} if total else None
