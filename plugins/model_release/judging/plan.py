"""Before a release starts: what its steps will need at the service's present traffic, and what they can find.

The plan asks the judge itself: releases at the rates in question are drawn with a fixed seed and judged, and what four
of five of them need is told. Requests are taken as independent; bursts make it longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .evidence import Evidence
from .policy import Metric, Policy, PolicyError
from .sentences import about, bound, count, duration, number, share
from .state import Bools, Counts, Floats, State

_RELEASES = 120  # that are drawn
_ENOUGH = 0.8  # four of five
_WINDOWS = 240  # at most, in a release that is drawn: longer ones are drawn with longer windows
_LARGEST_SHARE = 0.5
_LONGEST = 10**6  # windows; beyond this a plan says "never"


@dataclass(frozen=True)
class MetricPlan:
    """`limit` is the rate that the canary may not exceed at the stable's present rate. `requests_to_promote` are
    the canary requests after which four of five canaries as good as stable are promoted, None if never;
    `smallest_regression` is the lowest bad rate that four of five times is rolled back within the deadline.
    """

    name: str
    stable_rate: float
    limit: float
    requests_to_promote: int | None
    smallest_regression: float | None


@dataclass(frozen=True)
class StepPlan:
    """One step: `canary_requests` come within the deadline, `requests_needed` decide (None: no number would)."""

    share: float
    canary_requests: int
    windows: int
    requests_needed: int | None
    minutes_needed: float | None
    possible: bool
    metrics: tuple[MetricPlan, ...]
    sentence: str


@dataclass(frozen=True)
class Plan:
    """`possible`: every step can promote a canary that is as good as stable within its deadline."""

    possible: bool
    minutes_needed: float | None
    steps: tuple[StepPlan, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(step.sentence for step in self.steps)

    @property
    def sentence(self) -> str:
        return " ".join(self.sentences)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sentences": list(self.sentences)}


def plan(
    policy: Policy,
    *,
    requests_per_minute: float,
    deadline_minutes: float,
    window_seconds: float,
    stable_rates: Mapping[str, float] | None = None,
    shares: Sequence[float] | None = None,
) -> Plan:
    """What each step needs and finds. `requests_per_minute` is the whole service's traffic.

    `shares` are the steps' canary shares, by default the policy's `traffic` alone. A metric whose rate on stable
    is not in `stable_rates` is taken to be at a fifth of its limit. Raises PolicyError for figures that cannot
    be. The same input gives the same plan.
    """
    rates = dict(stable_rates or {})
    for name, value in (("deadline_minutes", deadline_minutes), ("window_seconds", window_seconds)):
        if not (math.isfinite(value) and value > 0):
            raise PolicyError(f"{name}: {value!r} is not a time above 0")
    if not (math.isfinite(requests_per_minute) and requests_per_minute >= 0):
        raise PolicyError(f"requests_per_minute: {requests_per_minute!r} is not a rate of 0 or more")
    for name, rate in rates.items():
        if not 0 <= rate <= 1:
            raise PolicyError(f"stable_rates.{name}: {rate!r} is not a share from 0 to 1")
    given = list(shares) if shares is not None else [policy.traffic] if policy.traffic is not None else []
    if not given:
        raise PolicyError("shares: give the canary's share of each step, or policy.traffic")
    for i, part in enumerate(given):
        if not 0 < part <= 1:
            raise PolicyError(f"shares[{i}]: {part!r} is not a share above 0 and up to 1")
    steps = tuple(_step(policy, requests_per_minute, deadline_minutes, window_seconds, rates, part) for part in given)
    waits = [s.minutes_needed for s in steps]
    total = None if None in waits else sum(w for w in waits if w is not None)
    return Plan(all(s.possible for s in steps), total, steps)


def _step(
    policy: Policy, per_minute: float, deadline: float, seconds: float, rates: Mapping[str, float], part: float
) -> StepPlan:
    canary_rate = per_minute * part
    per_window = canary_rate * seconds / 60
    windows = int(deadline * 60 / seconds) - policy.warm_up
    canary_requests = int(canary_rate * deadline)
    stable = np.array([_stable_rate(m, rates) for m in policy.metrics])
    limits = np.array([_limit(m, float(p)) for m, p in zip(policy.metrics, stable, strict=True)])
    promoted: list[int | None] = [None] * len(stable)
    smallest: list[float | None] = [None] * len(stable)
    if per_window:
        course = _Course(policy, per_window, per_minute * (1 - part) * seconds / 60, stable)
        promoted = course.promoted()
        smallest = _smallest_regressions(course, limits, max(windows, 0))
    metrics = tuple(
        MetricPlan(
            name=m.name,
            stable_rate=float(f"{stable[i]:.4g}"),
            limit=float(f"{limits[i]:.4g}"),
            requests_to_promote=None if t is None else max(math.ceil(t * per_window), policy.min_requests),
            smallest_regression=smallest[i],
        )
        for i, (m, t) in enumerate(zip(policy.metrics, promoted, strict=True))
        if not m.observe
    )
    waits = [m.requests_to_promote for m in metrics]
    needed = None if None in waits else max(w for w in waits if w is not None)
    warm_up = policy.warm_up * seconds / 60
    minutes = None if needed is None or not canary_rate else needed / canary_rate + warm_up
    possible = minutes is not None and minutes <= deadline
    return StepPlan(
        share=part,
        canary_requests=canary_requests,
        windows=max(windows, 0),
        requests_needed=needed,
        minutes_needed=None if minutes is None else float(f"{minutes:.3g}"),
        possible=possible,
        metrics=metrics,
        sentence=_sentence(policy, per_minute, deadline, part, canary_requests, needed, minutes, possible, metrics),
    )


class _Course:
    """Releases at a step's traffic, and how far the judge is with them after so many windows."""

    def __init__(self, policy: Policy, per_window: float, beside: float, stable: Floats) -> None:
        self.evidence = Evidence(policy)
        self._requests, self._beside, self._stable = per_window, beside, stable

    def _path(self, canary: Floats, windows: int) -> tuple[State, int]:
        """The evidence of the releases drawn, and how many of their windows each one here stands for."""
        each = math.ceil(windows / _WINDOWS)
        shape = (_RELEASES, math.ceil(windows / each))
        rng = np.random.default_rng(1)
        n = rng.poisson(self._requests * each, shape).astype(float)
        m = rng.poisson(self._beside * each, shape).astype(float)
        b = rng.binomial(n[..., None].astype(int), np.clip(canary, 0, 1)).astype(float)
        s = rng.binomial(m[..., None].astype(int), self._stable).astype(float)
        return self.evidence.extend(self.evidence.start(shape[:1]), Counts(n, b, m, s)), each

    def caught(self, canary: Floats, windows: int) -> Bools:
        """For each metric whether four of five canaries at this rate are found within so many windows."""
        path, _ = self._path(canary, windows)
        against = self.evidence.read_path(path).against
        found: Bools = (against >= self.evidence.log_needed_against).any(axis=1).mean(axis=0) >= _ENOUGH
        return found

    def promoted(self) -> list[int | None]:
        """For each metric the windows after which four of five canaries as good as stable are within its limits, None
        if they never are."""
        out: list[int | None] = [None] * len(self._stable)
        windows = _WINDOWS
        while None in out and windows <= _LONGEST:
            path, each = self._path(self._stable, windows)
            shown = self.evidence.read_path(path).favour >= self.evidence.log_needed_for
            first = np.where(shown.any(axis=1), shown.argmax(axis=1) + 1, shown.shape[1] + 1)
            late = np.sort(first, axis=0)[math.ceil(_ENOUGH * _RELEASES) - 1]
            for i, at in enumerate(late.tolist()):
                if out[i] is None and at <= shown.shape[1]:
                    out[i] = at * each
            windows *= 8
        return out


