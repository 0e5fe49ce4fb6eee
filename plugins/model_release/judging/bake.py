"""How long a promoted canary is watched on, alone and with all of the traffic, and what that finds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from . import whole
from .past import Past
from .plan import stable_of
from .policy import Policy, PolicyError
from .sentences import duration, share, times
from .verdict import ROLL_BACK
from .whole import Ended, Traffic

# A bake that is chosen, in minutes: the least one, and how far is looked for it, the last of which is the longest one.
# So many of those that it is for are found by it.
SHORTEST = 5.0
_HORIZONS = (10.0, 30.0, 60.0)
FOUND = 0.95
_LONGER = 1.2


@dataclass(frozen=True)
class Bake:
    """The watch after the promotion: for `minutes`, in which `found` of the canaries are found that are at `worse`
    times the limit of one metric, whichever is found least."""

    minutes: float
    found: float
    worse: float

    @property
    def sentence(self) -> str:
        beyond = "twice a limit" if self.worse == 2 else f"{times(self.worse)} a limit"
        return (
            f"After the promotion it is watched on for {duration(self.minutes)}, in which "
            f"{share(self.found)} of the canaries at {beyond} are found."
        )


def bake(
    policy: Policy,
    *,
    requests_per_second: float,
    window_seconds: float,
    past: Past | None = None,
    minutes: float | None = None,
) -> Bake:
    """The bake of `minutes` or, where they are not said, one as long as it takes to find 95 % of the canaries that are
    at twice the limit of a metric (γ times, where that is more), from 5 minutes to an hour.

    `policy` is the bake's own, which judges the canary alone; the other parameters as in `plan`. The same input gives
    the same bake. Raises PolicyError for figures that cannot be.
    """
    if not (math.isfinite(requests_per_second) and requests_per_second >= 0):
        raise PolicyError(f"requests_per_second: {requests_per_second!r} is not a rate of 0 or more")
    rates, bursts, _ = stable_of(policy, past)
    traffic = Traffic(requests_per_second * window_seconds, rates, bursts, None if not past else past.counts(policy))
    worse = max(2.0, policy.indifference)

    def ended(length: float) -> list[Ended]:
        windows = max(2, int(length * 60 / window_seconds))
        asked = replace(policy, guard=True, traffic=1.0, shares=(), ramp=None, deadline_windows=windows)
        found = []
        for i, metric in enumerate(policy.metrics):
            if metric.observe or metric.max_rate is None or not traffic.per_window:
                continue
            canary = rates.copy()
            canary[i] = min(worse * metric.max_rate, 1.0)
            found.append(whole.releases(asked, traffic, canary, windows))
        return found

    def found(length: float) -> float:
        return min((float(np.mean(one.codes == ROLL_BACK)) for one in ended(length)), default=0.0)

    if minutes is None:
        minutes = _HORIZONS[-1]
        for horizon in _HORIZONS:
            needed = [one.by(ROLL_BACK, FOUND) for one in ended(horizon)]
            if needed and None not in needed:
                longest = max(one or 0.0 for one in needed) * window_seconds / 60
                minutes = float(math.ceil(max(longest, SHORTEST)))
                break
        # The money for late bets is spread over less time than in what it was chosen by, and windows may be finer.
        while minutes < _HORIZONS[-1] and found(minutes) < FOUND:
            minutes = float(min(math.ceil(_LONGER * minutes), _HORIZONS[-1]))
    return Bake(minutes, float(f"{found(minutes):.3g}"), worse)
