"""Condition lists as Knative and KServe keep them: sorted by type, with the time of the last change."""

from __future__ import annotations

from collections.abc import Iterable

from sandbox.interfaces import Manifest

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"


def condition(type_: str, status: str = UNKNOWN, reason: str = "", message: str = "") -> Manifest:
    """A condition without its time; reason and message belong to what is not True and are absent when empty."""
    said = {"reason": reason, "message": message} if status != TRUE else {}
    return {"type": type_, "status": status} | {k: v for k, v in said.items() if v}


def explained(type_: str, status: str, reason: str, message: str = "") -> Manifest:
    """A condition whose reason is told whatever its status, as Deployments and their readers do."""
    return {"type": type_, "status": status, "reason": reason} | ({"message": message} if message else {})


def info(cond: Manifest) -> Manifest:
    """The same condition as one that does not count towards Ready."""
    return {**cond, "severity": "Info"}


def renamed(cond: Manifest | None, type_: str) -> Manifest:
    """A condition of one object told on another; one that is not there yet is Unknown."""
    if cond is None:
        return condition(type_)
    kept: Manifest = {k: cond[k] for k in ("status", "reason", "message") if k in cond}
    return {"type": type_, **kept}


def aggregate(type_: str, parts: Iterable[Manifest]) -> Manifest:
    """The top condition: the first part that is False, else the first that is not True, else True."""
    parts = list(parts)
    for status in (FALSE, UNKNOWN):
        for part in parts:
            if part["status"] == status:
                return renamed(part, type_)
    return condition(type_, TRUE)


def find(status: Manifest, type_: str) -> Manifest | None:
    return next((c for c in status.get("conditions", []) if c["type"] == type_), None)


def state(status: Manifest, type_: str) -> str:
    """True, False or Unknown; a condition that is not there is Unknown."""
    found = find(status, type_)
    return str(found["status"]) if found else UNKNOWN


def listed(conditions: Iterable[Manifest], before: Manifest, now: str) -> list[Manifest]:
    """The list to store: a condition that did not change since the status `before` keeps its time."""
    result = []
    for cond in sorted(conditions, key=lambda c: str(c["type"])):
        old = find(before, cond["type"]) or {}
        same = {k: v for k, v in old.items() if k != "lastTransitionTime"} == cond
        result.append({**cond, "lastTransitionTime": old["lastTransitionTime"] if same else now})
    return result
