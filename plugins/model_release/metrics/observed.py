"""What Prometheus holds about a revision, asked before any traffic moves: so that a mistyped profile, a limit off
the live buckets or scrapes that are too rare are found while nothing depends on them."""

from __future__ import annotations

import difflib
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import combinations, pairwise

from model_release.errors import MetricsRefused
from model_release.metrics import samples
from model_release.metrics.increases import Target, target_of
from model_release.metrics.profiles import PROFILES, RevisionMetrics
from model_release.metrics.prometheus import Prometheus, Series, milliseconds, selector
from model_release.spec import Metric, format_duration

RECENT = timedelta(minutes=5)
# A histogram may come later than its counter (Envoy merges histograms every five seconds), and a scrape after that.
_LATER_MS = 30_000
_SHOWN = 5
# What people call the label by which several clusters in one Prometheus are told apart, and the one by which two
# replicas of a Prometheus are (the Operator's, Thanos' receivers', Mimir's and Cortex').
CLUSTER_LABELS = ("cluster", "cluster_name", "k8s_cluster", "k8s_cluster_name", "kubernetes_cluster", "tenant_id")
REPLICA_LABELS = ("prometheus_replica", "replica", "receive_replica", "__replica__", "ha_replica", "prometheus")


@dataclass(frozen=True)
class Presence:
    """Whether a revision's requests are counted. `sentence` says it to a person, with the query.

    `passing`: they are not, and time alone may mend it: others are counted under these names, or nothing is yet.
    """

    ok: bool
    sentence: str
    query: str
    scrape_seconds: float | None = None  # how often the revision's counters are scraped; None if that is unknown
    passing: bool = False


def presence(
    prometheus: Prometheus,
    metrics: RevisionMetrics,
    namespace: str,
    revision: str,
    *,
    window: timedelta | None = None,
    asked: Iterable[Metric] = (),
    now: datetime | None = None,
) -> Presence:
    """Whether the revision's request counter was scraped in the last five minutes, often enough for `window`, by one
    target for each pod, of one cluster and by one Prometheus, in time, and with a histogram where one of the metrics
    `asked` is on durations.

    If it was not, the sentence names the query and what comes near: the revision's target without requests, the
    same metric for other revisions, the metrics of another profile, or metrics of a similar name.
    """
    until = milliseconds(now or datetime.now(UTC))
    after = until - milliseconds_of(RECENT)
    query = metrics.requests_of(namespace, [revision])
    limits = [metric.above / timedelta(milliseconds=1) for metric in asked if metric.above is not None]
    counted = samples.read(prometheus, metrics, namespace, [revision], after, until, limits_ms=limits)
    found = counted.requests
    if found:
        newest = max(series.samples[-1][0] for series in found)
        # The median: a gap, as a restart of Prometheus leaves, says nothing about how often it scrapes.
        gaps = [later - earlier for series in found for (earlier, _), (later, _) in pairwise(series.samples)]
        seconds = statistics.median(gaps) / 1000 if gaps else None
        if window is not None and seconds is not None and window.total_seconds() < 2 * seconds:
            fitting = format_duration(timedelta(seconds=math.ceil(2 * seconds)))
            sentence = (
                f"{query} is scraped every {seconds:g} s, and a window of {format_duration(window)} does not hold two "
                f"scrapes; {fitting} would"
            )
            return Presence(False, sentence, query, seconds)
        if (several := _several(found)) is not None:
            label, values = several
            sentence = (
                f"{query} has series of several clusters, whose requests would be added up: {label} is "
                f"{' and '.join(values)}; judge.labels: {{{label}: {values[0]}}} in the model file says which one"
            )
            return Presence(False, sentence, query, seconds)
        up = _up(prometheus, metrics, found, after, until)
        if (twice := _twice(found) or _doubled([*found, *up])) is not None:
            return Presence(False, f"{query} would count each request twice: {twice}", query, seconds)
        if window is not None and seconds is not None and (late := _late(up or found, seconds, until)) > window:
            fitting = format_duration(timedelta(seconds=5 * math.ceil((late.total_seconds() + 2 * seconds) / 5)))
            sentence = (
                f"samples of {query} come {late.total_seconds():.0f} s late at the least, and windows of "
                f"{format_duration(window)} are read before that; a window of {fitting} would do"
            )
            # A Prometheus that was away for a moment looks the same.
            return Presence(False, sentence, query, seconds, passing=True)
        oldest = min(series.samples[0][0] for series in found)
        if limits and not counted.buckets and until - oldest > _LATER_MS:
            sentence = (
                f"{query} is counted, but {metrics.buckets_of(namespace, [revision])} is empty: nothing tells how long "
                "requests take; are the buckets dropped where they are scraped?"
            )
            return Presence(False, sentence, query, seconds)
        age = (until - newest) / 1000
        return Presence(True, f"{query} has {len(found)} series, the newest sample {age:.0f} s old", query, seconds)
    near, passing = _near(prometheus, metrics, namespace, revision, after, until)
    return Presence(False, f"{query} is empty: {near}", query, passing=passing)


