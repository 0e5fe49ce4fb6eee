"""From samples of counters to what was added between two moments, exactly.

The rules, which `Ledger` keeps:

1. What was added between two scrapes counts at the later one. So windows that touch lose nothing and count nothing
   twice; the fuzz is one scrape.
2. A value below the last one is a restart: the counter began again at 0 and its value is what was added. The
   buckets of one histogram restart together; and a series that was not there when another one of its target
   restarted, restarted with it, whatever its value when it is met again.
3. A series met for the first time was born, and all of its value was added, if its target was scraped before
   without it. If the target itself is new, it was born with it when a neighbour (same job) had been scraped twice
   before: each target of a job is scraped once an interval, so it would have been met between the two. In every
   other case (Prometheus itself was just started) nobody knows how old the value is: it is where counting begins.
4. At the opening, what lies between the last scrape before and the first one after counts only if the two are no
   further apart than a window; else it is mostly from before.
5. A value that is no count (NaN, infinite, negative, a fraction) is passed over and remembered as a trouble.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from model_release.metrics.prometheus import Labels, Series

Target = tuple[str, str]  # job, instance
SeriesKey = frozenset[tuple[str, str]]


def target_of(labels: Labels) -> Target:
    return labels.get("job", ""), labels.get("instance", "")


@dataclass
class Scrapes:
    """When a target was scraped, in milliseconds since the epoch."""

    good: list[int] = field(default_factory=list)  # in order; old ones are forgotten but for the last
    first: int | None = None  # the very first, good or not
    second: int | None = None
    last: int = 0  # the newest, good or not

    def add(self, moments: Iterable[int], good: Iterable[int]) -> None:
        for moment in sorted(set(moments)):
            if self.first is None or moment < self.first:
                self.first, self.second = moment, self.first
            elif moment > self.first and (self.second is None or moment < self.second):
                self.second = moment
            self.last = max(self.last, moment)
        self.good = sorted({*self.good, *good})

    def before(self, moment: int) -> int | None:
        """The last good scrape before `moment`."""
        place = bisect_left(self.good, moment)
        return self.good[place - 1] if place else None

    def forget(self, before: int) -> None:
        keep = max(0, bisect_right(self.good, before) - 1)
        del self.good[:keep]


@dataclass
class _Counter:
    labels: Labels
    group: SeriesKey
    last: tuple[int, int] | None = None  # moment, value


# The buckets of one histogram, or a single counter; each with what was scraped: values by moment.
_Group = list[tuple[_Counter, dict[int, int]]]


@dataclass(frozen=True)
class Added:
    """What one series got, and where it came from."""

    labels: Labels
    amount: int


class Ledger:
    """Remembers the last sample of each counter, and when its targets were scraped."""

    def __init__(self, opening: int, tolerance: int) -> None:
        self._opening, self._tolerance = opening, tolerance
        self._counters: dict[SeriesKey, _Counter] = {}
        self._restarts: dict[Target, set[int]] = defaultdict(set)
        self.scrapes: dict[Target, Scrapes] = defaultdict(Scrapes)

    def seen(self, up: Iterable[Series], counters: Iterable[Series]) -> None:
        """Notes when targets were scraped. A sample of any series is a scrape, for what is pushed has no `up`."""
        moments: dict[Target, set[int]] = defaultdict(set)
        good: dict[Target, set[int]] = defaultdict(set)
        for series in up:
            target = target_of(series.labels)
            moments[target].update(moment for moment, _ in series.samples)
            good[target].update(moment for moment, value in series.samples if value == 1)
        for series in counters:
            good[target_of(series.labels)].update(moment for moment, _ in series.samples)
        for target in moments.keys() | good.keys():
            self.scrapes[target].add(moments[target] | good[target], good[target])

    def advance(self, counters: Iterable[Series], until: int) -> tuple[list[Added], list[Series]]:
        """What was added up to and with `until`, and the series that held values which are no counts.

        Call `seen` with the same series first. Samples that were counted before are passed over.
        """
        groups: dict[SeriesKey, _Group] = defaultdict(list)
        troubled = []
        for series in counters:
            counter = self._counter(series.labels)
            after = counter.last[0] if counter.last else -1
            begin, stop = (bisect_right(series.samples, (moment, math.inf)) for moment in (after, until))
            samples = series.samples[begin:stop]
            counts = {moment: int(value) for moment, value in samples if value >= 0 and value.is_integer()}
            if any(moment > self._opening and moment not in counts for moment, _ in samples):
                troubled.append(series)
            groups[counter.group].append((counter, counts))
        for members in groups.values():
            self._restarts[target_of(members[0][0].labels)] |= _restarts(members)
        added: list[Added] = []
        for members in groups.values():
            added.extend(self._advance_group(members))
        return added, troubled

    def known(self) -> Iterable[Labels]:
        """The labels of every counter that was met so far."""
        return [counter.labels for counter in self._counters.values() if counter.last]

    def _counter(self, labels: Labels) -> _Counter:
        key = frozenset(labels.items())
        if key not in self._counters:
            group = frozenset(item for item in key if item[0] != "le")
            self._counters[key] = _Counter(labels, group)
        return self._counters[key]

    def _advance_group(self, members: _Group) -> list[Added]:
        totals, restarts = [0] * len(members), _restarts(members)
        for moment in sorted({moment for _, counts in members for moment in counts}):
            for i, (counter, counts) in enumerate(members):
                if moment in counts:
                    totals[i] += self._step(counter, moment, counts[moment], moment in restarts)
                    counter.last = (moment, counts[moment])
        return [Added(counter.labels, total) for (counter, _), total in zip(members, totals, strict=True) if total]

    def _step(self, counter: _Counter, moment: int, value: int, restarted: bool) -> int:
        if moment <= self._opening:
            return 0
        target = target_of(counter.labels)
        if counter.last is not None:
            missed = [begun for begun in self._restarts[target] if counter.last[0] < begun < moment]
            since, base = max([counter.last[0], *missed]), 0 if restarted or missed else counter.last[1]
        else:
            born_after = self._born_after(target, moment)
            if born_after is None:
                return 0
            since, base = born_after, 0
        if since < self._opening - self._tolerance:
            return 0
        return value - base

    def _born_after(self, target: Target, moment: int) -> int | None:
        """A moment at which the series that was first met at `moment` did not exist yet; None if nobody knows."""
        scrapes = self.scrapes[target]
        without = scrapes.before(moment)
        if without is not None:
            return without
        if scrapes.first is None:
            return None
        met_twice = (
            # The newest scrape: the first ones are of minutes ago, and would make it too old to count (rule 4).
            other.before(scrapes.first) or other.second
            for (job, _), other in self.scrapes.items()
            if job == target[0] and other.second is not None and other.second < scrapes.first
        )
        return max(met_twice, default=None)


def _restarts(members: _Group) -> set[int]:
    """The moments at which some counter of the group is below what it was."""
    found = set()
    for counter, counts in members:
        before = counter.last[1] if counter.last else 0
        for moment in sorted(counts):
            if counts[moment] < before:
                found.add(moment)
            before = counts[moment]
    return found
