"""The raw samples of a profile's counters, each with the labels that say whose they are.

Most stacks put the revision's name on each sample, and one selector reads them. Where only `target_info` has it, the
two are joined here, sample by sample: PromQL's own join gives values at chosen moments, not the samples that were
scraped, and so cannot be counted exactly.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from model_release.metrics.increases import Target, target_of
from model_release.metrics.profiles import TARGET_INFO, RevisionMetrics
from model_release.metrics.prometheus import Labels, Prometheus, Series, selector

# Prometheus itself looks back so far for a series' last sample.
LOOKBACK_MS = 300_000


@dataclass(frozen=True)
class Counted:
    """The samples of one part of time."""

    requests: list[Series]
    buckets: list[Series]


def read(
    prometheus: Prometheus,
    metrics: RevisionMetrics,
    namespace: str,
    revisions: Iterable[str],
    after: int,
    until: int,
    *,
    limits_ms: Iterable[float] = (),
) -> Counted:
    """Every sample of the revisions' counters in (after, until], milliseconds since the epoch; of the buckets only
    those at the limits and the last ones, and none without limits. Reads only; errors as `Prometheus` says."""
    names, limits = list(revisions), sorted(set(limits_ms))
    if not metrics.joined:
        return Counted(
            prometheus.raw(metrics.requests_of(namespace, names), after, until),
            prometheus.raw(metrics.buckets_of(namespace, names, limits), after, until) if limits else [],
        )
    owners = _owners(prometheus, metrics, namespace, names, after, until)
    if not owners:
        return Counted([], [])
    jobs, instances = zip(*sorted(owners), strict=True)
    here: dict[str, list[str]] = {"job": list(jobs), "instance": list(instances)}
    wanted, also = set(names), dict(metrics.also)

    def counted(metric: str, edges: dict[str, list[str]]) -> list[Series]:
        found = prometheus.raw(selector(metric, also, here | edges), after, until)
        parts = [part for series in found for part in _divided(series, owners.get(target_of(series.labels), []))]
        return [part for part in parts if part.labels.get(metrics.revision_label) in wanted]

    return Counted(
        counted(metrics.requests, {}),
        counted(f"{metrics.durations}_bucket", metrics.edges_of(limits)) if limits else [],
    )


_Owners = dict[Target, list[tuple[int, Labels]]]


def _owners(
    prometheus: Prometheus, metrics: RevisionMetrics, namespace: str, revisions: list[str], after: int, until: int
) -> _Owners:
    """What `target_info` said and when, of each target that was one of the revisions' pods at some moment.

    An address may be given to another pod later, so everybody who had it is asked for.
    """
    told = f"{TARGET_INFO}{{{metrics.matching(namespace, revisions)}}}"
    # What is pushed may be older than its `target_info` by a moment, or younger.
    targets = {target_of(series.labels) for series in prometheus.raw(told, after - LOOKBACK_MS, until)}
    if not targets:
        return {}
    jobs, instances = zip(*sorted(targets), strict=True)
    everybody = prometheus.raw(
        selector(TARGET_INFO, dict(metrics.also), {"job": jobs, "instance": instances}), after - LOOKBACK_MS, until
    )
    given = [label for label in (metrics.namespace_label, metrics.revision_label) if label]
    owners: _Owners = defaultdict(list)
    for series in everybody:
        labels = {label: series.labels[label] for label in given if label in series.labels}
        owners[target_of(series.labels)] += [(moment, labels) for moment, _ in series.samples]
    return {target: sorted(moments, key=lambda said: said[0]) for target, moments in owners.items()}


def _divided(series: Series, owners: list[tuple[int, Labels]]) -> list[Series]:
    """The series once for each owner, with the owner's labels: a sample is whose `target_info` is nearest in time,
    which for what is pulled is that of the same scrape."""
    if not owners:
        return []
    moments = [moment for moment, _ in owners]
    parts: dict[tuple[tuple[str, str], ...], Series] = {}
    for sample in series.samples:
        place = bisect_left(moments, sample[0])
        near = [at for at in (place - 1, place) if 0 <= at < len(moments)]
        labels = owners[min(near, key=lambda at: abs(moments[at] - sample[0]))][1]
        key = tuple(sorted(labels.items()))
        parts.setdefault(key, Series(series.labels | labels, [])).samples.append(sample)
    return list(parts.values())
