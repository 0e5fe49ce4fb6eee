"""The doctor as the first task of a release, in the doctor's own test world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.doctor.world import deployed, kube, world

from model_release.doctor import World
from model_release.errors import MetricsRefused, MetricsUnavailable, NotReady, NotReadyYet
from model_release.judging import Past
from model_release.metrics import Presence
from model_release.tasks import foresight, preflight
from model_release.tasks.preflight import Preflight

__all__ = ["kube", "world"]


@pytest.fixture
def task(world: World, monkeypatch: pytest.MonkeyPatch) -> Preflight:
    monkeypatch.setattr(preflight, "world", lambda spec, root: world)
    return Preflight(task_id="preflight", spec=world.spec, root=Path())


def test_a_release_that_would_fail_ends_before_it_begins(task: Any, world: Any, context: Any) -> None:
    world.store().heeds = False
    with pytest.raises(NotReady, match=r"^store: s3://models/digits/ lets one write overwrite another"):
        task.execute(context)


def test_what_may_pass_by_itself_is_tried_again(task: Any, world: Any, context: Any) -> None:
    world.prometheus().away = True
    with pytest.raises(NotReadyYet, match=r"^metrics: MetricsUnavailable: refused"):
        task.execute(context)


def test_a_stable_revision_that_is_not_counted_yet_is_waited_for(
    kube: Any, task: Any, world: Any, context: Any
) -> None:
    deployed(kube, world.spec)
    with pytest.raises(NotReadyYet, match=r"^metrics: a canary beside digits-predictor-00001 could not be judged"):
        task.execute(context)


@pytest.mark.parametrize(("passing", "kind"), [(True, MetricsUnavailable), (False, MetricsRefused)])
def test_and_so_it_is_before_the_canary_is_staged(
    world: Any, monkeypatch: pytest.MonkeyPatch, passing: bool, kind: type[Exception]
) -> None:
    from model_release import metrics

    monkeypatch.setattr(foresight.connections, "prometheus", world.prometheus)
    monkeypatch.setattr(metrics, "presence", lambda *_, **__: Presence(False, "is empty", "up", passing=passing))
    with pytest.raises(kind, match="a canary beside r1 could not be judged: is empty"):
        foresight.foresee(world.spec, "r1", None, print)


def test_what_does_not_pass_is_told_first(task: Any, world: Any, context: Any) -> None:
    world.prometheus().away, world.store().refused = True, True
    with pytest.raises(NotReady, match=r"^store: .*\(and 1 more in the log\)$"):
        task.execute(context)


def test_a_run_that_moves_nothing_goes_on(task: Any, world: Any, context: Any) -> None:
    world.prometheus().away = True
    context["params"]["rollout"] = "none"
    assert {one["level"] for one in task.execute(context)} == {"OK", "warning", "error"}


def test_the_address_by_which_leases_name_this_airflow_is_looked_at(
    task: Any, world: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example")
    context["params"]["rollout"] = "none"
    (line,) = [one for one in task.execute(context) if one["check"] == "airflow"]
    assert "https://airflow.example" in line["sentence"]


def test_slices_that_no_series_tells_are_refused_before_any_traffic_moves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_release import metrics

    monkeypatch.setattr(metrics, "presence", lambda *_, **__: Presence(True, "is counted", "up"))
    monkeypatch.setattr(metrics, "slices_presence", lambda *_: [Presence(False, "no series has the label c", "up")])
    monkeypatch.setattr(foresight.connections, "prometheus", world.prometheus)
    with pytest.raises(MetricsRefused, match=r"the slices of a canary beside r1 .*: no series has the label c$"):
        foresight.foresee(world.spec, "r1", None, print)


@pytest.mark.parametrize("rollout", ["canary", "direct", "none"])
def test_a_canary_that_its_deadline_would_end_is_refused_and_what_waits_for_no_judge_is_not(
    kube: Any, task: Any, world: Any, context: Any, monkeypatch: pytest.MonkeyPatch, rollout: str
) -> None:
    from model_release import metrics

    deployed(kube, world.spec)
    quiet = Past.from_dict({"windows": [{"requests": 1, "bad": {"errors": 0}}] * 720})
    monkeypatch.setattr(metrics, "presence", lambda *_, **__: Presence(True, "is counted", "up"))
    monkeypatch.setattr(metrics, "bucket_edges", lambda *_, **__: ())
    monkeypatch.setattr(metrics, "read_before", lambda *_, **__: metrics.Before(quiet, 0.2, 720))
    told: list[Any] = []
    monkeypatch.setattr(preflight.suggestions, "remember", lambda model, plan: told.append((model, plan)))
    context["params"]["rollout"] = rollout
    if rollout == "canary":
        with pytest.raises(NotReady, match=r"^plan: At 0.2 requests a second .* a deadline of .*; or approval:"):
            task.execute(context)
    else:
        assert "plan" in {one["check"] for one in task.execute(context)}
    ((model, lines),) = told
    assert (model, lines[0]) == ("digits", "stable: 0 % errors, bursts of 1, from 720 windows"), "the form tells it"
