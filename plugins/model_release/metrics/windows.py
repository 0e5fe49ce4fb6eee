"""Prometheus → `judging.Window`s: what each revision was asked, and how much of it went badly, window by window."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from model_release.errors import MetricsRefused, MetricsUnavailable
from model_release.judging import Side, Window
from model_release.metrics import samples
from model_release.metrics.answers import AnswerReader
from model_release.metrics.increases import Added, Ledger, Scrapes, Target, target_of
from model_release.metrics.profiles import RevisionMetrics, code_pattern, profile
from model_release.metrics.prometheus import BUDGET, Prometheus, Series, milliseconds, selector
from model_release.metrics.samples import LOOKBACK_MS, Counted
from model_release.metrics.slices import SliceCounts
from model_release.spec import JudgeSpec

# A rebuilt reader reads a long past in parts of this length, unless said.
PART = timedelta(minutes=5)
# A window with a silent stretch longer than this share of it has no data.
SILENT = 0.75
_REQUESTS = ""  # no metric has this name


class WindowReader:
    """Reads the windows [start + k·window, start + (k+1)·window), each once, in order.

    * Boundaries come from `start` alone, so a reader made anew (after a restart) gives the same windows from the
      first on. `read` costs what is new: three to seven queries a look, and two for each of the handler's
      counters, over the samples since the last window.
    * A window is complete when every target that was scraped in it has been scraped at or after its end, or at
      the latest `lag` (one window unless said) after its end.
    * No data is None, never 0: no scrape of the revision's target, or silence for most of the window, or a value
      that is no count; `Window.error` says which. What happened meanwhile is counted in the next window that has
      data. A revision whose target is scraped and which has no series was asked nothing: 0.
    * Beside a stable revision, a metric on durations with a `max_ratio` also has its counts at the edges around its
      limit (`JudgeSpec.edges_of`); one that the histogram does not have is None.
    * A metric on durations is None while the revision has requests and no histogram, or no bucket at the limit.
    * Where the histogram is exposed later than the counter (Envoy merges histograms every five seconds), a window
      could have more slow requests than requests: the surplus is carried into the next ones. Nothing is lost.

    How increases are counted (restarts, new pods, gaps): `increases`. `start` wants a time zone; `window` is at
    least two scrape intervals; `part` is how much is asked for in one query. `stable` is None where there is none
    beside the canary. Not for several threads.
    """

    def __init__(
        self,
        prometheus: Prometheus,
        judge: JudgeSpec,
        *,
        namespace: str,
        canary: str,
        stable: str | None,
        start: datetime,
        window: timedelta,
        lag: timedelta | None = None,
        metrics: RevisionMetrics | None = None,
        part: timedelta = PART,
    ) -> None:
        if canary == stable:
            raise ValueError(f"canary and stable are one revision: {canary}")
        self._prometheus = prometheus
        self._judge = judge
        self._metrics = profile(judge.profile, judge.labels) if metrics is None else metrics
        self._namespace = namespace
        self._canary, self._stable = canary, stable
        self._revisions = [canary] if stable is None else [canary, stable]
        self._window = round(window.total_seconds() * 1000)
        self._whole = max(1, part // window)  # windows in a part
        self._lag = self._window if lag is None else round(lag.total_seconds() * 1000)
        self._limits = {m.name: m.above / timedelta(milliseconds=1) for m in judge.metrics if m.above is not None}
        self._shares = [m for m in judge.metrics if m.of_requests]
        # Beside nobody there is nothing to compare them with.
        self._edges = {m.name: judge.edges_of(m) for m in judge.metrics if stable is not None and judge.edges_of(m)}
        self._codes = {m.name: code_pattern(m.codes) for m in self._shares if m.above is None}
        self._slices = {m.name: SliceCounts(m.slices.by) for m in self._shares if m.slices is not None}
        self._position = milliseconds(start)
        self._ledger = Ledger(self._position, self._window)
        self._answers = AnswerReader(
            prometheus,
            self._metrics,
            judge,
            namespace=namespace,
            revisions=self._revisions,
            opening=self._position,
            window=self._window,
        )
        self._read_until = self._position - max(LOOKBACK_MS, 2 * self._window)
        # Which targets count for a revision, and since when they are known to.
        self._owned: dict[str, dict[Target, int]] = {name: {} for name in self._revisions}
        # What is still to be counted of each revision: requests under _REQUESTS, bad ones under the metric's
        # name, those slower than an edge under both.
        self._pending: dict[str, Counter[str | tuple[str, float]]] = {name: Counter() for name in self._revisions}

    @property
    def position(self) -> datetime:
        """The end of the last window that was read; `start` before the first."""
        return _moment(self._position)

    def read(
        self, end: datetime | None = None, *, now: datetime | None = None, seconds: float = BUDGET
    ) -> list[Window]:
        """The windows that are complete, end no later than `end` (now unless said) and were not read before.

        `now` is the clock that `lag` is measured by, `seconds` the time for all of the queries. When
        Prometheus fails half-way through a long past, or its time is over, what is read is given and the next call goes
        on; when it fails at once, nothing has changed.

        Raises:
            MetricsUnavailable, MetricsRefused: as `Prometheus` says.
        """
        self._prometheus.begin(seconds)
        clock = milliseconds(now or datetime.now(UTC))
        until = clock if end is None else milliseconds(end)
        windows: list[Window] = []
        while self._position + self._window <= until:
            last = self._position + min(self._whole, (until - self._position) // self._window) * self._window
            try:
                reading = self._fetch(self._read_until, last + self._lag)
            except (MetricsUnavailable, MetricsRefused):
                if windows:
                    return windows
                raise
            while self._position < last:
                if not self._complete(self._position + self._window, clock):
                    return windows
                windows.append(self._next(reading))
        return windows

    def _fetch(self, after: int, until: int) -> Counted:
        raw, metrics = self._prometheus.raw, self._metrics
        counted = samples.read(
            self._prometheus,
            metrics,
            self._namespace,
            self._revisions,
            after,
            until,
            limits_ms=[*self._limits.values(), *(edge for edges in self._edges.values() for edge in edges)],
        )
        up = [
            series
            for found in metrics.targets_of(self._namespace, self._revisions)
            for series in raw(found, after, until)
        ]
        for series in up:
            self._own(metrics.target_revision(series.labels, self._revisions), series)
        for series in (*counted.requests, *counted.buckets):
            owner = metrics.revision_of(series.labels)
            for name in self._revisions if metrics.shared else [owner]:
                self._own(name, series)
        owned = {target for targets in self._owned.values() for target in targets}
        if missing := owned - {target_of(series.labels) for series in up if series.labels["__name__"] == "up"}:
            # Whether a series was born is told by the scrapes before it, so a new target's past is read too.
            past = after if missing <= self._ledger.scrapes.keys() else min(after, self._position - LOOKBACK_MS)
            jobs, instances = zip(*sorted(missing), strict=True)
            up += raw(selector("up", dict(metrics.also), {"job": jobs, "instance": instances}), past, until)
        self._ledger.seen(up, (*counted.requests, *counted.buckets))
        self._answers.fetch(after, until)
        return counted

    def _own(self, revision: str | None, series: Series) -> None:
        if revision in self._owned:
            targets, target = self._owned[revision], target_of(series.labels)
            targets[target] = min(targets.get(target, series.samples[0][0]), series.samples[0][0])

    def _scrapes(self, revision: str, end: int) -> list[Scrapes]:
        """The scrapes of the targets that were known to count for the revision by `end`."""
        return [self._ledger.scrapes[target] for target, since in self._owned[revision].items() if since <= end]

    def _complete(self, end: int, clock: int) -> bool:
        if clock >= end + self._lag:
            return True
        recent = end - 2 * self._window
        every = [scrapes for name in self._revisions for scrapes in self._scrapes(name, end)]
        every += self._answers.scrapes()
        live = [scrapes for scrapes in every if scrapes.good and scrapes.good[-1] > recent]
        return bool(live) and all(scrapes.last >= end for scrapes in live)

    def _next(self, reading: Counted) -> Window:
        start, end = self._position, self._position + self._window
        requests, strange = self._ledger.advance(reading.requests, end)
        buckets, strange_buckets = self._ledger.advance(reading.buckets, end)
        self._count(requests, buckets)
        self._answers.advance(end)
        for slices in self._slices.values():
            slices.learn()
        errors: list[str] = []
        sides = {}
        for name in self._revisions:
            trouble = self._trouble(name, start, end, [*strange, *strange_buckets])
            if trouble is None:
                sides[name], notes = self._side(name)
                errors += notes
            else:
                sides[name] = Side(None, {m.name: None for m in self._shares}, slices=dict.fromkeys(self._slices))
                errors.append(trouble)
            sides[name], notes = self._answers.onto(sides[name], name, start, end)
            errors += notes
        self._answers.forget(end - 2 * self._window)
        self._position = self._read_until = end
        for scrapes in self._ledger.scrapes.values():
            scrapes.forget(end - 2 * self._window)
        return Window(
            canary=sides[self._canary],
            stable=None if self._stable is None else sides[self._stable],
            start=_moment(start).isoformat(timespec="milliseconds"),
            end=_moment(end).isoformat(timespec="milliseconds"),
            error="; ".join(errors) or None,
        )

    def _count(self, requests: list[Added], buckets: list[Added]) -> None:
        """Adds what the counters got to what is pending."""
        for added in requests:
            revision = self._metrics.revision_of(added.labels) or ""
            pending = self._pending.get(revision)
            if pending is None:
                continue
            pending[_REQUESTS] += added.amount
            code = added.labels.get(self._metrics.code_label, "")
            for name, bad in self._codes.items():
                if bad.fullmatch(code):
                    pending[name] += added.amount
            for name, slices in self._slices.items():
                failed = name in self._codes and self._codes[name].fullmatch(code) is not None
                slices.add(revision, added.labels, added.amount, added.amount * failed)
        for added in buckets:
            revision = self._metrics.revision_of(added.labels) or ""
            pending = self._pending.get(revision)
            if pending is None:
                continue
            edge = self._metrics.edge_ms(added.labels["le"])
            for name, limit in self._limits.items():
                # Slower than the limit: all that the last bucket got and the one at the limit did not.
                slower = added.amount * ((edge == math.inf) - (edge == limit))
                pending[name] += slower
                if name in self._slices:
                    self._slices[name].add(revision, added.labels, bad=slower)
            for name, edges in self._edges.items():
                for other in edges:
                    pending[name, other] += added.amount * ((edge == math.inf) - (edge == other))

    def _side(self, revision: str) -> tuple[Side, list[str]]:
        """What is pending, as far as it can be told now; the rest stays pending."""
        pending = self._pending[revision]
        requests = pending.pop(_REQUESTS, 0)
        edges = {
            self._metrics.edge_ms(labels["le"])
            for labels in self._ledger.known()
            if "le" in labels and self._metrics.revision_of(labels) == revision
        }
        bad: dict[str, int | None] = {}
        notes = []
        for metric in self._shares:
            limit = self._limits.get(metric.name)
            if limit is not None and requests and limit not in edges:
                bad[metric.name] = None
                selected = self._metrics.buckets_of(self._namespace, [revision], [limit])
                notes.append(f"{revision}: {metric.name}: no bucket at {limit:g} ms; query: {selected}")
                continue
            bad[metric.name] = self._told(pending, metric.name, requests)
        slower = {
            name: tuple(
                self._told(pending, (name, edge), requests) if edge in edges or not requests else None
                for edge in wanted
            )
            for name, wanted in self._edges.items()
        }
        sliced = {name: None if bad[name] is None else slices.told(revision) for name, slices in self._slices.items()}
        return Side(requests, bad, slower, slices=sliced), notes

    @staticmethod
    def _told(pending: Counter[str | tuple[str, float]], key: str | tuple[str, float], requests: int) -> int:
        """What is pending, as far as there are requests for it; the rest is for the next window."""
        now = min(max(pending[key], 0), requests)
        pending[key] -= now
        return now

    def _trouble(self, revision: str, start: int, end: int, strange: list[Series]) -> str | None:
        """Why there is no data of this revision in the window, in one line that names the query; None if there is."""
        query = self._metrics.requests_of(self._namespace, [revision])
        for series in strange:
            if self._metrics.revision_of(series.labels) == revision:
                name = series.labels.get("__name__", self._metrics.requests)
                return f"{revision}: {name} held a value that is no count (NaN, infinite or a fraction); query: {query}"
        good = sorted({moment for scrapes in self._scrapes(revision, end) for moment in scrapes.good})
        inside = good[bisect_right(good, start) : bisect_right(good, end)]
        if not inside:
            return f"{revision}: nothing was scraped; query: {query}"
        longest = max(later - earlier for earlier, later in pairwise([start, *inside, end]))
        if longest > SILENT * self._window:
            return f"{revision}: nothing was scraped for {longest / 1000:g} s of the window; query: {query}"
        return None


def read_windows(
    prometheus: Prometheus,
    judge: JudgeSpec,
    *,
    namespace: str,
    canary: str,
    stable: str | None,
    start: datetime,
    end: datetime,
    window: timedelta,
    lag: timedelta | None = None,
    metrics: RevisionMetrics | None = None,
    now: datetime | None = None,
) -> list[Window]:
    """The complete windows of [start, end), all at once; parameters and errors as in `WindowReader`."""
    reader = WindowReader(
        prometheus,
        judge,
        namespace=namespace,
        canary=canary,
        stable=stable,
        start=start,
        window=window,
        lag=lag,
        metrics=metrics,
    )
    windows: list[Window] = []
    while part := reader.read(end, now=now):
        windows += part
    return windows


def _moment(milliseconds_: int) -> datetime:
    return datetime.fromtimestamp(milliseconds_ // 1000, UTC) + timedelta(milliseconds=milliseconds_ % 1000)
