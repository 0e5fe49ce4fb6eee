"""`make release`, run once in the live stack; the tests look at what was seen meanwhile and at what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .models import records
from .witnesses import Answer, Observer, User

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

    def statuses(self, revision: str) -> list[str]:
        """How a revision answered both kinds of users: one status for each answer."""
        counted = self.load["answers"].get(revision, {})
        return [
            *(status for status, count in counted.items() for _ in range(count)),
            *(str(answer.status) for answer in self.answers if answer.revision == revision),
        ]

    def revision(self, name: str) -> str:
        """The revision that a release made, by its record."""
        return str(self.releases[name].record["canary"]["revision"])

    @property
    def stable(self) -> list[str]:
        """Every revision that answered users and was never the bad canary."""
        return [revision for revision in self.load["answers"] if revision not in ("-", self.revision("bad"))]


@pytest.fixture(scope="session")
def story(live: Any) -> Story:
    with watched(live, "digits") as (user, observer):
        done = make_release(live)
    return tell(live, "digits", user, observer, done.returncode, done.stdout)


@contextmanager
def watched(live: Any, name: str) -> Iterator[tuple[User, Observer]]:
    """A user of the service and somebody who looks at its DAG, meanwhile."""
    from sandbox.digits import images

    user = User(live.status["parts"]["envoy"]["url"], images(1)[0], name)
    observer = Observer(live.state, f"release_{name}")
    live.airflow.wait_for_dag(f"release_{name}")
    user.start()
    observer.start()
    try:
        yield user, observer
    finally:
        user.end()
        observer.end()


def tell(live: Any, name: str, user: User, observer: Observer, code: int = 0, output: str = "") -> Story:
    """What Airflow, the store, the cluster and the users say of the three releases of a model."""
    airflow, dag = live.airflow, f"release_{name}"
    runs = airflow.call("GET", f"/dags/{dag}/dagRuns", params={"order_by": "run_after"})["dag_runs"]
    return Story(
        code=code,
        output=output,
        releases={
            release: Told(run, airflow.tasks(dag, run["dag_run_id"]), record)
            for release, run, record in zip(RELEASES, runs, records(live, name), strict=True)
        },
        answers=user.answers,
        observer=observer,
        load=json.loads((live.state / "load.json").read_text()),
        status=live.status,
        service=live.service(name),
        lease=live.lease(name),
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
    )
    (live.state / "logs" / "release.txt").write_text(done.stdout)
    return done
