"""Task stage, resumed by its trigger: it believes what it sees itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from kubernetes.client import CustomObjectsApi

from model_release.errors import CanaryLost, ClusterUnavailable
from model_release.serving import rollout
from model_release.serving.lease import Lease
from model_release.spec import ModelSpec
from model_release.tasks import records
from model_release.tasks.run import Run
from model_release.tasks.serve import Stage
from model_release.tasks.service import ReleasedService
from sandbox.interfaces import Phase, PodState

from .cluster import PROJECT, READY, Kube, ending, moment, wanted

Resume = Callable[[float], Any]


@pytest.fixture
def stage(kube: Kube, spec: ModelSpec, context: Any, ti: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Runs the task, on a service that this run has claimed, until it waits for the revision; gives its trigger."""
    monkeypatch.setattr(records, "change", lambda *_: None)
    run = Run.of(context, spec)
    released = ReleasedService(spec, run)
    assert isinstance(kube.leases.acquire("models", "digits", released.owner, "r1"), Lease)
    released.note(baseline=rollout.baseline_of(None, wanted(spec, "v1")))
    ti.xcoms["publish", "return_value"] = {"version": "v1", "uri": "s3://models/digits/versions/v1/"}
    task = Stage(task_id="stage", spec=spec, root=PROJECT)
    monkeypatch.setattr(task, "verify", lambda _: None)

    def waits() -> Any:
        with pytest.raises(TaskDeferred) as deferred:
            task.release(context, run)
        return deferred.value.trigger

    return waits


@pytest.fixture
def resume(stage: Callable[[], Any], spec: ModelSpec, context: Any) -> Resume:
    """Resumes the task, for which the revision was ready a moment ago, so many seconds before its deadline."""
    stage()
    task = Stage(task_id="stage", spec=spec, root=PROJECT)
    return lambda seconds: task.is_ready(context, {"state": "ready", "sentence": "", "deadline": moment(seconds)})


def by_hand(kube: Kube) -> None:
    """A field of which the model file says nothing: all that was wanted is still there."""
    CustomObjectsApi(kube.client).patch_namespaced_custom_object(
        "serving.kserve.io", "v1beta1", "models", "inferenceservices", "digits",
        {"spec": {"predictor": {"terminationGracePeriodSeconds": 7}}},
        field_manager="somebody", _content_type="application/merge-patch+json",
    )  # fmt: skip


async def test_what_another_hand_adds_ends_the_wait(kube: Kube, stage: Callable[[], Any]) -> None:
    trigger = stage()
    by_hand(kube)
    event = await ending(trigger)
    assert event["state"] == "lost"
    assert "no longer has what was staged, last changed by somebody" in event["sentence"]


def test_and_stops_a_task_that_was_told_it_is_ready(kube: Kube, resume: Resume) -> None:
    by_hand(kube)
    with pytest.raises(CanaryLost, match="no longer has what was staged, last changed by somebody"):
        resume(10)


def test_and_a_task_that_is_tried_again(kube: Kube, stage: Callable[[], Any]) -> None:
    stage()
    stage()
    by_hand(kube)
    with pytest.raises(CanaryLost, match="got another template after it was claimed, last changed by somebody"):
        stage()


async def test_a_pod_that_misses_a_probe_between_two_looks_is_waited_for(kube: Kube, resume: Resume) -> None:
    kube.pods.phases["v1"] = PodState(Phase.STARTING)
    with pytest.raises(TaskDeferred) as waits:
        resume(10)
    assert waits.value.method_name == "is_ready"
    kube.pods.phases["v1"] = READY
    event = await ending(waits.value.trigger)
    assert event["state"] == "ready"
    assert resume(10)["canary"]["revision"] == "digits-predictor-00001"


def test_a_revision_that_is_not_ready_at_its_deadline_is_not_waited_for(kube: Kube, resume: Resume) -> None:
    kube.pods.phases["v1"] = PodState(Phase.STARTING)
    with pytest.raises(ClusterUnavailable, match="was ready and is not"):
        resume(-1)


def test_what_was_open_before_is_not_any_more(kube: Kube, stage: Callable[[], Any], resume: Resume) -> None:
    """Cleared while its canary was open at 25 %: the next opening of 25 % has a moment of its own."""
    claim = kube.leases.read("models", "digits").claim  # type: ignore[union-attr]
    assert claim is not None
    opened = {"stage": "open at 25 %", "percent": 25, "opened_at": moment(-300)}
    kube.leases.update("models", "digits", claim.owner, lambda now: replace(now, **opened))
    stage()
    resume(10)
    claim = kube.leases.read("models", "digits").claim  # type: ignore[union-attr]
    assert claim is not None
    assert (claim.stage, claim.percent, claim.opened_at) == ("staged", None, None)
