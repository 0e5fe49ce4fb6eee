"""How long users stay on a canary that should have none: seconds to 0 % at the gateway, with parts of Airflow broken.

    python benchmarks/brake.py                           # every case five times: some two hours
    python benchmarks/brake.py --write                   # and the table into README.md here
    python benchmarks/brake.py --runs 1 idle paused      # these cases, once

A whole sandbox with Airflow (scheduler, triggerer, LocalExecutor, PostgreSQL) and 40 requests of users a second is
started for it; the harm is that of the fault matrix (tests/faults). A watcher outside of Airflow reads Envoy's own
routes five times a second, and the lease.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import requests

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from conftest import Live
from faults.models import ASKED, BAD, NAME
from faults.scene import built

from model_release.cluster.leases import Leases
from sandbox.errors import SandboxError
from sandbox.ports import Ports
from sandbox.process import processes

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
INTERVAL = 0.2  # seconds between two reads of the watcher
MARK, END_MARK = "<!-- brake -->", "<!-- /brake -->"
BUSY = """
import time
from airflow.sdk import DAG, task

with DAG("busy", schedule=None, max_active_tasks=200):

    @task
    def wait(number):
        time.sleep(20)

    wait.expand(number=list(range(200)))
"""


class Watcher(threading.Thread):
    """Reads at the gateway which share each revision has, and in the lease when somebody looked last."""

    def __init__(self, live: Any, service: str) -> None:
        super().__init__(daemon=True)
        self._live, self._service = live, service
        self._url = f"http://127.0.0.1:{Ports(live.state / 'ports.json').of('envoy-admin')}/config_dump"
        self._ended = threading.Event()
        self.shares: list[tuple[float, dict[str, int]]] = []  # at each change
        self.looked = 0.0  # when a look was recorded last, by the clock

    def run(self) -> None:
        leases, turn = Leases(self._live.cluster), 0
        while not self._ended.wait(INTERVAL):
            with contextlib.suppress(requests.RequestException, KeyError, ValueError):
                found = self._read()
                if not self.shares or found != self.shares[-1][1]:
                    self.shares.append((time.time(), found))
            turn += 1
            if turn % 3 == 0:
                lease = leases.read("models", self._service)
                if lease is not None and lease.looked_by and lease.release and lease.release.closed is None:
                    self.looked = datetime.fromisoformat(lease.renewed).timestamp()

    def _read(self) -> dict[str, int]:
        dump = requests.get(self._url, params={"resource": "dynamic_route_configs"}, timeout=5).json()
        for config in dump["configs"]:
            for host in config["route_config"]["virtual_hosts"]:
                if host["name"].startswith(f"{self._service}."):
                    clusters = host["routes"][0]["route"]["weighted_clusters"]["clusters"]
                    return {one["name"].rpartition("/")[2]: int(one["weight"]) for one in clusters}
        return {}

    def has(self, revision: str) -> bool:
        """Whether users meet the revision at this moment."""
        return bool(self.shares and self.shares[-1][1].get(revision))

    def opened(self, revision: str) -> float:
        """When it got its first share."""
        return next(when for when, shares in self.shares if shares.get(revision))

    def gone(self, revision: str, patience: float) -> float:
        """Returns when the revision has no share any more; since when."""
        end = time.monotonic() + patience
        while self.has(revision):
            if time.monotonic() > end:
                raise AssertionError(f"{revision} still has users after {patience:.0f} s: {self.shares[-1]}")
            time.sleep(INTERVAL / 2)
        return self.shares[-1][0]

    def end(self) -> None:
        self._ended.set()
        self.join(30)


@dataclass
class Place:
    """The scene of the fault matrix, and the watcher."""

    scene: Any
    watcher: Watcher

    @contextlib.contextmanager
    def queued(self) -> Iterator[None]:
        """200 tasks of another DAG wait for the executor."""
        airflow, file = self.scene.airflow, self.scene.live.project / "dags" / "busy.py"
        if not file.exists():
            file.write_text(BUSY)
        airflow.wait_for_dag("busy")
        run_id = airflow.trigger("busy")
        path = f"/dags/busy/dagRuns/{run_id}"
        while not any(one["state"] == "queued" for one in self._tasks(path)):
            time.sleep(1)
        try:
            yield
        finally:
            airflow.call("PATCH", path, json={"state": "failed"})

    def _tasks(self, path: str) -> list[dict[str, Any]]:
        return list(self.scene.airflow.call("GET", f"{path}/taskInstances", params={"limit": 300})["task_instances"])

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.scene.pause(BAD)
        try:
            yield
        finally:
            self.scene.pause(BAD, paused=False)

    @contextlib.contextmanager
    def no_model_file(self) -> Iterator[None]:
        """Its DAG goes with it."""
        file = self.scene.live.project / "include" / "models" / "faults-bad.yaml"
        text = file.read_text()
        file.unlink()
        try:
            self.scene.parse("release_digits")
            yield
        finally:
            file.write_text(text)
            self.scene.parse("release_digits")

    @contextlib.contextmanager
    def no_triggerer(self) -> Iterator[None]:
        self.scene.kill("triggerer")
        try:
            yield
        finally:
            self.scene.restart("triggerer")

    @contextlib.contextmanager
    def no_triggerer_nor_api(self) -> Iterator[None]:
        self.scene.kill("api-server")
        self.scene.kill("triggerer")
        try:
            yield
        finally:
            self.scene.restart("api-server")
            self._until_airflow_answers()
            self.scene.restart("triggerer")

    @contextlib.contextmanager
    def no_database(self) -> Iterator[None]:
        self.scene.live.sandbox("stop", "postgres")
        try:
            yield
        finally:
            self.scene.live.sandbox("start", "postgres")
            self._until_airflow_answers()

    def _until_airflow_answers(self, patience: float = 300) -> None:
        end = time.monotonic() + patience
        while True:
            try:
                self.scene.airflow.call("GET", "/dags", params={"limit": 1})
                return
            except SandboxError:
                if time.monotonic() > end:
                    raise
                time.sleep(1)

    # -- one release each: seconds to 0 % ------------------------------------------------------------------------------

    def by_evidence(self, harm: contextlib.AbstractContextManager[Any]) -> float:
        """A canary that fails one request in seven, from the end of the window that condemned it."""
        one = self.scene.release_in_silence(self.scene.bad, BAD)
        canary = str(self.scene.claim.canary)
        with harm:
            self.scene.users()
            gone = self.watcher.gone(canary, 180)
        self.finish(one)
        (step,) = one.record()["steps"]
        return gone - datetime.fromisoformat(step["windows"][-1]["end"]).timestamp()

    def by_death(self, *, opening: bool) -> float:
        """A canary whose process ends for good, from the moment it is killed."""
        one = self.scene.release(dag=ASKED)
        one.until("smoke", "success")
        canary = str(self.scene.claim.canary)
        if not opening:
            one.watching()
        while not self.watcher.has(canary):
            time.sleep(INTERVAL / 4)
        killed = time.time()
        for victim in processes(self.scene.live.state, f"models/{canary}"):
            with contextlib.suppress(Exception):
                victim.kill()
        self.scene.pods_die(canary)
        try:
            gone = self.watcher.gone(canary, 600)
            self.finish(one)
        finally:
            self.scene.api_mended()
        return gone - killed

    def by_guard(self, harm: contextlib.AbstractContextManager[Any]) -> float:
        """A canary that nobody can look at any more, from the last look."""
        one = self.scene.release(dag=ASKED)
        canary = one.watching()
        with harm:
            gone = self.watcher.gone(canary, 300)
            looked = self.watcher.looked
        self.finish(one)
        return gone - looked

    def by_guard_deleted(self) -> float:
        """The same, when somebody deletes the deferred task."""
        one = self.scene.release(dag=ASKED)
        canary = one.watching()
        one.delete("canary")
        gone, looked = self.watcher.gone(canary, 300), self.watcher.looked
        one.mark_run("failed")
        self.finish(one)
        return gone - looked

    def finish(self, one: Any) -> None:
        """Waits until the release has ended and its service is at rest."""
        one.ended(600)
        end = time.monotonic() + 300
        while self.scene.live.lease(NAME).holder is not None:
            if time.monotonic() > end:
                raise AssertionError(f"still held: {self.scene.claim}")
            self.scene.sweep(240)


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    what: str
    since: str
    run: Callable[[Place], float]


@dataclass
class Measured:
    case: Case
    seconds: list[float] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


EVIDENCE, DEATH, LOOK = "the last bad window's end", "its death", "the last look"

CASES = (
    Case("idle", "nothing else", EVIDENCE, lambda place: place.by_evidence(contextlib.nullcontext())),
    Case("queued", "200 other tasks queued", EVIDENCE, lambda place: place.by_evidence(place.queued())),
    Case(
        "wedged", "executor wedged (its processes stopped)", EVIDENCE,
        lambda place: place.by_evidence(place.scene.standing_still("LocalExecutor")),
    ),
    Case(
        "scheduler", "scheduler stopped", EVIDENCE,
        lambda place: place.by_evidence(place.scene.standing_still("airflow scheduler")),
    ),
    Case(
        "processor", "DAG processor stopped", EVIDENCE,
        lambda place: place.by_evidence(place.scene.standing_still("airflow dag-processor")),
    ),
    Case("paused", "DAG paused", EVIDENCE, lambda place: place.by_evidence(place.paused())),
    Case("file", "model file removed", EVIDENCE, lambda place: place.by_evidence(place.no_model_file())),
    Case("dead", "canary killed while it is watched", DEATH, lambda place: place.by_death(opening=False)),
    Case("dead-open", "canary killed as soon as it is opened", DEATH, lambda place: place.by_death(opening=True)),
    Case("deleted", "deferred task instance deleted", LOOK, lambda place: place.by_guard_deleted()),
    Case("triggerer", "triggerer killed", LOOK, lambda place: place.by_guard(place.no_triggerer())),
    Case("api", "triggerer and API server killed", LOOK, lambda place: place.by_guard(place.no_triggerer_nor_api())),
    Case("database", "Airflow's database stopped", LOOK, lambda place: place.by_guard(place.no_database())),
)  # fmt: skip


@contextlib.contextmanager
def stack() -> Iterator[Place]:
    """A whole sandbox on a copy of the project, with users, and its watcher; all ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="brake-") as folder:
        live = Live(Path(folder) / "state", Path(folder) / "project")
        for part in ("dags", "plugins", "include"):
            shutil.copytree(PROJECT / part, live.project / part, ignore=shutil.ignore_patterns("__pycache__"))
        live.sandbox("up", "--airflow", str(live.project), timeout=900)
        try:
            for scene in built(live):
                watcher = Watcher(live, NAME)
                watcher.start()
                yield Place(scene, watcher)
                watcher.end()
        finally:
            live.sandbox("down")


