"""The hands that do harm: to the cluster and its API, to the sandbox's parts, to Airflow's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

import psutil
import requests
from tests.patience import LIMIT, until

from sandbox import process, programs
from sandbox.airflow import Airflow
from sandbox.ports import Ports
from sandbox.postgres import Postgres

from .models import NAME


@dataclass
class Harm:
    """What can be done to a live stack; `stop` ends what was started anew."""

    live: Any
    # The moment (of the clock) since which this service's revisions are counted: deleted and made anew, it begins
    # with their first name again.
    since: float = 0.0
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    # The cluster

    def kubectl(self, *words: str) -> str:
        command = [str(programs.kubectl()), "--kubeconfig", str(self.live.state / "kubeconfig.yaml"), "-n", "models"]
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def delete_service(self) -> None:
        """`kubectl delete` of the InferenceService."""
        self.kubectl("delete", "inferenceservice", NAME)
        self.since = time.time()

    def edit_lease(self, patch: dict[str, Any]) -> None:
        """Somebody else's hand on the lease."""
        from kubernetes.client import CustomObjectsApi

        CustomObjectsApi(self.live.cluster).patch_namespaced_custom_object(
            "coordination.k8s.io", "v1", "models", "leases", f"model-release-{NAME}", patch,
            _content_type="application/merge-patch+json",
        )  # fmt: skip

    def api_fault(self, verb: str, resource: str, **said: Any) -> None:
        """The Kubernetes API fails at the next calls of this kind."""
        self.api_fault_on({"verb": verb, "resource": resource}, **said)

    @contextlib.contextmanager
    def api_down(self, seconds: float = 0, resource: str | None = None) -> Iterator[None]:
        """Every connection to the Kubernetes API breaks, for this long at least; with `resource`, every one about that.
        Who waits for one task to fail names what only that task needs: `decide`, before it, reads the lease alone.
        """
        self.api_fault_on({"resource": resource} if resource else {}, drop=True)
        try:
            time.sleep(seconds)
            yield
        finally:
            self.api_mended()

    def api_fault_on(self, match: dict[str, str], **said: Any) -> None:
        url = self.live.status["parts"]["kubernetes"]["url"]
        requests.post(f"{url}/-/faults", json={"match": match, **said}, timeout=LIMIT).raise_for_status()

    def api_mended(self) -> None:
        url = self.live.status["parts"]["kubernetes"]["url"]
        requests.delete(f"{url}/-/faults", timeout=LIMIT).raise_for_status()

    def api_faults_left(self) -> list[Any]:
        url = self.live.status["parts"]["kubernetes"]["url"]
        return list(requests.get(f"{url}/-/faults", timeout=LIMIT).json())

    def hang(self, ended: Callable[[], bool]) -> int:
        """The pods of the newest revision start and then stand still, as on a disk that does not answer, until `ended`;
        how many processes stood still."""
        stable, still = str(self.live.service(NAME).rolled_out), set[int]()
        while not ended():
            newest = str(self.live.service(NAME).latest_created)
            victims = process.processes(self.live.state, f"models/{newest}") if newest != stable else []
            for victim in victims:
                with contextlib.suppress(psutil.Error):
                    victim.suspend()
                    still.add(victim.pid)
            time.sleep(0.3)
        return len(still)

    # The sandbox's parts, and Airflow's

    def crash(self, part: str) -> None:
        """kill -9 of a part of the sandbox (s3, envoy, prometheus); its supervisor starts it again."""
        victims = process.processes(self.live.state, part)
        assert victims, f"no {part} runs"
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.kill()

    def crash_until(self, revision: str, ended: Callable[[], bool], most: int = 40) -> int:
        """Kills a revision's processes again and again, as long as `ended` is not true; how often."""
        kills = 0
        while not ended() and kills < most:
            kills += self.live.sandbox("kill", f"models/{revision}", check=False).returncode == 0
            time.sleep(1.5)
        return kills

    def pods_die(self, revision: str, times: int | None = None) -> None:
        """The pods of this revision end as soon as they are ready, until the API is mended."""
        self.api_fault_on({}, pods={"revision": revision, "killed": True}, times=times)

    @contextlib.contextmanager
    def unguarded(self) -> Iterator[None]:
        """Without the guard: for who needs longer than a lease lasts, as a busy machine that starts a part again."""
        self.live.sandbox("stop", "guard")
        try:
            yield
        finally:
            self.live.sandbox("start", "guard")

    @contextlib.contextmanager
    def unswept(self) -> Iterator[None]:
        """Without the sweep that its schedule starts: it may come before the guard, and settles all the same."""
        self.pause("sweep")
        try:
            yield
        finally:
            self.pause("sweep", paused=False)

    def pause(self, dag: str, *, paused: bool = True) -> None:
        """The switch beside a DAG's name."""
        self.live.airflow.call("PATCH", f"/dags/{dag}", json={"is_paused": paused})

    @contextlib.contextmanager
    def standing_still(self, word: str, *, newcomers: bool = True) -> Iterator[None]:
        """The processes of Airflow that have this word in their title are stopped (SIGSTOP), and with `newcomers` those
        that come meanwhile, too; in the end they go on."""
        ended, still = Event(), dict[int, psutil.Process]()
        # By their numbers: when a process began is told by another clock than now is.
        there = {one.pid for one in process.processes(self.live.state)}

        def stop_all() -> None:
            while not ended.wait(0.3):
                for one in process.processes(self.live.state):
                    with contextlib.suppress(psutil.Error):
                        is_new = one.pid not in there and not newcomers
                        if one.pid not in still and not is_new and word in " ".join(one.cmdline()):
                            one.suspend()
                            still[one.pid] = one

        stopping = Thread(target=stop_all, daemon=True)
        stopping.start()
        try:
            until(lambda: bool(still), lambda: f"no process of Airflow is called {word}")
            yield
        finally:
            ended.set()
            stopping.join(60)
            for one in still.values():
                with contextlib.suppress(psutil.Error):
                    one.resume()

    def kill(self, part: str) -> None:
        """kill -9 of one of Airflow's parts (scheduler, triggerer) with all of its children."""
        victims = []
        # One that sets its title has lost the marks by which the sandbox knows its own.
        again = [psutil.Process(one.pid) for one in self._started if one.poll() is None]
        for one in [*process.processes(self.live.state), *again]:
            with contextlib.suppress(psutil.Error):
                words = " ".join(one.cmdline()).split()
                if words[-1:] == [part] or words[:2] == ["airflow", part.replace("-", "_")]:
                    victims += [one, *one.children(recursive=True)]
        assert victims, f"no {part} runs"
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.kill()
        psutil.wait_procs(victims, timeout=LIMIT)

    def restart(self, part: str, **more: str) -> None:
        """What systemd or Kubernetes does with a part that ended: start it again."""
        connections = json.loads((self.live.state / "connections.json").read_text())
        state, ports = self.live.state, Ports(self.live.state / "ports.json")
        airflow = Airflow(state, ports, self.live.project, connections, Postgres(state).sqlalchemy_url)
        marks = {process.MARK: str(self.live.state.resolve()), process.NAME: part}
        with (self.live.state / f"logs/{part}-again.log").open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", "sandbox.airflow", part],
                # A restarted scheduler looks sooner for the tasks that died with the other.
                env={
                    **os.environ,
                    **airflow.env,
                    **marks,
                    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
                    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
                    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
                    # A restarted triggerer sooner takes over what the killed one watched; signs of life come each 5 s.
                    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "11",
                    **more,
                },
                cwd=airflow.home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(started)

    def stop(self) -> None:
        for started in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait(10)

    def delete_object(self, version: str, name: str) -> None:
        client = self.live.store(f"s3://models/{NAME}/")._client
        client.delete_object(Bucket="models", Key=f"{NAME}/versions/{version}/{name}")
