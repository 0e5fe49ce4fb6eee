"""Task stage, resumed by its trigger: it believes what it sees itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from kubernetes.client import CustomObjectsApi
from tests.patience import LIMIT, until

from model_release.cluster import rollout
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.lease import Lease
from model_release.cluster.progress import State, wait
from model_release.cluster.release import Phase, Release, Watched
from model_release.cluster.services import InferenceServices
from model_release.errors import CanaryLost, ClusterUnavailable, VersionDamaged
from model_release.spec import ModelSpec
from model_release.tasks import connections, driving, records
from model_release.tasks.claim import ClaimService
from model_release.tasks.run import Run
from model_release.tasks.serve import Stage
from model_release.tasks.service import ReleasedService
from sandbox.interfaces import Phase as Pod
from sandbox.interfaces import PodState

from .cluster import PROJECT, READY, Kube, ending, moment, wanted

Resume = Callable[[float], Any]


@pytest.fixture
def stage(kube: Kube, spec: ModelSpec, context: Any, ti: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the task, on a service that this run has claimed, until it waits for the revision; gives its trigger."""
    monkeypatch.setattr(records, "change", lambda *_: None)
    run = Run.of(context, spec)
    released = ReleasedService(spec, run)
    assert isinstance(kube.leases.acquire("models", "digits", released.owner, "r1"), Lease)
    released.note(baseline=rollout.baseline_of(None, wanted(spec, "v1")))
    task = Stage(task_id="stage", spec=spec, root=PROJECT)
    monkeypatch.setattr(connections, "store", lambda _: SimpleNamespace(version=lambda version: None))
    monkeypatch.setattr("model_release.tasks.serve.foresee", lambda *_: {})

    def waits(version: str = "v1") -> Any:
        ti.xcoms["publish", "return_value"] = {"version": version, "uri": f"s3://models/digits/versions/{version}/"}
        with pytest.raises(TaskDeferred) as deferred:
            task.release(context, run)
        return deferred.value.trigger

    return waits


@pytest.fixture
def starting(kube: Kube) -> None:
    """Asked for before `resume`: its pod has not been ready for a moment, which the controllers could have seen."""
    kube.pods.phases["v1"] = PodState(Pod.STARTING)


@pytest.fixture
def resume(stage: Callable[..., Any], spec: ModelSpec, context: Any) -> Resume:
    """Resumes the task, for which the revision was ready a moment ago, so many seconds before its deadline."""
    stage()
    task = Stage(task_id="stage", spec=spec, root=PROJECT)
    return lambda seconds: task.is_ready(context, {"state": "ready", "sentence": "", "deadline": moment(seconds)})


def claim_of(kube: Kube) -> Release:
    lease = kube.leases.read("models", "digits")
    assert lease is not None
    assert lease.release is not None
    return lease.release


def note(kube: Kube, **facts: Any) -> None:
    """What a task of the run notes in its claim."""
    kube.leases.update("models", "digits", claim_of(kube).owner, lambda now: replace(now, **facts))


def ready(resume: Resume) -> Any:
    """What the task returns in the end, however often it finds that the revision is not ready yet."""

    def resumed() -> Any:
        try:
            return resume(LIMIT)
        except TaskDeferred:
            return None

    return until(resumed, "never ready")


def canary_at_rest(kube: Kube, spec: ModelSpec, stage: Callable[..., Any], resume: Resume) -> None:
    """v1 is stable, and this run has v2 at 0 %."""
    ready(resume)
    first = rollout.baseline_of(kube.services.get("models", "digits"), wanted(spec, "v2"))
    note(kube, baseline=first, canary=None, template=None)
    stage("v2")
    ready(resume)
    assert claim_of(kube).canary == "digits-predictor-00002"


def by_hand(kube: Kube) -> None:
    """A field of which the model file says nothing: all that was wanted is still there."""
    CustomObjectsApi(kube.client).patch_namespaced_custom_object(
        "serving.kserve.io", "v1beta1", "models", "inferenceservices", "digits",
        {"spec": {"predictor": {"terminationGracePeriodSeconds": 7}}},
        field_manager="somebody", _content_type="application/merge-patch+json",
    )  # fmt: skip


