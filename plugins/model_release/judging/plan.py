"""Before a release starts: what its steps will need at the service's present traffic, and what they can find.

The plan asks the judge's own evidence. Each bet's and each alternative's logarithm has a mean μ and a deviation σ
over windows at the rates in question (bets: over windows drawn with a fixed seed), and after T windows it is taken
to be T·μ − z·σ·√T: what four of five releases exceed. The rest is reading that off as any other state.
Requests are taken as independent; bursts make it longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .evidence import ASSUMED_WEIGHT, FEW_WINDOWS, Counts, Evidence, Floats
from .policy import MetricPolicy, Policy, PolicyError
from .sentences import about, bound, count, duration, number, share

_Z = 0.84  # four of five releases
_EVENTS = 100  # bad requests to draw, so that means and deviations are known to a tenth
_LARGEST_SHARE = 0.5
_LONGEST = 10**7  # windows; beyond this a plan says "never"


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
        promoted = [_promotion(course, stable, i) for i in range(len(stable))]
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
    """How a step's evidence grows: what it is worth after so many windows, at any rates of the canary."""

    def __init__(self, policy: Policy, per_window: float, beside: float, stable: Floats) -> None:
        self.evidence = Evidence(policy)
        self._design = policy.design_effect
        self._requests, self._beside, self._stable = per_window, beside, stable
        # Promotion's logarithms are sums over requests: what one bad and one good request on the canary and one
        # bad one on stable add is read off windows that hold nothing else.
        n, m = np.array([per_window]), np.array([beside])
        zeros, ones = np.zeros((1, len(stable))), np.ones((1, len(stable)))
        self._good = self._sums(n, zeros, m, zeros) / per_window
        self._bad = self._sums(n, ones * n, m, zeros) / per_window
        both = self._sums(n, zeros, m, ones * m) - self._good * per_window
        self._bad_beside = both / beside if beside else np.zeros_like(both)
        # A bet is no such sum, so its windows are drawn: the more, the rarer bad requests are.
        expected = per_window * float(np.min(np.where(stable > 0, stable, 1)))
        draws = int(min(max(_EVENTS / max(expected, 1e-9), 1000), 8000))
        rng = np.random.default_rng(1)
        self._n = rng.poisson(per_window, (draws, 1)).astype(float)
        self._m = rng.poisson(beside, (draws, 1)).astype(float)
        self._s = rng.binomial(self._m[..., None].astype(int), stable).astype(float)

    def _sums(self, n: Floats, b: Floats, m: Floats, s: Floats) -> Floats:
        start = self.evidence.start(n.shape[:-1])
        return self.evidence.extend(start, Counts(n, b, m, s)).sums[..., 0, :, :]

    def against(self, canary: Floats, windows: float) -> Floats:
        rng = np.random.default_rng(2)
        b = rng.binomial(self._n[..., None].astype(int), np.clip(canary, 0, 1)).astype(float)
        drawn = self._sums(self._n, b, self._m, self._s)
        return self.evidence.against(_late(drawn.mean(axis=0), drawn.var(axis=0), windows))[0]

    def favour(self, canary: Floats, windows: float) -> Floats:
        bad, good = (self._requests * canary)[:, None], (self._requests * (1 - canary))[:, None]
        beside = (self._beside * self._stable)[:, None]
        mean = bad * self._bad + good * self._good + beside * self._bad_beside
        variance = bad * self._bad**2 + good * self._good**2 + beside * self._bad_beside**2
        seen = beside[:, 0] * windows
        worth = 2 * seen * max(windows - 1, 0) / np.maximum(2 * seen + windows, 1)
        design = (worth + ASSUMED_WEIGHT * self._design) / (worth + ASSUMED_WEIGHT)
        few = 1 + FEW_WINDOWS / max(windows, 1.0) ** 4
        return self.evidence.favour(_late(mean, variance, windows), np.maximum(design, 1) * few)


def _late(mean: Floats, variance: Floats, windows: float) -> Floats:
    """What four of five sums of so many windows exceed."""
    out: Floats = mean * windows - _Z * np.sqrt(variance * windows)
    return out


def _promotion(course: _Course, stable: Floats, metric: int) -> int | None:
    """Windows until a canary as good as stable is within this metric's limit, None if it never is."""
    bar = course.evidence.log_needed_for
    return _first(lambda windows: bool(course.favour(stable, windows)[metric] >= bar))


def _first(enough: Callable[[float], bool]) -> int | None:
    """The first number of windows that is enough, None if none is; `enough` stays true once it is."""
    high = 1
    while not enough(high):
        high *= 2
        if high > _LONGEST:
            return None
    low = high // 2
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _smallest_regressions(course: _Course, limits: Floats, windows: int) -> list[float | None]:
    """For each metric the lowest rate above its limit that is found within `windows`; by bisection in log-odds."""
    if windows < 1:
        return [None] * len(limits)
    bar = course.evidence.log_needed_against
    start = np.clip(limits, 1e-6, 1 - 1e-6)
    low, high = np.log(start / (1 - start)), np.full(len(limits), 9.0)
    found = course.against(np.ones(len(limits)), windows) >= bar
    for _ in range(12):
        middle = (low + high) / 2
        caught = course.against(1 / (1 + np.exp(-middle)), windows) >= bar
        low, high = np.where(caught, low, middle), np.where(caught, middle, high)
    rates = 1 / (1 + np.exp(-high))
    return [float(f"{r:.3g}") if ok else None for r, ok in zip(rates, found, strict=True)]


def _stable_rate(metric: MetricPolicy, rates: Mapping[str, float]) -> float:
    if metric.name in rates:
        return rates[metric.name]
    known = [metric.max_rate, (metric.max_ratio or 0.0) * metric.floor or None]
    return min((k for k in known if k is not None), default=0.01) / 5


def _limit(metric: MetricPolicy, stable: float) -> float:
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
