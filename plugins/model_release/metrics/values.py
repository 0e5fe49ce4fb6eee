"""Any PromQL, measured for each revision at the end of each window: value metrics, and shares of one's own."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from model_release.errors import MetricsRefused, MetricsUnavailable
from model_release.judging import Side, Window
from model_release.judging.slices import NONE
from model_release.metrics.prometheus import Prometheus, quoted
from model_release.metrics.slices import SliceCounts, Told
from model_release.spec import Metric, Value, format_duration


class NoSeries(MetricsRefused):
    """A query gives nothing at all: it asks for what is not there, or not yet."""


class ValueReader:
    """Adds to a window what each query gave at the window's end, for the canary and for stable: a number for a value,
    two counts for a share (`bad` of `total`).

    Asked again about the same window it gives the same numbers, as long as Prometheus keeps them. NaN is kept and
    judged as such. An empty answer, more than one series and a query that fails are None, and the window says why:
    none of them is ever success. Only a share with a `delay` may have no series before that is over, counted from
    `since`: there is nothing to be known of yet, and 0 of 0 says so.
    """

    def __init__(
        self,
        prometheus: Prometheus,
        values: Sequence[Value],
        *,
        namespace: str,
        service: str,
        canary: str,
        stable: str | None,
        shares: Sequence[Metric] = (),
        since: datetime | None = None,
    ) -> None:
        self._prometheus, self._values = prometheus, values
        self._shares = [metric for metric in shares if metric.bad is not None and metric.total is not None]
        self._slices = {m.name: SliceCounts(m.slices.by) for m in self._shares if m.slices is not None}
        self._since, self._names = since, {"namespace": namespace, "service": service}
        self._revisions = {"canary": canary} if stable is None else {"canary": canary, "stable": stable}

    def measured(self, window: Window) -> Window:
        """The window with its values; as it was where there are none to measure."""
        if not (self._values or self._shares) or window.end is None:
            return window
        self._prometheus.begin()
        end, troubles = datetime.fromisoformat(window.end), [window.error] if window.error else []
        measured: dict[str, dict[str, float | None]] = {}
        for value in self._values:
            sides: dict[str, float | None] = {"canary": None, "stable": None}
            for side, revision in self._revisions.items():
                try:
                    sides[side] = self._measure(filled(value.query, revision=revision, **self._names), end)
                except (MetricsUnavailable, MetricsRefused) as error:
                    troubles.append(f"{value.name}: {error}")
            measured[value.name] = sides
        canary, stable = window.canary, window.stable
        for metric in self._shares:
            canary = self._counted(canary, metric, self._revisions["canary"], window, troubles)
            if stable is not None and "stable" in self._revisions:
                stable = self._counted(stable, metric, self._revisions["stable"], window, troubles)
            if (slices := self._slices.get(metric.name)) is not None:
                slices.learn()
                canary = _told(canary, metric.name, slices, self._revisions["canary"])
                stable = stable and _told(stable, metric.name, slices, self._revisions.get("stable", ""))
        return replace(window, canary=canary, stable=stable, values=measured, error="; ".join(troubles) or None)

    def _counted(self, side: Side, metric: Metric, revision: str, window: Window, troubles: list[str]) -> Side:
        """The side with a share's two counts; both are no data where one of them is."""
        start, end = datetime.fromisoformat(str(window.start)), datetime.fromisoformat(str(window.end))
        bad = total = None
        try:
            found = counted(self._prometheus, metric, end - start, end, revision=revision, **self._names)
            bad, total = (sum(pair[k] for pair in found.values()) for k in (1, 0))
            if metric.slices is not None:
                for name, (of, wrong) in found.items():
                    self._slices[metric.name].add(revision, {metric.slices.by: name}, of, wrong)
        except (MetricsUnavailable, MetricsRefused) as error:
            waits = metric.delay and self._since and end < self._since + metric.delay
            if waits and isinstance(error, NoSeries):
                bad = total = 0
            else:
                troubles.append(f"{metric.name}: {error}")
        return replace(side, bad={**side.bad, metric.name: bad}, totals={**side.totals, metric.name: total})

    def _measure(self, query: str, end: datetime) -> float:
        return _one(self._prometheus, query, end)


