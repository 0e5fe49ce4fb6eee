"""Events on objects, as `kubectl describe` lists them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from sandbox.interfaces import Manifest
from sandbox.kube.ownership import Writer
from sandbox.kube.registry import Registry, now
from sandbox.kube.resources import EVENTS

KEPT = timedelta(hours=1)


class Recorder:
    """Writes events. The same event on the same object again raises its count; events go after an hour."""

    def __init__(self, registry: Registry, component: str) -> None:
        self._registry, self._component = registry, component

    def emit(self, obj: Manifest, reason: str, message: str, warning: bool = False) -> None:
        meta, time = obj["metadata"], now()
        namespace = meta["namespace"]
        digest = hashlib.sha256(f"{meta['uid']}/{reason}/{message}".encode()).hexdigest()[:16]
        name = f"{meta['name']}.{digest}"
        writer = Writer(self._component)
        known = self._registry.store.get(self._registry.key(EVENTS, namespace, name))
        if known is not None:
            again = {**known, "count": known["count"] + 1, "lastTimestamp": time}
            self._registry.update(EVENTS, namespace, name, again, writer)
            return
        self._forget_old(namespace)
        event = {
            "metadata": {"name": name},
            "involvedObject": {
                "apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": meta["name"],
                "namespace": namespace, "uid": meta["uid"], "resourceVersion": meta["resourceVersion"],
            },
            "reason": reason,
            "message": message,
            "type": "Warning" if warning else "Normal",
            "count": 1,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "source": {"component": self._component},
            "reportingComponent": self._component,
        }  # fmt: skip
        self._registry.create(EVENTS, namespace, event, writer)

    def _forget_old(self, namespace: str) -> None:
        oldest = (datetime.now(UTC) - KEPT).strftime("%Y-%m-%dT%H:%M:%SZ")
        for event in list(self._registry.store.all(EVENTS.id, namespace)):
            if event.get("lastTimestamp") and event["lastTimestamp"] < oldest:
                self._registry.delete(EVENTS, namespace, event["metadata"]["name"])
