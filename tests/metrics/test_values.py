"""Value metrics: one number for each revision at the end of each window, or a reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from model_release.judging import Policy, Side, Window, judge
from model_release.metrics import Prometheus, ValueReader
from model_release.metrics.values import filled
from model_release.spec import Value

from .conftest import CANARY, NAMESPACE, STABLE, History, at

QUERY = 'queue_depth{revision="$revision",namespace="$namespace",service="$service"}'
WINDOW = Window(Side(10, {}), Side(90, {}), at(0).isoformat(), at(10).isoformat())


def depth(history: History, revision: str, values: dict[float, float], **labels: str) -> None:
    given = {"revision": revision, "namespace": NAMESPACE, "service": "digits", **labels}
    history.add("queue_depth", given, values)


def reader(prometheus: Prometheus, stable: str | None = STABLE, query: str = QUERY) -> ValueReader:
    value = Value(name="depth", query=query, max=5)
    return ValueReader(prometheus, [value], namespace=NAMESPACE, service="digits", canary=CANARY, stable=stable)


def test_a_value_is_that_of_its_revision_at_the_end_of_the_window(serve: Callable[[History], Prometheus]) -> None:
    history = History()
    depth(history, CANARY, {5: 1, 9: 2, 14: 99})
    depth(history, STABLE, {5: 3, 9: 4, 14: 99})
    measured = reader(serve(history)).measured(WINDOW)
    assert measured.values == {"depth": {"canary": 2.0, "stable": 4.0}}
    assert measured.error is None
    assert (measured.canary, measured.stable) == (WINDOW.canary, WINDOW.stable)


def test_after_the_promotion_nothing_stands_beside_the_canary(serve: Callable[[History], Prometheus]) -> None:
    history = History()
    depth(history, CANARY, {9: 2})
    measured = reader(serve(history), stable=None).measured(WINDOW)
    assert measured.values == {"depth": {"canary": 2.0, "stable": None}}
    assert measured.error is None


def test_empty_and_several_series_are_no_value_and_never_success(serve: Callable[[History], Prometheus]) -> None:
    history = History()
    depth(history, STABLE, {9: 1}, pod="a")
    depth(history, STABLE, {9: 1}, pod="b")
    measured = reader(serve(history)).measured(WINDOW)
    assert measured.values == {"depth": {"canary": None, "stable": None}}
    assert measured.error is not None
    assert f'revision="{CANARY}"' in measured.error
    assert "gives no series" in measured.error
    assert "gives 2 series" in measured.error
    values = [{"name": "depth", "max": 5, "consecutive_errors_allowed": 1}]
    policy = Policy.from_dict({"metrics": [{"name": "errors", "max_rate": 0.5}], "values": values})
    assert judge(policy, [measured] * 2).decision == "inconclusive"


def test_nan_is_kept_and_is_no_success(serve: Callable[[History], Prometheus]) -> None:
    history = History()
    depth(history, CANARY, {9: 0})
    depth(history, STABLE, {9: 0})
    measured = reader(serve(history), query=f"{QUERY} / 0").measured(WINDOW)
    assert math.isnan(measured.values["depth"]["canary"] or 0)
    policy = Policy.from_dict(
        {"metrics": [{"name": "errors", "max_rate": 0.5}], "values": [{"name": "depth", "max": 5}]}
    )
    assert judge(policy, [measured]).decision == "inconclusive"


def test_a_query_that_prometheus_refuses_is_told_with_its_words(serve: Callable[[History], Prometheus]) -> None:
    measured = reader(serve(History()), query="sum(").measured(WINDOW)
    assert measured.values["depth"] == {"canary": None, "stable": None}
    assert "depth: " in (measured.error or "")
    assert "sum(" in (measured.error or "")


@pytest.mark.parametrize("text", ['"} or vector(0) #', "back\\slash", "new\nline", "$service"])
def test_what_is_filled_in_never_leaves_its_quotes(text: str, serve: Callable[[History], Prometheus]) -> None:
    history = History()
    history.add("depth", {"other": "x"}, {9: 7})
    query = filled('depth{other="$revision"} or absent(depth{other="$revision"})', revision=text)
    (series,) = serve(history).query(query, at(10)).series
    assert series.labels == {"other": text}, "Prometheus read the text as one label value"