def _told(side: Side, name: str, slices: SliceCounts, revision: str) -> Side:
    """The side with a share's slices; where the share is no data, so are they."""
    told = slices.told(revision)
    return replace(side, slices={**side.slices, name: None if side.bad.get(name) is None else told})


def counted(prometheus: Prometheus, metric: Metric, window: timedelta, end: datetime, **names: str) -> Told:
    """How many there were in the window that ends at `end`, and how many of them were bad, as the metric's queries say:
    to the nearest whole number, since `increase` extrapolates to the window's ends. By slice, where it has slices.

    Raises:
        MetricsUnavailable: Prometheus cannot answer now.
        MetricsRefused: a query gives no series, several where no slices are asked for, or what is no count; or more
            were bad than there were.
    """
    length = f"{window // timedelta(milliseconds=1)}ms"
    by = None if metric.slices is None else metric.slices.by
    bad, total = (
        _numbers(prometheus, filled(query, window=length, **names), end, by)
        for query in (metric.bad or "", metric.total or "")
    )
    for name, number in bad.items():
        if number > total.get(name, 0.0) + 1:
            where = f" of {by}={name}" if by else ""
            raise MetricsRefused(
                f"{number:g}{where} were bad of {total.get(name, 0.0):g}, which cannot be; queries: {metric.bad}; "
                f"{metric.total}"
            )
    return {name: (round(of), min(round(bad.get(name, 0.0)), round(of))) for name, of in total.items()}


def _numbers(prometheus: Prometheus, asked: str, end: datetime, by: str | None) -> dict[str, float]:
    """The counts that a query gives, by slice, or the one number."""
    if by is None:
        found = {NONE: _one(prometheus, asked, end)}
    else:
        found = {}
        for series in prometheus.query(asked, end).series:
            name = series.labels.get(by) or NONE
            found[name] = found.get(name, 0.0) + series.samples[-1][1]
        if not found:
            raise NoSeries(f"{asked} gives no series at {end.isoformat()}; one for each {by} is needed")
    for number in found.values():
        if not math.isfinite(number) or number < 0:
            raise MetricsRefused(f"{asked} gives {number:g}, which is no count")
    return found


def _one(prometheus: Prometheus, query: str, end: datetime) -> float:
    series = prometheus.query(query, end).series
    if len(series) != 1 or not series[0].samples:
        refused = MetricsRefused if series else NoSeries
        raise refused(f"{query} gives {len(series) or 'no'} series at {end.isoformat()}; one is needed")
    return series[0].samples[-1][1]


def check_shares(
    prometheus: Prometheus, metrics: Iterable[Metric], window: timedelta, now: datetime, **names: str
) -> Iterator[str]:
    """Asks for each share of one's own what the judge will ask, of a revision that is there; gives the sentence about
    each. Raises as `counted` does, with the metric's name, and for what Prometheus knows as no counter."""
    for metric in metrics:
        if metric.bad is None:
            continue
        try:
            for query in (metric.bad, metric.total or ""):
                for name in re.findall(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{[^}]*\}\s*)?\[", query):
                    if (kind := prometheus.kind(name)) not in ("counter", "histogram", "summary", None):
                        raise MetricsRefused(f"{name} is a {kind}, and only counters can be counted; query: {query}")
            asked = max(window, metric.delay or window)
            found = counted(prometheus, metric, asked, now, **names)
            if metric.slices is not None and not found.keys() - {NONE}:
                raise MetricsRefused(f"no series has the label {metric.slices.by}; query: {metric.total}")
        except (MetricsRefused, MetricsUnavailable) as error:
            late = metric.delay and isinstance(error, NoSeries)
            right = "; where nothing may be known of stable yet, `or vector(0)` in the query says so" if late else ""
            raise type(error)(f"judge.metrics.{metric.name}: {error}{right}") from error
        total, bad = (sum(pair[k] for pair in found.values()) for k in (0, 1))
        slices = "" if metric.slices is None else f", in {len(found)} slices by {metric.slices.by}"
        yield f"judge.metrics.{metric.name}: {bad} of {total} in the last {format_duration(asked)}{slices}"


def filled(query: str, **names: str) -> str:
    """The query with its placeholders filled in. What is filled in stands within quotes and can never leave them."""
    return string.Template(query).substitute({name: quoted(text)[1:-1] for name, text in names.items()})
