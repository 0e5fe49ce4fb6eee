"""What the handler counts of its answers, by revision and window: how often it gave each label, and how sure it was.

Whatever the profile: the handler's page is scraped from the pods themselves, and the pods carry their revision's name
(docs/metrics.md). Counted like requests (`increases`): by the samples themselves, through restarts and new pods.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from model_release.judging import Side
from model_release.judging.shift import binned
from model_release.metrics.increases import Ledger, Scrapes, Target, target_of
from model_release.metrics.observed import RECENT, Presence, milliseconds_of
from model_release.metrics.profiles import RevisionMetrics
from model_release.metrics.prometheus import Prometheus, Series, milliseconds
from model_release.metrics.slices import SliceCounts
from model_release.spec import JudgeSpec, Metric, format_duration

PREDICTIONS = "image_classifier_predictions_total"
# How sure it was of an answer, in twentieths: by its likeliest label's probability, and by the entropy of all of them.
SURE = {"probability": "image_classifier_confidence_total", "entropy": "image_classifier_certainty_total"}
SLICES = "image_classifier_slices_total"
# A handler's page may be scraped so much later than the requests.
_LATER_MS = 60_000
# The label of each counter that tells its answers apart.
BY = {PREDICTIONS: "label", **dict.fromkeys(SURE.values(), "below"), SLICES: "value"}


class AnswerReader:
    """What a judge's metrics ask of the handler, window by window, beside a `WindowReader`, which says when.

    A revision whose handler was not scraped in a window has no data in it, and so has one that had requests and has
    never shown the counter: None. What happened meanwhile counts in the next window that has data.
    """

    def __init__(
        self,
        prometheus: Prometheus,
        metrics: RevisionMetrics,
        judge: JudgeSpec,
        *,
        namespace: str,
        revisions: Sequence[str],
        opening: int,
        window: int,
    ) -> None:
        self._prometheus, self._metrics, self._counters = prometheus, metrics, counters_of(judge)
        self._shifts = [metric.name for metric in judge.metrics if metric.max_shift is not None]
        self._unsure = {m.name: (SURE[m.of], m.below) for m in judge.metrics if m.below is not None}
        self._slices = [(metric, SliceCounts(BY[SLICES])) for metric in _sliced(judge)]
        self._namespace, self._revisions = namespace, list(revisions)
        self._ledger = Ledger(opening, window)
        # All that is scraped of a revision's pods, and of that the handlers' own pages, as far as they have shown one.
        self._pods: dict[str, set[Target]] = {name: set() for name in self._revisions}
        self._pages: dict[str, set[Target]] = {name: set() for name in self._revisions}
        self._met: set[tuple[str, str]] = set()  # revision and counter
        self._read: list[Series] = []
        self._pending: dict[tuple[str, str], Counter[str]] = {}
        self._troubled: set[str] = set()

    def fetch(self, after: int, until: int) -> None:
        """Reads the samples in (after, until], milliseconds since the epoch. Errors as `Prometheus` says."""
        if not self._counters:
            return
        up = self._raw("up", after, until)
        self._read = [series for counter in self._counters for series in self._raw(counter, after, until)]
        for found, targets in ((up, self._pods), (self._read, self._pages)):
            for series in found:
                if owner := self._owner(series):
                    targets[owner].add(target_of(series.labels))
        self._ledger.seen(up, self._read)

    def scrapes(self) -> list[Scrapes]:
        """Those of the handlers' pages."""
        return [self._ledger.scrapes[target] for targets in self._pages.values() for target in targets]

    def advance(self, end: int) -> None:
        """Counts what was added up to `end`."""
        added, troubled = self._ledger.advance(self._read, end)
        self._troubled = {owner for series in troubled if (owner := self._owner(series))}
        for series in self._read:
            if series.samples[0][0] <= end and (owner := self._owner(series)):
                self._met.add((owner, series.labels["__name__"]))
        for one in added:
            name = one.labels["__name__"]
            if owner := self._metrics.target_revision(one.labels, self._revisions):
                self._pending.setdefault((owner, name), Counter())[one.labels.get(BY[name], "")] += one.amount
                for metric, slices in self._slices if name == SLICES else ():
                    if metric.slices and one.labels.get("slice") == metric.slices.by:
                        bad = unsure({one.labels.get("below", "1"): one.amount}, self._unsure[metric.name][1])
                        slices.add(owner, one.labels, one.amount, bad)
        for _, slices in self._slices:
            slices.learn()

    def onto(self, side: Side, revision: str, start: int, end: int) -> tuple[Side, list[str]]:
        """The side with what the handler has counted of its answers in the window, and why something is missing."""
        notes = []
        if self._shifts:
            given, note = self._counts(revision, PREDICTIONS, start, end, side.requests)
            labels = None if given is None else binned(given)
            side = replace(side, labels=dict.fromkeys(self._shifts, labels))
            notes.append(note)
        for counter in dict.fromkeys(counter for counter, _ in self._unsure.values()):
            bands, note = self._counts(revision, counter, start, end, side.requests)
            asked = {name: below for name, (of, below) in self._unsure.items() if of == counter}
            bad = {name: None if bands is None else unsure(bands, below) for name, below in asked.items()}
            total = None if bands is None else sum(bands.values())
            side = replace(side, bad={**side.bad, **bad}, totals={**side.totals, **dict.fromkeys(asked, total)})
            notes.append(note)
        if self._slices:
            given, note = self._counts(revision, SLICES, start, end, side.requests)
            told = {metric.name: None if given is None else slices.told(revision) for metric, slices in self._slices}
            side = replace(side, slices={**side.slices, **told})
            notes.append(note)
        return side, [note for note in notes if note]

    def _counts(
        self, revision: str, counter: str, start: int, end: int, requests: int | None
    ) -> tuple[dict[str, int] | None, str]:
        """How often each label was given in the window, or None and why, in one line that names the query."""
        query = self._selectors(counter, [revision])[0]
        if revision in self._troubled:
            return None, f"{revision}: {counter} held a value that is no count; query: {query}"
        targets = self._pages[revision] or self._pods[revision]
        good = [self._ledger.scrapes[target].good for target in targets]
        if not any(bisect_right(moments, end) > bisect_right(moments, start) for moments in good):
            return None, f"{revision}: {counter} was not scraped; query: {query}"
        if requests and (revision, counter) not in self._met:
            return None, f"{revision}: {counter} counts nothing, and there were requests; query: {query}"
        return dict(self._pending.pop((revision, counter), Counter())), ""

    def forget(self, before: int) -> None:
        for scrapes in self._ledger.scrapes.values():
            scrapes.forget(before)

    def _raw(self, metric: str, after: int, until: int) -> list[Series]:
        found: dict[frozenset[tuple[str, str]], Series] = {}
        for query in self._selectors(metric, self._revisions):
            for series in self._prometheus.raw(query, after, until):
                found.setdefault(frozenset(series.labels.items()), series)
        return list(found.values())

    def _selectors(self, metric: str, revisions: Sequence[str]) -> list[str]:
        return self._metrics.pods_of(metric, self._namespace, revisions)

    def _owner(self, series: Series) -> str | None:
        return self._metrics.target_revision(series.labels, self._revisions)


