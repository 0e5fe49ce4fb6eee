"""Windows against the truth, from exact histories in a real Prometheus."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from model_release.judging import Policy
from model_release.judging import judge as judged
from model_release.metrics import PROFILES, WindowReader, read_windows
from model_release.spec import JudgeSpec, Profile

from .conftest import CANARY, NAMESPACE, OPENING, STABLE, History, at
from .histories import GATEWAY, TEN, JudgeOf, Serve, counts, durations, gateway, istio, read, traffic, truth, up
from .stacks import GATEWAYS, Page, Request


@pytest.mark.parametrize("le_as_float", [False, True], ids=["le-as-exposed", "le-of-prometheus-3"])
@pytest.mark.parametrize("name", list(PROFILES))
def test_counts_are_the_truth_on_every_stack(name: Profile, le_as_float: bool, serve: Serve, judge_of: JudgeOf) -> None:
    scrapes = [second + 0.3 for second in range(-30, 75)]
    stable, canary = traffic(1, 20, -30, 75, 0.02), traffic(2, 3, 0, 75, 0.2)
    if name in GATEWAYS:
        pages = [Page(name, "gw:15020", "gateway", le_as_float, {STABLE: stable, CANARY: canary})]
    else:  # two pods of the stable revision
        pages = [
            Page(name, "a:9091", le_as_float=le_as_float, requests={STABLE: stable[::2]}),
            Page(name, "b:9091", le_as_float=le_as_float, requests={STABLE: stable[1::2]}),
            Page(name, "c:9091", le_as_float=le_as_float, requests={CANARY: canary}),
        ]
    history = History()
    for page in pages:
        for scrape in scrapes:
            history.add("up", page.target(next(iter(page.requests))), {scrape: 1})
            for metric, labels, value in page.exposed(scrape):
                history.add(metric, labels, {scrape: value})
    prometheus, judge = serve(history), judge_of(name)

    windows = read(prometheus, judge, 60)

    assert counts(windows, "canary") == truth(canary, scrapes, 6)
    assert counts(windows, "stable") == truth(stable, scrapes, 6)
    assert [window.error for window in windows] == [None] * 6
    assert windows[1].start == "2026-01-05T10:00:10.000+00:00"
    assert windows[1].end == windows[2].start

    reader = WindowReader(
        prometheus, judge, namespace=NAMESPACE, canary=CANARY, stable=STABLE, start=OPENING, window=TEN
    )
    looks = [reader.read(at(s), now=at(s)) for s in range(3, 62, 3)]
    assert [window for look in looks for window in look] == windows
    assert max(len(look) for look in looks) == 1


def test_the_edges_around_a_limit_beside_stable_are_counted_too(serve: Serve, judge_of: JudgeOf) -> None:
    given = judge_of("knative-otel").model_dump(mode="json", exclude_none=True)
    given["metrics"][-1] |= {"max_ratio": 1.5, "floor": 0.01}
    judge = JudgeSpec.model_validate(given)
    scrapes = [second + 0.3 for second in range(-30, 75)]
    stable, canary = traffic(1, 20, -30, 75, 0.02), traffic(2, 3, 0, 75, 0.2)
    history = History()
    for page in (
        Page("knative-otel", "a:9091", requests={STABLE: stable}),
        Page("knative-otel", "c:9091", requests={CANARY: canary}),
    ):
        for scrape in scrapes:
            history.add("up", page.target(next(iter(page.requests))), {scrape: 1})
            for metric, labels, value in page.exposed(scrape):
                history.add(metric, labels, {scrape: value})
    prometheus = serve(history)

    windows = read(prometheus, judge, 60)

    edges = (50, 75, 100, 250, 750, 1000, 2500, 5000)
    assert judge.edges_of(judge.metrics[-1]) == edges
    for side, requests in (("canary", canary), ("stable", stable)):
        told = [getattr(window, side) for window in windows]
        assert counts(windows, side) == truth(requests, scrapes, 6), "as without them"
        for place, edge in enumerate(edges):
            slower = [replace(each, duration_ms=600 if each.duration_ms > edge else 1) for each in requests]
            assert [one.edges["slow"][place] for one in told] == [bad for _, _, bad in truth(slower, scrapes, 6)]
    policy = Policy.from_dict({"metrics": [metric.limits() for metric in judge.metrics[:-1]] + [
        judge.metrics[-1].limits() | {"edges": list(edges)}]})  # fmt: skip
    assert judged(policy, windows).metrics[-1].canary["requests"] == sum(w.canary.requests or 0 for w in windows)
    alone = read_windows(
        prometheus, judge, namespace=NAMESPACE, canary=CANARY, stable=None, start=OPENING, end=at(60), window=TEN,
        now=at(70),
    )  # fmt: skip
    assert [window.canary.edges for window in alone] == [{}] * 6, "there is nobody to compare with"


def test_a_window_is_complete_only_when_scraped_past_its_end(serve: Serve, judge_of: JudgeOf) -> None:
    history = History()
    moments = [-1.0, 4.0, 9.0, 12.0]
    up(history, moments)
    gateway(history, CANARY, 200, {-1: 1, 4: 2, 9: 3, 12: 9})
    prometheus, judge = serve(history), judge_of("istio")
    early = read(prometheus, judge, 9.9, now=at(9.9))
    past = read(prometheus, judge, 10, now=at(10.1))
    behind = read(prometheus, judge, 20, now=at(20.1))
    patient = read(prometheus, judge, 20, now=at(30))
    assert (len(early), len(past), len(behind), len(patient)) == (0, 1, 1, 2)
    assert past[0].canary.requests == 2


def test_restarts_new_pods_and_pods_that_go(serve: Serve, judge_of: JudgeOf) -> None:
    """One pod restarts at 12 s, a second comes at 21 s and goes at 33 s; the stable revision has been there."""
    history = History()

    def pod(revision: str, instance: str, values: dict[float, float], code: int = 200) -> None:
        target = {"job": "pods", "instance": instance, "k8s_namespace_name": NAMESPACE, "kn_revision_name": revision}
        history.add("up", target, dict.fromkeys(values, 1))
        name = "http_server_request_duration_seconds"
        labels = target | {"http_response_status_code": str(code)}
        history.add(f"{name}_count", labels, values)
        history.add(f"{name}_bucket", labels | {"le": "0.5"}, values)
        history.add(f"{name}_bucket", labels | {"le": "+Inf"}, values)

    seconds = [float(s) for s in range(-5, 52)]
    pod(STABLE, "s", {s: 1e9 + 2 * s for s in seconds})
    pod(CANARY, "a", {s: 100 + s if s < 12 else s - 11 for s in seconds})
    pod(CANARY, "b", {s: 3 + s - 21 for s in seconds if 21 <= s < 33}, code=500)
    windows = read(serve(history), judge_of("knative-otel"), 50)
    # a: 10; 1 + restart at 12 s with 1, then 8 more; b is born with 3 and adds 1 a second, to 32 s
    assert counts(windows, "canary") == [(10, 0, 0), (10, 0, 0), (10 + 12, 12, 0), (10 + 2, 2, 0), (10, 0, 0)]
    assert counts(windows, "stable") == [(20, 0, 0)] * 5


@pytest.mark.parametrize("before", [5, 20, 280])
def test_what_a_new_pod_was_asked_before_its_first_scrape_counts_however_long_the_others_are_there(
    before: int, serve: Serve, judge_of: JudgeOf
) -> None:
    """A second pod of the canary comes at 21 s, and fails its first three requests before anybody scrapes it."""
    history = History()

    def pod(revision: str, instance: str, code: int, values: dict[float, float]) -> None:
        target = {"job": "pods", "instance": instance, "k8s_namespace_name": NAMESPACE, "kn_revision_name": revision}
        history.add("up", target, dict.fromkeys(values, 1))
        history.add(
            "http_server_request_duration_seconds_count", target | {"http_response_status_code": str(code)}, values
        )

    seconds = [float(s) for s in range(-before, 42)]
    pod(STABLE, "s", 200, {s: 1000 + s for s in seconds})
    pod(CANARY, "a", 200, {s: 1000 + s for s in seconds})
    pod(CANARY, "b", 503, {s: 3 for s in seconds if s >= 21})
    windows = read(serve(history), judge_of("knative-otel"), 40)
    assert [(w.canary.requests, w.canary.bad["errors"]) for w in windows] == [(10, 0), (10, 0), (13, 3), (10, 0)]


def test_scaled_to_zero_is_no_data_and_a_gateway_without_requests_is_zero(serve: Serve, judge_of: JudgeOf) -> None:
    pods, gate = History(), History()
    target = {"job": "pods", "instance": "a", "k8s_namespace_name": NAMESPACE}
    seconds = [float(s) for s in range(-5, 25)]
    for revision, moments in ((STABLE, seconds), (CANARY, [s for s in seconds if s < 8])):
        labels = target | {"instance": revision, "kn_revision_name": revision}
        up(pods, moments, labels=labels)
        labels |= {"http_response_status_code": "200"}
        for name, le in (("count", {}), ("bucket", {"le": "0.5"}), ("bucket", {"le": "+Inf"})):
            pods.add(f"http_server_request_duration_seconds_{name}", labels | le, {s: 10 + s for s in moments})
    windows = read(serve(pods), judge_of("knative-otel"), 20)
    assert counts(windows, "canary") == [(7, 0, 0), (None, None, None)]
    assert counts(windows, "stable") == [(10, 0, 0)] * 2
    assert windows[0].error is None
    assert "nothing was scraped" in (windows[1].error or "")
    assert f'kn_revision_name=~"{CANARY}"' in (windows[1].error or "")

    up(gate, seconds)
    gateway(gate, CANARY, 200, dict.fromkeys(seconds, 7))
    windows = read(serve(gate), judge_of("istio"), 20)
    assert counts(windows, "canary") == [(0, 0, 0)] * 2
    assert counts(windows, "stable") == [(0, 0, 0)] * 2


def test_a_pod_without_requests_is_zero(serve: Serve, judge_of: JudgeOf) -> None:
    history = History()
    seconds = [float(s) for s in range(-5, 25)]
    for revision in (CANARY, STABLE):
        pod = {"job": "p", "instance": revision, "namespace": NAMESPACE, "pod": f"{revision}-deployment-6d-x"}
        up(history, seconds, labels=pod)
    windows = read(serve(history), judge_of("knative"), 20)
    assert counts(windows, "canary") == counts(windows, "stable") == [(0, 0, 0)] * 2


def test_a_lagging_histogram_loses_nothing_and_is_never_more_than_the_requests(serve: Serve, judge_of: JudgeOf) -> None:
    history = History()
    seconds = [float(s) for s in range(-5, 45)]
    up(history, seconds)
    # 6 of 10 requests are slow in the first window and are told of 11 s later; then there are 2 requests a window.
    gateway(history, CANARY, 200, {s: max(0, min(s, 10)) + max(0, (s - 10) // 5) for s in seconds})
    durations(history, CANARY, "500", {s: 4 if s >= 11 else 0 for s in seconds})
    durations(history, CANARY, "+Inf", {s: 10 if s >= 11 else 0 for s in seconds})
    windows = read(serve(history), judge_of("istio"), 40, stable=None)
    assert counts(windows, "canary") == [(10, 0, 0), (2, 0, 2), (2, 0, 2), (2, 0, 2)]
    assert all(window.stable is None for window in windows)


@pytest.mark.parametrize(("codes", "bad"), [(None, 60), ("0", 50), ("5xx", 10)])
def test_p4_a_request_that_got_no_answer_is_a_bad_one_and_can_be_named(
    serve: Serve, judge_of: JudgeOf, codes: str | None, bad: int
) -> None:
    """P4: Envoy's code 0, with which Istio counts what the client gave up waiting for."""
    answered = {number: 0 if number % 4 == 1 else 503 if number % 20 == 0 else 200 for number in range(200)}
    given = [Request((number + 0.5) / 20, code, 80) for number, code in answered.items()]
    page = Page("istio", "gateway:15090", requests={CANARY: given})
    history = History()
    for scrape in range(-10, 30, 2):
        history.add("up", page.target(CANARY), {scrape: 1.0})
        for metric, labels, value in page.exposed(scrape):
            history.add(metric, labels, {scrape: value})
    (window,) = read(serve(history), judge_of("istio", codes=codes), 10, stable=None)
    assert window.canary.requests == 200
    assert window.canary.bad["errors"] == bad


