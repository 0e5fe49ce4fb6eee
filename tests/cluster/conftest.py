"""A whole API server with KServe's and Knative's controllers, over revisions that do what a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration, CustomObjectsApi
from tests.patience import LIMIT
from tests.releases import OWNER, left

from model_release.cluster import manifest as manifests
from model_release.cluster import rollout
from model_release.cluster.change import Baseline, Canary
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.leases import Leases
from model_release.cluster.progress import Progress, State, wait
from model_release.cluster.release import Owner
from model_release.cluster.services import InferenceServices
from model_release.cluster.settle import settle
from model_release.spec import ModelSpec
from sandbox.interfaces import Phase, PodState, RevisionKey, RevisionTemplate, Route
from sandbox.kube.controller import Timing
from sandbox.kube.faults import Fault, Match
from sandbox.kube.resources import REVISIONS
from sandbox.kube.server import Cluster

BASE = Path(__file__).parents[2] / "include" / "manifests" / "inference_service.yaml"
SPEC = {
    "model": "digits",
    "source": {"directory": "candidates/digits"},
    "service": {"name": "digits", "namespace": "models", "resources": {"cpu": "1000m", "memory": "1Gi"}},
    "store": "s3://models/digits/",
    "judge": {"profile": "istio", "metrics": [{"name": "errors", "max_rate": 0.02}]},
}


class Pods:
    """Revisions by the version they serve; ready at once, unless `phases` says otherwise for a version."""

    def __init__(self) -> None:
        self.phases: dict[str, PodState] = {}
        self.running: dict[RevisionKey, RevisionTemplate] = {}

    async def ensure(self, template: RevisionTemplate) -> None:
        self.running[template.key] = template

    async def remove(self, key: RevisionKey) -> None:
        self.running.pop(key, None)

    def state(self, key: RevisionKey) -> PodState:
        if key not in self.running:
            return PodState(Phase.PENDING)
        version = self.running[key].storage_uri.rstrip("/").rsplit("/", 1)[-1]
        return self.phases.get(version, PodState(Phase.READY, 1, pods=(f"{key.name}-deployment-0",)))

    def log(self, key: RevisionKey, tail: int | None = None) -> str:
        return f"log of {key.name}\n"


@dataclass
class FrontDoor:
    """Every share that the service's own host ever gave a revision."""

    history: list[dict[str, int]] = field(default_factory=list)

    async def program(self, routes: list[Route]) -> None:
        for route in routes:
            if route.host.startswith("digits.models"):
                shares = {key.name: percent for key, percent in route.shares.items() if percent}
                if not self.history or self.history[-1] != shares:
                    self.history.append(shares)

    @property
    def now(self) -> dict[str, int]:
        return self.history[-1] if self.history else {}

    def most(self, revision: str) -> int:
        """The largest share that a revision ever had."""
        return max((shares.get(revision, 0) for shares in self.history), default=0)


def spec_of(**service: Any) -> ModelSpec:
    return ModelSpec.model_validate({**SPEC, "service": {**SPEC["service"], **service}})


def wanted(version: str, **service: Any) -> dict[str, Any]:
    return manifests.manifest(spec_of(**service), f"s3://models/digits/versions/{version}/", manifests.load_base(BASE))


