"""Training by a container image, in a pod of the cluster.

Imports the Kubernetes client: `retrain` imports this module only for models whose training has an image.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

from model_release.errors import TrainingFailed
from model_release.spec import ModelSpec
from model_release.tasks import connections
from model_release.tasks.base import telling
from model_release.tasks.pods import NO_SIDECAR
from model_release.tasks.train import candidate_of, sources, trainable

# Nodes with a GPU may have to be started first, and images with CUDA take minutes to pull.
_START = 1800


class TrainInPod(KubernetesPodOperator):
    """Runs `training.image` in the namespace of the model's service; waits without a worker.

    The pod gets `$DESTINATION`, an S3 prefix to write to, and the arguments as `--name=value`. It runs as a user that
    is not root, without privileges, and without a token of the cluster unless a service account is named. Whatever is
    in the model file reaches it as it stands: nothing is a template, and `$(NAME)` is not replaced.

    Run again, it finds a finished candidate and starts nothing, or the pod of an earlier try and waits on for it; else
    it empties the prefix and starts a pod. A task that is stopped takes its pod along. A pod that the cluster took away
    (evicted, preempted, its node lost) is tried again; one that ended by itself has failed.
    """

    template_fields = ()
    ui_color = "#e6f4ea"

    def __init__(self, *, spec: ModelSpec, service_account: str | None = None, **kwargs: Any) -> None:
        from kubernetes.client import V1ResourceRequirements

        training = trainable(spec)
        resources = V1ResourceRequirements(requests=dict(training.resources), limits=dict(training.resources))
        super().__init__(
            kubernetes_conn_id=connections.KUBERNETES,
            namespace=spec.service.namespace,
            name=f"retrain-{spec.model}",
            image=training.image,
            arguments=[f"--{name}={_plain(value)}" for name, value in training.arguments.items()],
            container_resources=resources if training.resources else None,
            service_account_name=service_account,
            automount_service_account_token=service_account is not None,
            security_context={"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            container_security_context={"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            labels={"app.kubernetes.io/managed-by": "model-release", **NO_SIDECAR},
            annotations={**NO_SIDECAR, "linkerd.io/inject": "disabled"},
            startup_timeout_seconds=_START,
            # Ends the pod even when nobody of Airflow is there to do it.
            active_deadline_seconds=int(training.timeout.total_seconds()) + _START,
            execution_timeout=training.timeout,
            deferrable=True,
            poll_interval=10,
            logging_interval=60,
            log_events_on_failure=True,
            **kwargs,
        )
        self.spec = spec

    def execute(self, context: Any) -> None:
        from model_release.build import training

        candidate = candidate_of(context)
        with telling(self, context):
            made = training.find(sources(self.spec), candidate, base=Path(), reach=connections.reach)
            if made is not None:
                self.log.info("%s is there already: no pod is started", made.origin)
                return
            self.env_vars = {"DESTINATION": training.destination(sources(self.spec), candidate)}
            super().execute(context)

    def get_or_create_pod(self, pod_request_obj: Any, context: Any) -> Any:
        from model_release.build import training

        there = self.find_pod(pod_request_obj.metadata.namespace, context=context)
        if there is None or there.status.phase in ("Succeeded", "Failed"):
            training.clear_destination(sources(self.spec), candidate_of(context), reach=connections.reach)
        return super().get_or_create_pod(pod_request_obj, context)

    def trigger_reentry(self, context: Any, event: dict[str, Any]) -> None:
        with telling(self, context):
            try:
                super().trigger_reentry(context, event)
            except Exception as error:
                if event["status"] in ("failed", "timeout") and not taken_away(self.pod):
                    raise TrainingFailed(f"the pod of {self.image} ended as {event['status']}: {error}") from error
                raise
        seconds = (datetime.now(UTC) - context["ti"].start_date).total_seconds()
        context["ti"].xcom_push(key="seconds", value=round(seconds, 1))


def taken_away(pod: Any) -> bool:
    """Whether the cluster ended this pod, and not what ran in it: it is gone, or Kubernetes says so of it (condition
    DisruptionTarget, since 1.26; before, kubelet's reason)."""
    if pod is None:
        return True
    conditions = {one.type: one.status for one in pod.status.conditions or []}
    return conditions.get("DisruptionTarget") == "True" or pod.status.reason in ("Evicted", "NodeLost", "Shutdown")


def _plain(value: str | int | float | bool) -> str:
    """As the container gets it. Kubernetes would replace `$(NAME)` in a container's arguments; `$$` is a dollar."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("$", "$$")
