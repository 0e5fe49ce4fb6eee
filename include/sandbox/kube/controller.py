"""The control loop: runs the controllers in rounds, starts and stops revisions, resolves routes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic

from sandbox.interfaces import Manifest, Phase, PodState, RevisionKey, Router, Workloads
from sandbox.kube import knative, kserve_spec, routing
from sandbox.kube.deployments import Deployments, StandardServices
from sandbox.kube.faults import Faults
from sandbox.kube.gateway import Gateway
from sandbox.kube.pods import REVISION_LABEL, pods_of
from sandbox.kube.processes import Processes
from sandbox.kube.reconcilers import Configurations, InferenceServices, Objects, Services, owner
from sandbox.kube.registry import Registry, now
from sandbox.kube.resources import CONFIGURATIONS, INGRESSES, PODS, REVISIONS, ROUTES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """Seconds. `lag` is what a status lags a write by in each round; the others are Knative's own waits."""

    lag: float = 0.05
    poll: float = 0.2
    progress_deadline: float = 600.0
    failed_grace: float = 30.0  # how long a revision that missed its deadline keeps its pods
    reserve_grace: float = 60.0  # how long a ready revision without traffic keeps its pods


class Revisions(Processes):
    """Knative's revision controller and autoscaler: which revisions have processes, and what became of them."""

    def __init__(self, registry: Registry, workloads: Workloads, timing: Timing) -> None:
        super().__init__(registry, "knative-serving-controller", workloads)
        self._timing = timing
        self._started = datetime.now(UTC)
        self._idle_since: dict[RevisionKey, float] = {}

    async def reconcile(self) -> None:
        revisions = self.all(REVISIONS)
        known = {RevisionKey(r["metadata"]["namespace"], r["metadata"]["name"]): r for r in revisions}
        for key, uid in list(self._running.items()):
            if key not in known or known[key]["metadata"]["uid"] != uid:
                self._stop(key)
        for key, revision in known.items():
            await self._start_or_stop(key, revision)
            live = self.find(REVISIONS, key.namespace, key.name)
            if live is not None and live["metadata"]["uid"] == revision["metadata"]["uid"]:
                self._observe(key, live)

    async def _start_or_stop(self, key: RevisionKey, revision: Manifest) -> None:
        if self._is_wanted(key, revision):
            self._idle_since.pop(key, None)
            await self._start(kserve_spec.workload(revision), revision["metadata"]["uid"])
        elif key in self._running:
            idle = self._idle_since.setdefault(key, monotonic())
            if monotonic() - idle >= self._timing.reserve_grace:
                self._stop(key)

    def _is_wanted(self, key: RevisionKey, revision: Manifest) -> bool:
        """Named in traffic, whatever the percent; or the newest, until it has missed its deadline for good."""
        name = revision["metadata"]["labels"][knative.CONFIGURATION]
        route = self.find(ROUTES, key.namespace, name)
        told = [*(route or {}).get("spec", {}).get("traffic", []), *(route or {}).get("status", {}).get("traffic", [])]
        if any(target.get("revisionName") == key.name for target in told):
            return True
        configuration = self.find(CONFIGURATIONS, key.namespace, name) or {}
        names = configuration.get("status", {})
        if names.get("latestReadyRevisionName") == key.name:
            return True
        is_newest = names.get("latestCreatedRevisionName", key.name) == key.name
        return is_newest and not self._is_late(revision, self._timing.failed_grace)

    def _is_late(self, revision: Manifest, grace: float = 0.0) -> bool:
        began = max(knative.started_at(revision), self._started)
        allowed = knative.progress_deadline(revision, self._timing.progress_deadline) + grace
        return (datetime.now(UTC) - began).total_seconds() > allowed

    def _stop(self, key: RevisionKey) -> None:
        self._idle_since.pop(key, None)
        super()._stop(key)

    def _observe(self, key: RevisionKey, revision: Manifest) -> None:
        """Pods and status of a revision, from the state of its processes."""
        before = self.all(PODS, key.namespace, (REVISION_LABEL, key.name))
        pods: list[Manifest] = []
        if key in self._running:
            pods = pods_of(revision, self._workloads.state(key), before, now())
        elif key in self._removals and self._is_wanted(key, revision):
            # One that was made anew: its pod is there, while the processes of the former one still end.
            pods = pods_of(revision, PodState(Phase.PENDING, pods=(f"{key.name}-deployment-0",)), before, now())
        names = {p["metadata"]["name"] for p in pods}
        for gone in before:
            if gone["metadata"]["name"] not in names:
                self.registry.delete(PODS, key.namespace, gone["metadata"]["name"])
        stored = {p["metadata"]["name"]: p for p in before}
        for pod in pods:
            if found := stored.get(pod["metadata"]["name"]):
                self.write_status(PODS, found, pod["status"])
            else:
                self.write(PODS, pod)
        status = knative.revision_status(revision, pods, self._is_late(revision), now())
        self.write_status(REVISIONS, revision, status)


