"""What the preflight is told about a revision."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from model_release.errors import MetricsRefused
from model_release.metrics import (
    PROFILES,
    Prometheus,
    bucket_edges,
    check_limits,
    presence,
    profile,
    quantile,
    read_windows,
    request_rate,
)
from model_release.spec import BUCKET_EDGES_MS, JudgeSpec, Profile

from .conftest import NAMESPACE, STABLE, History, at
from .stacks import Page, Request

Serve = Callable[[History], Prometheus]
JudgeOf = Callable[..., JudgeSpec]


def lively(name: Profile, *, buckets: bool = True) -> History:
    """The stable revision, a request a second of 80 ms, scraped every 5 s."""
    history = History()
    requests = [Request(float(second), 200, 80) for second in range(-400, 1)]
    page = Page(name, "a:9091", requests={STABLE: requests})
    for scrape in range(-400, 1, 5):
        for metric, labels, value in page.exposed(scrape):
            if buckets or not metric.endswith("_bucket"):
                history.add(metric, labels, {scrape: value})
    return history


@pytest.mark.parametrize("name", list(PROFILES))
def test_a_revision_that_is_counted(name: Profile, serve: Serve) -> None:
    prometheus, metrics = serve(lively(name)), profile(name)
    found = presence(prometheus, metrics, NAMESPACE, STABLE, window=timedelta(seconds=10), now=at(1))
    assert found.ok, found.sentence
    assert found.scrape_seconds == 5
    assert found.sentence.startswith(found.query)
    rare = presence(prometheus, metrics, NAMESPACE, STABLE, window=timedelta(seconds=9), now=at(1))
    assert not rare.ok
    assert "does not hold two scrapes; 10s would" in rare.sentence
    assert bucket_edges(prometheus, metrics, NAMESPACE, STABLE, now=at(1)) == BUCKET_EDGES_MS[name]
    assert request_rate(prometheus, metrics, NAMESPACE, STABLE, now=at(1)) == pytest.approx(60, rel=0.01)
    p95 = quantile(prometheus, metrics, NAMESPACE, STABLE, 0.95, start=at(-300), end=at(0))
    edges = sorted(BUCKET_EDGES_MS[name])
    below, above = max(e for e in edges if e < 80), min(e for e in edges if e >= 80)
    assert p95 == pytest.approx(below + 0.95 * (above - below))


@pytest.mark.parametrize("name", list(PROFILES))
def test_requests_without_the_histogram_that_is_asked_for(name: Profile, serve: Serve, judge_of: JudgeOf) -> None:
    """A scrape that drops `_bucket` leaves the requests, and nothing to tell the slow ones by."""
    metrics, slow = profile(name), judge_of(name).metrics
    assert presence(serve(lively(name)), metrics, NAMESPACE, STABLE, asked=slow, now=at(1)).ok
    prometheus = serve(lively(name, buckets=False))
    assert presence(prometheus, metrics, NAMESPACE, STABLE, asked=slow[:1], now=at(1)).ok
    found = presence(prometheus, metrics, NAMESPACE, STABLE, asked=slow, now=at(1))
    assert not found.ok
    assert f"is counted, but {metrics.buckets_of(NAMESPACE, [STABLE])} is empty" in found.sentence
    # Envoy merges histograms every five seconds: what was just asked for the first time has none yet.
    assert presence(prometheus, metrics, NAMESPACE, STABLE, asked=slow, now=at(-390)).ok


def told(name: Profile, *copies: dict[str, str], up: bool = True, until: int = 1) -> History:
    """The stable revision, scraped every 5 s; once more for each of the copies, with these labels besides."""
    history, requests = History(), [Request(float(second), 200, 80) for second in range(-400, 1)]
    page = Page(name, "a:9091", requests={STABLE: requests})
    for scrape in range(-400, until, 5):
        exposed = [*page.exposed(scrape), *([("up", page.target(STABLE), 1.0)] if up else [])]
        for labels in copies:
            for metric, known, value in exposed:
                history.add(metric, known | labels, {scrape: value})
    return history


def of_a_window(prometheus: Prometheus, name: Profile, judge: JudgeSpec) -> list[int | None]:
    """What the stable revision was asked in ten seconds, each of ten requests."""
    windows = read_windows(
        prometheus, judge, namespace=NAMESPACE, canary="digits-predictor-00009", stable=STABLE,
        start=at(-60), end=at(-40), window=timedelta(seconds=10), now=at(1),
    )  # fmt: skip
    return [window.stable.requests for window in windows if window.stable]


@pytest.mark.parametrize("name", list(PROFILES))
def test_17_9_two_clusters_are_refused_until_the_model_file_says_which(
    name: Profile, serve: Serve, judge_of: JudgeOf
) -> None:
    """Number 9: the same service in two clusters, in one Prometheus, on pods of the same addresses."""
    prometheus = serve(told(name, {"cluster": "eu-1"}, {"cluster": "us-2"}))
    found = presence(prometheus, profile(name), NAMESPACE, STABLE, window=timedelta(seconds=10), now=at(1))
    assert (found.ok, found.passing) == (False, False)
    assert "added up: cluster is eu-1 and us-2; judge.labels: {cluster: eu-1} in the model file says" in found.sentence
    for cluster in ("eu-1", "us-2"):
        judge = judge_of(name).model_copy(update={"labels": {"cluster": cluster}})
        narrowed = profile(name, judge.labels)
        seen = presence(prometheus, narrowed, NAMESPACE, STABLE, window=timedelta(seconds=10), now=at(1))
        assert seen.ok, seen.sentence
        assert of_a_window(prometheus, name, judge) == [10, 10]
        assert request_rate(prometheus, narrowed, NAMESPACE, STABLE, now=at(1)) == pytest.approx(60, rel=0.01)
        assert bucket_edges(prometheus, narrowed, NAMESPACE, STABLE, now=at(1)) == BUCKET_EDGES_MS[name]
    nowhere = profile(name, {"cluster": "ap-3"})
    assert not presence(prometheus, nowhere, NAMESPACE, STABLE, now=at(1)).ok


@pytest.mark.parametrize("up", [True, False], ids=["pulled", "pushed"])
def test_p1_two_replicas_without_deduplication_are_refused(serve: Serve, up: bool) -> None:
    """P1: each series is there twice, apart by the replica's label alone; each request would count twice."""
    replicas = [{"prometheus_replica": f"prometheus-k8s-{number}"} for number in (0, 1)]
    both = serve(told("knative-otel", *replicas, up=up))
    found = presence(both, profile("knative-otel"), NAMESPACE, STABLE, now=at(1))
    assert not found.ok
    assert "would count each request twice: job" in found.sentence
    assert "is there twice, as prometheus_replica prometheus-k8s-0 and prometheus-k8s-1" in found.sentence
    one = serve(told("knative-otel", replicas[0], up=up))
    assert presence(one, profile("knative-otel"), NAMESPACE, STABLE, now=at(1)).ok


