"""The controllers that only read and write objects: KServe's, and Knative's for services and configurations.

Each brings stored objects one step nearer to what the rules (`kserve_spec`, `kserve_status`, `knative`) say; a
step that has nothing to do writes nothing. The order in which they run and the time between rounds are the
`controller`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from sandbox.interfaces import Manifest
from sandbox.kube import admission, knative, kserve_spec, kserve_status, seed
from sandbox.kube.conditions import TRUE, state
from sandbox.kube.errors import ApiError
from sandbox.kube.events import Recorder
from sandbox.kube.faults import Faults
from sandbox.kube.ownership import Writer
from sandbox.kube.pods import REVISION_LABEL
from sandbox.kube.registry import Registry, now
from sandbox.kube.resources import (
    CLUSTER_RUNTIMES,
    CONFIGURATIONS,
    INFERENCE_SERVICES,
    KSERVICES,
    PODS,
    REVISIONS,
    ROUTES,
    RUNTIMES,
    Kind,
)

FINALIZER = "inferenceservice.finalizers"
KSERVE, _KNATIVE = "kserve-controller-manager", "knative-serving-controller"


def owner(obj: Manifest) -> list[Manifest]:
    meta = obj["metadata"]
    reference = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": meta["name"], "uid": meta["uid"]}
    return [{**reference, "controller": True, "blockOwnerDeletion": True}]


class Objects:
    """What every controller does with stored objects."""

    def __init__(self, registry: Registry, manager: str) -> None:
        self.registry, self.manager = registry, manager

    def find(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        return self.registry.store.get(self.registry.key(kind, namespace, name))

    def all(self, kind: Kind, namespace: str | None = None, label: tuple[str, str] | None = None) -> list[Manifest]:
        return list(self.registry.store.all(kind.id, namespace, label))

    def write(self, kind: Kind, desired: Manifest) -> Manifest:
        """Create the object, or bring its spec, labels and annotations to what is desired."""
        meta = desired["metadata"]
        found = self.find(kind, meta["namespace"], meta["name"])
        writer = Writer(self.manager, api_version=kind.api_version)
        if found is None:
            return self.registry.create(kind, meta["namespace"], desired, writer)
        found["spec"] = desired["spec"]
        for field in ("labels", "annotations", "ownerReferences"):
            if meta.get(field):
                found["metadata"][field] = meta[field]
        return self.registry.update(kind, meta["namespace"], meta["name"], found, writer)

    def write_status(self, kind: Kind, obj: Manifest, status: Manifest) -> None:
        """Store an object's status; an object that is gone meanwhile, or another one of its name, is left alone."""
        if obj.get("status") == status:
            return
        meta, writer = obj["metadata"], Writer(self.manager, "Update", "status", kind.api_version)
        changed = {"metadata": {"name": meta["name"], "uid": meta["uid"]}, "status": status}
        with suppress(ApiError):
            self.registry.update(kind, meta["namespace"], meta["name"], changed, writer)


class StandardMode(Protocol):
    """KServe's controller for an InferenceService in Standard mode (`deployments.StandardServices`)."""

    def reconcile(self, isvc: Manifest, runtimes: list[Manifest]) -> Manifest: ...


