"""The way forward in Standard mode: the verbs of `cluster.rollout`, which come here with a `StandardService`.

Stage: an entry of `spec.canary` at 0 %. Shift: its percent. Promote: all of the traffic first, and then, in one write,
its name and content as the stable predictor, which makes its running Deployment the stable one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model_release.cluster.change import ANY, Baseline, Canary, Change, Novelty, tell_traffic
from model_release.cluster.dead import and_frozen
from model_release.cluster.inference_service import InferenceService, Template
from model_release.cluster.manifest import Manifest, holds, replacement, template_of
from model_release.cluster.progress import FAILED_LOAD_GRACE, NOT_READY_GRACE, Progress, State, failure_of
from model_release.cluster.standard.entry import at_percent, canary_entry, content, differences
from model_release.cluster.standard.view import SCALING, StandardService
from model_release.errors import CanaryLost, ClusterRefused, ClusterUnavailable, RevisionFailed

# Seconds for which a ready canary may be missing in the HTTPRoutes: KServe writes them in the same pass.
ROUTE_GRACE = 30.0

# Not ready for these is more than "not ready yet", which PredictorReady says as False, too.
_FAILED = ("ProgressDeadlineExceeded", "ReconcileFailed", "FailedCreate", "ReplicaFailure")


def plan_change(live: StandardService, wanted: Manifest) -> Change:
    """See `cluster.rollout.plan_change`; the service is ours and in the right mode.

    Raises:
        ClusterRefused: the same model with other settings. KServe changes a predictor's name with its model only.
        RevisionFailed: the stable predictor has this template already, and fails.
    """
    if live.rolled_out is None:
        return Change(Novelty.FIRST, f"{live.key} exists and was never ready", live.stable)
    asked = template_of(wanted)
    if live.entry is not None and has_staged(live, wanted):
        return Change(
            Novelty.STAGED, f"{live.key} has this version already, at {live.canary_percent} %", live.latest_created
        )
    if live.stable_template.get("model", {}).get("storageUri") != asked["model"]["storageUri"]:
        return Change(Novelty.NEW, f"{live.key} gets a new canary; {live.stable} serves meanwhile")
    _check_same(live, wanted)
    if live.entry is None and live.model_status.transition in ("BlockedByFailedLoad", "InvalidSpec"):
        raise RevisionFailed(f"{live.key} already has this template, without a canary, and {failure_of(live)}")
    end = "has all of the traffic" if live.serving == {live.stable: 100} else "is stable, but has not all traffic"
    return Change(Novelty.NOTHING, f"nothing new: {live.stable} already has this template and {end}", live.stable)


def _check_same(live: StandardService, wanted: Manifest) -> None:
    asked = {key: value for key, value in template_of(wanted).items() if key != "name"}
    metadata = {key: wanted["metadata"].get(key, {}) for key in ("labels", "annotations")}
    found = {"labels": live.labels, "annotations": live.annotations}
    paths = [f"spec.predictor.{path}" for path in differences(live.stable_template, asked)]
    paths += [f"metadata.{path}" for path in differences(found, metadata)]
    if paths:
        raise ClusterRefused(
            f"{live.key} serves this very version, and differs in {', '.join(sorted(paths))}; in Standard mode KServe "
            "lets a canary take over with another model only: release the change together with the next version, or "
            "make it by hand (kubectl edit)"
        )


def has_staged(live: StandardService, wanted: Manifest) -> bool:
    """Whether the newest predictor is `wanted`'s, by name and content."""
    return live.latest_created == live.service_of(template_of(wanted)["name"]) and _holds(live, wanted)


def _holds(live: StandardService, wanted: Manifest) -> bool:
    """Whether the newest predictor has `wanted`'s content."""
    return holds(content(live.template), content(template_of(wanted)))


def baseline_of(
    live: StandardService,
    wanted: Manifest,
    known: Baseline | None,
) -> Baseline:
    """See `cluster.rollout.baseline_of`.

    Raises:
        ClusterUnavailable: the stable predictor is not ready now; there is nothing to compare a canary with.
    """
    created = None if live.latest_created == live.service_of(template_of(wanted)["name"]) else live.latest_created
    if not live.stable_is_ready:
        raise ClusterUnavailable(
            f"{live.key}: its stable predictor {live.stable} is not ready{live.other_writer()}; a canary has nothing "
            "to stand beside until it is"
        )
    template = stable_template(live, known)
    uri = template.get("model", {}).get("storageUri")
    percent, found = live.canary_percent, live.template_digest
    return Baseline(live.uid, live.stable, template, uri, created, percent, found, live.started)


