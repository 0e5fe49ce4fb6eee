"""The evidence of a release as it grew: every look, judged again from the recorded counts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from model_release.web import words

if TYPE_CHECKING:
    from model_release.judging.record import Record
    from model_release.judging.replay import Look
    from model_release.judging.verdict import MetricVerdict, Verdict

Json = dict[str, Any]


def evidence(record: Record) -> Json:
    """Steps, looks, the course of the evidence, and how each metric stands after the last look.

    The course is told as parts of the way to the threshold, logarithm by logarithm: 0 is "nothing is known", 1 is
    "enough", on whatever scale a metric's own evidence runs. Against the canary the strongest metric counts, for it
    the weakest, as in the judge's rules.

    Raises:
        RecordError, EvidenceError, PolicyError: the record's counts cannot be judged; each is a ValueError.
    """
    looks = record.replay()
    counted = {(step["percent"], step["opened"]): step for step in record.steps}
    rows = [_row(look, counted[look.percent, look.opened]) for look in looks]
    last = looks[-1].verdict if looks else None
    return {
        "steps": [_step(step) for step in record.steps],
        "looks": rows,
        "course": _course(looks, rows, {key for key, step in counted.items() if step.get("carried")}),
        "metrics": [_meter(metric) for metric in last.metrics] if last else [],
        "values": [_value(asdict(value)) for value in last.values] if last else [],
        "reason": words.passed(last.reason) if last else "",
        "decision": words.decision(last.decision) if last else None,
        "still": _still(last),
    }


def progress(evidence_now: float | None, needed: float) -> float | None:
    """The part of the way from 1 (no evidence) to `needed`, in logarithms; None where there is no evidence at all."""
    if evidence_now is None or needed <= 1:
        return None
    return math.log(max(evidence_now, 1e-12)) / math.log(needed)


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


def _course(looks: list[Look], rows: list[Json], carried: set[tuple[int, str]]) -> Json:
    """One point for each look, and an empty one before a step whose evidence begins anew, as all steps' but those of
    `carried`."""
    names = dict.fromkeys(metric.name for look in looks for metric in look.verdict.metrics)
    times: list[float] = []
    against: list[float | None] = []
    favour: list[float | None] = []
    shares: dict[str, dict[str, list[float | None]]] = {name: {"canary": [], "stable": []} for name in names}
    step = None
    for look, row in zip(looks, rows, strict=True):
        moment = seconds(look.end)
        if moment is None:
            continue
        if step not in (None, (look.percent, look.opened)) and (look.percent, look.opened) not in carried:
            times.append((times[-1] + moment) / 2)
            for line in (against, favour, *(line for sides in shares.values() for line in sides.values())):
                line.append(None)
        step = look.percent, look.opened
        deciding = [metric for metric in look.verdict.metrics if not metric.observe]
        times.append(moment)
        against.append(max(_known(progress(m.evidence_against, m.needed_against) for m in deciding), default=None))
        favour.append(min(_known(progress(m.evidence_for, m.needed_for) for m in deciding), default=None))
        for role in ("canary", "stable"):
            side = row[role] or {"requests": None, "bad": {}}
            for name in names:
                shares[name][role].append(_share(side["bad"].get(name), side["requests"]))
    return {"times": times, "against": against, "for": favour, "shares": shares}


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _share(bad: int | None, requests: int | None) -> float | None:
    """No request is no share: a gap in the line, not a zero."""
    return bad / requests if bad is not None and requests else None


def _meter(metric: MetricVerdict) -> Json:
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
        "requests_needed": metric.requests_needed,
        "design_effect": metric.design_effect,
    }


def _total(side: Json) -> Json:
    return {**side, "share": _share(side["bad"], side["requests"])}


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


def seconds(time: str | None) -> float | None:
    """ISO 8601 as seconds since the epoch; None for what is no time."""
    try:
        moment = datetime.fromisoformat(str(time))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
