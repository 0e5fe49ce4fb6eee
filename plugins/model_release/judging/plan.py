"""Before a release starts: how long a good canary needs at this traffic, what is found, and what would make it faster.

The plan asks the judge itself: whole releases are drawn with a fixed seed, by stable's own rates and bursts where its
past is known, and judged (whole.py). What four of five of them need is told.
"""

from __future__ import annotations

import math

import numpy as np

from . import terms
from .evidence import Evidence
from .foretold import MetricPlan, Plan, why_never
from .past import Past
from .planned import ENOUGH, Planned
from .policy import Policy, PolicyError, RateLimit
from .state import Floats
from .verdict import CONTINUE, PROMOTE, ROLL_BACK
from .ways import ways
from .whole import Traffic, releases, shares_of

# A deadline that is chosen, in minutes: so many releases of good canaries have been decided by then; the least one; and
# how far is looked for it, the last of which is the longest one.
_DECIDED = 0.99
_SHORTEST = 10.0
_HORIZONS = (60.0, 360.0, 1440.0)
# Part of its limit at which a metric is taken to be on stable where nobody knows.
ASSUMED = 0.2


def plan(
    policy: Policy,
    *,
    requests_per_second: float,
    deadline_minutes: float,
    window_seconds: float,
    past: Past | None = None,
) -> Plan:
    """What a release by this policy needs and finds. `requests_per_second` is the whole service's traffic.

    The canary gets the policy's `shares`, what its `ramp` gives it, or `traffic` where there is neither. A metric that
    the past does not count is taken to be at a fifth of its limit, its bad requests one by one. Raises PolicyError for
    figures that cannot be. The same input gives the same plan.
    """
    for name, value in (("deadline_minutes", deadline_minutes), ("window_seconds", window_seconds)):
        if not (math.isfinite(value) and value > 0):
            raise PolicyError(f"{name}: {value!r} is not a time above 0")
    if not (math.isfinite(requests_per_second) and requests_per_second >= 0):
        raise PolicyError(f"requests_per_second: {requests_per_second!r} is not a rate of 0 or more")
    rates, bursts, known = stable_of(policy, past)
    counts = None if not past else past.counts(policy)
    planned = Planned(
        policy,
        Traffic(requests_per_second * window_seconds, rates, bursts, counts),
        max(1, int(deadline_minutes * 60 / window_seconds)),
        window_seconds / 60,
    )
    return _plan(planned, requests_per_second, deadline_minutes, known)


def chosen_deadline(
    policy: Policy, *, requests_per_second: float, window_seconds: float, past: Past | None = None
) -> float:
    """The minutes after which 99 % of the releases of a canary as good as stable have come to a decision, from 10
    minutes to a day. Parameters and errors as in `plan`; the same input gives the same deadline."""
    rates, bursts, _ = stable_of(policy, past)
    traffic = Traffic(requests_per_second * window_seconds, rates, bursts, None if not past else past.counts(policy))
    for horizon in _HORIZONS if traffic.per_window else ():
        ended = releases(policy, traffic, rates, max(1, int(horizon * 60 / window_seconds)))
        over = np.sort(ended.windows[ended.codes != CONTINUE])
        needed = math.ceil(_DECIDED * len(ended.codes))
        if needed <= len(over):
            minutes = float(over[needed - 1]) * window_seconds / 60
            return float(math.ceil(min(max(minutes, _SHORTEST), _HORIZONS[-1])))
    return _HORIZONS[-1]


def _plan(planned: Planned, per_second: float, deadline_minutes: float, known: list[bool]) -> Plan:
    policy, shares = planned.policy, shares_of(planned.policy)
    limits = [limit_of(m, float(p)) for m, p in zip(policy.metrics, planned.traffic.rates, strict=True)]
    deciding = [i for i, m in enumerate(policy.metrics) if not m.observe]
    never = why_never(policy, planned.traffic, limits, shares)
    failing = [i for i in deciding if limits[i] <= planned.traffic.rates[i]]
    in_time, needed, slowest = 0.0, None, (failing or deciding)[0]
    if not never:
        ended = planned.good(planned.deadline, final=True)
        in_time = float((ended.codes == PROMOTE).mean())
        needed = planned.needed(policy, ended)
        slowest = max(deciding, key=lambda i: float(ended.waited[i]))
        if needed is None:
            never = f"no number of requests shows that {policy.metrics[slowest].name} keep their limit"
    return Plan(
        requests_per_second=float(f"{per_second:.3g}"),
        shares=shares,
        ramp=policy.ramp is not None,
        window_seconds=60 * planned.minutes,
        deadline_minutes=deadline_minutes,
        minutes_needed=_rounded(needed, planned.minutes),
        in_time=in_time,
        slowest=policy.metrics[slowest].name,
        never=never,
        metrics=tuple(_metric(planned, i, limits[i], known=known[i]) for i in deciding),
        ways=ways(planned, slowest, limits[slowest], needed) if planned.traffic.per_window else (),
    )


def _metric(planned: Planned, i: int, limit: float, *, known: bool) -> MetricPlan:
    worse = max(2.0, planned.policy.indifference)
    ended = planned.bad(i, worse * limit)
    found = ended.by(ROLL_BACK, ENOUGH)
    return MetricPlan(
        name=planned.policy.metrics[i].name,
        stable_rate=float(f"{planned.traffic.rates[i]:.3g}"),
        burst=float(f"{planned.traffic.bursts[i]:.2g}"),
        known=known,
        limit=float(f"{limit:.4g}"),
        worse=worse,
        minutes_found=_rounded(found, planned.minutes),
        found_in_time=float((ended.codes == ROLL_BACK).mean()),
        smallest=None if found is not None else planned.smallest(i, worse * limit),
    )


def stable_of(policy: Policy, past: Past | None) -> tuple[Floats, Floats, list[bool]]:
    """Stable's rate and mean burst by metric, and whether they were counted. Windows of an incident do not count, where
    most were none."""
    rates = np.array([ASSUMED * min(_written(m), default=0.05) for m in policy.metrics])
    bursts, known = np.ones(len(rates)), [False] * len(rates)
    if past is None or not past.windows:
        return rates, bursts, known
    usual = Evidence(policy, past.counts(policy)).usual
    for i in range(len(rates)):
        if not usual.requests[i]:
            continue
        calm = usual.windows[i] >= len(past.windows) / 2
        rates[i] = usual.rate[i] if calm else usual.bad[i] / usual.requests[i]
        design = float(terms.shrunk(usual.dispersion[i], usual.worth[i]))
        bursts[i], known[i] = (max(design, 1.0) + 1) / 2, True
    return rates, bursts, known


def _written(metric: RateLimit) -> list[float]:
    """The limits that a metric has whatever stable does."""
    beside = (metric.max_ratio or 0.0) * metric.floor
    return [limit for limit in (metric.max_rate, beside) if limit]


def limit_of(metric: RateLimit, stable: float) -> float:
    """The share that a canary may not exceed beside a stable at that rate."""
    limits = [1.0]
    if metric.max_rate is not None:
        limits.append(metric.max_rate)
    if metric.max_ratio is not None:
        limits.append(metric.max_ratio * max(stable, metric.floor))
    return min(limits)


def _rounded(windows: float | None, minutes: float) -> float | None:
    return None if windows is None else float(f"{windows * minutes:.3g}")