def counters_of(judge: JudgeSpec) -> list[str]:
    """The handler's counters that a model file's metrics are read from."""
    shifts = any(metric.max_shift is not None for metric in judge.metrics)
    unsure = dict.fromkeys(SURE[metric.of] for metric in judge.metrics if metric.below is not None)
    return [PREDICTIONS] * shifts + [*unsure] + [SLICES] * bool(_sliced(judge))


def _sliced(judge: JudgeSpec) -> list[Metric]:
    """The metrics whose slices the handler counts."""
    return [metric for metric in judge.metrics if metric.below is not None and metric.slices is not None]


def unsure(bands: Mapping[str, int], below: float) -> int:
    """How many answers were given with less confidence than `below`, an edge of the handler's bands."""
    return sum(count for band, count in bands.items() if float(band) <= below + 1e-9)


def answers_presence(
    prometheus: Prometheus,
    metrics: RevisionMetrics,
    judge: JudgeSpec,
    namespace: str,
    revision: str,
    *,
    window: timedelta,
    now: datetime | None = None,
) -> list[Presence]:
    """Whether each of the handler's counters that the judge asks for was scraped in the last five minutes, and often
    enough for `window`. Where it was not, the sentence names the query."""
    until = milliseconds(now or datetime.now(UTC))
    after = until - milliseconds_of(RECENT)
    found = []
    for counter in counters_of(judge):
        queries = metrics.pods_of(counter, namespace, [revision])
        series = [one for query in queries for one in prometheus.raw(query, after, until)]
        gaps = [later - earlier for one in series for (earlier, _), (later, _) in pairwise(one.samples)]
        seconds = statistics.median(gaps) / 1000 if gaps else None
        missing = {m.slices.by for m in _sliced(judge) if m.slices} - {one.labels.get("slice") for one in series}
        if not series or (counter == SLICES and missing):
            asked = prometheus.raw(metrics.requests_of(namespace, [revision]), after, until)
            if not any(one.samples[-1][1] > one.samples[0][1] for one in asked):
                found.append(
                    Presence(True, f"{queries[0]} is empty: {revision} has answered nothing lately", queries[0])
                )
                continue
            young = until - min(one.samples[0][0] for one in asked) < _LATER_MS
            where = "is the handler's page scraped (port 8082, include/manifests/pod_monitor.yaml)?"
            said = f"{queries[0]} is empty, and {revision} has had requests: {where}"
            if counter == SLICES:
                said = (
                    f"{queries[0]} has nothing with slice {min(missing)}, and {revision} has had requests: was it "
                    f"released with service.slices: [{', '.join(sorted(missing))}]?"
                )
            found.append(Presence(False, said, queries[0], passing=young))
        elif seconds is not None and window.total_seconds() < seconds:
            said = f"{queries[0]} is scraped every {seconds:g} s, and a window of {format_duration(window)} is shorter"
            found.append(Presence(False, said, queries[0], seconds))
        else:
            found.append(Presence(True, f"{queries[0]} has {len(series)} series", queries[0], seconds))
    return found