class InferenceServices(Objects):
    """KServe: InferenceService → Knative Service, and its status back; in Standard mode `standard` does both."""

    def __init__(
        self,
        registry: Registry,
        cluster_default: Callable[[], str],
        standard: StandardMode,
        faults: Faults,
    ) -> None:
        super().__init__(registry, KSERVE)
        self._cluster_default, self._standard, self._faults = cluster_default, standard, faults
        self._events = Recorder(registry, "v1beta1Controllers")
        self._seen: list[tuple[Any, ...]] = []

    def are_new(self) -> bool:
        """Whether somebody wrote an InferenceService since the last pass."""
        return self._seen != self._written()

    def reconcile(self) -> None:
        for isvc in self.all(INFERENCE_SERVICES):
            self._one(isvc)
        self._seen = self._written()

    def _written(self) -> list[tuple[Any, ...]]:
        """What its writers can change of each InferenceService; the status is KServe's own."""
        metas = [isvc["metadata"] for isvc in self.all(INFERENCE_SERVICES)]
        fields = ("uid", "generation", "annotations", "labels", "deletionTimestamp")
        return [tuple(meta.get(field) for field in fields) for meta in metas]

    def _one(self, isvc: Manifest) -> None:
        meta = isvc["metadata"]
        name = kserve_spec.service_name(isvc)
        if meta.get("deletionTimestamp"):
            self._delete_service(isvc, name)
            isvc["metadata"]["finalizers"] = [f for f in meta.get("finalizers", []) if f != FINALIZER]
            self.registry.update(INFERENCE_SERVICES, meta["namespace"], meta["name"], isvc, Writer(self.manager))
            return
        if FINALIZER not in meta.get("finalizers", []):
            isvc["metadata"]["finalizers"] = [*meta.get("finalizers", []), FINALIZER]
            isvc = self.registry.update(INFERENCE_SERVICES, meta["namespace"], meta["name"], isvc, Writer(self.manager))
        status = self._status(isvc, name)
        self._tell(isvc, status)
        self.write_status(INFERENCE_SERVICES, isvc, status)

    def _status(self, isvc: Manifest, name: str) -> Manifest:
        if admission.mode(isvc, self._cluster_default()) != admission.KNATIVE:
            return self._standard.reconcile(isvc, self._runtimes(isvc["metadata"]["namespace"]))
        try:
            runtime = kserve_spec.choose_runtime(isvc, self._runtimes(isvc["metadata"]["namespace"]))
        except kserve_spec.InvalidSpec as wrong:
            return kserve_status.status_refused(isvc, f"fails to reconcile predictor: {wrong.message}", now(), wrong)
        if kserve_spec.is_stopped(isvc):
            self._delete_service(isvc, name)
            return kserve_status.status_stopped(isvc, runtime, now())
        before = self.find(KSERVICES, isvc["metadata"]["namespace"], name)
        desired = kserve_spec.knative_service(isvc, runtime)
        if refusal := self._refused(desired, before):
            text = f"fails to reconcile predictor: fails to reconcile knative service: {refusal}"
            return kserve_status.status_refused(isvc, text, now())
        # The status is told from the service as it was found: it lags what is written now by one round.
        found = before or {}
        self.write(KSERVICES, desired)
        newest = str(found.get("status", {}).get("latestCreatedRevisionName"))
        pods = self.all(PODS, isvc["metadata"]["namespace"], (REVISION_LABEL, newest))
        own_host = seed.addresses(self.registry).own_host
        return kserve_status.status_after(isvc, found, pods, runtime, own_host, now())

    def _refused(self, service: Manifest, before: Manifest | None) -> str | None:
        """What Knative's webhook answers to a write of the Service; None: it is taken, or there is nothing to write."""
        if before is not None and before["spec"] == service["spec"]:
            return None
        if self._faults.is_away("knative-webhook"):
            return knative.WEBHOOK_AWAY
        problems = "\n".join(knative.validation_problems(service["spec"]))
        text = f'admission webhook "{knative.WEBHOOK}" denied the request: validation failed: {problems}'
        return text if problems else None

    def _runtimes(self, namespace: str) -> list[Manifest]:
        return [*self.all(RUNTIMES, namespace), *self.all(CLUSTER_RUNTIMES)]

    def _delete_service(self, isvc: Manifest, name: str) -> None:
        if self.find(KSERVICES, isvc["metadata"]["namespace"], name) is not None:
            self.registry.delete(KSERVICES, isvc["metadata"]["namespace"], name)

    def _tell(self, isvc: Manifest, status: Manifest) -> None:
        """Events for what changed: readiness, and a reconcile that began to fail."""
        name, before = isvc["metadata"]["name"], isvc.get("status", {})
        was, is_ = state(before, "Ready"), state(status, "Ready")
        if was != TRUE and is_ == TRUE:
            self._events.emit(isvc, "InferenceServiceReady", f"InferenceService [{name}] is Ready")
        elif was == TRUE and is_ != TRUE:
            terminal = (c for c in status["conditions"] if "severity" not in c and c["type"] != "Ready")
            causes = [c["type"] for c in terminal if c["status"] != TRUE]
            text = f"InferenceService [{name}] is no longer Ready because of: {', '.join(sorted(causes))}"
            self._events.emit(isvc, "InferenceServiceNotReady", text, warning=True)
        failed = self._refusal(status)
        if failed and failed != self._refusal(before):
            self._events.emit(isvc, "InternalError", failed, warning=True)
        told, now_told = before.get("modelStatus", {}), status.get("modelStatus", {})
        transition, said = now_told.get("transitionStatus"), now_told.get("lastFailureInfo", {})
        if transition in ("BlockedByFailedLoad", "InvalidSpec") and transition != told.get("transitionStatus"):
            text = f"{said.get('reason', 'ModelLoadFailed')}: {said.get('message', '')}"
            self._events.emit(isvc, transition, text[-1000:], warning=True)

    @staticmethod
    def _refusal(status: Manifest) -> str:
        for cond in status.get("conditions", []):
            if cond["type"] == "PredictorReady" and cond.get("reason") == "ReconcileFailed":
                return str(cond["message"])
        return ""


