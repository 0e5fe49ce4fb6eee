"""The gateway's controller and the cluster's DNS: what Ingresses, HTTPRoutes and Services mean for the front door."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sandbox.interfaces import Manifest, RevisionKey, Route, Router
from sandbox.kube import kserve_status, routing, standard
from sandbox.kube.reconcilers import Objects
from sandbox.kube.registry import Registry, now
from sandbox.kube.resources import CORE_SERVICES, HTTP_ROUTES, INGRESSES, Kind

log = logging.getLogger(__name__)


class Gateway(Objects):
    """Programs the splitter, and says so in the status of what it acts on.

    An Ingress that sends users to a revision without processes (a reserve that a late roll-back names) waits until
    these answer; on a cluster Knative's activator would hold the requests meanwhile.
    """

    def __init__(self, registry: Registry, router: Router, serves: Callable[[RevisionKey], bool]) -> None:
        super().__init__(registry, "sandbox-gateway")
        self._router, self._serves = router, serves
        self._rules: dict[str, list[Manifest]] = {}  # by the uid of an Ingress: those that it acts on
        self._programmed: list[Route] | None = None

    def has_work(self) -> bool:
        """Whether the splitter is to be programmed, or something to be told."""
        ingresses, routes = self.all(INGRESSES), self.all(HTTP_ROUTES)
        untold = not all(map(routing.is_acted_on, ingresses)) or not all(map(standard.is_acted_on, routes))
        return untold or self._programme(ingresses, routes, self._taken(ingresses)) != self._programmed

    async def reconcile(self) -> None:
        ingresses, routes = self.all(INGRESSES), self.all(HTTP_ROUTES)
        rules = self._taken(ingresses)
        taken = [one for one in ingresses if rules[one["metadata"]["uid"]] == one["spec"]["rules"]]
        programme = self._programme(ingresses, routes, rules)
        if programme != self._programmed:
            try:
                await self._router.program(programme)
            except Exception:
                log.exception("the splitter could not be programmed; it is tried again")
                return
            self._programmed = programme
        self._rules = rules
        for ingress in taken:
            self._tell(INGRESSES, ingress, routing.ingress_status(ingress, now()))
        for route in routes:
            self._tell(HTTP_ROUTES, route, standard.accepted(route, now()))

    def _taken(self, ingresses: list[Manifest]) -> dict[str, list[Manifest]]:
        """By uid, the rules that can be acted on: an Ingress' own, or the former ones of one that is cold."""
        return {
            uid: self._rules[uid] if self._is_cold(one) else one["spec"]["rules"]
            for one in ingresses
            for uid in [one["metadata"]["uid"]]
        }

    def _programme(
        self, ingresses: list[Manifest], routes: list[Manifest], rules: dict[str, list[Manifest]]
    ) -> list[Route]:
        programme = [host for one in ingresses for host in self._hosts(one, rules[one["metadata"]["uid"]])]
        programme += [host for route in routes for host in self._weighted(route)]
        return programme + [self._dns(service) for service in self.all(CORE_SERVICES)]

    def _is_cold(self, ingress: Manifest) -> bool:
        former = self._rules.get(ingress["metadata"]["uid"])
        if former is None:
            return False
        named, before = (
            {n for rule in rules for n in routing.splits(rule)} for rules in (ingress["spec"]["rules"], former)
        )
        namespace = ingress["metadata"]["namespace"]
        return any(not self._serves(RevisionKey(namespace, name)) for name in named - before)

    def _hosts(self, ingress: Manifest, rules: list[Manifest]) -> list[Route]:
        """KServe's VirtualService gives the InferenceService's own host what the Knative Service's has."""
        namespace, found = ingress["metadata"]["namespace"], []
        for rule in rules:
            shares = {RevisionKey(namespace, name): percent for name, percent in routing.splits(rule).items()}
            hosts = list(rule["hosts"])
            if rule is rules[0]:
                hosts.insert(0, kserve_status.own_address(hosts[0]))
            found += [Route(host, shares) for host in hosts]
        return found

    @staticmethod
    def _weighted(route: Manifest) -> list[Route]:
        namespace = route["metadata"]["namespace"]
        shares = {RevisionKey(namespace, name): share for name, share in standard.weights(route).items() if share}
        return [Route(host, shares) for host in route["spec"]["hostnames"]]

    @staticmethod
    def _dns(service: Manifest) -> Route:
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        return Route(f"{name}.{namespace}.svc.cluster.local", {RevisionKey(namespace, name): 100})

    def _tell(self, kind: Kind, seen: Manifest, status: Manifest) -> None:
        """One that has changed since it was seen is acted on, and told of, in the next round."""
        meta = seen["metadata"]
        live = self.find(kind, meta["namespace"], meta["name"])
        if live is not None and live["metadata"]["generation"] == meta["generation"]:
            self.write_status(kind, live, status)
