"""The labels that both sides gave, window by window, from exact histories in a real Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from model_release.judging import Policy, Window
from model_release.judging import judge as judged
from model_release.metrics import PROFILES, Prometheus, WindowReader, answers_presence, read_before, read_windows
from model_release.spec import JudgeSpec

from .conftest import CANARY, NAMESPACE, OPENING, STABLE, History, at

Serve = Callable[[History], Prometheus]
TEN = timedelta(seconds=10)
EVERY = [second + 0.4 for second in range(-30, 75)]
JUDGE = JudgeSpec.model_validate(
    {
        "profile": "istio",
        "metrics": [{"name": "errors", "max_rate": 0.02}, {"name": "predictions", "max_shift": 0.1}],
    }
)


def pod(revision: str, instance: str = "10.0.0.2:8082") -> dict[str, str]:
    return {"job": "torchserve", "instance": instance, "k8s_namespace_name": NAMESPACE, "kn_revision_name": revision}


def by_name(revision: str, instance: str = "10.0.0.2:8082") -> dict[str, str]:
    """As the Prometheus Operator names what it scrapes."""
    name = f"{revision}-deployment-{instance}"
    return {"job": "torchserve", "instance": instance, "namespace": NAMESPACE, "pod": name}


def gateway(history: History, moments: Sequence[float] = EVERY) -> None:
    """Ten requests a second on either side."""
    target = {"job": "gw", "instance": "gw:15020"}
    history.add("up", target, dict.fromkeys(moments, 1))
    for revision in (CANARY, STABLE):
        labels = {
            "reporter": "source",
            "destination_workload": f"{revision}-deployment",
            "destination_workload_namespace": NAMESPACE,
            "response_code": "200",
        }
        history.add("istio_requests_total", target | labels, {s: 10 * (s + 30) for s in range(-30, 75)})


def given(history: History, target: Mapping[str, str], label: str, samples: Mapping[float, float]) -> None:
    more = {"label": label, "ModelName": "digits", "Level": "Model"}
    history.add("image_classifier_predictions_total", {**target, **more}, samples)


def up(history: History, target: Mapping[str, str], moments: Sequence[float] = EVERY) -> None:
    history.add("up", target, dict.fromkeys(moments, 1))


def read(prometheus: Prometheus, seconds: float = 60, judge: JudgeSpec = JUDGE, **more: Any) -> list[Window]:
    options: dict[str, Any] = {"stable": STABLE, "window": TEN, "now": at(seconds + 10)} | more
    return read_windows(
        prometheus, judge, namespace=NAMESPACE, canary=CANARY, start=OPENING, end=at(seconds), **options
    )


def labels(windows: Sequence[Window], side: str) -> list[Mapping[str, int] | None]:
    return [getattr(window, side).labels["predictions"] for window in windows]


@pytest.mark.parametrize("target", [pod, by_name], ids=["by-label", "by-pod"])
def test_labels_are_counted_by_revision_and_window(target: Callable[..., dict[str, str]], serve: Serve) -> None:
    history = History()
    gateway(history)
    for revision, instance in ((CANARY, "10.0.0.1:8082"), (STABLE, "10.0.0.2:8082"), (STABLE, "10.0.0.3:8082")):
        up(history, target(revision, instance))
    given(history, target(CANARY, "10.0.0.1:8082"), "cat", {s: round(max(0, s - 0.4)) for s in EVERY if s > 0})
    given(history, target(CANARY, "10.0.0.1:8082"), "dog", {s: 3 for s in EVERY if s > 22})
    for instance in ("10.0.0.2:8082", "10.0.0.3:8082"):
        given(history, target(STABLE, instance), "cat", {s: round(1000 + 2 * (s - 0.4)) for s in EVERY})
    windows = read(serve(history))
    # A sample at 10.4 s tells of the second that ended then, and belongs to the window that it lies in.
    assert labels(windows, "canary") == [{"cat": 9}, {"cat": 10}, {"cat": 10, "dog": 3}] + [{"cat": 10}] * 3
    assert labels(windows, "stable") == [{"cat": 40}] * 6
    assert [window.error for window in windows] == [None] * 6
    assert [window.canary.requests for window in windows] == [100] * 6


def test_a_reader_made_anew_and_one_that_looks_often_read_the_same(serve: Serve) -> None:
    history = History()
    gateway(history)
    for revision, instance, pace in ((CANARY, "10.0.0.1:8082", 1), (STABLE, "10.0.0.2:8082", 7)):
        up(history, pod(revision, instance))
        given(history, pod(revision, instance), "cat", {s: round(pace * (s + 30 - 0.4)) for s in EVERY})
    prometheus = serve(history)
    reader = WindowReader(
        prometheus, JUDGE, namespace=NAMESPACE, canary=CANARY, stable=STABLE, start=OPENING, window=TEN
    )
    looks = [reader.read(at(s), now=at(s)) for s in range(3, 66, 3)]
    assert [window for look in looks for window in look] == read(prometheus)


def test_a_pod_that_restarts_loses_nothing(serve: Serve) -> None:
    history = History()
    gateway(history)
    up(history, pod(CANARY, "a:8082"))
    up(history, pod(STABLE))
    given(history, pod(STABLE), "cat", {s: round(s + 30 - 0.4) for s in EVERY})
    given(history, pod(CANARY, "a:8082"), "cat", {s: round(s + 30 - 0.4 if s < 25 else s - 25.4) for s in EVERY})
    assert labels(read(serve(history)), "canary")[2:4] == [{"cat": 9}, {"cat": 10}]


def test_what_is_not_counted_is_no_data(serve: Serve) -> None:
    """The handler's page is away for a while: what it answered meanwhile counts in the window that sees it again."""
    history = History()
    gateway(history)
    there = [s for s in EVERY if not 10 < s < 40]
    up(history, pod(CANARY, "a:8082"), there)
    up(history, pod(STABLE))
    given(history, pod(CANARY, "a:8082"), "cat", {s: round(s + 30 - 0.4) for s in there})
    given(history, pod(STABLE), "cat", {s: round(s + 30 - 0.4) for s in EVERY})
    windows = read(serve(history))
    assert labels(windows, "canary") == [{"cat": 10}, None, None, None, {"cat": 40}, {"cat": 10}]
    assert windows[1].error == (
        f"{CANARY}: image_classifier_predictions_total was not scraped; query: image_classifier_predictions_total"
        f'{{k8s_namespace_name="{NAMESPACE}",kn_revision_name=~"{CANARY}"}}'
    )
    assert windows[1].canary.requests == 100


