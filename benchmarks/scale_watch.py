"""Releases under watch: what each costs, deferred to one triggerer or as a sensor that holds its worker.

Part `watch` of benchmarks/scale.py. Prometheus and the store are real ones; the Kubernetes API is a page that says of
every service what an API server says of a canary at 10 %.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
WATCHED = (1, 25, 100)
SECONDS = 40.0
REVISION = "m{number}-predictor-0000{generation}"

Row = tuple[str, ...]
Child = Callable[..., dict[str, Any]]


HEAD: Row = ("how", "releases", "looks", "CPU a look", "CPU a release and minute", "memory a release", "latest look")


def watch(child: Child) -> list[Row]:
    """Rows of the table. `child` runs one of `CHILDREN` in a process of its own."""
    with _surroundings(max(WATCHED)) as place:
        one = child("sensor", json.dumps(place))
        found = {count: child("triggerer", json.dumps(place), str(count)) for count in WATCHED}
    rows = [_row("a sensor that pokes in its task's process", 1, one, f"{one['memory'] / 1e6:.0f} MB")]
    for count, told in found.items():
        more = told["memory"] - found[1]["memory"]
        memory = f"{told['memory'] / 1e6:.0f} MB" if count == 1 else f"{more / (count - 1) / 1e6:.2f} MB more"
        rows.append(_row("deferred, all in one triggerer", count, told, memory))
    return rows


def _row(how: str, count: int, told: dict[str, Any], memory: str) -> Row:
    a_look, a_minute = 1000 * told["cpu"] / told["looks"], 60_000 * told["cpu"] / SECONDS / count
    late = f"{1000 * told['late']:.0f} ms late"
    return how, str(count), str(told["looks"]), f"{a_look:.0f} ms", f"{a_minute:.0f} ms", memory, late


@contextlib.contextmanager
def _surroundings(count: int) -> Iterator[dict[str, str]]:
    """A Prometheus that scrapes `count` services with two revisions each, a store, and an API server's stand-in that
    says of every service what it says of a canary at 10 %."""
    from sandbox import programs
    from sandbox.ports import Ports, free_port
    from sandbox.s3 import ModelStore

    with tempfile.TemporaryDirectory(prefix="scale-", dir="/tmp") as name:
        folder, began = Path(name), time.time()
        page, api, port = free_port(), free_port(), free_port()
        servers = [_serve(page, lambda _: ("text/plain", _exposition(count, time.time() - began)))]
        servers.append(_serve(api, lambda path: ("application/json", json.dumps(_object(path)))))
        config = {"global": {"scrape_interval": "2s"}, "scrape_configs": [
            {"job_name": "gateway", "static_configs": [{"targets": [f"127.0.0.1:{page}"]}]}]}  # fmt: skip
        (folder / "prometheus.yml").write_text(json.dumps(config))
        command: list[str | Path] = [
            programs.prometheus(),
            "--config.file=prometheus.yml",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (folder / "log").open("wb") as log:
            prometheus = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        store = ModelStore(folder, Ports(folder / "ports.json"))
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()

        def wait(coroutine: Any) -> None:
            asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

        wait(store.start())
        wait(store.ensure_bucket("models"))
        time.sleep(10)
        try:
            yield {
                "prometheus": f"http://127.0.0.1:{port}", "api": f"http://127.0.0.1:{api}", "s3": store.url,
                "key": store.access_key, "secret": store.secret_key,
            }  # fmt: skip
        finally:
            wait(store.stop())
            prometheus.terminate()
            prometheus.wait(20)
            for server in servers:
                server.shutdown()
            loop.call_soon_threadsafe(loop.stop)


def _serve(port: int, answer: Callable[[str], tuple[str, str]]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            kind, text = answer(self.path)
            body = text.encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Thousands of requests, and nobody who reads of them."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _exposition(count: int, seconds: float) -> str:
    lines = ["# TYPE istio_requests_total counter"]
    for number in range(count):
        for generation, rate in ((1, 18), (2, 2)):
            revision = REVISION.format(number=number, generation=generation)
            labels = f'destination_workload_namespace="models",destination_workload="{revision}-deployment"'
            for code, share in (("200", 0.997), ("503", 0.003)):
                value = f'istio_requests_total{{reporter="source",{labels},response_code="{code}"}}'
                lines.append(f"{value} {rate * share * seconds:.0f}")
    return "\n".join(lines) + "\n"


def _object(path: str) -> dict[str, Any]:
    name = path.split("?")[0].rsplit("/", 1)[1]
    if "leases" in path:
        about = {"name": name, "namespace": "models", "uid": "1", "resourceVersion": "1", "annotations": {}}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": about, "spec": {}}
    return _service(name.removeprefix("m"))


def _service(number: str | int) -> dict[str, Any]:
    old, new = (REVISION.format(number=number, generation=generation) for generation in (1, 2))
    traffic = [
        {"revisionName": new, "percent": 10, "latestRevision": True},
        {"revisionName": old, "percent": 90, "tag": "prev"},
    ]
    about = {"name": f"m{number}", "namespace": "models", "uid": "1", "resourceVersion": "1", "generation": 2}
    predictor = {"model": {"storageUri": f"s3://models/m{number}/2/"}, "canaryTrafficPercent": 10}
    told = {
        "latestCreatedRevision": new,
        "latestReadyRevision": new,
        "latestRolledoutRevision": old,
        "traffic": traffic,
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": about,
        "spec": {"predictor": predictor},
        "status": {"components": {"predictor": {**told, "traffic": traffic}}},
    }


def given(number: int) -> dict[str, Any]:
    """What the task of a release hands to its trigger: one step at 10 %, with a judge that is not to decide here."""
    from model_release.cluster.change import Canary
    from model_release.cluster.inference_service import InferenceService
    from model_release.model_file import load
    from model_release.spec import ModelSpec

    said = load(PROJECT / "include/models/digits.yaml").model_dump(mode="json", exclude_none=True)
    said |= {"model": f"m{number}", "store": f"s3://models/m{number}/"}
    said["service"] |= {"name": f"m{number}"}
    said["rollout"] |= {"steps": [10], "window": "10s", "deadline": "30m", "bake": "0s"}
    said["judge"] |= {"min_requests": 10**9, "metrics": [{"name": "errors", "max_rate": 0.02}]}
    spec = ModelSpec.model_validate(said)
    live, now = InferenceService(_service(number)), datetime.now(UTC)
    canary = Canary("models", f"m{number}", "1", REVISION.format(number=number, generation=2),
                    REVISION.format(number=number, generation=1), live.template_digest)  # fmt: skip
    return {
        "spec": spec.model_dump_json(), "canary": canary.as_dict(), "percent": 10,
        "opened": now.isoformat(), "deadline": (now + timedelta(minutes=30)).isoformat(),
        "run": {"dag_id": f"release_m{number}", "run_id": "r", "url": "", "installation": "", "release": f"m{number}-r",
                "rollout": "canary", "params": {}},
        "said": spec.policy(10),
    }  # fmt: skip


def _connect(place: dict[str, str]) -> None:
    """The connections of this process, without Airflow's data base: the same clients."""
    import boto3
    from kubernetes.client import ApiClient, Configuration

    from model_release.metrics.prometheus import Prometheus
    from model_release.store.store import Store
    from model_release.tasks import connections

    def cluster() -> ApiClient:
        configuration = Configuration()
        configuration.host = place["api"]
        return ApiClient(configuration)

    def store(uri: str) -> Store:
        client = boto3.client("s3", endpoint_url=place["s3"], aws_access_key_id=place["key"],
                              aws_secret_access_key=place["secret"], region_name="us-east-1")  # fmt: skip
        return Store(client, uri)

    connections.cluster, connections.store = cluster, store
    connections.prometheus = lambda: Prometheus(place["prometheus"])


