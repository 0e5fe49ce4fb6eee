"""Value metrics: one number for each revision at the end of each window, or a reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from model_release.errors import MetricsRefused
from model_release.judging import Policy, Side, Window, judge
from model_release.metrics import Prometheus, ValueReader
from model_release.metrics.values import check_shares, filled
from model_release.spec import Metric, Value

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


# Shares of one's own


RETURNS = Metric(
    name="returns",
    bad='sum(increase(orders_returned_total{revision="$revision"}[$window])) or vector(0)',
    total='sum(increase(orders_total{revision="$revision"}[$window]))',
    max_ratio=1.5,
    floor=0.02,
)


def orders(history: History, revision: str, pace: float, returned: float | None) -> None:
    moments = [second / 2 for second in range(-40, 60)]
    paces = {"orders_total": pace} | ({} if returned is None else {"orders_returned_total": returned})
    for name, each in paces.items():
        history.add(name, {"revision": revision}, {moment: each * (moment + 20) for moment in moments})


def shares(prometheus: Prometheus, metric: Metric = RETURNS) -> ValueReader:
    return ValueReader(
        prometheus, [], namespace=NAMESPACE, service="digits", canary=CANARY, stable=STABLE, shares=[metric]
    )


def test_a_share_of_ones_own_is_counted_by_its_two_queries(serve: Callable[[History], Prometheus]) -> None:
    history = History()
    orders(history, CANARY, 4, None)
    orders(history, STABLE, 40, 8)
    measured = shares(serve(history)).measured(WINDOW)
    assert measured.error is None
    assert (measured.canary.bad, measured.canary.totals) == ({"returns": 0}, {"returns": 40})
    assert measured.stable is not None
    assert (measured.stable.bad, measured.stable.totals) == ({"returns": 80}, {"returns": 400})
    assert measured.canary.requests == 10, "requests stay what they are"


def test_a_share_of_ones_own_decides_like_any_other(serve: Callable[[History], Prometheus]) -> None:
    """Half of the orders come back, a tenth of stable's."""
    history = History()
    orders(history, CANARY, 20, 10)
    orders(history, STABLE, 40, 4)
    measured = shares(serve(history)).measured(WINDOW)
    policy = Policy.from_dict({"metrics": [{"name": "errors", "max_rate": 0.1}, RETURNS.limits()]})
    windows = [replace(measured, canary=_working(measured.canary), stable=_working(measured.stable))] * 20
    verdict = judge(policy, windows)
    assert verdict.decision == "rollback"
    assert "canary events counted as returns (50 %" in verdict.reason
    assert "on stable (10 %)" in verdict.reason


def _working(side: Side | None) -> Side:
    assert side is not None
    return replace(side, bad={**side.bad, "errors": 0})


