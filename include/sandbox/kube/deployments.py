"""The controllers of Standard mode: KServe's own, and the one that runs Deployments.

They bring stored objects one step nearer to what the rules in `standard` say; a step that has nothing to do writes
nothing. When they run is the `controller`'s.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from sandbox.interfaces import Manifest, RevisionKey, Workloads
from sandbox.kube import kserve_spec, kserve_status, seed, standard
from sandbox.kube.conditions import TRUE
from sandbox.kube.errors import ApiError
from sandbox.kube.pods import pods_of, runner
from sandbox.kube.processes import Processes
from sandbox.kube.reconcilers import KSERVE, Objects, owner
from sandbox.kube.registry import Registry, now
from sandbox.kube.resources import CORE_SERVICES, DEPLOYMENTS, HTTP_ROUTES, PODS, Kind


class StandardServices(Objects):
    """KServe: InferenceService in Standard mode → Deployments, Services, HTTPRoutes, and the status that it tells.

    `weighs`: HTTPRoutes have weights for canaries, as from 0.21 on.
    """

    def __init__(self, registry: Registry, domain: str, *, weighs: bool) -> None:
        super().__init__(registry, KSERVE)
        self._domain, self._weighs = domain, weighs

    def reconcile(self, isvc: Manifest, runtimes: list[Manifest]) -> Manifest:
        """Brings everything nearer to the spec, and returns the status."""
        try:
            runtime = kserve_spec.choose_runtime(isvc, runtimes)
            # Each canary has the runtime that its own predictor names: one may move the service to another.
            theirs = []
            for canary in standard.canaries(isvc):
                predictor = standard.canary_predictor(isvc, canary)
                one = {**isvc, "spec": {**isvc["spec"], "predictor": predictor}}
                theirs.append((canary, predictor, kserve_spec.choose_runtime(one, runtimes)))
        except kserve_spec.InvalidSpec as wrong:
            text = f"fails to reconcile predictor: {wrong.message}"
            return {**kserve_status.status_refused(isvc, text, now(), wrong), "deploymentMode": "Standard"}
        if kserve_spec.is_stopped(isvc):
            self._delete_all_but(isvc, set(), (DEPLOYMENTS, CORE_SERVICES, HTTP_ROUTES))
            return standard.status_stopped(isvc, runtime, standard.canary_statuses(isvc, {}), now())
        # Canaries first: whether they are ready decides how many replicas stable keeps, and their weights.
        for canary, predictor, its in theirs:
            self._deploy(isvc, predictor, its, standard.canary_replicas(isvc, canary))
        stable = standard.stable_name(isvc)
        canaries = standard.canary_statuses(isvc, self._mine(isvc, DEPLOYMENTS))
        ready = {one["name"] for one in canaries if one["ready"]}
        expected = {standard.service_name(isvc, one["predictor"]) for one in standard.canaries(isvc)}
        self._delete_all_but(isvc, {stable, *expected}, (DEPLOYMENTS, CORE_SERVICES))
        self._deploy(isvc, isvc["spec"]["predictor"], runtime, standard.stable_replicas(isvc, ready))
        observed = standard.Observed(
            runtime,
            canaries,
            self._mine(isvc, DEPLOYMENTS).get(stable),
            [pod for pod in self.all(PODS, isvc["metadata"]["namespace"]) if runner(pod) == stable],
            self._route(isvc, ready),
        )
        return standard.status_after(isvc, observed, seed.addresses(self.registry), self._domain, now())

    def _deploy(self, isvc: Manifest, predictor: Manifest, runtime: Manifest, replicas: int) -> None:
        desired = standard.deployment(isvc, predictor, runtime, replicas, owner(isvc))
        self.write(DEPLOYMENTS, desired)
        self.write(CORE_SERVICES, standard.core_service(desired))

    def _route(self, isvc: Manifest, ready: set[str]) -> Manifest:
        """What is told of the routes. While stable is not ready KServe leaves them as they are."""
        stable = self._mine(isvc, DEPLOYMENTS).get(standard.stable_name(isvc))
        if standard.predictor_condition(stable)["status"] == TRUE:
            addresses = seed.addresses(self.registry)
            for route in standard.http_routes(
                isvc, ready if self._weighs else None, addresses, self._domain, owner(isvc)
            ):
                self.write(HTTP_ROUTES, route)
        name = isvc["metadata"]["name"]
        routes = self._mine(isvc, HTTP_ROUTES)
        return standard.ingress_condition([routes.get(f"{name}-predictor"), routes.get(name)])

    def _mine(self, isvc: Manifest, kind: Kind) -> dict[str, Manifest]:
        meta = isvc["metadata"]
        own = self.all(kind, meta["namespace"], (kserve_spec.SERVICE_LABEL, meta["name"]))
        return {one["metadata"]["name"]: one for one in own}

    def _delete_all_but(self, isvc: Manifest, expected: set[str], kinds: tuple[Kind, ...]) -> None:
        for kind in kinds:
            for name in set(self._mine(isvc, kind)) - expected:
                with suppress(ApiError):
                    self.registry.delete(kind, isvc["metadata"]["namespace"], name)


class Deployments(Processes):
    """Kubernetes: Deployment → processes, pods and status."""

    def __init__(self, registry: Registry, workloads: Workloads, progress_deadline: float) -> None:
        super().__init__(registry, "kube-controller-manager", workloads)
        self._deadline = progress_deadline

    async def reconcile(self) -> None:
        known = {RevisionKey(d["metadata"]["namespace"], d["metadata"]["name"]): d for d in self.all(DEPLOYMENTS)}
        for key, uid in list(self._running.items()):
            if key not in known or known[key]["metadata"]["uid"] != uid:
                self._stop(key)
        for key, deployment in known.items():
            if deployment["spec"]["replicas"]:
                await self._start(standard.workload(deployment), deployment["metadata"]["uid"])
            elif key in self._running:
                self._stop(key)
            live = self.find(DEPLOYMENTS, key.namespace, key.name)
            if live is not None and live["metadata"]["uid"] == deployment["metadata"]["uid"]:
                self._observe(key, live)

    def _observe(self, key: RevisionKey, deployment: Manifest) -> None:
        before = [pod for pod in self.all(PODS, key.namespace) if runner(pod) == key.name]
        pods: list[Manifest] = []
        if key in self._running:
            meta, template = deployment["metadata"], deployment["spec"]["template"]
            labelled = {"apiVersion": "apps/v1", "metadata": {**meta, "labels": {}}, "spec": template["spec"]}
            pods = standard.pods(deployment, pods_of(labelled, self._workloads.state(key), before, now()))
        names = {pod["metadata"]["name"] for pod in pods}
        for gone in before:
            if gone["metadata"]["name"] not in names:
                self.registry.delete(PODS, key.namespace, gone["metadata"]["name"])
        stored = {pod["metadata"]["name"]: pod for pod in before}
        for pod in pods:
            if found := stored.get(pod["metadata"]["name"]):
                self.write_status(PODS, found, pod["status"])
            else:
                self.write(PODS, pod)
        began = datetime.fromisoformat(deployment["metadata"]["creationTimestamp"])
        late = (datetime.now(UTC) - began).total_seconds() > self._deadline
        self.write_status(DEPLOYMENTS, deployment, standard.deployment_status(deployment, pods, late, now()))
