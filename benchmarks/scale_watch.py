"""Releases under watch: what each costs one triggerer.

Part `watch` of benchmarks/scale.py. Prometheus, the store and the API server with its controllers are real ones, in
processes of their own; only the pods, and the requests that they count, are made up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from model_release.cluster.change import Baseline
    from model_release.release.drive import Drive
    from model_release.spec import ModelSpec
    from model_release.tasks.run import Run

PROJECT = Path(__file__).resolve().parents[1]
WATCHED = (1, 25, 100)
WARM, SECONDS = 20.0, 40.0
LIMIT = 300.0  # seconds in which the controllers have to come to each state

Row = tuple[str, ...]
Child = Callable[..., dict[str, Any]]

HEAD: Row = ("releases", "looks", "CPU a look", "CPU a release and minute", "memory a release", "latest look")


def watch(child: Child) -> list[Row]:
    """Rows of the table. `child` runs one of `CHILDREN` in a process of its own."""
    found = {}
    for count in WATCHED:
        with _surroundings(count) as place:
            releases = Path(place["folder"], "releases.json")
            releases.write_text(json.dumps(_opened(place, count)))
            found[count] = child("triggerer", json.dumps(place), str(releases))
        print(f"{count}: {found[count]}", file=sys.stderr, flush=True)
    rows = list[Row]()
    for count, told in found.items():
        more = (told["memory"] - found[1]["memory"]) / max(count - 1, 1)
        memory = f"{told['memory'] / 1e6:.0f} MB" if count == 1 else f"{more / 1e6:.2f} MB more"
        a_look, a_minute = 1000 * told["cpu"] / told["looks"], 60_000 * told["cpu"] / SECONDS / count
        late = f"{1000 * told['late']:.0f} ms late"
        rows.append((str(count), str(told["looks"]), f"{a_look:.0f} ms", f"{a_minute:.0f} ms", memory, late))
    return rows


@contextlib.contextmanager
def _surroundings(count: int) -> Iterator[dict[str, str]]:
    """A Prometheus that scrapes `count` services with two revisions each, a store, and an API server."""
    from stand import stand

    from sandbox import programs
    from sandbox.kube.controller import Timing
    from sandbox.ports import free_port

    # The sandbox's controllers look at everything after each write, and leases are renewed again and again.
    seldom = Timing(lag=1.0)
    with tempfile.TemporaryDirectory(prefix="scale-") as name, stand(Path(name), ("models",), seldom) as (store, api):
        folder, page, port = Path(name), _page(count), free_port()
        target = f"127.0.0.1:{page.server_address[1]}"
        scraped = {"job_name": "gateway", "static_configs": [{"targets": [target]}]}
        config = {"global": {"scrape_interval": "2s"}, "scrape_configs": [scraped]}
        (folder / "prometheus.yml").write_text(json.dumps(config))
        command = ["--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}"]
        with (folder / "log").open("wb") as log:
            prometheus = subprocess.Popen([programs.prometheus(), *command], cwd=folder, stdout=log, stderr=log)
        try:
            yield {
                "folder": name, "prometheus": f"http://127.0.0.1:{port}", "api": api,
                "s3": store.url, "key": store.access_key, "secret": store.secret_key,
            }  # fmt: skip
        finally:
            prometheus.terminate()
            prometheus.wait(20)
            page.shutdown()


def _page(count: int) -> ThreadingHTTPServer:
    """The counters of `count` services, as the gateway's page tells them."""
    began = time.monotonic()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # a scrape that a busy machine has made wait too long
                self.wfile.write(_exposition(count, time.monotonic() - began).encode())

        def log_message(self, *_: Any) -> None:
            """Nobody reads of them."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _exposition(count: int, seconds: float) -> str:
    lines = ["# TYPE istio_requests_total counter"]
    for number in range(count):
        for generation, rate in ((1, 18), (2, 2)):
            workload = f"m{number}-predictor-0000{generation}-deployment"
            labels = f'destination_workload_namespace="models",destination_workload="{workload}"'
            for code, share in (("200", 0.997), ("503", 0.003)):
                value = f'istio_requests_total{{reporter="source",{labels},response_code="{code}"}}'
                lines.append(f"{value} {rate * share * seconds:.0f}")
    return "\n".join(lines) + "\n"


def spec_of(number: int) -> ModelSpec:
    """A model file like the example's: one step at 10 %, with a judge that is not to decide here."""
    from model_release.model_file import load
    from model_release.spec import ModelSpec

    said = load(PROJECT / "include/models/digits.yaml").model_dump(mode="json", exclude_none=True)
    said |= {"model": f"m{number}", "store": f"s3://models/m{number}/"}
    said["service"] |= {"name": f"m{number}"}
    said["rollout"] |= {"steps": [10], "window": "10s", "deadline": "30m", "bake": "0s"}
    said["judge"] |= {"min_requests": 10**9, "metrics": [{"name": "errors", "max_rate": 0.02}]}
    return ModelSpec.model_validate(said)


def _run_of(spec: ModelSpec) -> Run:
    from model_release.tasks.run import Run

    return Run(f"release_{spec.model}", "r", "", "", f"{spec.model}-r", "canary", {})


