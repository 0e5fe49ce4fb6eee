"""What Prometheus counted in a part of a walk, by revision: the load test's numbers, and two small charts of them.

The counts are the judge's own, the gateway's under Istio's names (profile `istio`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_release.metrics.profiles import RevisionMetrics, profile
from model_release.metrics.prometheus import Prometheus

Line = list[tuple[float, float]]  # (Unix seconds, value)

_AVERAGED = 5  # seconds that each point of a line tells of; it stands in their middle
_SCRAPES = 5000  # milliseconds in which the gateway is scraped for sure
_QUANTILES = (0.5, 0.95)
_POINTS = 90  # of a line, at most twice as many

# In the middle between white and black, so that they are seen on a page of either.
_GREY = "#7d8590"
_COLOURS = ("#3f8fd2", "#d97a2b", "#3fa66b")


@dataclass(frozen=True)
class Share:
    """One revision's part: `requests` answered, `failed` of them other than 2xx, quantiles in milliseconds (NaN where
    there is no request). The quantiles are Prometheus', within a bucket of the histogram."""

    revision: str
    requests: int
    failed: int
    p50: float
    p95: float
    volume: Line
    latency: dict[float, Line]


@dataclass(frozen=True)
class Measured:
    """All revisions between two moments, in Unix seconds."""

    began: float
    ended: float
    shares: tuple[Share, ...]

    @property
    def requests(self) -> int:
        return sum(share.requests for share in self.shares)

    def percent(self, share: Share) -> float:
        """The revision's part of all requests; 0 when there were none."""
        return 100 * share.requests / max(self.requests, 1)


def measure(prometheus: Prometheus, namespace: str, revisions: Sequence[str], began: float, ended: float) -> Measured:
    """What was counted in (began, ended]. Raises model_release.errors.Metrics… when Prometheus does not answer."""
    metrics, until = profile("istio"), datetime.fromtimestamp(ended, UTC)
    label, buckets = metrics.revision_label, f"{metrics.durations}_bucket"
    seconds = max(round(ended - began), 1)

    def quantile(share: float, over: int) -> str:
        added = metrics.over("rate", buckets, namespace, revisions, over * 1000, f"le, {label}")
        return f"histogram_quantile({share}, {added})"

    def lines(query: str) -> dict[str, Line]:
        answer = prometheus.query(f"({query})[{seconds}s:{max(seconds // _POINTS, 1)}s]", until)
        return {
            str(metrics.revision_of(series.labels)): [
                (moment / 1000 - _AVERAGED / 2, value)
                for moment, value in series.samples
                if math.isfinite(value) and moment / 1000 >= began + _AVERAGED
            ]
            for series in answer.series
        }

    totals = {share: _by_revision(prometheus, metrics, quantile(share, seconds), until) for share in _QUANTILES}
    counted = _counted(prometheus, metrics, namespace, revisions, began, ended)
    volume = lines(metrics.over("rate", metrics.requests, namespace, revisions, _AVERAGED * 1000, label))
    latency = {share: lines(quantile(share, _AVERAGED)) for share in _QUANTILES}
    return Measured(
        began,
        ended,
        tuple(
            Share(
                revision,
                *counted.get(revision, (0, 0)),
                p50=totals[0.5].get(revision, math.nan),
                p95=totals[0.95].get(revision, math.nan),
                volume=volume.get(revision, []),
                latency={share: latency[share].get(revision, []) for share in _QUANTILES},
            )
            for revision in revisions
        ),
    )


def _by_revision(prometheus: Prometheus, metrics: RevisionMetrics, query: str, at: datetime) -> dict[str, float]:
    return {
        str(metrics.revision_of(series.labels)): series.samples[0][1] for series in prometheus.query(query, at).series
    }


def _counted(
    prometheus: Prometheus,
    metrics: RevisionMetrics,
    namespace: str,
    revisions: Sequence[str],
    began: float,
    ended: float,
) -> dict[str, tuple[int, int]]:
    """(requests, failed) by revision, from the samples themselves: PromQL's `increase` would only estimate."""
    begin, end = round(began * 1000), round(ended * 1000)
    found: dict[str, tuple[int, int]] = {}
    for series in prometheus.raw(metrics.requests_of(namespace, revisions), begin - _SCRAPES, end):
        added, before = 0, 0  # a counter that was not there before began at 0
        for moment, value in series.samples:
            if moment > begin:
                added += int(value - before if value >= before else value)
            before = int(value)
        revision, failed = (
            str(metrics.revision_of(series.labels)),
            not series.labels[metrics.code_label].startswith("2"),
        )
        requests, bad = found.get(revision, (0, 0))
        found[revision] = requests + added, bad + (added if failed else 0)
    return found


