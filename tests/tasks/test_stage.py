"""Task stage, resumed by its trigger: it believes what it sees itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from model_release.errors import ClusterUnavailable
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
def resume(kube: Kube, spec: ModelSpec, context: Any, ti: Any, monkeypatch: pytest.MonkeyPatch) -> Resume:
    """Resumes the task, for which the revision was ready a moment ago, so many seconds before its deadline."""
    monkeypatch.setattr(records, "change", lambda *_: None)
    released = ReleasedService(spec, Run.of(context, spec))
    assert isinstance(kube.leases.acquire("models", "digits", released.owner, "r1"), Lease)
    asked = wanted(spec, "v1")
    baseline = rollout.baseline_of(None, asked)
    released.note(baseline=baseline)
    rollout.stage(kube.services, asked, baseline)
    ti.xcoms["publish", "return_value"] = {"version": "v1", "uri": "s3://models/digits/versions/v1/"}
    task = Stage(task_id="stage", spec=spec, root=PROJECT)
    return lambda seconds: task.is_ready(context, {"state": "ready", "sentence": "", "deadline": moment(seconds)})


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
