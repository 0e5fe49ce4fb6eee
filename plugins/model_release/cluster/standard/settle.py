"""The way back in Standard mode: the steps of `cluster.settle`, which come here with a `StandardService`.

While the baseline's Deployment stands, 0 % is the roll-back, and the entry goes once the gateway has acted. After a
promotion nothing keeps the baseline's Deployment: its version is staged as a canary, proven, and promoted by the same
two writes as any other; what was promoted serves meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_release.cluster.change import RESTORE_GRACE, Prove, Remember, tell_stopped, tell_traffic
from model_release.cluster.inference_service import Template
from model_release.cluster.manifest import holds, predictor_name, replacement
from model_release.cluster.progress import Progress, State
from model_release.cluster.release import Release
from model_release.cluster.standard.entry import canary_entry, content
from model_release.cluster.standard.rollout import promotion, split, trouble_of
from model_release.cluster.standard.view import SCALING, StandardService
from model_release.errors import SmokeFailed

if TYPE_CHECKING:
    from model_release.cluster.services import InferenceServices


def step(
    services: InferenceServices,
    live: StandardService,
    release: Release,
    remember: Remember,  # noqa: ARG001 -- as `Mode` has it
    prove: Prove | None,
) -> Progress:
    """At most one write on the way to a settled service. READY when nothing is left to do."""
    baseline = release.stable
    if release.promoted and (told := _promoted(services, live, release)):
        return told
    if is_clean(live, release):
        return Progress(State.READY, f"{live.stable} has all of the traffic", live.stable)
    if live.stable == baseline.revision:
        return _close(services, live, release)
    return _restore(services, live, release, prove)


def stopped(
    services: InferenceServices,  # noqa: ARG001 -- as `Mode` has it
    live: StandardService,
    release: Release,  # noqa: ARG001 -- as `Mode` has it
    told: str,
) -> Progress | None:
    """See `cluster.settle`: a start opens the canary again, and names stay. The steps take its share away."""
    if live.is_stopped and not live.canary_percent:
        return Progress(State.READY, f"{told}; it starts without traffic on a canary")
    return None


def is_clean(live: StandardService, release: Release) -> bool:
    """No canary, and one proven predictor that has everything: the baseline, or its content under a newer name."""
    known = release.stable.template
    return (
        live.is_at_rest
        and live.serving == {live.stable: 100}
        and live.stable != release.canary
        and (holds(_all_of(live.stable_template), _all_of(known)) if known else live.stable == release.stable.revision)
    )


def assess_rolled_back(live: StandardService, release: Release) -> Progress:
    """See `cluster.settle.assess_rolled_back`."""
    if live.is_stopped and not live.canary_percent:
        return Progress(State.LOST, tell_stopped(live, None))
    stable = release.stable.revision
    if is_clean(live, release) or (live.serving == {stable: 100} and live.stable == stable and not live.canary_percent):
        return Progress(State.READY, f"{live.stable} has all of the traffic", live.stable)
    return Progress(State.WAITING, f"traffic is still {tell_traffic(live)}")


def _promoted(services: InferenceServices, live: StandardService, release: Release) -> Progress | None:
    """None when the promotion was never begun: then it is rolled back."""
    canary = release.canary
    if live.entry is not None and live.latest_created == canary and live.canary_percent == 100:
        if patch := promotion(live):
            services.patch(live, patch)
        return Progress(State.WAITING, f"{canary} takes over; traffic is still {tell_traffic(live)}")
    if live.stable == canary and live.entry is None:
        if live.is_at_rest and live.serving == {canary: 100}:
            return Progress(State.READY, f"{canary} was promoted and has all of the traffic", canary)
        return Progress(State.WAITING, f"{canary} was promoted; traffic is still {tell_traffic(live)}")
    if live.stable not in (canary, release.stable.revision):
        said = f"{canary} was promoted, and {live.stable} came after it{live.other_writer()}"
        return Progress(State.FAILED, said)
    return None


def _close(services: InferenceServices, live: StandardService, release: Release) -> Progress:
    """The baseline stands: the canary loses its traffic, then its place."""
    known = release.stable.template
    if live.canary_percent:
        services.patch(live, split(live, 0))
        return Progress(State.WAITING, f"set to 0 %; {live.stable} gets all of the traffic")
    if live.entry is not None and live.serving != {live.stable: 100}:
        return Progress(State.WAITING, f"traffic is still {tell_traffic(live)}")
    back = replacement(live.stable_template, known) if known else {}
    if live.entry is None and not (known and not holds(_all_of(live.stable_template), _all_of(known))):
        return Progress(State.WAITING, f"the canary is gone; traffic {tell_traffic(live)}")
    services.patch(live, {"spec": {"predictor": back, "canary": None}})
    return Progress(State.WAITING, f"the canary is taken out; {live.stable} has all of the traffic")


def _restore(services: InferenceServices, live: StandardService, release: Release, prove: Prove | None) -> Progress:
    """Another predictor is stable: the baseline's version again, by its name, as the canary and then as the stable."""
    known = release.stable.template
    if known is None:
        said = f"{release.stable.revision} is gone, and its template is not on record; release its version anew"
        return Progress(State.FAILED, said)
    if live.entry is None and live.stable != release.canary and holds(_all_of(live.stable_template), _all_of(known)):
        # It was stable by another name before; only the routes have to follow.
        return Progress(State.WAITING, f"{live.stable} has the stable version; traffic is still {tell_traffic(live)}")
    wanted = _named(live, known)
    if live.entry is None or not holds(content(live.template), content(wanted)):
        size = {key: value for key, value in wanted.items() if key in SCALING}
        services.patch(live, {"spec": {"predictor": size, "canary": [canary_entry(live, wanted)]}})
        return Progress(State.WAITING, "the stable version is staged again, at 0 %")
    latest = live.latest_created
    if not live.canary_is_ready:
        return trouble_of(live) or Progress(
            State.WAITING, f"the stable version is back at 0 %; {latest} is not ready yet"
        )
    if latest not in live.traffic:
        return Progress(State.WAITING, f"{latest} is ready at 0 %, its route is not yet", latest)
    if prove is not None and not live.canary_percent:
        try:
            prove(live)
        except SmokeFailed as error:
            said = f"the stable version is back at 0 %; {latest} is not proven: {error}"
            return Progress(State.FAILING, said, latest, RESTORE_GRACE)
    if patch := promotion(live):
        services.patch(live, patch)
    return Progress(State.WAITING, f"{latest} has the stable version and gets all of the traffic", latest)


def _named(live: StandardService, known: Template) -> Template:
    """The baseline's template with a name, which a canary must have; one made by hand may have had none."""
    name = known.get("name")
    if name and live.service_of(name) != live.stable:
        return known
    return {**known, "name": predictor_name(live.name, str(known["model"]["storageUri"]))}


def _all_of(template: Template) -> dict[str, Any]:
    """A template but for its name."""
    return {key: value for key, value in template.items() if key != "name"}