class _Halves:
    """Counts looks, their CPU and how late the latest was, in the second of two equal times: by then all modules are
    imported and all clients made."""

    def __init__(self) -> None:
        from model_release.tasks.look import Watch

        self.looks, self.late = 0, 0.0
        self._due: dict[int, float] = {}
        look = Watch.look

        def counted(watch: Any, now: datetime | None = None) -> Any:
            self.late = max(self.late, time.monotonic() - self._due.get(id(watch), float("inf")))
            found = look(watch, now)
            self.looks += 1
            self._due[id(watch)] = time.monotonic() + watch.pause
            if found.over or any("Not judged" in line for line in found.lines):
                raise SystemExit(f"this watch was to go on: {found.lines}")
            return found

        Watch.look = counted  # type: ignore[method-assign]

    def begin(self) -> None:
        self.looks, self.late, self._cpu = 0, 0.0, time.process_time()

    def tell(self) -> None:
        """Prints what was measured since `begin`."""
        import psutil

        cpu, memory = time.process_time() - self._cpu, psutil.Process().memory_full_info().uss
        print(json.dumps({"looks": self.looks, "late": self.late, "cpu": cpu, "memory": memory}), flush=True)


def _triggerer_child(place: str, count: str) -> int:
    """`count` CanaryTriggers in one event loop, as a triggerer runs them."""
    from model_release.tasks.triggers import CanaryTrigger

    _connect(json.loads(place))
    halves = _Halves()

    async def run() -> None:
        tasks = []
        for number in range(int(count)):
            tasks.append(asyncio.ensure_future(anext(aiter(CanaryTrigger(**given(number)).run()))))
            await asyncio.sleep(5 / int(count))
        for half in (SECONDS / 2, SECONDS):
            halves.begin()
            ended, _ = await asyncio.wait(tasks, timeout=half)
            for task in ended:
                raise SystemExit(f"this trigger was to go on: {task.result()}")
        halves.tell()
        # Its threads are in the middle of something, and nobody waits for it.
        os._exit(0)

    asyncio.run(run())
    return 0


def _sensor_child(place: str) -> int:
    """One watch in the process of its task: what a sensor in poke mode keeps for as long as it waits."""
    # What a task's process has imported before it comes to the task.
    import airflow.sdk.execution_time.task_runner  # noqa: F401
    from model_release.tasks.look import Watch

    import model_release.tasks.dag  # noqa: F401

    _connect(json.loads(place))
    halves = _Halves()
    one = Watch.begin(**given(0))
    for half in (SECONDS / 2, SECONDS):
        halves.begin()
        end = time.monotonic() + half
        while time.monotonic() < end:
            if one.look().lines:
                one.show()
            time.sleep(one.pause)
    halves.tell()
    return 0


CHILDREN: dict[str, Callable[..., int]] = {"triggerer": _triggerer_child, "sensor": _sensor_child}
