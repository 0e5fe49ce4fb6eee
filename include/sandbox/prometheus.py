"""Prometheus, scraping each second. Envoy's series appear under Istio's names, with the labels that a revision
has on a cluster with Istio (docs/facts.md#metrics-of-the-mesh), so that one set of queries serves both."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import aiohttp

from sandbox import programs
from sandbox.errors import SandboxError
from sandbox.interfaces import RevisionKey
from sandbox.ports import LOOPBACK, Ports, replace
from sandbox.process import PATIENCE, Child

_CLUSTER = "([^/]+)/(.+)"
_HOST_GAUGES = "(CPU|Memory|Disk|GPU).*|jvm_.*|process_.*"


@dataclass(frozen=True)
class Target:
    """A replica's metrics page."""

    key: RevisionKey
    pod: str
    port: int


class Prometheus:
    """Runs Prometheus. What it recorded stays in the state folder and survives a restart."""

    def __init__(self, state_dir: Path, ports: Ports) -> None:
        self._state_dir, self._folder = state_dir, state_dir / "prometheus"
        self._port, self._envoy_admin = ports.of("prometheus"), ports.of("envoy-admin")

    @cached_property
    def child(self) -> Child:
        """The process. Who only writes its configuration, for one that runs elsewhere, needs no program."""
        argv: list[str | Path] = [
            programs.prometheus(),
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address={LOOPBACK}:{self._port}",
            "--log.level=warn",
        ]
        log = self._state_dir / "logs/prometheus.log"
        return Child("prometheus", argv, state_dir=self._state_dir, log=log, cwd=self._folder)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    def configure(self) -> None:
        """Writes what Prometheus reads at its start."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # JSON is YAML, and cannot be broken by what stands in a path.
        replace(self._folder / "prometheus.yml", json.dumps(self._configuration(), indent=1))
        if not self._targets_file.exists():
            self.scrape([])

    async def start(self) -> None:
        """Writes the configuration and starts; returns when queries are answered."""
        self.configure()
        await self.child.start()
        await until_ok(f"{self.url}/-/ready", self.child)

    async def stop(self) -> None:
        await self.child.stop()

    def scrape(self, targets: Iterable[Target]) -> None:
        """Replaces the list of replicas whose own metrics are scraped."""
        self._folder.mkdir(parents=True, exist_ok=True)
        groups = [
            {
                "targets": [f"{LOOPBACK}:{target.port}"],
                "labels": {
                    "kn_revision_name": target.key.name,
                    "k8s_namespace_name": target.key.namespace,
                    "pod": target.pod,
                },
            }
            for target in targets
        ]
        replace(self._targets_file, json.dumps(groups, indent=1))

    @property
    def _targets_file(self) -> Path:
        return self._folder / "replicas.json"

    def _configuration(self) -> dict[str, Any]:
        return {
            "global": {"scrape_interval": "1s", "scrape_timeout": "900ms", "evaluation_interval": "1s"},
            "scrape_configs": [
                {
                    "job_name": "istio-ingressgateway",
                    "metrics_path": "/stats/prometheus",
                    # Envoy has 1500 series; these few are what a gateway tells about a workload.
                    "params": {"filter": [r"^cluster\..*\.upstream_rq_([0-9]+|time)$"]},
                    "static_configs": [{"targets": [f"{LOOPBACK}:{self._envoy_admin}"]}],
                    "metric_relabel_configs": _as_istio(),
                },
                {
                    "job_name": "revisions",
                    "file_sd_configs": [{"files": ["replicas.json"], "refresh_interval": "5s"}],
                    "metric_relabel_configs": [
                        {"source_labels": ["__name__"], "regex": _HOST_GAUGES, "action": "drop"}
                    ],
                },
            ],
        }


def _as_istio() -> list[dict[str, Any]]:
    def label(target: str, replacement: str, *source: str, regex: str) -> dict[str, Any]:
        return {
            "source_labels": list(source),
            "regex": regex,
            "target_label": target,
            "replacement": replacement,
        }

    cluster = "envoy_cluster_name"
    time_series = "envoy_cluster_upstream_rq_time_(bucket|sum|count)"
    return [
        {
            "source_labels": ["__name__"],
            "regex": f"envoy_cluster_upstream_rq|{time_series}",
            "action": "keep",
        },
        {"source_labels": [cluster], "regex": _CLUSTER, "action": "keep"},
        label("reporter", "source", cluster, regex=_CLUSTER),
        label("source_workload", "istio-ingressgateway", cluster, regex=_CLUSTER),
        label("source_workload_namespace", "istio-system", cluster, regex=_CLUSTER),
        label("request_protocol", "http", cluster, regex=_CLUSTER),
        label("destination_workload_namespace", "$1", cluster, regex=_CLUSTER),
        label("destination_service_namespace", "$1", cluster, regex=_CLUSTER),
        label("destination_workload", "$2-deployment", cluster, regex=_CLUSTER),
        # In Standard mode the Deployment is KServe's own: `<service>-<name>-predictor`.
        label("destination_workload", "$1", cluster, regex="[^/]+/(.+-predictor)"),
        label("destination_canonical_service", "$2", cluster, regex=_CLUSTER),
        label("destination_service_name", "$2", cluster, regex=_CLUSTER),
        label("response_code", "$1", "envoy_response_code", regex="(.+)"),
        label("__name__", "istio_request_duration_milliseconds_$1", "__name__", regex=time_series),
        label("__name__", "istio_requests_total", "__name__", regex="envoy_cluster_upstream_rq"),
        {"regex": "envoy_.*", "action": "labeldrop"},
    ]


async def until_ok(url: str, child: Child, says: Callable[[Any], bool] = lambda _: True) -> None:
    """Waits until `url` answers 200, with what `says` takes, which is given the answer where that is JSON. Raises
    SandboxError with the program's last words if it ends before that."""
    deadline = time.monotonic() + PATIENCE
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
        while True:
            try:
                async with http.get(url) as answer:
                    is_json = answer.content_type == "application/json"
                    if answer.status == 200 and says(await answer.json() if is_json else None):
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            if not child.running:
                raise SandboxError(f"{child.name} ended with code {child.exit_code}: {child.tail(2)}")
            if time.monotonic() > deadline:
                raise SandboxError(f"{child.name} does not answer {url} after {PATIENCE:.0f} s: {child.tail(2)}")
            await asyncio.sleep(0.03)
