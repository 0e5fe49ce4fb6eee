"""A share of bad requests in each slice of the traffic: the requests of one country, of one client, of one camera.

A slice is one more column of counts, bet on like the whole by the same limits (evidence.py). "Some slice is beyond the
limit" is shown by a weighted mean of the slices' evidence, which is evidence again (an e-process), and the metric's own
is the mean of that and of the whole's: no part of α is spent twice, whatever the number of slices. The weights are even
over the slices that the first window has. One that comes later gets a part, LATER/(k(k+1)) for the k-th, of money that
was kept for it; which slices have requests says nothing of how many of those were bad.

Which slices: of all hypotheses, the whole among them, those whose evidence times its weight is at least needed/k, for
the largest k that so many reach. Then at most α of those that are named are within the limit, on average, however the
slices depend on one another (e-Benjamini-Hochberg: Wang and Ramdas, "False discovery rate control with e-values",
JRSS-B 2022).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .evidence import Evidence
from .policy import Policy, RateLimit
from .sentences import count, listed, name_of, plural, share
from .state import BAD, REQUESTS, STABLE_BAD, STABLE_REQUESTS, Bools, Counts, EvidenceState, Floats
from .terms import reported
from .verdict import SliceVerdict
from .window import Side, Window

OTHER = "other"  # what comes after the first MOST slices
NONE = "none"  # requests that say of no slice
MOST = 50
ROWS = MOST + 1

LATER = 0.1  # of the money waits for slices that the first window does not have
COVERED = 0.8  # of the canary's requests are in slices that are judged, before a promotion by evidence
SHOWN = 20  # slices in a verdict
_NAMED = 3  # in a sentence


@dataclass(frozen=True)
class Standing:
    """The slices after a window: the counts and bets, a column each, and what they say."""

    state: EvidenceState
    weights: Floats  # (ROWS)
    logs: Floats  # (ROWS): log evidence against each
    rate_is_worse: Bools  # (ROWS)
    at_least: int

    @property
    def judged(self) -> Floats:
        return judged(self.logs, self.requests, self.at_least)

    @property
    def against(self) -> float:
        """log evidence that some slice is beyond the limit."""
        return float(somewhere(self.judged, self.weights))

    @property
    def requests(self) -> Floats:
        out: Floats = self.state.sums[:, REQUESTS]
        return out


def evidence_of(policy: Policy, metric: RateLimit, slices: int = ROWS) -> Evidence:
    """A column for each slice, by the metric's own limits."""
    column = replace(metric, slices=None, edges=(), observe=False)
    columns = tuple(replace(column, name=str(place)) for place in range(slices))
    return Evidence(replace(policy, metrics=columns, shifts=(), values=(), traffic=None))


def judged(logs: Floats, requests: Floats, at_least: int) -> Floats:
    """The evidence against slices (..., S), of which one with fewer canary requests never speaks against the canary.
    What is below an e-process is one as good."""
    return np.where(requests >= at_least, logs, np.minimum(logs, 0.0))


def somewhere(logs: Floats, weights: Floats) -> Floats:
    """log evidence (...) that some slice of (..., S) is beyond the limit; what is not laid out is kept."""
    bet = np.ascontiguousarray(weights * np.exp(logs)).sum(axis=-1)
    out: Floats = np.log(bet + np.maximum(1 - weights.sum(axis=-1), 0.0))
    return out


def joined(whole: Floats, slices: Floats) -> Floats:
    """log evidence that the whole or some slice is beyond the limit."""
    out: Floats = np.logaddexp(whole, slices) - math.log(2)
    return out


def which(logs: Floats, weights: Floats, log_needed: float) -> Bools:
    """The slices (..., S) that are shown to be beyond the limit; the other half of the weight is the whole's."""
    with np.errstate(divide="ignore"):
        money = logs + np.log(weights / 2)
    falling = -np.sort(-money, axis=-1)
    bar = log_needed - np.log(np.arange(1, money.shape[-1] + 1))
    number = np.where(falling >= bar, np.arange(1, money.shape[-1] + 1), 0).max(axis=-1, keepdims=True)
    out: Bools = (money >= log_needed - np.log(np.maximum(number, 1))) & (number > 0)
    return out


def named(logs: Floats, weights: Floats, log_needed: float) -> Bools:
    """Which slices (..., S) a roll-back for the sake of one names: those that are shown, or the worst where it takes
    several to show that something is wrong."""
    shown = which(logs, weights, log_needed)
    with np.errstate(divide="ignore"):
        money = logs + np.log(weights)
    worst = np.arange(money.shape[-1]) == money.argmax(axis=-1)[..., None]
    return np.where(shown.any(axis=-1, keepdims=True), shown, worst)