def _twice(found: Iterable[Series]) -> str | None:
    """Two targets that are one pod at one time, as where a PodMonitor and a pod's annotations both have it scraped."""
    pods: dict[str, dict[Target, tuple[int, int]]] = {}
    for series in found:
        if pod := series.labels.get("pod"):
            spans = pods.setdefault(pod, {})
            first, last = spans.get(target_of(series.labels), (series.samples[0][0], series.samples[-1][0]))
            spans[target_of(series.labels)] = min(first, series.samples[0][0]), max(last, series.samples[-1][0])
    for pod, spans in pods.items():
        for (one, (begun, ended)), (other, (first, last)) in combinations(sorted(spans.items()), 2):
            if max(begun, first) < min(ended, last):
                named = " and ".join(f"job {job}, instance {instance}" for job, instance in (one, other))
                return f"pod {pod} is scraped as {named}"
    return None


def _several(found: Iterable[Series]) -> tuple[str, list[str]] | None:
    """A label that says which cluster a series is of, with its values, when there is more than one."""
    for label in CLUSTER_LABELS:
        values = sorted({series.labels[label] for series in found if label in series.labels})
        if len(values) > 1:
            return label, values
    return None


def _up(
    prometheus: Prometheus, metrics: RevisionMetrics, found: Iterable[Series], after: int, until: int
) -> list[Series]:
    """`up` of the targets that the counters come from; what is pushed has none."""
    jobs, instances = zip(*sorted({target_of(series.labels) for series in found}), strict=True)
    return prometheus.raw(selector("up", dict(metrics.also), {"job": jobs, "instance": instances}), after, until)


def _doubled(found: Iterable[Series]) -> str | None:
    """Two series that only the labels of a Prometheus' replica tell apart, or two `up` of one target, at one time: two
    of them scrape the same, and nobody takes the doubles out."""
    groups: dict[object, list[Series]] = {}
    for series in found:
        named = series.labels.items()
        key = (
            ("up", *target_of(series.labels))
            if series.labels.get("__name__") == "up"
            else frozenset(pair for pair in named if pair[0] not in REPLICA_LABELS)
        )
        groups.setdefault(key, []).append(series)
    for group in groups.values():
        for one, other in combinations(group, 2):
            if max(one.samples[0], other.samples[0])[0] < min(one.samples[-1], other.samples[-1])[0]:
                job, instance = target_of(one.labels)
                apart = sorted({name for name, _ in one.labels.items() ^ other.labels.items()})
                values = " and ".join(one.labels.get(apart[0], "") or "none" for one in (one, other))
                return (
                    f"job {job}, instance {instance} is there twice, as {apart[0]} {values}; ask what takes the "
                    "doubles out (Thanos' or Mimir's address), or one replica"
                )
    return None


def _late(found: Iterable[Series], seconds: float, until: int) -> timedelta:
    """How late samples come, at the least: the newest one was scraped that long ago, and the next one is not here."""
    newest = max(series.samples[-1][0] for series in found)
    return timedelta(milliseconds=max(0, until - newest) - 1000 * seconds)