def _opened(place: dict[str, str], count: int) -> list[dict[str, Any]]:
    """`count` releases whose canary has 10 % of the traffic; what the task of each hands to its trigger."""
    from model_release.cluster import rollout
    from model_release.cluster.leases import Leases
    from model_release.cluster.manifest import load_base, manifest
    from model_release.cluster.progress import State, wait
    from model_release.cluster.release import Owner, Phase
    from model_release.cluster.services import InferenceServices
    from model_release.tasks import connections, driving

    _connect(place)
    services, leases = InferenceServices(connections.cluster()), Leases(connections.cluster())
    base = load_base(PROJECT / "include/manifests/inference_service.yaml")
    specs = [spec_of(number) for number in range(count)]
    baselines = dict.fromkeys((spec.model for spec in specs), rollout.Baseline())

    def staged(version: str) -> None:
        """Written for all of them, and then waited for: the controllers take them up at once."""
        wanted = {spec.model: manifest(spec, f"{spec.store}versions/{version}/", base) for spec in specs}
        for name, one in wanted.items():
            rollout.stage(services, one, baselines[name])
        for name, one in wanted.items():

            def assess(name: str = name, one: dict[str, Any] = one) -> Any:
                return rollout.assess_staged(services.get("models", name), one, baselines[name])

            progress = wait(assess, LIMIT, poll=0.1)
            if progress.state is not State.READY:
                raise SystemExit(progress.sentence)
            if version == "1":
                baselines[name] = rollout.baseline_of(services.get("models", name), one)

    staged("1")
    staged("2")
    given, drives = [], []
    for spec in specs:
        live, baseline, run = services.get("models", spec.model), baselines[spec.model], _run_of(spec)
        assert live is not None
        canary = rollout.canary_of(live, baseline)
        owner = Owner(run.dag_id, run.run_id, run.url, run.installation)
        leases.acquire("models", spec.model, owner, run.release)

        def proven(now: Any, baseline: Baseline = baseline, canary: Any = canary) -> Any:
            found = {"canary": canary.revision, "template": canary.template, "started": canary.started}
            return replace(now, phase=Phase.PROVEN, baseline=baseline, **found)

        leases.update("models", spec.model, owner, proven)
        drives.append(driving.drive(spec, canary, run, "worker", None))
        given.append({
            "spec": spec.model_dump_json(), "canary": canary.as_dict(), "run": vars(run),
            "deadline": (datetime.now(UTC) + timedelta(minutes=30)).isoformat(),
        })  # fmt: skip

    def is_closed(drive: Drive) -> bool:
        lease = leases.read("models", drive.canary.name)
        return lease is None or lease.release is None or lease.release.opened_at is None

    end = time.monotonic() + LIMIT
    while closed := [drive for drive in drives if is_closed(drive)]:
        for drive in closed:
            drive.look()
        if time.monotonic() > end:
            raise SystemExit(f"{len(closed)} canaries are not open after {LIMIT:g} s")
    return given


def _connect(place: dict[str, str]) -> None:
    """The connections of this process, without Airflow's data base: the same clients."""
    import boto3
    from kubernetes.client import ApiClient, Configuration

    from model_release.metrics.prometheus import Prometheus
    from model_release.store.store import Store
    from model_release.tasks import connections

    def store(prefix: str) -> Store:
        client = boto3.client("s3", endpoint_url=place["s3"], aws_access_key_id=place["key"],
                              aws_secret_access_key=place["secret"], region_name="us-east-1")  # fmt: skip
        return Store(client, prefix)

    connections.cluster = lambda *_: ApiClient(Configuration(host=place["api"]))
    connections.store = store
    connections.prometheus = lambda: Prometheus(place["prometheus"])


class _Looks:
    """Counts the looks of all drives in this process, their CPU and how late the latest was, since `begin`."""

    def __init__(self) -> None:
        from model_release.release.drive import Drive

        self.looks, self.late = 0, 0.0
        self._due: dict[int, float] = {}
        look = Drive.look

        def counted(drive: Drive) -> list[str]:
            self.late = max(self.late, time.monotonic() - self._due.get(id(drive), float("inf")))
            lines = look(drive)
            self.looks += 1
            self._due[id(drive)] = time.monotonic() + drive.pause
            if drive.done is not None or any("Not judged" in line for line in lines):
                raise SystemExit(f"this watch was to go on: {lines}")
            return lines

        mock.patch.object(Drive, "look", counted).start()

    def begin(self) -> None:
        self.looks, self.late, self._cpu = 0, 0.0, time.process_time()

    def tell(self) -> None:
        """Prints what was measured since `begin`."""
        import psutil

        cpu, memory = time.process_time() - self._cpu, psutil.Process().memory_full_info().uss
        print(json.dumps({"looks": self.looks, "late": self.late, "cpu": cpu, "memory": memory}), flush=True)


def _triggerer_child(place: str, releases: str) -> int:
    """A CanaryTrigger for each release, in one event loop, as a triggerer runs them."""
    from model_release.tasks.triggers import CanaryTrigger

    _connect(json.loads(place))
    given, looks = json.loads(Path(releases).read_text()), _Looks()

    async def run() -> None:
        tasks = []
        for one in given:
            tasks.append(asyncio.ensure_future(anext(aiter(CanaryTrigger(**one).run()))))
            await asyncio.sleep(5 / len(given))
        for seconds in (WARM, SECONDS):  # in the first all modules are imported, and all clients made
            looks.begin()
            ended, _ = await asyncio.wait(tasks, timeout=seconds)
            for task in ended:
                raise SystemExit(f"this trigger was to go on: {task.result()}")
        looks.tell()
        # Its threads are in the middle of something, and nobody waits for it.
        os._exit(0)

    asyncio.run(run())
    return 0


CHILDREN: dict[str, Callable[..., int]] = {"triggerer": _triggerer_child}
