"""Whether a canary answers as stable does: the labels of both sides, held against a largest shift of their shares.

Both sides are asked by the same users at the same time. Let a window have n canary answers and m of stable's, b and s
of them a label, or a set of labels. While the total variation between the two sides is at most δ, every set's share
differs by at most δ, so that x = b/n - s/m - δ has a conditional mean of at most 0, whatever happens inside the window.
As x ≥ -1 - δ, each bet's wealth, Π (1 + λx) with 0 ≤ λ < 1/(1 + δ), is a non-negative supermartingale, and so is a mean
of them (Waudby-Smith and Ramdas, JRSS-B 2024; Ville 1939). The bets are on each label's rise, on each label's fall, and
on the set of labels that have lately risen; money and set are fixed before the window, from stable's past and the
windows so far. A label that was never seen before counts as "other" in the window in which it comes.

Evidence for: answers count here, deflated by their bursts D. With h = nm/(n + m) and H = Σh, the distance seen is
Δ = Σ_label (Σ h (b/n - s/m))⁺ / H. For a set whose shares differ by at least τ, exp((2τ²H/D) (2f(1 - Δ_set/τ) - f²)) is
an e-value by Hoeffding's lemma, and Δ_set ≤ Δ, so that with Δ it is one for every such set at once: evidence against
"the total variation is at least τ".

Works on arrays with any leading axes: one canary, or thousands of simulated ones. Axes: `...` (releases), L labels, the
first of which is "other", K bets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import bets, clusters, terms
from .evidence import ASSUMED_WEIGHT, FEW_WINDOWS
from .state import Bools, Floats

OTHER = "other"
MOST_LABELS = 1000  # what comes after them counts as "other"

# Parts of the largest bet, and how the money is spread over them. A window's shares never come near the ends of what
# they may be, so nearly all of it is on bold bets: measured, timid ones only cost time.
BETS: Floats = np.array([0.35, 0.7, 0.98])
BET_WEIGHTS: Floats = np.array([0.1, 0.2, 0.7])
# The money on labels that rise, on labels that fall, and on the set of those that have risen.
UP, DOWN, SET = 0.35, 0.3, 0.35
# Of the money on labels that rise, what waits for labels that are not known yet.
FOR_LATER = 0.1
# The set: labels whose share on the canary is so many deviations above stable's, over about so many windows.
DEVIATIONS = 1.5
FORGETTING = 0.95

_FRACTIONS: Floats = np.array([0.3, 0.5, 0.7, 0.9])
_GRID: Floats = np.linspace(0.005, 1.0, 200)


@dataclass(frozen=True)
class ShiftState:
    """All that is remembered of the windows so far."""

    age: int
    up: Floats  # (..., L, K): the wealth of the bets on each label's rise
    down: Floats  # (..., L, K)
    joint: Floats  # (..., K): on the set
    paid: Floats  # (...): the money that was bet so far, of 1
    late: Floats  # (...): labels that came after the first bets
    usual: Floats  # (..., L): stable's answers, its past included
    known: Bools  # (..., L): labels that were seen before
    lately: Floats  # (..., 2, L): answers of canary and stable, older ones weighing less
    canary: Floats  # (..., L): answers in all
    stable: Floats  # (..., L)
    apart: Floats  # (..., L): Σ h (b/n - s/m)
    paired: Floats  # (...): Σ h
    spread: Floats  # (..., 2): Σ h (b/n - s/m)² over labels, and what it would be if answers were independent
    windows: Floats  # (...): in which both sides answered
    silent: Floats  # (...): windows without data in a row

    def grown(self, labels: int) -> ShiftState:
        """The same with room for more labels."""
        more = labels - self.usual.shape[-1]

        def wider(value: npt.NDArray[Any], axis: int = -1) -> npt.NDArray[Any]:
            space = [(0, 0)] * value.ndim
            space[axis] = (0, more)
            return np.pad(value, space)

        return replace(
            self,
            up=wider(self.up, -2),
            down=wider(self.down, -2),
            usual=wider(self.usual),
            known=wider(self.known),
            lately=wider(self.lately),
            canary=wider(self.canary),
            stable=wider(self.stable),
            apart=wider(self.apart),
        )


def start(past: Floats) -> ShiftState:
    """Before the first window. `past` (..., L) are the labels that stable gave before the release, 0 where nothing is
    known of that."""
    zeros, one = np.zeros_like(past, dtype=float), np.zeros(past.shape[:-1])
    money = np.zeros((*past.shape, len(BETS)))
    return ShiftState(
        age=0,
        up=money,
        down=money,
        joint=np.zeros((*past.shape[:-1], len(BETS))),
        paid=one,
        late=one,
        usual=zeros + past,
        known=np.asarray(past > 0),
        lately=np.stack([zeros, zeros], axis=-2),
        canary=zeros,
        stable=zeros,
        apart=zeros,
        paired=one,
        spread=np.zeros((*past.shape[:-1], 2)),
        windows=one,
        silent=one,
    )


def extend(state: ShiftState, canary: Floats, stable: Floats, max_shift: float, windows: int) -> ShiftState:
    """The state after one window with so many answers of each label (..., L); NaN is no data. The bets that start later
    are spread over `windows`. Where one side did not answer nothing is bet."""
    there = np.asarray(~np.isnan(canary + stable).any(axis=-1))
    b_, s_ = (np.where(there[..., None], side, 0.0) for side in (canary, stable))
    n, m = b_.sum(axis=-1), s_.sum(axis=-1)
    both = (n > 0) & (m > 0)
    up, down, joint, paid = _bet(state, windows)
    # Labels that nobody had seen before the window are one label in it.
    b, s = (_merged(side, state.known) for side in (b_, s_))
    u, v = b / np.maximum(n, 1)[..., None], s / np.maximum(m, 1)[..., None]
    apart = np.where(both[..., None], u - v, 0.0)
    rising = _rising(state) & both[..., None]

    def factor(difference: Floats, bet: Bools) -> Floats:
        excess = np.where(bet, difference - max_shift, 0.0) / (1 + max_shift)
        return 1 + excess[..., None] * BETS

    here = np.broadcast_to(both[..., None], apart.shape)
    up, down = up * factor(apart, here), down * factor(-apart, here)
    joint = joint * factor((apart * rising).sum(axis=-1), rising.any(axis=-1))
    # Labels that come now have money of their own from the next window on.
    seen = (b_ + s_) > 0
    fresh = seen & ~state.known & np.asarray(paid > 0)[..., None]
    place = state.late[..., None] + fresh.cumsum(axis=-1)
    late_money = np.where(fresh, bets.AT_ONCE * UP * FOR_LATER / np.maximum(place * (place + 1), 1.0), 0.0)
    up = up + late_money[..., None] * BET_WEIGHTS
    h = n * m / np.maximum(n + m, 1)
    true_apart = np.where(both[..., None], b_ / np.maximum(n, 1)[..., None] - s_ / np.maximum(m, 1)[..., None], 0.0)
    pooled = (b_ + s_) / np.maximum(n + m, 1)[..., None]
    independent = (pooled * (1 - pooled)).sum(axis=-1) * (n + m) / np.maximum(n + m - 1, 1)
    spread = np.stack([h * (true_apart**2).sum(axis=-1), np.where(both, independent, 0.0)], axis=-1)
    return ShiftState(
        age=state.age + 1,
        up=np.minimum(up, bets.RICHEST),
        down=np.minimum(down, bets.RICHEST),
        joint=np.minimum(joint, bets.RICHEST),
        paid=paid + late_money.sum(axis=-1),
        late=state.late + fresh.sum(axis=-1),
        usual=state.usual + s_,
        known=state.known | seen,
        lately=state.lately * FORGETTING + np.where(both[..., None, None], np.stack([b_, s_], axis=-2), 0.0),
        canary=state.canary + b_,
        stable=state.stable + s_,
        apart=state.apart + h[..., None] * true_apart,
        paired=state.paired + h,
        spread=state.spread + spread,
        windows=state.windows + both,
        silent=np.where(there, 0.0, state.silent + 1),
    )


def _bet(state: ShiftState, windows: int) -> tuple[Floats, Floats, Floats, Floats]:
    """The bets with the money that is laid on them before the window: most of it as soon as labels are known, the rest
    a little in each window, more of it on the labels that stable often gives. Nobody's share can fall by more than it
    is."""
    ready = state.known.any(axis=-1)
    first = np.asarray(ready & (state.paid == 0))
    late = (1 - bets.AT_ONCE) / windows if state.age <= windows else 0.0
    money = np.where(first, bets.AT_ONCE, 0.0) + np.where(ready & ~first, late, 0.0)
    usual = np.where(state.known, state.usual, 0.0)
    share = usual / np.maximum(usual.sum(axis=-1, keepdims=True), 1.0)
    even = state.known / np.maximum(state.known.sum(axis=-1, keepdims=True), 1)
    at_first = money * np.where(first, 1 - FOR_LATER, 1.0)
    rise = (at_first * UP)[..., None] * (even + share) / 2
    fall = (money * DOWN)[..., None] * share
    together = money * SET
    return (
        state.up + rise[..., None] * BET_WEIGHTS,
        state.down + fall[..., None] * BET_WEIGHTS,
        state.joint + together[..., None] * BET_WEIGHTS,
        state.paid + rise.sum(axis=-1) + fall.sum(axis=-1) + together,
    )


def _merged(counts: Floats, known: Bools) -> Floats:
    out = np.where(known, counts, 0.0)
    out[..., 0] += np.where(known, 0.0, counts).sum(axis=-1)
    return out


def _rising(state: ShiftState) -> Bools:
    """The labels that are on the canary more often than on stable, by what was seen before the window."""
    n, m = state.lately[..., 0, :].sum(axis=-1), state.lately[..., 1, :].sum(axis=-1)
    u = state.lately[..., 0, :] / np.maximum(n, 1e-9)[..., None]
    v = state.lately[..., 1, :] / np.maximum(m, 1e-9)[..., None]
    pooled = (state.lately.sum(axis=-2)) / np.maximum(n + m, 1e-9)[..., None]
    variance = pooled * (1 - pooled) * (1 / np.maximum(n, 1e-9) + 1 / np.maximum(m, 1e-9))[..., None]
    out: Bools = (u - v > DEVIATIONS * np.sqrt(variance)) & state.known & ((n > 0) & (m > 0))[..., None]
    return out


def against(state: ShiftState) -> Floats:
    """log evidence (...) that the distance is above `max_shift`."""
    bet = state.up.sum(axis=(-1, -2)) + state.down.sum(axis=(-1, -2)) + state.joint.sum(axis=-1)
    out: Floats = np.log(bet + 1 - state.paid)
    return out


def distance(state: ShiftState) -> Floats:
    """The distance seen (...), 0 to 1: on the average above the true one, and the more so the fewer answers a label
    has."""
    out: Floats = np.maximum(state.apart, 0.0).sum(axis=-1) / np.maximum(state.paired, 1e-9)
    return out


def design_effect(state: ShiftState, assumed: float) -> Floats:
    """How many answers are worth one independent one (...), at least 1: the dispersion of the sides' difference. So
    neither what swings on both of them nor a lasting shift is a burst."""
    worth = np.maximum(state.windows - 1, 0.0)
    lasting = (state.apart**2).sum(axis=-1) / np.maximum(state.paired, 1e-9)
    expected = state.spread[..., 1] * worth / np.maximum(state.windows, 1.0)
    seen = np.maximum(state.spread[..., 0] - lasting, 0.0) / np.maximum(expected, 1e-9)
    mixed = (worth * terms.surely(seen, worth) + ASSUMED_WEIGHT * assumed) / (worth + ASSUMED_WEIGHT)
    out: Floats = np.maximum(mixed, 1.0) * (1 + FEW_WINDOWS / np.maximum(state.windows, 1.0) ** 4)
    return out


def favour(state: ShiftState, bound: npt.ArrayLike, design: Floats) -> Floats:
    """log evidence that the distance is below `bound`, 0 to 1; they broadcast."""
    tau = np.asarray(bound, dtype=float)
    worth = 2 * tau**2 * state.paired / design
    left = 1 - distance(state) / tau
    logs = worth[..., None] * (2 * _FRACTIONS * left[..., None] - _FRACTIONS**2)
    return clusters.mixed(logs, np.full(len(_FRACTIONS), -math.log(len(_FRACTIONS))))


def at_deadline(state: ShiftState, bound: float, design: Floats, risk: float) -> Bools:
    """Whether the distance is shown to be below `bound`, at one look that was fixed before (McDiarmid 1989)."""
    left = np.maximum(bound - distance(state), 0.0)
    out: Bools = np.exp(-2 * left**2 * state.paired / design) <= risk
    return out


def interval(state: ShiftState, design: float, confidence: float = clusters.CONFIDENCE) -> tuple[float, float]:
    """The ends of the distance of one canary, over all looks; a label's own difference is a lower one."""
    bar = math.log(2 / (1 - confidence))
    shown = favour(state, _GRID, np.full(_GRID.shape, design)) >= bar
    high = float(_GRID[shown.argmax()]) if shown.any() else 1.0
    paired = float(state.paired)
    if not paired:
        return 0.0, high
    # Robbins' mixture over normal bets; its own width is chosen for some hundred answers.
    variance, width = design * paired / 4, 25.0 * design
    labels = max(int(state.known.sum()), 1)
    radius = (
        math.sqrt((variance + width) * (2 * (bar + math.log(2 * labels)) + math.log(1 + variance / width))) / paired
    )
    largest = float(np.abs(state.apart).max()) / paired
    return max(0.0, largest - radius), high


def binned(counts: Mapping[str, int], most: int = MOST_LABELS) -> dict[str, int]:
    """The counts with at most so many labels: the rarest ones, and those without a name, are "other"."""
    named = {label: count for label, count in counts.items() if label and label != OTHER and count}
    kept = sorted(named, key=lambda label: (-named[label], label))[:most]
    out = {label: named[label] for label in sorted(kept)}
    rest = sum(counts.values()) - sum(out.values())
    return out | ({OTHER: rest} if rest else {})