def stable_template(
    live: StandardService,
    known: Baseline | None,  # noqa: ARG001 -- as `Mode` has it
) -> Template:
    """See `cluster.rollout.stable_template`; it is always in the spec."""
    return live.stable_template


def stage_patch(live: StandardService, wanted: Manifest, change: Change, *, first: bool) -> dict[str, Any] | None:
    """What is left to write until `wanted` stands at 0 % or, `first`, alone; None for nothing.

    The service's size (replicas) is taken over at once: it is no predictor's own.
    """
    asked = template_of(wanted)
    if change.kind is Novelty.NOTHING:
        return None
    if change.kind is Novelty.STAGED:
        return split(live, 0) if live.canary_percent else None
    metadata = {key: wanted["metadata"].get(key, {}) for key in ("labels", "annotations")}
    if first:
        predictor = replacement(live.stable_template, asked)
        same = not differences(live.stable_template, asked) and live.entry is None
        return None if same else {"metadata": metadata, "spec": {"predictor": predictor, "canary": None}}
    size = {key: value for key, value in asked.items() if key in SCALING}
    return {"metadata": metadata, "spec": {"predictor": size, "canary": [canary_entry(live, asked)]}}


def check_kept(dry_run: Callable[[], InferenceService], wanted: Manifest) -> None:
    """Nothing, when a dry run shows that the API server keeps the name and the canary.

    Raises:
        ClusterRefused: it prunes them: KServe's CRD is older than 0.20.
    """
    answered = dry_run()
    name, spec = template_of(wanted)["name"], answered.raw["spec"]
    named = [one.get("predictor", {}).get("name") for one in spec.get("canary") or []]
    if name not in (spec["predictor"].get("name"), *named):
        raise ClusterRefused(
            f"{answered.key}: the API server drops the predictor's name, so this KServe is older than 0.20 and would "
            "move all traffic at once; a canary in Standard mode needs KServe 0.21 (0.20 sets no weights), or "
            "service.mode: knative, on a service made anew"
        )


def assess_staged(live: StandardService, wanted: Manifest, baseline: Baseline) -> Progress:
    """See `cluster.rollout.assess_staged`. FAILING with a grace also where a ready canary has no place in the
    HTTPRoutes: KServe 0.20 keeps the canary and never gives it a share."""
    revision, name = live.latest_created, live.service_of(template_of(wanted)["name"])
    if baseline.revision is None:
        return _assess_first(live, name)
    if live.entry is None and live.stable == name:
        if name == baseline.revision:
            return Progress(State.FAILED, f"nothing to stage: {name} already serves this version", name)
        if live.serving == {name: 100}:
            return Progress(State.READY, f"{name} already has all of the traffic", name)
        return Progress(State.WAITING, f"{name} is taking over; traffic {tell_traffic(live)}", name)
    if live.entry is None or not has_staged(live, wanted):
        return Progress(State.LOST, f"{live.key} no longer has the staged canary {name}{live.other_writer()}")
    if live.stable != baseline.revision:
        return Progress(State.LOST, f"{live.key} has another stable predictor, {live.stable}{live.other_writer()}")
    if live.canary_percent:
        return Progress(
            State.LOST, f"{live.key} was opened to {live.canary_percent} % by another hand{live.other_writer()}"
        )
    if trouble := trouble_of(live):
        return trouble
    if not live.canary_is_ready:
        return Progress(State.WAITING, f"{revision} is starting", revision)
    if live.traffic == {live.stable: 100, revision: 0}:
        return Progress(State.READY, f"{revision} is ready; traffic {tell_traffic(live)}", revision)
    if live.traffic == {live.stable: 100} or not live.routes:
        return Progress(
            State.FAILING,
            f"{revision} is ready, and KServe gives it no place in the HTTPRoutes of {live.key}: it is 0.20, which "
            "sets no weights, or its enableGatewayApi is off; a canary in Standard mode needs KServe 0.21 with the "
            "Gateway API",
            revision,
            ROUTE_GRACE,
        )
    return Progress(State.WAITING, f"{revision} is ready, its route is not yet", revision)


def _assess_first(live: StandardService, name: str) -> Progress:
    if live.entry is not None or live.stable != name:
        return Progress(State.LOST, f"{live.key} no longer has the staged predictor {name}{live.other_writer()}")
    if trouble := trouble_of(live):
        return trouble
    if not live.stable_is_ready:
        return Progress(State.WAITING, f"{name} is starting ({live.model_status.target or 'no state yet'})", name)
    # modelStatus is not asked, as in Knative mode: it can stay behind for good, and the smoke prediction tells.
    if not live.ready or live.serving != {name: 100}:
        return Progress(State.WAITING, f"{name} is ready, its route is not yet", name)
    return Progress(State.READY, f"{name} is ready; traffic {tell_traffic(live)}", name)


