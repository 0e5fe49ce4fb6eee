"""Limits from a service's own past: for each metric the smallest one that good canaries can be shown to keep in time.

The plan's own lines answer (plan.py): releases are drawn by stable's rate and bursts and judged by the limit in
question. What the limit would have said of the past itself is calibrate.py's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from . import clusters
from .calibrate import calibrate
from .foretold import MetricPlan, Plan
from .past import Past
from .plan import limit_of, plan
from .policy import Policy, RateLimit
from .sentences import bound, duration, number, share
from .window import Side, Window

# Numbers that a person would write, from 0.1 % up to a half.
LADDER = [round(a * 10**b, 6) for b in (-3, -2, -1) for a in (1, 1.5, 2, 3, 5, 7.5) if a * 10**b <= 0.5]
# Good canaries that are to be promoted by the deadline, at least.
IN_TIME = 0.95
# A limit is so many times above what stable may be at, at the least.
_ABOVE = 2.0
# What lasts at so many times the mean of the past is an incident, and says nothing of how stable usually is.
_INCIDENT = 3.0
# Releases of stable against itself.
_SPLITS = 200


@dataclass(frozen=True)
class Proposal:
    """One metric's. `to` is the limit, None where none up to a half would do; `changes` are the policy's fields with
    their values. `before` and `after` are what a release needs with the limit as it is, and as it would be, by this
    metric alone. `false_rollbacks`: the share of releases of stable against itself, on its own past, that the new limit
    would have rolled back."""

    metric: str
    now: float
    to: float | None
    changes: tuple[tuple[str, float], ...]
    before: Plan
    after: Plan | None
    false_rollbacks: float
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        told = asdict(self) | {"changes": dict(self.changes)}
        return told | {"before": self.before.to_dict(), "after": self.after.to_dict() if self.after else None}


def propose(policy: Policy, past: Past, **traffic: Any) -> tuple[Proposal, ...]:
    """A proposal for each metric that decides and that the past counts. `traffic` is as in `plan`.

    It does not depend on the limits that the policy has: proposed again, once they are written, it says the same.
    """
    found = []
    for i, metric in enumerate(policy.metrics):
        counted = [side for side in past.windows if side.requests and side.bad.get(metric.name) is not None]
        if not metric.observe and counted:
            found.append(_for_one(policy, i, past, traffic))
    return tuple(found)


def _for_one(policy: Policy, i: int, past: Past, traffic: dict[str, Any]) -> Proposal:
    metric = policy.metrics[i]

    def alone(limit: float | None) -> Policy:
        only = metric if limit is None else RateLimit(**{**vars(metric), **dict(fields(metric, limit))})
        return replace(policy, metrics=(only,), values=(), steps=policy.steps * len(policy.deciding))

    def planned(limit: float | None) -> Plan:
        return plan(alone(limit), past=past, **traffic)

    mean = planned(LADDER[-1]).metrics[0].stable_rate
    usual = planned(min(max(_INCIDENT * mean, LADDER[0]), LADDER[-1])).metrics[0]
    least = _ABOVE * _at_most(metric.name, past, usual)
    rungs = [limit for limit in LADDER if limit >= least] if fields(metric, LADDER[0]) else []
    low, high, best = 0, len(rungs), None
    while low < high:
        middle = (low + high) // 2
        tried = planned(rungs[middle])
        if tried.in_time >= IN_TIME:
            high, best = middle, tried
        else:
            low = middle + 1
    to = rungs[low] if low < len(rungs) else None
    before = planned(None)
    now = limit_of(metric, usual.stable_rate)
    changes = () if to is None else fields(metric, to)
    wolf = 0.0 if to is None else _wolf(alone(to), metric.name, past)
    said = _sentence(metric, now, to, changes, before, best, usual, wolf)
    return Proposal(metric.name, float(f"{now:.4g}"), to, changes, before, best, wolf, said)


def fields(metric: RateLimit, limit: float) -> tuple[tuple[str, float], ...]:
    """The fields that a metric has, with the values by which its limit is this one beside a stable that keeps it."""
    found = []
    if metric.max_rate is not None:
        found.append(("max_rate", limit))
    if metric.max_ratio is not None and metric.floor:
        found.append(("floor", float(f"{limit / metric.max_ratio:.2g}")))
    return tuple(found)


def _at_most(name: str, past: Past, usual: MetricPlan) -> float:
    """What stable's own share may be, from its usual rate over the requests that were counted."""
    requests = sum(side.requests or 0 for side in past.windows if side.bad.get(name) is not None)
    n, burst = np.array(float(requests)), np.array(usual.burst)
    return max(usual.stable_rate, min(float(clusters.upper(np.array(usual.stable_rate * requests), n, burst)), 0.25))


def _wolf(policy: Policy, name: str, past: Past) -> float:
    """Stable against itself, split by chance, on the windows as they were."""
    sides = [Side(side.requests, {name: side.bad.get(name)}) for side in past.windows]
    windows = [Window(canary=Side(0, {name: 0}), stable=side) for side in sides]
    return calibrate(replace(policy, shares=(), ramp=None, traffic=None), windows, releases=_SPLITS).false_rollbacks


def _sentence(
    metric: RateLimit,
    now: float,
    to: float | None,
    changes: Sequence[tuple[str, float]],
    before: Plan,
    after: Plan | None,
    usual: MetricPlan,
    wolf: float,
) -> str:
    stands = f"{metric.name}: stable is at {share(usual.stable_rate)}, in bursts of {usual.burst:.2g}"
    if not fields(metric, LADDER[0]):
        return f"{stands}; the limit beside stable has no floor, so there is nothing to write"
    if to is None or after is None:
        return f"{stands}; no limit up to {bound(LADDER[-1])} lets {share(IN_TIME)} of good canaries end in time"
    same = math.isclose(now, to, rel_tol=0.02)
    written = ", ".join(f"{name} {number(value)}" for name, value in changes)
    what = f"{bound(to)} ({written}), as it is" if same else f"{bound(to)} ({written}) instead of {bound(now)}"
    needs = _needs(after) if same else f"{_needs(after)} instead of {_needs(before)}"
    (one,) = after.metrics
    worse = share(min(1.0, one.smallest or one.worse * one.limit))
    finds = f"found in {duration(one.minutes_found)}" if one.minutes_found else "found by the deadline"
    return (
        f"{stands}; the limit {what}: a good canary needs {needs}, one at {worse} is {finds}; of {_SPLITS} releases of "
        f"stable against itself {share(wolf) if wolf else 'none'} would have been rolled back"
    )


def _needs(plan_: Plan) -> str:
    return "for ever" if plan_.minutes_needed is None else duration(plan_.minutes_needed)
