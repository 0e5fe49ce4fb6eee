"""Numbers about releases, through Airflow's own metrics (docs/metrics.md lists them).

Where Airflow's metrics are off, nothing is sent. Labels go as Airflow's tags: StatsD sees them with
`statsd_influxdb_enabled`, OpenTelemetry as attributes. Nothing here can fail a release.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from model_release.judging import Verdict
    from model_release.judging.record import Record
    from model_release.release.look import Watch

log = logging.getLogger(__name__)

_NAME = "model_release."
ENDED: Final = f"{_NAME}ended"
ENDED_TIMESTAMP: Final = f"{_NAME}ended_timestamp_seconds"
TRAFFIC_TIMESTAMP: Final = f"{_NAME}traffic_timestamp_seconds"
DURATION: Final = f"{_NAME}duration"
STAGE: Final = f"{_NAME}stage"
DECISION: Final = f"{_NAME}decision"
CAUGHT: Final = f"{_NAME}caught"
TESTS: Final = f"{_NAME}tests"
TESTS_REACHED: Final = f"{_NAME}tests_reached"
EVIDENCE: Final = f"{_NAME}evidence"
CANARY_PERCENT: Final = f"{_NAME}canary_percent"

# If canaries are good, evidence of 1/level against them is reached by at most this share of them (Ville's inequality;
# judging/README.md). Counted, it shows whether the judge's promise about false alarms holds on real traffic.
LEVELS: Final = (0.5, 0.2, 0.1, 0.05, 0.01)

# What a release does between a change of traffic, by the task that made it, and the next one.
_AFTER = {
    "stage": "smoke",
    "promote": "bake",
    "go_live": "bake",
    "go_direct": "bake",
    "roll_back": "settle",
    "settle": "report",
}


def released(record: Record) -> None:
    """Counts a release that has ended: its outcome and cause, the time in each stage and to each decision, what was
    caught, and how far the evidence against it came. To be called once for each end: again, it would count again."""
    from airflow.sdk.observability import stats

    try:
        _released(record, stats)
    except Exception:
        log.warning("The release is not counted in Airflow's metrics", exc_info=True)


def looked(watch: Watch) -> None:
    """Shows how far the evidence has come, and the canary's percent: after each look, in the triggerer. Again, it
    shows the same."""
    # Airflow configures each side's own copy of its metrics: this one in the triggerer, the SDK's in tasks.
    from airflow.observability import stats

    try:
        _looked(watch, watch.judge.verdict(), stats)
    except Exception:
        log.warning("The look is not shown in Airflow's metrics", exc_info=True)


def _released(record: Record, stats: Any) -> None:
    namespace, _, service = record.service.partition("/")
    tags = {"namespace": namespace, "service": service, "model": record.model}
    began, ended = _moment(record.started), _moment(record.ended or record.started)
    outcome = {"outcome": str(record.outcome)}
    # A word for each release, so that the counter's series all have the same labels.
    stats.incr(ENDED, tags=tags | outcome | {"cause": (record.cause or "none").replace(" ", "_")})
    stats.gauge(ENDED_TIMESTAMP, round(ended.timestamp(), 3), tags=tags | outcome)
    stats.timing(DURATION, ended - began, tags=tags | outcome)
    for stage, length in stages(record):
        stats.timing(STAGE, length, tags=tags | {"stage": stage})
    for change in record.traffic:
        seconds = round(_moment(change["time"]).timestamp(), 3)
        stats.gauge(TRAFFIC_TIMESTAMP, seconds, tags=tags | {"change": change["task"]})
    carried = {opened for step in record.steps for opened, _ in step.get("carried", ())}
    for step in record.steps:
        _step(step, tags, stats, goes_on=step["opened"] in carried)


def _step(step: dict[str, Any], tags: dict[str, str], stats: Any, *, goes_on: bool) -> None:
    """`goes_on`: its evidence is carried to another step, with which it is one test."""
    verdict, percent = step["verdict"], {"percent": str(step["percent"])}
    if step["windows"] and step["windows"][-1].get("end"):
        length = _moment(step["windows"][-1]["end"]) - _moment(step["opened"])
        stats.timing(DECISION, length, tags=tags | percent | {"decision": verdict["decision"]})
    # A zero is sent too: what is counted from the beginning can be told from what nobody counts.
    stats.incr(CAUGHT, int(verdict["decision"] == "rollback"), tags=tags | percent)
    for metric in verdict["metrics"]:
        against = metric["evidence_against"]
        if against is None or metric["observe"] or goes_on:
            continue
        stats.incr(TESTS, tags=tags)
        for level in LEVELS:
            stats.incr(TESTS_REACHED, int(against * level >= 1), tags=tags | {"level": f"{level:g}"})


def stages(record: Record) -> Iterator[tuple[str, timedelta]]:
    """Each stage of a release that has ended, with its length: `build` until the canary stands, then what follows each
    change of traffic. Steps are `watch_<percent>`."""
    changes = sorted(record.traffic, key=lambda change: change["time"])
    names = ["build", *(_stage_after(change["task"]) for change in changes)]
    moments = [record.started, *(change["time"] for change in changes), record.ended or record.started]
    for name, (begin, end) in zip(names, pairwise(moments), strict=True):
        yield name, max(_moment(end) - _moment(begin), timedelta(0))


def _stage_after(task: str) -> str:
    return f"watch_{task.removeprefix('open_')}" if task.startswith("open_") else _AFTER.get(task, task)


def _looked(watch: Watch, verdict: Verdict, stats: Any) -> None:
    canary = watch.canary
    tags = {"namespace": canary.namespace, "service": canary.name, "revision": canary.revision}
    stats.gauge(CANARY_PERCENT, 100 if watch.percent is None else watch.percent, tags=tags)
    for metric in verdict.metrics:
        for toward, evidence, needed in (
            ("rollback", metric.evidence_against, metric.needed_against),
            ("promote", metric.evidence_for, metric.needed_for),
        ):
            if evidence is not None and not metric.observe:
                stats.gauge(EVIDENCE, _way(evidence, needed), tags=tags | {"metric": metric.name, "toward": toward})


def _way(evidence: float, needed: float) -> float:
    """How far the evidence has come: 0 for none, 1 where it decides; on a scale on which equal requests make about
    equal steps."""
    if evidence <= 1 or needed <= 1:
        return float(evidence >= needed)
    return round(min(math.log(evidence) / math.log(needed), 1.0), 4)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
