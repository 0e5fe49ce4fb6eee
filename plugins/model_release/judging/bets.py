"""Evidence against a canary: bets on windows, most of them placed at once and the rest later.

A window says x, the bad requests beyond what is fair as a part of what is fair, x ≥ -1. While the canary keeps its
limit, E[x | past] ≤ 0, whatever happens inside the window, so that each bet's wealth, W = Π (1 + λx) with 0 ≤ λ < 1, is
a non-negative supermartingale (Waudby-Smith and Ramdas, JRSS-B 2024). By Ville's inequality (1939) it ever reaches 1/α
with chance at most α.

A product from the first window on remembers every good window against a canary that turns bad later. Here a part of the
money waits and is bet from a later window on (Shin, Ramdas, Rinaldo, "E-detectors", 2022): with w₁ = 0.7 and the rest
spread evenly over the T windows of the deadline,

    A_t = (A_{t-1} + w_t) (1 + λ x_t),        evidence = Σ_λ weight(λ) A_t + the money that still waits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Parts of the largest bet that cannot lose everything. The weights rise with the bet: measured, a regression is found
# sooner than with equal weights in each of the five settings of benchmarks/README.md.
BETS: Floats = (np.arange(12) + 0.5) / 12
BET_WEIGHTS: Floats = BETS / BETS.sum()

AT_ONCE = 0.7  # of the money is bet from the first window on
RICHEST = 1e150  # far beyond any threshold, and far from overflow


def waiting(age: npt.ArrayLike, windows: int) -> Floats:
    """The money that is not bet yet after `age` windows, when what is bet late is spread over `windows`."""
    late = np.clip(np.asarray(age, dtype=float) - 1, 0, windows) / windows
    out: Floats = np.where(np.asarray(age) < 1, 1.0, (1 - AT_ONCE) * (1 - late))
    return out


def wealth(before: Floats, excess: Floats, age: int, windows: int) -> Floats:
    """The wealth of every bet after each window: (..., T, C, K) from (..., C, K) and the excess (..., T, C).

    `age` windows were taken in before. Window by window gives the same bits as many at once.
    """
    path = 1 + np.minimum(excess, RICHEST)[..., None] * BETS
    late = (1 - AT_ONCE) / windows
    # The largest bet grows most. Where even that stays far below the richest, nothing is cut off at each step.
    growth = float(np.log(np.maximum(path[..., -1], 1.0)).sum(axis=-2).max(initial=0.0))
    poor = growth + np.log1p(before.max(initial=0.0)) < np.log(RICHEST) - 1
    now = before
    for place, row in enumerate(np.moveaxis(path, -3, 0), start=age):
        bet = now + (late if place else AT_ONCE) if place <= windows else now
        now = np.multiply(bet, row, out=row)
        if not poor:
            np.minimum(row, RICHEST, out=row)
    return path


def evidence(path: Floats, idle: Floats) -> Floats:
    """log evidence (..., C) of the bets' wealth (..., C, K) and the money `idle` that waits, which broadcasts to it."""
    out: Floats = np.log(path @ BET_WEIGHTS + idle)
    return out
