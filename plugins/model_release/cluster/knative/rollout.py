"""The way forward in Knative mode: the verbs of `cluster.rollout`, which come here with a service of this mode.

KServe updates status some time after a write, says Ready for the old state meanwhile, and calls the revision that was
ready last "latest" (docs/facts.md#status-lags-behind-spec); so everything is told by the **names** of revisions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model_release.cluster.change import ANY, Baseline, Canary, Change, Novelty, tell_stopped, tell_traffic
from model_release.cluster.dead import and_frozen
from model_release.cluster.inference_service import InferenceService, Template
from model_release.cluster.manifest import Manifest, holds, matches, replacement, template_of
from model_release.cluster.progress import Progress, State, failure_of, trouble_of
from model_release.errors import CanaryLost, ClusterUnavailable, RevisionFailed


def plan_change(live: InferenceService, wanted: Manifest) -> Change:
    """See `cluster.rollout.plan_change`; the service is ours and in the right mode."""
    revision, percent = live.latest_created, live.canary_percent
    if live.rolled_out is None:
        return Change(Novelty.FIRST, f"{live.key} exists and no revision of it was ever ready", revision)
    if not matches(live, wanted):
        return Change(Novelty.NEW, f"{live.key} gets a new template; {live.rolled_out} serves meanwhile")
    if not live.is_split:
        if live.model_status.transition in ("BlockedByFailedLoad", "InvalidSpec"):
            raise RevisionFailed(f"{live.key} already has this template, without a canary, and {failure_of(live)}")
        end = "has all of the traffic" if live.serving == {revision: 100} else "is taking over all of the traffic"
        return Change(Novelty.NOTHING, f"nothing new: {revision} already has this template and {end}", revision)
    staged = revision if revision != live.rolled_out else None
    return Change(Novelty.STAGED, f"{live.key} already has this template, at {percent} %", staged)


def baseline_of(live: InferenceService, wanted: Manifest, known: Baseline | None) -> Baseline:
    """See `cluster.rollout.baseline_of`. When an earlier release left its canary's template in the spec, the serving
    revision's own is taken from `known`, if that is of the same revision."""
    created = None if matches(live, wanted) else live.latest_created
    if not live.is_split and live.latest_ready != live.rolled_out:
        raise ClusterUnavailable(
            f"InferenceService {live.key} is in the midst of a roll-out from {live.rolled_out} to {live.latest_ready}"
            f"{live.other_writer()}; which of them is stable is known when it ends"
        )
    template = stable_template(live, known)
    return Baseline(
        uid=live.uid,
        revision=live.rolled_out,
        template=template,
        storage_uri=(template or {}).get("model", {}).get("storageUri"),
        created=created,
        percent=live.canary_percent,
        found=live.template_digest,
        started=live.started,
    )


def stable_template(live: InferenceService, known: Baseline | None) -> Template | None:
    """See `cluster.rollout.stable_template`."""
    if live.latest_created == live.rolled_out:
        return live.template
    if known is None or (known.uid, known.revision) != (live.uid, live.rolled_out):
        return None
    return None if tell_stopped(live, known.started) else known.template


has_staged = matches


def check_kept(dry_run: Callable[[], InferenceService], wanted: Manifest) -> None:
    """Every KServe of this mode keeps what is asked for."""


def stage_patch(live: InferenceService, wanted: Manifest, change: Change, *, first: bool) -> dict[str, Any] | None:
    """What is left to write until `wanted` stands at 0 % or, `first`, alone; None for nothing."""
    if change.kind is Novelty.NOTHING or (first and matches(live, wanted)):
        return None
    if change.kind is Novelty.STAGED:
        return split(live, 0) if live.canary_percent else None
    predictor = replacement(live.template, template_of(wanted))
    predictor["canaryTrafficPercent"] = None if first else 0
    metadata = {key: wanted["metadata"].get(key, {}) for key in ("labels", "annotations")}
    return {"metadata": metadata, "spec": {"predictor": predictor}}


