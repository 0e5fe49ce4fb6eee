"""The evidence of a release, window by window: counts in, evidence for and against out.

Everything here works on arrays with any leading axes, so the judge of one canary, the simulations of thousands of
releases, the plan and the calibration run the same lines. bets.py has the evidence against, clusters.py that for.

Axes: `...` (releases), T windows, C columns: the policy's metrics, then one for each edge of a latency histogram.
"""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import numpy.typing as npt

from . import bets, clusters, lifeless, split, terms
from .past import Usual, dispersion, last_six, lasting, usual
from .policy import Policy
from .state import (
    ASIDE,
    BAD,
    CALM_CANARY,
    CALM_STABLE,
    CANARY_SQUARES,
    COLUMNS,
    FLOOR_BAD,
    FLOOR_REQUESTS,
    RATE_BAD,
    RATE_REQUESTS,
    RELATIVE,
    REQUESTS,
    STABLE_BAD,
    STABLE_REQUESTS,
    STABLE_SQUARES,
    STABLE_WINDOWS,
    WINDOWS,
    Bools,
    Counts,
    EvidenceState,
    Floats,
    Readings,
)

# How much the assumed design effect weighs, in windows fully worth of measuring it.
ASSUMED_WEIGHT = 0.15
# A past of stable's is worth so many windows at most: bursts change.
PAST_WEIGHT = 100.0
# One or two windows cannot show bursts: counts weigh 21 times less in the first, twice less after the second.
FEW_WINDOWS = 20.0
LARGEST_DESIGN = 1e6  # beyond it a float cannot tell a burst from another

# Stable is ill where its last six windows together are near the absolute limit: what the canary does then is no news.
ILL = 0.8
ILL_REQUESTS = 3
# Stable's usual rate is taken this many of its own deviations higher than it was seen.
ABOVE_USUAL = 2.0
LEAST_FLOOR = 1e-4  # where a policy has none

DEAD_PART = 0.25  # of α, for canaries of which nothing works


