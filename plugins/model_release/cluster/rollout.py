"""The way forward: plan, stage at 0 %, open, shift, promote.

Each verb reads the live state, does what is left to do in at most one write, and may be called again at any time.
Each write has a pure `assess_…` that tells from a later read whether it took effect, by the **names** of revisions:
KServe updates status some time after the write, says Ready for the old state meanwhile, and calls the revision that
was ready last "latest" (docs/facts.md#status-lags-behind-spec).

This is Knative mode. A service in Standard mode is read as a `StandardService`, and goes to `standard.rollout`, where
the same verbs hold.
"""

from __future__ import annotations

from typing import Any

from model_release.cluster.change import ANY, Baseline, Canary, Change, Kind, tell_stopped, tell_traffic, tell_unmoved
from model_release.cluster.dead import and_frozen
from model_release.cluster.inference_service import STOP, InferenceService, InferenceServices, Template
from model_release.cluster.manifest import (
    MANAGED_BY,
    Manifest,
    holds,
    matches,
    mode_of,
    replacement,
    template_of,
    without_none,
)
from model_release.cluster.objects import retrying
from model_release.cluster.progress import Progress, State, failure_of, trouble_of
from model_release.cluster.standard import rollout as standard
from model_release.cluster.standard.view import StandardService
from model_release.errors import (
    CanaryLost,
    ClusterRefused,
    ClusterUnavailable,
    ForeignService,
    RevisionFailed,
    SpecError,
)

__all__ = [
    "ANY",
    "Baseline",
    "Canary",
    "Change",
    "Kind",
    "assess_promoted",
    "assess_split",
    "assess_staged",
    "baseline_of",
    "canary_of",
    "check_ours",
    "check_untouched",
    "plan_change",
    "promote",
    "shift",
    "stage",
    "tell_traffic",
]


def plan_change(live: InferenceService | None, wanted: Manifest) -> Change:
    """What a release of `wanted` would have to do. Reads only; may be asked at any stage.

    Raises:
        ForeignService: it exists and does not carry our label.
        ClusterRefused: it does not run in the manifest's mode; in Standard mode, KServe has no canary for this change.
        ClusterUnavailable: it is being deleted; passes by itself.
        RevisionFailed: the same template was already rolled out without a canary, by another hand, and fails.
    """
    if live is None:
        return Change(Kind.FIRST, f"{_key(wanted)} does not exist yet and will be created")
    check_ours(live, mode_of(wanted))
    if isinstance(live, StandardService):
        return standard.plan_change(live, wanted)
    revision, percent = live.latest_created, live.canary_percent
    if live.rolled_out is None:
        return Change(Kind.FIRST, f"{live.key} exists and no revision of it was ever ready", revision)
    if not matches(live, wanted):
        return Change(Kind.NEW, f"{live.key} gets a new template; {live.rolled_out} serves meanwhile")
    if not live.is_split:
        if live.model_status.transition in ("BlockedByFailedLoad", "InvalidSpec"):
            raise RevisionFailed(f"{live.key} already has this template, without a canary, and {failure_of(live)}")
        end = "has all of the traffic" if live.serving == {revision: 100} else "is taking over all of the traffic"
        return Change(Kind.NOTHING, f"nothing new: {revision} already has this template and {end}", revision)
    staged = revision if revision != live.rolled_out else None
    return Change(Kind.STAGED, f"{live.key} already has this template, at {percent} %", staged)


