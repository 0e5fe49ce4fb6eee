"""What would make a release end sooner, or at all: a wider limit, a longer deadline, a larger share, each with its
figure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from .planned import Planned
from .policy import RateLimit
from .whole import shares_of

LARGEST_SHARE = 0.5
_WIDER = 2.0


@dataclass(frozen=True)
class Way:
    """`limit`: one metric's becomes `to` (a share), by `changes` of its fields. `deadline`: it becomes `to` minutes.
    `share`: the canary gets `to` of the traffic at once or, of a ramp, at most. Four of five good canaries then need
    `minutes`; None where they would never be promoted."""

    kind: Literal["limit", "deadline", "share"]
    to: float
    minutes: float | None
    metric: str = ""
    changes: tuple[tuple[str, float], ...] = ()


def ways(planned: Planned, slowest: int, limit: float, now: float | None) -> tuple[Way, ...]:
    """The three, as far as there are such: a share of half the traffic is not made larger, and a deadline that ends
    good canaries is not made longer. `now` are the windows that a good canary needs as it is."""
    policy, found = planned.policy, list[Way]()

    def minutes(windows: float | None) -> float | None:
        return None if windows is None else float(f"{windows * planned.minutes:.3g}")

    metric, to = policy.metrics[slowest], float(f"{_WIDER * max(limit, planned.traffic.rates[slowest]):.2g}")
    changes = widened(metric, to)
    if changes and to <= 0.5:
        wider = RateLimit(**{**vars(metric), **dict(changes)})
        changed = replace(policy, metrics=tuple(wider if m is metric else m for m in policy.metrics))
        needed = minutes(planned.needed(changed))
        found.append(Way("limit", to, needed, metric.name, changes))
    if now is not None and now > 0.9 * planned.deadline:
        found.append(Way("deadline", written(now * planned.minutes * 1.1), minutes(now)))
    if max(shares_of(policy)) < LARGEST_SHARE:
        found.append(Way("share", LARGEST_SHARE, minutes(_at_half(planned))))
    return tuple(found)


def _at_half(planned: Planned) -> float | None:
    policy = planned.policy
    if policy.ramp is not None:
        return planned.needed(replace(policy, ramp=replace(policy.ramp, most=LARGEST_SHARE)))
    return planned.needed(replace(policy, shares=(LARGEST_SHARE,)))


def widened(metric: RateLimit, limit: float) -> tuple[tuple[str, float], ...]:
    """The fields of a metric, with their values, by which nothing below `limit` is beyond a limit."""
    changes = []
    if metric.max_rate is not None and metric.max_rate < limit:
        changes.append(("max_rate", float(f"{limit:.3g}")))
    if metric.max_ratio is not None and metric.max_ratio * metric.floor < limit:
        changes.append(("floor", float(f"{limit / metric.max_ratio:.3g}")))
    return tuple(changes)


def written(minutes: float) -> float:
    """A deadline that a person would write: whole minutes, five of them above ten, half hours above an hour."""
    step = 1 if minutes < 10 else 5 if minutes < 60 else 30
    return float(math.ceil(minutes / step) * step)
