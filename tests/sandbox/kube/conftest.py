"""What the tests of the Kubernetes stand-in share: processes and a splitter under a test's own hand."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.interfaces import Manifest, Phase, PodState, RevisionKey, RevisionTemplate, Route
from sandbox.kube import Cluster, Timing, admission, seed
from sandbox.kube.controller import Controller
from sandbox.kube.faults import Fault, Faults, Match
from sandbox.kube.ownership import Writer
from sandbox.kube.patches import merge
from sandbox.kube.registry import Registry
from sandbox.kube.resources import CONFIGMAPS, INFERENCE_SERVICES, KSERVICES, Kind
from sandbox.kube.store import Store

KUBECTL = Path(sys.executable).with_name("kubectl")
WRITER = Writer("test")


class FakeWorkloads:
    """Revisions that become ready when told to; `automatic` ones are ready as soon as they are asked for."""

    def __init__(self, automatic: bool = False) -> None:
        self.automatic = automatic
        self.templates: dict[RevisionKey, RevisionTemplate] = {}
        self.states: dict[RevisionKey, PodState] = {}
        self.logs: dict[RevisionKey, str] = {}
        self.removed: list[RevisionKey] = []
        self.killed: list[str] = []

    async def ensure(self, template: RevisionTemplate) -> None:
        key = template.key
        if key not in self.templates:
            self.states[key] = PodState(Phase.PENDING)
        self.templates[key] = template
        if self.automatic and self.states[key].phase is Phase.PENDING:
            self.set(key.name, Phase.READY, namespace=key.namespace)

    async def remove(self, key: RevisionKey) -> None:
        self.templates.pop(key, None)
        self.states.pop(key, None)
        self.removed.append(key)

    def state(self, key: RevisionKey) -> PodState:
        return self.states.get(key, PodState(Phase.PENDING))

    def kill(self, key: RevisionKey) -> None:
        self.killed.append(key.name)
        self.set(key.name, Phase.CRASHED, "killed", 137, namespace=key.namespace)

    def log(self, key: RevisionKey, tail: int | None = None) -> str:
        lines = self.logs.get(key, f"log of {key.name}\n").splitlines(keepends=True)
        return "".join(lines if tail is None else lines[-tail:] if tail else [])

    def set(self, name: str, phase: Phase, message: str = "", exit_code: int | None = None, ready: int = 1,
            namespace: str = "models") -> None:  # fmt: skip
        count = ready if phase is Phase.READY else 0
        self.states[RevisionKey(namespace, name)] = PodState(
            phase, count, message, exit_code, tuple(f"{name}-deployment-{n}" for n in range(max(count, 1)))
        )

    def running(self) -> set[str]:
        return {key.name for key in self.templates}


class FakeRouter:
    """Remembers what it was programmed with, and every share that a host ever had."""

    def __init__(self) -> None:
        self.routes: dict[str, dict[str, int]] = {}
        self.history: list[dict[str, dict[str, int]]] = []

    async def program(self, routes: list[Route]) -> None:
        self.routes = {r.host: {key.name: percent for key, percent in r.shares.items()} for r in routes}
        self.history.append(self.routes)


def manifest(name: str = "digits", version: str = "v1", percent: int | None = None, namespace: str = "models",
             annotations: dict[str, str] | None = None, **predictor: Any) -> Manifest:  # fmt: skip
    model = {
        "modelFormat": {"name": "pytorch"},
        "storageUri": f"s3://models/{name}/versions/{version}/",
        "resources": {},
    }
    spec: Manifest = {"model": model, **predictor}
    if percent is not None:
        spec["canaryTrafficPercent"] = percent
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace} | ({"annotations": annotations} if annotations else {}),
        "spec": {"predictor": spec},
    }


class Stack:
    """Store, rules and controllers without a server; time passes only in `settle`."""

    def __init__(
        self,
        domain: str = "localhost:8080",
        namespace: str = "models",
        timing: Timing | None = None,
        kserve: str = "0.21",
        workloads: Any = None,
        ingress: dict[str, Any] | None = None,
    ) -> None:
        """`ingress`: settings of KServe's configmap that are others than the sandbox's."""
        self.registry = Registry(Store())
        self.workloads, self.router, self.faults = workloads or FakeWorkloads(), FakeRouter(), Faults()
        self.namespace = namespace
        self.registry.admission[INFERENCE_SERVICES.id] = admission.admit
        seed.plant(self.registry, domain, (namespace,))
        if ingress:
            self._configure(ingress)
        self.controller = Controller(
            self.registry, self.workloads, self.router, domain, timing or Timing(),
            lambda: seed.cluster_default_mode(self.registry), self.faults, kserve,
        )  # fmt: skip

    def _configure(self, ingress: dict[str, Any]) -> None:
        key = (CONFIGMAPS, seed.KSERVE_NAMESPACE, seed.CONFIG_NAME)
        config = self.registry.get(*key)
        config["data"]["ingress"] = json.dumps(json.loads(config["data"]["ingress"]) | ingress)
        self.registry.update(*key, config, WRITER)

    async def settle(self) -> None:
        await self.controller.settle()

    def object(self, kind: Kind, name: str) -> Manifest:
        return self.registry.get(kind, self.namespace, name)

    def isvc(self, name: str = "digits") -> Manifest:
        return self.object(INFERENCE_SERVICES, name)

    def predictor(self, name: str = "digits") -> Manifest:
        found: Manifest = self.isvc(name)["status"]["components"]["predictor"]
        return found

    async def apply(self, obj: Manifest) -> None:
        """Create the InferenceService or replace its spec and annotations, then let the controllers rest."""
        name = obj["metadata"]["name"]
        key = self.registry.key(INFERENCE_SERVICES, self.namespace, name)
        live = self.registry.store.get(key)
        if live is None:
            self.registry.create(INFERENCE_SERVICES, self.namespace, obj, WRITER)
        else:
            new = copy.deepcopy(live)
            new["spec"] = obj["spec"]
            new["metadata"]["annotations"] = obj["metadata"].get("annotations", {})
            self.registry.update(INFERENCE_SERVICES, self.namespace, name, new, WRITER)
        await self.settle()

    async def patch(self, change: Manifest, name: str = "digits") -> None:
        self.registry.update(INFERENCE_SERVICES, self.namespace, name, merge(self.isvc(name), change), WRITER)
        await self.settle()

    async def percent(self, percent: int | None) -> None:
        await self.patch({"spec": {"predictor": {"canaryTrafficPercent": percent}}})

    async def become(
        self, revision: str, phase: Phase = Phase.READY, message: str = "", code: int | None = None
    ) -> None:
        self.workloads.set(revision, phase, message, code, namespace=self.namespace)
        await self.settle()

    def race(self, service: str, rounds: int = 3) -> None:
        self.faults.active.append(Fault(match=Match(name=service), late=rounds))

    def effective(self, name: str = "digits") -> dict[str, int]:
        traffic = self.predictor(name).get("traffic", [])
        total: dict[str, int] = {}
        for target in traffic:
            total[target["revisionName"]] = total.get(target["revisionName"], 0) + target["percent"]
        return total

    def service(self, name: str = "digits-predictor") -> Manifest:
        return self.object(KSERVICES, name)


@pytest.fixture
async def stack() -> Stack:
    return Stack()


@pytest.fixture
def make_stack() -> type[Stack]:
    return Stack


@pytest.fixture(name="manifest")
def manifest_fixture() -> Any:
    return manifest


class Live:
    """A started Cluster with revisions that become ready by themselves."""

    def __init__(self, state_dir: Path) -> None:
        self.workloads, self.router = FakeWorkloads(automatic=True), FakeRouter()
        self.state_dir = state_dir
        self.cluster = self.new_cluster()

    def new_cluster(self, port: int = 0) -> Cluster:
        timing = Timing(lag=0.01, poll=0.02)
        return Cluster(self.workloads, self.router, self.state_dir, port, 8080, timing=timing)

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Blocking: call it by `asyncio.to_thread`, the server is in this very process."""
        command = [str(KUBECTL), f"--kubeconfig={self.cluster.kubeconfig}", *arguments]
        home = {"HOME": str(self.state_dir), "PATH": os.environ["PATH"]}
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=home)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(arguments)}: {done.stderr}")
        return done


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    stand_in = Live(tmp_path / "kube")
    await stand_in.cluster.start()
    yield stand_in
    await stand_in.cluster.stop()