def check_ours(live: InferenceService, mode: str = "Knative") -> None:
    """Refuse a service that is another's, in another mode, or on its way out (errors: see `plan_change`)."""
    label, value = MANAGED_BY
    if live.labels.get(label) != value:
        raise ForeignService(
            f"InferenceService {live.key} exists and was not made by this project; to hand it over: "
            f"kubectl label inferenceservice -n {live.namespace} {live.name} {label}={value} "
            "(makes a new revision of the same model), or name another service in the model file"
        )
    if live.deployment_mode not in (None, mode):
        raise ClusterRefused(
            f"InferenceService {live.key} runs in {live.deployment_mode} mode, and the model file asks for {mode}; "
            "KServe never changes the mode of a service: name another service, or, if it splits as the model file's "
            "service.mode says (standard: KServe from 0.21 on), say so there"
        )
    if live.is_stopped:
        raise ClusterRefused(
            f"InferenceService {live.key} is stopped, and revisions count anew when it starts; start it first: "
            f"kubectl annotate inferenceservice -n {live.namespace} {live.name} {STOP}-"
        )
    if live.being_deleted:
        raise ClusterUnavailable(f"InferenceService {live.key} is being deleted; wait until it is gone")


def baseline_of(live: InferenceService | None, wanted: Manifest, known: Baseline | None = None) -> Baseline:
    """The baseline, as the claim records it before any write.

    When an earlier release left its canary's template in the spec, the serving revision's own template is taken from
    `known`, the baseline that the lease last carried, if that is of the same revision.

    Raises:
        ClusterUnavailable: the service is in the midst of a roll-out; which revision is stable, is not settled yet.
        ClusterRefused: it is stopped, or exists and no revision of it was ever ready: it is no first deployment.
    """
    if live is None:
        return Baseline()
    if live.is_stopped:
        check_ours(live, mode_of(wanted))
    if live.rolled_out is None:
        raise ClusterRefused(
            f"InferenceService {live.key} exists, and no revision of it was ever ready: there is nothing to compare "
            "with and to go back to; see that it serves, or delete it, and release then"
        )
    if isinstance(live, StandardService):
        return standard.baseline_of(live, wanted)
    created = None if matches(live, wanted) else live.latest_created
    if not live.is_split and live.latest_ready != live.rolled_out:
        raise ClusterUnavailable(
            f"InferenceService {live.key} is in the midst of a roll-out from {live.rolled_out} to {live.latest_ready}"
            f"{live.other_writer()}; which of them is stable is known when it ends"
        )
    template: Template | None = None
    if live.latest_created == live.rolled_out:
        template = live.template
    elif (
        known is not None
        and (known.uid, known.revision) == (live.uid, live.rolled_out)
        and not tell_stopped(live, known.started)
    ):
        template = known.template
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


def stage(
    services: InferenceServices, wanted: Manifest, baseline: Baseline, template: str | None = None
) -> InferenceService:
    """Bring `wanted` into the cluster without giving it a user's request: created, or as a new template at 0 %.

    Template and 0 % are one write; a leftover canary of an earlier release loses its traffic by it. Again: nothing
    is written that is there; a canary of this template that was already opened goes back to 0 %; one that was
    promoted stays promoted. (On a first deployment there is no split: the revision takes 100 % when it is ready.)

    Args:
        template: the `template_digest` of what an earlier try wrote, where that is on record.

    Raises:
        CanaryLost: the service that was claimed is gone, was made anew, or got another template by another hand.
        As `plan_change`; ClusterUnavailable when nothing could be written.
    """
    namespace, name = wanted["metadata"]["namespace"], wanted["metadata"]["name"]
    in_standard_mode = mode_of(wanted) == "Standard"

    def attempt() -> InferenceService:
        live = services.get(namespace, name)
        if live is None:
            if baseline.uid is not None:
                raise CanaryLost(f"InferenceService {namespace}/{name} was deleted after it was claimed")
            if in_standard_mode:
                standard.check_kept(services.create(without_none(wanted), dry_run=True), wanted)
            return services.create(without_none(wanted))
        if baseline.uid not in (None, live.uid):
            raise CanaryLost(f"InferenceService {live.key} was deleted and made anew after it was claimed")
        if told := tell_stopped(live, baseline.started):
            raise CanaryLost(f"{told}, after it was claimed")
        # What is there although nothing was when the service was claimed, an earlier try left, and nobody proved.
        patch = _stage_patch(live, wanted, first=live.rolled_out is None or baseline.uid is None)
        _check_ours_or_as_claimed(live, wanted, baseline, template)
        if isinstance(live, StandardService) and patch is not None:
            standard.check_kept(services.patch(live, patch, dry_run=True), wanted)
        return live if patch is None else services.patch(live, patch)

    return retrying(attempt)


