"""Slices of the traffic, read from a real Prometheus: requests, the handler's answers, shares of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest

from model_release.errors import MetricsRefused
from model_release.judging import Policy, Side, Window
from model_release.judging import judge as judged
from model_release.metrics import (
    PROFILES,
    Prometheus,
    ValueReader,
    WindowReader,
    answers_presence,
    read_before,
    read_windows,
    slices_presence,
)
from model_release.metrics.slices import SliceCounts
from model_release.metrics.values import check_shares
from model_release.spec import JudgeSpec, Metric

from .conftest import CANARY, NAMESPACE, OPENING, STABLE, History, at

Serve = Callable[[History], Prometheus]
TEN = timedelta(seconds=10)
EVERY = [second + 0.4 for second in range(-30, 75)]
GATEWAY = {"job": "gw", "instance": "gw:15020"}
BY = {"by": "country", "at_least": 50}
JUDGE = JudgeSpec.model_validate({"profile": "istio", "metrics": [{"name": "errors", "max_rate": 0.02, "slices": BY}]})


def asked(history: History, revision: str, paces: Mapping[tuple[str, str], float]) -> None:
    """Requests a second by (country, code)."""
    for (country, code), pace in paces.items():
        labels = {
            "reporter": "source",
            "destination_workload": f"{revision}-deployment",
            "destination_workload_namespace": NAMESPACE,
            "response_code": code,
            **({"country": country} if country else {}),
        }
        history.add("istio_requests_total", GATEWAY | labels, {s: round(pace * (s + 29.6)) for s in EVERY})


def two_sides() -> History:
    history = History()
    history.add("up", GATEWAY, dict.fromkeys(EVERY, 1))
    asked(history, CANARY, {("fr", "200"): 8, ("fr", "503"): 2, ("de", "200"): 10, ("", "200"): 1})
    asked(history, STABLE, {("fr", "200"): 30, ("de", "200"): 30, ("de", "503"): 0.1})
    return history


def read(prometheus: Prometheus, seconds: float = 60, judge: JudgeSpec = JUDGE, **more: Any) -> list[Window]:
    options: dict[str, Any] = {"stable": STABLE, "window": TEN, "now": at(seconds + 10)} | more
    return read_windows(
        prometheus, judge, namespace=NAMESPACE, canary=CANARY, start=OPENING, end=at(seconds), **options
    )


def slices(window: Window, name: str = "errors") -> list[Any]:
    return [side.slices[name] for side in (window.canary, window.stable) if side]


def test_requests_are_counted_by_slice_and_the_bad_slice_is_named(serve: Serve) -> None:
    prometheus = serve(two_sides())
    windows = read(prometheus)
    assert [window.error for window in windows] == [None] * 6
    # What says of no country is a slice of its own.
    assert slices(windows[1]) == [
        {"de": (100, 0), "fr": (100, 20), "none": (10, 0)},
        {"de": (301, 1), "fr": (300, 0)},
    ]
    assert (windows[1].canary.requests, windows[1].canary.bad) == (210, {"errors": 20})
    reader = WindowReader(
        prometheus, JUDGE, namespace=NAMESPACE, canary=CANARY, stable=STABLE, start=OPENING, window=TEN
    )
    looks = [reader.read(at(s), now=at(s)) for s in range(3, 66, 3)]
    assert [window for look in looks for window in look] == windows
    limits = [metric.limits() | {"max_rate": 0.1} for metric in JUDGE.metrics]
    verdict = judged(Policy.from_dict({"metrics": limits, "min_requests": 9000}), windows * 5)
    assert verdict.decision == "rollback"
    assert "errors among country=fr: 20 % instead of 0 % (" in verdict.reason
    before = read_before(
        prometheus, JUDGE, namespace=NAMESPACE, revision=STABLE, since=OPENING, before=at(60), window=TEN
    )
    assert [side.slices for side in before.past.windows] == [{}] * len(before.past.windows)


def test_durations_are_counted_by_slice(serve: Serve) -> None:
    history = two_sides()
    for revision, slow in ((CANARY, 3), (STABLE, 0)):
        for le, pace in (("500.0", 10 - slow), ("+Inf", 10)):
            labels = {
                "reporter": "source",
                "destination_workload": f"{revision}-deployment",
                "destination_workload_namespace": NAMESPACE,
                "country": "fr",
                "le": le,
            }
            samples = {s: round(pace * (s + 29.6)) for s in EVERY}
            history.add("istio_request_duration_milliseconds_bucket", GATEWAY | labels, samples)
    slow = {"name": "slow", "above": "500ms", "max_rate": 0.05, "slices": BY}
    windows = read(serve(history), judge=JudgeSpec.model_validate({"profile": "istio", "metrics": [slow]}))
    assert slices(windows[1], "slow") == [
        {"de": (100, 0), "fr": (100, 30), "none": (10, 0)},
        {"de": (301, 0), "fr": (300, 0)},
    ]
    assert windows[1].canary.bad == {"slow": 30}


def test_a_label_that_no_series_has_is_refused_in_one_line_that_names_those_there_are(serve: Serve) -> None:
    prometheus = serve(two_sides())
    (found,) = slices_presence(prometheus, PROFILES["istio"], JUDGE, NAMESPACE, STABLE, now=at(74))
    assert found.ok
    assert found.sentence.endswith("has 2 slices by country")
    wrong = JudgeSpec.model_validate(
        {"profile": "istio", "metrics": [{"name": "errors", "max_rate": 0.02, "slices": {"by": "region"}}]}
    )
    (found,) = slices_presence(prometheus, PROFILES["istio"], wrong, NAMESPACE, STABLE, now=at(74))
    assert not found.ok
    assert found.sentence.startswith("judge.metrics.errors.slices: no series of istio_requests_total{")
    assert found.sentence.endswith(
        "has the label region; they have country, destination_workload, destination_workload_namespace, instance, job, "
        "reporter, response_code"
    )
    assert list(slices_presence(prometheus, PROFILES["istio"], wrong, NAMESPACE, "nobody", now=at(74))) == []


def unsure(history: History, revision: str, paces: Mapping[tuple[str, str, str], float]) -> None:
    """The handler's counts by (slice, value, band), and the whole's."""
    target = {"job": "ts", "instance": f"{revision}:8082", "k8s_namespace_name": NAMESPACE}
    target["kn_revision_name"] = revision
    history.add("up", target, dict.fromkeys(EVERY, 1))
    for (name, value, band), pace in paces.items():
        samples = {s: round(pace * (s + 29.6)) for s in EVERY}
        told = {"slice": name, "value": value, "below": band}
        history.add("image_classifier_slices_total", target | told, samples)
    for band in ("0.40", "0.95"):
        pace = sum(one for (name, _, its), one in paces.items() if its == band and name == "country")
        history.add(
            "image_classifier_confidence_total", target | {"below": band}, {s: pace * (s + 29.6) for s in EVERY}
        )


SURENESS = JudgeSpec.model_validate(
    {
        "profile": "istio",
        "metrics": [
            {"name": "errors", "max_rate": 0.5},
            {"name": "unsure", "below": 0.5, "max_rate": 0.2, "slices": BY},
        ],
    }
)


def test_the_handlers_answers_are_counted_by_slice(serve: Serve) -> None:
    history = two_sides()
    camera = {("camera", "old", "0.40"): 20.0}
    unsure(history, CANARY, {("country", "fr", "0.40"): 6, ("country", "fr", "0.95"): 2, **camera})
    unsure(history, STABLE, {("country", "fr", "0.40"): 1, ("country", "de", "0.95"): 20, **camera})
    prometheus = serve(history)
    windows = read(prometheus, judge=SURENESS)
    assert slices(windows[1], "unsure") == [{"fr": (80, 60)}, {"de": (200, 0), "fr": (10, 10)}]
    assert [window.error for window in windows] == [None] * 6
    more = {"window": TEN, "now": at(74)}
    found = answers_presence(prometheus, PROFILES["istio"], SURENESS, NAMESPACE, STABLE, **more)
    assert [one.ok for one in found] == [True, True]


def test_a_slice_that_the_handler_was_not_told_of_is_refused(serve: Serve) -> None:
    history = two_sides()
    unsure(history, STABLE, {("camera", "old", "0.40"): 20.0})
    prometheus = serve(history)
    found = answers_presence(prometheus, PROFILES["istio"], SURENESS, NAMESPACE, STABLE, window=TEN, now=at(74))
    assert [one.ok for one in found] == [True, False]
    assert found[1].sentence.startswith("image_classifier_slices_total{")
    assert found[1].sentence.endswith("was it released with service.slices: [country]?")
    quiet = read(prometheus, judge=SURENESS)[1]
    assert quiet.canary.slices == {"unsure": None}


RETURNS = Metric(
    name="returns",
    bad="sum by (country) (increase(returned_total{revision='$revision'}[$window]))",
    total="sum by (country) (increase(orders_total{revision='$revision'}[$window]))",
    max_rate=0.1,
    slices={"by": "country"},
)


def test_a_share_of_ones_own_is_one_query_by_slice(serve: Serve) -> None:
    history = History()
    moments = [second / 2 for second in range(-40, 60)]
    for revision, paces in ((CANARY, {"fr": 8, "de": 4}), (STABLE, {"fr": 20, "de": 20})):
        for country, pace in paces.items():
            labels = {"revision": revision, "country": country}
            history.add("orders_total", labels, {moment: pace * (moment + 20) for moment in moments})
        returned = {moment: 2 * (moment + 20) for moment in moments}
        history.add("returned_total", {"revision": revision, "country": "fr"}, returned)
    prometheus = serve(history)
    reader = ValueReader(
        prometheus, [], namespace=NAMESPACE, service="digits", canary=CANARY, stable=STABLE, shares=[RETURNS]
    )
    start, end = (moment.isoformat() for moment in (at(0), at(10)))
    measured = reader.measured(Window(Side(10, {}), Side(90, {}), start, end))
    assert measured.error is None
    assert slices(measured, "returns") == [{"de": (40, 0), "fr": (80, 20)}, {"de": (200, 0), "fr": (200, 20)}]
    assert (measured.canary.bad, measured.canary.totals) == ({"returns": 20}, {"returns": 120})
    names = {"namespace": NAMESPACE, "service": "digits", "revision": STABLE}
    (said,) = check_shares(prometheus, [RETURNS], TEN, at(20), **names)
    assert said == "judge.metrics.returns: 20 of 400 in the last 10s, in 2 slices by country"
    plain = RETURNS.model_copy(
        update={name: str(getattr(RETURNS, name)).replace("by (country) ", "by (region) ") for name in ("bad", "total")}
    )
    with pytest.raises(MetricsRefused, match=r"judge.metrics.returns: no series has the label country; query: sum by"):
        list(check_shares(prometheus, [plain], TEN, at(20), **names))


def test_a_label_with_a_hundred_thousand_values_keeps_fifty() -> None:
    counts = SliceCounts("country")
    for number in range(100_000):
        counts.add("r1", {"country": f"c{number}"}, 1 + (number == 99_999), number % 2)
    counts.learn()
    told = counts.told("r1")
    assert len(told) == 51
    assert told["c99999"] == (2, 1)
    assert told["other"] == (100_001 - 51, 50_000 - sum(bad for name, (_, bad) in told.items() if name != "other"))
    counts.add("r1", {"country": "c99999"}, 3)
    counts.add("r1", {"country": "late"}, 500)
    counts.learn()
    assert counts.told("r1") == {"c99999": (3, 0), "other": (500, 0)}


def test_bad_ones_that_come_before_their_requests_wait_for_them() -> None:
    counts = SliceCounts("country")
    counts.add("r1", {"country": "fr"}, 3, 5)
    counts.learn()
    assert counts.told("r1") == {"fr": (3, 3)}
    counts.add("r1", {"country": "de"}, 1)
    counts.learn()
    assert counts.told("r1") == {"de": (1, 0)}, "what only waits had no requests: it is left out, and waits on"
    counts.add("r1", {"country": "fr"}, 4)
    counts.learn()
    assert counts.told("r1") == {"fr": (4, 2)}