def leaning(sums: Floats, metric: RateLimit, at_least: int) -> Bools:
    """The slices (..., S) of a state's sums (..., S, COLUMNS) that are watched longer before a promotion by evidence:
    what was seen of them is beyond a limit, in half as many requests as judge them."""
    n, b, m, s = (sums[..., column] for column in (REQUESTS, BAD, STABLE_REQUESTS, STABLE_BAD))
    beyond: Bools = b > (1.0 if metric.max_rate is None else metric.max_rate) * n
    if metric.max_ratio is not None:
        beyond = beyond | (b > metric.max_ratio * np.maximum(s / np.maximum(m, 1.0), metric.floor) * n)
    out: Bools = beyond & (2 * n >= at_least)
    return out


def coverage(requests: Floats, at_least: int) -> Floats:
    """The part (...) of the canary's requests (..., S) that is in slices which are judged."""
    out: Floats = np.where(requests >= at_least, requests, 0.0).sum(axis=-1) / np.maximum(requests.sum(axis=-1), 1.0)
    return out


def covered(requests: Floats, at_least: int) -> Bools:
    """Whether that is enough for a promotion by evidence."""
    out: Bools = coverage(requests, at_least) >= COVERED
    return out


def waits(sums: Floats, metric: RateLimit, at_least: int) -> Bools:
    """Whether evidence does not promote (...): a slice leans, or too few of the canary's requests are judged."""
    out: Bools = leaning(sums, metric, at_least).any(axis=-1) | ~covered(sums[..., REQUESTS], at_least)
    return out


def placed(known: Iterable[str], traffic: Mapping[str, int]) -> list[str]:
    """The slices of `traffic` that get a place beside those that have one, the busiest first; the rest is "other"."""
    there = set(known) | {OTHER}
    new = sorted(traffic.keys() - there, key=lambda name: (-traffic[name], name))
    return new[: max(MOST + 1 - len(there), 0)]


