"""Stable's past, from exact histories in a real Prometheus: whose windows, which are left out, and when it ends."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from model_release.errors import MetricsRefused, MetricsUnavailable
from model_release.judging import Past
from model_release.metrics import Prometheus, Series, read_before, read_windows
from model_release.metrics.past import PART
from model_release.release.plan import foresee
from model_release.spec import JudgeSpec, ModelSpec

from .conftest import CANARY, NAMESPACE, STABLE, History, at, serving
from .histories import TEN, durations, gateway, up

LONG_AGO, QUIET, GAP = -7400, (-2000, -1900), (-1000, -950)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Two hours of a gateway: of stable, with a quiet time and one without scrapes, and of an older revision."""
    chance, history = random.Random(7), History()
    scrapes = [float(s) for s in range(LONG_AGO, 1, 5) if not GAP[0] < s < GAP[1]]
    requests = bad = slow = 100
    counted: dict[float, tuple[int, int, int]] = {}
    for scrape in scrapes:
        if not QUIET[0] < scrape <= QUIET[1]:
            requests += chance.randrange(40, 60)
            bad += chance.random() < 0.1
            slow += chance.random() < 0.2
        counted[scrape] = requests, bad, slow
    up(history, scrapes)
    gateway(history, STABLE, 200, {s: n for s, (n, _, _) in counted.items()})
    gateway(history, STABLE, 503, {s: b for s, (_, b, _) in counted.items()})
    durations(history, STABLE, "500", {s: n - w for s, (n, _, w) in counted.items()})
    durations(history, STABLE, "+Inf", {s: n for s, (n, _, _) in counted.items()})
    gateway(history, CANARY, 503, {s: 9 * (s - LONG_AGO) for s in scrapes})
    with serving(tmp_path_factory.mktemp("past")) as start:
        yield start(history)


@pytest.fixture
def judged(judge_of: Callable[..., JudgeSpec]) -> JudgeSpec:
    return judge_of("istio")


def past(prometheus: Prometheus, judge: JudgeSpec, **more: Any) -> tuple[Past, str]:
    given: dict[str, Any] = {"since": at(LONG_AGO - 9000), "before": at(0), "window": TEN, **more}
    found = read_before(prometheus, judge, namespace=NAMESPACE, revision=STABLE, **given)
    return found.past, found.trouble


def forward(prometheus: Prometheus, judge: JudgeSpec, begin: float, end: float) -> list[Any]:
    """What a look that had been there all the time would have counted."""
    windows = read_windows(
        prometheus, judge, namespace=NAMESPACE, canary=STABLE, stable=None,
        start=at(begin), end=at(end), window=TEN, now=at(0),
    )  # fmt: skip
    return [one.canary for one in windows]


