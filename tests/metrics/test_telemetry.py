"""What a release tells a StatsD that listens, and under which names Prometheus gets it."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_release.cluster.release import Cause
from model_release.release.outcome import BEFORE_TRAFFIC, REFUSED
from model_release.tasks import telemetry

from .conftest import Statsd, off
from .exporter import MAPPING, Exporter, Sample
from .releases import record, watch

DOCS = Path(__file__).resolve().parents[2] / "docs/metrics.md"
SERVICE = {"namespace": "models", "service": "digits"}
MODEL = SERVICE | {"model": "digits"}


def exported(statsd: Statsd) -> list[Sample]:
    exporter = Exporter()
    for line in statsd.lines():
        exporter.take(line)
    assert exporter.unmapped == []
    return exporter.samples()


def value(samples: list[Sample], name: str, **labels: str) -> float | None:
    """Of the one series with exactly these labels."""
    found = [
        amount for metric, given, amount in samples if metric == f"airflow_model_release_{name}" and given == labels
    ]
    assert len(found) <= 1
    return found[0] if found else None


def test_a_promoted_release(statsd: Statsd) -> None:
    made = record("a", bad=0, outcome="promoted")
    used = len(made.steps[0]["windows"])
    assert used > 3
    telemetry.released(made)
    seen = exported(statsd)
    assert value(seen, "ended_total", **MODEL, outcome="promoted", cause="none") == 1
    assert value(seen, "duration_seconds_sum", **MODEL, outcome="promoted") == pytest.approx(68 + 10 * used)
    stages = {"build": 60, "smoke": 5, "watch_25": 10 * used, "bake": 2, "report": 1}
    for stage, seconds in stages.items():
        assert value(seen, "stage_seconds_sum", **MODEL, stage=stage) == pytest.approx(seconds), stage
        assert value(seen, "stage_seconds_count", **MODEL, stage=stage) == 1
    assert value(seen, "decision_seconds_sum", **MODEL, percent="25", decision="promote") == pytest.approx(10 * used)
    assert value(seen, "caught_total", **MODEL, percent="25") == 0
    # One of the two metrics is only observed; the other came to no evidence against.
    assert value(seen, "tests_total", **MODEL) == 1
    assert [value(seen, "tests_reached_total", **MODEL, level=f"{level:g}") for level in telemetry.LEVELS] == [0] * 5
    ended = telemetry._moment(str(made.ended)).timestamp()
    assert value(seen, "ended_timestamp_seconds", **MODEL, outcome="promoted") == pytest.approx(ended, abs=0.001)
    opened = telemetry._moment(made.steps[0]["opened"]).timestamp()
    assert value(seen, "traffic_timestamp_seconds", **MODEL, change="open_25") == pytest.approx(opened, abs=0.001)


def test_a_release_that_was_caught(statsd: Statsd) -> None:
    made = record("b", bad=25, outcome="rolled_back")
    assert made.steps[0]["verdict"]["decision"] == "rollback"
    telemetry.released(made)
    seen = exported(statsd)
    assert value(seen, "ended_total", **MODEL, outcome="rolled_back", cause="none") == 1
    assert value(seen, "caught_total", **MODEL, percent="25") == 1
    assert value(seen, "decision_seconds_count", **MODEL, percent="25", decision="rollback") == 1
    assert value(seen, "stage_seconds_sum", **MODEL, stage="settle") == pytest.approx(2)
    for level in telemetry.LEVELS:
        assert value(seen, "tests_reached_total", **MODEL, level=f"{level:g}") == 1


@pytest.mark.parametrize("cause", [*Cause, BEFORE_TRAFFIC, REFUSED])
def test_what_ended_a_release_is_told_in_a_word(statsd: Statsd, cause: str) -> None:
    """Each of them is in the docs, so that an alarm can name it."""
    made = record("d", bad=0, outcome="promoted")
    made.finish("rolled_back", "why", str(made.ended), cause)
    telemetry.released(made)
    word = str(cause).replace(" ", "_")
    assert value(exported(statsd), "ended_total", **MODEL, outcome="rolled_back", cause=word) == 1
    (line,) = (line for line in DOCS.read_text().splitlines() if line.startswith("| `model_release.ended` "))
    assert re.search(rf"\b{word}\b", line)


def test_two_releases_add_up(statsd: Statsd) -> None:
    for name in ("a", "b"):
        telemetry.released(record(name, bad=0, outcome="promoted"))
    seen = exported(statsd)
    assert value(seen, "ended_total", **MODEL, outcome="promoted", cause="none") == 2
    assert value(seen, "stage_seconds_sum", **MODEL, stage="build") == pytest.approx(120)
    assert value(seen, "stage_seconds_bucket", **MODEL, stage="build", le="30") == 0
    assert value(seen, "stage_seconds_bucket", **MODEL, stage="build", le="60") == 2


def test_a_release_that_came_to_nothing(statsd: Statsd) -> None:
    made = record("c", bad=0, outcome="promoted")
    made.steps, made.traffic = [], []
    made.finish("failed", "the export ended", str(made.ended))
    telemetry.released(made)
    seen = exported(statsd)
    assert value(seen, "ended_total", **MODEL, outcome="failed", cause="none") == 1
    assert [given["stage"] for name, given, _ in seen if name.endswith("stage_seconds_count")] == ["build"]


def test_a_look_at_a_canary(statsd: Statsd) -> None:
    revision = SERVICE | {"revision": "digits-predictor-00002"}
    telemetry.looked(watch(looks=1))
    first = exported(statsd)
    telemetry.looked(watch(looks=3))
    seen = exported(statsd)
    assert value(seen, "canary_percent", **revision) == 25
    toward = {way: value(seen, "evidence", **revision, metric="errors", toward=way) for way in ("promote", "rollback")}
    before = value(first, "evidence", **revision, metric="errors", toward="promote")
    assert before is not None
    assert toward["promote"] is not None
    assert 0 < before < toward["promote"] < 1
    assert toward["rollback"] == 0
    assert not any(given.get("metric") == "slow" for _, given, _ in seen), "what is only observed decides nothing"
    telemetry.looked(watch(percent=None))
    assert value(exported(statsd), "canary_percent", **revision) == 100


def test_a_process_that_was_forked_tells_too(statsd: Statsd) -> None:
    """Triggers run in a child of the triggerer, which is forked after Airflow's metrics were configured."""
    telemetry.looked(watch())
    before = statsd.lines()
    child = os.fork()
    if child == 0:
        telemetry.looked(watch())
        os._exit(0)
    os.waitpid(child, 0)
    assert before
    assert statsd.lines() == before


