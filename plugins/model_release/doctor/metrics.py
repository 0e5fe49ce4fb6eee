"""Prometheus: whether the judge would see the stable revision, and what the model file asks about it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from model_release.errors import MetricsRefused
from model_release.spec import ModelSpec

from .finding import Finding, Level, error, ok, warning

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService
    from model_release.metrics.prometheus import Prometheus

# The check by which a release is refused that its deadline would end.
PLAN = "plan"


def check(prometheus: Prometheus, spec: ModelSpec, live: InferenceService | None, seen: bool) -> Iterator[Finding]:
    """A metric that is misspelt, of another profile or scraped too seldom is found here, before traffic moves.

    `live` None means, where it was `seen`, that there is no such service.
    """
    from model_release.metrics import (
        answers_presence,
        bucket_edges,
        check_limits,
        presence,
        profile,
        request_rate,
        slices_presence,
    )
    from model_release.metrics.values import check_shares

    prometheus.query("time()")
    yield ok("metrics", "Prometheus answers")
    stable = live.stable_revision if live is not None else None
    if live is None or stable is None:
        why, cure = f"nothing of {spec.service.key} is rolled out", "ask again after the first deployment"
        if not seen:
            why, cure = f"what {spec.service.key} serves is not known", "see above"
        yield warning("metrics", f"profile {spec.judge.profile} cannot be tried: {why}", cure)
        return
    metrics, namespace = profile(spec.judge.profile, spec.judge.labels), spec.service.namespace
    counted = presence(prometheus, metrics, namespace, stable, window=spec.rollout.window, asked=spec.judge.metrics)
    if not counted.ok:
        said = f"a canary beside {stable} could not be judged: {counted.sentence}"
        yield Finding("metrics", Level.ERROR, said, "mend judge.profile or the scraping", counted.passing)
        return
    yield ok("metrics", counted.sentence)
    window = spec.rollout.window
    for answered in answers_presence(prometheus, metrics, spec.judge, namespace, stable, window=window):
        if answered.ok:
            yield ok("metrics", answered.sentence)
            continue
        said = f"the answers of a canary beside {stable} could not be judged: {answered.sentence}"
        yield Finding(
            "metrics", Level.ERROR, said, "mend the scraping, or take max_shift and below away", answered.passing
        )
    for sliced in slices_presence(prometheus, metrics, spec.judge, namespace, stable):
        cure = "have the series carry it (docs/metrics.md#slices), or take slices away"
        yield ok("metrics", sliced.sentence) if sliced.ok else error("metrics", sliced.sentence, cure)
    try:
        check_limits(
            bucket_edges(prometheus, metrics, namespace, stable), spec.judge.metrics, f"the histogram of {stable}"
        )
    except MetricsRefused as refused:
        yield error("metrics", str(refused), "put judge.metrics.above on one of them")
    try:
        names = {"namespace": namespace, "service": spec.service.name, "revision": stable}
        for sentence in check_shares(prometheus, spec.judge.metrics, window, datetime.now(UTC), **names):
            yield ok("metrics", sentence)
    except MetricsRefused as refused:
        yield error("metrics", f"{refused}", "one series is needed for each: sum(…), and `or vector(0)` for none")
    yield from _values(prometheus, spec, stable)
    rate = request_rate(prometheus, metrics, namespace, stable) or 0.0
    if rate == 0:
        yield warning("traffic", f"{stable} has had no requests lately", "a canary needs traffic to be judged")
    else:
        yield ok("traffic", f"{rate:.0f} requests a minute on {stable}")
    yield from _plan(prometheus, spec, live)


def _plan(prometheus: Prometheus, spec: ModelSpec, live: InferenceService) -> Iterator[Finding]:
    """How long the release will need. One that its deadline would end, more often than not, is an error; not where the
    model file lets it go on, and not where nothing is known."""
    from model_release.release.plan import GO_ANYWAY, foresee

    found = foresee(spec, prometheus, live.stable_revision, live.started)
    for sentence in found.sentences:
        yield ok(PLAN, sentence)
    if found.refusal:
        yield error(PLAN, found.trouble, GO_ANYWAY)
    elif found.trouble:
        yield warning(PLAN, found.trouble, found.goes)


def _values(prometheus: Prometheus, spec: ModelSpec, stable: str) -> Iterator[Finding]:
    from model_release.metrics.values import filled

    for value in spec.judge.values:
        query = filled(value.query, namespace=spec.service.namespace, service=spec.service.name, revision=stable)
        try:
            found = prometheus.query(query, datetime.now(UTC)).series
        except MetricsRefused as refused:
            yield error("metrics", f"judge.values.{value.name}: {refused}", "mend its query")
            continue
        if len(found) == 1:
            yield ok("metrics", f"judge.values.{value.name}: one number for {stable}")
        else:
            what = "no number" if not found else f"{len(found)} numbers"
            said = f"judge.values.{value.name}: {query} gives {what} for {stable}"
            yield Finding("metrics", Level.ERROR, said, "one is needed: sum(…), max(…)", passing=not found)
