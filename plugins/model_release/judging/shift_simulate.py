"""Labels with a known truth: answers drawn by chance, and judged by the very lines that judge real canaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import bets, shift
from .state import Floats

Ints = npt.NDArray[np.int_]

_AT_ONCE = 100_000  # labels in memory together
DESIGN_EFFECT = 4.0  # that a policy assumes unless it says so


@dataclass(frozen=True)
class Courses:
    """For each release the window in which it was rolled back, and in which promoted; 0 where it never was. Either is
    told as if the other had not been looked at. `alone`: the roll-back by the one bet on the rise of a label that was
    told beforehand."""

    rolled_back: Ints
    promoted: Ints
    alone: Ints


def answers(rng: np.random.Generator, shares: Floats, number: int, releases: int, burst: int = 1) -> Floats:
    """How often each label is given (releases, L) in one window, in bursts of so many equal answers."""
    drawn = burst * rng.multinomial(number // burst, shares, releases)
    if number % burst:
        drawn = drawn + rng.multinomial(number % burst, shares, releases)
    out: Floats = np.concatenate([np.zeros((releases, 1)), drawn], axis=1)  # "other" stays empty
    return out


def moved(shares: Floats, label: int, by: float) -> Floats:
    """The shares (..., L) when one label's is larger by so much, and all others are smaller in proportion."""
    there = shares[..., label : label + 1]
    out = shares * (1 - there - by) / (1 - there)
    out[..., label] = there[..., 0] + by
    return out


def courses(
    seed: int,
    canary: Floats,
    stable: Floats,
    answered: tuple[int, int],
    *,
    max_shift: float = 0.1,
    indifference: float = 2.0,
    bursts: tuple[int, int] = (1, 1),
    past: int = 20_000,
    needed: tuple[float, float] = (100.0, 40.0),
    told: int | None = None,
    releases: int = 2000,
) -> Courses:
    """Releases whose sides give labels with these shares, each (T, L), in each window so many times (canary, stable).

    `past`: stable's answers before the release, which are drawn from its first window's shares. `needed`: the evidence
    that rolls back, and that promotes. `told`: the label that the bet beside it is told.
    """
    at_once = max(1, min(releases, _AT_ONCE // stable.shape[1]))
    rng = np.random.default_rng(seed)
    parts: list[Sequence[Ints]] = []
    for begin in range(0, releases, at_once):
        some = min(at_once, releases - begin)
        before = answers(rng, stable[0], past, some) if past else np.zeros((some, stable.shape[1] + 1))
        parts.append(_part(rng, before, canary, stable, answered, max_shift, indifference, bursts, needed, told))
    return Courses(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _part(
    rng: np.random.Generator,
    before: Floats,
    canary: Floats,
    stable: Floats,
    answered: tuple[int, int],
    max_shift: float,
    indifference: float,
    bursts: tuple[int, int],
    needed: tuple[float, float],
    told: int | None,
) -> Sequence[Ints]:
    some, windows = len(before), len(canary)
    state = shift.start(before)
    rolled, promoted, alone = (np.zeros(some, dtype=int) for _ in range(3))
    bet = np.zeros((some, len(shift.BETS)))
    for window in range(windows):
        b = answers(rng, canary[window], answered[0], some, bursts[0])
        s = answers(rng, stable[window], answered[1], some, bursts[1])
        state = shift.extend(state, b, s, max_shift, windows)
        design = shift.design_effect(state, DESIGN_EFFECT)
        _first(rolled, shift.against(state) >= math.log(needed[0]), window)
        _first(promoted, shift.favour(state, indifference * max_shift, design) >= math.log(needed[1]), window)
        if told is not None:
            paid = bets.AT_ONCE + (1 - bets.AT_ONCE) * window / windows
            bet += (bets.AT_ONCE if window == 0 else (1 - bets.AT_ONCE) / windows) * shift.BET_WEIGHTS
            excess = b[:, told + 1] / answered[0] - s[:, told + 1] / answered[1] - max_shift
            bet *= 1 + (excess / (1 + max_shift))[:, None] * shift.BETS
            _first(alone, bet.sum(axis=1) + 1 - paid >= needed[0], window)
    return rolled, promoted, alone


def _first(found: Ints, now: npt.NDArray[np.bool_], window: int) -> None:
    found[(found == 0) & now] = window + 1
