"""Live pages, scraped each 200 ms by a real Prometheus that is restarted meanwhile: nothing is lost or invented."""

from __future__ import annotations

import http.server
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from model_release.errors import MetricsUnavailable
from model_release.judging import Window
from model_release.metrics import Prometheus, WindowReader, presence, profile
from model_release.spec import Judge

from .conftest import CANARY, NAMESPACE, STABLE, Server
from .stacks import Page, Request

pytestmark = pytest.mark.stack
TARGET_LABELS = ("job", "instance", "k8s_namespace_name", "kn_revision_name")


class Pod:
    """A queue-proxy's metrics page; `restart` sets its counters back to nothing."""

    def __init__(self, revision: str) -> None:
        self.revision, self.answered, self.page = revision, 0, Page("knative-otel", "")
        self.restart()
        pod = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = pod.text().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def restart(self) -> None:
        self.page = Page("knative-otel", "", requests={self.revision: []})

    def answer(self, code: int, duration_ms: float) -> None:
        self.page.requests[self.revision].append(Request(0, code, duration_ms))

    def text(self) -> str:
        lines = []
        for name, labels, value in self.page.exposed(0):
            own = ",".join(f'{k}="{v}"' for k, v in labels.items() if k not in TARGET_LABELS)
            lines.append(f"{name}{{{own}}} {value}\n")
        return "".join(lines)

    def scraped_as(self) -> dict[str, Any]:
        labels = {"k8s_namespace_name": NAMESPACE, "kn_revision_name": self.revision}
        return {"targets": [f"127.0.0.1:{self.server.server_port}"], "labels": labels}


@pytest.fixture
def pods() -> Iterator[dict[str, Pod]]:
    both = {revision: Pod(revision) for revision in (STABLE, CANARY)}
    yield both
    for pod in both.values():
        pod.server.shutdown()
        pod.server.server_close()


@pytest.fixture
def server(tmp_path: Path, pods: dict[str, Pod]) -> Iterator[Server]:
    job = {"job_name": "revisions", "static_configs": [pod.scraped_as() for pod in pods.values()]}
    timing = {"scrape_interval": "200ms", "scrape_timeout": "150ms"}
    running = Server(tmp_path, json.dumps({"global": timing, "scrape_configs": [job]}))
    running.start()
    yield running
    running.stop()


def until_scraped(server: Server, since: datetime | None = None) -> None:
    """Prometheus begins to scrape some five seconds after it has started."""
    patience = time.monotonic() + 20
    with Prometheus(server.url) as prometheus:
        while time.monotonic() < patience:
            query = f"timestamp(up) > {since.timestamp() if since else 0:.3f}"
            if len(prometheus.query(query).series) == 2:
                return
            time.sleep(0.05)
    raise AssertionError("Prometheus does not scrape")


def test_live_counts(server: Server, pods: dict[str, Pod], judge_of: Callable[..., Judge]) -> None:
    chance, judge = random.Random(5), judge_of("knative-otel")
    sent = {revision: [0, 0, 0] for revision in pods}

    def send(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            revision = STABLE if chance.random() < 0.8 else CANARY
            code, duration = (503, 20.0) if chance.random() < 0.1 else (200, chance.choice([30.0, 500.0, 900.0]))
            pods[revision].answer(code, duration)
            for place, counted in enumerate((True, code == 503, duration > 500)):
                sent[revision][place] += counted
            time.sleep(0.01)

    until_scraped(server)
    for _ in range(500):  # before the opening: of no release's concern
        pods[STABLE].answer(500, 900)
    time.sleep(0.8)

    with Prometheus(server.url, timeout=2) as prometheus:

        def reader() -> WindowReader:
            return WindowReader(
                prometheus, judge, namespace=NAMESPACE, canary=CANARY, stable=STABLE, start=start, window=second
            )

        start, second = datetime.now(UTC), timedelta(seconds=1)
        looking, windows = reader(), list[Window]()
        send(1.7)
        windows += looking.read()
        time.sleep(0.45)  # so that the restart loses nothing that was never scraped
        pods[STABLE].restart()
        send(0.8)
        windows += looking.read()
        server.stop()
        with pytest.raises(MetricsUnavailable):
            looking.read(datetime.now(UTC) + second)
        send(1.6)
        server.start()
        until_scraped(server, datetime.now(UTC))
        send(0.8)
        found = presence(prometheus, profile("knative-otel"), NAMESPACE, STABLE, window=second)
        time.sleep(2.4)
        windows += looking.read()
        again = reader().read(datetime.fromisoformat(windows[-1].end or ""))

    assert found.ok, found.sentence
    for revision in pods:
        told = [0, 0, 0]
        for window in windows:
            side = window.canary if revision == CANARY else window.stable
            assert side is not None
            for place, count in enumerate((side.requests, side.bad["errors"], side.bad["slow"])):
                told[place] += count or 0
        assert told == sent[revision], f"{revision}: {told} of {sent[revision]} in {windows}"
    assert any(window.canary.requests is None for window in windows), "the time without Prometheus is no data"
    assert windows[0].error is None
    assert again == windows