class Evidence:
    """The evidence that a policy asks for. Holds no counts of the release: `extend` takes a state and gives the next.

    `past`: stable's requests and bad ones before the release, each (..., H, M).
    """

    def __init__(self, policy: Policy, past: tuple[Floats, Floats] | None = None) -> None:
        self.policy = policy
        metrics = policy.metrics
        self._owner = [i for i, metric in enumerate(metrics) for _ in metric.edges]
        every = [*metrics, *(metrics[i] for i in self._owner)]
        self._main = len(metrics)
        self._has_rate: Bools = np.array([m.max_rate is not None for m in every])
        self._has_rate[self._main :] = False
        self._has_ratio: Bools = np.array([m.max_ratio is not None for m in every])
        self._ratio = np.array([m.max_ratio or 1.0 for m in every])
        self._floor = np.array([m.floor for m in every])
        # Beside a smaller limit the bad requests of a large window are more than a float can say.
        self._rate = np.maximum([m.max_rate or 0.5 for m in every], 1e-15)
        self._rates, self._ratios = np.flatnonzero(self._has_rate), np.flatnonzero(self._has_ratio)
        gamma = policy.indifference
        main = slice(0, self._main)
        self._beyond_rate = terms.beyond(self._rate[main], gamma)
        self._beyond_floor = terms.beyond(np.clip(self._ratio * self._floor, 1e-15, 1 - 1e-9)[main], gamma)
        self._beyond_ratio = self._ratio * gamma
        equal = 1 / np.maximum(self._beyond_ratio, 1.25)  # as good as stable, an alternative where a past says so
        self._fractions = np.concatenate(
            [np.broadcast_to(clusters.FRACTIONS, (len(every), len(clusters.FRACTIONS))), equal[:, None]], axis=-1
        )
        has_floor = (self._has_ratio & (self._floor > 0))[main]
        has_rate, has_ratio = self._has_rate[main], self._has_ratio[main]
        with np.errstate(divide="ignore"):
            self._rate_part = np.log(np.where(has_ratio, 0.5, 1.0) * has_rate)
            self._ratio_part = np.log(np.where(has_rate, 0.5, 1.0) * has_ratio)
        self.has_floor, self.has_rate, self.has_ratio = has_floor, has_rate, has_ratio
        self._read_past(past)
        self.log_needed_against = math.log(policy.needed_against)
        self.log_needed_for = math.log(policy.needed_for)
        self.log_needed_split = math.log(policy.needed_traffic)
        self._idle = policy.deadline_windows

    def _read_past(self, past: tuple[Floats, Floats] | None) -> None:
        """Stable's past as the three places need it that ask for it."""
        nothing = np.zeros(self._main)
        self.usual = Usual(nothing, nothing, nothing, nothing, nothing, nothing)
        if past is not None:
            main = slice(0, self._main)
            mean = np.nansum(past[1], axis=-2) / np.maximum(np.nansum(past[0], axis=-2), 1.0)
            level = np.where(self.has_rate, self._rate[main], 1.0)
            beside = self._ratio[main] * np.maximum(self._floor[main], mean)
            self.usual = usual(*past, np.where(self.has_ratio, np.minimum(level, beside), level))
        if self.usual.requests.ndim > 1:  # many releases, each with its own past: beside paths (R, T, M)
            self.usual = Usual(*(getattr(self.usual, f.name)[:, None, :] for f in fields(Usual)))
        seen = self.usual.requests > 0
        weight = np.minimum(self.usual.worth, PAST_WEIGHT)
        self._assumed = ASSUMED_WEIGHT + weight
        self._assumed_design = (
            weight * terms.surely(self.usual.dispersion, self.usual.worth) + ASSUMED_WEIGHT * self.policy.design_effect
        ) / self._assumed
        self._windows_before = np.minimum(self.usual.windows, 3)
        extra = [*self.usual.requests.shape[:-1], len(self._owner)]
        self._requests_before = np.concatenate([self.usual.requests, np.zeros(extra)], axis=-1)
        self._bad_before = np.concatenate([self.usual.bad, np.zeros(extra)], axis=-1)
        from_past = np.where(seen, 0.5, 0.0)[..., None]
        with np.errstate(divide="ignore"):
            self._log_weights = np.log(np.concatenate([clusters.WEIGHTS * (1 - from_past), from_past], axis=-1))
            relative = np.where(seen, np.where(self.usual.rate < self._floor[: self._main], 0.1, 0.9), 0.5)
            relative = np.where(self.has_floor, relative, 1.0)
            self._relative_part, self._floor_part = np.log(relative), np.log(1 - relative)
        self._alternatives = {
            name: np.clip(self.usual.rate / limit, 0.02, 0.8)[..., None]
            for name, limit in (("rate", self._beyond_rate), ("floor", self._beyond_floor))
        }

    def start(self, releases: tuple[int, ...] = ()) -> EvidenceState:
        every = self._main + len(self._owner)
        hypotheses = len(self._rates) + 2 * len(self._ratios)
        dead = np.zeros((*releases, self._main, 2))
        return EvidenceState(
            0,
            np.zeros((*releases, hypotheses, len(bets.BETS))),
            np.zeros((*releases, every, COLUMNS)),
            np.zeros((*releases, 5, every, 6)),
            np.zeros((*releases, self._main)),
            dead,
            np.zeros((*releases, every)),
            np.zeros((*releases, split.ALTERNATIVES)),
        )

    def extend(self, state: EvidenceState, counts: Counts) -> EvidenceState:
        """The path of states after each of the T windows of `counts`, T at least 1."""
        canary = terms.totals(counts.canary_totals, counts.canary_requests, self._owner)
        stable = terms.totals(counts.stable_totals, counts.stable_requests, self._owner)
        canary_bad, stable_bad = counts.canary_bad, counts.stable_bad
        if self._owner:
            canary_bad = np.concatenate(
                [canary_bad, terms.edges(counts.canary_edges, canary_bad, self._owner)], axis=-1
            )
            stable_bad = np.concatenate(
                [stable_bad, terms.edges(counts.stable_edges, stable_bad, self._owner)], axis=-1
            )
        canary_known = ~np.isnan(canary + canary_bad)
        stable_known = ~np.isnan(stable + stable_bad)
        n, b = np.where(canary_known, canary, 0.0), np.where(canary_known, canary_bad, 0.0)
        m, s = np.where(stable_known, stable, 0.0), np.where(stable_known, stable_bad, 0.0)
        steps = np.empty((*b.shape, COLUMNS))
        steps[..., REQUESTS], steps[..., BAD], steps[..., WINDOWS] = n, b, n > 0
        steps[..., STABLE_REQUESTS], steps[..., STABLE_BAD], steps[..., STABLE_WINDOWS] = m, s, m > 0
        steps[..., STABLE_SQUARES] = s * s / np.maximum(m, 1.0)
        usual_rate = self._usual_rate(state.sums, steps)
        now = np.stack(
            [
                m,
                s,
                terms.hot(s, m, self._rate),
                terms.hot(s, m, self._ratio * self._floor),
                terms.hot(s, m, self._ratio * usual_rate),
                np.zeros_like(m),
            ],
            axis=-1,
        )
        recent = np.concatenate([state.recent, now], axis=-3)
        bet_rate, for_rate, for_floor, calm = self._kept(recent)
        recent[..., 5:, :, 5] = calm
        for where, total, bad in ((CALM_STABLE, m * calm, s * calm), (CALM_CANARY, n * calm, b * calm)):
            steps[..., where] = terms.dispersed(total, bad)
        if not calm.all():
            hot = np.where(self._has_ratio, recent[..., 4], recent[..., 2] * self._has_rate) > 0
            steps[..., CALM_STABLE] -= terms.onset(recent[..., 0], recent[..., 1], hot, recent[..., 5] > 0)
        steps[..., CANARY_SQUARES] = b * b / np.maximum(n, 1.0)
        steps[..., RATE_REQUESTS], steps[..., RATE_BAD] = n * for_rate, b * for_rate
        steps[..., FLOOR_REQUESTS], steps[..., FLOOR_BAD] = n * for_floor, b * for_floor
        steps[..., ASIDE] = (self._has_rate & ~(bet_rate & for_rate)) & (n > 0)
        # Where one side has no requests or no data, the sides are not compared: its columns do not move.
        beside = canary_known & stable_known & (n > 0) & (m > 0)
        b_beside, all_bad = b * beside, (b + s) * beside
        steps[..., RELATIVE] = terms.relative(n, m, b_beside, all_bad, self._beyond_ratio, self._fractions)
        excess = np.concatenate(
            [
                (terms.alone(n, b, self._rate) * bet_rate)[..., self._rates],
                terms.alone(n, b, np.clip(self._ratio * usual_rate, 1e-15, 1 - 1e-9))[..., self._ratios],
                terms.beside(n, m, b_beside, all_bad, self._ratio)[..., self._ratios],
            ],
            axis=-1,
        )
        main = slice(0, self._main)
        known = canary_known[..., main] & (stable_known[..., main] | ~self.has_ratio)
        wanted = np.full(counts.canary_requests.shape[-1], np.nan)
        if self.policy.traffic is not None:
            wanted[:] = self.policy.traffic
            if counts.share is not None:
                wanted = np.where(np.isnan(counts.share), wanted, counts.share)
        both = counts.canary_requests + counts.stable_requests
        return EvidenceState(
            state.age,
            bets.wealth(state.wealth, excess, state.age, self._idle),
            terms.running(state.sums, steps),
            recent,
            terms.silence(state.silent, known),
            lifeless.rows(state.dead, n[..., main], b[..., main], m[..., main], s[..., main]),
            usual_rate,
            split.extend(state.split, counts.canary_requests, both, wanted),
        )

    def read(self, state: EvidenceState, ages: npt.ArrayLike | None = None) -> Readings:
        """The evidence of a state; with `ages` (T), the windows taken in by then, of a whole path."""
        at_end = np.asarray(state.age if ages is None else ages)
        design, few = self._design_effect(state.sums[..., : self._main, :])
        against, rate_is_worse = self.against(state.wealth, at_end[..., None])
        favour = self.favour(state.sums[..., : self._main, :], design * few)
        return Readings(
            against, favour, rate_is_worse, self._dead(state), design * few, design, split.read(state.split)
        )

    def read_path(self, path: EvidenceState) -> Readings:
        """The evidence after each window of a path."""
        return self.read(path, path.age + 1 + np.arange(path.sums.shape[-3]))

    def against(self, wealth: Floats, age: npt.ArrayLike) -> tuple[Floats, Bools]:
        """log evidence against (..., M), and whether the absolute limit is the more broken one.

        A mean of e-processes is one: of the two limits, and of the edges of a latency histogram. Of a limit beside
        stable the smaller of two counts: worse than stable now, and worse than stable usually is, as it takes both.
        """
        rate, ratio = self._apart(wealth, age)
        rate, edges, ratio = rate[..., : self._main], ratio[..., self._main :], ratio[..., : self._main]
        for i in sorted(set(self._owner)):
            mine = edges[..., [j for j, owner in enumerate(self._owner) if owner == i]]
            of_edges = clusters.mixed(mine, np.full(mine.shape[-1], -math.log(mine.shape[-1])))
            ratio[..., i] = np.logaddexp(ratio[..., i], of_edges) - math.log(2)
        rate, ratio = rate + self._rate_part, ratio + self._ratio_part
        return np.logaddexp(rate, ratio), rate >= ratio

    def worst_edge(self, state: EvidenceState, metric: int) -> tuple[float, int] | None:
        """Of a metric that is compared at several edges, the one that speaks most against the canary, in milliseconds,
        and its column; None where the limit's own does. `state` has no leading axes."""
        mine = [self._main + j for j, owner in enumerate(self._owner) if owner == metric]
        ratio = self._apart(state.wealth, np.asarray(state.age)[None])[1]
        worst = max(mine, key=lambda column: float(ratio[column]), default=metric)
        if ratio[worst] <= ratio[metric]:
            return None
        return self.policy.metrics[metric].edges[worst - mine[0]], worst

    def _apart(self, wealth: Floats, age: npt.ArrayLike) -> tuple[Floats, Floats]:
        """log evidence against the absolute limits, and against those beside stable, each (..., C)."""
        logs = bets.evidence(wealth, bets.waiting(age, self._idle))
        rates, ratios = len(self._rates), len(self._ratios)
        rate = np.full((*logs.shape[:-1], self._main + len(self._owner)), -np.inf)
        ratio = rate.copy()
        rate[..., self._rates] = logs[..., :rates]
        ratio[..., self._ratios] = np.minimum(logs[..., rates : rates + ratios], logs[..., rates + ratios :])
        return rate, ratio

    def favour(self, sums: Floats, design: Floats) -> Floats:
        """log evidence for (..., M): every limit is kept, and the weakest counts."""
        rate, ratio = self._for_each(sums, design)
        return np.where(self.has_rate | self.has_ratio, np.minimum(rate, ratio), -np.inf)

    def at_deadline(self, state: EvidenceState, risk: float | None = None) -> Bools:
        """Whether each metric (..., M) is shown to keep its limits by all that was seen, at one look that was fixed
        before: for each limit by its evidence so far, or by a test of fixed size at `risk`, the policy's unless
        said."""
        sums = state.sums[..., : self._main, :]
        design, few = self._design_effect(sums)
        burst = (design * few + 1) / 2
        rate, ratio = self._for_each(sums, design * few)
        most = self.policy.deadline_risk if risk is None else risk
        # Which windows are taken is stable's to say, never the canary's counts: one test, of one size.
        mostly_ill = 2 * sums[..., RATE_REQUESTS] <= sums[..., REQUESTS]
        bad = np.where(mostly_ill, sums[..., BAD], sums[..., RATE_BAD])
        requests = np.where(mostly_ill, sums[..., REQUESTS], sums[..., RATE_REQUESTS])
        of_rate = np.where(mostly_ill, (self._own_design(sums, design * few) + 1) / 2, burst)
        by_rate = clusters.tail(bad, requests, self._beyond_rate, of_rate) <= most
        by_floor = clusters.tail(sums[..., FLOOR_BAD], sums[..., FLOOR_REQUESTS], self._beyond_floor, burst) <= most
        out: Bools = ((rate >= self.log_needed_for) | by_rate) & (
            (ratio >= self.log_needed_for) | (by_floor & self.has_floor)
        )
        return out & (self.has_rate | self.has_ratio)

    def interval(self, state: EvidenceState) -> tuple[Floats, Floats]:
        """The lower and upper end (..., M) of the canary's bad share: together they leave it out in at most 5 % of
        releases, whatever the number of looks, as far as the bursts are those that were seen."""
        sums = state.sums[..., : self._main, :]
        design, few = self._design_effect(sums)
        seen = sums[..., BAD], sums[..., REQUESTS], (design * few + 1) / 2
        return clusters.lower(*seen), clusters.upper(*seen)

    def _for_each(self, sums: Floats, design: Floats) -> tuple[Floats, Floats]:
        """log evidence that the absolute limit is kept, and that beside stable; inf for a limit that is not there."""

        def alone(bad: int, requests: int, design: Floats, limit: Floats, alternative: Floats) -> Floats:
            burst = ((design + 1) / 2)[..., None]
            shape = (*alternative.shape[:-1], len(clusters.FRACTIONS))
            fractions = np.concatenate([np.broadcast_to(clusters.FRACTIONS, shape), alternative], axis=-1)
            logs = clusters.log_evidence(
                sums[..., bad, None], sums[..., requests, None], limit[..., None], burst, fractions
            )
            return clusters.mixed(logs, self._log_weights)

        to_rate = self._beyond_rate, self._alternatives["rate"]
        rate = alone(RATE_BAD, RATE_REQUESTS, design, *to_rate)
        aside = sums[..., RATE_REQUESTS] < sums[..., REQUESTS]
        if aside.any():
            # A good canary beside a stable that stays ill must not wait for it: the mean with what all windows say.
            every = alone(BAD, REQUESTS, self._own_design(sums, design), *to_rate)
            rate = np.where(aside, np.logaddexp(rate, every) - math.log(2), rate)
        ratio = clusters.mixed(sums[..., RELATIVE] / design[..., None], self._log_weights) + self._relative_part
        if self.has_floor.any():
            floor = alone(FLOOR_BAD, FLOOR_REQUESTS, design, self._beyond_floor, self._alternatives["floor"])
            ratio = np.logaddexp(ratio, floor + self._floor_part)
        return np.where(self.has_rate, rate, np.inf), np.where(self.has_ratio, ratio, np.inf)

    def _design_effect(self, sums: Floats) -> tuple[Floats, Floats]:
        """How many requests are worth one independent one, and how much less in so few windows; both (..., M), at least
        1.

        Stable's dispersion over its calm windows, mixed with its past's and with the policy's assumption in proportion
        to what each can tell, or the canary's own where that is larger (README.md, "Bursts").
        """
        m, s, windows, squares = np.moveaxis(sums[..., CALM_STABLE], -1, 0)
        seen, worth = dispersion(m, s, windows, squares)
        weight = self._assumed - ASSUMED_WEIGHT
        counted = (worth * seen + weight * self.usual.dispersion) / np.maximum(worth + weight, 1e-12)
        # What both have counted is told once how sure it is: by all of it.
        counted = (worth + weight) * terms.surely(counted, worth + self.usual.worth)
        stable = (counted + ASSUMED_WEIGHT * self.policy.design_effect) / (worth + self._assumed)
        canary = terms.shrunk(*dispersion(*np.moveaxis(sums[..., CALM_CANARY], -1, 0)))
        looked = np.maximum(np.maximum(windows, sums[..., WINDOWS]), 1.0) + self._windows_before
        design = np.clip(np.maximum(stable, canary), 1.0, LARGEST_DESIGN)
        return design, 1 + FEW_WINDOWS / looked**4

    def _own_design(self, sums: Floats, design: Floats) -> Floats:
        """The design effect where windows count that were set aside: the canary's own over all of them, if larger."""
        own = dispersion(*(sums[..., column] for column in (REQUESTS, BAD, WINDOWS, CANARY_SQUARES)))
        return np.minimum(np.maximum(design, terms.shrunk(*own)), LARGEST_DESIGN)

    def _usual_rate(self, before: Floats, steps: Floats) -> Floats:
        """Stable's usual rate (..., T, C) as it is known before each window: over its past and this release, taken so
        much higher than seen that bursts make no difference, and never below the policy's floor."""
        totals = steps[..., : CALM_STABLE.start]  # which windows are calm is not known yet
        path = terms.running(before, totals)[..., :-1, :, :] if steps.shape[-3] > 1 else None
        first = before[..., None, :, : CALM_STABLE.start]
        sums = first if path is None else np.concatenate([first, path], axis=-3)
        m, s = sums[..., STABLE_REQUESTS], sums[..., STABLE_BAD]
        seen, worth = dispersion(m, s, sums[..., STABLE_WINDOWS], sums[..., STABLE_SQUARES])
        every = np.zeros(self._has_ratio.shape)
        assumed, design = every + ASSUMED_WEIGHT, every + self.policy.design_effect
        if self.usual.requests.any():
            edges = [np.ones((*self._assumed.shape[:-1], len(self._owner)))]
            assumed = np.concatenate([self._assumed, ASSUMED_WEIGHT * edges[0]], axis=-1)
            design = np.concatenate([self._assumed_design, self.policy.design_effect * edges[0]], axis=-1)
        bursts = np.maximum((worth * seen + assumed * design) / (worth + assumed), 1.0)
        floor = np.maximum(self._floor, LEAST_FLOOR)
        bad = self._bad_before + s + 1
        high = bad + ABOVE_USUAL * np.sqrt(bursts * bad)
        out: Floats = np.maximum(self._floor, high / (self._requests_before + m + 1 / floor))
        return out

    def _kept(self, recent: Floats) -> tuple[Bools, Bools, Bools, Bools]:
        """Which windows of a path count, each (..., T, C): for the bet on the absolute limit, for the evidence that
        this limit is kept, for the evidence that the floor is, and for measuring bursts."""
        m, s = (
            last_six(recent[..., 5:, :, 0], recent[..., :5, :, 0]),
            last_six(recent[..., 5:, :, 1], recent[..., :5, :, 1]),
        )
        ill = self._has_rate & (s >= ILL * self._rate * m) & (s >= ILL_REQUESTS)
        rate, floor, high = (lasting(recent[..., 5:, :, k] > 0, recent[..., :5, :, k] > 0) for k in (2, 3, 4))
        calm = np.where(self._has_ratio, ~high, ~(rate & self._has_rate))
        return ~ill, ~(rate & self._has_rate), ~(floor & self._has_ratio), calm

    def _dead(self, state: EvidenceState) -> Bools:
        """Whether nothing works any more, (..., M), by the limit that a good canary keeps."""
        usual = state.usual[..., : self._main]
        limit = np.where(self.has_rate, self._rate[: self._main], 1.0)
        limit = np.where(self.has_ratio, np.minimum(limit, self._ratio[: self._main] * usual), limit)
        limit = np.clip(limit, 1e-9, 1 - 1e-9)
        risk = DEAD_PART / self.policy.needed_against
        return lifeless.dead(state.dead, limit, risk, self._idle) & (self.has_rate | self.has_ratio)