@pytest.mark.parametrize(
    ("bad", "total", "said"),
    [
        ("sum(increase(nothing{revision='$revision'}[$window]))", None, "gives no series"),
        ("increase(several{revision='$revision'}[$window])", None, "gives 2 series"),
        (None, "sum(increase(orders_total{revision='$revision'}[$window])) * NaN", "gives nan, which is no count"),
        (None, "-sum(increase(orders_total{revision='$revision'}[$window]))", "which is no count"),
        (None, "sum(increase(orders_total{revision='$revision'}[$window])) / 1000", "which cannot be"),
        (None, "sum(increase(orders_total{revision='$revision'}[$window])", "refuses the query (400)"),
    ],
    ids=["nothing", "several", "NaN", "negative", "more bad than all", "no PromQL"],
)
def test_what_is_no_share_is_no_data_and_refused_before_any_traffic_moves(
    bad: str | None, total: str | None, said: str, serve: Callable[[History], Prometheus]
) -> None:
    history = History()
    for revision in (CANARY, STABLE):
        orders(history, revision, 40, 8)
        for place in "ab":
            history.add("several", {"revision": revision, "pod": place}, {s: s + 20 for s in range(-20, 30)})
    metric = RETURNS.model_copy(update={k: v for k, v in (("bad", bad), ("total", total)) if v is not None})
    prometheus = serve(history)
    measured = shares(prometheus, metric).measured(WINDOW)
    assert said in (measured.error or "")
    assert (measured.canary.bad, measured.canary.totals) == ({"returns": None}, {"returns": None})
    policy = Policy.from_dict({"metrics": [metric.limits()]})
    assert judge(policy, [measured] * 6).decision == "inconclusive"
    names = {"namespace": NAMESPACE, "service": "digits", "revision": STABLE}
    with pytest.raises(MetricsRefused) as refused:
        list(check_shares(prometheus, [metric], timedelta(seconds=10), at(10), **names))
    assert str(refused.value).startswith("judge.metrics.returns: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_known_late_may_have_no_series_until_it_is_due(serve: Callable[[History], Prometheus]) -> None:
    """Before, there is nothing to be known of: 0 of 0. From then on nothing is no data; and what comes early counts."""
    late = RETURNS.model_copy(update={"delay": timedelta(seconds=15)})
    windows = [Window(Side(10, {}), None, at(s).isoformat(), at(s + 10).isoformat()) for s in (0, 10)]

    def read(prometheus: Prometheus) -> list[Window]:
        names = {"namespace": NAMESPACE, "service": "digits"}
        one = ValueReader(prometheus, [], **names, canary=CANARY, stable=None, shares=[late], since=at(0))
        return [one.measured(window) for window in windows]

    before, due = read(serve(History()))
    assert (before.canary.bad, before.canary.totals, before.error) == ({"returns": 0}, {"returns": 0}, None)
    assert (due.canary.bad, due.canary.totals) == ({"returns": None}, {"returns": None})
    assert "gives no series" in (due.error or "")
    history = History()
    orders(history, CANARY, 20, 10)
    early = read(serve(history))[0]
    assert (early.canary.bad, early.canary.totals) == ({"returns": 100}, {"returns": 200})
    policy = Policy.from_dict({"metrics": [{"name": "returns", "max_rate": 0.1}], "guard": True})
    assert judge(policy, [early] * 20).decision == "rollback", "evidence against waits for no delay"
    assert judge(policy, [before] * 20).decision == "continue"


def test_what_is_known_late_is_asked_of_stable_over_the_whole_delay(serve: Callable[[History], Prometheus]) -> None:
    history = History()
    orders(history, STABLE, 40, 8)
    late = RETURNS.model_copy(update={"delay": timedelta(seconds=20)})
    names = {"namespace": NAMESPACE, "service": "digits", "revision": STABLE}
    told = list(check_shares(serve(history), [late], timedelta(seconds=10), at(10), **names))
    assert told == ["judge.metrics.returns: 160 of 800 in the last 20s"]
    with pytest.raises(MetricsRefused, match=r"where nothing may be known of stable yet, `or vector\(0\)` in the"):
        list(check_shares(serve(History()), [late], timedelta(seconds=10), at(10), **names))


def test_a_share_that_can_be_counted_is_told_before_any_traffic_moves(serve: Callable[[History], Prometheus]) -> None:
    history = History()
    orders(history, STABLE, 40, 8)
    names = {"namespace": NAMESPACE, "service": "digits", "revision": STABLE}
    told = list(check_shares(serve(history), [RETURNS], timedelta(seconds=10), at(10), **names))
    assert told == ["judge.metrics.returns: 80 of 400 in the last 10s"]


def test_a_gauge_is_no_counter(serve: Callable[[History], Prometheus], monkeypatch: pytest.MonkeyPatch) -> None:
    history = History()
    orders(history, STABLE, 40, 8)
    prometheus = serve(history)
    monkeypatch.setattr(Prometheus, "kind", lambda _, name: "gauge" if name == "orders_total" else "counter")
    names = {"namespace": NAMESPACE, "service": "digits", "revision": STABLE}
    with pytest.raises(MetricsRefused, match="orders_total is a gauge, and only counters can be counted; query: sum"):
        list(check_shares(prometheus, [RETURNS], timedelta(seconds=10), at(10), **names))
