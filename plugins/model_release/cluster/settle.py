"""The way back: traffic off the canary at once, then the stable template into the spec again.

`settle` brings any state that a release can leave behind to one where a proven revision has all of the traffic.
It is built of steps that read the live state and make at most one write; a task may loop over them, a trigger may
poll them, and whoever is killed in between leaves a state that the next call goes on from.

Three of KServe's rules shape it (docs/facts.md#promoting-and-rolling-back). 0 % is the only roll-back that takes effect
at once and makes no revision. Bringing the stable template back in the same write as removing the split would give the
*canary* all of the traffic until the new revision is ready. And 0 % on a service whose latest revision is already
rolled out means "one version further back" to KServe, which is right after a promotion and wrong in any other case.

A service in Standard mode has none of these rules: its steps are in `standard.settle`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from model_release.cluster.change import (
    DIRECT,
    RESTORE_GRACE,
    Prove,
    Release,
    Remember,
    tell_stopped,
    tell_traffic,
    tell_unmoved,
)
from model_release.cluster.dead import and_frozen, death_of, let_go
from model_release.cluster.inference_service import InferenceService, InferenceServices, Template
from model_release.cluster.manifest import MANAGED_BY, holds, replacement
from model_release.cluster.objects import retrying
from model_release.cluster.progress import Progress, State, wait
from model_release.cluster.standard import settle as standard
from model_release.cluster.standard.view import StandardService
from model_release.errors import NotSettled, SmokeFailed

__all__ = [
    "RESTORE_GRACE",
    "Prove",
    "Release",
    "Remember",
    "assess_rolled_back",
    "is_clean",
    "roll_back",
    "settle",
    "settle_step",
]

# Seconds for which the baseline itself may be down, which keeps the route, and with it the proof, from moving on. A
# container that crashes again and again is started again after five minutes at the latest.
BASELINE_GRACE = 330.0


def settle(
    services: InferenceServices,
    release: Release,
    remember: Remember,
    *,
    deadline: float = 900.0,
    poll: float = 2.0,
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
    stable = release.baseline.revision
    if live is not None and stable is not None and live.gateway == {stable: 100} and live.canary_percent == 0:
        return f"{stable} has all of the traffic; its template could not be brought back yet: {progress.sentence}"
    raise NotSettled(f"{release.namespace}/{release.name} is not settled: {progress.sentence}")


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
    key, baseline = f"{release.namespace}/{release.name}", release.baseline
    if live is None:
        if baseline.revision is None:
            return Progress(State.READY, f"{key} does not exist; no traffic to settle")
        return Progress(State.FAILED, f"InferenceService {key} was deleted; {baseline.revision} is gone with it")
    if baseline.uid not in (None, live.uid):
        return Progress(
            State.FAILED, f"InferenceService {key} was deleted and made anew by another hand; left as it is"
        )
    told = tell_stopped(live, baseline.started) if baseline.revision is not None else ""
    if told and (ended := _stopped(services, live, release, told)):
        return ended
    if isinstance(live, StandardService) and baseline.revision is not None:
        return standard.step(services, live, release, prove)
    if release.promoted and not live.is_split and not _has_stable_template(live, release):
        return _promoted(services, live, release)
    if baseline.revision is None and release.promoted:
        # A first deployment that went live, and a split that another hand made: what was proven is the baseline now.
        stable = replace(baseline, revision=release.canary)
        return _step(services, live, replace(release, baseline=stable, canary=None, promoted=False), remember, prove)
    if baseline.revision is None:
        return _first(services, live, release)
    if is_clean(live, release):
        return Progress(State.READY, f"{live.rolled_out} has all of the traffic", live.rolled_out)
    if live.canary_percent != 0:
        return _close(services, live, release, remember)
    return _restore(services, live, release, remember, prove)


def _stopped(services: InferenceServices, live: InferenceService, release: Release, told: str) -> Progress | None:
    """Nobody is served by a stopped service, and what is in its spec serves when it starts: never the canary's. One
    that was started meanwhile is left as it is, unless it has the stable template alone. None: as any other.

    In Standard mode a start opens the canary again, and names stay: its own steps take the share away.
    """
    if isinstance(live, StandardService):
        if live.is_stopped and not live.canary_percent:
            return Progress(State.READY, f"{told}; it starts without traffic on a canary")
        return None
    template = release.baseline.template
    if not live.is_stopped:
        if is_clean(live, release):
            return None
        said = f"{told}; {tell_traffic(live)} is served, which nobody has proven: release a version anew"
        return Progress(State.FAILED, said)
    if template is None:
        return Progress(State.FAILED, f"{told}; it starts with what is in its spec, which is the canary's")
    if not _has_stable_template(live, release) or live.is_split:
        services.patch(live, _whole(live, template, None))
    return Progress(State.READY, f"{told}; it starts with the stable template")


def is_clean(live: InferenceService, release: Release) -> bool:
    """No split, and one proven revision that is created, ready, rolled out and served: the baseline, or its content."""
    if isinstance(live, StandardService):
        return standard.is_clean(live, release)
    stable, known = live.rolled_out, release.baseline.template is not None
    return (
        stable is not None
        and not live.is_split
        and live.latest_created == live.latest_ready == stable
        and live.gateway == {stable: 100}
        and not release.bars(stable)
        and (_has_stable_template(live, release) if known else stable == release.baseline.revision)
    )


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
    stable = release.baseline.revision
    if live is None:
        key = f"{release.namespace}/{release.name}"
        if stable is None:  # a first deployment that nobody proved; that is how it is taken back
            return Progress(State.READY, f"{key} does not exist; no traffic to settle")
        return Progress(State.LOST, f"InferenceService {key} was deleted")
    if isinstance(live, StandardService):
        if live.is_stopped and not live.canary_percent:
            return Progress(State.LOST, tell_stopped(live, None))
        return standard.assess_rolled_back(live, release)
    told = tell_stopped(live, release.baseline.started)
    if told and not (live.is_stopped and _brings_canary(live, release)) and not is_clean(live, release):
        return Progress(State.LOST, told)
    if stable is not None and live.gateway == {stable: 100} and (live.canary_percent == 0 or is_clean(live, release)):
        return Progress(State.READY, f"{stable} has all of the traffic", stable)
    if is_clean(live, release):
        return Progress(
            State.READY, f"{live.rolled_out} has all of the traffic, with {stable}'s content", live.rolled_out
        )
    if live.canary_percent == 0 and stable is not None and live.prev_revision not in (None, stable, release.canary):
        return Progress(State.WRONG_BASELINE, f"the traffic went to {live.prev_revision} and not to {stable}")
    return Progress(State.WAITING, and_frozen(tell_unmoved(live), live))


def _promoted(services: InferenceServices, live: InferenceService, release: Release) -> Progress:
    if live.latest_created != release.canary:
        return Progress(
            State.FAILED,
            f"{release.canary} was promoted, and {live.latest_created} came after it{live.other_writer()}",
        )
    if live.canary_percent == 100:
        services.patch(live, _split(None))
    elif live.gateway == {release.canary: 100} and live.rolled_out == release.canary:
        said = f"{release.canary} was promoted and has all of the traffic"
        if dead := death_of(live, str(release.canary)):
            said += f", and{dead.removeprefix(str(release.canary))}"
        return Progress(State.READY, said, release.canary)
    return Progress(State.WAITING, f"{release.canary} was promoted; traffic is still {tell_traffic(live)}")


def _first(services: InferenceServices, live: InferenceService, release: Release) -> Progress:
    """Nothing was ever proven here. What this release created goes; what it found stays and is told."""
    label, value = MANAGED_BY
    if release.baseline.uid is not None:
        if live.serving:
            return Progress(
                State.FAILED, f"{live.key} never had a proven revision, and {tell_traffic(live)} is served now"
            )
        return Progress(State.READY, f"{live.key} had no ready revision before, and has none now")
    if live.labels.get(label) != value or release.created not in (None, live.uid):
        return Progress(State.READY, f"InferenceService {live.key} was made by another hand; left as it is")
    if not live.being_deleted:
        services.delete(live)
    return Progress(State.WAITING, f"InferenceService {live.key}, made by this release and never proven, is deleted")


def _close(services: InferenceServices, live: InferenceService, release: Release, remember: Remember) -> Progress:
    """The spec gives, or may give, traffic to something else than the baseline: 0 %."""
    baseline = release.baseline
    restored = _has_stable_template(live, release)
    if restored and not release.bars(live.latest_created) and not (live.is_split or release.bars(live.latest_ready)):
        # The split was just removed from the restored template, or was never there: only the route has to follow.
        return Progress(State.WAITING, f"{live.latest_created} is taking over; traffic is still {tell_traffic(live)}")
    if live.rolled_out == baseline.revision or live.previous_rolled_out == baseline.revision:
        freed = let_go(services, live, release)  # one that died after its promotion
        if isinstance(freed, Progress):
            return freed
        services.patch(live, _split(0))
        return Progress(State.WAITING, f"set to 0 %; {baseline.revision} gets all of the traffic")
    if baseline.template is None:
        return Progress(
            State.FAILED,
            f"KServe no longer knows {baseline.revision} as the revision before {live.rolled_out}, and its template "
            "is not on record; release its version anew",
        )
    return _write_back(services, live, release, remember)


def _restore(
    services: InferenceServices, live: InferenceService, release: Release, remember: Remember, prove: Prove | None
) -> Progress:
    """At 0 %: first a dead canary is let go, which holds the route; then the stable template again."""
    freed = let_go(services, live, release)
    if isinstance(freed, Progress):
        return freed
    told = _bring_back(services, live, release, remember, prove)
    return told if freed is None else replace(told, sentence=f"{told.sentence} ({freed})")


def _bring_back(
    services: InferenceServices, live: InferenceService, release: Release, remember: Remember, prove: Prove | None
) -> Progress:
    """The stable template again, and the split removed once that is ready and answers."""
    baseline, latest = release.baseline, live.latest_created
    if baseline.template is None:
        if live.gateway == {baseline.revision: 100}:
            said = f"{baseline.revision} has all of the traffic; the spec keeps the other template at 0 %"
            return Progress(State.READY, said, baseline.revision)
        return Progress(State.WAITING, tell_unmoved(live))
    if not _has_stable_template(live, release):
        if latest == baseline.revision and live.model_status.transition == "InvalidSpec":
            # KServe made no revision of it and never will: there is nothing that could become "latest".
            services.patch(live, _whole(live, baseline.template, None))
            return Progress(State.WAITING, "the stable template is written back; KServe had refused the other")
        if latest == baseline.revision:
            # Written back now, KServe might see no change of template, but a 0 % on a rolled out revision.
            return Progress(State.WAITING, "KServe has not acted on the new template yet")
        if _roll_back_pending(live, release):
            return Progress(State.WAITING, tell_unmoved(live))
        return _write_back(services, live, release, remember)
    if latest != live.latest_ready or release.bars(latest):
        said = f"the stable template is back at 0 %; {latest} is not ready yet"
        if live.model_status.transition == "BlockedByFailedLoad" and not release.bars(latest):
            return Progress(State.FAILING, f"{said}: {live.model_status.failure}", latest, RESTORE_GRACE)
        return Progress(State.WAITING, said, latest)
    if prove is not None and latest != baseline.revision:
        if latest in live.traffic:
            try:
                prove(live)
            except SmokeFailed as error:
                said = f"the stable template is back at 0 %; {latest} is not proven: {error}"
                return Progress(State.FAILING, said, latest, RESTORE_GRACE)
        elif not _route_is_broken(live):
            return Progress(State.WAITING, f"{latest} is ready at 0 %, its route is not yet", latest)
        elif not _route_names_what_is_gone(live) and not _is_frozen_by_canary(live, release):
            said = f"{latest} is ready at 0 % and cannot be asked while {baseline.revision} is not ready"
            return Progress(State.FAILING, said, latest, BASELINE_GRACE)
        # The baseline is gone, or a promoted canary is dead, and with it the route that could reach this one at 0 %.
        # What serves instead is what is being rolled back; the proven content goes before it, unasked.
        elif release.insist and _route_names_what_is_gone(live):
            said = f"{baseline.revision} is gone, so {latest}, which has its template, cannot be asked and gets nothing"
            return Progress(State.FAILED, f"{said}; {DIRECT}")
    services.patch(live, _split(None))
    return Progress(State.WAITING, f"{latest} has the stable template and gets all of the traffic", latest)


def _brings_canary(live: InferenceService, release: Release) -> bool:
    """Whether a stopped service would start with something else than the stable template, and that can be mended."""
    stable = release.baseline.template
    return stable is not None and (live.is_split or not _has_stable_template(live, release))


def _has_stable_template(live: InferenceService, release: Release) -> bool:
    # Both ways: a canary may be the stable template with one field more, and is not it.
    stable = release.baseline.template
    return stable is not None and holds(live.template, stable) and holds(stable, live.template)


def _roll_back_pending(live: InferenceService, release: Release) -> bool:
    """Whether the 0 % that was written will still move traffic.

    Not when it rests on a proven revision: the baseline, or the one before it after KServe's race. Not when KServe no
    longer can take it for a late roll-back, because another revision came after the one that is rolled out. And not
    when the baseline is gone, or what was promoted is dead, so that the route stays as it was.
    """
    if _route_is_broken(live):
        return False
    stable = live.rolled_out
    if stable is not None and live.gateway == {stable: 100}:
        return release.bars(stable) and not (live.prev_revision == stable != live.latest_created)
    return True


def _route_is_broken(live: InferenceService) -> bool:
    """Knative keeps the route as it was, because the split names a revision that is gone, or not ready any more."""
    route = live.conditions.get("PredictorRouteReady")
    return route is not None and route.status == "False"


def _is_frozen_by_canary(live: InferenceService, release: Release) -> bool:
    return live.frozen_by is not None and release.bars(live.frozen_by)


def _route_names_what_is_gone(live: InferenceService) -> bool:
    """Gone for good, and not only down: both have the same reason (docs/facts.md#a-route-waits-for-every-revision)."""
    route = live.conditions.get("PredictorRouteReady")
    return route is not None and "not found" in route.message


def _write_back(services: InferenceServices, live: InferenceService, release: Release, remember: Remember) -> Progress:
    template, latest = release.baseline.template or {}, live.latest_created
    if latest is not None and not release.bars(latest) and not _has_stable_template(live, release):
        remember(latest)
    services.patch(live, _whole(live, template, 0))
    return Progress(State.WAITING, "the stable template is written back, at 0 %")


def _whole(live: InferenceService, template: Template, percent: int | None) -> dict[str, Any]:
    return {"spec": {"predictor": {**replacement(live.template, template), "canaryTrafficPercent": percent}}}


def _split(percent: int | None) -> dict[str, Any]:
    return {"spec": {"predictor": {"canaryTrafficPercent": percent}}}
