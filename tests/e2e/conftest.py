"""`make release`, run once in the live stack; the tests look at what was seen meanwhile and at what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .witnesses import DAG, Answer, Observer, User

PROJECT = Path(__file__).resolve().parents[2]
RELEASES = ("first", "better", "bad")


@dataclass(frozen=True)
class Told:
    """One release: what Airflow says of its run, and its decision record."""

    run: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    record: dict[str, Any]


@dataclass(frozen=True)
class Story:
    """The three releases, told right after the last one ended."""

    code: int
    output: str
    releases: dict[str, Told]
    answers: list[Answer]
    observer: Observer
    load: dict[str, Any]
    status: dict[str, Any]
    service: Any
    lease: Any

    def revision(self, name: str) -> str:
        """The revision that a release made, by its record."""
        return str(self.releases[name].record["canary"]["revision"])

    @property
    def stable(self) -> list[str]:
        """Every revision that answered users and was never the bad canary."""
        return [revision for revision in self.load["answers"] if revision not in ("-", self.revision("bad"))]


@pytest.fixture(scope="session")
def story(live: Any) -> Story:
    from sandbox.digits import images

    user, observer = User(live.status["parts"]["envoy"]["url"], images(1)[0]), Observer(live.state)
    user.start()
    observer.start()
    try:
        done = make_release(live)
    finally:
        user.end()
        observer.end()
    airflow = live.airflow
    runs = airflow.call("GET", f"/dags/{DAG}/dagRuns", params={"order_by": "run_after"})["dag_runs"]
    records = live.records()
    return Story(
        code=done.returncode,
        output=done.stdout,
        releases={
            name: Told(run, airflow.tasks(DAG, run["dag_run_id"]), record)
            for name, run, record in zip(RELEASES, runs, records, strict=True)
        },
        answers=user.answers,
        observer=observer,
        load=json.loads((live.state / "load.json").read_text()),
        status=live.status,
        service=live.service(),
        lease=live.lease(),
    )


def make_release(live: Any) -> subprocess.CompletedProcess[str]:
    """What the Makefile calls; its output is kept beside the sandbox's logs."""
    path = os.pathsep.join(str(PROJECT / part) for part in ("plugins", "include"))
    done = subprocess.run(
        [sys.executable, "-m", "sandbox", "release", "--state", str(live.state), "--airflow", str(live.project)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    (live.state / "logs" / "release.txt").write_text(done.stdout)
    return done
