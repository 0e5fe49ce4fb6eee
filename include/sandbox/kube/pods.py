"""Pods as KServe's controllers see them, told from the state of the processes that stand in for them.

The rules read failures from pods (last termination of the storage-initializer and of kserve-container), so the
history of a pod is kept where Kubernetes keeps it: in `lastState` and `restartCount`. Pure functions.
"""

from __future__ import annotations

import hashlib
import json

from sandbox.interfaces import Manifest, Phase, PodState

REVISION_LABEL = "serving.knative.dev/revision"
APP_PREFIX = "isvc."  # of the label `app` in Standard mode
INIT, MAIN = "storage-initializer", "kserve-container"

_POD_PHASE = {Phase.STARTING: "Running", Phase.READY: "Running", Phase.CRASHED: "Running"}
_DOWNLOADS = (Phase.DOWNLOADING, Phase.DOWNLOAD_FAILED)


def pods_of(revision: Manifest, state: PodState, before: list[Manifest], now: str) -> list[Manifest]:
    """The revision's pods for a state of its processes; `before` are the pods as last stored."""
    if state.phase is Phase.PENDING and not state.pods:
        return []
    meta = revision["metadata"]
    names = state.pods or (f"{meta['name']}-deployment-{meta['uid'][:8]}",)
    old = {pod["metadata"]["name"]: pod for pod in before}
    return [
        _pod(revision, name, n < state.ready_replicas, state, old.get(name, {}), now) for n, name in enumerate(names)
    ]


def _pod(revision: Manifest, name: str, ready: bool, state: PodState, before: Manifest, now: str) -> Manifest:
    meta, spec = revision["metadata"], revision["spec"]
    status = before.get("status", {})
    init = _container(INIT, _init_state(state), _first(status, "initContainerStatuses"), now)
    main = _container(MAIN, _main_state(state), _first(status, "containerStatuses"), now)
    # A pod that no node has begun with says nothing of its containers.
    has_begun = state.phase is not Phase.PENDING or "containerStatuses" in status
    init["ready"] = state.phase not in (Phase.PENDING, *_DOWNLOADS)
    main["ready"] = ready and state.phase is Phase.READY
    container: Manifest = next(iter(spec.get("containers", [])), {})
    ready_now = {"type": "Ready", "status": "True" if main["ready"] else "False"}
    last: Manifest = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), {})
    since = last.get("lastTransitionTime", now) if last.get("status") == ready_now["status"] else now
    return {
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            "labels": {**meta.get("labels", {}), REVISION_LABEL: meta["name"], "app": meta["name"]},
            "annotations": {"kubectl.kubernetes.io/default-container": MAIN},
            "ownerReferences": [
                {"apiVersion": revision["apiVersion"], "kind": "Revision", "name": meta["name"], "uid": meta["uid"],
                 "controller": True, "blockOwnerDeletion": True},
            ],
        },
        "spec": {
            "initContainers": [{"name": INIT, "image": "kserve/storage-initializer"}],
            "containers": [{**container, "name": MAIN}],
            "nodeName": "localhost",
        },
        "status": {
            "phase": _POD_PHASE.get(state.phase, "Pending"),
            "startTime": status.get("startTime", now),
            "podIP": "127.0.0.1",
            "hostIP": "127.0.0.1",
            "conditions": [{**ready_now, "lastTransitionTime": since}],
        }
        | ({"initContainerStatuses": [init], "containerStatuses": [main]} if has_begun else {}),
    }  # fmt: skip


def _first(status: Manifest, listed: str) -> Manifest:
    return next(iter(status.get(listed, [])), {})


def _ended(state: PodState) -> Manifest:
    code = state.exit_code if state.exit_code is not None else 1
    return {"terminated": {"exitCode": code, "reason": "Error", "message": state.message}}


def _init_state(state: PodState) -> Manifest:
    if state.phase is Phase.PENDING:
        return {"waiting": {"reason": "PodInitializing"}}
    if state.phase is Phase.DOWNLOADING:
        return {"running": {}}
    if state.phase is Phase.DOWNLOAD_FAILED:
        return _ended(state)
    return {"terminated": {"exitCode": 0, "reason": "Completed"}}


def _main_state(state: PodState) -> Manifest:
    if state.phase is Phase.PENDING or state.phase in _DOWNLOADS:
        return {"waiting": {"reason": "PodInitializing"}}
    return _ended(state) if state.phase is Phase.CRASHED else {"running": {}}


def _container(name: str, state: Manifest, before: Manifest, now: str) -> Manifest:
    """A container's status; an end with an error that is over becomes `lastState`, and one more restart."""
    (kind,) = state
    was = before.get("state", {})
    last, restarts = before.get("lastState", {}), before.get("restartCount", 0)
    failed_before = bool(was.get("terminated", {}).get("exitCode"))
    if failed_before and kind != "terminated":
        last, restarts = {"terminated": was["terminated"]}, restarts + 1
    if kind == "running":
        state = {"running": {"startedAt": was.get("running", {}).get("startedAt", now)}}
    return {"name": name, "image": "", "imageID": "", "state": state, "lastState": last, "restartCount": restarts}


def replica_set(deployment: str, template: Manifest) -> str:
    """`ReplicaSet "<deployment>-<hash>"`, as conditions speak of it; another template is another one."""
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
    return f'ReplicaSet "{deployment}-{digest[:10]}"'


def runner(pod: Manifest) -> str:
    """The revision, or in Standard mode the Deployment, that a pod belongs to."""
    labels = pod["metadata"]["labels"]
    return str(labels.get(REVISION_LABEL) or labels["app"].removeprefix(APP_PREFIX))


def ready_count(pods: list[Manifest]) -> int:
    return sum(
        pod["status"]["phase"] == "Running"
        and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])
        for pod in pods
    )


def container_status(pod: Manifest, name: str) -> Manifest:
    """Empty for a pod that has not begun."""
    listed = pod["status"].get("initContainerStatuses" if name == INIT else "containerStatuses", [])
    return next((c for c in listed if c["name"] == name), {})


def failure(container: Manifest) -> Manifest | None:
    """How a container last ended with an error, if it did and has not become ready since."""
    for state in (container.get("state", {}), container.get("lastState", {})):
        ended: Manifest | None = state.get("terminated")
        if ended and ended.get("exitCode"):
            return None if container.get("ready") else ended
    return None