@dataclass
class Live:
    """The cluster, its clients, and a release's steps with their waits, as the tasks do them."""

    cluster: Cluster
    loop: asyncio.AbstractEventLoop
    pods: Pods
    door: FrontDoor
    client: ApiClient
    services: InferenceServices
    leases: Leases
    barred: list[str] = field(default_factory=list)
    service: dict[str, Any] = field(default_factory=dict)  # what the model file says of it besides the usual

    def owner(self, run: str) -> Owner:
        return Owner("release_digits", run, f"http://airflow/runs/{run}", "laptop")

    def collect(self, revision: str) -> None:
        """What Knative's garbage collector does to a revision that is in no traffic."""

        async def delete() -> None:
            registry = self.cluster._controller._revisions.registry
            registry.delete(REVISIONS, "models", revision)

        asyncio.run_coroutine_threadsafe(delete(), self.loop).result(10)

    def fault(self, verb: str, resource: str = "inferenceservices", **said: Any) -> None:
        self.cluster.faults.active.append(Fault(match=Match(verb=verb, resource=resource), **said))

    def late_configuration(self, rounds: int) -> None:
        self.cluster.faults.active.append(Fault(late=rounds))

    def get(self) -> InferenceService:
        found = self.services.get("models", "digits")
        assert found is not None
        return found

    def until(self, assess: Callable[[InferenceService | None], Progress], deadline: float = LIMIT) -> Progress:
        return wait(lambda: assess(self.services.get("models", "digits")), deadline, poll=0.01)

    def stage(self, version: str, baseline: Baseline | None = None) -> tuple[Baseline, Canary]:
        """Release and stage `version`, and wait until it is ready."""
        asked = wanted(version, **self.service)
        if baseline is None:
            baseline = rollout.baseline_of(self.services.get("models", "digits"), asked)
        template = rollout.stage(self.services, asked, baseline, by=OWNER.identity).template_digest
        progress = self.until(partial(rollout.assess_staged, wanted=asked, baseline=baseline, template=template))
        assert progress.state is State.READY, progress
        return baseline, rollout.canary_of(self.get(), baseline)

    def shift(self, canary: Canary, percent: int) -> None:
        rollout.shift(self.services, canary, percent)
        progress = self.until(partial(rollout.assess_split, canary=canary, percent=percent))
        assert progress.state is State.READY, progress

    def promote(self, canary: Canary, percent: int) -> None:
        rollout.promote(self.services, canary, percent)
        progress = self.until(partial(rollout.assess_promoted, canary=canary))
        assert progress.state is State.READY, progress

    def released(self, *versions: str) -> list[str]:
        """Release each version to the end; their revisions' names."""
        names = []
        for version in versions:
            baseline, canary = self.stage(version)
            if baseline.revision is not None:
                self.shift(canary, 50)
                self.promote(canary, 50)
            names.append(canary.revision)
        return names

    def edit(self, patch: dict[str, Any]) -> None:
        """Somebody else's hand, with another field manager."""
        CustomObjectsApi(self.client).patch_namespaced_custom_object(
            "serving.kserve.io", "v1beta1", "models", "inferenceservices", "digits", patch,
            field_manager="kubectl-edit", _content_type="application/merge-patch+json",
        )  # fmt: skip

    def assert_clean(self, version: str) -> None:
        """From outside: one revision with everything, of this version's content, and no split left in the spec."""
        isvc = self.get()
        assert isvc.canary_percent is None
        assert isvc.storage_uri == f"s3://models/digits/versions/{version}/"
        assert self.door.now == isvc.serving == {isvc.latest_created: 100}
        pod = next(pod for key, pod in self.pods.running.items() if key.name == isvc.latest_created)
        assert pod.storage_uri == isvc.storage_uri

    def settle(self, baseline: Baseline, canary: str | None = None, *, deadline: float = LIMIT, **said: Any) -> str:
        release = left("models", "digits", baseline, canary, barred=tuple(self.barred), **said)
        return settle(self.services, release, self.barred.append, deadline=deadline, poll=0.01)


@pytest.fixture
def live(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Live]:
    """An indirect parameter is the release of KServe to act as."""
    with running(tmp_path, getattr(request, "param", "0.21")) as one:
        yield one


@contextmanager
def running(folder: Path, kserve: str = "0.21") -> Iterator[Live]:
    """Such a cluster, with what it writes in `folder`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    pods, door = Pods(), FrontDoor()
    cluster = Cluster(pods, door, folder, timing=Timing(lag=0.01, poll=0.01), kserve=kserve)
    asyncio.run_coroutine_threadsafe(cluster.start(), loop).result(10)
    configuration = Configuration()
    configuration.host = cluster.url
    with ApiClient(configuration) as client:
        yield Live(cluster, loop, pods, door, client, InferenceServices(client), Leases(client))
    asyncio.run_coroutine_threadsafe(cluster.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


@pytest.fixture
def asked() -> Callable[..., dict[str, Any]]:
    """The manifest of a version: `asked("v1", max_replicas=2)`."""
    return wanted


@pytest.fixture
def model() -> Callable[..., ModelSpec]:
    """The model's spec, with fields of its service changed."""
    return spec_of
