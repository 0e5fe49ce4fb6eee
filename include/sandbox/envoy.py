"""The front door: Envoy splits each host's requests among revisions by weight.

Clusters and routes are two files that Envoy watches; each is replaced by a rename, clusters first, so that no
route ever names a cluster that is not there. A cluster is called `<namespace>/<revision>`: that is what
Prometheus turns into Istio's labels.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from sandbox import programs
from sandbox.errors import SandboxError
from sandbox.interfaces import RevisionKey, Route
from sandbox.ports import LOOPBACK, Ports, replace
from sandbox.process import PATIENCE, Child

# Edges of the latency histogram in milliseconds. They hold Istio's own edges up to 10 s
# (0.5 1 5 10 25 50 100 250 500 1000 2500 5000 10000) and more where an image classifier on a CPU answers.
BUCKETS_MS = (5, 10, 25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 750, 1000, 2500, 5000, 10000, 30000)

_Ask = Callable[[aiohttp.ClientSession, str], Awaitable[str]]

_TYPES = "type.googleapis.com/envoy."
_UNLIMITED = 100_000
_VERSION_HOST = "routes-version.sandbox.invalid"
# Knative's queue-proxy lets ten times containerConcurrency wait and answers 503 beyond that
# (knative/serving pkg/queue/sharedmain, QueueDepth).
_QUEUE_FACTOR = 10


@dataclass(frozen=True)
class Backend:
    """Where a revision's ready replicas listen. `concurrency` is per replica; 0: no limit."""

    ports: Sequence[int]
    concurrency: int = 0
    timeout_seconds: int = 300


