"""Past traffic, judged by today's limits: whose counts, and what is said where there are none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from model_release import metrics
from model_release.errors import MetricsUnavailable
from model_release.judging import Policy, Window, judge
from model_release.judging.record import Record
from model_release.release import index as history
from model_release.spec import ModelSpec
from model_release.tasks import connections, records
from model_release.tasks.look_back import LookBack

from .sensed import OPENED, window

VERSION = "0123456789abcdef"


class Past:
    """A history of one release."""

    def __init__(self, record: Record | None) -> None:
        self.one = record

    def entries(self, *, model: str) -> list[Any]:
        return [history.Entry.of(self.one)] if self.one else []

    def record(self, release: str) -> Record | None:
        return self.one


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, context: Any, ti: Any) -> Record:
    """This run's record."""
    one = Record.new("now", model="digits", service="models/digits", version=VERSION, started=OPENED.isoformat())
    monkeypatch.setattr(records, "change", lambda spec, run, edit, store=None: edit(one))
    monkeypatch.setattr(connections, "store", lambda prefix: None)
    monkeypatch.setattr(connections, "prometheus", lambda: None)
    ti.xcoms["publish", "return_value"] = {"version": VERSION, "uri": "s3://…/"}
    context["params"]["rollout"] = "none"
    return one


def release(spec: ModelSpec, bad: int) -> Record:
    """A release whose canary had `bad` of 100 failing in each of three windows, and was promoted by lenient limits."""
    one = Record.new("then", model="digits", service="models/digits", version=VERSION, started=OPENED.isoformat())
    one.canary, one.baseline = {"revision": "digits-00002"}, {"revision": "digits-00001"}
    policy = Policy.from_dict({"metrics": [{"name": "errors", "max_rate": 0.5}]})
    windows = [Window.from_dict(window(number, bad=bad)) for number in range(3)]
    one.record_step(
        25, OPENED.isoformat(), window_seconds=3.0, policy=policy, windows=windows, final=False,
        verdict=judge(policy, windows),
    )  # fmt: skip
    return one


def reads(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []

    class Reader:
        def __init__(self, prometheus: Any, judged: Any, **given: Any) -> None:
            asked.append(given)

        def read(self, end: datetime, *, now: datetime) -> list[Window]:
            asked[-1]["end"] = end
            if isinstance(answer, Exception):
                raise answer
            return list(answer)

    monkeypatch.setattr(metrics, "WindowReader", Reader)
    return asked


def look_back(spec: ModelSpec) -> LookBack:
    return LookBack(task_id="look_back", spec=spec)


def test_counts_that_prometheus_still_has_are_judged_by_todays_limits(
    spec: ModelSpec, context: Any, kept: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "History", lambda store: Past(release(spec, bad=0)))
    asked = reads(monkeypatch, [Window.from_dict(window(number, bad=90)) for number in range(3)])
    said = look_back(spec).execute(context)
    (step,) = said["steps"]
    assert (step["then"], step["decision"], step["counts"]) == ("promote", "rollback", "Prometheus")
    assert kept.retrospect == said
    (one,) = asked
    assert (one["canary"], one["stable"], one["start"]) == ("digits-00002", "digits-00001", OPENED)
    assert one["end"] == OPENED + timedelta(seconds=9)


GONE = Window.from_dict(window(0, bad=0) | {"canary": {"requests": None, "bad": {"errors": None}}})
KEPT = [Window.from_dict(window(number, bad=0)) for number in range(3)]


@pytest.mark.parametrize(
    "answer", [[], MetricsUnavailable("refused"), [GONE] * 3, [GONE, *KEPT[1:]], KEPT[:2]],
    ids=["nothing", "away", "all forgotten", "its beginning forgotten", "its end not read"],
)  # fmt: skip
def test_where_prometheus_has_forgotten_the_recorded_counts_are_judged(
    spec: ModelSpec, context: Any, kept: Record, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    monkeypatch.setattr(history, "History", lambda store: Past(release(spec, bad=90)))
    reads(monkeypatch, answer)
    (step,) = look_back(spec).execute(context)["steps"]
    assert (step["decision"], step["counts"]) == ("rollback", "the decision record")


def test_a_version_that_never_was_a_canary_has_nothing_to_judge(
    spec: ModelSpec, context: Any, kept: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "History", lambda store: Past(None))
    said = look_back(spec).execute(context)
    assert (said["of"], said["sentence"]) == (None, f"{VERSION} never was a canary.")


def test_a_run_that_moves_traffic_is_judged_by_that(spec: ModelSpec, context: Any, kept: Record) -> None:
    context["params"]["rollout"] = "canary"
    with pytest.raises(AirflowSkipException):
        look_back(spec).execute(context)


def test_a_limit_on_what_was_not_counted_is_said(
    spec: ModelSpec, context: Any, kept: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = spec.model_dump(mode="json", exclude_none=True)
    given["judge"]["metrics"] = [{"name": "slow", "above": "1s", "max_rate": 0.1}]
    monkeypatch.setattr(history, "History", lambda store: Past(release(spec, bad=0)))
    reads(monkeypatch, [])
    (step,) = look_back(ModelSpec.model_validate(given)).execute(context)["steps"]
    assert step["decision"] in (None, "inconclusive"), "no data is never good news"
    assert datetime.now(UTC).isoformat()[:10] in str(kept.retrospect)
