"""The Releases page with 50 services and 2 000 releases, in one store and in a store each, against a real S3 server and
a real Kubernetes API.

    python benchmarks/releases_page.py            # prints the table
    python benchmarks/releases_page.py --write    # and writes it into README.md

What a page is compared with: the same rows made without the index, from the decision records themselves. Every record
is read then, as a page must that keeps nothing but records.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pages import write
from stand import stand

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "include")]

import requests  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from kubernetes.client import ApiClient, Configuration, CustomObjectsApi  # noqa: E402
from tests.web.makers import record_of, spec, uri  # noqa: E402
from tests.web.world import Gate, World  # noqa: E402

from model_release.cluster.leases import Leases  # noqa: E402
from model_release.cluster.release import Owner  # noqa: E402
from model_release.cluster.services import InferenceServices  # noqa: E402
from model_release.release.index import History  # noqa: E402
from model_release.store.store import Store  # noqa: E402
from model_release.web.app import create_app  # noqa: E402
from sandbox.browser import chromium  # noqa: E402
from sandbox.s3 import ModelStore  # noqa: E402

SERVICES, EACH, LOADS = 50, 40, 40
KINDS: dict[str, str | None] = {"shared": "s3://models/shared/", "own": None}
NAMESPACES = tuple(f"{kind}-{part}" for kind in KINDS for part in "ab")


class Real(World):
    """The sources of the page, with the store and the cluster that were started."""

    client: Any
    api: ApiClient

    def releases(self, store: str) -> Any:
        return History(Store(self.client, store))

    def services(self, namespace: str) -> Any:
        return InferenceServices(self.api).within(namespace)

    def leases(self, namespace: str) -> Any:
        return {one.service: one for one in Leases(self.api).within(namespace)}


def furnish(world: Real, kind: str, shared: str | None) -> None:
    """50 InferenceServices of which 3 are being released, and 40 releases of each over a year, in the store `shared` or
    in one for each model."""
    now = datetime.now(UTC).replace(microsecond=0)
    objects = CustomObjectsApi(world.api)
    for i in range(SERVICES):
        one = spec(f"{kind}-{i:02d}", namespace=f"{kind}-{'ab'[i % 2]}", store=shared)
        world.specs[one.model] = one
        objects.create_namespaced_custom_object(
            "serving.kserve.io", "v1beta1", one.service.namespace, "inferenceservices",
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": one.model, "namespace": one.service.namespace},
                "spec": {"predictor": {"model": {
                    "modelFormat": {"name": "pytorch"}, "storageUri": uri(one.model, "3f2a9c0d11e4b587"),
                }}},
            },
        )  # fmt: skip
        if i < 3:
            owner = Owner(f"release_{one.model}", "manual__1", "http://airflow.test", "http://airflow.test")
            release = record_of(one, outcome=None, started=now, number=0).release
            Leases(world.api).acquire(one.service.namespace, one.model, owner, release)

    def past(one: Any) -> None:
        pattern = record_of(one, started=now)
        for n in range(EACH):
            started = now - timedelta(days=9 * n)
            record = replace(
                pattern, started=started.isoformat(), release=f"{one.model}-{started:%Y%m%dT%H%M%S}-{n:08x}"
            )
            if n == 0 and one.model in list(world.specs)[:3]:
                record.outcome = record.ended = None
            bucket, _, prefix = one.store.removeprefix("s3://").partition("/")
            world.client.put_object(
                Bucket=bucket, Key=f"{prefix}releases/{record.release}.json", Body=record.to_json().encode()
            )

    stores = sorted({one.store for one in world.specs.values()})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(past, world.specs.values()))
        written = sum(pool.map(lambda store: History(Store(world.client, store)).reindex(), stores))
    assert written == SERVICES * EACH, written


@contextmanager
def served(world: Real) -> Iterator[str]:
    outer = FastAPI()
    outer.mount("/model-releases", create_app(world, Gate(everybody="ada"), "/model-releases"))
    server = uvicorn.Server(uvicorn.Config(outer, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/model-releases"
    finally:
        server.should_exit = True
        thread.join(10)


def timed(what: Callable[[], Any], times: int) -> list[float]:
    """Milliseconds of each."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        what()
        found.append(1000 * (time.perf_counter() - begun))
    return found


def without_an_index(world: Real) -> int:
    """The rows of the fleet from the records alone, with as many threads as the page has."""

    def listed(store: str) -> list[tuple[Store, str]]:
        one = Store(world.client, store)
        return [(one, name) for name in one.names("releases/") if name.endswith(".json")]

    with ThreadPoolExecutor(24) as pool:
        named = [each for found in pool.map(listed, {one.store for one in world.specs.values()}) for each in found]
        records = pool.map(lambda each: each[0].read_json(f"releases/{each[1]}")[0], named)
        newest: dict[str, str] = {}
        for record in records:
            newest[record["service"]] = max(newest.get(record["service"], ""), record["started"])
    return len(newest)


def painted(url: str, times: int) -> list[float]:
    """Milliseconds from the navigation's start to the first contentful paint, in Chromium."""
    found = []
    with chromium() as browser:
        for _ in range(times + 1):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(url)
            paint = "performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"
            while not (seen := page.evaluate(paint)):  # the page's policy lets nobody wait by a function
                time.sleep(0.01)
            found += seen
            page.close()
    return [float(value) for value in found[1:]]


def measured(s3: ModelStore, api: str, kind: str, shared: str | None) -> list[str]:
    """The table's lines for one arrangement of stores."""
    world = Real()
    world.client = s3.client()
    configuration = Configuration(host=api)
    configuration.connection_pool_maxsize = 8
    world.api = ApiClient(configuration)
    furnish(world, kind, shared)
    with served(world) as url:
        requests.get(f"{url}/", timeout=60)  # imports and connections are made once in a server's life
        every = timed(lambda: without_an_index(world), 2)
        rows = [
            ("the rows of the fleet by reading every record", every),
            ("the fleet: first paint in Chromium", painted(f"{url}/", 15)),
            ("the fleet: the page's bytes", timed(lambda: requests.get(f"{url}/", timeout=60), LOADS)),
            ("the history: its first 50 of 2 000", timed(lambda: requests.get(f"{url}/releases", timeout=60), LOADS)),
            (
                "the history of one model",
                timed(lambda: requests.get(f"{url}/releases?model={kind}-07", timeout=60), LOADS),
            ),
        ]
    where, base = "one store" if shared else "a store each", statistics.median(every)
    return [
        f"| {where} | {name} | {(middle := statistics.median(found)):.0f} ms | "
        f"{sorted(found)[int(0.95 * len(found))]:.0f} ms | {middle / base:.3f} |"
        for name, found in rows
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--write", action="store_true", help="write the table into README.md")
    chosen = options.parse_args()
    lines = ["| 2 000 releases in | what | median | 95 % below | of reading every record |", "|---|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as name, stand(Path(name), NAMESPACES) as (s3, api):
        for kind, shared in KINDS.items():
            lines += measured(s3, api, kind, shared)
    told = "\n".join(lines)
    print(told)
    if chosen.write:
        write({"releases-page": told})


if __name__ == "__main__":
    main()
