"""A service's traffic by revision over time: requests, bad answers and latency quantiles, by two queries.

The grid is Prometheus' own: a subquery evaluates at whole multiples of the step, so each poll asks for the same
moments again and lines do not tremble. Where nothing was counted there is no point, and the line has a gap.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from model_release.metrics.profiles import RevisionMetrics, code_pattern, profile
from model_release.metrics.prometheus import selector

if TYPE_CHECKING:
    from model_release.metrics.prometheus import Prometheus, Series
    from model_release.spec import ModelSpec

Json = dict[str, Any]

RANGES = {"5m": 300, "15m": 900, "1h": 3600, "6h": 6 * 3600, "24h": 24 * 3600, "7d": 7 * 24 * 3600}
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_POINTS = 180
_SMOOTHED = 15  # seconds: a rate over less shows single requests


def queries(spec: ModelSpec, *, step: int) -> dict[str, str]:
    """The PromQL of `requests` (a second, by revision and code) and of `latency` (the quantiles, by revision)."""
    metrics = profile(spec.judge.profile, spec.judge.labels)
    over = f"{max(2 * step, round(2 * spec.rollout.window.total_seconds()), _SMOOTHED)}s"
    matching = _of_service(metrics, spec)
    requests = metrics.ranged("rate", metrics.requests, matching, over)
    buckets = metrics.ranged("rate", f"{metrics.durations}_bucket", matching, over)
    by_edge = f"sum by ({metrics.revision_label}, le) ({buckets})"
    return {
        "requests": f"sum by ({metrics.revision_label}, {metrics.code_label}) ({requests})",
        "latency": " or ".join(
            f'label_replace(histogram_quantile({value}, {by_edge}), "quantile", "{name}", "", "")'
            for name, value in QUANTILES.items()
        ),
    }


def series(prometheus: Prometheus, spec: ModelSpec, *, start: float, end: float) -> Json:
    """The service's lines between two moments, in seconds since the epoch.

    Raises:
        MetricsUnavailable, MetricsRefused: as `Prometheus.query` does.
    """
    metrics = profile(spec.judge.profile, spec.judge.labels)
    span = max(end - start, 60.0)
    step = next(size for size in _steps() if span / size <= _POINTS)
    first, last = math.ceil(start / step) * step, math.floor(end / step) * step
    times = list(range(first, last + 1, step))
    asked = queries(spec, step=step)
    at = datetime.fromtimestamp(last, UTC)
    # Prometheus 3 leaves the left end of a range out.
    over = f"[{last - first + step}s:{step}s]"
    grid = _Grid(times, metrics, spec.service.name)
    ms = 1 / metrics.units_per_ms
    with prometheus:
        rates = prometheus.query(f"({asked['requests']}){over}", at).series
        quantiles = prometheus.query(f"({asked['latency']}){over}", at).series
    requests = grid.summed(rates)
    bad = grid.summed([one for one in rates if _is_bad(one, metrics)])
    return {
        "times": times,
        "step": step,
        "revisions": sorted(requests),
        "requests": requests,
        "bad": {name: _shares(bad.get(name), line) for name, line in requests.items()},
        "latency": {
            name: grid.summed([one for one in quantiles if one.labels.get("quantile") == name], ms)
            for name in QUANTILES
        },
        "queries": asked,
    }


def _steps() -> list[int]:
    """Whole numbers of seconds that divide a minute, an hour or a day; the last holds a month."""
    return [5, 10, 20, 30, 60, 120, 300, 480, 900, 1800, 3600, 7200, 14400, 86400]


def _of_service(metrics: RevisionMetrics, spec: ModelSpec) -> str:
    """The matchers of all revisions of the service: KServe calls them `<service>-predictor-00001` and so on, and in
    Standard mode `<service>-v<version>-predictor`."""
    namespace = spec.service.namespace
    equal = dict(metrics.fixed) | ({} if metrics.namespace_label is None else {metrics.namespace_label: namespace})
    # What the label says up to the revision's name, and of that all but the number.
    kind = "v" if spec.service.mode == "standard" else "predictor-"
    named = metrics.label_of(namespace, "\n").partition("\n")[0] + f"{spec.service.name}-{kind}"
    return selector("", equal, beginning={metrics.revision_label: [named]})[1:-1]


def _is_bad(one: Series, metrics: RevisionMetrics) -> bool:
    return code_pattern(None).fullmatch(one.labels.get(metrics.code_label, "")) is not None


class _Grid:
    """Series by revision on the common moments."""

    def __init__(self, times: list[int], metrics: RevisionMetrics, service: str) -> None:
        self._place = {moment: i for i, moment in enumerate(times)}
        self._metrics = metrics
        self._ours = re.compile(rf"{re.escape(service)}-(predictor-\d+|v[0-9a-f]{{10}}-predictor)")

    def summed(self, found: list[Series], factor: float = 1.0) -> dict[str, list[float | None]]:
        lines: dict[str, list[float | None]] = {}
        for one in found:
            revision = self._metrics.revision_of(one.labels)
            if revision is None or not self._ours.fullmatch(revision):
                continue
            line = lines.setdefault(revision, [None] * len(self._place))
            for moment, value in one.samples:
                place = self._place.get(round(moment / 1000))
                if place is not None and math.isfinite(value):
                    line[place] = (line[place] or 0.0) + value * factor
        return {name: [_rounded(value) for value in line] for name, line in lines.items()}


def _shares(bad: list[float | None] | None, requests: list[float | None]) -> list[float | None]:
    """The share of bad answers; none where there were no requests."""
    over = bad or [None] * len(requests)
    return [_rounded((some or 0.0) / all_) if all_ else None for some, all_ in zip(over, requests, strict=True)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
