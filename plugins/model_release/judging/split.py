"""Does the canary get the share that was asked for? Evidence that it does not, which makes a verdict doubtful."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .clusters import mixed

Floats = npt.NDArray[np.float64]

# Requests that one client may send to one side in a row.
SAME_CLIENT = 10.0
ODDS = 2.0  # the split is as asked for while its odds are within this factor
TOLERANCE = 0.02  # or its share within this difference
ALTERNATIVES = 4


@lru_cache(maxsize=256)
def _logs(wanted: float) -> tuple[Floats, Floats]:
    """Log likelihood ratios of one request on the canary and of one on stable, for each alternative split.

    The null is every share within the tolerated band; an alternative lies beyond the band's nearer edge. One that
    cannot be, where the band ends at 0 or at 1, says nothing.
    """
    low = min(_share(wanted, 1 / ODDS), wanted - TOLERANCE)
    high = max(_share(wanted, ODDS), wanted + TOLERANCE)
    pairs = [(low, _share(low, odds)) if low > 0 else (0.5, 0.5) for odds in (1e-6, 0.5)]
    pairs += [(high, _share(high, odds)) if high < 1 else (0.5, 0.5) for odds in (2.0, 1e6)]
    edge, other = np.array(pairs).T
    return np.log(other / edge), np.log((1 - other) / (1 - edge))


def _share(share: float, odds: float) -> float:
    """The share whose odds are `odds` times those of `share`."""
    return odds * share / (odds * share + 1 - share)


def extend(before: Floats, canary: Floats, both: Floats, wanted: Floats) -> Floats:
    """The log likelihood ratios (..., T, ALTERNATIVES) after each window, from those before and the requests (..., T).

    Where a count is not known nothing is added. `wanted` (T) is the share asked for in each window, NaN where none was.
    """
    steps = np.zeros((*canary.shape, ALTERNATIVES))
    known = ~np.isnan(both)
    for share in np.unique(wanted[~np.isnan(wanted)]):
        on_canary, on_stable = _logs(float(share))
        at = (wanted == share) & known
        n, m = np.where(at, canary, 0.0)[..., None], np.where(at, both - canary, 0.0)[..., None]
        steps += (n * on_canary + m * on_stable) / SAME_CLIENT
    out: Floats = np.concatenate([before[..., None, :], steps], axis=-2).cumsum(axis=-2)[..., 1:, :]
    return out


def read(sums: Floats) -> Floats:
    """log evidence (...) that the split is not the one asked for."""
    return mixed(sums, np.full(ALTERNATIVES, -np.log(ALTERNATIVES)))
