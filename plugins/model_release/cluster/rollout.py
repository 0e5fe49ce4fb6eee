"""The way forward: plan, stage at 0 %, open, shift, promote.

Each verb reads the live state, does what is left to do in at most one write, and may be called again at any time.
Each write has a pure `assess_…` that tells from a later read whether it took effect, by the names of revisions.

What is the same in both modes is here; how a mode does it is in `knative.rollout` and `standard.rollout`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from model_release.cluster.change import (
    ANY,
    Baseline,
    Canary,
    Change,
    Novelty,
    tell_stopped,
    tell_traffic,
    tell_unmoved,
)
from model_release.cluster.dead import and_frozen
from model_release.cluster.inference_service import MADE_BY, STOP, InferenceService, Template
from model_release.cluster.manifest import MANAGED_BY, Manifest, without_none
from model_release.cluster.manifest import mode_of as mode_asked
from model_release.cluster.modes import mode_named, mode_of
from model_release.cluster.objects import retrying
from model_release.cluster.progress import Progress, State
from model_release.errors import CanaryLost, ClusterRefused, ClusterUnavailable, ForeignService, SpecError

if TYPE_CHECKING:
    from model_release.cluster.services import InferenceServices

# Seconds for a gateway to take the stable predictor out of the traffic before its name changes hands (Standard mode).
DRAIN_SECONDS = 60.0

Decide = Callable[[InferenceService], dict[str, Any] | None]


def plan_change(live: InferenceService | None, wanted: Manifest) -> Change:
    """What a release of `wanted` would have to do. Reads only; may be asked at any stage.

    Raises:
        ForeignService: it exists and does not carry our label.
        ClusterRefused: it does not run in the manifest's mode; in Standard mode, KServe has no canary for this change.
        ClusterUnavailable: it is being deleted; passes by itself.
        RevisionFailed: the same template was already rolled out without a canary, by another hand, and fails.
    """
    if live is None:
        return Change(Novelty.FIRST, f"{_key(wanted)} does not exist yet and will be created")
    check_ours(live, mode_asked(wanted))
    return mode_of(live).plan_change(live, wanted)


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

    Args:
        known: the baseline that the lease last carried; its template, where the spec has another one by now.

    Raises:
        ClusterUnavailable: the service is in the midst of a roll-out; which revision is stable, is not settled yet.
        ClusterRefused: it is stopped, or exists and no revision of it was ever ready: it is no first deployment.
    """
    if live is None:
        return Baseline()
    if live.is_stopped:
        check_ours(live, mode_asked(wanted))
    if live.rolled_out is None:
        raise ClusterRefused(
            f"InferenceService {live.key} exists, and no revision of it was ever ready: there is nothing to compare "
            "with and to go back to; see that it serves, or delete it, and release then"
        )
    return mode_of(live).baseline_of(live, wanted, known)


def stable_template(live: InferenceService, known: Baseline | None) -> Template | None:
    """What the stable revision serves: the spec's own template or, where a canary's or one that was rolled back is in
    the spec, that of `known`, the baseline that the lease last carried, if it is of this revision. None: nobody knows.
    """
    return None if live.rolled_out is None else mode_of(live).stable_template(live, known)


