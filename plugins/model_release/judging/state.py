"""What the judge counts and remembers: counts, the state after a window, and what a state says. Arrays only, no rules.

Axes: `...` (releases), T windows, C columns: the policy's metrics, then one for each edge of a latency histogram.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from . import clusters

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Columns of `EvidenceState.sums`. Totals of both sides; stable and canary over calm windows (requests, bad, windows,
# Σ bad²/n); the canary where the two limits on it alone were judged; windows set aside; the canary's Σ bad²/n over all
# windows; then the relative alternatives.
REQUESTS, BAD, WINDOWS, STABLE_REQUESTS, STABLE_BAD, STABLE_WINDOWS, STABLE_SQUARES = range(7)
CALM_STABLE, CALM_CANARY = slice(7, 11), slice(11, 15)
RATE_REQUESTS, RATE_BAD, FLOOR_REQUESTS, FLOOR_BAD, ASIDE, CANARY_SQUARES = range(15, 21)
RELATIVE = slice(21, 21 + len(clusters.FRACTIONS) + 1)
COLUMNS = RELATIVE.stop


@dataclass(frozen=True)
class Counts:
    """What was counted; NaN is no data. Requests are (..., T), bad requests (..., T, M), those slower than each edge
    (..., T, E). `share` (T): the canary's part that was asked for, NaN where the policy's `traffic` is."""

    canary_requests: Floats
    canary_bad: Floats
    stable_requests: Floats
    stable_bad: Floats
    canary_edges: Floats | None = None
    stable_edges: Floats | None = None
    share: Floats | None = None
    # Of how many the bad ones are a share (..., T, M), where that is not of the requests for every metric.
    canary_totals: Floats | None = None
    stable_totals: Floats | None = None


@dataclass(frozen=True)
class EvidenceState:
    """All that is remembered of the windows so far. With a T axis it is a path, one state a window.

    `age` is the windows taken in, before the path where it is one. `recent` are stable's last five windows.
    """

    age: int
    wealth: Floats  # (..., hypotheses, bets)
    sums: Floats  # (..., C, COLUMNS)
    # (..., 5, C, 6): requests, bad ones, which limits they broke, whether it counts for bursts; of a path 5 + T.
    recent: Floats
    silent: Floats  # (..., M): windows without data in a row
    dead: Floats  # (..., M, 2): windows in a row in which nothing worked, and whether anything ever did
    usual: Floats  # (..., C): stable's usual rate as it was taken in the last window
    split: Floats  # (..., 4)

    def at(self, window: int) -> EvidenceState:
        """The state after one window of a path that has no leading axes."""
        return EvidenceState(
            self.age + window + 1,
            self.wealth[window],
            self.sums[window],
            self.recent[window + 1 : window + 6],
            self.silent[window],
            self.dead[window],
            self.usual[window],
            self.split[window],
        )

    @property
    def ending(self) -> EvidenceState:
        """The last state of a path, as a path of one window."""
        length = self.sums.shape[-3]
        kept = (getattr(self, name) for name in ("wealth", "sums", "recent", "silent", "dead", "usual", "split"))
        wealth, sums, recent, silent, dead, usual_rate, split_ = kept
        return EvidenceState(
            self.age + length - 1,
            wealth[..., -1:, :, :],
            sums[..., -1:, :, :],
            recent[..., -6:, :, :],
            silent[..., -1:, :],
            dead[..., -1:, :, :],
            usual_rate[..., -1:, :],
            split_[..., -1:, :],
        )

    @property
    def after(self) -> EvidenceState:
        """The last state of a path, with its leading axes: what `extend` goes on from."""
        length = self.sums.shape[-3]
        return EvidenceState(
            self.age + length,
            self.wealth[..., -1, :, :],
            self.sums[..., -1, :, :],
            self.recent[..., -5:, :, :],
            self.silent[..., -1, :],
            self.dead[..., -1, :, :],
            self.usual[..., -1, :],
            self.split[..., -1, :],
        )


@dataclass(frozen=True)
class Readings:
    """What a state, or each state of a path, says. Evidence is in logarithms; -inf for a metric without limits."""

    against: Floats  # (..., M): some limit is exceeded
    favour: Floats  # (..., M): every limit, times the policy's indifference, is kept
    rate_is_worse: Bools  # (..., M): the absolute limit is the more broken one
    dead: Bools  # (..., M): nothing works any more
    design: Floats  # (..., M): how many requests are worth one now, at least 1
    lasting: Floats  # (..., M): and once a few windows more have been seen
    split: Floats  # (...): the canary's share of requests is not near the wanted one

    def at(self, window: int) -> Readings:
        """The readings after one window of a path that has no leading axes."""
        return Readings(*(getattr(self, f.name)[window] for f in fields(self)))
