"""Windows where something is missing: no series, no scrape, no count, a Prometheus that is new or gives no answer."""

from __future__ import annotations

import math

import pytest

from model_release.errors import MetricsRefused, MetricsUnavailable
from model_release.metrics import Series, WindowReader

from .conftest import CANARY, NAMESPACE, OPENING, STABLE, History, at
from .histories import TEN, JudgeOf, Serve, counts, durations, gateway, read, up


def test_nothing_at_all_is_no_data(serve: Serve, judge_of: JudgeOf) -> None:
    windows = read(serve(History()), judge_of("istio"), 20)
    assert counts(windows, "canary") == counts(windows, "stable") == [(None, None, None)] * 2


def test_a_gap_is_no_data_and_its_counts_come_with_the_next_window(serve: Serve, judge_of: JudgeOf) -> None:
    history = History()
    seconds = [s for s in range(-5, 45) if not 11 < s < 29]
    up(history, seconds)
    for revision, step in ((CANARY, 1), (STABLE, 9)):
        gateway(history, revision, 200, {s: 1000 + step * s for s in seconds})
        gateway(history, revision, 503, {s: 50 + (s >= 29) for s in seconds})
        for le in ("500", "+Inf"):
            durations(history, revision, le, {s: 1000 + step * s for s in seconds})
    windows = read(serve(history), judge_of("istio"), 40)
    assert counts(windows, "canary") == [(10, 0, 0), (None, None, None), (None, None, None), (31, 1, 0)]
    assert counts(windows, "stable") == [(90, 0, 0), (None, None, None), (None, None, None), (271, 1, 0)]
    assert "nothing was scraped for 9 s" in (windows[1].error or "")


def test_prometheus_started_anew_does_not_count_history(serve: Serve, judge_of: JudgeOf) -> None:
    """Its store is lost at the opening: the first sample of every old counter is no increase, a new pod's is."""
    history = History()
    for revision, offset, begin in ((STABLE, 0.1, 1), (CANARY, 0.8, 1), (CANARY, 0.5, 14)):
        moments = [second + offset for second in range(begin, 35)]
        target = {"job": "pods", "instance": f"{revision}-{begin}", "namespace": NAMESPACE}
        target |= {"pod": f"{revision}-deployment-{begin}"}
        up(history, moments, labels=target)
        labels = target | {"namespace_name": NAMESPACE, "revision_name": revision, "response_code": "200"}
        old = 5_000_000 if begin == 1 else 2
        values = {moment: old + round(moment - moments[0]) for moment in moments}
        history.add("revision_request_count", labels, values)
        for le in ("500", "+Inf"):
            history.add("revision_request_latencies_bucket", labels | {"le": le}, values)
    windows = read(serve(history), judge_of("knative"), 30)
    assert counts(windows, "stable") == [(8, 0, 0), (10, 0, 0), (10, 0, 0)]
    assert counts(windows, "canary") == [(8, 0, 0), (10 + 2 + 5, 0, 0), (20, 0, 0)]


def test_a_gap_over_the_opening_does_not_count_what_was_before(serve: Serve, judge_of: JudgeOf) -> None:
    history = History()
    up(history, [-60, 2, 5, 8, 11])
    gateway(history, STABLE, 200, {-60: 100, 2: 5100, 5: 5103, 8: 5106, 11: 5109})
    windows = read(serve(history), judge_of("istio"), 10, now=at(12))
    assert windows[0].stable is not None
    assert windows[0].stable.requests == 6


def test_a_histogram_that_is_not_there_is_no_data(serve: Serve, judge_of: JudgeOf) -> None:
    history = History()
    seconds = [float(s) for s in range(-5, 25)]
    up(history, seconds)
    gateway(history, CANARY, 200, {s: 100 + s for s in seconds})
    durations(history, CANARY, "+Inf", {s: 100 + s for s in seconds})
    windows = read(serve(history), judge_of("istio"), 20)
    assert counts(windows, "canary") == [(10, 0, None)] * 2
    assert "no bucket at 500 ms" in (windows[0].error or "")


@pytest.mark.parametrize("strange", [math.nan, math.inf, -1.0, 104.5])
def test_a_value_that_is_no_count_is_no_data(strange: float, serve: Serve, judge_of: JudgeOf) -> None:
    history = History()
    seconds = [float(s) for s in range(-5, 35)]
    up(history, seconds)
    gateway(history, CANARY, 200, {s: strange if s == 15 else 100 + s for s in seconds})
    for le in ("500", "+Inf"):
        durations(history, CANARY, le, {s: 100 + s for s in seconds})
    windows = read(serve(history), judge_of("istio"), 30)
    assert counts(windows, "canary") == [(10, 0, 0), (None, None, None), (20, 0, 0)]
    assert "no count" in (windows[1].error or "")


def test_a_look_that_fails_changes_nothing(serve: Serve, judge_of: JudgeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History()
    seconds = [float(s) for s in range(-5, 25)]
    up(history, seconds)
    gateway(history, CANARY, 200, {s: 100 + s for s in seconds})
    prometheus, judge = serve(history), judge_of("istio")
    reader = WindowReader(prometheus, judge, namespace=NAMESPACE, canary=CANARY, stable=None, start=OPENING, window=TEN)
    before = reader.position
    with monkeypatch.context() as patch:
        patch.setattr(prometheus, "base_url", "http://127.0.0.1:9")
        with pytest.raises(MetricsUnavailable, match="Connection refused"):
            reader.read(at(20), now=at(40))
    assert reader.position == before
    assert [window.canary.requests for window in reader.read(at(20), now=at(40))] == [10, 10]
    assert reader.position == at(20)


@pytest.mark.parametrize("trouble", [MetricsUnavailable, MetricsRefused])
def test_a_failure_half_way_loses_no_window(
    trouble: type[Exception], serve: Serve, judge_of: JudgeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History()
    seconds = [float(s) for s in range(-5, 695)]
    up(history, seconds)
    gateway(history, CANARY, 200, {s: 100 + s for s in seconds})
    prometheus, judge = serve(history), judge_of("istio")
    reader = WindowReader(prometheus, judge, namespace=NAMESPACE, canary=CANARY, stable=None, start=OPENING, window=TEN)
    real = prometheus.raw

    def failing(query: str, after: int, until: int) -> list[Series]:
        if until > at(400).timestamp() * 1000:
            raise trouble("no more")
        return real(query, after, until)

    with monkeypatch.context() as patch:
        patch.setattr(prometheus, "raw", failing)
        first = reader.read(at(600), now=at(700))
        with pytest.raises(trouble):
            reader.read(at(600), now=at(700))
    rest = reader.read(at(600), now=at(700))
    assert (len(first), len(rest)) == (30, 30)
    assert first + rest == read(prometheus, judge, 600, stable=None, now=at(700))