def _smallest_regressions(course: _Course, limits: Floats, windows: int) -> list[float | None]:
    """For each metric the lowest rate above its limit that is found within `windows`; by bisection in log-odds."""
    if windows < 1:
        return [None] * len(limits)
    start = np.clip(limits, 1e-6, 1 - 1e-6)
    low, high = np.log(start / (1 - start)), np.full(len(limits), 9.0)
    found = course.caught(np.ones(len(limits)), windows)
    for _ in range(8):
        middle = (low + high) / 2
        caught = course.caught(1 / (1 + np.exp(-middle)), windows)
        low, high = np.where(caught, low, middle), np.where(caught, middle, high)
    rates = 1 / (1 + np.exp(-high))
    return [float(f"{r:.3g}") if ok else None for r, ok in zip(rates, found, strict=True)]


def _stable_rate(metric: Metric, rates: Mapping[str, float]) -> float:
    if metric.name in rates:
        return rates[metric.name]
    known = [metric.max_rate, (metric.max_ratio or 0.0) * metric.floor or None]
    return min((k for k in known if k is not None), default=0.01) / 5


def _limit(metric: Metric, stable: float) -> float:
    limits = [1.0]
    if metric.max_rate is not None:
        limits.append(metric.max_rate)
    if metric.max_ratio is not None:
        limits.append(metric.max_ratio * max(stable, metric.floor))
    return min(limits)