class Services(Objects):
    """Knative: Service → Configuration and Route, and its status from theirs."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry, _KNATIVE)

    def reconcile(self) -> None:
        for service in self.all(KSERVICES):
            meta, spec = service["metadata"], service["spec"]
            common = {
                "name": meta["name"],
                "namespace": meta["namespace"],
                "labels": {**meta.get("labels", {}), "serving.knative.dev/service": meta["name"]},
                "ownerReferences": owner(service),
            }
            configuration = self.write(CONFIGURATIONS, {"metadata": common, "spec": {"template": spec["template"]}})
            route = self.write(ROUTES, {"metadata": common, "spec": {"traffic": spec["traffic"]}})
            self.write_status(KSERVICES, service, knative.service_status(service, configuration, route, now()))


class Configurations(Objects):
    """Knative: Configuration → a revision for each generation of its template.

    `lags(configuration)` is asked when there is something to do; while it answers yes, the controller is late.
    """

    def __init__(self, registry: Registry, lags: Callable[[Manifest], bool]) -> None:
        super().__init__(registry, _KNATIVE)
        self._lags = lags

    def reconcile(self) -> bool:
        """True when a configuration was left for later."""
        late = False
        for configuration in self.all(CONFIGURATIONS):
            observed = configuration.get("status", {}).get("observedGeneration")
            if observed != configuration["metadata"]["generation"] and self._lags(configuration):
                late = True
                continue
            self._one(configuration)
        return late

    def _one(self, configuration: Manifest) -> None:
        meta = configuration["metadata"]
        name = knative.revision_name(configuration)
        revisions = self.all(REVISIONS, meta["namespace"], (knative.CONFIGURATION, meta["name"]))
        if self.find(REVISIONS, meta["namespace"], name) is None:
            self.write(REVISIONS, self._revision(configuration, name))
        self.write_status(CONFIGURATIONS, configuration, knative.configuration_status(configuration, revisions, now()))

    @staticmethod
    def _revision(configuration: Manifest, name: str) -> dict[str, Any]:
        meta, template = configuration["metadata"], configuration["spec"]["template"]
        labels = {
            knative.CONFIGURATION: meta["name"],
            "serving.knative.dev/service": meta["name"],
            knative.GENERATION: str(meta["generation"]),
        }
        return {
            "metadata": {
                "name": name,
                "namespace": meta["namespace"],
                "labels": template["metadata"]["labels"] | labels,
                "annotations": template["metadata"]["annotations"],
                "ownerReferences": owner(configuration),
            },
            "spec": template["spec"],
        }
