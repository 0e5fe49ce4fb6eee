"""How many canary requests are still to come until a metric decides, if they are like those seen."""

from __future__ import annotations

import math

import numpy as np

from .evidence import Evidence
from .state import REQUESTS, EvidenceState, Floats, Readings

# How much more of the same to try, as multiples of what was seen.
_MORE: list[float] = np.geomspace(0.02, 300, 10).tolist()
_TIMES: Floats = 1 + np.array(_MORE)[:, None, None]


def requests_needed(ev: Evidence, state: EvidenceState, now: Readings) -> list[float]:
    """Canary requests still to come for each metric if they are like those seen; inf where they never decide."""
    sums = state.sums[: len(ev.policy.metrics)]
    seen = sums[:, REQUESTS].tolist()
    more = sums * _TIMES
    least = ev.policy.min_requests
    needed = [
        max(n * times, least - n) if n else math.inf
        for n, times in zip(seen, _crossings(now.favour, ev.favour(more, now.lasting), ev.log_needed_for), strict=True)
    ]
    if now.against.max() > 0:  # more of what speaks for a canary never speaks against it
        with np.errstate(divide="ignore"):  # a bet that has lost all is no evidence: its logarithm is -inf
            logs = np.log(state.wealth) * _TIMES  # what was won is won again
            later = ev.against(np.exp(np.minimum(logs, 300.0)), state.age)[0]
        crossings = _crossings(now.against, later, ev.log_needed_against)
        needed = [min(at, n * times) if n else at for at, n, times in zip(needed, seen, crossings, strict=True)]
    return needed


def _crossings(now: Floats, then: Floats, bar: float) -> list[float]:
    """For each metric, how many times as much again as was seen takes the evidence to the bar; inf if none does."""
    out = []
    for level, later in zip(now.tolist(), then.T.tolist(), strict=True):
        low, at = 0.0, 0.0 if level >= bar else math.inf
        if level < bar <= later[-1]:
            for high, reached in zip(_MORE, later, strict=True):
                if reached >= bar:
                    at = low + (bar - level) / (reached - level) * (high - low)
                    break
                low, level = high, reached
        out.append(at)
    return out