def stage(
    services: InferenceServices,
    wanted: Manifest,
    baseline: Baseline,
    template: str | None = None,
    *,
    by: str = "",
    created: str | None = None,
) -> InferenceService:
    """Bring `wanted` into the cluster without giving it a user's request: created, or as a new template at 0 %.

    Template and 0 % are one write; a leftover canary of an earlier release loses its traffic by it. Again: nothing
    is written that is there; a canary of this template that was already opened goes back to 0 %; one that was
    promoted stays promoted. (On a first deployment there is no split: the revision takes 100 % when it is ready.)

    Args:
        template: the `template_digest` of what an earlier try wrote, where that is on record.
        by: whose release it is; a service that it creates carries that, so that a try that dies before it could record
            the uid is still known by it.
        created: the uid of the service that an earlier try created, where that is on record.

    Raises:
        CanaryLost: the service that was claimed is gone, was made anew, or got another template by another hand; one
            is there that was not when the service was claimed.
        As `plan_change`; ClusterUnavailable when nothing could be written, or KServe does not say what is rolled out.
    """
    namespace, name = wanted["metadata"]["namespace"], wanted["metadata"]["name"]

    def attempt() -> InferenceService:
        live = services.get(namespace, name)
        if live is None:
            if baseline.uid is not None:
                raise CanaryLost(f"InferenceService {namespace}/{name} was deleted after it was claimed")
            whole = without_none(wanted)
            if by:
                whole["metadata"].setdefault("annotations", {})[MADE_BY] = by
            mode_named(mode_asked(wanted)).check_kept(lambda: services.create(whole, dry_run=True), wanted)
            return services.create(whole)
        if baseline.uid not in (None, live.uid):
            raise CanaryLost(f"InferenceService {live.key} was deleted and made anew after it was claimed")
        if told := tell_stopped(live, baseline.started):
            raise CanaryLost(f"{told}, after it was claimed")
        if baseline.uid is None and live.uid != created and live.made_by != by:
            raise CanaryLost(f"InferenceService {live.key} was made by another hand after it was claimed")
        if baseline.revision is not None and live.rolled_out is None:
            # KServe holds users off a new template by that revision alone.
            raise ClusterUnavailable(
                f"InferenceService {live.key}: its status does not say any more which revision is rolled out, and was "
                f"{baseline.revision} when it was claimed; nothing can be staged beside it"
            )
        # What is there although nothing was when the service was claimed, an earlier try left, and nobody proved.
        first = baseline.revision is None
        patch = mode_of(live).stage_patch(live, wanted, plan_change(live, wanted), first=first)
        _check_ours_or_as_claimed(live, wanted, baseline, template)
        if patch is None:
            return live
        mode_of(live).check_kept(lambda: services.patch(live, patch, dry_run=True), wanted)
        return services.patch(live, patch)

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
    return mode_of(live).has_staged(live, wanted)


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
    return mode_of(live).assess_staged(live, wanted, baseline)


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
        return mode_of(live).split(live, percent)

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
    """Give the canary everything by removing the split; in Standard mode by two writes. Again: no write.

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
        return mode_of(live).promotion(live)

    return _take_over(services, services.change(canary.namespace, canary.name, decide), decide)


def _take_over(services: InferenceServices, live: InferenceService, decide: Decide) -> InferenceService:
    """Goes on with a promotion until the canary's name is the stable one's: each round reads, and writes what
    `decide` says. Again: goes on from wherever it was.

    Raises:
        ClusterUnavailable: the gateway has not moved the traffic within a minute; trying again may help.
    """
    end = time.monotonic() + DRAIN_SECONDS
    while live.canary_percent is not None:
        if time.monotonic() >= end:
            raise ClusterUnavailable(f"{live.key}: the canary has not got all of the traffic: {tell_traffic(live)}")
        time.sleep(0.2)
        live = services.change(live.namespace, live.name, decide)
    return live


def assess_promoted(live: InferenceService | None, canary: Canary) -> Progress:
    """Whether the canary has 100 % and KServe counts it as rolled out."""
    try:
        check_untouched(live, canary, None)
    except CanaryLost as lost:
        return Progress(State.LOST, str(lost), canary.revision)
    if live is None:
        return Progress(State.WAITING, "the traffic has not moved yet", canary.revision)
    return mode_of(live).assess_promoted(live, canary)


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
    mode_of(live).check_untouched(live, canary, percent)


def death_of(live: InferenceService | None, canary: str) -> str | None:
    """A sentence, when the canary of that name was ready and is not any more; None while it lives, or nobody can tell.

    To be asked of a canary that was staged: in Standard mode, one that was never ready looks the same.
    """
    return None if live is None or live.latest_created != canary else mode_of(live).death_of(live, canary)


def _key(wanted: Manifest) -> str:
    return f"{wanted['metadata']['namespace']}/{wanted['metadata']['name']}"
