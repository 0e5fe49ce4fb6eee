"""Canaries of a release that is planned, drawn and judged: good ones, and bad ones at some rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .policy import Policy
from .verdict import PROMOTE, ROLL_BACK
from .whole import Ended, Traffic, releases

ENOUGH = 0.8  # four of five
# How far beyond the deadline is looked for the time that a good canary would need, in deadlines.
_BEYOND = (8, 64)


@dataclass
class Planned:
    """A release to be planned: everything in windows. `minutes` are those of one."""

    policy: Policy
    traffic: Traffic
    deadline: int
    minutes: float

    def good(self, windows: int, *, final: bool = False) -> Ended:
        """Canaries as good as stable."""
        return releases(self.policy, self.traffic, self.traffic.rates, windows, final=final)

    def needed(self, policy: Policy, ended: Ended | None = None) -> float | None:
        """The windows after which four of five good canaries are promoted by this policy."""
        for times in (1, *_BEYOND):
            if ended is None or times > 1:
                ended = releases(
                    policy, self.traffic, self.traffic.rates, self.deadline * times, until=(PROMOTE, ENOUGH)
                )
            if (found := ended.by(PROMOTE, ENOUGH)) is not None:
                return found
            if (ended.codes == ROLL_BACK).mean() > 1 - ENOUGH:
                return None
        return None

    def bad(self, i: int, rate: float) -> Ended:
        """Canaries at that rate of one metric."""
        canary = self.traffic.rates.copy()
        canary[i] = min(rate, 1.0)
        return releases(self.policy, self.traffic, canary, self.deadline, until=(ROLL_BACK, ENOUGH))

    def smallest(self, i: int, low: float) -> float | None:
        """The rate from which on four of five are found within the deadline; by bisection, rounded up."""
        if not self.traffic.per_window or self.bad(i, 1.0).by(ROLL_BACK, ENOUGH) is None:
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
