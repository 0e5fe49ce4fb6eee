"""What the CRD of an InferenceService says about its fields: names and types.

`inferenceservice.schema.json` is cut from KServe v0.20.0's CRD (config/crd/full): the predictor with all of its
field names and types, the model below it in full; what lies deeper is open
(`x-kubernetes-preserve-unknown-fields`), so a typing error in a toleration is not found here.
"""

from __future__ import annotations

import copy
import json
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sandbox.interfaces import Manifest


@cache
def inference_service(kserve: str = "0.21") -> Manifest:
    """The schema of that release; before 0.20 there was neither `spec.canary` nor a predictor's name."""
    text = Path(__file__).with_name("inferenceservice.schema.json").read_text()
    schema: Manifest = json.loads(text)
    if kserve in ("0.18", "0.19"):
        spec = copy.deepcopy(schema["properties"]["spec"]["properties"])
        del spec["canary"], spec["predictor"]["properties"]["name"]
        schema["properties"]["spec"]["properties"] = spec
    return schema


@dataclass
class Findings:
    unknown: list[str] = field(default_factory=list)  # paths: spec.predictor.canaryTraficPercent
    problems: list[tuple[str, str]] = field(default_factory=list)  # (path, what is wrong)


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


_BOUNDS: tuple[tuple[str, str, Callable[[Any, Any], bool]], ...] = (
    ("minimum", "greater than or equal to", operator.lt),
    ("maximum", "less than or equal to", operator.gt),
)


def prune(obj: Manifest, schema: Manifest) -> tuple[Manifest, Findings]:
    """The object without the fields that the schema does not know, and what was found wrong on the way."""
    findings = Findings()
    pruned: Manifest = _prune(obj, schema, "", findings)
    return pruned, findings


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return next(name for name, types in _TYPES.items() if value is None or isinstance(value, types))


def _fits(value: Any, schema: Manifest) -> bool:
    if schema.get("x-kubernetes-int-or-string"):
        return isinstance(value, (int, str)) and not isinstance(value, bool)
    wanted = schema.get("type")
    if wanted is None:
        return True
    if isinstance(value, bool):
        return bool(wanted == "boolean")
    return isinstance(value, _TYPES[wanted])


def _prune(value: Any, schema: Manifest, path: str, findings: Findings) -> Any:
    if not _fits(value, schema):
        wanted = schema.get("type", "integer or string")
        shown = json.dumps(_type_name(value))
        findings.problems.append((path, f"Invalid value: {shown}: {path} in body must be of type {wanted}: {shown}"))
        return value
    for bound, words, is_beyond in _BOUNDS:
        if bound in schema and is_beyond(value, schema[bound]):
            text = f"{path} in body should be {words} {schema[bound]}"
            findings.problems.append((path, f"Invalid value: {json.dumps(value)}: {text}"))
    if isinstance(value, list):
        items = schema.get("items", {})
        return [_prune(item, items, f"{path}[{n}]", findings) for n, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    open_ = schema.get("x-kubernetes-preserve-unknown-fields") or not ("properties" in schema or others)
    result: Manifest = {}
    for name, item in value.items():
        below = f"{path}.{name}" if path else name
        if item is None:
            continue  # the API server drops nulls where the schema does not allow them
        if name in known:
            result[name] = _prune(item, known[name], below, findings)
        elif isinstance(others, dict):
            result[name] = _prune(item, others, below, findings)
        elif open_:
            result[name] = item
        else:
            findings.unknown.append(below)
    for name in schema.get("required", ()):
        if name not in result:
            findings.problems.append((f"{path}.{name}" if path else name, "Required value"))
    return result
