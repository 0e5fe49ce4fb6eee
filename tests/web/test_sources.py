"""Reading the parts: each apart, none waited for too long, and the cluster with one request for a kind."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.patience import LIMIT

from model_release.cluster.leases import Leases
from model_release.cluster.release import Owner
from model_release.cluster.services import InferenceServices
from model_release.errors import ClusterRefused, ClusterUnavailable, StoreUnavailable
from model_release.tasks import connections
from model_release.web.airflow import AirflowSources
from model_release.web.sources import gather, read

from .makers import VERSIONS, uri

MODEL = """
model: {name}
source: {{directory: candidates/{name}}}
service: {{name: {name}, namespace: models}}
store: s3://models/{name}/
judge: {{metrics: [{{name: errors, max_rate: 0.02}}]}}
"""


def test_each_part_fails_alone_and_all_are_read_at_once() -> None:
    def slow(value: int) -> int:
        both.wait(LIMIT)  # passes only when the other one is read at the same time
        return value

    both = threading.Barrier(2)

    def down() -> int:
        raise StoreUnavailable("s3://models/x/: no answer")

    def broken() -> int:
        raise KeyError("token-hunter2")

    reads = {"a": lambda: slow(1), "b": lambda: slow(2), "down": down, "broken": broken}
    parts = gather(reads, patience=LIMIT)
    assert (parts["a"].value, parts["b"].value) == (1, 2)
    assert parts["down"].trouble == "s3://models/x/: no answer"
    assert parts["broken"].trouble is not None
    assert "KeyError" in parts["broken"].trouble
    assert "hunter2" not in parts["broken"].trouble
    assert read(down).value is None


def test_a_part_that_hangs_is_told_and_not_waited_for() -> None:
    ended = threading.Event()
    answered = threading.Event()

    def hangs() -> None:
        ended.wait(LIMIT)
        answered.set()

    try:
        parts = gather({"hangs": hangs}, patience=0.2)
        assert parts["hangs"].trouble == "does not answer within 0.2 s"
        assert not answered.is_set(), "it was waited for"
    finally:
        ended.set()


def test_reads_within_reads_do_not_wait_for_each_other() -> None:
    """Many people look at once at pages that read the history of their stores beside the cluster."""

    def page(_: int) -> str | None:
        ready.wait(LIMIT)
        inner = gather({"outer": lambda: gather({"inner": lambda: time.sleep(0.01)}, patience=LIMIT)}, patience=LIMIT)[
            "outer"
        ]
        return inner.trouble or inner.value["inner"].trouble

    ready = threading.Barrier(40)
    with ThreadPoolExecutor(40) as viewers:
        assert set(viewers.map(page, range(40))) == {None}


def test_model_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MODEL.format(name="a"))
    (tmp_path / "b.yaml").write_text("model: [")
    sources = AirflowSources(tmp_path)
    found = sources.models()
    assert set(found.specs) == {"a"}
    assert len(found.troubles) == 1
    assert "b.yaml" in found.troubles[0]
    assert sources.models().specs["a"] is found.specs["a"], "what has not changed is not read again"
    (tmp_path / "b.yaml").write_text(MODEL.format(name="b"))
    os.utime(tmp_path / "a.yaml", (1, 1))
    again = sources.models()
    assert set(again.specs) == {"a", "b"}
    assert again.specs["a"] is not found.specs["a"]
    (tmp_path / "a.yaml").unlink()
    assert set(sources.models().specs) == {"b"}


class Pods:
    """No revision ever starts: what is read is what was written."""

    async def ensure(self, template: Any) -> None: ...

    async def remove(self, key: Any) -> None: ...

    def state(self, key: Any) -> Any:
        from sandbox.interfaces import Phase, PodState

        return PodState(Phase.PENDING)

    def log(self, key: Any, tail: int | None = None) -> str:
        return ""

    async def program(self, routes: Any) -> None: ...


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[Any]:
    """A client of the sandbox's Kubernetes API."""
    from kubernetes.client import ApiClient, Configuration

    from sandbox.kube.server import Cluster

    loop, pods = asyncio.new_event_loop(), Pods()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    api = Cluster(pods, pods, tmp_path, namespaces=("models", "others"))
    asyncio.run_coroutine_threadsafe(api.start(), loop).result(20)
    try:
        yield ApiClient(Configuration(host=api.url))
    finally:
        asyncio.run_coroutine_threadsafe(api.stop(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)


def test_services_and_leases_of_one_namespace(kube: Any) -> None:
    from kubernetes.client import CustomObjectsApi

    for namespace, name in (("models", "digits"), ("models", "faces"), ("others", "digits")):
        CustomObjectsApi(kube).create_namespaced_custom_object(
            "serving.kserve.io",
            "v1beta1",
            namespace,
            "inferenceservices",
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "predictor": {"model": {"modelFormat": {"name": "pytorch"}, "storageUri": uri(name, VERSIONS[0])}}
                },
            },
        )
    Leases(kube).acquire("models", "faces", Owner("release_faces", "r1", "http://a", "http://a"), "faces-1")
    found = InferenceServices(kube).within("models")
    assert set(found) == {"digits", "faces"}
    assert found["digits"].key == "models/digits"
    held = {one.service: one for one in Leases(kube).within("models")}
    assert set(held) == {"faces"}
    assert held["faces"].release is not None
    assert held["faces"].release.record == "faces-1"
    assert InferenceServices(kube).within("others").keys() == {"digits"}
    assert Leases(kube).within("others") == []


def test_a_cluster_that_is_away_is_told() -> None:
    from kubernetes.client import ApiClient, Configuration

    away = ApiClient(Configuration(host="http://127.0.0.1:9"))
    with pytest.raises((ClusterUnavailable, ClusterRefused), match="list inferenceservices models/"):
        InferenceServices(away).within("models")


def test_the_cluster_is_told_that_the_page_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its audit log tells the page from the tasks of releases, whose rights are others."""
    callers: list[str] = []
    monkeypatch.setattr(connections, "cluster", lambda who="worker": callers.append(who) or object())
    AirflowSources(tmp_path)._cluster()
    assert callers == ["page"]