@pytest.mark.parametrize(
    ("evidence", "needed", "way"),
    [(1, 100, 0), (10, 100, 0.5), (100, 100, 1), (1e9, 100, 1), (0.01, 100, 0), (2, 1, 1)],
)
def test_the_way_to_a_decision(evidence: float, needed: float, way: float) -> None:
    assert telemetry._way(evidence, needed) == way


def test_nothing_is_sent_where_metrics_are_off(statsd: Statsd) -> None:
    off()
    telemetry.released(record("a", bad=0, outcome="promoted"))
    telemetry.looked(watch())
    assert statsd.lines() == []


def test_no_release_fails_for_its_numbers(statsd: Statsd, caplog: pytest.LogCaptureFixture) -> None:
    made: Any = record("a", bad=0, outcome="promoted")
    made.started = "yesterday"
    with caplog.at_level(logging.WARNING):
        telemetry.released(made)
    assert "not counted" in caplog.text


def test_every_metric_is_mapped_and_documented() -> None:
    names = {name for key, name in vars(telemetry).items() if key.isupper() and isinstance(name, str)} - {"_NAME"}
    ours = {name for name in names if name.startswith("model_release.") and name != "model_release."}
    assert len(ours) == 11
    mapped = yaml.safe_load(MAPPING.read_text())["mappings"]
    assert {mapping["match"] for mapping in mapped} == {f"airflow.{name}" for name in ours}
    documented = DOCS.read_text()
    for mapping in mapped:
        assert f"`{mapping['name']}`" in documented, mapping["name"]
        assert re.fullmatch(r"airflow_model_release_[a-z_]+", mapping["name"])
    for name in ours:
        assert f"`{name}`" in documented, name
