"""A service with users and two good versions of a model, and the hands that do harm while one is being released."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import requests

from sandbox import process, programs
from sandbox.airflow import Airflow
from sandbox.ports import Ports

NAME, SERVICE = "faults", "models/faults"
DAG, LATE = "release_faults", "release_faults-late"
RATE = 40.0
OVER = ("success", "failed", "skipped", "upstream_failed")

MODEL = """
model: {model}
source: {{directory: candidates/{model}}}
service: {{name: faults, namespace: models, resources: {{cpu: "1", memory: 1Gi}}}}
store: s3://models/faults/
rollout: {{steps: [50], window: 3s, deadline: {deadline}, ready_within: 3m, wait_for_lease: 5m}}
judge:
  profile: istio
  min_requests: 400
  design_effect: 1
  metrics: [{{name: errors, max_rate: 0.1}}]
"""


@dataclass(frozen=True)
class Release:
    """One run, as Airflow's API tells of it."""

    scene: Scene
    dag: str
    run_id: str
    candidate: str
    before: dict[str, Counter[str]]

    @property
    def path(self) -> str:
        return f"/dags/{self.dag}/dagRuns/{self.run_id}"

    def state_of(self, task: str) -> str:
        return str(self.scene.live.airflow.tasks(self.dag, self.run_id)[task]["state"])

    def until(self, task: str, *states: str, patience: float = 120) -> None:
        """Returns when the task is in one of these states."""
        seen: list[str] = []

        def there() -> bool:
            seen.append(self.state_of(task))
            assert seen[-1] in states or seen[-1] not in OVER, f"{task} is {seen[-1]}; {self.troubles()}"
            return seen[-1] in states

        wait_for(there, patience, lambda: f"{task} is {seen[-1]} and not {states}; {self.troubles()}")

    def until_try(self, task: str, number: int, state: str, patience: float = 60) -> None:
        """Returns when this try of the task is in this state."""

        def there() -> bool:
            found = self.scene.live.airflow.tasks(self.dag, self.run_id)[task]
            return (found["try_number"], found["state"]) == (number, state)

        wait_for(there, patience, lambda: f"{task} does not come to try {number}; {self.troubles()}")

    def clear(self, task: str) -> None:
        """As a person does in the UI, to have a task run again."""
        body = {"dry_run": False, "only_failed": False, "dag_run_id": self.run_id, "task_ids": [task]}
        self.scene.live.airflow.call("POST", f"/dags/{self.dag}/clearTaskInstances", json=body)

    def kill_task(self, task: str) -> None:
        """kill -9 of the task's own process, as soon as it runs: out of memory, say."""
        self.until(task, "running")
        victims: list[psutil.Process] = []

        def found() -> bool:
            for one in process.processes(self.scene.live.state):
                with contextlib.suppress(psutil.Error):
                    if "LocalExecutor:" in (line := " ".join(one.cmdline())) and "<idle>" not in line:
                        victims.extend(one.children())
            return bool(victims)

        wait_for(found, 10, lambda: f"{task} has no process")
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.kill()

    def watching(self) -> str:
        """Returns when the canary is open and watched; its revision."""
        self.until("watch_50", "deferred")
        return str(self.scene.claim.canary)

    def ended(self, patience: float = 240) -> str:
        """Its state, once it has ended."""
        return str(self.scene.live.finished(self.dag, self.run_id, patience)["state"])

    def sentence(self) -> str:
        """What the decision record says in the end: outcome and reason."""
        record = self.record()
        return f"{record['outcome']}: {record['reason']}"

    def record(self) -> dict[str, Any]:
        store = self.scene.live.store(f"s3://models/{NAME}/")
        for name in self.scene.record_names():
            record, _ = store.read_json(name)
            if record["run"]["run_id"] == self.run_id and record["run"]["dag_id"] == self.dag:
                return dict(record)
        raise AssertionError(f"no decision record of {self.dag} {self.run_id}")

    def troubles(self) -> dict[str, Any]:
        tasks = self.scene.live.airflow.tasks(self.dag, self.run_id)
        failed = [name for name, task in tasks.items() if task["state"] == "failed"]
        return {name: self.scene.live.airflow.xcom(self.dag, self.run_id, name, "trouble") for name in failed}

    def answers(self) -> dict[str, Counter[str]]:
        """How the users fared since it began: answers by revision and status."""
        time.sleep(1.5)  # the load writes its counts once a second
        now = self.scene.answers()
        return {name: counts - self.before.get(name, Counter()) for name, counts in now.items()}


