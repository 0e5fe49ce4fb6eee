"""Why a canary does not come up. KServe tells of the stable predictor's pods alone, so the canary's own are asked.

The signs are those that KServe itself goes by (docs/facts.md#how-a-failing-revision-shows).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from model_release.cluster.objects import TIMEOUTS

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

CONTAINERS = (("initContainerStatuses", "storage-initializer"), ("containerStatuses", "kserve-container"))


class Pods:
    """The pods of a cluster's predictors.

    Args:
        api_client: may be shared by threads.
    """

    def __init__(self, api_client: ApiClient) -> None:
        self._api_client = api_client

    def failure(self, namespace: str, predictor: str) -> tuple[str, int | None] | None:
        """The last words and the exit code of a container that ended with an error; None when none did.

        None also where pods may not be listed or nobody answers: it is only the reason for what is seen anyway.
        """
        import urllib3
        from kubernetes.client import CoreV1Api
        from kubernetes.client.exceptions import ApiException

        try:
            answer = CoreV1Api(self._api_client).list_namespaced_pod(
                namespace,
                label_selector=f"app=isvc.{predictor}",
                limit=5,
                _request_timeout=TIMEOUTS,
                _preload_content=False,
            )
        except (ApiException, urllib3.exceptions.HTTPError):
            return None
        return failure_in(json.loads(answer.data).get("items") or [])


def failure_in(pods: list[dict[str, Any]]) -> tuple[str, int | None] | None:
    """The first container of these pods that ended with an error and has not come up since."""
    for pod in pods:
        for listed, name in CONTAINERS:
            for container in (pod.get("status") or {}).get(listed) or []:
                if container.get("name") == name and (ended := _ended(container)):
                    return " ".join(str(ended.get("message") or ended.get("reason") or "").split()), ended.get(
                        "exitCode"
                    )
    return None


def _ended(container: dict[str, Any]) -> dict[str, Any] | None:
    state = container.get("state") or {}
    terminated: dict[str, Any] = state.get("terminated") or {}
    if terminated.get("reason") == "Error":
        return terminated
    if (state.get("waiting") or {}).get("reason") == "CrashLoopBackOff":
        return (container.get("lastState") or {}).get("terminated") or {"message": "CrashLoopBackOff"}
    return None
