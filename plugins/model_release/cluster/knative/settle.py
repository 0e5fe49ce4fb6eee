"""The way back in Knative mode: the steps of `cluster.settle`, which come here with a service of this mode.

Three of KServe's rules shape it (docs/facts.md#promoting-and-rolling-back). 0 % is the only roll-back that takes effect
at once and makes no revision. Bringing the stable template back in the same write as removing the split would give the
*canary* all of the traffic until the new revision is ready. And 0 % on a service whose latest revision is already
rolled out means "one version further back" to KServe, which is right after a promotion and wrong in any other case.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from model_release.cluster.change import (
    DIRECT,
    RESTORE_GRACE,
    Prove,
    Remember,
    tell_stopped,
    tell_traffic,
    tell_unmoved,
)
from model_release.cluster.dead import and_frozen, death_of, let_go
from model_release.cluster.inference_service import InferenceService, Template
from model_release.cluster.knative.rollout import split
from model_release.cluster.manifest import holds, replacement
from model_release.cluster.progress import Progress, State
from model_release.cluster.release import Release
from model_release.errors import SmokeFailed

if TYPE_CHECKING:
    from model_release.cluster.services import InferenceServices

# Seconds for which the baseline itself may be down, which keeps the route, and with it the proof, from moving on. A
# container that crashes again and again is started again after five minutes at the latest.
BASELINE_GRACE = 330.0


def step(
    services: InferenceServices,
    live: InferenceService,
    release: Release,
    remember: Remember,
    prove: Prove | None,
) -> Progress:
    """At most one write on the way to a settled service. READY when nothing is left to do."""
    if release.promoted and not live.is_split and not _has_stable_template(live, release):
        return _promoted(services, live, release)
    if is_clean(live, release):
        return Progress(State.READY, f"{live.rolled_out} has all of the traffic", live.rolled_out)
    if live.canary_percent != 0:
        return _close(services, live, release, remember)
    return _restore(services, live, release, remember, prove)


def stopped(services: InferenceServices, live: InferenceService, release: Release, told: str) -> Progress | None:
    """See `cluster.settle`: what is in the spec serves when it starts, and that is never to be the canary's. One that
    was started meanwhile is left as it is, unless it has the stable template alone."""
    template = release.stable.template
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
    stable, known = live.rolled_out, release.stable.template is not None
    return (
        stable is not None
        and not live.is_split
        and live.latest_created == live.latest_ready == stable
        and live.gateway == {stable: 100}
        and not release.bars(stable)
        and (_has_stable_template(live, release) if known else stable == release.stable.revision)
    )


def assess_rolled_back(live: InferenceService, release: Release) -> Progress:
    """See `cluster.settle.assess_rolled_back`."""
    stable = release.stable.revision
    told = tell_stopped(live, release.stable.started)
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
        services.patch(live, split(live, None))
    elif live.gateway == {release.canary: 100} and live.rolled_out == release.canary:
        said = f"{release.canary} was promoted and has all of the traffic"
        if dead := death_of(live, str(release.canary)):
            said += f", and{dead.removeprefix(str(release.canary))}"
        return Progress(State.READY, said, release.canary)
    return Progress(State.WAITING, f"{release.canary} was promoted; traffic is still {tell_traffic(live)}")


def _close(services: InferenceServices, live: InferenceService, release: Release, remember: Remember) -> Progress:
    """The spec gives, or may give, traffic to something else than the baseline: 0 %."""
    baseline = release.stable
    restored = _has_stable_template(live, release)
    if restored and not release.bars(live.latest_created) and not (live.is_split or release.bars(live.latest_ready)):
        # The split was just removed from the restored template, or was never there: only the route has to follow.
        return Progress(State.WAITING, f"{live.latest_created} is taking over; traffic is still {tell_traffic(live)}")
    if live.rolled_out == baseline.revision or live.previous_rolled_out == baseline.revision:
        freed = let_go(services, live, release)  # one that died after its promotion
        if isinstance(freed, Progress):
            return freed
        services.patch(live, split(live, 0))
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
    baseline, latest = release.stable, live.latest_created
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
        elif release.insist:
            why = f"{baseline.revision} is gone" if _route_names_what_is_gone(live) else f"{live.frozen_by} is dead"
            said = f"{why}, so {latest}, which has the stable template, cannot be asked and gets nothing"
            return Progress(State.FAILED, f"{said}; {DIRECT}")
    services.patch(live, split(live, None))
    return Progress(State.WAITING, f"{latest} has the stable template and gets all of the traffic", latest)


def _brings_canary(live: InferenceService, release: Release) -> bool:
    """Whether a stopped service would start with something else than the stable template, and that can be mended."""
    stable = release.stable.template
    return stable is not None and (live.is_split or not _has_stable_template(live, release))


def _has_stable_template(live: InferenceService, release: Release) -> bool:
    # Both ways: a canary may be the stable template with one field more, and is not it.
    stable = release.stable.template
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
    template, latest = release.stable.template or {}, live.latest_created
    if latest is not None and not release.bars(latest) and not _has_stable_template(live, release):
        remember(latest)
    services.patch(live, _whole(live, template, 0))
    return Progress(State.WAITING, "the stable template is written back, at 0 %")


def _whole(live: InferenceService, template: Template, percent: int | None) -> dict[str, Any]:
    return {"spec": {"predictor": {**replacement(live.template, template), "canaryTrafficPercent": percent}}}
