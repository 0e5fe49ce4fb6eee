"""Before a release starts: how long a good canary needs at this traffic, what is found, and what would make it faster.

The plan asks the judge itself: whole releases are drawn with a fixed seed, by stable's own rates and bursts where its
past is known, and judged (whole.py). What four of five of them need is told.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import foretold
from .evidence import CANARY_WEIGHT, Evidence
from .past import Past
from .policy import Metric, Policy, PolicyError
from .state import Floats
from .verdict import CONTINUE, PROMOTE, ROLL_BACK
from .ways import Way, ways
from .whole import Ended, Service, releases, shares_of

ENOUGH = 0.8  # four of five
# Releases are possible where at least so many good canaries are promoted by the deadline.
POSSIBLE = 0.5
# A deadline that is chosen, in minutes: so many releases of good canaries have been decided by then; the least one; and
# how far is looked for it, the last of which is the longest one.
_DECIDED = 0.99
_SHORTEST = 10.0
_HORIZONS = (60.0, 360.0, 1440.0)
# How far beyond the deadline is looked for the time that a good canary would need, in deadlines.
_BEYOND = (8, 64)
# Part of its limit at which a metric is taken to be on stable where nobody knows.
ASSUMED = 0.2


@dataclass(frozen=True)
class MetricPlan:
    """One metric that decides. `limit` is the share that the canary may not exceed beside this stable; `known` says
    whether `stable_rate` and `burst`, the mean length of its bursts, were counted or assumed. `worse` times the limit
    is found after `minutes_found`, four of five times; None where it is not within the deadline: `found_in_time` says
    how many are then, and `smallest` the share from which on four of five are, None where there is none."""

    name: str
    stable_rate: float
    burst: float
    known: bool
    limit: float
    worse: float
    minutes_found: float | None
    found_in_time: float
    smallest: float | None


@dataclass(frozen=True)
class Plan:
    """`minutes_needed`: after so long four of five canaries as good as stable are promoted, None if never; `in_time` is
    the part of them that is by the deadline, the look at it included. `ramp`: the last of `shares` is the most that it
    may have. `slowest` is the metric that keeps a good canary waiting."""

    requests_per_second: float
    shares: tuple[float, ...]
    ramp: bool
    window_seconds: float
    deadline_minutes: float
    minutes_needed: float | None
    in_time: float
    slowest: str
    never: str
    metrics: tuple[MetricPlan, ...]
    ways: tuple[Way, ...]

    @property
    def possible(self) -> bool:
        """Whether the deadline does not, more often than not, take back a canary as good as stable."""
        return self.in_time >= POSSIBLE

    @property
    def sentences(self) -> tuple[str, ...]:
        return foretold.sentences(self)

    @property
    def sentence(self) -> str:
        return " ".join(self.sentences)

    @property
    def refusal(self) -> str:
        """Why it cannot end in time and what would let it, in one line; nothing where it can."""
        return "" if self.possible else foretold.refusal(self)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "possible": self.possible, "sentences": list(self.sentences), "refusal": self.refusal}


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
    return _Planned(
        policy,
        Service(requests_per_second * window_seconds, rates, bursts, None if not past else past.counts(policy)),
        max(1, int(deadline_minutes * 60 / window_seconds)),
        window_seconds / 60,
    ).plan(requests_per_second, deadline_minutes, known)


def chosen_deadline(
    policy: Policy, *, requests_per_second: float, window_seconds: float, past: Past | None = None
) -> float:
    """The minutes after which 99 % of the releases of a canary as good as stable have come to a decision, from 10
    minutes to a day. Parameters and errors as in `plan`; the same input gives the same deadline."""
    rates, bursts, _ = stable_of(policy, past)
    service = Service(requests_per_second * window_seconds, rates, bursts, None if not past else past.counts(policy))
    for horizon in _HORIZONS if service.per_window else ():
        ended = releases(policy, service, rates, max(1, int(horizon * 60 / window_seconds)))
        over = np.sort(ended.windows[ended.codes != CONTINUE])
        needed = math.ceil(_DECIDED * len(ended.codes))
        if needed <= len(over):
            minutes = float(over[needed - 1]) * window_seconds / 60
            return float(math.ceil(min(max(minutes, _SHORTEST), _HORIZONS[-1])))
    return _HORIZONS[-1]


@dataclass
class _Planned:
    """A release to be planned: everything in windows. `minutes` are those of one."""

    policy: Policy
    service: Service
    deadline: int
    minutes: float

    def plan(self, per_second: float, deadline_minutes: float, known: list[bool]) -> Plan:
        policy, shares = self.policy, shares_of(self.policy)
        limits = [limit_of(m, float(p)) for m, p in zip(policy.metrics, self.service.rates, strict=True)]
        deciding = [i for i, m in enumerate(policy.metrics) if not m.observe]
        never = foretold.why_never(policy, self.service, limits, shares)
        failing = [i for i in deciding if limits[i] <= self.service.rates[i]]
        in_time, needed, slowest = 0.0, None, (failing or deciding)[0]
        if not never:
            ended = self.good(self.deadline, final=True)
            in_time = float((ended.codes == PROMOTE).mean())
            needed = self.needed(policy, ended)
            slowest = max(deciding, key=lambda i: float(ended.waited[i]))
            if needed is None:
                never = f"no number of requests shows that {policy.metrics[slowest].name} keep their limit"
        return Plan(
            requests_per_second=float(f"{per_second:.3g}"),
            shares=shares,
            ramp=policy.ramp is not None,
            window_seconds=60 * self.minutes,
            deadline_minutes=deadline_minutes,
            minutes_needed=_rounded(needed, self.minutes),
            in_time=in_time,
            slowest=policy.metrics[slowest].name,
            never=never,
            metrics=tuple(self.metric(i, limits[i], known=known[i]) for i in deciding),
            ways=ways(self, slowest, limits[slowest], needed) if self.service.per_window else (),
        )

    def good(self, windows: int, *, final: bool = False) -> Ended:
        """Canaries as good as stable."""
        return releases(self.policy, self.service, self.service.rates, windows, final=final)

    def needed(self, policy: Policy, ended: Ended | None = None) -> float | None:
        """The windows after which four of five good canaries are promoted by this policy."""
        for times in (1, *_BEYOND):
            if ended is None or times > 1:
                ended = releases(
                    policy, self.service, self.service.rates, self.deadline * times, until=(PROMOTE, ENOUGH)
                )
            if (found := ended.by(PROMOTE, ENOUGH)) is not None:
                return found
            if (ended.codes == ROLL_BACK).mean() > 1 - ENOUGH:
                return None
        return None

    def metric(self, i: int, limit: float, *, known: bool) -> MetricPlan:
        worse = max(2.0, self.policy.indifference)
        ended = self.bad(i, worse * limit)
        found = ended.by(ROLL_BACK, ENOUGH)
        return MetricPlan(
            name=self.policy.metrics[i].name,
            stable_rate=float(f"{self.service.rates[i]:.3g}"),
            burst=float(f"{self.service.bursts[i]:.2g}"),
            known=known,
            limit=float(f"{limit:.4g}"),
            worse=worse,
            minutes_found=_rounded(found, self.minutes),
            found_in_time=float((ended.codes == ROLL_BACK).mean()),
            smallest=None if found is not None else self._smallest(i, worse * limit),
        )

    def bad(self, i: int, rate: float) -> Ended:
        """Canaries at that rate of one metric."""
        canary = self.service.rates.copy()
        canary[i] = min(rate, 1.0)
        return releases(self.policy, self.service, canary, self.deadline, until=(ROLL_BACK, ENOUGH))

    def _smallest(self, i: int, low: float) -> float | None:
        """The rate from which on four of five are found within the deadline; by bisection, rounded up."""
        if not self.service.per_window or self.bad(i, 1.0).by(ROLL_BACK, ENOUGH) is None:
            return None
        high = 1.0
        for _ in range(5):
            middle = math.sqrt(low * high)
            if self.bad(i, middle).by(ROLL_BACK, ENOUGH) is None:
                low = middle
            else:
                high = middle
        unit = 10.0 ** (math.floor(math.log10(high)) - 1)
        return min(1.0, float(f"{math.ceil(high / unit - 1e-9) * unit:.3g}"))


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
        worth = float(usual.worth[i])
        design = (worth * float(usual.dispersion[i]) + CANARY_WEIGHT) / (worth + CANARY_WEIGHT)
        bursts[i], known[i] = (max(design, 1.0) + 1) / 2, True
    return rates, bursts, known


def _written(metric: Metric) -> list[float]:
    """The limits that a metric has whatever stable does."""
    beside = (metric.max_ratio or 0.0) * metric.floor
    return [limit for limit in (metric.max_rate, beside) if limit]


def limit_of(metric: Metric, stable: float) -> float:
    """The share that a canary may not exceed beside a stable at that rate."""
    limits = [1.0]
    if metric.max_rate is not None:
        limits.append(metric.max_rate)
    if metric.max_ratio is not None:
        limits.append(metric.max_ratio * max(stable, metric.floor))
    return min(limits)


def _rounded(windows: float | None, minutes: float) -> float | None:
    return None if windows is None else float(f"{windows * minutes:.3g}")