@pytest.mark.parametrize(
    ("late", "window", "would_do"), [(25, 10, "30s"), (12, 10, None), (25, 30, None), (70, 30, "75s")]
)
def test_p2_samples_that_come_later_than_they_are_read_are_told_with_the_window_that_would_do(
    serve: Serve, late: int, window: int, would_do: str | None
) -> None:
    """P2: remote write, which brings what was scraped many seconds ago."""
    prometheus = serve(told("knative-otel", {}, until=1 - late))
    found = presence(
        prometheus, profile("knative-otel"), NAMESPACE, STABLE, window=timedelta(seconds=window), now=at(0)
    )
    assert found.ok is (would_do is None), found.sentence
    if would_do:
        assert found.passing, "a Prometheus that was just started again looks the same"
        assert f"and windows of {window}s are read before that; a window of {would_do} would do" in found.sentence


def test_a_pod_that_is_scraped_twice_is_refused(serve: Serve) -> None:
    """As by Istio's own port and by the merged one; a pod that got another address is one target after the other."""

    def said(second: range) -> str:
        history, metrics = History(), profile("istio-destination")
        labels = dict(metrics.fixed) | {
            metrics.namespace_label or "": NAMESPACE,
            metrics.revision_label: metrics.label_of(NAMESPACE, STABLE),
            metrics.code_label: "200",
            "pod": "digits-x",
        }
        for port, scrapes in (("15090", range(-60, -20, 5)), ("15020", second)):
            target = {"job": f"port-{port}", "instance": f"10.0.0.7:{port}"}
            history.add(metrics.requests, labels | target, {scrape: 100 + scrape for scrape in scrapes})
        found = presence(serve(history), metrics, NAMESPACE, STABLE, now=at(1))
        assert found.ok == ("twice" not in found.sentence)
        return found.sentence

    assert "would count each request twice: pod digits-x is scraped as job port-15020, instance" in said(
        range(-62, -20, 5)
    )
    assert "2 series" in said(range(-15, 0, 5))


