"""The e-processes: how counts become evidence for and against a canary.

Everything here works on arrays with any leading axes, so the judge of one canary, the simulations of
thousands of releases, the plan and the calibration run the same lines. README.md derives the formulas.

Axes: `...` (releases), T windows, M metrics, then the columns of `Sums`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .policy import Policy

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Bets against the canary as parts of the largest one that cannot lose everything. The weights rise with the
# bet: measured, it finds a regression sooner than equal weights in each of the five settings of benchmarks/README.md.
BETS: Floats = (np.arange(12) + 0.5) / 12
LOG_BET_WEIGHTS: Floats = np.log(BETS / BETS.sum())

# Alternatives below the limit, as parts of it. Most weight lies on the fifth, where a healthy service is.
FRACTIONS: Floats = np.array([1e-6, 0.1, 0.2, 0.35, 0.5, 0.7])
LOG_FRACTIONS: Floats = np.log(FRACTIONS)
LOG_FRACTION_WEIGHTS: Floats = np.log(np.array([0.05, 0.1, 0.5, 0.2, 0.1, 0.05]))

# How much the assumed design effect weighs, in windows fully worth of measuring it.
ASSUMED_WEIGHT = 0.15
# One or two windows cannot show bursts: counts weigh 21 times less in the first, twice less after the second.
FEW_WINDOWS = 20.0

# Requests that one client may send to one side in a row, for the check of the traffic's split.
SAME_CLIENT = 10.0
TRAFFIC_ODDS = 2.0  # the split is as asked for while its odds are within this factor
TRAFFIC_TOLERANCE = 0.02  # or its share within this difference

LARGEST_LOG = 230.0  # evidence is reported up to 1e100: enough for anyone, far from overflow

# Columns of `State.sums`: for each of three hypotheses (the absolute limit, the ratio's floor, the ratio to stable)
# the log wealth of every bet, then for each of the three the log likelihood ratio of every alternative.
_K, _J = len(BETS), len(FRACTIONS)
_AGAINST = slice(0, 3 * _K)
_FOR = slice(3 * _K, 3 * (_K + _J))
_TOTALS = 3 * (_K + _J)
CANARY_REQUESTS, CANARY_BAD, CANARY_WINDOWS = range(_TOTALS, _TOTALS + 3)
STABLE_REQUESTS, STABLE_BAD, STABLE_WINDOWS, STABLE_SQUARES = range(_TOTALS + 3, _TOTALS + 7)
COLUMNS = _TOTALS + 7


@dataclass(frozen=True)
class Counts:
    """What was counted; NaN is no data. Requests are (..., T), bad requests (..., T, M)."""

    canary_requests: Floats
    canary_bad: Floats
    stable_requests: Floats
    stable_bad: Floats


@dataclass(frozen=True)
class State:
    """All that is remembered of the windows so far. With a T axis before M it is a path, one state a window."""

    sums: Floats  # (..., M, COLUMNS)
    split: Floats  # (..., 2): requests of the canary, of both
    silent: Floats  # (..., M): windows without data in a row

    def at(self, window: int) -> State:
        """The state after one window of a path that has no leading axes."""
        return State(self.sums[window], self.split[window], self.silent[window])


@dataclass(frozen=True)
class Readings:
    """What a state, or each state of a path, says. Evidence is in logarithms; -inf for a metric without limits."""

    against: Floats  # (..., M): some limit is exceeded
    favour: Floats  # (..., M): every limit is kept
    rate_is_worse: Bools  # (..., M): the absolute limit is the more broken one
    design: Floats  # (..., M): how many requests are worth one now, at least 1
    lasting: Floats  # (..., M): and once a few windows more have been seen
    split: Floats  # (...): the canary's share of requests is not near the wanted one

    def at(self, window: int) -> Readings:
        """The readings after one window of a path that has no leading axes."""
        return Readings(
            self.against[window],
            self.favour[window],
            self.rate_is_worse[window],
            self.design[window],
            self.lasting[window],
            self.split[window],
        )


class Evidence:
    """The evidence that a policy asks for. Holds no counts: `extend` takes a state and gives the next ones."""

    def __init__(self, policy: Policy) -> None:
        metrics = policy.metrics
        self.policy = policy
        has_rate: Bools = np.array([m.max_rate is not None for m in metrics])
        self._has_ratio: Bools = np.array([m.max_ratio is not None for m in metrics])
        has_floor: Bools = np.array([m.max_ratio is not None and m.floor > 0 for m in metrics])
        self._ratio = np.array([m.max_ratio or 1.0 for m in metrics])
        # The two limits on the canary alone; a metric that lacks one gets a stand-in that is masked below.
        rate = np.array([m.max_rate or 0.5 for m in metrics])
        floor = np.array([(m.max_ratio or 0.0) * m.floor or 0.5 for m in metrics])
        # Beside a smaller limit the bad requests of a large window are more than a float can say.
        self._alone = np.maximum(np.stack([rate, floor], axis=-1), 1e-15)
        limit = self._alone[..., None]
        self._good_logs = np.log1p(limit * (1 - FRACTIONS) / (1 - limit))
        both = has_rate & self._has_ratio
        with np.errstate(divide="ignore"):
            self._rate_share = np.log(np.where(both, 0.5, has_rate * 1.0))
            self._ratio_share = np.log(np.where(both, 0.5, self._has_ratio * 1.0))
            self._relative_share = np.log(np.where(has_floor, 0.5, 1.0))
            self._floor_share = np.log(np.where(has_floor, 0.5, 0.0))
        # Added before a minimum, to leave out what a metric has not; nothing is left of one without limits.
        self._no_floor = np.where(has_floor, 0.0, np.inf)
        self._no_rate = np.where(has_rate, 0.0, np.where(self._has_ratio, np.inf, -np.inf))
        self._no_ratio = np.where(self._has_ratio, 0.0, np.inf)
        self.log_needed_against = float(np.log(policy.needed_against))
        self.log_needed_for = float(np.log(policy.needed_for))
        self.log_needed_split = float(np.log(policy.needed_traffic))
        self._split_logs = None if policy.traffic is None else _split_logs(policy.traffic)
        alternatives = 1 if self._split_logs is None else len(self._split_logs[0])
        self._split_weights = np.full(alternatives, -np.log(alternatives))

    def start(self, releases: tuple[int, ...] = ()) -> State:
        metrics = len(self.policy.metrics)
        return State(np.zeros((*releases, metrics, COLUMNS)), np.zeros((*releases, 2)), np.zeros((*releases, metrics)))

    def extend(self, state: State, counts: Counts) -> State:
        """The path of states after each of the T windows of `counts`, T at least 1."""
        canary, stable = counts.canary_requests[..., None], counts.stable_requests[..., None]
        canary_known = ~np.isnan(canary + counts.canary_bad)
        stable_known = ~np.isnan(stable + counts.stable_bad)
        n, b = np.where(canary_known, canary, 0.0), np.where(canary_known, counts.canary_bad, 0.0)
        m, s = np.where(stable_known, stable, 0.0), np.where(stable_known, counts.stable_bad, 0.0)
        # Where one side has no requests or no data, the sides are not compared: its columns do not move.
        beside = canary_known & stable_known & (n > 0) & (m > 0)
        b_beside, s_beside = b * beside, s * beside
        weighted = self._ratio * n
        part = np.minimum(np.maximum(weighted / np.maximum(weighted + m, 1e-300), 1e-15), 1 - 1e-15)

        # Bad requests beyond what is fair, as a part of what is fair; 0, no bet, where there is nothing to share.
        excess = np.empty((*b.shape, 3))
        excess[..., :2] = (b[..., None] / self._alone - n[..., None]) / np.maximum(n, 1.0)[..., None]
        all_bad = b_beside + s_beside
        excess[..., 2] = (b_beside / part - all_bad) / np.maximum(all_bad, 1.0)
        wealth = np.log1p(excess[..., None] * BETS)

        likelihood = np.empty((*b.shape, 3, _J))
        b_, good_ = b[..., None, None], (n - b)[..., None, None]
        likelihood[..., :2, :] = b_ * LOG_FRACTIONS + good_ * self._good_logs
        rest = (1 - part)[..., None]
        whole = rest + part[..., None] * FRACTIONS
        likelihood[..., 2, :] = b_beside[..., None] * LOG_FRACTIONS - all_bad[..., None] * np.log(whole)

        steps = np.empty((*b.shape, COLUMNS))
        steps[..., _AGAINST] = wealth.reshape(*b.shape, 3 * _K)
        steps[..., _FOR] = likelihood.reshape(*b.shape, 3 * _J)
        steps[..., CANARY_REQUESTS], steps[..., CANARY_BAD], steps[..., CANARY_WINDOWS] = n, b, n > 0
        steps[..., STABLE_REQUESTS], steps[..., STABLE_BAD], steps[..., STABLE_WINDOWS] = m, s, m > 0
        steps[..., STABLE_SQUARES] = s * s / np.maximum(m, 1.0)
        known = canary_known & (stable_known | ~self._has_ratio)
        split = np.concatenate([canary, canary + stable], axis=-1)
        split[np.isnan(split[..., 1])] = 0.0
        return State(_running(state.sums, steps, -3), _running(state.split, split, -2), _silence(state.silent, known))

    def read(self, state: State) -> Readings:
        """The evidence of a state or of a whole path."""
        lasting, few = self._design_effect(state.sums)
        design = lasting * few
        against, rate_is_worse = self.against(state.sums)
        favour = self.favour(state.sums, design)
        return Readings(against, favour, rate_is_worse, design, lasting, self._read_split(state.split))

    def against(self, sums: Floats) -> tuple[Floats, Bools]:
        """log evidence against (..., M), and whether the absolute limit is the more broken one."""
        parts = _mix(sums[..., _AGAINST].reshape(*sums.shape[:-1], 3, _K), LOG_BET_WEIGHTS)
        rate = parts[..., 0] + self._rate_share
        ratio = np.minimum(parts[..., 2], parts[..., 1] + self._no_floor) + self._ratio_share
        return np.logaddexp(rate, ratio), rate >= ratio

    def favour(self, sums: Floats, design: Floats) -> Floats:
        """log evidence for (..., M), with counts divided by the design effect."""
        logs = sums[..., _FOR].reshape(*sums.shape[:-1], 3, _J) / design[..., None, None]
        parts = _mix(logs, LOG_FRACTION_WEIGHTS)
        ratio = np.logaddexp(parts[..., 2] + self._relative_share, parts[..., 1] + self._floor_share)
        out: Floats = np.minimum(parts[..., 0] + self._no_rate, ratio + self._no_ratio)
        return out

    def _design_effect(self, sums: Floats) -> tuple[Floats, Floats]:
        """How many of the stable's requests are worth one independent one, and how much less in so few windows.

        Both (..., M) and at least 1. Pearson's dispersion of the stable's bad counts over its windows, mixed with the
        policy's assumption in proportion to what the windows can tell (README.md, "Bursts").
        """
        total, bad = sums[..., STABLE_REQUESTS], sums[..., STABLE_BAD]
        windows = sums[..., STABLE_WINDOWS]
        rate = np.minimum(bad / np.maximum(total, 1.0), 1 - 1e-12)
        squares = np.maximum(sums[..., STABLE_SQUARES] - bad * rate, 0.0)
        free = np.maximum(windows - 1, 0.0)
        dispersion = squares / np.maximum(rate * (1 - rate) * free, 1e-12)
        worth = 2 * bad * free / np.maximum(2 * bad + windows, 1.0)
        mixed = (worth * dispersion + ASSUMED_WEIGHT * self.policy.design_effect) / (worth + ASSUMED_WEIGHT)
        looked = np.maximum(np.maximum(windows, sums[..., CANARY_WINDOWS]), 1.0)
        return np.maximum(mixed, 1.0), 1 + FEW_WINDOWS / looked**4

    def _read_split(self, split: Floats) -> Floats:
        if self._split_logs is None:
            return np.full(split.shape[:-1], -np.inf)
        on_canary, on_stable = self._split_logs
        canary = split[..., :1]
        logs = (canary * on_canary + (split[..., 1:] - canary) * on_stable) / SAME_CLIENT
        return _mix(logs, self._split_weights)


def _mix(logs: Floats, log_weights: Floats) -> Floats:
    """log of the weighted mean of exp(logs) over the last axis."""
    terms = logs + log_weights
    top = np.maximum.reduce(terms, axis=-1)
    out: Floats = top + np.log(np.add.reduce(np.exp(terms - top[..., None]), axis=-1))
    return out


def reported(log_evidence: float) -> float:
    """Evidence as a number a person can read; four digits, so that any machine prints the same."""
    return float(f"{math.exp(min(log_evidence, LARGEST_LOG)):.4g}")


def _split_logs(wanted: float) -> tuple[Floats, Floats]:
    """Log likelihood ratios of one request on the canary and of one on stable, for each alternative split.

    The null is every share within the tolerated band; an alternative lies beyond the band's nearer edge.
    """
    low = min(_share(wanted, 1 / TRAFFIC_ODDS), wanted - TRAFFIC_TOLERANCE)
    high = max(_share(wanted, TRAFFIC_ODDS), wanted + TRAFFIC_TOLERANCE)
    pairs = [(low, _share(low, odds)) for odds in (1e-6, 0.5) if low > 0]
    pairs += [(high, _share(high, odds)) for odds in (2.0, 1e6) if high < 1]
    edge, other = np.array(pairs).T
    return np.log(other / edge), np.log((1 - other) / (1 - edge))


def _share(share: float, odds: float) -> float:
    """The share whose odds are `odds` times those of `share`."""
    return odds * share / (odds * share + 1 - share)


def _running(before: Floats, steps: Floats, axis: int) -> Floats:
    """Sums after each window. The sum so far is the first term, so one window at a time gives the same bits."""
    if steps.shape[axis] == 1:
        out: Floats = np.expand_dims(before, axis) + steps
        return out
    path = np.concatenate([np.expand_dims(before, axis), steps], axis=axis).cumsum(axis=axis)
    return path[..., 1:, :] if axis == -2 else path[..., 1:, :, :]


def _silence(before: Floats, known: Bools) -> Floats:
    """Windows without data in a row, up to and including each."""
    if known.shape[-2] == 1:
        return np.where(known, 0.0, before[..., None, :] + 1)
    order = np.arange(1, known.shape[-2] + 1)[:, None]
    last = np.maximum.accumulate(np.where(known, order, 0), axis=-2)
    out: Floats = order - last + np.where(last == 0, before[..., None, :], 0.0)
    return out
