"""Label and field selectors, as in `kubectl -l` and `--field-selector`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sandbox.interfaces import Manifest
from sandbox.kube.errors import bad_request

Matches = Callable[[Manifest], bool]

_PART = re.compile(r",(?![^(]*\))")
_EQUALITY = re.compile(r"^([^\s!=,()]+)\s*(==|=|!=)\s*([^\s=!,()]*)$")
_SET = re.compile(r"^([^\s!=,()]+)\s+(in|notin)\s+\(([^()]*)\)$")
_EXISTS = re.compile(r"^(!?)\s*([^\s!=,()]+)$")


def _label_requirement(part: str) -> Callable[[dict[str, str]], bool]:
    if m := _EQUALITY.match(part):
        key, sign, value = m.groups()
        return lambda labels: (labels.get(key) == value) == (sign != "!=")
    if m := _SET.match(part):
        key, sign, listed = m.groups()
        values = {v.strip() for v in listed.split(",")}
        return lambda labels: (labels.get(key) in values) == (sign == "in")
    if m := _EXISTS.match(part):
        absent, key = m.groups()
        return lambda labels: (key in labels) != bool(absent)
    raise bad_request(f"unable to parse requirement: {part!r} is not of the form key=value, key in (…), key")


def labels(text: str | None) -> Matches:
    """`a=b,c!=d,e in (f,g),!h` → a test on an object's labels; empty text matches everything."""
    requirements = [_label_requirement(part.strip()) for part in _PART.split(text or "") if part.strip()]
    return lambda obj: all(r(obj["metadata"].get("labels") or {}) for r in requirements)


def _field(obj: Manifest, path: str) -> str:
    value: Any = obj
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def fields(text: str | None) -> Matches:
    """`metadata.name=x,involvedObject.uid!=y` → a test on an object's fields."""
    wanted: list[tuple[str, bool, str]] = []
    for part in filter(None, (text or "").split(",")):
        m = _EQUALITY.match(part.strip())
        if not m:
            raise bad_request(f"invalid field selector: {part!r} is not of the form field=value")
        wanted.append((m[1], m[2] != "!=", m[3]))
    return lambda obj: all((_field(obj, path) == value) == equal for path, equal, value in wanted)


def both(label_text: str | None, field_text: str | None) -> Matches:
    by_label, by_field = labels(label_text), fields(field_text)
    return lambda obj: by_label(obj) and by_field(obj)