def _check_ours_or_as_claimed(
    live: InferenceService, wanted: Manifest, baseline: Baseline, template: str | None
) -> None:
    """A stage that is run again finds what it wrote, or what was there when the service was claimed. Anything else is
    another hand's, and not to be written over. The spec shows such a hand at once; a new revision shows one that was
    there already when the service was claimed, and that KServe had not acted on."""
    if live.template_digest == baseline.found and live.latest_created in (None, baseline.revision, baseline.created):
        return
    if not _is_as_staged(live, wanted, template):
        raise CanaryLost(f"InferenceService {live.key} got another template after it was claimed{live.other_writer()}")


def _is_as_staged(live: InferenceService, wanted: Manifest, template: str | None) -> bool:
    """Whether the spec has what `stage` wrote: to the letter where that is on record, else all that was wanted."""
    if template is not None:
        promoted, _, _ = template.partition("/")  # Standard mode names the stable predictor's too, until a promotion
        return live.template_digest in (template, promoted)
    if isinstance(live, StandardService):
        return standard.has_staged(live, wanted)
    return matches(live, wanted)


def _stage_patch(live: InferenceService, wanted: Manifest, *, first: bool) -> dict[str, Any] | None:
    """`first`: no revision is there that the new one could stand beside, and it takes over when it is ready."""
    change = plan_change(live, wanted)
    if isinstance(live, StandardService):
        return standard.stage_patch(live, wanted, change, first=first)
    if change.kind is Kind.NOTHING or (first and matches(live, wanted)):
        return None
    if change.kind is Kind.STAGED:
        return {"spec": {"predictor": {"canaryTrafficPercent": 0}}} if live.canary_percent else None
    predictor = replacement(live.template, template_of(wanted))
    predictor["canaryTrafficPercent"] = None if first else 0
    metadata = {key: wanted["metadata"].get(key, {}) for key in ("labels", "annotations")}
    return {"metadata": metadata, "spec": {"predictor": predictor}}


def assess_staged(
    live: InferenceService | None, wanted: Manifest, baseline: Baseline, template: str | None = None
) -> Progress:
    """Whether the staged revision is ready at 0 %, with the baseline at 100 (docs/facts.md#status-lags-behind-spec).

    READY names the revision. FAILING and FAILED carry KServe's own message. LOST where another hand was there; with
    `template`, the `template_digest` of what `stage` left, also where it only added something.
    """
    if live is None:
        return Progress(State.LOST, f"InferenceService {_key(wanted)} was deleted")
    if baseline.uid not in (None, live.uid):
        return Progress(State.LOST, f"InferenceService {live.key} was deleted and made anew")
    if told := tell_stopped(live, baseline.started):
        return Progress(State.LOST, told)
    if template is not None and not _is_as_staged(live, wanted, template):
        return Progress(State.LOST, f"{live.key} no longer has what was staged{live.other_writer()}")
    if isinstance(live, StandardService):
        return standard.assess_staged(live, wanted, baseline)
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


def canary_of(live: InferenceService, baseline: Baseline) -> Canary:
    """What was staged, once `assess_staged` said READY of this same read."""
    if live.latest_created in (None, baseline.revision):
        raise CanaryLost(f"{live.key} has no revision beside {baseline.revision}")
    return Canary(
        live.namespace, live.name, live.uid, live.latest_created, baseline.revision, live.template_digest, live.started
    )