def _sentence(
    policy: Policy,
    per_minute: float,
    deadline: float,
    part: float,
    canary_requests: int,
    needed: int | None,
    minutes: float | None,
    possible: bool,
    metrics: Sequence[MetricPlan],
) -> str:
    where = f"At {number(round(per_minute, 1))} requests a minute and {share(part)}"
    if per_minute == 0:
        return "The service has no traffic: nothing can be decided; send it some or wait for it."
    found = [(m.name, m.smallest_regression, m.limit) for m in metrics]
    if possible and needed is not None and minutes is not None:
        finds = ", ".join(
            f"no {name}" if rate is None else f"{name} from {share(_shown(rate))} up (limit {bound(limit)})"
            for name, rate, limit in found
        )
        return (
            f"{where} a good canary is promoted after about {about(needed)} canary requests, {duration(minutes)}; "
            f"within the deadline of {duration(deadline)} it finds {finds}."
        )
    misses = " or ".join(
        f"100 % {name}" if rate is None else f"{share(_shown(rate))} {name}" for name, rate, _ in found
    )
    sees = (
        f"{where} the deadline of {duration(deadline)} sees {count(canary_requests)} canary requests: "
        f"nothing below {misses} can be found"
    )
    if needed is None or minutes is None:
        stuck = next(m for m in metrics if m.requests_to_promote is None)
        return f"{sees}, and no number of requests promotes: {_why_never(policy, stuck, part)}."
    longer = f"the deadline to {duration(_round_up(minutes))}"
    wanted = needed / (per_minute * deadline)
    if wanted <= _LARGEST_SHARE and wanted > part:
        wider = f"the share to {share(math.ceil(wanted * 20) / 20)} or {longer}"
    elif part < _LARGEST_SHARE:
        both = duration(_round_up(minutes * part / _LARGEST_SHARE))
        wider = f"{longer}, or the share to {share(_LARGEST_SHARE)} and the deadline to {both}"
    else:
        wider = longer
    return f"{sees}, and a promotion needs about {about(needed)}; raise {wider}."


def _why_never(policy: Policy, stuck: MetricPlan, part: float) -> str:
    metric = next(m for m in policy.metrics if m.name == stuck.name)
    if 0 < stuck.limit <= stuck.stable_rate:
        return f"{stuck.name} are at {share(stuck.stable_rate)} on stable, the limit is {bound(stuck.limit)}"
    if part >= 1 and metric.max_rate is None:
        return f"{stuck.name} are judged beside stable only, and stable gets no requests; give max_rate"
    return f"{stuck.name} are too rare on stable to compare with; give max_rate or a floor"


def _shown(rate: float) -> float:
    """Rounded up to two digits: what a plan promises to find, it finds."""
    unit = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return min(1.0, math.ceil(rate / unit - 1e-9) * unit)


def _round_up(minutes: float) -> float:
    """A deadline a person would write: 5-minute steps below an hour, half hours above."""
    step = 1 if minutes < 10 else 5 if minutes < 60 else 30
    return math.ceil(minutes / step) * step