def _near(
    prometheus: Prometheus, metrics: RevisionMetrics, namespace: str, revision: str, after: int, until: int
) -> tuple[str, bool]:
    """What comes near, and whether the profile may be right all the same: a revision that came a moment ago, or a
    Prometheus that was just started, has no counts yet."""
    for other in PROFILES.values():
        if other is metrics:
            continue
        if samples.read(prometheus, other, namespace, [revision], after, until).requests:
            return f"{other.requests_of(namespace, [revision])} is not; judge.profile {other.name} reads it", False
    for targets in metrics.targets_of(namespace, [revision]):
        if any(value == 1 for series in prometheus.raw(targets, after, until) for _, value in series.samples):
            return f"the revision is scraped ({targets}), and has answered no request or counts under other names", True
    names = prometheus.label_values("__name__", after=after, until=until)
    if metrics.requests in names:
        others = prometheus.label_values(metrics.revision_label, metrics.bearer(), after=after, until=until)
        if others:
            return f"{metrics.bearing} exists, with {metrics.revision_label} {_listed(revision, others)}", True
        return f"{metrics.requests} exists, but {metrics.bearer()} without the label {metrics.revision_label}", False
    for other in PROFILES.values():
        if other.requests in names:
            said = f"{metrics.requests} does not exist, but {other.requests} does: judge.profile {other.name} reads it"
            return said, False
    near = difflib.get_close_matches(metrics.requests, names, n=_SHOWN, cutoff=0.5)
    if near:
        return f"{metrics.requests} does not exist; near are {', '.join(near)}", False
    if not names:
        return "Prometheus holds no series at all", True
    return f"neither {metrics.requests} nor any other profile's metrics exist; is the revision scraped?", True


def bucket_edges(
    prometheus: Prometheus,
    metrics: RevisionMetrics,
    namespace: str,
    revision: str,
    *,
    now: datetime | None = None,
) -> tuple[float, ...]:
    """The finite upper edges, in milliseconds and in order, of the revision's live histogram; empty if it has none."""
    buckets = f"{metrics.durations}_bucket"
    query = metrics.over("last_over_time", buckets, namespace, [revision], milliseconds_of(RECENT), by="le")
    edges = {metrics.edge_ms(series.labels["le"]) for series in prometheus.query(query, now).series}
    return tuple(sorted(edge for edge in edges if math.isfinite(edge)))


def check_limits(edges: Sequence[float], metrics: Iterable[Metric], histogram: str = "the live histogram") -> None:
    """Refuses a limit (`above`) that lies on none of the live edges, with the nearest ones named.

    Raises:
        MetricsRefused: for the first such metric. No edges at all refuse nothing: `presence` speaks of that.
    """
    for metric in metrics:
        if metric.above is None or not edges:
            continue
        limit = metric.above / timedelta(milliseconds=1)
        if limit not in edges:
            near = sorted(sorted(edges, key=lambda edge: abs(edge - limit))[:2])
            named = " or ".join(format_duration(timedelta(milliseconds=edge)) for edge in near)
            raise MetricsRefused(
                f"metrics.{metric.name}.above: {format_duration(metric.above)} is on no bucket's edge of {histogram}, "
                f"so the share could only be guessed; {named} can be read exactly"
            )


def request_rate(
    prometheus: Prometheus,
    metrics: RevisionMetrics,
    namespace: str,
    revision: str,
    *,
    over: timedelta = RECENT,
    now: datetime | None = None,
) -> float | None:
    """Requests a minute over the last `over`; None if Prometheus cannot tell (no series, or fewer than two samples)."""
    rate = metrics.over("rate", metrics.requests, namespace, [revision], milliseconds_of(over))
    return _number(prometheus, f"60 * {rate}", now)


def quantile(
    prometheus: Prometheus,
    metrics: RevisionMetrics,
    namespace: str,
    revision: str,
    share: float,
    *,
    start: datetime,
    end: datetime,
) -> float | None:
    """The duration in milliseconds that `share` of the requests stay under, between the two moments; for display.

    Interpolated inside a bucket and never above the last edge: nothing to judge by. None without requests.
    """
    length = milliseconds(end) - milliseconds(start)
    added = metrics.over("increase", f"{metrics.durations}_bucket", namespace, [revision], length, by="le")
    found = _number(prometheus, f"histogram_quantile({share!r}, {added})", end)
    return None if found is None else found / metrics.units_per_ms


def milliseconds_of(length: timedelta) -> int:
    return round(length / timedelta(milliseconds=1))


def _number(prometheus: Prometheus, query: str, at: datetime | None) -> float | None:
    series = prometheus.query(query, at).series
    value = series[0].samples[0][1] if series else math.nan
    return value if math.isfinite(value) else None


def _listed(wanted: str, values: list[str]) -> str:
    near = difflib.get_close_matches(wanted, values, n=_SHOWN, cutoff=0.3) or values[:_SHOWN]
    more = f" and {len(values) - len(near)} more" if len(values) > len(near) else ""
    return ", ".join(near) + more