def measure(cases: tuple[Case, ...], runs: int) -> list[Measured]:
    """Each case `runs` times. One that fails is told and not counted."""
    found = [Measured(case) for case in cases]
    with stack() as place:
        for one in found:
            for number in range(1, runs + 1):
                try:
                    one.seconds.append(one.case.run(place))
                    print(f"{one.case.name} {number} of {runs}: {one.seconds[-1]:.1f} s", flush=True)
                except Exception as error:
                    one.troubles.append(f"{type(error).__name__}: {error}")
                    print(f"{one.case.name} {number} of {runs}: {one.troubles[-1]}", flush=True)
                    place.scene.end_all()
                    place.scene.users()
    return found


def table(found: list[Measured]) -> str:
    """Markdown: a line for each case that was asked for."""
    lines = ["| what is wrong | seconds to 0 % from | n | median | worst |", "|---|---|---:|---:|---:|"]
    for one in found:
        told = ("–", "–")
        if one.seconds:
            told = (f"{statistics.median(one.seconds):.1f} s", f"{max(one.seconds):.1f} s")
        lines.append(f"| {one.case.what} | {one.case.since} | {len(one.seconds)} | {told[0]} | {told[1]} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(case.name for case in CASES)}; all")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="the table into benchmarks/README.md")
    options = parser.parse_args()
    if unknown := set(options.cases) - {case.name for case in CASES}:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    found = measure(tuple(case for case in CASES if not options.cases or case.name in options.cases), options.runs)
    print(table(found))
    if options.write:
        page = (HERE / "README.md").read_text(encoding="utf-8")
        before, _, rest = page.partition(MARK)
        after = rest.partition(END_MARK)[2]
        (HERE / "README.md").write_text(f"{before}{MARK}\n\n{table(found)}\n\n{END_MARK}{after}", encoding="utf-8")
    return 1 if any(one.troubles for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
