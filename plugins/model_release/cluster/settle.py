"""The way back: traffic off the canary at once, then the stable template into the spec again.

`settle` brings any state that a release can leave behind to one where a proven revision has all of the traffic.
It is built of steps that read the live state and make at most one write; a task may loop over them, a trigger may
poll them, and whoever is killed in between leaves a state that the next call goes on from.

What is the same in both modes is here; how a mode does it is in `knative.settle` and `standard.settle`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from model_release.cluster.change import Prove, Remember, tell_stopped, tell_traffic
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.manifest import MANAGED_BY
from model_release.cluster.modes import mode_of
from model_release.cluster.objects import retrying
from model_release.cluster.progress import Progress, State, wait
from model_release.cluster.release import Phase, Release
from model_release.errors import NotSettled

if TYPE_CHECKING:
    from model_release.cluster.services import InferenceServices


def settle(
    services: InferenceServices,
    release: Release,
    remember: Remember,
    *,
    deadline: float = 900.0,
    poll: float = 0.5,
    prove: Prove | None = None,
    tell: Callable[[Progress], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Whatever happened: end with all of the traffic on a proven revision. Returns one sentence that says which.

    Again: reads, finds it settled, writes nothing. A deadline (seconds) that passes while the baseline already has
    all of the traffic is no incident: only the spec's template is not clean then, and the sentence says so.

    Args:
        remember: called with a revision's name before the stable template is written back; it must store it (the
            lease's `barred`) before it returns, so that whoever goes on after a crash knows it.
        prove: called with the service while the restored stable template is ready at 0 %, before it gets traffic: a
            new revision of proven content is a new revision all the same, and could have loaded half. While it
            raises SmokeFailed, the baseline keeps the traffic. None: nobody asks.

    Raises:
        NotSettled: the traffic is not on a proven revision, and why.
        ClusterUnavailable: the API was away until the deadline; nobody knows where the traffic is.
        ClusterRefused: the API refuses the write.
    """
    barred = list(release.barred)

    def note(revision: str) -> None:
        remember(revision)
        barred.append(revision)

    def step() -> Progress:
        now = replace(release, barred=tuple(barred))
        return settle_step(services, now, note, prove)

    progress = wait(step, deadline, poll=poll, clock=clock, sleep=sleep, tell=tell)
    if progress.state is State.READY:
        return progress.sentence
    live = services.get(release.namespace, release.name)
    stable = release.stable.revision
    if live is not None and stable is not None and live.gateway == {stable: 100} and live.canary_percent == 0:
        return f"{stable} has all of the traffic; its template could not be brought back yet: {progress.sentence}"
    raise NotSettled(f"{release.key} is not settled: {progress.sentence}")


def settle_step(
    services: InferenceServices, release: Release, remember: Remember, prove: Prove | None = None
) -> Progress:
    """One read and at most one write on the way to a settled service. READY when there is nothing left to do."""

    def attempt() -> Progress:
        return _step(services, services.get(release.namespace, release.name), release, remember, prove)

    return retrying(attempt)


def _step(
    services: InferenceServices,
    live: InferenceService | None,
    release: Release,
    remember: Remember,
    prove: Prove | None,
) -> Progress:
    key, baseline = release.key, release.stable
    if live is None:
        if baseline.revision is None:
            return Progress(State.READY, f"{key} does not exist; no traffic to settle")
        return Progress(State.FAILED, f"InferenceService {key} was deleted; {baseline.revision} is gone with it")
    known = baseline.uid or (release.created if release.promoted else None)
    if known not in (None, live.uid):
        return Progress(
            State.FAILED, f"InferenceService {key} was deleted and made anew by another hand; left as it is"
        )
    told = tell_stopped(live, baseline.started) if baseline.revision is not None else ""
    if told and (ended := mode_of(live).stopped(services, live, release, told)):
        return ended
    if baseline.revision is None and not release.promoted:
        return _first(services, live, release)
    if baseline.revision is None and live.is_split:
        # A first deployment that went live, and a split that another hand made: what was proven is the baseline now.
        stable = replace(baseline, revision=release.canary)
        return _step(
            services, live, replace(release, baseline=stable, canary=None, phase=Phase.CLOSING), remember, prove
        )
    return mode_of(live).step(services, live, release, remember, prove)


def _first(services: InferenceServices, live: InferenceService, release: Release) -> Progress:
    """Nothing was ever proven here. What this release created goes; what it found stays and is told."""
    label, value = MANAGED_BY
    if release.stable.uid is not None:
        if live.serving:
            return Progress(
                State.FAILED, f"{live.key} never had a proven revision, and {tell_traffic(live)} is served now"
            )
        return Progress(State.READY, f"{live.key} had no ready revision before, and has none now")
    # By its uid; where the try that created it died before it had recorded that, by what it wrote on it.
    made = live.uid == release.created if release.created else live.made_by == release.owner.identity
    if live.labels.get(label) != value or not made:
        return Progress(State.READY, f"InferenceService {live.key} was made by another hand; left as it is")
    if not live.being_deleted:
        services.delete(live)
    return Progress(State.WAITING, f"InferenceService {live.key}, made by this release and never proven, is deleted")


def is_clean(live: InferenceService, release: Release) -> bool:
    """No split, and one proven revision that is created, ready, rolled out and served: the baseline, or its content."""
    return mode_of(live).is_clean(live, release)


def roll_back(
    services: InferenceServices, release: Release, remember: Remember, prove: Prove | None = None
) -> InferenceService | None:
    """Take the traffic off the canary now; the steps of `settle` until a proven revision serves, without the cleaning
    up. To be called until `assess_rolled_back` of what it returns is over; then again: no write.

    During a canary, and after a promotion while KServe still knows the baseline as the revision before, the first call
    does it, and it takes seconds. Else the baseline's template is staged again, and the promoted revision serves
    until that is ready; the calls go on with each step.

    Returns the service as it is after the step, None when there is none.

    Raises:
        NotSettled: waiting longer can change nothing, and why.
    """

    def attempt() -> InferenceService | None:
        live = services.get(release.namespace, release.name)
        if live is not None and assess_rolled_back(live, release).state is not State.READY:
            told = _step(services, live, release, remember, prove)
            if told.state is State.FAILED:
                raise NotSettled(f"the roll-back cannot be done: {told.sentence}")
            live = services.get(release.namespace, release.name)
        return live

    return retrying(attempt)


def assess_rolled_back(live: InferenceService | None, release: Release) -> Progress:
    """Whether the baseline, or its content in a newer revision, has all of the traffic; by name. Not by Ready: that
    stays False after a canary that never came up."""
    stable = release.stable.revision
    if live is None:
        key = release.key
        if stable is None:  # a first deployment that nobody proved; that is how it is taken back
            return Progress(State.READY, f"{key} does not exist; no traffic to settle")
        return Progress(State.LOST, f"InferenceService {key} was deleted")
    return mode_of(live).assess_rolled_back(live, release)
