"""The Table form of objects, which is what `kubectl get` prints."""

from __future__ import annotations

from datetime import UTC, datetime

from sandbox.interfaces import Manifest
from sandbox.kube.resources import Kind

_NAME_HELP = "Name must be unique within a namespace."


def age(created: str) -> str:
    """`45s`, `3m10s`, `25m`, `4h5m`, `2d`: as kubectl shortens durations."""
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds())
    seconds = max(seconds, 0)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    return f"{hours}h" if hours < 48 else f"{days}d"


def table(kind: Kind, objects: list[Manifest], version: str, include: str = "Metadata") -> Manifest:
    """Rows for objects; `include` says how much of each object goes along (None, Metadata, Object)."""
    columns = [("Name", "string", "name"), *((c.name, c.type, "") for c in kind.columns), ("Age", "string", "")]
    definitions = [
        {"name": n, "type": t, "format": f, "description": _NAME_HELP if f else "", "priority": 0}
        for n, t, f in columns
    ]
    rows = []
    for obj in objects:
        meta = obj["metadata"]
        cells = [meta["name"], *(c.value(obj) for c in kind.columns), age(meta["creationTimestamp"])]
        row: Manifest = {"cells": cells}
        if include == "Object":
            row["object"] = obj
        elif include != "None":
            row["object"] = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta}
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version},
        "columnDefinitions": definitions,
        "rows": rows,
    }