class Routes(Objects):
    """Knative's route controller: resolves targets, and asks the gateway for them by an Ingress.

    Where a target cannot be resolved the Ingress stays as it is, with all of its splits.
    """

    def __init__(self, registry: Registry, domain: str) -> None:
        super().__init__(registry, "knative-serving-controller")
        self._domain = domain

    def reconcile(self) -> None:
        for route in self.all(ROUTES):
            resolution, acted_on = self._resolve(route), False
            if resolution.traffic is not None:
                wanted = routing.ingress(route, resolution.traffic, self._domain, owner(route))
                acted_on = routing.is_acted_on(self.write(INGRESSES, wanted))
            status = routing.route_status(route, resolution, acted_on, self._domain, now())
            self.write_status(ROUTES, route, status)

    def _resolve(self, route: Manifest) -> routing.Resolution:
        meta = route["metadata"]
        own = self.all(REVISIONS, meta["namespace"], (knative.CONFIGURATION, meta["name"]))
        revisions = {r["metadata"]["name"]: r for r in own}
        configuration = self.find(CONFIGURATIONS, meta["namespace"], meta["name"]) or {}
        return routing.resolve(route, configuration, revisions, self._domain)


class Turn:
    """When a controller that is slower than Knative's acts: so many rounds after there is something to do.

    In the recordings KServe tells of what Knative did 0.1 to 0.3 s later, and the gateway acts as late. In
    between a status says what is not true yet, which is what its readers have to know.
    """

    def __init__(self, rounds: int) -> None:
        self._rounds, self._waited = rounds, 0

    def comes(self, has_work: bool) -> bool:
        """To be asked once in each round."""
        self._waited = self._waited + 1 if has_work else 0
        return self._waited >= self._rounds

    def is_over(self) -> None:
        self._waited = 0

    @property
    def is_awaited(self) -> bool:
        return 0 < self._waited < self._rounds


class Controller:
    """All controllers together. `round` is one pass; `settle` runs passes until nothing changes; `run` is for ever.

    `faults` says which of them do not run, or are late. `kserve` is the release to act as.
    """

    def __init__(
        self, registry: Registry, workloads: Workloads, router: Router, domain: str, timing: Timing,
        cluster_default: Callable[[], str], faults: Faults, kserve: str = "0.21",
    ) -> None:  # fmt: skip
        self._store, self._timing, self._faults = registry.store, timing, faults
        standard = StandardServices(registry, domain, weighs=kserve == "0.21")
        self._inference_services = InferenceServices(registry, cluster_default, standard, faults)
        self._services = Services(registry)
        self._configurations = Configurations(registry, faults.holds_back)
        self._revisions = Revisions(registry, workloads, timing)
        self._deployments = Deployments(registry, workloads, timing.progress_deadline)
        self._gateway = Gateway(registry, router, self._revisions.serves)
        self._routes = Routes(registry, domain)
        self._kserves, self._gateways = Turn(3), Turn(3)
        self._told = -1  # the version of the store after KServe's last pass
        self._rested = True  # nothing has happened for a while: whoever failed tries again

    async def round(self) -> bool:
        """One pass of each controller, in the order in which writes travel; True when there is more to do.

        KServe acts on an InferenceService at once; on what others did, and the gateway on everything, in its turn.
        """
        version = self._store.version
        # Without its webhook Knative's own controllers cannot write either.
        knative_runs = not (self._faults.is_away("knative") or self._faults.is_away("knative-webhook"))
        late = False
        if self._kserves.comes(self._told != version) or self._inference_services.are_new() or self._rested:
            self._inference_services.reconcile()
            self._told = self._store.version
            self._kserves.is_over()
        self._rested = False
        if knative_runs:
            self._services.reconcile()
            late = self._configurations.reconcile()
            await self._revisions.reconcile()
        await self._deployments.reconcile()
        if self._gateways.comes(not self._faults.is_away("gateway") and self._gateway.has_work()):
            await self._gateway.reconcile()
        if knative_runs:
            self._routes.reconcile()
        awaited = self._kserves.is_awaited or self._gateways.is_awaited
        return late or awaited or self._store.version != version

    async def settle(self, rounds: int = 200) -> None:
        """Rounds without a pause until one changes nothing and all is stopped. RuntimeError when that never comes."""
        self._rested = True
        for _ in range(rounds):
            if not await self.round() and not await self._removed():
                return
        raise RuntimeError(f"the controllers did not come to rest within {rounds} rounds")

    async def run(self) -> None:
        """For ever: a round when something was written or a process changed state, and once a second for waits."""
        while True:
            try:
                more = await self.round()
            except Exception:
                log.exception("a round of the controllers failed; the next one is in a second")
                await asyncio.sleep(1.0)
                continue
            if more:
                await asyncio.sleep(self._timing.lag)
            else:
                await self._news()

    async def _news(self) -> None:
        tick, version, states = self._store.tick, self._store.version, self._states()
        until = monotonic() + 1.0
        while monotonic() < until and self._store.version == version and self._states() == states:
            # Not wait_for: on Python 3.11 it can swallow the cancellation that ends this loop.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timing.poll):
                    await tick.wait()
        self._rested = self._store.version == version and self._states() == states
        # Let a write's first readers see the old status, as they do on a cluster.
        await asyncio.sleep(self._timing.lag)

    async def close(self) -> None:
        """Wait for revisions that are being stopped."""
        await self._removed()

    def _states(self) -> dict[RevisionKey, PodState]:
        return self._revisions.states() | self._deployments.states()

    async def _removed(self) -> bool:
        return any([await self._revisions.removed(), await self._deployments.removed()])