@pytest.mark.parametrize("real", list(PROFILES))
def test_a_mistyped_profile_is_told_with_the_right_one(real: Profile, serve: Serve) -> None:
    prometheus = serve(lively(real))
    for asked in set(PROFILES) - {real}:
        found = presence(prometheus, profile(asked), NAMESPACE, STABLE, now=at(1))
        assert not found.ok
        assert STABLE in found.query
        assert not found.passing
        assert found.sentence.startswith(f"{found.query} is empty: ")
        assert found.sentence.endswith(f" is not; judge.profile {real} reads it")
        assert f"{profile(real).requests_of(NAMESPACE, [STABLE])} is not" in found.sentence


@pytest.mark.parametrize("name", list(PROFILES))
def test_a_revision_that_is_not_counted_is_told_with_those_that_are(name: Profile, serve: Serve) -> None:
    metrics = profile(name)
    found = presence(serve(lively(name)), metrics, NAMESPACE, "digits-predictor-00007", now=at(1))
    assert not found.ok
    assert "digits-predictor-00007" in found.query
    assert found.passing, "it may have come a moment ago"
    there = f"{metrics.bearing} exists, with {metrics.revision_label} {metrics.label_of(NAMESPACE, STABLE)}"
    assert there in found.sentence


def test_labels_that_are_on_no_sample_are_missed(serve: Serve) -> None:
    """A queue-proxy that is pulled as it is, without `target_info` in reach."""
    history = History()
    history.add("http_server_request_duration_seconds_count", {"job": "pods", "instance": "a:9091"}, {0: 1})
    found = presence(serve(history), profile("knative-otel"), NAMESPACE, STABLE, now=at(1))
    assert not found.passing
    assert "exists, but http_server_request_duration_seconds_count without the label kn_revision_name" in found.sentence


def test_other_reasons_for_no_counts(serve: Serve) -> None:
    def said(history: History, *, passing: bool) -> str:
        found = presence(serve(history), profile("knative"), NAMESPACE, STABLE, now=at(1))
        assert (found.ok, found.passing) == (False, passing)
        return found.sentence

    idle, near, far = History(), History(), History()
    pod = {"job": "pods", "instance": "a", "namespace": NAMESPACE, "pod": f"{STABLE}-deployment-6d-x"}
    idle.add("up", pod, {0: 1})
    near.add("revision_app_request_count", {"job": "pods"}, {0: 1})
    far.add("up", {"job": "node"}, {0: 1})
    assert "the revision is scraped" in said(idle, passing=True)
    assert "near are revision_app_request_count" in said(near, passing=False)
    assert "is the revision scraped?" in said(far, passing=True)
    assert "holds no series at all" in said(History(), passing=True)


def test_nothing_to_tell_is_none(serve: Serve) -> None:
    prometheus, metrics = serve(History()), profile("istio")
    assert request_rate(prometheus, metrics, NAMESPACE, STABLE, now=at(1)) is None
    assert quantile(prometheus, metrics, NAMESPACE, STABLE, 0.5, start=at(-60), end=at(0)) is None
    assert bucket_edges(prometheus, metrics, NAMESPACE, STABLE, now=at(1)) == ()


def test_a_limit_off_the_live_edges_is_refused(judge_of: JudgeOf) -> None:
    metrics = judge_of("istio", above="500ms").metrics
    check_limits((250.0, 500.0, 1000.0), metrics)
    check_limits((), metrics)
    with pytest.raises(MetricsRefused, match=r"metrics\.slow\.above: 500ms .* 400ms or 600ms can be read exactly"):
        check_limits((100.0, 400.0, 600.0, 2000.0), metrics)
