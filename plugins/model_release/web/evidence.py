"""The evidence of a release as it grew: every look, judged again from the recorded counts."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from model_release.web import words
from model_release.web.course import course, progress, seconds, share

if TYPE_CHECKING:
    from model_release.judging.record import Record
    from model_release.judging.replay import Look, Replays
    from model_release.judging.verdict import LabelShare, MetricVerdict, SliceVerdict, Verdict

Json = dict[str, Any]

# How many looks are kept, which a page asks for again and again: two days of 10 s and two metrics, 60 MB.
_LOOKS_KEPT = 20_000

__all__ = ["evidence", "is_bake", "progress", "seconds"]


def evidence(record: Record) -> Json:
    """Steps, looks, the course of the evidence, and how each metric stands after the last look.

    Evidence is told as parts of the way to the threshold, logarithm by logarithm: 0 is "nothing is known", 1 is
    "enough", on whatever scale a metric's own evidence runs.

    Raises:
        RecordError, EvidenceError, PolicyError: the record's counts cannot be judged; each is a ValueError.
    """
    looks = record.replay(kept=_replays())
    counted = {(step["percent"], step["opened"]): step for step in record.steps}
    rows = [_row(look, counted[look.percent, look.opened]) for look in looks]
    last = looks[-1].verdict if looks else None
    by = _labels_of_slices(counted[looks[-1].percent, looks[-1].opened]) if looks else {}
    return {
        "steps": [_step(step) for step in record.steps],
        "looks": rows,
        "course": course(looks, counted),
        "metrics": [_meter(metric, by.get(metric.name)) for metric in last.metrics] if last else [],
        "values": [_value(asdict(value)) for value in last.values] if last else [],
        "reason": words.passed(last.reason) if last else "",
        "decision": words.decision(last.decision) if last else None,
        "still": _still(last),
    }


@cache
def _replays() -> Replays:
    from model_release.judging.replay import Replays

    return Replays(looks=_LOOKS_KEPT)


def is_bake(step: Json) -> bool:
    """Whether the step watched the promoted revision alone: only there no share of the traffic is judged."""
    return step["percent"] == 100 and (step.get("policy") or {}).get("traffic") is None


def _step(step: Json) -> Json:
    verdict = step.get("verdict") or {}
    return {
        "percent": step["percent"],
        "bake": is_bake(step),
        "opened": step["opened"],
        "window_seconds": step.get("window_seconds"),
        "windows": len(step.get("windows") or []),
        "decision": words.decision(verdict.get("decision")),
        "reason": words.passed(verdict.get("reason")),
    }


def _row(look: Look, step: Json) -> Json:
    window = step["windows"][look.window - 1] if look.window else {}
    return {
        "time": look.end,
        "percent": look.percent,
        "bake": is_bake(step),
        "window": look.window,
        "canary": _side(window.get("canary")),
        "stable": _side(window.get("stable")),
        "error": window.get("error"),
        "decision": words.decision(look.verdict.decision),
        "reason": words.passed(look.verdict.reason),
    }


def _side(side: Json | None) -> Json | None:
    """None: there was no such side. Requests None: nobody knows."""
    if side is None:
        return None
    return {"requests": side.get("requests"), "bad": dict(side.get("bad") or {})}


def _labels_of_slices(step: Json) -> dict[str, str]:
    """{metric: the label whose values are its slices}."""
    metrics = (step.get("policy") or {}).get("metrics") or ()
    return {one["name"]: one["slices"]["by"] for one in metrics if one.get("slices")}


def _meter(metric: MetricVerdict, by: str | None) -> Json:
    return {
        "name": metric.name,
        "state": words.metric(metric.state),
        "observe": metric.observe,
        "limit": metric.limit,
        "reason": metric.reason,
        "against": metric.evidence_against,
        "needed_against": metric.needed_against,
        "against_progress": progress(metric.evidence_against, metric.needed_against),
        "for": metric.evidence_for,
        "needed_for": metric.needed_for,
        "for_progress": progress(metric.evidence_for, metric.needed_for),
        "canary": _total(metric.canary),
        "stable": _total(metric.stable),
        "lower": metric.lower,
        "upper": metric.upper,
        "set_aside": metric.set_aside,
        "requests_needed": metric.requests_needed,
        "design_effect": metric.design_effect,
        "labels": [_label(one, metric) for one in metric.labels],
        "by": by,
        "slices": [_slice(one) for one in metric.slices],
    }


def _label(one: LabelShare, metric: MetricVerdict) -> Json:
    sides = {"canary": (one.canary, metric.canary), "stable": (one.stable, metric.stable)}
    return {"label": one.label, **{role: share(given, side["requests"]) for role, (given, side) in sides.items()}}


def _slice(one: SliceVerdict) -> Json:
    return {
        "slice": one.slice,
        "state": words.SLICES[one.state],
        "canary": _total(one.canary),
        "stable": _total(one.stable),
        "against": one.evidence_against,
    }


def _total(side: Json) -> Json:
    return {**side, "share": share(side["bad"], side["requests"])}


def _value(value: Json) -> Json:
    return value | {
        "state": words.metric(value["state"]),
        **{role: value[role] if _finite(value[role]) else None for role in ("canary", "stable")},
    }


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _still(verdict: Verdict | None) -> Json | None:
    """How much more would decide, if things go on as so far."""
    if verdict is None or verdict.decision not in ("continue", "inconclusive"):
        return None
    return {"requests": verdict.requests_needed, "minutes": verdict.minutes_needed}
