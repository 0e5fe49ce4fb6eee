"""A plan, and its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .policy import Policy
from .sentences import bound, duration, number, share, times
from .ways import Way
from .whole import Traffic

# Releases are possible where at least so many good canaries are promoted by the deadline.
POSSIBLE = 0.5


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
        return sentences(self)

    @property
    def sentence(self) -> str:
        return " ".join(self.sentences)

    @property
    def refusal(self) -> str:
        """Why it cannot end in time and what would let it, in one line; nothing where it can."""
        return "" if self.possible else refusal(self)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "possible": self.possible, "sentences": list(self.sentences), "refusal": self.refusal}


def sentences(plan: Plan) -> tuple[str, ...]:
    """What a person should know before the release, a line for each thing."""
    if plan.never:
        return (f"Nothing would be promoted: {plan.never}.",)
    said = [_promotion(plan), _in_time(plan), _found(plan), _sooner(plan)]
    return tuple(line for line in said if line)


def refusal(plan: Plan) -> str:
    """One line: it cannot end in time, and what would let it."""
    ways = [one for one in plan.ways if one.minutes is not None]
    if plan.never:
        return f"{plan.never}; it would be promoted {_listed(ways)}" if ways else plan.never
    few = "none" if not plan.in_time else f"only {share(plan.in_time)}"
    return (
        f"{_at(plan)} {few} of the canaries as good as stable would be promoted by {_deadline(plan)} ({plan.slowest} "
        f"take longest); they would be {_listed(ways) or 'with more traffic'}"
    )


def why_never(policy: Policy, traffic: Traffic, limits: Sequence[float], shares: Sequence[float]) -> str:
    """Why no number of requests would ever promote a canary as good as stable; nothing where one may."""
    if not traffic.per_window:
        return "the service has no traffic, so nothing can be decided; send it some or wait for it"
    for metric, rate, limit in zip(policy.metrics, traffic.rates.tolist(), limits, strict=True):
        if metric.observe:
            continue
        if 0 < limit <= rate:
            return above_its_limit(metric.name, rate, limit)
        if max(shares) >= 1 and metric.max_rate is None:
            return f"{metric.name} are judged beside stable only, and stable gets no requests; give max_rate"
        if limit == 0:
            return f"{metric.name} are too rare on stable to compare with; give max_rate or a floor"
    return ""


def above_its_limit(name: str, rate: float, limit: float) -> str:
    return f"{name} are at {share(rate)} on stable, and the limit is {bound(limit)}: a canary as good as stable fails"


def way(one: Way) -> str:
    """`in 3 min with a limit of 4 % for errors (max_rate 0.04)`."""
    fields = ", ".join(f"{name} {number(value)}" for name, value in one.changes)
    what = {
        "limit": f"a limit of {bound(one.to)} for {one.metric} ({fields})",
        "deadline": f"a deadline of {duration(one.to)}",
        "share": f"{share(one.to)} of the traffic",
    }[one.kind]
    return f"{'never' if one.minutes is None else f'in {duration(one.minutes)}'} with {what}"


def _promotion(plan: Plan) -> str:
    said = f"{_at(plan)} a good canary needs "
    if plan.minutes_needed is None:
        return f"{said}longer than anybody could wait."
    said += f"about {duration(plan.minutes_needed)}"
    if _not_found(plan):
        return f"{said}."
    last = max(plan.metrics, key=lambda metric: metric.minutes_found or 0.0)
    return f"{said}, one at {_times(last)} is found in {duration(last.minutes_found or 0.0)}."


def _in_time(plan: Plan) -> str:
    part = {0.0: "None of the good canaries that were drawn is", 1.0: "All good canaries that were drawn are"}.get(
        plan.in_time, f"{share(plan.in_time)} of good canaries are"
    )
    last = "" if plan.in_time == 1 or len(plan.metrics) == 1 else f"; {plan.slowest} take longest"
    return f"{part} promoted by {_deadline(plan)}{last}."


def _not_found(plan: Plan) -> list[MetricPlan]:
    return [metric for metric in plan.metrics if metric.minutes_found is None]


def _found(plan: Plan) -> str:
    """What is found by the deadline of those metrics of which twice the limit is not."""
    said = [
        f"no {metric.name}" if metric.smallest is None else f"{share(metric.smallest)} {metric.name} and more"
        for metric in _not_found(plan)
    ]
    if not said:
        return ""
    worse = ", ".join(
        f"{share(min(1.0, metric.worse * metric.limit))} {metric.name} in {share(metric.found_in_time)} of releases"
        for metric in _not_found(plan)
    )
    at = _times(_not_found(plan)[0])
    return (
        f"Found by then, four of five times: {', '.join(said)} ({at}, {worse}). What is neither found nor promoted is "
        "inconclusive."
    )


def _sooner(plan: Plan) -> str:
    """The ways that are worth taking. A longer deadline makes nothing sooner, and more of the good ones promoted."""
    now = plan.minutes_needed
    found = [
        one
        for one in plan.ways
        if one.minutes is not None and (one.kind == "deadline" or now is None or one.minutes < now)
    ]
    return f"Sooner or surer: {_listed(found)}." if found else ""


def _listed(found: Sequence[Way]) -> str:
    return ", ".join(way(one) for one in found)


def _at(plan: Plan) -> str:
    shares = [share(part).removesuffix(" %") for part in plan.shares]
    where = "up to " if plan.ramp else ""
    return f"At {number(plan.requests_per_second)} requests a second and {where}{' and '.join(shares)} % of them"


def _deadline(plan: Plan) -> str:
    return f"the deadline of {duration(plan.deadline_minutes)}"


def _times(metric: MetricPlan) -> str:
    return "twice its limit" if metric.worse == 2 else f"{times(metric.worse)} its limit"