class SliceEvidence:
    """The slices of one metric, window by window. Rows are slices as they came; the first is "other"."""

    def __init__(self, policy: Policy, metric: RateLimit) -> None:
        assert metric.slices is not None
        self.metric, self.by, self.at_least = metric, metric.slices.by, metric.slices.at_least
        self._log_needed = math.log(policy.needed_against)
        self._evidence = evidence_of(policy, metric)
        self._places, self._late = {OTHER: 0}, 0
        nothing = np.zeros(ROWS)
        self.now = Standing(self._evidence.start(), nothing, nothing, np.zeros(ROWS, dtype=bool), self.at_least)

    def extend(self, windows: Sequence[Window]) -> list[Standing]:
        """How they stand after each window; `now` stays, for the caller says which of them is the last that counts."""
        standings, now = [], self.now
        for window in windows:
            now = self._after(now, window)
            standings.append(now)
        return standings

    def _after(self, before: Standing, window: Window) -> Standing:
        sides = [_counts(side, self.metric.name) for side in (window.canary, window.stable)]
        weights = self._learn(before.weights, sides)
        canary, stable = (self._row(counts) for counts in sides)
        nothing = np.zeros(1)
        counts = Counts(nothing, canary[1], nothing, stable[1], canary_totals=canary[0], stable_totals=stable[0])
        path = self._evidence.extend(before.state, counts)
        logs, worse = self._evidence.against(path.wealth, np.array([[path.age + 1]]))
        return Standing(path.at(0), weights, logs[0], worse[0], self.at_least)

    def _learn(self, weights: Floats, sides: Sequence[Mapping[str, tuple[int, int]] | None]) -> Floats:
        """The weights, when the slices that were not met before have got a place and money of their own."""
        traffic = Counter[str]()
        for counts in sides:
            for name, (requests, _) in (counts or {}).items():
                traffic[name] += requests
        fresh = placed(self._places, traffic)
        rows = list(range(len(self._places), len(self._places) + len(fresh)))
        self._places |= dict(zip(fresh, rows, strict=True))
        if not weights[0] and any(self._places.get(name, 0) == 0 for name in traffic):
            rows.append(0)
        if not rows:
            return weights
        weights, first = weights.copy(), not weights.any()
        for row in rows:
            self._late += not first
            weights[row] = (1 - LATER) / len(rows) if first else LATER / (self._late * (self._late + 1))
        return weights

    def _row(self, counts: Mapping[str, tuple[int, int]] | None) -> tuple[Floats, Floats]:
        """Requests and bad ones of each row, (1, ROWS) each; NaN is no data."""
        if counts is None:
            return np.full((1, ROWS), np.nan), np.full((1, ROWS), np.nan)
        out = np.zeros((2, 1, ROWS))
        for name, pair in counts.items():
            out[:, 0, self._places.get(name, 0)] += pair
        return out[0], out[1]

    def waits(self, now: Standing) -> bool:
        """Whether evidence does not promote."""
        return bool(waits(now.state.sums, self.metric, self.at_least))

    def unseen(self, requests: float) -> bool:
        """Whether no slice of the canary's was counted, of so many requests that one would be judged. No data is never
        good news, and more of the same changes nothing."""
        return requests >= self.at_least and not self.now.requests.any()

    def _leaning(self) -> list[int]:
        found: list[int] = np.flatnonzero(leaning(self.now.state.sums, self.metric, self.at_least)).tolist()
        return found

    def requests_needed(self) -> float:
        """Canary requests until no slice leans and enough is judged, if all goes on as so far; 0 for none, and inf
        where that would not change."""
        falling = np.sort(self.now.requests)[::-1]
        total, needed = float(falling.sum()), 0.0
        for row in self._leaning():
            bar, log = self._log_needed - math.log(self.now.weights[row] / 2), float(self.now.logs[row])
            needed = max(needed, total * max(bar / log - 1, 0.0) if log > 0 else math.inf)
        if total and not covered(self.now.requests, self.at_least):
            last = float(falling[int((falling.cumsum() >= COVERED * total).argmax())])
            needed = max(needed, total * self.at_least / last - total)
        return needed

    @property
    def rate_is_worse(self) -> bool:
        """Whether it is the absolute limit that the worst slice breaks more."""
        return bool(self.now.rate_is_worse[self._order()[0]])

    def fact(self) -> str:
        """ "errors among country=fr: 9 % instead of 1 % (27 of 300 canary requests, 12 of 1 200 on stable)"."""
        shown = self._shown()
        named = [one for one in shown if one.state == "fail"] or shown[:1]
        more = [plural(len(named) - _NAMED, "more slice")] if len(named) > _NAMED else []
        return f"{self.metric.name} among {listed([self._told(one) for one in named[:_NAMED]] + more)}"

    def _told(self, one: SliceVerdict) -> str:
        n, b, m, s = (*one.canary.values(), *one.stable.values())
        noun = self.metric.noun or "requests"
        beside = (f" instead of {share(s / m)}", f", {count(s)} of {count(m)} on stable") if m else ("", "")
        seen = share(b / n) if n else "nothing"
        return f"{self.by}={name_of(one.slice)}: {seen}{beside[0]} ({count(b)} of {count(n)} canary {noun}{beside[1]})"

    def note(self, all_requests: float, *, waiting: bool) -> str:
        """Which are not judged, and what a promotion that is `waiting` waits for."""
        if self.unseen(all_requests):
            return f"; none of them is counted in a slice by {self.by}"
        requests = self.now.requests[self._there()]
        few, parts = int((requests < self.at_least).sum()), []
        if few:
            of = f"{count(few)} of {plural(len(requests), 'slice')} by {self.by}"
            noun = self.metric.noun or "requests"
            parts.append(
                f"{of} {'is' if few == 1 else 'are'} not judged, with fewer than {count(self.at_least)} canary {noun}"
            )
            if waiting and not covered(requests, self.at_least):
                judged_part = share(float(coverage(requests, self.at_least)))
                parts.append(
                    f"the others have {judged_part} of them, and {share(COVERED)} is waited for until the deadline"
                )
        longer = self._leaning()
        if waiting and longer:
            names = {place: name for name, place in self._places.items()}
            told = [f"{self.by}={name_of(names[row])}" for row in longer[:_NAMED]]
            told += [plural(len(longer) - _NAMED, "more slice")] if len(longer) > _NAMED else []
            parts.append(f"{listed(told)} {'is' if len(longer) == 1 else 'are'} watched longer")
        if self.now.weights[0]:
            parts.append(f"beyond the first {MOST} slices are counted as {OTHER}")
        return "".join(f"; {part}" for part in parts)

    def verdicts(self) -> tuple[SliceVerdict, ...]:
        """How they stand, the worst first."""
        return tuple(self._shown()[:SHOWN])

    def _there(self) -> list[int]:
        sums = self.now.state.sums
        return [row for row in range(ROWS) if sums[row, REQUESTS] or sums[row, STABLE_REQUESTS]]

    def _order(self) -> list[int]:
        """Rows by what they add to the evidence, then by their requests; "other" where there is none."""
        requests = self.now.requests
        with np.errstate(divide="ignore"):
            money = np.round(self.now.judged + np.log(self.now.weights), 6)
        named = which(self.now.judged, self.now.weights, self._log_needed)
        rows = [row for row in self._there() if self.now.weights[row]]
        quiet = requests < self.at_least
        return sorted(rows, key=lambda row: (not named[row], quiet[row], -money[row], -requests[row], row)) or [0]

    def _shown(self) -> list[SliceVerdict]:
        names = {place: name for name, place in self._places.items()}
        named, sums = which(self.now.judged, self.now.weights, self._log_needed), self.now.state.sums
        return [
            SliceVerdict(
                slice=names[row],
                state="fail" if named[row] else "few" if sums[row, REQUESTS] < self.at_least else "judged",
                evidence_against=reported(float(self.now.judged[row])),
                canary={"requests": int(sums[row, REQUESTS]), "bad": int(sums[row, BAD])},
                stable={"requests": int(sums[row, STABLE_REQUESTS]), "bad": int(sums[row, STABLE_BAD])},
            )
            for row in self._order()
        ]


def _counts(side: Side | None, name: str) -> Mapping[str, tuple[int, int]] | None:
    """Nothing was asked of a side that is not there."""
    return {} if side is None else side.slices.get(name)
