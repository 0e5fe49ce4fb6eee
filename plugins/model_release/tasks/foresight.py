"""What can be known before any traffic moves: whether the judge will see the service, and how long it will need.

A mistyped profile, a limit between two buckets or a window shorter than two scrapes would otherwise be found by a
canary that nobody can judge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model_release.errors import MetricsRefused, MetricsUnavailable
from model_release.spec import ModelSpec
from model_release.tasks import connections


def foresee(spec: ModelSpec, stable: str, started: str | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Looks at the stable revision in Prometheus and plans the release; returns the plan for the record.

    A plan that cannot decide in time was refused by the preflight, or let pass by who wrote the model file: here it is
    told. `started`: since when the revision's name means this one. Asked again, it looks again.

    Raises:
        MetricsRefused: the stable revision has no metrics of this profile, or no histogram for a limit on durations; a
            limit lies on none of its buckets, or a window holds fewer than two scrapes; with what is there instead.
        MetricsUnavailable: Prometheus does not answer now, or it counts others by this profile and the stable revision,
            which may be a minute old, not yet.
    """
    from model_release.metrics import (
        answers_presence,
        bucket_edges,
        check_limits,
        presence,
        profile,
        slices_presence,
    )
    from model_release.release.plan import foresee as planned

    prometheus, metrics = connections.prometheus(), profile(spec.judge.profile, spec.judge.labels)
    namespace = spec.service.namespace
    seen = presence(prometheus, metrics, namespace, stable, window=spec.rollout.window, asked=spec.judge.metrics)
    if not seen.ok:
        refused = MetricsUnavailable if seen.passing else MetricsRefused
        raise refused(f"a canary beside {stable} could not be judged: {seen.sentence}")
    for answered in answers_presence(prometheus, metrics, spec.judge, namespace, stable, window=spec.rollout.window):
        if not answered.ok:
            refused = MetricsUnavailable if answered.passing else MetricsRefused
            raise refused(f"the answers of a canary beside {stable} could not be judged: {answered.sentence}")
    for sliced in slices_presence(prometheus, metrics, spec.judge, namespace, stable):
        if not sliced.ok:
            raise MetricsRefused(f"the slices of a canary beside {stable} could not be judged: {sliced.sentence}")
    check_limits(
        bucket_edges(prometheus, metrics, namespace, stable), spec.judge.metrics, f"the live histogram of {stable}"
    )
    found = planned(spec, prometheus, stable, started)
    for sentence in found.sentences:
        say(sentence)
    return found.to_dict()
