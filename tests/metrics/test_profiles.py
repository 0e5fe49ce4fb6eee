"""Each stack through a restart and through scaling to zero, against the truth; and what belongs to one stack alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest

from model_release.metrics import PROFILES, Prometheus, profile, read_windows
from model_release.metrics.profiles import TARGET_INFO
from model_release.spec import JudgeSpec, Profile

from .conftest import CANARY, NAMESPACE, OPENING, STABLE, History, at
from .stacks import GATEWAYS, Page, Request, resource

Serve = Callable[[History], Prometheus]
JudgeOf = Callable[..., JudgeSpec]
RESTART, GONE, BACK, END = 22, 40, 51, 90
SCRAPES = [second + 0.3 for second in range(-30, END)]


def traffic(seed: int, rate: float, times: Sequence[tuple[float, float]]) -> list[Request]:
    """Requests in these stretches of time; some fail, some are slow."""
    chance, requests = random.Random(seed), []
    for begin, end in times:
        moment = begin
        while (moment := moment + chance.expovariate(rate)) < end:
            code = 503 if chance.random() < 0.1 else chance.choice([200, 200, 200, 400])
            requests.append(Request(moment, code, chance.choice([30, 240, 500, 501, 800, 20_000])))
    return requests


def truth(requests: Sequence[Request], windows: int) -> list[tuple[int, int, int]]:
    """Each request counts at the first scrape after it."""
    told = [[0, 0, 0] for _ in range(windows)]
    for request in requests:
        scrape = next(moment for moment in SCRAPES if moment >= request.moment)
        if scrape > 0 and (place := math.ceil(scrape / 10) - 1) < windows:
            for field, counted in enumerate((True, request.code >= 500, request.duration_ms > 500)):
                told[place][field] += counted
    return [(a, b, c) for a, b, c in told]


def scraped(history: History, page: Page, begin: float, end: float) -> None:
    """The page as it was scraped while its process ran from `begin` to `end`; what it counted before is not its own."""
    lived = {name: [r for r in every if begin <= r.moment < end] for name, every in page.requests.items()}
    process = Page(page.profile, page.instance, page.job, requests=lived)
    for scrape in SCRAPES:
        if begin <= scrape < end:
            history.add("up", page.target(next(iter(lived))), {scrape: 1})
            for metric, labels, value in process.exposed(scrape):
                history.add(metric, labels, {scrape: value})


@pytest.mark.parametrize("name", list(PROFILES))
def test_restarts_and_scaling_to_zero_are_counted_right(name: Profile, serve: Serve, judge_of: JudgeOf) -> None:
    """The canary's pod, or the gateway, starts anew at 22 s. From 40 s to 51 s the canary has no pod and no request;
    then another pod answers. What a process counted after its last scrape is lost with it, here as in life, so
    nothing is asked in those moments."""
    unseen = RESTART - 0.7
    canary = traffic(2, 3, [(0, unseen), (RESTART, GONE - 0.7), (BACK, END - 1)])
    history = History()
    if name in GATEWAYS:
        stable = traffic(1, 20, [(-30, unseen), (RESTART, END - 1)])
        for begin, end in ((-30, RESTART), (RESTART, END)):
            scraped(history, Page(name, "gw:15020", "gateway", requests={STABLE: stable, CANARY: canary}), begin, end)
    else:
        stable = traffic(1, 20, [(-30, END - 1)])
        scraped(history, Page(name, "s:9091", requests={STABLE: stable}), -30, END)
        for instance, begin, end in (("c1:9091", -5, RESTART), ("c1:9091", RESTART, GONE), ("c2:9091", BACK, END)):
            scraped(history, Page(name, instance, requests={CANARY: canary}), begin, end)

    windows = read_windows(
        serve(history),
        judge_of(name),
        namespace=NAMESPACE,
        canary=CANARY,
        stable=STABLE,
        start=OPENING,
        end=at(80),
        window=timedelta(seconds=10),
        now=at(95),
    )

    assert len(windows) == 8
    seen = [(w.canary.requests, w.canary.bad["errors"], w.canary.bad["slow"]) for w in windows]
    expected: list[tuple[int | None, ...]] = [*truth(canary, 8)]
    assert expected[4] == (0, 0, 0)
    if name not in GATEWAYS:
        expected[4] = (None, None, None)  # no pod is no data; a gateway without requests is none asked
        assert "nothing was scraped" in (windows[4].error or "")
    assert seen == expected
    beside = [w.stable for w in windows if w.stable]
    assert [(s.requests, s.bad["errors"], s.bad["slow"]) for s in beside] == truth(stable, 8)


def test_a_failure_that_is_rare_is_counted_after_a_restart_too(serve: Serve, judge_of: JudgeOf) -> None:
    """One failure before the restart at 12 s and one after it, at 15 s: the same number, and two failures. On the same
    target another revision's counter, evicted and begun anew at 33 s, is no restart of this one."""
    history = History()
    gate = {"job": "gateway", "instance": "gw:9000"}
    seconds = [float(second) for second in range(-5, 45)]
    history.add("up", gate, dict.fromkeys(seconds, 1))

    def count(revision: str, code: int, values: dict[float, float]) -> None:
        labels = gate | {"envoy_cluster_name": f"{NAMESPACE}/{revision}", "envoy_response_code": str(code)}
        history.add("envoy_cluster_upstream_rq", labels, values)

    count(CANARY, 200, {s: 100 + s if s < 12 else s - 12 for s in seconds})
    count(CANARY, 503, {s: 1 for s in seconds if 5 <= s < 12 or s >= 15})
    count(STABLE, 200, {s: 500 + s if s < 12 else s - 12 if s < 33 else s - 33 for s in seconds})
    windows = read_windows(
        serve(history),
        judge_of("kourier"),
        namespace=NAMESPACE,
        canary=CANARY,
        stable=STABLE,
        start=OPENING,
        end=at(40),
        window=timedelta(seconds=10),
        now=at(50),
    )
    # 10 and one failure; 11 s, 8 s after the restart, and one failure; then ten in each.
    assert [(w.canary.requests, w.canary.bad["errors"]) for w in windows] == [(11, 1), (10, 1), (10, 0), (10, 0)]
    assert [w.stable.requests if w.stable else None for w in windows] == [10, 9, 10, 9]