def test_a_handler_that_counts_nothing_is_no_data_where_there_were_requests(serve: Serve) -> None:
    history = History()
    gateway(history)
    up(history, pod(CANARY, "a:8082"))
    up(history, pod(STABLE))
    given(history, pod(STABLE), "cat", {s: round(s + 30 - 0.4) for s in EVERY})
    windows = read(serve(history))
    assert labels(windows, "canary") == [None] * 6
    assert "counts nothing, and there were requests" in (windows[0].error or "")


def test_a_pod_that_nobody_asks_has_given_no_labels(serve: Serve) -> None:
    history = History()
    target = {"job": "gw", "instance": "gw:15020"}
    history.add("up", target, dict.fromkeys(EVERY, 1))
    up(history, pod(CANARY, "a:8082"))
    up(history, pod(STABLE))
    windows = read(serve(history))
    assert (labels(windows, "canary"), labels(windows, "stable")) == ([{}] * 6, [{}] * 6)


def test_values_that_are_no_counts_are_no_data(serve: Serve) -> None:
    history = History()
    gateway(history)
    for revision in (CANARY, STABLE):
        up(history, pod(revision, f"{revision}:8082"))
        given(history, pod(revision, f"{revision}:8082"), "cat", {s: round(s + 30 - 0.4) for s in EVERY})
    given(history, pod(CANARY, f"{CANARY}:8082"), "dog", {s: float("nan") for s in EVERY})
    windows = read(serve(history))
    assert labels(windows, "canary") == [None] * 6
    assert "held a value that is no count" in (windows[0].error or "")
    assert labels(windows, "stable") == [{"cat": 10}] * 6


def test_labels_are_not_asked_for_where_nothing_judges_them(serve: Serve) -> None:
    history = History()
    gateway(history)
    errors = JudgeSpec.model_validate({"profile": "istio", "metrics": [{"name": "errors", "max_rate": 0.02}]})
    windows = read(serve(history), judge=errors)
    assert "labels" not in windows[0].canary.to_dict()


def test_the_past_holds_the_labels_of_all_windows_together(serve: Serve) -> None:
    history = History()
    gateway(history)
    up(history, pod(STABLE))
    given(history, pod(STABLE), "cat", {s: round(s + 30 - 0.4) for s in EVERY})
    given(history, pod(STABLE), "dog", {s: round(2 * (s + 30 - 0.4)) for s in EVERY})
    found = read_before(
        serve(history), JUDGE, namespace=NAMESPACE, revision=STABLE, since=at(0), before=at(60), window=TEN
    )
    assert found.trouble == ""
    assert found.past.labels == {"predictions": {"cat": 50, "dog": 100}}
    assert [side.labels for side in found.past.windows] == [{}] * 5