def test_a_version_that_was_changed_since_it_was_published_is_not_staged(
    kube: Kube, stage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    def damaged(version: str) -> None:
        asked.append(version)
        raise VersionDamaged("model.mar is not what was published")

    monkeypatch.setattr(connections, "store", lambda _: SimpleNamespace(version=damaged))
    with pytest.raises(VersionDamaged, match="is not what was published"):
        stage("v1")
    assert asked == ["v1"]
    assert kube.services.get("models", "digits") is None


async def test_what_another_hand_adds_ends_the_wait(kube: Kube, stage: Callable[..., Any]) -> None:
    trigger = stage()
    by_hand(kube)
    event = await ending(trigger)
    assert event["state"] == "lost"
    assert "no longer has what was staged, last changed by somebody" in event["sentence"]


def test_and_stops_a_task_that_was_told_it_is_ready(kube: Kube, resume: Resume) -> None:
    by_hand(kube)
    with pytest.raises(CanaryLost, match="no longer has what was staged, last changed by somebody"):
        resume(LIMIT)


def test_and_a_task_that_is_tried_again(kube: Kube, stage: Callable[..., Any]) -> None:
    stage()
    stage()
    by_hand(kube)
    with pytest.raises(CanaryLost, match="got another template after it was claimed, last changed by somebody"):
        stage()


async def test_a_pod_that_misses_a_probe_between_two_looks_is_waited_for(
    kube: Kube, starting: None, resume: Resume
) -> None:
    with pytest.raises(TaskDeferred) as waits:
        resume(LIMIT)
    assert waits.value.method_name == "is_ready"
    kube.pods.phases["v1"] = READY
    event = await ending(waits.value.trigger)
    assert event["state"] == "ready"
    ready(resume)
    assert claim_of(kube).canary == "digits-predictor-00001"


def test_a_revision_that_is_not_ready_at_its_deadline_is_not_waited_for(starting: None, resume: Resume) -> None:
    with pytest.raises(ClusterUnavailable, match="was ready and is not"):
        resume(-1)


def test_what_was_open_before_is_not_any_more(kube: Kube, stage: Callable[..., Any], resume: Resume) -> None:
    """Cleared while its canary was open at 25 %: the next opening of 25 % has a moment of its own."""
    note(kube, phase=Phase.OPEN, watches=(Watched(25, moment(-300)),))
    stage()
    ready(resume)
    claim = claim_of(kube)
    assert (claim.phase, claim.percent, claim.watches) == (Phase.STAGED, None, ())


def test_a_promotion_that_was_begun_and_never_done_is_not_kept(
    kube: Kube, spec: ModelSpec, stage: Callable[..., Any], resume: Resume
) -> None:
    """Killed between its note and its write, and cleared: the canary that stands at 0 % is no promoted one."""
    canary_at_rest(kube, spec, stage, resume)
    note(kube, phase=Phase.PROMOTED, word="0 of 300")
    stage("v2")
    ready(resume)
    assert claim_of(kube).promoted is False


def test_a_first_deployment_that_went_live_stays_so(kube: Kube, stage: Callable[..., Any], resume: Resume) -> None:
    ready(resume)
    note(kube, phase=Phase.PROMOTED, word="0 of 300")
    stage()
    ready(resume)
    assert claim_of(kube).promoted is True


def test_a_first_deployment_that_went_live_is_the_baseline_when_its_run_begins_anew(
    kube: Kube, spec: ModelSpec, context: Any, ti: Any, stage: Callable[..., Any], resume: Resume
) -> None:
    """Cleared as a whole before it was settled, with a newer candidate: that one is a canary, beside what is live."""
    ready(resume)
    note(kube, phase=Phase.PROMOTED, word="0 of 300")
    stage("v2")  # of an earlier try of the same kind, which ended here
    ClaimService(task_id="claim", spec=spec, root=PROJECT).release(context, Run.of(context, spec))
    claim = claim_of(kube)
    assert claim.baseline is not None
    assert (claim.baseline.revision, claim.canary, claim.promoted) == ("digits-predictor-00001", None, False)
    stage("v2")
    ready(resume)
    assert not claim_of(kube).is_first


def test_17_4_the_record_says_in_which_cluster_the_service_is(
    kube: Kube, spec: ModelSpec, context: Any, stage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prune` asks every cluster that a record names."""
    noted = SimpleNamespace()
    monkeypatch.setattr(records, "change", lambda _spec, _run, edit: edit(noted))
    stage()
    ClaimService(task_id="claim", spec=spec, root=PROJECT).release(context, Run.of(context, spec))
    lease = kube.leases.read("models", "digits")
    assert lease is not None
    assert lease.uid
    assert noted.cluster == {"server": kube.server.url, "lease": lease.uid}


def test_what_an_earlier_try_staged_is_not_taken_for_what_this_one_did(
    kube: Kube, spec: ModelSpec, stage: Callable[..., Any], resume: Resume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cleared as a whole at 0 %, with a newer candidate, while KServe acts on nothing: its status is of before."""
    canary_at_rest(kube, spec, stage, resume)
    get, before = InferenceServices.get, kube.services.get("models", "digits")
    assert before is not None

    def late(services: InferenceServices, namespace: str, name: str) -> Any:
        live = get(services, namespace, name)
        return live and InferenceService({**live.raw, "status": before.status})

    stage("v3")
    with monkeypatch.context() as kserve:
        kserve.setattr(InferenceServices, "get", late)
        with pytest.raises(TaskDeferred):
            resume(LIMIT)
    ready(resume)
    assert claim_of(kube).canary == "digits-predictor-00003"


def test_another_hand_that_was_faster_than_the_claim_is_seen(
    kube: Kube, spec: ModelSpec, stage: Callable[..., Any], resume: Resume
) -> None:
    """Its template was in the spec when the service was claimed, and KServe had not acted on it."""
    ready(resume)
    claimed = rollout.baseline_of(kube.services.get("models", "digits"), wanted(spec, "v2"))
    by_hand(kube)
    note(kube, baseline=replace(claimed, found=kube.live().template_digest), canary=None, template=None)
    until(lambda: kube.live().latest_created != claimed.revision, "KServe does not act")
    with pytest.raises(CanaryLost, match="got another template after it was claimed"):
        stage("v2")


def test_what_was_promoted_is_the_baseline_when_its_run_begins_anew(
    kube: Kube, spec: ModelSpec, stage: Callable[..., Any], resume: Resume
) -> None:
    """Cleared as a whole during the bake, with a newer candidate: that one is a canary beside what is live."""
    canary_at_rest(kube, spec, stage, resume)
    baseline = claim_of(kube).baseline
    assert baseline is not None
    canary = rollout.canary_of(kube.live(), baseline)
    note(kube, phase=Phase.PROMOTED, word="0 of 300")
    rollout.promote(kube.services, canary, 0)
    found = wait(lambda: rollout.assess_promoted(kube.services.get("models", "digits"), canary), 5, poll=0.01)
    assert found.state is State.READY
    stage("v3")
    ready(resume)
    claim = claim_of(kube)
    assert claim.baseline is not None
    assert (claim.baseline.revision, claim.promoted) == ("digits-predictor-00002", False)
    assert claim.baseline.template is not None
    assert claim.baseline.storage_uri == "s3://models/digits/versions/v2/"


def test_a_first_deployment_that_nobody_asked_gives_way_to_the_next(
    kube: Kube, spec: ModelSpec, stage: Callable[..., Any], resume: Resume
) -> None:
    """Cleared as a whole before it had answered, with a newer candidate: there is still nothing to stand beside."""
    ready(resume)
    stage("v2")
    ready(resume)
    assert (claim_of(kube).is_first, claim_of(kube).canary) == (True, "digits-predictor-00002")
    assert kube.live().serving == {"digits-predictor-00002": 100}


def test_a_deadline_and_a_bake_that_the_file_does_not_give_are_chosen_for_this_release(
    kube: Kube,
    spec: ModelSpec,
    stage: Callable[..., Any],
    resume: Resume,
    context: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canary_at_rest(kube, spec, stage, resume)
    assert claim_of(kube).spec is None
    monkeypatch.setattr("model_release.tasks.serve.foresee", lambda *_: {"deadline_minutes": 12.0, "bake_minutes": 7.0})
    unsaid = spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"deadline": None, "bake": None})})
    with pytest.raises(TaskDeferred):
        Stage(task_id="stage", spec=unsaid, root=PROJECT).release(context, Run.of(context, unsaid))
    chosen = driving.began_with(claim_of(kube), unsaid).rollout
    assert (chosen.longest, chosen.baked) == (timedelta(minutes=12), timedelta(minutes=7))
    bake = Watched(None, "2026-03-01T02:00:00.000+00:00")
    end, _ = driving._end(driving.began_with(claim_of(kube), unsaid), [bake])
    assert end.isoformat() == "2026-03-01T02:07:00+00:00"