def test_single_codes_and_istio_seen_from_the_pods(serve: Serve, judge_of: JudgeOf) -> None:
    history = History()
    seconds = [float(s) for s in range(-5, 25)]
    up(history, seconds)
    for code, step in ((200, 5), (500, 2), (503, 1)):
        labels = GATEWAY | istio(CANARY) | {"reporter": "destination", "response_code": str(code)}
        history.add("istio_requests_total", labels, {s: 100 + step * s for s in seconds})
    windows = read(serve(history), judge_of("istio-destination", codes="503"), 10, stable=None)
    assert (windows[0].canary.requests, windows[0].canary.bad["errors"]) == (80, 10)


def test_many_pods_are_read_exactly(serve: Serve, judge_of: JudgeOf) -> None:
    history = History()
    seconds = [float(s) for s in range(-10, 15, 2)]
    for pod in range(250):
        target = {"job": "pods", "instance": f"10.1.{pod // 200}.{pod % 200}:9091"}
        up(history, seconds, labels=target)
        labels = target | {"namespace_name": NAMESPACE, "revision_name": STABLE, "response_code": "200"}
        history.add("revision_request_count", labels, {s: 1e9 + pod * (s + 10) for s in seconds})
    windows = read(serve(history), judge_of("knative"), 10)
    assert windows[0].stable is not None
    assert windows[0].stable.requests == 10 * sum(range(250))


