"""The three waits, without a triggerer: what each sees in a real API server, what event it ends with, and that it
can move to another triggerer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from typing import Any

import pytest
from kubernetes.client import CustomObjectsApi
from tests.patience import LIMIT

from model_release.cluster import progress, rollout
from model_release.cluster.change import Baseline
from model_release.cluster.lease import Lease
from model_release.cluster.leases import Leases
from model_release.cluster.progress import State
from model_release.cluster.release import Owner
from model_release.cluster.services import InferenceServices
from model_release.errors import ClusterUnavailable
from model_release.spec import ModelSpec
from model_release.tasks import triggers
from model_release.tasks.triggers import CanaryTrigger, LeaseTrigger, RevisionTrigger
from sandbox.interfaces import Phase, PodState

from .cluster import Kube, ending, moment, wanted

MINE = Owner("release_digits", "mine", "http://airflow/mine", "http://airflow")
OTHER = Owner("release_digits", "other", "http://airflow/other", "http://airflow")


def away(read: Callable[..., Any], times: int) -> Callable[..., Any]:
    """A read of the cluster that does not succeed the first `times` times."""
    left = [ClusterUnavailable("refused")] * times

    def or_away(*words: Any) -> Any:
        if left:
            raise left.pop()
        return read(*words)

    return or_away


GIVEN: list[tuple[type[Any], dict[str, Any]]] = [
    (LeaseTrigger, {"namespace": "models", "name": "digits", "deadline": moment(60)}),
    (
        RevisionTrigger,
        {"wanted": {"metadata": {}}, "baseline": Baseline().as_dict(), "template": "a", "deadline": moment(60)},
    ),
    (
        CanaryTrigger,
        {"spec": "{}", "canary": {}, "deadline": moment(60), "run": {}},
    ),
]


@pytest.mark.parametrize(("kind", "given"), GIVEN)
def test_a_trigger_that_moves_takes_all_it_knows_with_it(kind: type[Any], given: dict[str, Any]) -> None:
    path, kwargs = kind(**given).serialize()
    module, name = path.rsplit(".", 1)
    moved = getattr(import_module(module), name)(**json.loads(json.dumps(kwargs)))
    assert type(moved) is kind
    assert moved.serialize() == (path, given)
    assert moved.deadline == datetime.fromisoformat(given["deadline"]), "a trigger that moved does not wait anew"


@pytest.mark.parametrize("kind", [LeaseTrigger, RevisionTrigger, CanaryTrigger])
def test_no_trigger_does_anything_when_it_is_stopped(kind: type[Any]) -> None:
    """Airflow 3.3 calls on_kill for triggers that merely moved."""
    assert "on_kill" not in {name for base in kind.__mro__[:2] for name in vars(base)}


async def test_no_trigger_resumes_its_task_before_the_scheduler_has_heard_of_the_deferral(
    kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeaseTrigger, "HEARD", 0.5)
    resumed = asyncio.create_task(ending(LeaseTrigger(namespace="models", name="digits", deadline=moment(LIMIT))))
    await asyncio.sleep(0.3)
    assert not resumed.done()
    assert (await resumed)["late"] is False


class TestLease:
    def trigger(self, seconds: float = LIMIT) -> LeaseTrigger:
        return LeaseTrigger(namespace="models", name="digits", deadline=moment(seconds))

    async def test_a_service_that_was_never_claimed_is_free(self, kube: Kube) -> None:
        assert (await ending(self.trigger()))["late"] is False

    async def test_it_waits_until_the_holder_gives_it_free(self, kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(triggers, "run_is_over", lambda owner: False)
        assert isinstance(kube.leases.acquire("models", "digits", OTHER), Lease)
        waiting = asyncio.create_task(ending(self.trigger()))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await asyncio.to_thread(kube.leases.give_free, "models", "digits", OTHER)
        assert (await waiting)["late"] is False

    async def test_a_holder_whose_run_is_over_is_not_waited_for(
        self, kube: Kube, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Owner] = []

        def over(owner: Owner) -> bool:
            asked.append(owner)
            return len(asked) > 2

        monkeypatch.setattr(triggers, "run_is_over", over)
        kube.leases.acquire("models", "digits", OTHER)
        assert (await ending(self.trigger()))["late"] is False
        assert asked == [OTHER, OTHER, OTHER]

    async def test_after_the_deadline_it_gives_up(self, kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(triggers, "run_is_over", lambda owner: False)
        kube.leases.acquire("models", "digits", OTHER)
        assert (await ending(self.trigger(seconds=0.2)))["late"] is True

    async def test_the_deadline_is_handed_on_to_whoever_has_to_wait_again(self, kube: Kube) -> None:
        trigger = self.trigger()
        assert await ending(trigger) == {"late": False, "deadline": trigger.given["deadline"]}

    async def test_a_holder_that_is_no_release_is_waited_for_too(self, kube: Kube) -> None:
        """It would otherwise be looked at by task and trigger in turn, for ever."""
        kube.leases.acquire("models", "digits", OTHER)
        CustomObjectsApi(kube.client).patch_namespaced_custom_object(
            "coordination.k8s.io", "v1", "models", "leases", "model-release-digits",
            {"metadata": {"annotations": None}, "spec": {"holderIdentity": "kubectl"}},
            _content_type="application/merge-patch+json",
        )  # fmt: skip
        assert (await ending(self.trigger(seconds=0.2)))["late"] is True

    async def test_a_cluster_that_is_away_is_waited_for(self, kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Leases, "read", away(Leases.read, times=3))
        assert (await ending(self.trigger()))["late"] is False

    async def test_a_cluster_that_stays_away_ends_at_the_deadline(self, kube: Kube) -> None:
        kube.fault("get", "leases", status=500)
        assert (await ending(self.trigger(seconds=0.2)))["late"] is True


class TestRevision:
    def trigger(self, spec: ModelSpec, version: str, baseline: Baseline, seconds: float = LIMIT) -> RevisionTrigger:
        return RevisionTrigger(
            wanted=wanted(spec, version), baseline=baseline.as_dict(), template=self.template, deadline=moment(seconds)
        )

    def staged(self, kube: Kube, spec: ModelSpec, version: str) -> Baseline:
        asked = wanted(spec, version)
        baseline = rollout.baseline_of(kube.services.get("models", "digits"), asked)
        self.template = rollout.stage(kube.services, asked, baseline).template_digest
        return baseline

    async def first(self, kube: Kube, spec: ModelSpec) -> None:
        """A first version that serves."""
        event = await ending(self.trigger(spec, "v1", self.staged(kube, spec, "v1")))
        assert event["state"] == State.READY
        assert event["sentence"] == "digits-predictor-00001 is ready; traffic digits-predictor-00001 100 %"

    async def test_a_revision_that_becomes_ready_at_0_percent(self, kube: Kube, spec: ModelSpec) -> None:
        await self.first(kube, spec)
        kube.pods.phases["v2"] = PodState(Phase.STARTING)
        baseline = self.staged(kube, spec, "v2")
        waiting = asyncio.create_task(ending(self.trigger(spec, "v2", baseline)))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        kube.pods.phases.pop("v2")
        event = await waiting
        assert event["state"] == State.READY
        assert event["sentence"] == "digits-predictor-00002 is ready; traffic digits-predictor-00001 100 %"

    async def test_a_revision_that_cannot_load_fails_with_its_own_words(
        self, kube: Kube, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(progress, "FAILED_LOAD_GRACE", 0.1)
        await self.first(kube, spec)
        kube.pods.phases["v2"] = PodState(Phase.CRASHED, message="No model found in /mnt/models", exit_code=1)
        event = await ending(self.trigger(spec, "v2", self.staged(kube, spec, "v2")))
        assert event["state"] == State.FAILED
        assert "digits-predictor-00002 fails to load (exit code 1)" in event["sentence"]
        assert "No model found in /mnt/models" in event["sentence"]

    async def test_a_revision_that_never_becomes_ready_ends_at_the_deadline(self, kube: Kube, spec: ModelSpec) -> None:
        await self.first(kube, spec)
        kube.pods.phases["v2"] = PodState(Phase.STARTING)
        event = await ending(self.trigger(spec, "v2", self.staged(kube, spec, "v2"), seconds=0.5))
        assert event["state"] == State.WAITING
        assert "digits-predictor-00002 is starting" in event["sentence"]

    async def test_a_service_that_is_deleted_meanwhile_is_lost(self, kube: Kube, spec: ModelSpec) -> None:
        await self.first(kube, spec)
        kube.pods.phases["v2"] = PodState(Phase.STARTING)
        baseline = self.staged(kube, spec, "v2")
        live = kube.services.get("models", "digits")
        assert live
        kube.services.delete(live)
        event = await ending(self.trigger(spec, "v2", baseline))
        assert (event["state"], event["sentence"]) == ("lost", "InferenceService models/digits was deleted")

    async def test_a_cluster_that_is_away_is_waited_for(
        self, kube: Kube, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await self.first(kube, spec)
        baseline = self.staged(kube, spec, "v2")
        monkeypatch.setattr(InferenceServices, "get", away(InferenceServices.get, times=3))
        assert (await ending(self.trigger(spec, "v2", baseline)))["state"] == State.READY

    async def test_a_cluster_that_stays_away_ends_at_the_deadline(self, kube: Kube, spec: ModelSpec) -> None:
        await self.first(kube, spec)
        baseline = self.staged(kube, spec, "v2")
        kube.fault("get", "inferenceservices", status=500)
        event = await ending(self.trigger(spec, "v2", baseline, seconds=0.3))
        assert event["state"] == State.WAITING
        assert event["sentence"].startswith("the cluster does not answer: ")


class TestRunIsOver:
    @pytest.fixture(autouse=True)
    def _here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(triggers, "installation", lambda: "http://airflow")

    def says(self, monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> None:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        def state(dag_id: str, run_id: str) -> str:
            assert (dag_id, run_id) == ("release_digits", "other")
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(RuntimeTaskInstance, "get_dagrun_state", state)

    @pytest.mark.parametrize(
        ("state", "over"), [("success", True), ("failed", True), ("running", False), ("queued", False)]
    )
    def test_a_run_is_over_when_this_airflow_says_so(
        self, monkeypatch: pytest.MonkeyPatch, state: str, over: bool
    ) -> None:
        self.says(monkeypatch, state)
        assert triggers.run_is_over(OTHER) is over

    def test_a_run_that_was_deleted_is_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.says(monkeypatch, _api_error(404))
        assert triggers.run_is_over(OTHER) is True

    def test_an_api_that_fails_says_nothing_about_the_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from airflow.sdk.exceptions import AirflowRuntimeError

        self.says(monkeypatch, _api_error(500))
        with pytest.raises(AirflowRuntimeError):
            triggers.run_is_over(OTHER)

    def test_a_run_of_another_airflow_is_never_over_to_us(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.says(monkeypatch, AssertionError("nobody here knows"))
        assert triggers.run_is_over(Owner("release_digits", "other", "…", "http://elsewhere")) is False


def _api_error(status: int) -> Exception:
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    said = ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": status})
    error: Exception = AirflowRuntimeError(said)
    return error