def draw(measured: Measured, revisions: Sequence[str], file: Path) -> None:
    """One stage as an SVG: requests a second, and latency, by revision. Equal numbers, equal bytes.

    `revisions` are all that there are in the walk: each keeps its colour.
    """
    colours = dict(zip(revisions, _COLOURS, strict=False))
    figure = _figure(7.6, 2.35)
    volume, latency = figure.subplots(1, 2)
    _volume(volume, measured, colours)
    _latency(latency, measured, colours)
    for axes in (volume, latency):
        axes.set_xlabel("seconds", fontsize=8)
        axes.set_xlim(0, measured.ended - measured.began)
    _legend(figure, measured, colours)
    _save(figure, file)


def draw_walk(measured: Measured, stages: Mapping[str, Measured], file: Path) -> None:
    """The whole walk as an SVG; each stage, by its name, is shaded where it was measured."""
    colours = dict(zip((share.revision for share in measured.shares), _COLOURS, strict=False))
    figure = _figure(7.6, 4.2)
    volume, latency = figure.subplots(2, 1, sharex=True)
    _volume(volume, measured, colours)
    _latency(latency, measured, colours)
    top = volume.get_ylim()[1] * 1.18  # room for the names
    volume.set_ylim(0, top)
    for name, stage in stages.items():
        left, right = stage.began - measured.began, stage.ended - measured.began
        for axes in (volume, latency):
            axes.axvspan(left, right, color=_GREY, alpha=0.16, linewidth=0)
        volume.text((left + right) / 2, top * 0.98, name, ha="center", va="top", fontsize=8, color=_GREY)
    latency.set_xlabel("seconds", fontsize=8)
    latency.set_xlim(0, measured.ended - measured.began)
    _legend(figure, measured, colours, percents=False)
    _save(figure, file)


def _figure(width: float, height: float) -> Any:
    # Its own figure, never pyplot: that keeps state, and asks for a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _volume(axes: Any, measured: Measured, colours: Mapping[str, str]) -> None:
    _plain(axes, "requests a second")
    for share in measured.shares:
        colour, times = colours[share.revision], [moment - measured.began for moment, _ in share.volume]
        values = [value for _, value in share.volume]
        axes.fill_between(times, values, color=colour, alpha=0.18, linewidth=0)
        axes.plot(times, values, color=colour, linewidth=1.3)
    axes.set_ylim(bottom=0)


def _latency(axes: Any, measured: Measured, colours: Mapping[str, str]) -> None:
    _plain(axes, "latency, ms: median, and 95 % (dotted)")
    for share in measured.shares:
        for line, style in zip(share.latency.values(), ("-", ":"), strict=True):
            times, values = [moment - measured.began for moment, _ in line], [value for _, value in line]
            axes.plot(times, values, style, color=colours[share.revision], linewidth=1.3)
    axes.set_ylim(bottom=0)


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=8, color=_GREY, loc="left")
    axes.patch.set_alpha(0)
    axes.locator_params(nbins=6, integer=True)
    axes.tick_params(colors=_GREY, labelsize=7, length=2)
    axes.xaxis.label.set_color(_GREY)
    axes.yaxis.label.set_color(_GREY)
    axes.grid(axis="y", color=_GREY, alpha=0.25, linewidth=0.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GREY)


def _legend(figure: Any, measured: Measured, colours: Mapping[str, str], *, percents: bool = True) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(
            color=colours[share.revision],
            label=f"{share.revision}: {measured.percent(share):.1f} %" if percents else share.revision,
        )
        for share in measured.shares
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False, labelcolor=_GREY,
        handlelength=1, handleheight=0.7,
    )  # fmt: skip


def _save(figure: Any, file: Path) -> None:
    from matplotlib import rc_context

    # Text stays text: small, and searched and read like the page around it.
    plain = {"svg.fonttype": "none", "svg.hashsalt": "walkthrough", "font.sans-serif": ["DejaVu Sans"]}
    with rc_context(plain):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
