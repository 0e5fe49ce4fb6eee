"""All of Airflow from one import, and what becomes of it when its database or one of its parts is gone."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from sandbox import process, programs
from sandbox.__main__ import main
from sandbox.airflow_api import AirflowApi
from sandbox.errors import SandboxError

pytestmark = pytest.mark.stack

PARTS = {"scheduler": "scheduler", "triggerer": "triggerer", "dag_processor": "dag-processor"}


@pytest.fixture
def airflow(state: Path) -> Iterator[AirflowApi]:
    assert main(["up", "--state", str(state), "--airflow", str(programs.REPOSITORY)]) == 0
    yield AirflowApi.of(state)
    assert main(["down", "--state", str(state)]) == 0


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + process.PATIENCE
    while True:
        with contextlib.suppress(SandboxError):
            if found := holds():
                return found
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.2)


def at_work(airflow: AirflowApi, since: float) -> bool:
    """Whether each part has given a sign of life after this moment."""
    health = airflow.call("GET", "/monitor/health")
    signs = [health[part][f"latest_{part}_heartbeat"] for part in PARTS]
    return all(sign and datetime.fromisoformat(sign).timestamp() > since for sign in signs)


def one(state: Path, part: str) -> psutil.Process | None:
    """The process that is this part of Airflow, but for its own children of that name."""
    found = [each for each in process.processes(state) if " ".join(each.cmdline()).split() == ["airflow", part]]
    return min(found, key=lambda each: each.create_time(), default=None)


def test_a_killed_database_recovers_and_airflow_with_it(airflow: AirflowApi, state: Path) -> None:
    said = (state / "logs" / "supervisor.log").read_text()
    assert "postgres    ready after" in said
    assert "SQLite" not in said
    airflow.call("POST", "/variables", json={"key": "before", "value": "the kill"})
    killed = time.time()
    for victim in process.processes(state, "postgres"):
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    until(lambda: at_work(airflow, killed + 5))
    assert airflow.call("GET", "/variables/before")["value"] == "the kill"
    parts = json.loads((state / "status.json").read_text())["parts"]
    assert parts["postgres"]["running"]
    assert parts["airflow"]["running"]

    # A part that somebody kills stays away until somebody starts it: so a fault can be tried.
    triggerer = one(state, "triggerer")
    assert triggerer
    triggerer.kill()
    until(lambda: "triggerer ended with code -9" in (state / "logs" / "airflow.log").read_text())

    # A part that is told to end does so by itself, when its tasks have ended.
    scheduler = one(state, "scheduler")
    assert scheduler
    scheduler.terminate()
    until(lambda: "scheduler ended with code 0" in (state / "logs" / "airflow.log").read_text())
    # What a killed part had begun ends by itself a little later.
    until(lambda: one(state, "scheduler") is one(state, "triggerer") is None)
    assert main(["stop", "airflow", "--state", str(state)]) == 0
    until(lambda: not process.processes(state, "airflow"))
