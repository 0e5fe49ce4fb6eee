"""Simulated releases for the simulations: traffic, and the tests that know the truth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model_release.judging.simulate import bad_requests
from model_release.judging.state import Counts

RELEASES = 800
Floats = npt.NDArray[np.float64]


def traffic(
    seed: int,
    canary: npt.ArrayLike,
    stable: npt.ArrayLike,
    canary_rate: npt.ArrayLike,
    stable_rate: npt.ArrayLike,
    *,
    length: int = 200,
    burst: float = 1,
    metrics: int = 1,
    releases: int = RELEASES,
) -> Counts:
    """Releases of `length` windows; requests and rates are numbers or one for each window."""
    rng = np.random.default_rng(seed)
    shape = (releases, length, metrics)

    def spread(values: npt.ArrayLike) -> Floats:
        return np.broadcast_to(np.asarray(values, dtype=float).reshape(-1, 1), (length, 1))

    n, m = spread(canary), spread(stable)
    longest = int(min(n.min(), m.min()))
    requests = [np.broadcast_to(side, shape) for side in (n, m)]
    rates = [np.broadcast_to(spread(rate), shape) for rate in (canary_rate, stable_rate)]
    b, s = (bad_requests(rng, requests[i], rates[i], burst, longest) for i in range(2))
    return Counts(requests[0][..., 0].copy(), b, requests[1][..., 0].copy(), s)


def knowing(counts: Counts, null: float, truth: float, needed: float) -> float:
    """Mean windows of the sequential likelihood-ratio test that knows both rates (SPRT, one-sided)."""
    b, n = counts.canary_bad[..., 0], counts.canary_requests
    logs = (b * np.log(truth / null) + (n - b) * np.log((1 - truth) / (1 - null))).cumsum(axis=1)
    reached = logs >= np.log(needed)
    return float(np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, b.shape[1]).mean())
