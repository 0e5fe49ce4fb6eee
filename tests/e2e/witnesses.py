"""Who watches a release from outside: a user with a clock, and somebody who looks at Airflow all the time."""

from __future__ import annotations

import base64
import contextlib
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import requests
from tests.patience import LIMIT

from sandbox.airflow_api import AirflowApi
from sandbox.errors import SandboxError
from sandbox.process import processes
from sandbox.status import supervisor

DAG = "release_digits"
PYTORCH = re.compile(r"/site-packages/(torch|nvidia|triton)/")


@dataclass(frozen=True)
class Answer:
    """One answer at the front door: when it was asked for (Unix seconds), who gave it, and how.

    `revision` is `-` for an answer that no revision gave, `status` 0 where there was no answer at all.
    """

    asked: float
    revision: str
    status: int


class User(Thread):
    """Sends one image after the other to `service`, every `pause` seconds, and remembers each answer.

    Beside the load generator, which counts and has no clock.
    """

    def __init__(self, front_door: str, image: bytes, service: str = "digits", pause: float = 0.1) -> None:
        super().__init__(daemon=True)
        self.answers: list[Answer] = []
        self._url = f"{front_door}/v1/models/{service}:predict"
        self._host = {"Host": f"{service}.models.localhost"}
        self._body = {"instances": [{"data": base64.b64encode(image).decode()}]}
        self._pause, self._ended = pause, Event()

    def run(self) -> None:
        with requests.Session() as http:
            http.trust_env = False
            while not self._ended.wait(self._pause):
                answer = self._ask(http)
                # Before the first deployment nobody is there to answer, and nobody expects it.
                if self.answers or answer.revision != "-":
                    self.answers.append(answer)

    def _ask(self, http: requests.Session) -> Answer:
        asked = time.time()
        try:
            answer = http.post(self._url, json=self._body, headers=self._host, timeout=LIMIT)
        except requests.RequestException:
            return Answer(asked, "-", 0)
        return Answer(asked, answer.headers.get("x-revision", "-"), answer.status_code)

    def end(self) -> None:
        self._ended.set()
        self.join(60)


@dataclass(frozen=True)
class Memory:
    """MB (PSS) of the sandbox's processes at one look: of each, without the pages of PyTorch's libraries or of CUDA's,
    and of all those pages."""

    processes: dict[str, int]
    pytorch: int

    @property
    def ours(self) -> int:
        return sum(self.processes.values())

    @classmethod
    def look(cls, state: Path) -> Memory:
        ours, libraries = {}, 0
        for process in [*processes(state), *filter(None, [supervisor(state)])]:
            with contextlib.suppress(psutil.Error):
                maps = process.memory_maps()
                of_pytorch = sum(one.pss for one in maps if PYTORCH.search(one.path))
                libraries += of_pytorch
                ours[f"{process.pid} {process.name()}"] = sum(one.pss for one in maps) - of_pytorch >> 20
        return cls(ours, libraries >> 20)


@dataclass
class Seen:
    """What was seen of one deferred task while it was deferred."""

    trigger: str
    links: dict[str, str]
    running: list[list[str]] = field(default_factory=list)  # at each look: the tasks that a worker was busy with


class Observer(Thread):
    """Looks at the DAG's tasks every second, and at the memory of all processes every few seconds."""

    def __init__(self, state: Path, dag: str = DAG) -> None:
        super().__init__(daemon=True)
        self.deferred: dict[tuple[str, str], Seen] = {}  # by run id and task id
        self.memory: list[Memory] = []
        self.troubles: list[str] = []
        self._state, self._dag, self._ended = state, dag, Event()

    def run(self) -> None:
        airflow, turn = AirflowApi.of(self._state), 0
        while not self._ended.wait(1):
            try:
                self._look(airflow)
            except SandboxError as error:
                self.troubles.append(str(error))
            if turn % 5 == 0:
                self.memory.append(Memory.look(self._state))
            turn += 1

    def _look(self, airflow: AirflowApi) -> None:
        path = f"/dags/{self._dag}/dagRuns/~/taskInstances"
        for task in airflow.call("GET", path, params={"state": "deferred"})["task_instances"]:
            key = task["dag_run_id"], task["task_id"]
            # Read in this order: whatever runs then, the task was deferred before and after it.
            running = airflow.call("GET", path, params={"state": "running"})["task_instances"]
            now = airflow.call("GET", f"/dags/{self._dag}/dagRuns/{key[0]}/taskInstances/{key[1]}")
            if now["state"] != "deferred":
                continue
            if key not in self.deferred:
                links = airflow.call("GET", f"/dags/{self._dag}/dagRuns/{key[0]}/taskInstances/{key[1]}/links")
                trigger: dict[str, Any] = now["trigger"] or {}
                self.deferred[key] = Seen(trigger.get("classpath", ""), links["extra_links"])
            self.deferred[key].running.append([one["task_id"] for one in running])

    def end(self) -> None:
        self._ended.set()
        self.join(60)
