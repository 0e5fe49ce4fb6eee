"""The sandbox's real API server and controllers in a thread, over revisions whose state a test sets."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kubernetes.client import ApiClient, Configuration
from tests.patience import LIMIT

from model_release.cluster import manifest as manifests
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.leases import Leases
from model_release.cluster.services import InferenceServices
from model_release.spec import ModelSpec
from sandbox.interfaces import Phase, PodState, RevisionKey, RevisionTemplate, Route
from sandbox.kube.controller import Timing
from sandbox.kube.faults import Fault, Match
from sandbox.kube.server import Cluster

PROJECT = Path(__file__).parents[2]
BASE = PROJECT / "include" / "manifests" / "inference_service.yaml"
READY = PodState(Phase.READY, 1, pods=("pod-0",))


class Pods:
    """Ready at once, unless `phases` says otherwise for a version (the last part of the storage URI)."""

    def __init__(self) -> None:
        self.phases: dict[str, PodState] = {}
        self._running: dict[RevisionKey, RevisionTemplate] = {}

    async def ensure(self, template: RevisionTemplate) -> None:
        self._running[template.key] = template

    async def remove(self, key: RevisionKey) -> None:
        self._running.pop(key, None)

    def state(self, key: RevisionKey) -> PodState:
        if key not in self._running:
            return PodState(Phase.PENDING)
        return self.phases.get(self._running[key].storage_uri.rstrip("/").rsplit("/", 1)[-1], READY)

    def log(self, key: RevisionKey, tail: int | None = None) -> str:
        return ""


class Door:
    async def program(self, routes: list[Route]) -> None:
        """No user comes here."""


@contextmanager
def cluster(state_dir: Path, pods: Pods) -> Iterator[tuple[Cluster, ApiClient]]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = Cluster(pods, Door(), state_dir, timing=Timing(lag=0.01, poll=0.01))
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(LIMIT)
    configuration = Configuration()
    configuration.host = server.url
    try:
        with ApiClient(configuration) as client:
            yield server, client
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(LIMIT)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT)
        loop.close()


def wanted(spec: ModelSpec, version: str) -> dict[str, Any]:
    """The manifest of a version of the model."""
    return manifests.manifest(spec, f"s3://models/digits/versions/{version}/", manifests.load_base(BASE))


def moment(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


@dataclass
class Kube:
    server: Cluster
    pods: Pods
    services: InferenceServices
    leases: Leases
    client: Any

    def live(self) -> InferenceService:
        """The service, which is there."""
        found = self.services.get("models", "digits")
        assert found is not None
        return found

    def fault_in(self, verb: str, resource: str, namespace: str, **said: Any) -> None:
        """`fault`, for calls to one namespace."""
        match = Match(verb=verb, resource=resource, namespace=namespace)
        self.server.faults.active.append(Fault(match=match, **said))

    def fault(self, verb: str, resource: str, **said: Any) -> None:
        self.server.faults.active.append(Fault(match=Match(verb=verb, resource=resource), **said))


async def ending(trigger: Any) -> Any:
    """The payload of the one event that the trigger ends with."""

    async def all_of_them() -> list[Any]:
        return [event.payload async for event in trigger.run()]

    (payload,) = await asyncio.wait_for(all_of_them(), LIMIT)
    json.dumps(payload)  # events are stored
    return payload
