"""`build: {in: pod}`: the pod that Kubernetes is asked for, what it is asked, and what is made of its answer.

No pod runs here; what would run in it does in tests/build/test_steps.py, as a process of its own.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client import ApiClient

from model_release.build import steps
from model_release.build.steps import Request
from model_release.errors import ArchiveError, ClusterUnavailable, EvaluationFailed, ParityError, SpecError
from model_release.model_file import load
from model_release.spec import ModelSpec
from model_release.tasks import connections, pods, records
from model_release.tasks import evaluate as evaluating
from model_release.tasks.pods import ArchiveInPod, EvaluateInPod, ExportInPod, StepInPod

from .parsing import Parsing

PROJECT = Path(__file__).resolve().parents[2]
TOOLCHAIN = {"python": "3.11.7", "torch": "2.13.0"}
BUILD = {
    "in": "pod", "image": "registry.example/airflow@sha256:" + "0" * 64, "service_account": "builder",
    "resources": {"cpu": "3500m", "memory": "12Gi", "nvidia.com/gpu": "1"},
}  # fmt: skip
LIMITS = {"data": "s3://models/eval/digits/", "min_accuracy": 0.9, "max_regressions": 0.01}


def model(build: dict[str, Any] | None = None) -> ModelSpec:
    content = load(PROJECT / "include" / "models" / "digits.yaml").model_dump(mode="json", exclude_none=True)
    return ModelSpec.model_validate({**content, "build": build or BUILD, "evaluation": LIMITS})


class Exchange(dict[tuple[str, str], Any]):
    """XComs of one run, by task and key; what was pushed by the task itself is `mine`."""

    mine = "evaluate"
    start_date = None

    def xcom_pull(self, task_ids: str, key: str = "return_value") -> Any:
        return self.get((task_ids, key))

    def xcom_push(self, key: str, value: Any) -> None:
        self[self.mine, key] = value


@pytest.fixture
def context() -> dict[str, Any]:
    exchange = Exchange({("resolve", "resolved"): {"build": "abcd", "fingerprint": "f" * 64, "source": {}}})
    return {"ti": exchange}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepInPod, "toolchain", property(lambda _: TOOLCHAIN))
    monkeypatch.setattr(connections, "store", lambda uri: SimpleNamespace(uri=uri))
    run = SimpleNamespace(release="digits-1", moves_traffic=True, params={})
    monkeypatch.setattr(pods.Run, "of", lambda *_: run)


@pytest.fixture
def sent(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The pod of the export, as it is sent to the API."""
    asked: list[Any] = []
    monkeypatch.setattr(
        KubernetesPodOperator, "execute", lambda self, _: asked.append(self.build_pod_request_obj(dry_run=True))
    )
    ExportInPod(task_id="export", spec=model(), root=PROJECT).execute(context)
    pod: dict[str, Any] = ApiClient().sanitize_for_serialization(asked[0])
    return pod


def test_the_pod_runs_the_step_with_nothing_but_the_address_of_its_request(sent: dict[str, Any]) -> None:
    assert sent["metadata"]["namespace"] == "models"
    assert sent["metadata"]["name"].startswith("build-digits-export-")
    (container,) = sent["spec"]["containers"]
    assert container["image"] == BUILD["image"]
    assert container["command"] == ["python", "-m", "model_release.commands.build_step"]
    request = "builds/abcd/digits-1/export.request.json"
    assert container["args"] == ["--store", "s3://models/digits/", "--request", request]
    assert not sent["spec"].get("initContainers"), "results come by the store: there is no sidecar"


def test_a6_the_pod_asks_for_no_sidecar(sent: dict[str, Any]) -> None:
    """A6: where a mesh puts its proxy into each pod of the namespace, the step is done and the pod never ends."""
    metadata = sent["metadata"]
    assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
    assert metadata["annotations"] == {"sidecar.istio.io/inject": "false", "linkerd.io/inject": "disabled"}