@dataclass
class Scene:
    """Built once for all faults. Each fault starts and ends with a service at rest."""

    live: Any
    versions: list[str] = field(default_factory=list)
    rows: list[tuple[str, ...]] = field(default_factory=list)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    # What there is

    @property
    def service(self) -> Any:
        return self.live.service(NAME)

    @property
    def claim(self) -> Any:
        return self.live.lease(NAME).claim

    @property
    def stable(self) -> str:
        """The version in the service's spec."""
        return str(self.service.storage_uri).rstrip("/").rsplit("/", 1)[-1]

    @property
    def other(self) -> str:
        """The version that is not live."""
        return next(name for name in self.versions if name != self.stable)

    def answers(self) -> dict[str, Counter[str]]:
        return {name: Counter(counts) for name, counts in self.live.status["load"]["answers"].items()}

    def record_names(self) -> list[str]:
        from model_release.artifact.s3 import keys

        store = self.live.store(f"s3://models/{NAME}/")
        found = keys(store._client, "models", f"{NAME}/releases/")
        return [key.removeprefix(f"{NAME}/") for key, _ in found]

    # What is done to it

    def release(self, version: str | None = None, dag: str = DAG, **conf: Any) -> Release:
        """Starts a release of the version that is not live, or of the one that is named."""
        version = version or self.other
        before = self.answers()
        return Release(self, dag, self.live.airflow.trigger(dag, {"version": version, **conf}), version, before)

    def kubectl(self, *words: str) -> str:
        command = [str(programs.kubectl()), "--kubeconfig", str(self.live.state / "kubeconfig.yaml"), "-n", "models"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def edit_lease(self, patch: dict[str, Any]) -> None:
        """Somebody else's hand on the lease."""
        from kubernetes.client import CustomObjectsApi

        CustomObjectsApi(self.live.cluster).patch_namespaced_custom_object(
            "coordination.k8s.io", "v1", "models", "leases", f"model-release-{NAME}", patch,
            _content_type="application/merge-patch+json",
        )  # fmt: skip

    def api_fault(self, verb: str, resource: str, **said: Any) -> None:
        """The Kubernetes API fails at the next calls of this kind."""
        url = self.live.status["parts"]["kubernetes"]["url"]
        fault = {"match": {"verb": verb, "resource": resource}, **said}
        requests.post(f"{url}/-/faults", json=fault, timeout=10).raise_for_status()

    def api_faults_left(self) -> list[Any]:
        url = self.live.status["parts"]["kubernetes"]["url"]
        return list(requests.get(f"{url}/-/faults", timeout=10).json())

    def kill(self, part: str) -> None:
        """kill -9 of one of Airflow's parts (scheduler, triggerer) with all of its children."""
        victims = []
        for one in process.processes(self.live.state):
            with contextlib.suppress(psutil.Error):
                if one.cmdline()[-1:] == [part]:
                    victims += [one, *one.children(recursive=True)]
        assert victims, f"no {part} runs"
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.kill()
        psutil.wait_procs(victims, timeout=5)

    def restart(self, part: str) -> None:
        """What systemd or Kubernetes does with a part that ended: start it again."""
        connections = json.loads((self.live.state / "connections.json").read_text())
        airflow = Airflow(self.live.state, Ports(self.live.state / "ports.json"), self.live.project, connections)
        marks = {process.MARK: str(self.live.state.resolve()), process.NAME: part}
        with (self.live.state / f"logs/{part}-again.log").open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", "sandbox.airflow", part],
                env={**os.environ, **airflow.env, **marks},
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

    def sweep(self, patience: float = 120) -> tuple[str, list[str]]:
        """Starts the DAG `sweep`, and waits for its end: the run's state and the lines of its result."""
        run_id = self.live.airflow.trigger("sweep")
        state = self.live.finished("sweep", run_id, patience)["state"]
        return state, list(self.live.airflow.xcom("sweep", run_id, "sweep") or [])

    # What is seen from outside

    def at_rest(self, version: str) -> str:
        """One revision, of this version's content, has all of the traffic, in the spec, in the status and at the
        front door; it answered a smoke prediction; nobody holds the lease. Returns the revision."""
        service, lease = self.service, self.live.lease(NAME)
        revision = str(service.latest_created)
        assert service.canary_percent is None
        assert service.storage_uri == f"s3://models/{NAME}/versions/{version}/"
        assert service.serving == {revision: 100}
        assert service.rolled_out == service.latest_ready == revision
        assert lease.holder is None
        assert self.was_proven(revision)
        assert self.who_answers(30) == {revision: 30}
        return revision

    def was_proven(self, revision: str) -> bool:
        """Whether some task's log says that this revision answered its smoke prediction."""
        logs = (self.live.state / "airflow" / "logs").rglob("*.log")
        return any(re.search(rf"{revision} answers \d+ images", log.read_text(errors="replace")) for log in logs)

    def who_answers(self, count: int) -> Counter[str]:
        """The revisions that answer at the front door."""
        from sandbox.digits import images

        front_door = self.live.status["parts"]["envoy"]["url"]
        body = {"instances": [{"data": _base64(images(1)[0])}]}
        seen: Counter[str] = Counter()
        with requests.Session() as http:
            http.trust_env = False
            for _ in range(count):
                headers = {"Host": f"{NAME}.models.localhost"}
                answer = http.post(f"{front_door}/v1/models/{NAME}:predict", json=body, headers=headers, timeout=30)
                seen[f"{answer.headers.get('x-revision')}" if answer.ok else f"{answer.status_code}"] += 1
        return seen

    def row(
        self,
        fault: str,
        stage: str,
        release: Release,
        version: str,
        revision: str,
        answers: dict[str, Counter[str]],
        ended: str = "",
    ) -> None:
        """A line of the table: only what was checked and seen."""
        which = "the candidate" if version == release.candidate else "the baseline's version"
        failed = failures(answers)
        users = f"{sum(counts.total() for counts in answers.values())}, {sum(failed.values())} failed"
        users += f" ({', '.join(failed)})" if failed else ""
        said = release.sentence()
        self.rows.append((fault, stage, ended or said.split(":")[0], said, f"{revision}: {which}", users))


def failures(answers: dict[str, Counter[str]]) -> dict[str, int]:
    """Requests that were not answered well, by revision; those without any are left out."""
    bad = {name: sum(count for status, count in counts.items() if status != "200") for name, counts in answers.items()}
    return {name: count for name, count in bad.items() if count}


def wait_for(holds: Callable[[], bool], patience: float, what: Callable[[], str]) -> None:
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, what()
        time.sleep(0.3)


def built(live: Any) -> Iterator[Scene]:
    """The first version goes live, the second is built and published; then the users arrive."""
    from sandbox.digits import make_candidate

    scene = Scene(live)
    for model, candidate, deadline in (("faults", "first", "3m"), ("faults-late", "better", "12s")):
        make_candidate(candidate, live.project / "candidates" / model / "20260101T000000", lambda _: None)
        text = MODEL.format(model=model, deadline=deadline)
        (live.project / "include" / "models" / f"{model}.yaml").write_text(text)
    live.airflow.wait_for_dag("release_digits")
    token = live.airflow.call("GET", "/dags/release_digits")["file_token"]
    live.airflow.call("PUT", f"/parseDagFile/{token}")
    for dag in (DAG, LATE, "sweep"):
        live.airflow.wait_for_dag(dag)
    runs = [(DAG, live.airflow.trigger(DAG)), (LATE, live.airflow.trigger(LATE, {"rollout": "none"}))]
    for dag, run_id in runs:
        run = live.finished(dag, run_id, 300)
        assert run["state"] == "success", live.airflow.xcom(dag, run_id, "report")
    scene.versions = [version.name for version in live.store(f"s3://models/{NAME}/").versions()]
    assert len(scene.versions) == 2
    live.sandbox("load", "--service", SERVICE, "--rate", str(RATE))
    wait_for(lambda: scene.service.rolled_out in scene.answers(), 30, lambda: f"no user is answered: {live.status}")
    try:
        yield scene
    finally:
        live.sandbox("load", "--end", check=False)
        scene.stop()


def _base64(content: bytes) -> str:
    import base64

    return base64.b64encode(content).decode()
