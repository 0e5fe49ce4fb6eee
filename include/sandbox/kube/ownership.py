"""Who set which field (`metadata.managedFields`), and server-side apply, which is built on it.

A field is named by a path as in Kubernetes' FieldsV1: `f:spec`, and `k:{"name":"A"}` for an item of a list that
is a map. All functions are pure.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sandbox.interfaces import Manifest
from sandbox.kube.errors import ApiError
from sandbox.kube.patches import merge_key

Path = tuple[str, ...]

_SYSTEM_METADATA = (
    "name", "namespace", "generateName", "uid", "resourceVersion", "generation", "creationTimestamp",
    "deletionTimestamp", "managedFields", "selfLink",
)  # fmt: skip
_UNOWNED: set[Path] = {("f:apiVersion",), ("f:kind",), *(("f:metadata", f"f:{n}") for n in _SYSTEM_METADATA)}


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Every field of an object that can have an owner, with its value."""
    if path in _UNOWNED:
        return {}
    found: dict[Path, Any] = {}
    if isinstance(value, dict) and value:
        for key, item in value.items():
            found |= leaves(item, (*path, f"f:{key}"))
    elif isinstance(value, list) and value and (key := merge_key(path[-1][2:], value)):
        for item in value:
            found |= leaves(item, (*path, _item_step(key, item)))
    elif path:
        found[path] = value
    return found


def _item_step(key: str, item: Manifest) -> str:
    return "k:" + json.dumps({key: item[key]}, separators=(",", ":"))


def to_fields_v1(paths: Iterable[Path]) -> Manifest:
    root: Manifest = {}
    for path in sorted(paths):
        node = root
        for step in path:
            node = node.setdefault(step, {})
    return root


def from_fields_v1(fields: Manifest, path: Path = ()) -> set[Path]:
    if not fields:
        return {path} if path else set()
    return {leaf for step, below in fields.items() for leaf in from_fields_v1(below, (*path, step))}


@dataclass(frozen=True)
class Writer:
    """Who writes, in the sense of managedFields."""

    manager: str
    operation: str = "Update"  # or Apply
    subresource: str | None = None
    api_version: str = ""

    def is_(self, entry: Manifest) -> bool:
        who = (entry["manager"], entry["operation"], entry.get("subresource"))
        return who == (self.manager, self.operation, self.subresource)

    def entry(self, paths: set[Path], now: str) -> Manifest:
        return {
            "manager": self.manager,
            "operation": self.operation,
            "apiVersion": self.api_version,
            "time": now,
            "fieldsType": "FieldsV1",
            "fieldsV1": to_fields_v1(paths),
        } | ({"subresource": self.subresource} if self.subresource else {})


def after_update(old: Manifest, new: Manifest, writer: Writer, now: str) -> list[Manifest]:
    """managedFields after an ordinary write: the writer owns what it changed, nobody owns what is gone."""
    before, after = leaves(old), leaves(new)
    changed = {path for path in after if path not in before or before[path] != after[path]}
    gone = set(before) - set(after)
    entries, mine = [], set(changed)
    for entry in old.get("metadata", {}).get("managedFields", []):
        owned = from_fields_v1(entry["fieldsV1"])
        if writer.is_(entry):
            mine |= owned - gone
        elif left := owned - changed - gone:
            entries.append({**entry, "fieldsV1": to_fields_v1(left)})
    return [*entries, writer.entry(mine, now)] if mine else entries


def apply(live: Manifest, applied: Manifest, writer: Writer, force: bool, now: str) -> Manifest:
    """Server-side apply of `applied` onto `live`; returns the new object with its managedFields.

    Fields that this manager applied before and now leaves out are removed, unless somebody else owns them too.
    Applying the same again changes nothing.

    Raises:
        ApiError: 409 naming manager and field, when another manager owns a field with another value and
            `force` is false.
    """
    applied = _without_nulls(applied)
    wanted, current = leaves(applied), leaves(live)
    kept: list[Manifest] = []
    mine: set[Path] = set()
    others: set[Path] = set()
    causes: list[Manifest] = []
    for entry in live["metadata"].get("managedFields", []):
        owned = from_fields_v1(entry["fieldsV1"])
        if writer.is_(entry):
            mine = owned
            continue
        disputed = {path for path in owned if path in wanted and current.get(path) != wanted[path]}
        causes += [_conflict_cause(entry, path) for path in sorted(disputed)]
        others |= owned - disputed
        if owned - disputed:
            kept.append({**entry, "fieldsV1": to_fields_v1(owned - disputed)})
    if causes and not force:
        listed = "; ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
        many = "conflict" if len(causes) == 1 else "conflicts"
        raise ApiError(409, "Conflict", f"Apply failed with {len(causes)} {many}: {listed}", causes)
    base = copy.deepcopy(live)
    for path in sorted(mine - set(wanted) - others, key=_is_item_key):
        _remove(base, path)
    new: Manifest = _overlay(base, applied)
    new["metadata"]["managedFields"] = [*kept, _unchanged_or_new(live, writer, set(wanted), now)]
    return new


def _unchanged_or_new(live: Manifest, writer: Writer, wanted: set[Path], now: str) -> Manifest:
    fresh = writer.entry(wanted, now)
    for entry in live["metadata"].get("managedFields", []):
        if writer.is_(entry) and entry["fieldsV1"] == fresh["fieldsV1"]:
            return dict(entry)
    return fresh


def _conflict_cause(entry: Manifest, path: Path) -> Manifest:
    steps = [f".{s[2:]}" if s.startswith("f:") else f"[{s[2:].strip('{}')}]" for s in path]
    message = f'conflict with "{entry["manager"]}" using {entry["apiVersion"]}'
    return {"reason": "FieldManagerConflict", "message": message, "field": "".join(steps)}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _overlay(target: Any, applied: Any, field: str = "") -> Any:
    if isinstance(applied, dict) and isinstance(target, dict):
        return target | {k: _overlay(target.get(k), v, k) for k, v in applied.items()}
    if isinstance(applied, list) and isinstance(target, list) and (key := merge_key(field, target, applied)):
        items = {item[key]: item for item in target}
        for item in applied:
            items[item[key]] = _overlay(items.get(item[key]), item)
        return list(items.values())
    return copy.deepcopy(applied)


def _is_item_key(path: Path) -> bool:
    """Whether a field is what an item of a list is found by: it has to be the last of the item to go."""
    *_, parent, last = ("", *path)
    return parent.startswith("k:") and last[2:] in json.loads(parent[2:])


def _remove(node: Any, path: Path) -> None:
    """Take a field out, and with it what it leaves empty."""
    step, rest = path[0], path[1:]
    if step.startswith("f:") and isinstance(node, dict) and step[2:] in node:
        name = step[2:]
        if rest:
            _remove(node[name], rest)
        if not rest or node[name] in ({}, []):
            del node[name]
    elif step.startswith("k:") and isinstance(node, list):
        wanted = json.loads(step[2:])
        for item in [i for i in node if isinstance(i, dict) and wanted.items() <= i.items()]:
            if rest:
                _remove(item, rest)
            if not rest or not item:
                node.remove(item)
