"""The controllers of Standard mode: KServe's own, the one that runs Deployments, and the gateway's.

They bring stored objects one step nearer to what the rules in `standard` say; a step that has nothing to do writes
nothing. When they run is the `controller`'s.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from sandbox.interfaces import Manifest, RevisionKey, Route, Workloads
from sandbox.kube import kserve_spec, kserve_status, standard
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
        except kserve_spec.InvalidSpec as wrong:
            text = f"fails to reconcile predictor: {wrong.message}"
            return {**kserve_status.status_refused(isvc, text, now(), wrong), "deploymentMode": "Standard"}
        # Canaries first: whether they are ready decides how many replicas stable keeps.
        for canary in standard.canaries(isvc):
            replicas = standard.canary_replicas(isvc, canary)
            self._deploy(isvc, standard.canary_predictor(isvc, canary), runtime, replicas)
        deployments = self._mine(isvc, DEPLOYMENTS)
        isvc["status"] = {**isvc.get("status", {}), "canaryStatuses": standard.canary_statuses(isvc, deployments)}
        expected = {standard.service_name(isvc, one["predictor"]) for one in standard.canaries(isvc)}
        self._delete_orphans(isvc, {standard.stable_name(isvc), *expected})
        self._deploy(isvc, isvc["spec"]["predictor"], runtime, standard.stable_replicas(isvc))
        stable = self._mine(isvc, DEPLOYMENTS).get(standard.stable_name(isvc))
        predictor = standard.predictor_condition(stable)
        routed = self._route(isvc, predictor["status"] == TRUE)
        pods = [
            pod for pod in self.all(PODS, isvc["metadata"]["namespace"]) if runner(pod) == standard.stable_name(isvc)
        ]
        return standard.status_after(isvc, predictor, routed, pods, runtime, self._domain, now())

    def _deploy(self, isvc: Manifest, predictor: Manifest, runtime: Manifest, replicas: int) -> None:
        desired = standard.deployment(isvc, predictor, runtime, replicas, owner(isvc))
        self.write(DEPLOYMENTS, desired)
        self.write(CORE_SERVICES, standard.core_service(desired))

    def _route(self, isvc: Manifest, is_ready: bool) -> bool:
        """Whether both routes are in place. While stable is not ready KServe leaves them as they are."""
        if not is_ready:
            return False
        desired = standard.http_routes(isvc, self._domain, self._weighs, owner(isvc))
        written = [self.write(HTTP_ROUTES, route) for route in desired]
        return all(map(standard.is_accepted, written))

    def _mine(self, isvc: Manifest, kind: Kind) -> dict[str, Manifest]:
        meta = isvc["metadata"]
        own = self.all(kind, meta["namespace"], (kserve_spec.SERVICE_LABEL, meta["name"]))
        return {one["metadata"]["name"]: one for one in own}

    def _delete_orphans(self, isvc: Manifest, expected: set[str]) -> None:
        for kind in (DEPLOYMENTS, CORE_SERVICES):
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


class Gateway(Objects):
    """The gateway and the cluster's DNS: what HTTPRoutes and Services mean for the front door."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry, "sandbox-gateway")

    def programme(self) -> tuple[list[Manifest], list[Route]]:
        """The routes as they are now, and what the front door has to do for them."""
        routes = self.all(HTTP_ROUTES)
        hosts = []
        for route in routes:
            namespace = route["metadata"]["namespace"]
            shares = {RevisionKey(namespace, name): share for name, share in standard.weights(route).items() if share}
            hosts += [Route(host, shares) for host in route["spec"]["hostnames"]]
        for service in self.all(CORE_SERVICES):
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            hosts.append(Route(f"{name}.{namespace}.svc.cluster.local", {RevisionKey(namespace, name): 100}))
        return routes, hosts

    def tell(self, routes: list[Manifest]) -> None:
        """The front door acts on these; one that has changed meanwhile is told of in the next round."""
        for route in routes:
            live = self.find(HTTP_ROUTES, route["metadata"]["namespace"], route["metadata"]["name"])
            if live is not None and live["metadata"]["generation"] == route["metadata"]["generation"]:
                self.write_status(HTTP_ROUTES, live, standard.accepted(live, now()))