@pytest.mark.parametrize("operator", [ExportInPod, ArchiveInPod, EvaluateInPod])
def test_runs_that_build_the_same_side_by_side_ask_each_for_itself(
    operator: type[StepInPod], context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As dates of one backfill do: one that asks anew takes the answer away from the other."""
    monkeypatch.setattr(evaluating, "stable_uri", lambda *_: (None, "nothing is live yet"))
    asked = set()
    for release in ("digits-1", "digits-2"):
        run = SimpleNamespace(release=release, moves_traffic=False, params={})
        monkeypatch.setattr(pods.Run, "of", lambda *_, run=run: run)
        asked.add(operator(task_id="evaluate", spec=model(), root=PROJECT).asked(context).key)
    assert len(asked) == 2


def test_resources_are_request_and_limit_and_threads_are_whole_cpus(sent: dict[str, Any]) -> None:
    (container,) = sent["spec"]["containers"]
    assert container["resources"] == {"requests": BUILD["resources"], "limits": BUILD["resources"]}
    assert {"name": "OMP_NUM_THREADS", "value": "3"} in container["env"]
    assert sent["spec"]["serviceAccountName"] == "builder"
    assert sent["spec"]["restartPolicy"] == "Never"
    assert sent["spec"]["activeDeadlineSeconds"] == 2 * 3600 + 1800


def test_the_pod_has_no_privileges_no_token_and_no_secret_in_its_text(sent: dict[str, Any]) -> None:
    (container,) = sent["spec"]["containers"]
    assert sent["spec"]["securityContext"]["runAsNonRoot"] is True
    assert sent["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert sent["spec"]["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert container["volumeMounts"] == [{"name": "scratch", "mountPath": "/tmp"}]
    assert sent["spec"]["volumes"] == [{"name": "scratch", "emptyDir": {}}]
    assert container["envFrom"] == [{"secretRef": {"name": "model-release-store", "optional": True}}]
    assert {one["name"] for one in container["env"]} == {"TMPDIR", "HOME", "OMP_NUM_THREADS"}


def test_nothing_of_a_model_file_is_a_template_and_no_worker_waits() -> None:
    for kind in (ExportInPod, ArchiveInPod, EvaluateInPod):
        task = kind(task_id=kind.step, spec=model(), root=PROJECT)
        assert task.template_fields == ()
        assert task.deferrable
        assert not task.do_xcom_push
        assert task.execution_timeout == timedelta(hours=2)


def test_a_build_on_the_worker_is_no_pod() -> None:
    with pytest.raises(SpecError, match="builds on the worker"):
        ExportInPod(task_id="export", spec=model({"in": "worker"}), root=PROJECT)


def test_export_and_archive_ask_for_this_build_by_this_toolchain(context: dict[str, Any]) -> None:
    for kind, name in ((ExportInPod, "export"), (ArchiveInPod, "archive")):
        task = kind(task_id=name, spec=model(), root=PROJECT)
        assert task.asked(context) == Request(name, "abcd", "digits", "f" * 64, TOOLCHAIN, release="digits-1")
        assert task.asked(context) == task.asked(context), "every try asks the same"


def test_without_a_resolve_it_says_what_to_do() -> None:
    with pytest.raises(SpecError, match="clear it, and the build follows"):
        ExportInPod(task_id="export", spec=model(), root=PROJECT).asked({"ti": Exchange()})


def stable_is(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[int]:
    asked: list[int] = []

    def serving(_: Any) -> str | None:
        asked.append(1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(evaluating, "serving", serving)
    return asked


URI = "s3://models/digits/versions/0123456789abcdef/"


@pytest.mark.parametrize(
    ("answer", "stable", "why_not"),
    [
        (URI, URI, None),
        (None, None, "no version of models/digits is known to be stable"),
        ("s3://else/", None, "s3://else/, which models/digits serves, is no version of this project"),
    ],
)
def test_the_evaluation_is_told_what_is_stable_once(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch, answer: Any, stable: Any, why_not: Any
) -> None:
    asked = stable_is(monkeypatch, answer)
    task = EvaluateInPod(task_id="evaluate", spec=model(), root=PROJECT)
    first = task.asked(context)
    assert (first.stable, first.no_stable) == (stable, why_not)
    assert (first.build, first.version, first.picture) == ("abcd", None, "releases/digits-1.confusion.png")
    assert first.evaluation == {**LIMITS, "batch": 16}
    assert task.asked(context) == first
    assert len(asked) == 1, "what serves may change while the pod runs; the question must not"


def test_a_cluster_that_does_not_answer_is_asked_again_where_regressions_are_limited(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stable_is(monkeypatch, ClusterUnavailable("away"))
    task = EvaluateInPod(task_id="evaluate", spec=model(), root=PROJECT)
    with pytest.raises(ClusterUnavailable):
        task.asked(context)


def test_a_version_that_is_there_is_evaluated_under_its_own_name(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stable_is(monkeypatch, None)
    context["ti"]["resolve", "resolved"] = {"version": "0123456789abcdef"}
    asked = EvaluateInPod(task_id="evaluate", spec=model(), root=PROJECT).asked(context)
    assert (asked.build, asked.version) == ("0123456789abcdef", "0123456789abcdef")


# After the pod


def ended(monkeypatch: pytest.MonkeyPatch, *, pod: Exception | None, left: Any) -> None:
    """`pod`: how KubernetesPodOperator sees its end; `left`: the result in the store, or the error that is there."""

    def reentry(self: Any, context: Any, event: Any) -> None:
        if pod is not None:
            raise pod

    def answered(store: Any, request: Any) -> Any:
        if isinstance(left, Exception):
            raise left
        return left

    monkeypatch.setattr(KubernetesPodOperator, "trigger_reentry", reentry)
    monkeypatch.setattr(steps, "answered", answered)


def test_the_result_goes_to_xcom_and_nothing_else(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ended(monkeypatch, pod=None, left={"parity": {"limit": 1e-5}})
    before = dict(context["ti"])
    ExportInPod(task_id="export", spec=model(), root=PROJECT).trigger_reentry(context, {"status": "success"})
    assert set(context["ti"]) - set(before) == {("evaluate", "return_value")}
    assert context["ti"]["evaluate", "return_value"] == {"parity": {"limit": 1e-5}}


def test_the_steps_own_error_is_told_and_not_the_pods(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ended(monkeypatch, pod=RuntimeError("exit code 1"), left=ParityError("logits differ by 0.1"))
    with pytest.raises(ParityError, match="logits differ"):
        ExportInPod(task_id="export", spec=model(), root=PROJECT).trigger_reentry(context, {"status": "failed"})


def test_a_pod_that_was_lost_fails_as_airflow_tries_again(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(monkeypatch, pod=RuntimeError("OOMKilled"), left=None)
    with pytest.raises(RuntimeError, match="OOMKilled"):
        ExportInPod(task_id="export", spec=model(), root=PROJECT).trigger_reentry(context, {"status": "failed"})


def test_a_pod_that_ends_well_and_leaves_nothing_is_a_fault(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(monkeypatch, pod=None, left=None)
    with pytest.raises(ArchiveError, match="left no result"):
        ExportInPod(task_id="export", spec=model(), root=PROJECT).trigger_reentry(context, {"status": "success"})


def test_a_gate_that_failed_in_the_pod_fails_the_task_after_it_is_recorded(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stable_is(monkeypatch, None)
    kept: list[Any] = []
    monkeypatch.setattr(records, "change", lambda _spec, _run, edit: kept.append(edit))
    gates = [
        {"passed": True, "sentence": "recall 0.95 of 0.9"},
        {"passed": False, "sentence": "accuracy 0.5, and 0.9 at least was asked for"},
    ]
    answered = {
        "passed": False,
        "gates": gates,
        "data": {"images": 300, "uri": LIMITS["data"]},
        "candidate": {"version": "0123456789abcdef"},
    }
    ended(monkeypatch, pod=None, left=answered)
    task = EvaluateInPod(task_id="evaluate", spec=model(), root=PROJECT)
    with pytest.raises(
        EvaluationFailed, match=r"0123456789abcdef on 300 images of .*: accuracy 0\.5, and 0\.9"
    ) as failed:
        task.trigger_reentry(context, {"status": "success"})
    assert "recall" not in str(failed.value)
    record = SimpleNamespace(evaluation=None)
    kept[0](record)
    assert record.evaluation == answered
    assert ("evaluate", "return_value") not in context["ti"]


def test_the_pod_of_an_earlier_try_is_waited_for_and_not_asked_anew(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []
    monkeypatch.setattr(steps, "ask", lambda _store, request: asked.append(request))
    monkeypatch.setattr(KubernetesPodOperator, "get_or_create_pod", lambda self, wanted, context: wanted)
    task = ExportInPod(task_id="export", spec=model(), root=PROJECT)
    wanted = SimpleNamespace(metadata=SimpleNamespace(namespace="models"))
    for phase, expected in (("Running", 0), ("Pending", 0), ("Failed", 1), ("Succeeded", 2), (None, 3)):
        there = SimpleNamespace(status=SimpleNamespace(phase=phase)) if phase else None
        monkeypatch.setattr(task, "find_pod", lambda *_, there=there, **__: there)
        task.get_or_create_pod(wanted, context)
        assert len(asked) == expected, phase


def test_the_dag_of_a_model_without_pods_imports_no_kubernetes(parsing: Parsing) -> None:
    code = (
        "import json, sys; from pathlib import Path; from model_release.model_file import load; "
        "from model_release.tasks.dag import release_dag; "
        f"release_dag(load(Path({str(PROJECT / 'include/models/digits.yaml')!r})), Path({str(PROJECT)!r})); "
        "print(json.dumps([m for m in ('kubernetes', 'model_release.tasks.pods') if m in sys.modules]))"
    )
    assert parsing(code) == []
