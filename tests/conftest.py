"""The live stack: one sandbox with a real Airflow for a whole test session, on a copy of the project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.patience import LIMIT, until

PROJECT = Path(__file__).resolve().parents[1]


# Fixtures that start programs, servers or other Python processes, by the folder in which they have that meaning.
# A test that asks for one is no unit test: it is marked `stack` here, so that none can be forgotten.
STARTING = {
    "build": {"make_checkpoint", "checkpoint", "exported", "packed", "s3", "torchserve", "team", "mlflow"},
    "commands": {"s3", "live"},
    "doctor": {"kube"},
    "release": {"s3", "live"},
    "metrics": {"serve"},
    "cluster": {"live"},
    "store": {"s3", "place"},
    "sandbox": {"live"},
    "tasks": {"kube", "world"},
    "web": {"api_server", "kube"},
    "browser": {"browser"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what the fixtures of a test say of it."""
    for item in items:
        room = item.path.relative_to(PROJECT / "tests").parts[0]
        if STARTING.get(room, set()) & set(getattr(item, "fixturenames", ())):
            item.add_marker("stack")
        if {"e2e", "faults", "walk", "simulation"} & {mark.name for mark in item.iter_markers()}:
            item.add_marker(pytest.mark.timeout(6 * LIMIT))  # these wait for many states, one after another


@dataclass
class Live:
    """A sandbox and its Airflow, driven as a person drives them."""

    state: Path
    project: Path

    def sandbox(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`python -m sandbox …` for this sandbox."""
        command = [sys.executable, "-m", "sandbox", *words, "--state", str(self.state)]
        path = os.pathsep.join(str(PROJECT / part) for part in ("plugins", "include"))
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        assert done.returncode == 0 or not check, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done

    @property
    def status(self) -> dict[str, Any]:
        """What `python -m sandbox status --json` says."""
        found: dict[str, Any] = json.loads(self.sandbox("status", "--json").stdout)
        return found

    @property
    def airflow(self) -> Any:
        from sandbox.airflow_api import AirflowApi

        return AirflowApi.of(self.state)

    @property
    def cluster(self) -> Any:
        """A `kubernetes` ApiClient."""
        from kubernetes.config import new_client_from_config

        return new_client_from_config(str(self.state / "kubeconfig.yaml"))

    def service(self, name: str = "digits", namespace: str = "models") -> Any:
        """The live InferenceService, or None."""
        from model_release.cluster.services import InferenceServices

        return InferenceServices(self.cluster).get(namespace, name)

    def lease(self, name: str = "digits", namespace: str = "models") -> Any:
        from model_release.cluster.leases import Leases

        return Leases(self.cluster).read(namespace, name)

    def store(self, uri: str = "s3://models/digits/") -> Any:
        """The model store."""
        import boto3

        from model_release.store.store import Store

        connection = json.loads(json.loads((self.state / "connections.json").read_text())["AIRFLOW_CONN_MODEL_STORE"])
        client = boto3.client(
            "s3",
            endpoint_url=connection["extra"]["endpoint_url"],
            aws_access_key_id=connection["login"],
            aws_secret_access_key=connection["password"],
            region_name=connection["extra"]["region_name"],
        )
        return Store(client, uri)

    def records(self) -> list[dict[str, Any]]:
        """Every decision record, oldest first."""
        store = self.store()
        names = [name for name in store.names("releases/") if name.endswith(".json")]
        return sorted((store.read_json(f"releases/{name}")[0] for name in names), key=lambda record: record["started"])

    def finished(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """The run, once it has ended."""

        def ended() -> Any:
            run = self.airflow.run(dag_id, run_id)
            return run if run["state"] in ("success", "failed") else None

        def states() -> str:
            tasks = self.airflow.tasks(dag_id, run_id).items()
            return f"{run_id} has not ended: { {name: task['state'] for name, task in tasks} }"

        found: dict[str, Any] = until(ended, states)
        return found


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Started once for all tests that ask for it; stopped at the end of the session."""
    folder = tmp_path_factory.mktemp("live")
    project = folder / "project"
    for part in ("dags", "plugins", "include"):
        shutil.copytree(PROJECT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
    stack = Live(folder / "state", project)
    stack.sandbox("up", "--airflow", str(project))
    try:
        yield stack
    finally:
        stack.sandbox("down")
