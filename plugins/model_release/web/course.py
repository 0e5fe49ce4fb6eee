"""The course of a release for its charts: what was known of each metric after each look, over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_release.judging.replay import Look
    from model_release.judging.verdict import MetricVerdict

Json = dict[str, Any]
Line = list[float | None]

# What is told of each metric, a number for each look: the shares so far and the canary's interval, its share in the
# window alone, its limit as it stands beside this stable and the one up to which it is promoted, and both evidences as
# parts of the way.
LINES = ("canary", "stable", "lower", "upper", "window", "limit", "beyond", "for", "against")


def course(looks: Sequence[Look], steps: Mapping[tuple[int, str], Json]) -> Json:
    """One point for each look, and an empty one before a step whose evidence begins anew.

    `against` and `for` are those that decide: the strongest metric's and the weakest's, as in the judge's rules.
    `percent` is the share that was asked for. Of each metric `LINES`, and `aside`: whether the window was set aside,
    since stable itself was failing.
    """
    names = dict.fromkeys(metric.name for look in looks for metric in look.verdict.metrics)
    times: list[float] = []
    against: Line = []
    favour: Line = []
    percent: Line = []
    metrics: dict[str, Json] = {name: {line: [] for line in LINES} | {"aside": []} for name in names}
    before: Look | None = None
    for look in looks:
        moment = seconds(look.end)
        if moment is None:
            continue
        step = steps[look.percent, look.opened]
        anew = before is not None and (before.percent, before.opened) != (look.percent, look.opened)
        if anew and not step.get("carried"):
            opened = seconds(look.opened) or 0.0
            times.append(opened if times[-1] < opened < moment else (times[-1] + moment) / 2)
            percent.append(percent[-1])
            for line in (against, favour, *(metrics[name][line] for name in names for line in LINES)):
                line.append(None)
            for name in names:
                metrics[name]["aside"].append(False)
            before = None
        deciding = [metric for metric in look.verdict.metrics if not metric.observe]
        times.append(moment)
        percent.append(look.percent)
        against.append(max(_known(progress(m.evidence_against, m.needed_against) for m in deciding), default=None))
        favour.append(min(_known(progress(m.evidence_for, m.needed_for) for m in deciding), default=None))
        had = {} if before is None else {metric.name: metric.set_aside for metric in before.verdict.metrics}
        now = {metric.name: metric for metric in look.verdict.metrics}
        for name in names:
            metric = now.get(name)
            told = _told(metric, step, look.window) if metric is not None else dict.fromkeys(LINES)
            for line in LINES:
                metrics[name][line].append(told[line])
            metrics[name]["aside"].append(metric is not None and metric.set_aside > had.get(name, 0))
        before = look
    return {"times": times, "against": against, "for": favour, "percent": percent, "metrics": metrics}


def progress(evidence_now: float | None, needed: float) -> float | None:
    """The part of the way from 1 (no evidence) to `needed`, in logarithms; None where there is no evidence at all."""
    if evidence_now is None or needed <= 1:
        return None
    return math.log(max(evidence_now, 1e-12)) / math.log(needed)


def share(bad: int | None, requests: int | None) -> float | None:
    """No request is no share: a gap in the line, not a zero."""
    return bad / requests if bad is not None and requests else None


def seconds(time: str | None) -> float | None:
    """ISO 8601 as seconds since the epoch; None for what is no time."""
    try:
        moment = datetime.fromisoformat(str(time))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _told(metric: MetricVerdict, step: Json, window: int) -> dict[str, float | None]:
    """`LINES` of one metric after one look. An interval of no request says nothing. Of labels the interval is that of
    the distance between the sides, and there is no share."""
    policy = step.get("policy") or {}
    side = (step["windows"][window - 1] if window else {}).get("canary") or {}
    stable = share(metric.stable["bad"], metric.stable["requests"])
    limit = _limit(next((one for one in policy.get("metrics") or () if one.get("name") == metric.name), {}), stable)
    seen, of = metric.canary["requests"] > 0, (side.get("totals") or {}).get(metric.name, side.get("requests"))
    return {
        "canary": None if metric.labels else share(metric.canary["bad"], metric.canary["requests"]),
        "stable": None if metric.labels else stable,
        "lower": metric.lower if seen else None,
        "upper": metric.upper if seen else None,
        "window": share((side.get("bad") or {}).get(metric.name), of),
        "limit": limit,
        "beyond": None if limit is None else min(1.0, limit * float(policy.get("indifference") or 1.0)),
        "for": progress(metric.evidence_for, metric.needed_for),
        "against": progress(metric.evidence_against, metric.needed_against),
    }


def _limit(metric: Json, stable: float | None) -> float | None:
    """The share that the canary may not exceed, beside a stable at that share; None where nothing says so."""
    limits = [float(metric[name]) for name in ("max_rate", "max_shift") if metric.get(name) is not None]
    if metric.get("max_ratio") is not None:
        limits.append(float(metric["max_ratio"]) * max(stable or 0.0, float(metric.get("floor") or 0.0)))
    return min((limit for limit in limits if limit), default=None)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
