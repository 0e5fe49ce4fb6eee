"""Export, archive and evaluation in a pod of their own: `build: {in: pod, image: …}` in the model file.

The same steps as on a worker (`build/steps.py`), the same names of tasks, the same results: a model file changes
where they run, and nothing else. Each waits for its pod without a worker.

Imports the Kubernetes client: `dag.py` imports this module only for models whose build is in pods.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

from model_release.build import steps
from model_release.errors import ArchiveError, SpecError
from model_release.spec import Evaluation, ModelSpec
from model_release.tasks import connections, evaluate
from model_release.tasks.base import telling
from model_release.tasks.run import Run

#: Credentials of the store for clusters whose service accounts have no role there: a Secret with the variable
#: AIRFLOW_CONN_MODEL_STORE (…_GCS, …_AZURE), or with boto3's own. Where there is none, none is used.
STORE_SECRET = "model-release-store"  # noqa: S105 - a name

# A pod with a mesh's sidecar never ends: its step is done, and the proxy runs on. Istio reads the label, older ones the
# annotation.
NO_SIDECAR = {"sidecar.istio.io/inject": "false"}

# Nodes may have to be started first, and an image with torch takes minutes to pull.
_START = 1800
_TIMEOUT = timedelta(hours=2)


class StepInPod(KubernetesPodOperator):
    """One step of a build as a pod in the namespace of the model's service. Subclasses say what is asked for, and what
    is done with what came of it.

    The pod is given the address of its request in the store and nothing else; nothing of it is a template. It runs as
    a user that is not root, without privileges, on a file system that it may only read but for /tmp, and without a
    token of the cluster.

    Run again, it waits on for the pod of an earlier try, or asks again: equal input gives equal bytes. A task that is
    stopped takes its pod along. A pod that was lost (evicted, out of memory, its node gone) is tried again as Airflow
    tries; what the step itself refused is not.
    """

    template_fields = ()
    ui_color = "#e6f4ea"
    step: steps.Name

    def __init__(self, *, spec: ModelSpec, root: Path, **kwargs: Any) -> None:
        from kubernetes import client as k8s

        build = spec.build
        if build.within != "pod" or build.image is None:
            raise SpecError(f"the model file of {spec.model} builds on the worker; build: {{in: pod}} asks for pods")
        resources = k8s.V1ResourceRequirements(requests=dict(build.resources), limits=dict(build.resources))
        secret = k8s.V1SecretEnvSource(name=STORE_SECRET, optional=True)
        super().__init__(
            kubernetes_conn_id=connections.KUBERNETES,
            namespace=spec.service.namespace,
            name=f"build-{spec.model}-{self.step}",
            image=build.image,
            cmds=["python", "-m", "model_release.commands.build_step"],
            env_vars={"TMPDIR": "/tmp", "HOME": "/tmp", "OMP_NUM_THREADS": str(_cores(build.resources))},  # noqa: S108
            env_from=[k8s.V1EnvFromSource(secret_ref=secret)],
            container_resources=resources if build.resources else None,
            service_account_name=build.service_account,
            automount_service_account_token=False,
            security_context={"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            container_security_context={
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            volumes=[k8s.V1Volume(name="scratch", empty_dir=k8s.V1EmptyDirVolumeSource())],
            volume_mounts=[k8s.V1VolumeMount(name="scratch", mount_path="/tmp")],  # noqa: S108 - the pod's own
            labels={"app.kubernetes.io/managed-by": "model-release", **NO_SIDECAR},
            annotations={**NO_SIDECAR, "linkerd.io/inject": "disabled"},
            startup_timeout_seconds=_START,
            # Ends the pod even when nobody of Airflow is there to do it.
            active_deadline_seconds=int(_TIMEOUT.total_seconds()) + _START,
            execution_timeout=_TIMEOUT,
            deferrable=True,
            poll_interval=10,
            logging_interval=60,
            log_events_on_failure=True,
            do_xcom_push=False,
            **kwargs,
        )
        self.spec, self.root = spec, root

    def request(self, context: Any, resolved: dict[str, Any]) -> steps.Request:
        """What this run asks the step for; equal for all tries."""
        raise NotImplementedError

    def finish(self, context: Any, result: dict[str, Any]) -> dict[str, Any]:
        """What is done with the result on a worker; returns what goes to XCom."""
        return result

    def execute(self, context: Any) -> None:
        with telling(self, context):
            self.arguments = ["--store", self.spec.store, "--request", self.asked(context).key]
            super().execute(context)

    def get_or_create_pod(self, pod_request_obj: Any, context: Any) -> Any:
        there = self.find_pod(pod_request_obj.metadata.namespace, context=context)
        if there is None or there.status.phase in ("Succeeded", "Failed"):
            steps.ask(connections.store(self.spec.store), self.asked(context))
        return super().get_or_create_pod(pod_request_obj, context)

    def trigger_reentry(self, context: Any, event: dict[str, Any]) -> None:
        with telling(self, context):
            store, asked = connections.store(self.spec.store), self.asked(context)
            try:
                super().trigger_reentry(context, event)
            except Exception:
                if event["status"] in ("failed", "error"):
                    # The step's own error says more than the pod's exit code. There is none when the pod was lost.
                    steps.answered(store, asked)
                raise
            result = steps.answered(store, asked)
            if result is None:
                raise ArchiveError(f"the pod ended and left no result at {store.uri}{asked.key}")
            context["ti"].xcom_push(key="return_value", value=self.finish(context, result))

    def asked(self, context: Any) -> steps.Request:
        resolved = context["ti"].xcom_pull(task_ids="resolve", key="resolved")
        if not resolved:
            raise SpecError("task resolve left no result for this run; clear it, and the build follows")
        return self.request(context, dict(resolved))

    @property
    def toolchain(self) -> dict[str, str]:
        from model_release.build import runtimes
        from model_release.build.export import toolchain

        return toolchain(runtimes.handler(self.root, self.spec.runtime), **steps.asked_of(self.spec))


class ExportInPod(StepInPod):
    """`tasks.build.Export`, in a pod."""

    step = "export"

    def request(self, context: Any, resolved: dict[str, Any]) -> steps.Request:
        build, service, release = resolved["build"], self.spec.service.name, Run.of(context, self.spec).release
        asked = steps.Request("export", build, service, resolved["fingerprint"], self.toolchain, release=release)
        return replace(asked, runtime=self.spec.runtime, **steps.asked_of(self.spec))


class ArchiveInPod(StepInPod):
    """`tasks.build.ArchiveModel`, in a pod."""

    step = "archive"

    def request(self, context: Any, resolved: dict[str, Any]) -> steps.Request:
        build, service, release = resolved["build"], self.spec.service.name, Run.of(context, self.spec).release
        asked = steps.Request("archive", build, service, resolved["fingerprint"], self.toolchain, release=release)
        return replace(asked, runtime=self.spec.runtime, **steps.asked_of(self.spec))


class EvaluateInPod(StepInPod):
    """`tasks.evaluate.Evaluate`, in a pod. What is stable is asked here, and what a failed gate means is said here."""

    step = "evaluate"

    def request(self, context: Any, resolved: dict[str, Any]) -> steps.Request:
        run = Run.of(context, self.spec)
        limits = evaluate.limits_of(self.spec, run)
        return evaluate.request(self.spec, run, resolved, limits, *self.stable(context, run, limits))

    def finish(self, context: Any, result: dict[str, Any]) -> dict[str, Any]:
        return evaluate.concluded(self.spec, Run.of(context, self.spec), result)

    def stable(self, context: Any, run: Run, limits: Evaluation) -> tuple[str | None, str | None]:
        """(storage URI of the stable version, None), or (None, why there is none to compare with).

        Asked once in a run: what serves may change while the pod runs, and the question must stay the same.
        """
        known = context["ti"].xcom_pull(task_ids=self.task_id, key="stable")
        if known:
            return cast("tuple[str | None, str | None]", tuple(known))
        found = evaluate.stable_uri(self.spec, run, limits)
        context["ti"].xcom_push(key="stable", value=list(found))
        return found


def _cores(resources: dict[str, str]) -> int:
    """Threads for the CPUs that the pod may use; torch would start one for each of the node's."""
    from kubernetes.utils.quantity import parse_quantity

    return max(1, int(parse_quantity(resources.get("cpu", "1"))))
