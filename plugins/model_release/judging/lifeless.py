"""A canary of which nothing works: windows in a row of bad requests alone.

While the canary keeps its limit L, E[b/n | past] ≤ L in each window. So k given windows in a row are wholly bad with a
chance of at most L^k, however their requests burst: of L^k from the first request on, and of at most T L^k anywhere in
T windows.
"""

from __future__ import annotations

import math

import numpy as np

from .state import Bools, Floats

REQUESTS = 5  # in a window, all of them bad
LEAST = 2  # windows in a row


def rows(before: Floats, n: Floats, b: Floats, m: Floats, s: Floats) -> Floats:
    """Two figures after each window (..., T, M, 2), from those before (..., M, 2) and the counts (..., T, M).

    The windows in a row in which each of at least five requests was bad and stable's were not, and whether any request
    ever was good. A window with fewer requests, all bad, changes nothing.
    """
    good = (n > b) | ((m > 0) & (2 * s >= m) & (n > 0))
    lost = ((n >= REQUESTS) & ~good).cumsum(axis=-2) + before[..., None, :, 0]
    ended = np.maximum.accumulate(np.where(good, lost, 0.0), axis=-2)
    worked = np.maximum.accumulate(np.maximum(good, before[..., None, :, 1]), axis=-2)
    return np.stack([lost - ended, worked], axis=-1)


def dead(found: Floats, limit: Floats, risk: float, windows: int) -> Bools:
    """Whether the windows in a row (..., M, 2) are more than a canary within `limit` (..., M) has in `windows` with a
    chance of `risk`."""
    needed = np.where(found[..., 1] > 0, math.log(risk / windows), math.log(risk)) / np.log(limit)
    out: Bools = found[..., 0] >= np.maximum(np.ceil(needed), LEAST)
    return out