def trouble_of(live: StandardService) -> Progress | None:
    """A sign of failure with KServe's own words. "Not available" alone is none: each start says so."""
    status, predictor = live.model_status, live.conditions.get("PredictorReady")
    if status.transition in ("InvalidSpec", "BlockedByFailedLoad"):
        return Progress(
            State.FAILING, f"{live.latest_created} {failure_of(live)}", live.latest_created, FAILED_LOAD_GRACE
        )
    if predictor is not None and predictor.status == "False" and predictor.reason in _FAILED:
        said = f"{live.stable} is not ready: {predictor.message or predictor.reason}"
        return Progress(State.FAILING, said, live.latest_created, NOT_READY_GRACE)
    return None


def split(live: StandardService, percent: int) -> dict[str, Any]:
    """The patch that gives the canary `percent`. A list is written in whole: others' entries go with it."""
    return {"spec": {"canary": [at_percent(live, live.canaries[0], percent)]}}


def promotion(live: StandardService) -> dict[str, Any] | None:
    """The next write of a promotion; None while the traffic has to move first, or when all is done.

    KServe deletes the former stable Deployment as soon as the name is another's, and the gateway hears of it after
    that. So it gets no traffic any more by then.
    """
    if live.entry is None:
        return None
    if live.canary_percent != 100:
        return split(live, 100)
    if live.serving != {live.latest_created: 100}:
        return None
    return {"spec": {"predictor": replacement(live.stable_template, live.template), "canary": None}}


def assess_promoted(live: StandardService, canary: Canary) -> Progress:
    """See `cluster.rollout.assess_promoted`."""
    if not live.is_at_rest:
        return Progress(State.WAITING, f"{canary.revision} takes over; traffic {tell_traffic(live)}", canary.revision)
    if live.gateway == {canary.revision: 100} and live.rolled_out == canary.revision:
        return Progress(State.READY, f"{canary.revision} has all of the traffic", canary.revision)
    return Progress(State.WAITING, and_frozen("the traffic has not moved yet", live), canary.revision)


def check_untouched(live: StandardService, canary: Canary, percent: int | None = ANY) -> None:
    """See `cluster.rollout.check_untouched`; it is the object that was claimed."""
    where, by = f"{canary.namespace}/{canary.name}", live.other_writer()
    newest, _, _ = canary.template.partition("/")
    if live.entry is None:
        _check_promoted(live, canary, percent)
        if live.template_digest != newest:
            raise CanaryLost(f"the template of {where} is not the one that was staged{by}")
        return
    if len(live.canaries) != 1 or live.latest_created != canary.revision:
        names = ", ".join(live.service_of(one["predictor"].get("name")) for one in live.canaries)
        raise CanaryLost(f"{where} has {names} as its canary instead of {canary.revision}{by}")
    if live.stable != canary.baseline:
        raise CanaryLost(f"{where} splits with {live.stable} instead of {canary.baseline}{by}")
    if live.template_digest != canary.template:
        raise CanaryLost(f"the template of {where} is not the one that was staged{by}")
    if percent != ANY and live.canary_percent != (100 if percent is None else percent):
        asked = "promoted" if percent is None else f"at {percent} %"
        raise CanaryLost(f"{canary.revision} should be {asked}; the spec says {live.canary_percent} %{by}")
    if percent == ANY and not live.is_split:
        raise CanaryLost(f"the split of {where} was removed: {canary.revision} takes everything{by}")


def death_of(live: StandardService, canary: str) -> str | None:
    """See `cluster.rollout.death_of`; the canary is the newest predictor."""
    if live.entry is None or live.canary_is_ready is not False:
        return None
    said = live.failure[0] if live.failure else ""
    return f"{canary} is dead: {said or 'no replica of it is available'}"


def _check_promoted(live: StandardService, canary: Canary, percent: int | None) -> None:
    where, by = f"{canary.namespace}/{canary.name}", live.other_writer()
    if live.stable != canary.revision:
        raise CanaryLost(
            f"the canary {canary.revision} was taken out of the spec of {where}; {live.stable} is stable{by}"
        )
    if canary.baseline is None or percent is None:
        return
    if percent != ANY:
        raise CanaryLost(f"{canary.revision} should be at {percent} %; it is the stable predictor{by}")
    raise CanaryLost(f"the split of {where} was removed: {canary.revision} takes everything{by}")