def test_the_buckets_of_a_histogram_restart_together(serve: Serve, judge_of: JudgeOf) -> None:
    """After the restart at 5 s the bucket at the limit is above what it was before: alone it would show nothing."""
    history = History()
    up(history, [-1, 2, 5, 8, 11])
    gateway(history, CANARY, 200, {-1: 100, 2: 100, 5: 50, 8: 60, 11: 60})
    durations(history, CANARY, "500", {-1: 2, 2: 2, 5: 10, 8: 18, 11: 18})
    durations(history, CANARY, "+Inf", {-1: 100, 2: 100, 5: 50, 8: 60, 11: 60})
    windows = read(serve(history), judge_of("istio"), 10, now=at(12))
    assert counts(windows, "canary") == [(60, 0, 42)]


def test_a_gateway_that_counts_its_first_request_later(serve: Serve, judge_of: JudgeOf) -> None:
    """Until then nothing shows that it is the one; look by look and all at once tell the same."""
    history = History()
    seconds = [float(s) for s in range(-5, 45)]
    up(history, seconds)
    later = [s for s in seconds if s > 20]
    gateway(history, CANARY, 503, {s: 3 + (s - 21) // 5 for s in later})
    for le, part in (("500", 0), ("+Inf", 1)):
        durations(history, CANARY, le, {s: part * (3 + (s - 21) // 5) for s in later})
    prometheus, judge = serve(history), judge_of("istio")
    windows = read(prometheus, judge, 40)
    assert counts(windows, "canary") == [(None, None, None), (None, None, None), (4, 4, 4), (2, 2, 2)]
    assert counts(windows, "stable") == [(None, None, None), (None, None, None), (0, 0, 0), (0, 0, 0)]
    reader = WindowReader(
        prometheus,
        judge,
        namespace=NAMESPACE,
        canary=CANARY,
        stable=STABLE,
        start=OPENING,
        window=TEN,
        lag=timedelta(0),  # no look sees what comes after it, as in life
    )
    looks = [window for s in (10, 20, 30, 40) for window in reader.read(now=at(s))]
    assert looks == windows
