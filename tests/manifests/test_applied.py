"""Every manifest applied to the sandbox's Kubernetes API by kubectl, as docs/eks.md says, and applied again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.interfaces import Phase, PodState, RevisionKey, RevisionTemplate, Route
from sandbox.kube import Cluster

PROJECT = Path(__file__).parents[2]
MANIFESTS = PROJECT / "include" / "manifests"
KUBECTL = Path(sys.executable).with_name("kubectl")
# What releases fill in; what names the others; and what has a Service, which the sandbox's API lets nobody make.
_NOT_APPLIED = ("inference_service.yaml", "kustomization.yaml", "collector.yaml")
FILES = sorted(file.name for file in MANIFESTS.glob("*.yaml") if file.name not in _NOT_APPLIED)

pytestmark = pytest.mark.stack


class _Nothing:
    """Nobody who runs revisions or splits traffic: here is none."""

    async def ensure(self, template: RevisionTemplate) -> None: ...

    async def remove(self, key: RevisionKey) -> None: ...

    def state(self, key: RevisionKey) -> PodState:
        return PodState(Phase.PENDING)

    def log(self, key: RevisionKey, tail: int | None = None) -> str:
        return ""

    async def program(self, routes: list[Route]) -> None: ...


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    nothing = _Nothing()
    running = Cluster(nothing, nothing, tmp_path / "kube", namespaces=("airflow", "istio-system"))
    await running.start()
    yield running
    await running.stop()


async def kubectl(cluster: Cluster, *words: str) -> str:
    import asyncio

    def run() -> subprocess.CompletedProcess[str]:
        command = [KUBECTL, "--kubeconfig", cluster.kubeconfig, *words]
        bare = {"PATH": os.environ["PATH"], "HOME": str(cluster.kubeconfig.parent)}
        return subprocess.run(command, env=bare, capture_output=True, text=True, timeout=60, check=False)

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def objects(file: str) -> list[dict[str, Any]]:
    """Without Deployments: the sandbox runs nobody's containers, and its API says so. Their schema is looked at in
    test_schemas.py."""
    return [one for one in yaml.safe_load_all((MANIFESTS / file).read_text()) if one["kind"] != "Deployment"]


async def test_every_manifest_is_taken_as_written_and_a_second_time_changes_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    await kubectl(cluster, "apply", "--server-side", "-f", str(MANIFESTS / "namespace.yaml"))
    for file in FILES:
        written = tmp_path / file
        written.write_text(yaml.safe_dump_all(objects(file)))
        words = ["apply", "--server-side", "-f", str(written)]
        if all("namespace" not in one["metadata"] and one["kind"] != "Namespace" for one in objects(file)):
            words += ["--namespace", "models"]
        said = await kubectl(cluster, *words)
        assert said.count("serverside-applied") == len(objects(file)), file
        for wanted in objects(file):
            where = wanted["metadata"].get("namespace", "models")
            name = f"{wanted['kind']}.{_version(wanted)}/{wanted['metadata']['name']}"
            read = ("get", name, "--namespace", where, "--output", "json")
            live = json.loads(await kubectl(cluster, *read))
            assert _holds(live, wanted), name
            await kubectl(cluster, *words)
            again = json.loads(await kubectl(cluster, *read))
            assert again["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"], name


def _version(obj: dict[str, Any]) -> str:
    group, _, version = obj["apiVersion"].rpartition("/")
    return f"{version}.{group}" if group else f"{version}."


def _holds(live: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(_holds(live.get(key), value) for key, value in wanted.items())
    return bool(live == wanted)


async def test_the_base_of_a_service_is_taken_with_a_models_file_over_it(cluster: Cluster) -> None:
    from model_release.cluster.manifest import load_base, manifest, without_none
    from model_release.model_file import load

    spec = load(PROJECT / "include" / "models" / "digits.yaml")
    wanted = manifest(
        spec, "s3://models/digits/versions/0123456789abcdef/", load_base(MANIFESTS / "inference_service.yaml")
    )
    file = cluster.kubeconfig.with_name("service.yaml")
    file.write_text(yaml.safe_dump(without_none(wanted)))
    await kubectl(cluster, "apply", "--server-side", "-f", str(MANIFESTS / "namespace.yaml"))
    said = await kubectl(cluster, "apply", "--validate=strict", "-f", str(file))
    assert "inferenceservice.serving.kserve.io/digits created" in said