def test_it_is_what_looks_would_have_counted_without_the_windows_that_tell_nothing(
    prometheus: Prometheus, judged: JudgeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries: list[str] = []
    real = prometheus.raw

    def counting(query: str, after: int, until: int) -> list[Series]:
        queries.append(query)
        return real(query, after, until)

    monkeypatch.setattr(prometheus, "raw", counting)
    found, trouble = past(prometheus, judged)
    asked = len(queries)
    every = forward(prometheus, judged, -7210, -10)
    assert len(every) == 720
    assert found.windows == tuple(side for side in every if side.requests)
    assert [side.requests for side in every].count(None) == 5, "the gap is no data"
    assert [side.requests for side in every].count(0) == 10, "the quiet time is no past"
    assert len(found.windows) == 705
    assert (found.revision, trouble) == (STABLE, "")
    assert asked <= 6 * 7


def test_read_again_it_is_the_same(prometheus: Prometheus, judged: JudgeSpec) -> None:
    assert past(prometheus, judged) == past(prometheus, judged)


def test_what_had_the_name_before_is_not_its_past(prometheus: Prometheus, judged: JudgeSpec) -> None:
    found, _ = past(prometheus, judged, since=at(-505))
    assert list(found.windows) == forward(prometheus, judged, -500, -10)
    assert past(prometheus, judged, since=at(-15)) == (Past((), STABLE), "")
    assert past(prometheus, judged, since=at(100)) == (Past((), STABLE), "")


def test_nothing_is_no_past_and_no_zero(prometheus: Prometheus, judged: JudgeSpec) -> None:
    assert past(prometheus, judged, before=at(LONG_AGO - 100)) == (Past((), STABLE), "")
    young, _ = past(prometheus, judged, before=at(LONG_AGO + 130))
    assert len(young.windows) in (11, 12)
    assert all(side.requests for side in young.windows)


@pytest.mark.parametrize("trouble", [MetricsUnavailable, MetricsRefused])
def test_the_newest_is_what_stays_when_the_rest_is_not_to_be_had(
    trouble: type[Exception], prometheus: Prometheus, judged: JudgeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, real = forward(prometheus, judged, -10 - 10 * PART, -10), prometheus.raw

    def failing(query: str, after: int, until: int) -> list[Series]:
        if until < at(-10).timestamp() * 1000:
            raise trouble("no more")
        return real(query, after, until)

    monkeypatch.setattr(prometheus, "raw", failing)
    found, said = past(prometheus, judged)
    assert found.windows == tuple(side for side in every if side.requests)
    assert said == "no more"


def test_a_prometheus_that_is_away_or_too_slow_is_a_sentence(
    prometheus: Prometheus, judged: JudgeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing, said = past(prometheus, judged, seconds=0)
    assert nothing.windows == ()
    assert "the time for a look is over" in said
    monkeypatch.setattr(prometheus, "base_url", "http://127.0.0.1:9")
    nothing, said = past(prometheus, judged)
    assert nothing.windows == ()
    assert "Connection refused" in said


def test_a_window_of_minutes_has_its_past_too(prometheus: Prometheus, judged: JudgeSpec) -> None:
    found, said = past(prometheus, judged, window=timedelta(minutes=1))
    assert said == ""
    assert len(found.windows) in range(115, 125)


def test_traffic_is_counted_with_the_quiet_windows_and_the_present_is_not_hidden_by_them(
    prometheus: Prometheus, judged: JudgeSpec
) -> None:
    given: dict[str, Any] = {"namespace": NAMESPACE, "revision": STABLE, "since": at(LONG_AGO - 9000), "window": TEN}
    found = read_before(prometheus, judged, before=at(0), **given)
    assert found.past == past(prometheus, judged)[0]
    assert found.windows == 715, "a quiet window was counted, and one without a scrape was not"
    every = [side.requests for side in forward(prometheus, judged, -7210, -10) if side.requests is not None]
    mean, newest = sum(every) / 7150, sum(every[-30:]) / 300
    assert found.requests_per_second == pytest.approx(max(mean, newest))
    just_now = read_before(prometheus, judged, before=at(-1750), **given)
    assert just_now.requests_per_second == pytest.approx(10, rel=0.1), "busy before its rest"
    assert read_before(prometheus, judged, before=at(LONG_AGO - 100), **given).requests_per_second is None


def test_a_release_is_planned_by_it(prometheus: Prometheus, judged: JudgeSpec) -> None:
    said = {
        "model": "faces",
        "source": {"directory": "candidates/faces"},
        "service": {"name": "faces", "namespace": NAMESPACE},
        "store": "s3://models/faces/",
        "rollout": {"steps": [10, 30], "window": "10s", "deadline": "2h"},
        "judge": judged.model_dump(mode="json", exclude_none=True),
    }
    found = foresee(ModelSpec.model_validate(said), prometheus, STABLE, at(LONG_AGO - 9000).isoformat(), now=at(0))
    assert found.known
    assert found.past.endswith("from 705 windows")
    assert found.plan.requests_per_second == pytest.approx(10, rel=0.1)
    errors = next(metric for metric in found.plan.metrics if metric.name == "errors")
    assert errors.known
    assert errors.stable_rate == pytest.approx(0.002, rel=0.4), "one in ten scrapes, of a hundred requests"
