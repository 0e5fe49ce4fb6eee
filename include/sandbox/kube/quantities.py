"""Kubernetes' quantities in their canonical form: what the API gives back is not what was written.

Pure functions, after k8s.io/apimachinery's resource.Quantity: the largest suffix that leaves a whole
number.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_FORM = re.compile(r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(|[numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)")
_DECIMAL = {
    s: Decimal(1000) ** n for n, s in zip(range(-3, 7), ("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), strict=True)
}
_BINARY = {s: Decimal(1024) ** n for n, s in enumerate(("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))}


def canonical(text: str) -> str:
    """`1000m` → `1`, `0.5` → `500m`, `1024Mi` → `1Gi`. What is no quantity stays as it is: the schema refuses it."""
    found = _FORM.fullmatch(text)
    if not found:
        return text
    number, suffix = Decimal(found[1]), found[2]
    if suffix[:1] in ("e", "E") and suffix not in _DECIMAL:
        return text
    scale = _BINARY if suffix in _BINARY and suffix else _DECIMAL
    value = number * scale[suffix]
    if scale is _BINARY and value != value.to_integral_value():
        scale = _DECIMAL
    if not value:
        return "0"
    for name, factor in sorted(scale.items(), key=lambda item: item[1], reverse=True):
        if value % factor == 0:
            return f"{int(value / factor)}{name}"
    return text


def make_canonical(predictor: dict[str, Any]) -> None:
    """The requests and limits of a predictor's model and containers, in place."""
    containers = predictor.get("containers")
    for container in (predictor.get("model"), *(containers if isinstance(containers, list) else ())):
        resources = container.get("resources") if isinstance(container, dict) else None
        for part in ("limits", "requests"):
            listed = resources.get(part) if isinstance(resources, dict) else None
            if isinstance(listed, dict):
                listed |= {k: canonical(v) if isinstance(v, str) else v for k, v in listed.items()}
