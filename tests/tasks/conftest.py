"""Airflow for unit tests: a home of its own, before anything imports it; and a task's context without a scheduler."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from .parsing import Parsing

if TYPE_CHECKING:
    from .cluster import Kube

if "AIRFLOW_HOME" not in os.environ:
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-unit-")
    atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")

SPEC = {
    "model": "digits",
    "source": {"directory": "candidates/digits"},
    "service": {"name": "digits", "namespace": "models", "resources": {"cpu": "1", "memory": "1Gi"}},
    "store": "s3://models/digits/",
    "rollout": {"steps": [25, 50], "window": "3s", "deadline": "5m", "bake": "10s"},
    "judge": {"profile": "istio", "metrics": [{"name": "errors", "max_rate": 0.02}]},
}


@pytest.fixture(autouse=True)
def _scheduler_hears_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_release.tasks.triggers import LeaseTrigger

    monkeypatch.setattr(LeaseTrigger.__base__, "HEARD", 0.0)


@pytest.fixture(scope="session")
def parsing() -> Iterator[Parsing]:
    """Answers `parsing(code)`: what the code prints in a process that has `airflow.sdk` and nothing else."""
    process = Parsing()
    yield process
    process.stop()


@dataclass
class TaskInstance:
    """As much of Airflow's as our tasks use: XComs by task and key, and the states of the run's tasks."""

    xcoms: dict[tuple[str, str], Any] = field(default_factory=dict)
    states: dict[str, str | None] = field(default_factory=dict)
    task_id: str = "this"
    try_number: int = 1
    id: str = "0190f5c1-0000-7000-8000-000000000000"

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[self.task_id, key] = value

    def xcom_pull(self, task_ids: str, key: str = "return_value") -> Any:
        return self.xcoms.get((task_ids, key))

    def get_task_states(self, dag_id: str, *, run_ids: list[str]) -> dict[str, dict[str, str | None]]:
        assert dag_id == "release_digits"
        return dict.fromkeys(run_ids, self.states)


class Outlets(dict[Any, Any]):
    """Airflow's `outlet_events`: by asset or alias, what the task says of it."""

    def __missing__(self, key: Any) -> SimpleNamespace:
        added: list[Any] = []
        self[key] = SimpleNamespace(extra={}, added=added, add=lambda asset, extra: added.append((asset, extra)))
        return self[key]


@pytest.fixture
def spec() -> Any:
    from model_release.spec import ModelSpec

    return ModelSpec.model_validate(SPEC)


@pytest.fixture
def ti() -> TaskInstance:
    return TaskInstance()


@pytest.fixture
def context(ti: TaskInstance) -> dict[str, Any]:
    """What Airflow hands to `execute`, of a run by hand."""
    now = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
    dag_run = SimpleNamespace(
        dag_id="release_digits", run_id="manual__1", run_type="manual", run_after=now, data_interval_end=None
    )
    params = {"version": None, "rollout": "auto", "note": None}
    return {"ti": ti, "dag_run": dag_run, "params": params, "outlet_events": Outlets()}


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kube]:
    from model_release.cluster.leases import Leases
    from model_release.cluster.services import InferenceServices
    from model_release.tasks import connections
    from model_release.tasks.triggers import LeaseTrigger, RevisionTrigger

    from .cluster import Kube, Pods, cluster

    for trigger in (LeaseTrigger, RevisionTrigger):
        monkeypatch.setattr(trigger, "POLL", 0.02)
    pods = Pods()
    with cluster(tmp_path, pods) as (server, client):
        monkeypatch.setattr(connections, "cluster", lambda *_: client)
        yield Kube(server, pods, InferenceServices(client), Leases(client), client)
