"""`retrain_<model>`: its DAG, what it hands to a release, and the pod of a training that has an image.

No pod runs here: the sandbox's Kubernetes API has none that would. What is held is the pod that Kubernetes is asked
for, and what the task does around it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
import yaml
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.interval import CronDataIntervalTimetable
from pydantic import ValidationError

from model_release.build import training
from model_release.build.training import Trained
from model_release.errors import TrainingFailed
from model_release.model_file import load
from model_release.spec import ModelSpec
from model_release.tasks import connections
from model_release.tasks.assets import candidate_asset
from model_release.tasks.base import RETRIES
from model_release.tasks.retrain import retrain_dag
from model_release.tasks.train import Offer, Train, candidate_of

from .parsing import HEAVY, Parsing

PROJECT = Path(__file__).resolve().parents[2]
MADE = Trained("20260301T020000", "directory:candidates/digits/20260301T020000", "ab" * 32, {"accuracy": 0.9}, 7.5)


def model(source: dict[str, str] | None = None, **given: Any) -> ModelSpec:
    content = load(PROJECT / "include" / "models" / "digits.yaml").model_dump(mode="json", exclude_none=True)
    content["source"] = source or {"directory": "candidates/digits"}
    content["training"] = given or {"run": "sandbox.training:digits", "arguments": {"epochs": 2}}
    return ModelSpec.model_validate(content)


def in_pod(**more: Any) -> ModelSpec:
    return model({"s3": "s3://training/digits/"}, image="registry.example/train:1.2", **more)


# What the asset says of it.
EVENT = {
    "candidate": "20260301T020000",
    "origin": "directory:candidates/digits/20260301T020000",
    "digest": "ab" * 32,
    "metrics": {"accuracy": 0.9},
    "duration": 7.5,
}


# The DAG


def test_the_example_is_trained_by_hand_and_offers_its_candidate() -> None:
    dag = retrain_dag(load(PROJECT / "include" / "models" / "digits.yaml"), PROJECT)
    assert dag.dag_id == "retrain_digits"
    assert {task.task_id: set(task.downstream_task_ids) for task in dag.tasks} == {"train": {"offer"}, "offer": set()}
    assert dag.schedule is None, "in the demo nothing starts by itself"
    assert dag.max_active_runs == 1
    assert not dag.catchup


def test_the_event_is_of_the_asset_that_a_release_waits_for() -> None:
    spec = model()
    (outlet,) = retrain_dag(spec, PROJECT).get_task("offer").outlets
    assert outlet == candidate_asset(spec)
    assert (outlet.name, outlet.uri, outlet.group) == (
        "candidate_digits", "x-model-release://candidates/digits", "model-release",
    )  # fmt: skip


@pytest.mark.parametrize("spec", [model(schedule="@weekly", run="own:train"), in_pod(schedule="0 3 * * *")])
def test_a_schedule_is_kept_and_no_backfill_makes_candidates_of_the_past(spec: ModelSpec) -> None:
    dag = retrain_dag(spec, PROJECT)
    assert spec.training
    assert dag.schedule == spec.training.schedule
    assert {str(kind.value) for kind in dag.allowed_run_types or ()} == {
        "scheduled", "manual", "operator_triggered", "asset_materialization",
    }  # fmt: skip
    stored = json.dumps(DagSerialization.to_dict(dag))
    assert "x-model-release://candidates/digits" in stored, "Airflow stores it"


@pytest.mark.parametrize("spec", [model(), in_pod(arguments={"text": "{{ conf }}"})])
def test_nothing_of_the_model_file_is_a_template(spec: ModelSpec) -> None:
    assert all(not task.template_fields for task in retrain_dag(spec, PROJECT).tasks)


@pytest.mark.parametrize(
    ("source", "training", "told"),
    [
        ({"hub": "owner/name"}, {"run": "own:train"}, "training cannot write to hub owner/name; source: {directory"),
        (None, {"image": "train:1"}, "training.image writes to S3, and the source is candidates/digits"),
    ],
)
def test_a_source_that_cannot_be_trained_into_is_refused_when_the_file_is_parsed(
    source: dict[str, str] | None, training: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        model(source, **training)


def test_the_dag_file_makes_one_dag_for_each_training_and_imports_nothing_heavy(
    parsing: Parsing, tmp_path: Path
) -> None:
    (tmp_path / "include" / "models").mkdir(parents=True)
    (tmp_path / "dags").mkdir()
    text = (PROJECT / "dags" / "retrain.py").read_text()
    (tmp_path / "dags" / "retrain.py").write_text(text)
    assert "airflow" in text.lower(), "else Airflow does not open it"
    assert "dag" in text.lower()
    content = model().model_dump(mode="json", exclude_none=True)
    for name in ("one", "two", "none"):
        given = {**content, "model": name}
        if name == "none":
            del given["training"]
        (tmp_path / "include" / "models" / f"{name}.yaml").write_text(yaml.safe_dump(given))
    code = (
        "import runpy, sys, json\n"
        f"found = runpy.run_path({str(tmp_path / 'dags' / 'retrain.py')!r})\n"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "dags = sorted(name for name, one in found.items() if getattr(one, 'dag_id', None) == name)\n"
        "print(json.dumps([dags, heavy]))"
    )
    assert parsing(code) == [["retrain_one", "retrain_two"], []]


# The tasks


def test_all_tries_of_a_run_make_one_candidate(context: dict[str, Any]) -> None:
    assert candidate_of(context) == "20260301T020000"
    context["dag_run"].data_interval_end = datetime(2026, 2, 28, 23, tzinfo=UTC)
    assert candidate_of(context) == "20260301T020000", "asked for by hand, not found as the schedule's last"
    context["dag_run"].run_type = "scheduled"
    assert candidate_of(context) == "20260228T230000", "of the interval, however late it runs"


def test_a_run_by_hand_trains_where_cron_schedules_have_intervals(context: dict[str, Any]) -> None:
    """`[scheduler] create_cron_data_intervals`, as installations from Airflow 2 have it: a run by hand then bears the
    interval of the last scheduled one."""
    timetable = CronDataIntervalTimetable("@weekly", timezone="UTC")
    interval = timetable.infer_manual_data_interval(run_after=pendulum.instance(context["dag_run"].run_after))
    context["dag_run"].run_type, context["dag_run"].data_interval_end = "scheduled", interval.end
    scheduled = candidate_of(context)
    context["dag_run"].run_type = "manual"
    assert candidate_of(context) > scheduled


def test_train_calls_what_the_model_file_names(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def note(run: str, sources: dict[str, str], candidate: str, **more: Any) -> Trained:
        asked.update(more, run=run, sources=sources, candidate=candidate)
        return MADE

    monkeypatch.setattr(training, "train", note)
    assert Train(task_id="train", spec=model(), root=PROJECT).execute(context) == EVENT
    assert asked.pop("log")("…") is None
    assert asked == {
        "run": "sandbox.training:digits",
        "sources": {"directory": "candidates/digits"},
        "candidate": "20260301T020000",
        "arguments": {"epochs": 2},
        "timeout": 12 * 3600,
        "base": PROJECT,
        "path": [PROJECT / "include", PROJECT / "plugins"],
        "reach": connections.reach,
    }


def test_a_task_that_is_stopped_stops_its_training() -> None:
    with pytest.raises(InterruptedError, match="stopped with its task") as stopped:
        Train(task_id="train", spec=model(), root=PROJECT).on_kill()
    decided = RETRIES["retry_policy"].evaluate(stopped.value, 1, 3).action
    assert decided is RetryAction.DEFAULT, "a worker that shuts down is no fault of the training"


@pytest.fixture
def outlets(context: dict[str, Any]) -> dict[Any, Any]:
    context["outlet_events"] = defaultdict(lambda: SimpleNamespace(extra={}))
    events: dict[Any, Any] = context["outlet_events"]
    return events


def test_offer_says_what_the_candidate_itself_says(context: dict[str, Any], outlets: Any, tmp_path: Path) -> None:
    folder = tmp_path / "candidates" / "digits" / MADE.candidate
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    record = {"fingerprint": MADE.fingerprint, "metrics": MADE.metrics, "seconds": MADE.seconds}
    (folder / "training.json").write_text(json.dumps(record))
    spec = model()
    assert Offer(task_id="offer", spec=spec, root=tmp_path).execute(context) == EVENT
    assert outlets[candidate_asset(spec)].extra == EVENT


def test_without_a_candidate_nothing_is_offered(context: dict[str, Any], outlets: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="candidates/digits has no finished candidate 20260301T020000"):
        Offer(task_id="offer", spec=model(), root=tmp_path).execute(context)
    assert not outlets


def test_offer_makes_a_candidate_of_what_an_image_wrote(
    context: dict[str, Any], outlets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def note(image: str, sources: dict[str, str], candidate: str, **more: Any) -> Trained:
        asked.append((image, sources, candidate, more["arguments"], more["seconds"]))
        return MADE

    monkeypatch.setattr(training, "finish", note)
    context["ti"].xcoms["train", "seconds"] = 61.5
    spec = in_pod(arguments={"epochs": 2})
    Offer(task_id="offer", spec=spec, root=PROJECT).execute(context)
    assert asked == [
        ("registry.example/train:1.2", {"s3": "s3://training/digits/"}, "20260301T020000", {"epochs": 2}, 61.5)
    ]
    assert outlets[candidate_asset(spec)].extra == EVENT


# The pod


@pytest.fixture
def pod_task(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The task of a training with an image, whose sources and cluster hold nothing."""
    monkeypatch.setattr(training, "find", lambda *_, **__: None)
    arguments = {"epochs": 2, "rate": 0.1, "augment": True, "note": "$(HOSTNAME) {{ conf }}; rm -rf /"}
    spec = in_pod(arguments=arguments, timeout="2h", resources={"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "1"})
    return retrain_dag(spec, PROJECT).get_task("train")


@pytest.fixture
def asked_pod(pod_task: Any, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The pod that Kubernetes is asked for, as it is sent."""
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from kubernetes.client import ApiClient

    monkeypatch.setattr(KubernetesPodOperator, "execute", lambda self, _: self.build_pod_request_obj(dry_run=True))
    asked: list[Any] = []
    build = KubernetesPodOperator.build_pod_request_obj
    monkeypatch.setattr(
        KubernetesPodOperator,
        "build_pod_request_obj",
        lambda self, *given, **more: asked.append(build(self, *given, **more)),
    )
    pod_task.execute(context)
    sent: dict[str, Any] = ApiClient().sanitize_for_serialization(asked[0])
    return sent


def test_the_pod_runs_the_image_with_destination_arguments_and_resources(asked_pod: dict[str, Any]) -> None:
    assert asked_pod["metadata"]["namespace"] == "models"
    assert asked_pod["metadata"]["name"].startswith("retrain-digits-")
    (container,) = asked_pod["spec"]["containers"]
    assert container["image"] == "registry.example/train:1.2"
    assert container["env"] == [{"name": "DESTINATION", "value": "s3://training/digits/20260301T020000.partial/"}]
    wanted = {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "1"}
    assert container["resources"] == {"requests": wanted, "limits": wanted}
    assert asked_pod["spec"]["restartPolicy"] == "Never"
    assert asked_pod["spec"]["activeDeadlineSeconds"] == 2 * 3600 + 1800


def test_arguments_reach_the_container_as_they_stand(asked_pod: dict[str, Any]) -> None:
    (container,) = asked_pod["spec"]["containers"]
    assert container["args"] == [
        "--epochs=2",
        "--rate=0.1",
        "--augment=true",
        "--note=$$(HOSTNAME) {{ conf }}; rm -rf /",  # Kubernetes reads $$ as a dollar, and $(HOSTNAME) as a variable
    ]
    assert not container.get("command"), "the image's own entry point"


def test_the_pod_has_no_privileges_and_no_token_of_the_cluster(asked_pod: dict[str, Any]) -> None:
    spec = asked_pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in spec
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_pods_task_waits_without_a_worker_as_long_as_the_training_may_take(pod_task: Any) -> None:
    assert pod_task.deferrable
    assert pod_task.execution_timeout.total_seconds() == 7200
    assert pod_task.kubernetes_conn_id == "kubernetes"


def test_a_finished_candidate_starts_no_pod(
    pod_task: Any, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "find", lambda *_, **__: MADE)
    assert pod_task.execute(context) is None
    assert pod_task.pod_request_obj is None


@pytest.mark.parametrize(("there", "cleared"), [(None, 1), ("Failed", 1), ("Running", 0), ("Pending", 0)])
def test_what_a_running_pod_wrote_is_not_cleared(
    pod_task: Any, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch, there: str | None, cleared: int
) -> None:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    calls: list[Any] = []
    monkeypatch.setattr(training, "clear_destination", lambda *given, **_: calls.append(given))
    monkeypatch.setattr(KubernetesPodOperator, "get_or_create_pod", lambda *_: "pod")
    phase = SimpleNamespace(status=SimpleNamespace(phase=there)) if there else None
    monkeypatch.setattr(pod_task, "find_pod", lambda *_, **__: phase)
    asked = SimpleNamespace(metadata=SimpleNamespace(namespace="models"))
    assert pod_task.get_or_create_pod(asked, context) == "pod"
    assert len(calls) == cleared


def pod_of(*, disrupted: str | None = None, reason: str | None = None) -> Any:
    from kubernetes.client import V1Pod, V1PodCondition, V1PodStatus

    conditions = [V1PodCondition(type="Ready", status="False")]
    if disrupted is not None:
        conditions.append(V1PodCondition(type="DisruptionTarget", status=disrupted))
    return V1Pod(status=V1PodStatus(phase="Failed", conditions=conditions, reason=reason))


@pytest.mark.parametrize(
    ("status", "pod", "kind"),
    [
        ("failed", pod_of(), TrainingFailed),
        ("failed", pod_of(disrupted="False"), TrainingFailed),
        ("timeout", pod_of(), TrainingFailed),
        ("error", pod_of(), RuntimeError),
        ("failed", pod_of(disrupted="True"), RuntimeError),
        ("failed", pod_of(reason="Evicted"), RuntimeError),
        ("failed", None, RuntimeError),
    ],
)
def test_a_failed_training_is_told_from_a_pod_that_the_cluster_took_away(
    pod_task: Any,
    context: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    pod: Any,
    kind: type[Exception],
) -> None:
    """What is not TrainingFailed is tried again."""
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    def fail(self: Any, *_: Any) -> None:
        self.pod = pod
        raise RuntimeError("exit code 3")

    monkeypatch.setattr(KubernetesPodOperator, "trigger_reentry", fail)
    with pytest.raises(kind, match="exit code 3"):
        pod_task.trigger_reentry(context, {"status": status})


def test_the_pods_time_is_handed_on(pod_task: Any, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    monkeypatch.setattr(KubernetesPodOperator, "trigger_reentry", lambda *_: None)
    context["ti"].start_date = datetime.now(UTC)
    pod_task.trigger_reentry(context, {"status": "success"})
    assert 0 <= context["ti"].xcoms["this", "seconds"] < 5