class Envoy:
    """Runs Envoy and programs it; implements `interfaces.Router`.

    `program` says who gets which share, `place` where revisions are found. Both may be called at any time and in
    any order, return when Envoy acts on the new state, and raise SandboxError if Envoy refuses it (the old state
    then stays). A host without shares, and an unknown one, is 404; a revision without ready replicas is 503.
    """

    def __init__(self, state_dir: Path, ports: Ports) -> None:
        self._folder = state_dir / "envoy"
        self._port, self._admin = ports.of("front-door"), ports.of("envoy-admin")
        self._routes: list[Route] = []
        self._backends: dict[RevisionKey, Backend] = {}
        self._log = state_dir / "logs/envoy.log"
        self._log_read = 0
        self._lock = asyncio.Lock()
        # A worker of its own has the one listener, so that what it answers is what all requests meet.
        self.child = Child(
            "envoy",
            [programs.envoy(), "-c", "bootstrap.json", "--concurrency", "1", "--disable-hot-restart", "-l", "warn"],
            state_dir=state_dir,
            log=self._log,
            cwd=self._folder,
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def admin_url(self) -> str:
        return f"http://{LOOPBACK}:{self._admin}"

    async def start(self) -> None:
        """Starts Envoy with the present state; returns when the front door answers."""
        async with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace(self._folder / "bootstrap.json", json.dumps(self._bootstrap(), indent=1))
            self._write_clusters(self._keys())
            version = self._write_routes()
            await self.child.start()
            await self._until_served(version)

    async def stop(self) -> None:
        await self.child.stop()

    async def program(self, routes: list[Route]) -> None:
        """Replaces all routes. With the same routes again nothing is written."""
        async with self._lock:
            if routes != self._routes:
                self._routes = list(routes)
                await self._apply()

    async def place(self, backends: Mapping[RevisionKey, Backend]) -> None:
        """Replaces all backends. With the same backends again nothing is written."""
        async with self._lock:
            if backends != self._backends:
                self._backends = dict(backends)
                await self._apply()

    async def _apply(self) -> None:
        if not self.child.running:
            return  # `start` writes the state that holds by then
        before, after = self._keys_in_file(), self._keys()
        await self._until_accepted("cds", self._write_clusters(before | after))
        await self._until_served(self._write_routes())
        if before - after:
            await self._until_accepted("cds", self._write_clusters(after))

    def _write_clusters(self, keys: set[RevisionKey]) -> str:
        version = str(time.time_ns())
        self._write("cds.json", version, self._clusters(keys))
        return version

    def _write_routes(self) -> str:
        version = str(time.time_ns())
        self._write("rds.json", version, [self._route_configuration(version)])
        return version

    def _write(self, name: str, version: str, resources: list[dict[str, Any]]) -> None:
        self._log_read = self._log.stat().st_size if self._log.exists() else 0
        replace(self._folder / name, json.dumps({"version_info": version, "resources": resources}, indent=1))

    def _keys(self) -> set[RevisionKey]:
        return {key for route in self._routes for key in route.shares} | set(self._backends)

    def _keys_in_file(self) -> set[RevisionKey]:
        clusters = json.loads((self._folder / "cds.json").read_text())["resources"]
        return {RevisionKey(*cluster["name"].split("/", 1)) for cluster in clusters}

    async def _until_accepted(self, kind: str, version: str) -> None:
        """Waits until Envoy's main thread has taken the file; it hands changes to its worker in order."""
        await self._until(version, self._accepted_version, kind)

    async def _until_served(self, version: str) -> None:
        """Waits until the worker that serves requests has the routes: the front door itself answers with them."""
        await self._until(version, self._served_version, "rds")

    async def _until(self, version: str, ask: _Ask, kind: str) -> None:
        began = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
            while True:
                try:
                    seen = await ask(http, kind)
                except (aiohttp.ClientError, TimeoutError):
                    seen = ""
                if seen == version:
                    return
                if not self.child.running:
                    raise SandboxError(f"envoy ended with code {self.child.exit_code}: {self.child.tail(2)}")
                waited = time.monotonic() - began
                # It takes milliseconds; after that it is worth asking whether Envoy has refused.
                if waited > 0.3 and (refusal := self._refusal()):
                    raise SandboxError(f"envoy refuses {kind}.json: {refusal}")
                if waited > PATIENCE:
                    raise SandboxError(f"envoy has not taken {kind}.json after {PATIENCE:.0f} s: {self.child.tail(1)}")
                await asyncio.sleep(0.01 if waited < 0.3 else 0.1)

    async def _accepted_version(self, http: aiohttp.ClientSession, kind: str) -> str:
        url = f"{self.admin_url}/stats?type=TextReadouts&filter={kind}.version_text&format=json"
        async with http.get(url) as answer:
            stats = (await answer.json(content_type=None))["stats"]
        return str(stats[0]["value"]) if stats else ""

    async def _served_version(self, http: aiohttp.ClientSession, _: str) -> str:
        async with http.get(self.url, headers={"Host": _VERSION_HOST}) as answer:
            return await answer.text()

    def _refusal(self) -> str:
        """Envoy's reason for not taking the newest file; empty if it has not refused it."""
        with self._log.open(errors="replace") as log:
            log.seek(self._log_read)
            _, refused, reason = log.read().rpartition(" update rejected: ")
        return reason.splitlines()[0] if refused else ""

    def _clusters(self, keys: set[RevisionKey]) -> list[dict[str, Any]]:
        return [_cluster(key, self._backends.get(key)) for key in sorted(keys, key=_cluster_name)]

    def _route_configuration(self, version: str) -> dict[str, Any]:
        hosts = [self._virtual_host(route) for route in self._routes if any(route.shares.values())]
        answer = {"status": 200, "body": {"inline_string": version}}
        routes = [{"match": {"prefix": "/"}, "direct_response": answer}]
        hosts.append({"name": _VERSION_HOST, "domains": [_VERSION_HOST], "routes": routes})
        return {
            "@type": f"{_TYPES}config.route.v3.RouteConfiguration",
            "name": "routes",
            "ignore_port_in_host_matching": True,
            "virtual_hosts": hosts,
        }

    def _virtual_host(self, route: Route) -> dict[str, Any]:
        shares = {key: share for key, share in route.shares.items() if share > 0}
        weighted = [
            {
                "name": _cluster_name(key),
                "weight": share,
                "response_headers_to_add": [
                    {
                        "header": {"key": "x-revision", "value": key.name},
                        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                    }
                ],
            }
            for key, share in shares.items()
        ]
        timeout = max((self._backends[key].timeout_seconds for key in shares if key in self._backends), default=300)
        action = {"weighted_clusters": {"clusters": weighted}, "timeout": f"{timeout}s"}
        return {
            "name": route.host,
            "domains": [route.host.partition(":")[0]],
            "routes": [{"match": {"prefix": "/"}, "route": action}],
        }

    def _bootstrap(self) -> dict[str, Any]:
        manager = {
            "@type": f"{_TYPES}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "front_door",
            "rds": {"route_config_name": "routes", "config_source": self._watched("rds.json")},
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{_TYPES}extensions.filters.http.router.v3.Router"},
                }
            ],
        }
        chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        return {
            "node": {"id": "front-door", "cluster": "sandbox"},
            "admin": {"address": _address(self._admin)},
            "dynamic_resources": {"cds_config": self._watched("cds.json")},
            "static_resources": {
                "listeners": [{"name": "front_door", "address": _address(self._port), "filter_chains": [chain]}]
            },
            # Histograms reach the statistics page only then (docs/facts.md#histograms-are-flushed).
            "stats_flush_interval": "1s",
            "stats_config": {
                "histogram_bucket_settings": [{"match": {"suffix": "upstream_rq_time"}, "buckets": BUCKETS_MS}]
            },
        }

    def _watched(self, name: str) -> dict[str, Any]:
        # Read again when a file is renamed to it (docs/facts.md#configuration-from-files).
        folder = self._folder.resolve()
        source = {"path": str(folder / name), "watched_directory": {"path": str(folder)}}
        return {"resource_api_version": "V3", "path_config_source": source}


def _cluster_name(key: RevisionKey) -> str:
    return f"{key.namespace}/{key.name}"


def _cluster(key: RevisionKey, backend: Backend | None) -> dict[str, Any]:
    name = _cluster_name(key)
    ports = backend.ports if backend else ()
    limit = backend.concurrency * len(ports) if backend else 0
    # One HTTP/1 connection carries one request at a time: the connections are the requests in work, the rest waits.
    thresholds = {
        "max_connections": limit or _UNLIMITED,
        "max_pending_requests": limit * _QUEUE_FACTOR or _UNLIMITED,
        "max_requests": _UNLIMITED,
    }
    endpoints = [{"endpoint": {"address": _address(port)}} for port in ports]
    return {
        "@type": f"{_TYPES}config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "circuit_breakers": {"thresholds": [thresholds]},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}
