"""What `brake.py` measures on: a whole sandbox with users, the harm done to it, and a watcher outside of Airflow."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import requests

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.append(str(Path(__file__).resolve().parents[1]))

from conftest import Live
from faults.models import ASKED, BAD, NAME, PERSON
from faults.scene import built

from model_release.cluster.lease import Lease
from model_release.cluster.leases import Leases
from model_release.errors import ReleaseError
from sandbox.errors import SandboxError
from sandbox.ports import Ports
from sandbox.process import processes

PROJECT = Path(__file__).resolve().parents[1]
INTERVAL = 0.2  # seconds between two reads of the watcher
POD_SECONDS = 40.0  # until a new pod of the stable version is ready
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
        self._canary: str | None = None  # of the release under way, as the lease has it
        self.shares: list[tuple[float, dict[str, int]]] = []  # at each change
        self.looked = 0.0  # when a look was recorded last, by the clock
        self.longest = 0.0  # seconds for which a canary had users while nobody looked; may be set back

    def run(self) -> None:
        leases, turn = Leases(self._live.cluster), 0
        while not self._ended.wait(INTERVAL):
            with contextlib.suppress(requests.RequestException, KeyError, ValueError):
                found = self._read()
                if not self.shares or found != self.shares[-1][1]:
                    self.shares.append((time.time(), found))
            turn += 1
            if turn % 3 == 0:
                with contextlib.suppress(ReleaseError):
                    self._look_at(leases.read("models", self._service))
            if self._open_since is not None:
                self.longest = max(self.longest, time.time() - max(self._open_since, self.looked))

    def _look_at(self, lease: Lease | None) -> None:
        claim = lease.release if lease is not None else None
        if lease is None or claim is None:
            self._canary = None
            return
        self._canary = claim.canary if claim.baseline and claim.baseline.revision else None
        if lease.looked_by and claim.closed is None:
            self.looked = datetime.fromisoformat(lease.renewed).timestamp()

    @property
    def _open_since(self) -> float | None:
        """Since when the canary of the release under way has a share, and not all; None while it has none."""
        since = None
        for when, shares in reversed(self.shares):
            if not self._canary or not 0 < shares.get(self._canary, 0) < 100:
                break
            since = when
        return since

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
class Watched:
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

    def still(self, word: str) -> contextlib.AbstractContextManager[None]:
        """Processes of Airflow with this word in their title are stopped."""
        harm: contextlib.AbstractContextManager[None] = self.scene.standing_still(word)
        return harm

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return self.pause_of(BAD)

    @contextlib.contextmanager
    def pause_of(self, dag: str) -> Iterator[None]:
        self.scene.pause(dag)
        try:
            yield
        finally:
            self.scene.pause(dag, paused=False)

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
            # They end without their database, and Kubernetes or systemd starts them again.
            for part in ("scheduler", "dag-processor", "triggerer"):
                with contextlib.suppress(AssertionError):
                    self.scene.kill(part)
                self.scene.restart(part)

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

    def by_death(self, moment: str, *, again: bool) -> float:
        """A canary whose process is killed, once or whenever it is ready again, from that moment: as soon as it is
        `opened`, in the middle of the `watch`, or while a person is `asked`. No new pod of the stable version is ready
        in time."""
        self.scene.api_fault_on({}, pods={"version": self.scene.stable, "ready_after": POD_SECONDS})
        one = self.scene.release(dag=PERSON if moment == "asked" else ASKED)
        try:
            one.until("smoke", "success")
            canary = str(self.scene.claim.canary)
            if moment != "opened":
                one.watching()
            while moment == "asked" and not self.scene.claim.watches[-1].beside_question:
                time.sleep(INTERVAL)
            # A worker asks the question. Until the trigger looks again, nobody but the guard would see a death.
            asked = time.time()
            while moment == "asked" and self.watcher.looked < asked:
                time.sleep(INTERVAL)
            while not self.watcher.has(canary):
                time.sleep(INTERVAL / 4)
            killed = time.time()
            for victim in processes(self.scene.live.state, f"models/{canary}"):
                with contextlib.suppress(Exception):
                    victim.kill()
            if again:
                self.scene.pods_die(canary)
            gone = self.watcher.gone(canary, 600)
        finally:
            self.scene.api_mended()
        self.finish(one)
        return gone - killed

    def by_guard(self, harm: contextlib.AbstractContextManager[Any]) -> float:
        """A canary that nobody can look at any more, from the last look."""
        one, canary = self._looked_at()
        with harm:
            gone = self.watcher.gone(canary, 300)
            looked = self.watcher.looked
        self.finish(one)
        return gone - looked

    def _looked_at(self) -> tuple[Any, str]:
        """A release and its canary, when the watcher has seen a look at it: else the time would count from one at the
        release before."""
        began = time.time()
        one = self.scene.release(dag=ASKED)
        canary = one.watching()
        while self.watcher.looked < began:
            time.sleep(INTERVAL)
        return one, canary

    def by_guard_deleted(self) -> float:
        """The same, when somebody deletes the deferred task."""
        one, canary = self._looked_at()
        with self.scene.unswept():
            one.delete("canary")
            gone, looked = self.watcher.gone(canary, 300), self.watcher.looked
        one.mark_run("failed")
        self.finish(one)
        return gone - looked

    def finish(self, one: Any) -> None:
        """Waits until the release has ended and its service is at rest."""
        one.ended()
        end = time.monotonic() + 300
        while self.scene.live.lease(NAME).holder is not None:
            if time.monotonic() > end:
                raise AssertionError(f"still held: {self.scene.claim}")
            self.scene.sweep()


@contextlib.contextmanager
def stack() -> Iterator[Watched]:
    """A whole sandbox on a copy of the project, with users, and its watcher; all ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="brake-") as folder:
        live = Live(Path(folder) / "state", Path(folder) / "project")
        for part in ("dags", "plugins", "include"):
            shutil.copytree(PROJECT / part, live.project / part, ignore=shutil.ignore_patterns("__pycache__"))
        live.sandbox("up", "--airflow", str(live.project))
        try:
            for scene in built(live):
                watcher = Watcher(live, NAME)
                watcher.start()
                yield Watched(scene, watcher)
                watcher.end()
        finally:
            live.sandbox("down")
