"""How much of the traffic the canary may have: as much as the evidence allows, and no more.

Fixed steps (`Policy.shares`): the next one when the evidence for the canary is the root of what a promotion needs, half
of the way on the scale on which evidence grows. A ramp (`Policy.ramp`): the largest level at which a canary as bad as
its interval's upper end would hurt no more than `budget` requests: in the two windows until it is found, and in the one
that may pass until the gateway has taken its traffic away.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .evidence import Evidence
from .policy import Ramp
from .state import REQUESTS, EvidenceState, Readings
from .window import Window

Floats = npt.NDArray[np.float64]

LEVELS: Floats = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.35])
# A release by a ramp takes at least so many windows, whatever the traffic: some faults need a moment to show.
LEAST_WINDOWS = 12
# Windows at one level before the next, and until a bad canary is found and has no traffic any more.
SETTLED = 2
GONE_IN = 3
# A step is opened at this part of the evidence for the canary, on its logarithm.
HALF_WAY = 0.5
# Evidence against at which nothing is opened wider.
DOUBTFUL = 10.0


class Opening:
    """How far the canary is open: its share, since how many windows, and the service's traffic."""

    def __init__(self, share: float | None) -> None:
        self.share = share
        self.since = 0
        self.canary = self.both = 0  # requests at this share, where both sides were counted
        self._requests = self._seconds = 0.0
        self._windows = 0

    def add(self, window: Window) -> None:
        """One more window."""
        if window.share is not None and window.share != self.share:
            self.share, self.since, self.canary, self.both = window.share, 0, 0, 0
        self.since += 1
        stable = None if window.stable is None else window.stable.requests
        if window.canary.requests is None or (window.stable is not None and stable is None):
            return
        self.canary += window.canary.requests
        self.both += window.canary.requests + (stable or 0)
        if window.seconds is not None:
            self._requests += window.canary.requests + (stable or 0)
            self._seconds += window.seconds
            self._windows += 1

    @property
    def per_window(self) -> float | None:
        """The whole service's requests in a window; None where the windows' times are not known."""
        return self._requests / self._windows if self._windows else None


def begin(ramp: Ramp, per_window: float) -> float:
    """The share to begin with: the largest level at which a wholly bad canary hurts no more than the budget."""
    return float(level(ramp, per_window, 1.0))


def level(ramp: Ramp, per_window: float, upper: npt.ArrayLike) -> Floats:
    """The largest level for canaries whose share of bad requests is at most `upper`, never above `most`."""
    levels = np.append(LEVELS[ramp.most > LEVELS], ramp.most)
    bad = np.maximum(np.asarray(upper, dtype=float), 1e-6)
    room = ramp.budget / np.maximum(per_window * GONE_IN * bad, 1e-9)
    place = np.searchsorted(levels, room + 1e-12, side="right") - 1
    out: Floats = levels[np.maximum(place, 0)]
    return out


def wider(evidence: Evidence, state: EvidenceState, readings: Readings, opening: Opening) -> float | None:
    """The share that the canary may have now, None when it stays; the verdict is then `open`."""
    policy = evidence.policy
    deciding = np.array([not m.observe for m in policy.metrics])
    if opening.share is None or (state.silent > 0)[deciding].any():
        return None
    if policy.shares:
        following = next((share for share in policy.shares if share > opening.share + 1e-9), None)
        requests = state.sums[: len(deciding), REQUESTS]
        half_way = (readings.favour >= HALF_WAY * evidence.log_needed_for) & (requests >= policy.min_requests)
        failing = readings.against >= evidence.log_needed_against
        return following if (half_way & ~failing)[deciding].all() else None
    if policy.ramp is None or opening.per_window is None or opening.since < SETTLED:
        return None
    if (readings.against >= math.log(DOUBTFUL))[deciding].any():
        return None
    upper = float(evidence.interval(state)[1][deciding].max())
    found = float(level(policy.ramp, opening.per_window, upper))
    return found if found > opening.share + 1e-9 else None
