"""What each slice of the traffic got, until a window tells it; and whether there is anything to tell slices by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from model_release.judging.slices import NONE, OTHER, placed
from model_release.metrics import samples
from model_release.metrics.observed import RECENT, Presence, milliseconds_of
from model_release.metrics.profiles import RevisionMetrics
from model_release.metrics.prometheus import Labels, Prometheus, milliseconds
from model_release.spec import JudgeSpec

Told = dict[str, tuple[int, int]]  # requests and bad ones, by slice


class SliceCounts:
    """One metric's slices, of each revision. The first fifty, by the traffic of the window in which they come, keep
    their names; all others are "other", and what says of none is "none"."""

    def __init__(self, by: str) -> None:
        self._by = by
        self._known: list[str] = []
        self._pending: dict[str, dict[str, list[int]]] = {}

    def add(self, revision: str, labels: Labels, requests: int = 0, bad: int = 0) -> None:
        """Adds what a series got."""
        counts = self._pending.setdefault(revision, {}).setdefault(labels.get(self._by) or NONE, [0, 0])
        counts[0] += requests
        counts[1] += bad

    def learn(self) -> None:
        """Before a window is told: which slices keep their names."""
        traffic = Counter[str]()
        for slices in self._pending.values():
            for name, (requests, _) in slices.items():
                traffic[name] += requests
        self._known += placed(self._known, +traffic)

    def told(self, revision: str) -> Told:
        """What is pending of a revision. Bad ones that are counted before their requests wait for them."""
        pending = self._pending.pop(revision, {})
        binned: dict[str, list[int]] = {}
        for name, (requests, bad) in pending.items():
            place = binned.setdefault(name if name in self._known else OTHER, [0, 0])
            place[0] += requests
            place[1] += bad
        told = {name: (requests, min(max(bad, 0), requests)) for name, (requests, bad) in sorted(binned.items())}
        left = {name: [0, bad - told[name][1]] for name, (_, bad) in binned.items() if bad != told[name][1]}
        if left:
            self._pending[revision] = left
        return {name: pair for name, pair in told.items() if pair[0]}


def slices_presence(
    prometheus: Prometheus,
    metrics: RevisionMetrics,
    judge: JudgeSpec,
    namespace: str,
    revision: str,
    *,
    now: datetime | None = None,
) -> Iterator[Presence]:
    """Whether the series of each share of requests carry the label that its slices are told by, over the last five
    minutes. Where there are none at all nothing is said: `presence` speaks of that."""
    until = milliseconds(now or datetime.now(UTC))
    for metric in judge.metrics:
        if metric.slices is None or not metric.of_requests:
            continue
        by = metric.slices.by
        limits = [] if metric.above is None else [metric.above / timedelta(milliseconds=1)]
        found = samples.read(
            prometheus, metrics, namespace, [revision], until - milliseconds_of(RECENT), until, limits_ms=limits
        )
        for series, query in (
            (found.requests, metrics.requests_of(namespace, [revision])),
            (found.buckets, metrics.buckets_of(namespace, [revision], limits) if limits else ""),
        ):
            if not series:
                continue
            values = {one.labels[by] for one in series if one.labels.get(by)}
            said = f"{query} has {len(values)} slices by {by}"
            if not values:
                said = (
                    f"judge.metrics.{metric.name}.slices: no series of {query} has the label {by}; they have "
                    f"{', '.join(sorted({name for one in series for name in one.labels} - {'__name__'}))}"
                )
            yield Presence(bool(values), said, query)
