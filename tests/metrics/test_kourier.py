"""Kourier's gateway for real: Envoy, configured as net-kourier configures it, scraped by Prometheus, counted by us.

What is taken from Kourier: clusters called `<namespace>/<revision>`, a weighted split, Envoy's own statistics and
buckets (config/200-bootstrap.yaml, pkg/generator/ingress_translator.go). Only the flush is
more frequent here.
"""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.patience import LIMIT, until

from model_release.metrics import Prometheus, bucket_edges, presence, profile, read_windows
from model_release.spec import BUCKET_EDGES_MS, JudgeSpec
from sandbox import programs
from sandbox.ports import free_port

from .conftest import CANARY, NAMESPACE, STABLE, Server

pytestmark = pytest.mark.stack
_TYPES = "type.googleapis.com/envoy."


class Pod(http.server.ThreadingHTTPServer):
    """A revision's pod, which knows what it was asked: each fifth answer is 503, each tenth takes 300 ms."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.answered, self.calm = [0, 0, 0], False
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Pod

    def do_GET(self) -> None:
        place = self.server.answered[0]
        failed, slow = place % 5 == 0, place % 10 == 0 and not self.server.calm
        if slow:
            time.sleep(0.3)
        self.server.answered = [n + now for n, now in zip(self.server.answered, (True, failed, slow), strict=True)]
        self.send_response(503 if failed else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


def bootstrap(pods: dict[str, Pod], port: int, admin: int) -> dict[str, Any]:
    def at(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    names = {revision: f"{NAMESPACE}/{revision}" for revision in pods}
    clusters = [
        {
            "name": names[revision],
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": names[revision],
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(pod.server_port)}}]}],
            },
        }
        for revision, pod in pods.items()
    ]
    split = [{"name": names[STABLE], "weight": 75}, {"name": names[CANARY], "weight": 25}]
    route = {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": split}}}
    manager = {
        "@type": f"{_TYPES}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress_http",
        "route_config": {"virtual_hosts": [{"name": "digits", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPES}extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {
        "admin": {"address": at(admin)},
        "stats_flush_interval": "0.5s",
        "static_resources": {
            "listeners": [{"name": "gateway", "address": at(port), "filter_chains": [chain]}],
            "clusters": clusters,
        },
    }


@pytest.fixture
def pods() -> Iterator[dict[str, Pod]]:
    both = {revision: Pod() for revision in (STABLE, CANARY)}
    yield both
    for pod in both.values():
        pod.shutdown()
        pod.server_close()


@pytest.fixture
def gateway(tmp_path: Path, pods: dict[str, Pod]) -> Iterator[tuple[str, int]]:
    """The gateway's address, and the port of its statistics."""
    port, admin = free_port(), free_port()
    (tmp_path / "envoy.json").write_text(json.dumps(bootstrap(pods, port, admin)))
    command = [str(programs.envoy()), "-c", str(tmp_path / "envoy.json"), "--concurrency", "1"]
    with (tmp_path / "envoy.log").open("wb") as log:
        process = subprocess.Popen([*command, "--disable-hot-restart", "-l", "error"], stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "envoy.log").read_text()
        try:
            return requests.get(f"http://127.0.0.1:{admin}/ready", timeout=LIMIT).ok
        except requests.ConnectionError:
            return False

    until(answers, "Envoy does not become ready")
    yield f"http://127.0.0.1:{port}/", admin
    process.terminate()
    process.wait()


@pytest.fixture
def prometheus(tmp_path: Path, gateway: tuple[str, int]) -> Iterator[Prometheus]:
    job = {
        "job_name": "kourier-system/3scale-kourier-gateway",
        "metrics_path": "/stats/prometheus",
        "static_configs": [{"targets": [f"127.0.0.1:{gateway[1]}"]}],
    }
    timing = {"scrape_interval": "500ms", "scrape_timeout": "450ms"}
    server = Server(tmp_path, json.dumps({"global": timing, "scrape_configs": [job]}))
    server.start()
    with Prometheus(server.url) as client:
        until(lambda: client.query("timestamp(up) and up == 1").series, "Prometheus does not scrape")
        yield client
    server.stop()


def gathered(admin: int) -> int:
    """How many requests Envoy's histograms hold: it gathers them before it shows them."""
    text = requests.get(f"http://127.0.0.1:{admin}/stats/prometheus", timeout=LIMIT).text
    return sum(int(count) for count in re.findall(r"^envoy_cluster_upstream_rq_time_count\{.*\} (\d+)$", text, re.M))


def test_kouriers_own_counts(
    gateway: tuple[str, int], pods: dict[str, Pod], prometheus: Prometheus, judge_of: Callable[..., JudgeSpec]
) -> None:
    window, start = timedelta(seconds=2), datetime.now(UTC)
    with requests.Session() as users:
        for _ in range(120):
            users.get(gateway[0], timeout=LIMIT)
        # Envoy gathers its histograms before it shows them: what is late counts with the requests that come later.
        until(lambda: gathered(gateway[1]) >= 120, "Envoy does not gather its histograms")
        for pod in pods.values():
            pod.calm = True
        for _ in range(40):
            users.get(gateway[0], timeout=LIMIT)
        until(lambda: gathered(gateway[1]) >= 160, "Envoy does not gather its histograms")
    count = (datetime.now(UTC) - start) // window + 2
    end = start + count * window
    over = f"timestamp(up) > {end.timestamp():.3f} and up == 1"
    until(lambda: prometheus.query(over).series, "Prometheus does not scrape after the last window")
    windows = read_windows(
        prometheus,
        judge_of("kourier", above="250ms"),
        namespace=NAMESPACE,
        canary=CANARY,
        stable=STABLE,
        start=start,
        end=end,
        window=window,
    )
    found = presence(prometheus, profile("kourier"), NAMESPACE, STABLE, window=window)
    edges = bucket_edges(prometheus, profile("kourier"), NAMESPACE, STABLE)

    assert found.ok, found.sentence
    assert edges == (0.5, *BUCKET_EDGES_MS["kourier"])
    assert len(windows) == count
    for revision, pod in pods.items():
        sides = [window.canary if revision == CANARY else window.stable for window in windows]
        told = [sum((side.requests or 0) for side in sides if side)]
        told += [sum((side.bad[metric] or 0) for side in sides if side) for metric in ("errors", "slow")]
        assert told == pod.answered, revision
        assert min(pod.answered) > 0