def shift(services: InferenceServices, canary: Canary, percent: int) -> InferenceService:
    """Give the canary `percent` of the traffic, and the baseline the rest. Again: no write.

    Raises:
        SpecError: percent is not 1 to 99, or the canary is a first deployment.
        CanaryLost: what is live is not this canary beside this baseline (see `check_untouched`).
    """
    if not 1 <= percent <= 99:
        raise SpecError(f"{percent} % is no step of a canary; 1 to 99 are (0 is a roll-back, 100 a promotion)")
    if canary.baseline is None:
        raise SpecError(f"{canary.revision} is a first deployment: there is nothing to share the traffic with")

    def decide(live: InferenceService) -> dict[str, Any] | None:
        check_untouched(live, canary)
        if live.canary_percent == percent:
            return None
        if isinstance(live, StandardService):
            return standard.split(live, percent)
        return {"spec": {"predictor": {"canaryTrafficPercent": percent}}}

    return services.change(canary.namespace, canary.name, decide)


def assess_split(live: InferenceService | None, canary: Canary, percent: int) -> Progress:
    """Whether the traffic is split as asked, by name."""
    try:
        check_untouched(live, canary, percent)
    except CanaryLost as lost:
        return Progress(State.LOST, str(lost), canary.revision)
    if live is None or canary.baseline is None:
        return Progress(State.LOST, f"{canary.revision} is a first deployment: there is no split", canary.revision)
    if live.gateway == {canary.revision: percent, canary.baseline: 100 - percent} and live.ready:
        return Progress(State.READY, f"traffic {tell_traffic(live)}", canary.revision)
    said = f"{tell_unmoved(live)}; {percent} % asked for"
    return Progress(State.WAITING, and_frozen(said, live), canary.revision)


def promote(services: InferenceServices, canary: Canary, percent: int) -> InferenceService:
    """Give the canary everything by removing the split. Again: no write. In Standard mode two writes and the time
    between them (`standard.rollout.take_over`).

    Args:
        percent: the share at which the canary was judged; it must still have it.

    Raises:
        CanaryLost: what is live is not what was judged.
    """

    def decide(live: InferenceService) -> dict[str, Any] | None:
        if live.canary_percent is None:
            check_untouched(live, canary, None)
            return None
        check_untouched(live, canary, None if live.canary_percent == 100 else percent)
        if isinstance(live, StandardService):
            return standard.promotion(live)
        return {"spec": {"predictor": {"canaryTrafficPercent": None}}}

    promoted = services.change(canary.namespace, canary.name, decide)
    return standard.take_over(services, promoted, decide) if isinstance(promoted, StandardService) else promoted


def assess_promoted(live: InferenceService | None, canary: Canary) -> Progress:
    """Whether the canary has 100 % and KServe counts it as rolled out."""
    try:
        check_untouched(live, canary, None)
    except CanaryLost as lost:
        return Progress(State.LOST, str(lost), canary.revision)
    if isinstance(live, StandardService) and not live.is_at_rest:
        return Progress(State.WAITING, f"{canary.revision} takes over; traffic {tell_traffic(live)}", canary.revision)
    if live is not None and live.gateway == {canary.revision: 100} and live.rolled_out == canary.revision:
        return Progress(State.READY, f"{canary.revision} has all of the traffic", canary.revision)
    said = "the traffic has not moved yet"
    return Progress(State.WAITING, said if live is None else and_frozen(said, live), canary.revision)


def check_untouched(live: InferenceService | None, canary: Canary, percent: int | None = ANY) -> None:
    """Nothing, when the live service still is what this release opened: object, template, revision, baseline, split.

    Args:
        percent: what the spec must ask for; None for "promoted, no split"; left out, any share will do.

    Raises:
        CanaryLost: naming what changed and, from managedFields, who changed it.
    """
    where = f"{canary.namespace}/{canary.name}"
    if live is None:
        raise CanaryLost(f"InferenceService {where} was deleted")
    by = live.other_writer()
    if live.uid != canary.uid:
        raise CanaryLost(f"InferenceService {where} was deleted and made anew{by}")
    if told := tell_stopped(live, canary.started):
        raise CanaryLost(told)
    if isinstance(live, StandardService):
        standard.check_untouched(live, canary, percent)
        return
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


def _key(wanted: Manifest) -> str:
    return f"{wanted['metadata']['namespace']}/{wanted['metadata']['name']}"