def assess_staged(live: InferenceService, wanted: Manifest, baseline: Baseline) -> Progress:
    """See `cluster.rollout.assess_staged`."""
    if not holds(live.template, template_of(wanted)):
        return Progress(State.LOST, f"{live.key} no longer has the staged template{live.other_writer()}")
    if baseline.revision is not None:
        if live.prev_revision not in (None, baseline.revision):
            return _wrong_baseline(live, baseline.revision)
        if live.canary_percent != 0 and live.rolled_out == baseline.revision:
            return Progress(
                State.LOST, f"{live.key} was opened to {live.canary_percent} % by another hand{live.other_writer()}"
            )
    revision = live.latest_created
    if baseline.revision is not None and not live.is_split and live.gateway == {revision: 100}:
        if revision != baseline.revision:
            return Progress(State.READY, f"{revision} already has all of the traffic", revision)
        if baseline.created is None:
            return Progress(State.FAILED, f"nothing to stage: {revision} already serves this template", revision)
    if revision is None or revision in (baseline.revision, baseline.created):
        return trouble_of(live, None) or Progress(State.WAITING, f"{live.key}: no new revision yet")
    if trouble := trouble_of(live, revision):
        return trouble
    if live.latest_ready != revision:
        return Progress(
            State.WAITING, f"{revision} is starting ({live.model_status.target or 'no state yet'})", revision
        )
    expected = {revision: 100} if baseline.revision is None else {baseline.revision: 100}
    if live.gateway != expected or not live.ready:
        # modelStatus is not asked: it can stay InProgress for good (kserve/kserve#3686). The smoke prediction tells.
        return Progress(State.WAITING, and_frozen(f"{revision} is ready, its route is not yet", live), revision)
    return Progress(State.READY, f"{revision} is ready; traffic {tell_traffic(live)}", revision)


def split(live: InferenceService, percent: int | None) -> dict[str, Any]:  # noqa: ARG001 -- as `Mode` has it
    """The patch that gives the latest revision `percent`; None: everything, and no split."""
    return {"spec": {"predictor": {"canaryTrafficPercent": percent}}}


def promotion(live: InferenceService) -> dict[str, Any] | None:
    """The patch that removes the split; None when there is none."""
    return None if live.canary_percent is None else split(live, None)


def assess_promoted(live: InferenceService, canary: Canary) -> Progress:
    """See `cluster.rollout.assess_promoted`."""
    if live.gateway == {canary.revision: 100} and live.rolled_out == canary.revision:
        return Progress(State.READY, f"{canary.revision} has all of the traffic", canary.revision)
    return Progress(State.WAITING, and_frozen("the traffic has not moved yet", live), canary.revision)


def check_untouched(live: InferenceService, canary: Canary, percent: int | None = ANY) -> None:
    """See `cluster.rollout.check_untouched`; it is the object that was claimed."""
    where, by = f"{canary.namespace}/{canary.name}", live.other_writer()
    if live.template_digest != canary.template:
        raise CanaryLost(f"the template of {where} is not the one that was staged{by}")
    if live.latest_created != canary.revision or live.latest_ready != canary.revision:
        raise CanaryLost(f"{where} has another revision, {live.latest_created}, after {canary.revision}{by}")
    if percent != ANY and live.canary_percent not in ({None, 100} if percent is None else {percent}):
        asked = "promoted" if percent is None else f"at {percent} %"
        raise CanaryLost(f"{canary.revision} should be {asked}; the spec says {live.canary_percent} %{by}")
    if percent == ANY and canary.baseline is not None and not live.is_split:
        raise CanaryLost(f"the split of {where} was removed: {canary.revision} takes everything{by}")
    if live.is_split and live.prev_revision not in (None, canary.baseline):
        raise CanaryLost(f"{where} splits with {live.prev_revision} instead of {canary.baseline}{by}")


def _wrong_baseline(live: InferenceService, baseline: str) -> Progress:
    return Progress(
        State.WRONG_BASELINE,
        f"{live.key} shares its traffic with {live.prev_revision} and not with {baseline}: KServe took the new "
        f"template for a late roll-back; {baseline}'s content is to be brought back before a release begins anew",
        live.latest_created,
    )