def otel_pod(history: History, revision: str, address: str, values: dict[float, float], late: float = 0) -> None:
    """A queue-proxy that is pushed or pulled as it is: its samples say no revision."""
    target = {"job": "queue-proxy", "instance": address}
    history.add(TARGET_INFO, target | resource(revision, address), {moment + late: 1 for moment in values})
    name, labels = "http_server_request_duration_seconds", target | {"http_response_status_code": "200"}
    history.add(f"{name}_count", labels, values)
    for le in ("0.5", "+Inf"):
        history.add(f"{name}_bucket", labels | {"le": le}, values)


def test_an_address_that_is_given_to_another_revision(serve: Serve, judge_of: JudgeOf) -> None:
    """Stable's second pod goes at 20 s and the canary's gets its address; a stranger had it before both."""
    history = History()
    seconds = [float(second) for second in range(-30, 45)]
    for moment in seconds:
        history.add("up", {"job": "queue-proxy", "instance": "10.0.0.9:9091"}, {moment: 1})
    otel_pod(history, "other-predictor-00001", "10.0.0.9:9091", {s: 1e6 + s for s in seconds if s < -10})
    otel_pod(history, STABLE, "10.0.0.9:9091", {s: 10 + s for s in seconds if -10 <= s < 20})
    otel_pod(history, CANARY, "10.0.0.9:9091", {s: 3 * (s - 19) for s in seconds if s >= 20})
    windows = read_windows(
        serve(history),
        judge_of("knative-otel-target-info"),
        namespace=NAMESPACE,
        canary=CANARY,
        stable=STABLE,
        start=OPENING,
        end=at(40),
        window=timedelta(seconds=10),
        now=at(50),
    )
    # Window ends belong to their window: the canary's first scrape, with 3, is at 20 s.
    assert [w.canary.requests for w in windows] == [None, 3, 30, 30]
    assert [w.stable.requests if w.stable else None for w in windows] == [10, 9, 0, 0]


def test_what_is_pushed_has_no_up_and_its_target_info_a_moment_later(serve: Serve, judge_of: JudgeOf) -> None:
    history = History()
    pushes = [float(second) for second in range(-30, 45, 2)]
    otel_pod(history, CANARY, "pod-a", {s: 100 + s for s in pushes}, late=0.004)
    otel_pod(history, STABLE, "pod-b", {s: 900 + 5 * s for s in pushes}, late=-0.003)
    windows = read_windows(
        serve(history),
        judge_of("knative-otel-target-info"),
        namespace=NAMESPACE,
        canary=CANARY,
        stable=STABLE,
        start=OPENING,
        end=at(40),
        window=timedelta(seconds=10),
        now=at(60),
    )
    assert [w.canary.requests for w in windows] == [10] * 4
    assert [w.stable.requests if w.stable else None for w in windows] == [50] * 4
    assert [w.error for w in windows] == [None] * 4


@pytest.mark.parametrize("name", list(PROFILES))
def test_a_label_says_its_revision_and_nothing_else_does(name: Profile) -> None:
    metrics = profile(name)
    label = metrics.label_of(NAMESPACE, CANARY)
    assert metrics.revision_of({metrics.revision_label: label}) == CANARY
    assert metrics.revision_of({}) is None
    strangers = {"istio": "activator", "istio-destination": "digits", "kourier": "xds_cluster"}
    if name in strangers:
        assert metrics.revision_of({metrics.revision_label: strangers[name]}) is None


@pytest.mark.parametrize("name", list(PROFILES))
def test_the_same_name_in_another_namespace_is_another_revision(name: Profile, serve: Serve, judge_of: JudgeOf) -> None:
    history = History()
    page = Page(name, "a:9091", requests={CANARY: [Request(0.5, 200, 80)], STABLE: [Request(0.5, 200, 80)]})
    if name not in GATEWAYS:
        page.requests.pop(STABLE)
    scraped(history, page, -5, 20)
    prometheus = serve(history)
    found = {
        namespace: read_windows(
            prometheus,
            judge_of(name),
            namespace=namespace,
            canary=CANARY,
            stable=None,
            start=OPENING,
            end=at(10),
            window=timedelta(seconds=10),
            now=at(20),
        )[0].canary.requests
        for namespace in (NAMESPACE, "staging")
    }
    assert found == {NAMESPACE: 1, "staging": None}
