"""The control loop: runs the controllers in rounds, starts and stops revisions, programs the splitter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic

from sandbox.interfaces import Manifest, PodState, RevisionKey, Route, Router, Workloads
from sandbox.kube import knative, kserve_spec
from sandbox.kube.deployments import Deployments, Gateway, StandardServices
from sandbox.kube.pods import REVISION_LABEL, pods_of
from sandbox.kube.processes import Processes
from sandbox.kube.reconcilers import Configurations, InferenceServices, Objects, Services
from sandbox.kube.registry import Registry, now
from sandbox.kube.resources import CONFIGURATIONS, PODS, REVISIONS, ROUTES

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
        running = key in self._running
        pods = pods_of(revision, self._workloads.state(key), before, now()) if running else []
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
    """Knative's route controller: resolves targets and programs the splitter, then says so in the status.

    A revision without processes (a reserve that a late roll-back names) is first started; until it answers the
    former traffic stays. On a cluster the activator would hold the requests meanwhile.
    """

    def __init__(
        self, registry: Registry, router: Router, domain: str, serves: Callable[[RevisionKey], bool], gateway: Gateway
    ) -> None:
        super().__init__(registry, "knative-serving-controller")
        self._router, self._domain, self._serves, self._gateway = router, domain, serves, gateway
        self._programmed: list[Route] | None = None

    async def reconcile(self) -> None:
        routes = self.all(ROUTES)
        resolved: dict[str, knative.Resolution] = {}
        wanted: dict[str, list[Manifest]] = {}
        for route in routes:
            uid, former = route["metadata"]["uid"], route.get("status", {}).get("traffic", [])
            resolved[uid] = self._resolve(route)
            traffic = resolved[uid].traffic
            wanted[uid] = former if traffic is None or self._is_cold(route, traffic, former) else traffic
        programme = [r for route in routes for r in self._hosts(route, wanted[route["metadata"]["uid"]])]
        accepted, more = self._gateway.programme()
        programme += more
        if programme != self._programmed:
            try:
                await self._router.program(programme)
            except Exception:
                log.exception("the splitter could not be programmed; it is tried again")
                return
            self._programmed = programme
        self._gateway.tell(accepted)
        for route in routes:
            uid = route["metadata"]["uid"]
            live = self.find(ROUTES, route["metadata"]["namespace"], route["metadata"]["name"])
            if live is None or live["metadata"]["generation"] != route["metadata"]["generation"]:
                continue  # it changed while the splitter was programmed; the next round sees to it
            done = resolved[uid].traffic == wanted[uid]
            self.write_status(ROUTES, live, knative.route_status(live, resolved[uid], done, self._domain, now()))

    def _resolve(self, route: Manifest) -> knative.Resolution:
        meta = route["metadata"]
        own = self.all(REVISIONS, meta["namespace"], (knative.CONFIGURATION, meta["name"]))
        revisions = {r["metadata"]["name"]: r for r in own}
        configuration = self.find(CONFIGURATIONS, meta["namespace"], meta["name"]) or {}
        return knative.resolve(route, configuration, revisions, self._domain)

    def _is_cold(self, route: Manifest, traffic: list[Manifest], former: list[Manifest]) -> bool:
        new = set(knative.shares(traffic)) - set(knative.shares(former))
        namespace = route["metadata"]["namespace"]
        return any(not self._serves(RevisionKey(namespace, name)) for name in new)

    def _hosts(self, route: Manifest, traffic: list[Manifest]) -> list[Route]:
        """The service's own host and the route's, with the split; one more for each tag, whatever its percent."""
        meta, domain = route["metadata"], self._domain.rsplit(":", 1)[0]
        namespace = meta["namespace"]
        split = {RevisionKey(namespace, n): p for n, p in knative.shares(traffic).items() if p}
        public = meta["labels"][kserve_spec.SERVICE_LABEL]
        hosts = [Route(knative.host(name, namespace, domain), split) for name in (public, meta["name"])]
        for target in traffic:
            if "tag" in target:
                name = knative.host(meta["name"], namespace, domain, target["tag"])
                hosts.append(Route(name, {RevisionKey(namespace, target["revisionName"]): 100}))
        return hosts


class Controller:
    """All controllers together. `round` is one pass; `settle` runs passes until nothing changes; `run` is for ever."""

    def __init__(
        self, registry: Registry, workloads: Workloads, router: Router, domain: str, timing: Timing,
        cluster_default: Callable[[], str], lags: Callable[[Manifest], bool], kserve: str = "0.21",
    ) -> None:  # fmt: skip
        self._store, self._timing = registry.store, timing
        standard = StandardServices(registry, domain, weighs=kserve == "0.21")
        self._inference_services = InferenceServices(registry, domain, cluster_default, standard)
        self._services = Services(registry)
        self._configurations = Configurations(registry, lags)
        self._revisions = Revisions(registry, workloads, timing)
        self._deployments = Deployments(registry, workloads, timing.progress_deadline)
        self._routes = Routes(registry, router, domain, self._revisions.serves, Gateway(registry))

    async def round(self) -> bool:
        """One pass of each controller, in the order in which writes travel; True when there is more to do."""
        version = self._store.version
        self._inference_services.reconcile()
        self._services.reconcile()
        late = self._configurations.reconcile()
        await self._revisions.reconcile()
        await self._deployments.reconcile()
        await self._routes.reconcile()
        return late or self._store.version != version

    async def settle(self, rounds: int = 50) -> None:
        """Rounds without a pause until one changes nothing and all is stopped. RuntimeError when that never comes."""
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
        # Let a write's first readers see the old status, as they do on a cluster.
        await asyncio.sleep(self._timing.lag)

    async def close(self) -> None:
        """Wait for revisions that are being stopped."""
        await self._removed()

    def _states(self) -> dict[RevisionKey, PodState]:
        return self._revisions.states() | self._deployments.states()

    async def _removed(self) -> bool:
        return any([await self._revisions.removed(), await self._deployments.removed()])