@pytest.mark.parametrize(
    ("scraped", "asked", "ok", "passing", "said"),
    [
        (EVERY, True, True, False, "has 1 series"),
        ([], True, False, False, "has had requests: is the handler's page scraped (port 8082"),
        ([], False, True, False, "has answered nothing lately"),
        (EVERY[::20], True, False, False, "is scraped every 20 s, and a window of 10s is shorter"),
    ],
    ids=["there", "not scraped", "not asked", "too seldom"],
)
def test_whether_labels_can_be_judged_is_known_before_any_traffic_moves(
    scraped: Sequence[float], asked: bool, ok: bool, passing: bool, said: str, serve: Serve
) -> None:
    history = History()
    if asked:
        gateway(history)
    if scraped:
        given(history, pod(STABLE), "cat", {s: round(s + 30 - 0.4) for s in scraped})
    (found,) = answers_presence(serve(history), PROFILES["istio"], JUDGE, NAMESPACE, STABLE, window=TEN, now=at(74))
    assert (found.ok, found.passing) == (ok, passing)
    assert said in found.sentence
    assert found.sentence.startswith("image_classifier_predictions_total{")
    nothing = JudgeSpec.model_validate({"metrics": [{"name": "errors", "max_rate": 0.02}]})
    assert answers_presence(serve(History()), PROFILES["istio"], nothing, NAMESPACE, STABLE, window=TEN) == []


@pytest.mark.parametrize(("of", "counter"), [("probability", "confidence"), ("entropy", "certainty")])
def test_how_sure_the_model_is_becomes_a_share_of_its_answers(of: str, counter: str, serve: Serve) -> None:
    history = History()
    gateway(history)
    for revision in (CANARY, STABLE):
        up(history, pod(revision, f"{revision}:8082"))
        for band, pace in (("0.05", 1), ("0.50", 2 * (revision == CANARY)), ("0.55", 4), ("1.00", 3)):
            labels = pod(revision, f"{revision}:8082") | {"below": band}
            history.add(f"image_classifier_{counter}_total", labels, {s: round(pace * (s + 30 - 0.4)) for s in EVERY})
    unsure = {"name": "unsure", "of": of, "below": 0.5, "max_rate": 0.2, "max_ratio": 1.3, "floor": 0.05}
    judge = JudgeSpec.model_validate({"profile": "istio", "metrics": [{"name": "errors", "max_rate": 0.02}, unsure]})
    windows = read(serve(history), judge=judge)
    assert [(side.bad, side.totals) for side in (windows[2].canary, windows[2].stable) if side] == [
        ({"errors": 0, "unsure": 30}, {"unsure": 100}),
        ({"errors": 0, "unsure": 10}, {"unsure": 80}),
    ]
    verdict = judged(Policy.from_dict({"metrics": [one.limits() for one in judge.metrics]}), windows * 5)
    assert verdict.decision == "rollback"
    by = " by their entropy" if of == "entropy" else ""
    assert f"canary answers were less than 50 % sure{by} (30 %" in verdict.reason
    silent = read(serve(History()), judge=judge)[0].canary
    assert (silent.bad, silent.totals) == ({"errors": None, "unsure": None}, {"unsure": None})


def test_both_ways_to_be_sure_are_counted_apart(serve: Serve) -> None:
    history = History()
    gateway(history)
    for revision in (CANARY, STABLE):
        up(history, pod(revision, f"{revision}:8082"))
        for counter, band, pace in (("confidence", "0.50", 1), ("confidence", "1.00", 9), ("certainty", "0.05", 4)):
            labels = pod(revision, f"{revision}:8082") | {"below": band}
            history.add(f"image_classifier_{counter}_total", labels, {s: round(pace * (s + 30 - 0.4)) for s in EVERY})
    metrics = [
        {"name": "errors", "max_rate": 0.02},
        {"name": "unsure", "below": 0.5, "max_rate": 0.2},
        {"name": "torn", "below": 0.3, "of": "entropy", "max_rate": 0.2},
    ]
    side = read(serve(history), judge=JudgeSpec.model_validate({"profile": "istio", "metrics": metrics}))[2].canary
    assert (side.bad, side.totals) == ({"errors": 0, "unsure": 10, "torn": 40}, {"unsure": 100, "torn": 40})
