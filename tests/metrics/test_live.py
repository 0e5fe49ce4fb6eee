"""Live pages of every stack, scraped each 200 ms by a real Prometheus that is restarted meanwhile: nothing is lost or
invented."""

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
from tests.patience import until

from model_release.errors import MetricsUnavailable
from model_release.judging import Window
from model_release.metrics import PROFILES, Prometheus, WindowReader, presence, profile
from model_release.spec import JudgeSpec, Profile

from .conftest import CANARY, NAMESPACE, STABLE, Server
from .stacks import GATEWAYS, Page, Request

pytestmark = pytest.mark.stack

# What a PodMonitor makes of a pod (docs/facts.md#labels-by-podmonitor): what the Operator sets by itself, and what is
# asked for.
_BY_ITSELF = [
    {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
    {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
]
_ASKED_FOR = [
    {"source_labels": ["__meta_kubernetes_pod_label_serving_knative_dev_revision"], "target_label": "kn_revision_name"},
    {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "k8s_namespace_name"},
]
RELABELLED: dict[Profile, list[dict[str, Any]]] = {
    "knative": _BY_ITSELF,
    "knative-otel": [*_BY_ITSELF, *_ASKED_FOR],
    "knative-otel-target-info": [],
    "istio": [],
    "istio-destination": _BY_ITSELF,
    "kourier": [],
}


class Process:
    """A metrics page of one or more revisions; `restart` sets its counters back to nothing."""

    def __init__(self, name: Profile, revisions: tuple[str, ...]) -> None:
        self.name, self.revisions, self.page = name, revisions, Page(name, "")
        self.restart()
        process = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = process.text().encode()
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
        self.page = Page(self.name, "", requests={revision: [] for revision in self.revisions})

    def answer(self, revision: str, code: int, duration_ms: float) -> None:
        self.page.requests[revision].append(Request(0, code, duration_ms))

    def text(self) -> str:
        """The exposition, without what only a scrape adds."""
        lines, added = [], self.page.target(self.revisions[0]).keys()
        for name, labels, value in self.page.exposed(0):
            own = ",".join(f'{k}="{v}"' for k, v in labels.items() if k not in added)
            lines.append(f"{name}{{{own}}} {value}\n")
        return "".join(lines)

    def scraped_as(self) -> dict[str, Any]:
        """As service discovery tells of it."""
        revision = self.revisions[0]
        labels = {
            "__meta_kubernetes_namespace": NAMESPACE,
            "__meta_kubernetes_pod_name": f"{revision}-deployment-6d4f-x",
            "__meta_kubernetes_pod_label_serving_knative_dev_revision": revision,
        }
        return {"targets": [f"127.0.0.1:{self.server.server_port}"], "labels": labels}


Stacks = dict[Profile, dict[str, Process]]  # for each profile, which process counts for a revision


@pytest.fixture
def stacks() -> Iterator[Stacks]:
    every: Stacks = {}
    for name in PROFILES:
        if name in GATEWAYS:
            every[name] = dict.fromkeys((STABLE, CANARY), Process(name, (STABLE, CANARY)))
        else:
            every[name] = {revision: Process(name, (revision,)) for revision in (STABLE, CANARY)}
    yield every
    for process in processes(every):
        process.server.shutdown()
        process.server.server_close()


def processes(stacks: Stacks) -> set[Process]:
    return {process for by_revision in stacks.values() for process in by_revision.values()}


@pytest.fixture
def server(tmp_path: Path, stacks: Stacks) -> Iterator[Server]:
    jobs = [
        {
            "job_name": f"models/{name}",
            "static_configs": [process.scraped_as() for process in processes({name: stacks[name]})],
            "relabel_configs": RELABELLED[name],
        }
        for name in stacks
    ]
    timing = {"scrape_interval": "200ms", "scrape_timeout": "190ms"}
    running = Server(tmp_path, json.dumps({"global": timing, "scrape_configs": jobs}))
    running.start()
    yield running
    running.stop()


def until_scraped(server: Server, targets: int, since: datetime | None = None) -> None:
    """Prometheus begins to scrape some five seconds after it has started."""
    query = f"timestamp(up) > {since.timestamp() if since else 0:.3f} and up == 1"
    with Prometheus(server.url) as prometheus:
        until(lambda: len(prometheus.query(query).series) == targets, "Prometheus does not scrape", pause=0.05)


def test_live_counts(server: Server, stacks: Stacks, judge_of: Callable[..., JudgeSpec]) -> None:
    chance, targets = random.Random(5), len(processes(stacks))
    sent = {revision: [0, 0, 0] for revision in (STABLE, CANARY)}

    def send(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            revision = STABLE if chance.random() < 0.8 else CANARY
            code, duration = (503, 20.0) if chance.random() < 0.1 else (200, chance.choice([30.0, 500.0, 900.0]))
            for by_revision in stacks.values():
                by_revision[revision].answer(revision, code, duration)
            for place, counted in enumerate((True, code == 503, duration > 500)):
                sent[revision][place] += counted
            time.sleep(0.02)

    until_scraped(server, targets)
    for by_revision in stacks.values():
        for _ in range(100):  # before the opening: of no release's concern
            by_revision[STABLE].answer(STABLE, 500, 900)
    until_scraped(server, targets, datetime.now(UTC))

    with Prometheus(server.url) as prometheus:

        def readers() -> dict[Profile, WindowReader]:
            return {
                name: WindowReader(
                    prometheus,
                    judge_of(name),
                    namespace=NAMESPACE,
                    canary=CANARY,
                    stable=STABLE,
                    start=start,
                    window=second,
                )
                for name in stacks
            }

        def look() -> None:
            for name, reader in looking.items():
                windows[name] += reader.read()

        start, second = datetime.now(UTC), timedelta(seconds=1)
        looking, windows = readers(), {name: list[Window]() for name in stacks}
        send(1.7)
        look()
        until_scraped(server, targets, datetime.now(UTC))  # the restart loses nothing that was never scraped
        for by_revision in stacks.values():
            by_revision[STABLE].restart()
        restarted = datetime.now(UTC)
        send(0.8)
        look()
        until_scraped(server, targets, restarted)  # a restart that nobody saw before the outage could not be told
        server.stop()
        with pytest.raises(MetricsUnavailable):
            looking["istio"].read(datetime.now(UTC) + second)
        send(1.6)
        server.start()
        until_scraped(server, targets, datetime.now(UTC))
        send(0.8)
        found = {name: presence(prometheus, profile(name), NAMESPACE, STABLE, window=second) for name in stacks}
        # The window in which the last request was, and one more, are over and scraped.
        until_scraped(server, targets, datetime.now(UTC) + 2 * second)
        look()
        again = {
            name: reader.read(datetime.fromisoformat(windows[name][-1].end or "")) for name, reader in readers().items()
        }

    for name, read in windows.items():
        assert found[name].ok, found[name].sentence
        for revision in sent:
            told = [0, 0, 0]
            for window in read:
                side = window.canary if revision == CANARY else window.stable
                assert side is not None
                for place, count in enumerate((side.requests, side.bad["errors"], side.bad["slow"])):
                    told[place] += count or 0
            assert told == sent[revision], f"{name}, {revision}: {told} of {sent[revision]} in {read}"
        assert any(window.canary.requests is None for window in read), "the time without Prometheus is no data"
        assert read[0].error is None
        assert again[name] == read
