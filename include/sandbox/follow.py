"""A release as a person watches it on the terminal: its tasks, the judge's looks, every change of traffic.

Nothing here decides anything: it starts a run as the UI does, sends users' traffic, and shows what Airflow and the
cluster say until the run has ended.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.text import Text

from sandbox import programs
from sandbox.airflow import USER
from sandbox.airflow_api import AirflowApi
from sandbox.errors import SandboxError
from sandbox.status import part_runs
from sandbox.waiting import Waiting, clock
from sandbox.wishes import Load, Wishes

PATIENCE = 900.0  # seconds for one release

_LOOK = re.compile(r"^(\d+ %|promoted) window \d+: ")
_ENDED = {"success": "green", "failed": "red", "upstream_failed": "red", "skipped": "dim"}


@dataclass
class Told:
    """What was already shown of a run: each task's state, each watch's number of looks, the percents."""

    states: dict[str, str] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """One release, as it ended: `state` of the run, `sentence` of its report, `tasks` by id as Airflow tells them."""

    run_id: str
    state: str
    sentence: str
    seconds: float
    tasks: dict[str, Any]


class Follower:
    """Shows the releases of one service (`namespace/name`) on `console`, with `rate` users' requests a second."""

    def __init__(self, state_dir: Path, console: Console, service: str, rate: float) -> None:
        self.parts = json.loads((state_dir / "status.json").read_text())["parts"]
        if "airflow" not in self.parts:
            raise SandboxError(f"the sandbox in {state_dir} runs without Airflow: stop it first, with `make down`")
        self.airflow = AirflowApi.of(state_dir)
        self.load = Load(service, rate)
        self._state_dir, self._console = state_dir, console

    @property
    def object_url(self) -> str:
        """The InferenceService's address in the Kubernetes API."""
        namespace, name = self.load.service.split("/")
        api = f"{self.parts['kubernetes']['url']}/apis/serving.kserve.io/v1beta1"
        return f"{api}/namespaces/{namespace}/inferenceservices/{name}"

    def release(self, dag_id: str, note: str, meanwhile: Callable[[Told], None] = lambda _: None) -> Ending:
        """Starts a run of the DAG and shows it to its end. Users arrive as soon as somebody serves them.

        `meanwhile` is called after each look at the run, with what was shown of it so far.
        Raises SandboxError if the run does not end, or Airflow does not answer.
        """
        began = time.monotonic()
        run_id = self.airflow.trigger(dag_id, {"note": note})
        self._console.print(
            Text(f"in the browser: {self._page(dag_id, run_id)}/plugin/release", style="dim"), soft_wrap=True
        )
        told, loaded = Told(), bool(self.traffic())
        with Waiting(self._console) as waiting:
            while True:
                run, tasks = self.airflow.run(dag_id, run_id), self.airflow.tasks(dag_id, run_id)
                for line in self._news(dag_id, run_id, tasks, told):
                    self._console.print(Text.assemble((f"{clock(time.monotonic() - began)} ", "dim"), line))
                waiting.on(_under_way(tasks))
                if not loaded and told.traffic:
                    self.send_users()
                    loaded = True
                meanwhile(told)
                if run["state"] in ("success", "failed"):
                    break
                if time.monotonic() - began > PATIENCE:
                    where = self._page(dag_id, run_id)
                    raise SandboxError(f"release {run_id} has not ended after {PATIENCE:.0f} s; its page: {where}")
                time.sleep(0.7)
        sentence = str(self.airflow.xcom(dag_id, run_id, "report") or f"no report; see {self._page(dag_id, run_id)}")
        style = "green" if run["state"] == "success" else "red"
        self._console.print(Text(sentence, style=f"bold {style}"))
        return Ending(run_id, run["state"], sentence, time.monotonic() - began, tasks)

    def begin_anew(self, *dag_ids: str, stopped: bool = False) -> None:
        """No users, and no service of a story before this one. A run of one of these DAGs that is under way ends where
        the whole stack was `stopped` in the middle of it; else SandboxError: it may be shown on another terminal."""
        for dag_id in dag_ids:
            for line in self.airflow.wait_for_dag(dag_id):
                self._console.print(
                    Text(f"Airflow refuses another model's file: {line}", style="yellow"), soft_wrap=True
                )
            states = {"state": ["running", "queued"]}
            for run in self.airflow.call("GET", f"/dags/{dag_id}/dagRuns", params=states)["dag_runs"]:
                page = self._page(dag_id, run["dag_run_id"])
                if not stopped:
                    raise SandboxError(f"a run of {dag_id} is under way; begin when it has ended: {page}")
                self.airflow.end(dag_id, run["dag_run_id"])
                self._console.print(f"the release that was stopped in its middle has ended as failed: {page}")
        self.end_users()
        namespace, name = self.load.service.split("/")
        if requests.delete(self.object_url, timeout=10).ok:
            self._console.print(f"the {name} of the story before this one is deleted")
        pods = f"{self.parts['kubernetes']['url']}/api/v1/namespaces/{namespace}/pods"
        ours = {"labelSelector": f"serving.kserve.io/inferenceservice={name}"}
        deadline = time.monotonic() + PATIENCE
        while requests.get(pods, params=ours, timeout=10).json()["items"]:
            if time.monotonic() > deadline:
                raise SandboxError(f"the pods of the story before this one are still there after {PATIENCE:.0f} s")
            time.sleep(0.3)

    def traffic(self) -> dict[str, int]:
        """Each revision's percent, by the service's status; empty when there is none."""
        answer = requests.get(self.object_url, timeout=10)
        if not answer.ok:
            return {}
        if answer.json().get("status", {}).get("deploymentMode") == "Standard":
            from sandbox.kube import standard

            routes = self.object_url.replace("serving.kserve.io/v1beta1", "gateway.networking.k8s.io/v1")
            found = requests.get(routes.replace("/inferenceservices/", "/httproutes/"), timeout=10)
            return {name: share for name, share in standard.weights(found.json()).items() if share} if found.ok else {}
        entries = answer.json().get("status", {}).get("components", {}).get("predictor", {}).get("traffic", [])
        shares: dict[str, int] = {}
        for entry in entries:
            if entry.get("percent"):
                shares[entry["revisionName"]] = shares.get(entry["revisionName"], 0) + entry["percent"]
        return shares

    def send_users(self) -> None:
        """Has users arrive at the service's front door. Nothing changes where they do already."""
        wishes = Wishes.read(self._state_dir)
        if wishes.load != self.load:
            wishes.with_load(self.load).write(self._state_dir)
            line = f"users arrive: {self.load.rate:.0f} requests a second through the front door"
            self._console.print(Text(line, style="dim"))

    def end_users(self) -> None:
        """No users any more; what they met so far is forgotten when the next ones come."""
        wishes = Wishes.read(self._state_dir)
        if wishes.load is not None:
            wishes.with_load(None).write(self._state_dir)
        while part_runs(self._state_dir, "load"):
            time.sleep(0.1)

    def users(self) -> dict[str, dict[str, int]]:
        """How often users got which answer, by revision; `-` for answers that none gave."""
        try:
            answers: dict[str, dict[str, int]] = json.loads((self._state_dir / "load.json").read_text())["answers"]
        except FileNotFoundError:
            return {}
        return answers

    def show_users(self) -> None:
        """How the users fared, by revision."""
        try:
            load = json.loads((self._state_dir / "load.json").read_text())
        except FileNotFoundError:
            return
        self._console.print()
        for revision, answers in load["answers"].items():
            good, all_of_them = answers.get("200", 0), sum(answers.values())
            self._console.print(
                f"{'no revision' if revision == '-' else revision}: {all_of_them} requests, "
                f"{all_of_them - good} not answered well, p95 {load['p95_ms'].get(revision) or 0:.0f} ms"
            )

    def show_page(self) -> None:
        """Where the releases are followed in a browser."""
        secret = self._state_dir / "airflow" / "passwords.json"
        for what, where in {
            "Airflow": f"{self.airflow.url}   user {USER}, password in {secret}",
            "Releases": f"{self.airflow.url}/plugin/releases   every release and its evidence, as they happen",
        }.items():
            self._console.print(Text.assemble((f"{what:<12}", "dim"), where), soft_wrap=True)

    def show_addresses(self) -> None:
        """Where a person goes on from here."""
        namespace, name = self.load.service.split("/")
        kubectl = os.path.relpath(programs.kubectl())  # the environment's own: it need not be on the PATH
        self._console.print()
        self.show_page()
        for what, where in {
            "Prometheus": self.parts["prometheus"]["url"],
            "Service": (
                f"{self.parts['envoy']['url']}/v1/models/{name}:predict   with the header Host: {self.load.host}"
            ),
            "Cluster": f"{kubectl} --kubeconfig {self._state_dir / 'kubeconfig.yaml'} -n {namespace} get isvc",
        }.items():
            # Not broken into lines: they are there to be copied.
            self._console.print(Text.assemble((f"{what:<12}", "dim"), where), soft_wrap=True)
        self._console.print(Text("All of it runs on; `make down` stops it.", style="dim"))

    def _news(self, dag_id: str, run_id: str, tasks: dict[str, Any], told: Told) -> Iterator[Text]:
        """What happened since the last call: tasks that began or ended, looks, changes of traffic."""
        for task_id, task in tasks.items():
            state = str(task["state"])
            if state == "deferred" and _is_watch(task_id):
                yield from self._looks(dag_id, run_id, task, told)
            before = told.states.get(task_id)
            if state == before or state in ("None", "scheduled", "queued"):
                continue
            told.states[task_id] = state
            if state in _ENDED:
                if _is_watch(task_id):
                    yield from self._looks(dag_id, run_id, task, told)
                if state not in ("skipped", "upstream_failed"):
                    took, said = f"{task['duration'] or 0:5.1f} s", self._said(dag_id, run_id, task)
                    yield Text.assemble(
                        ("● ", _ENDED[state]), f"{task_id:<12}", (f"{state:<8} {took}", "dim"), said
                    )  # fmt: skip
            elif before is None:
                yield Text.assemble(("○ ", "dim"), (f"{task_id:<12}", "dim"))
        traffic = self.traffic()
        if traffic != told.traffic:
            told.traffic = traffic
            yield _bar(traffic)

    def _looks(self, dag_id: str, run_id: str, task: Any, told: Told) -> Iterator[Text]:
        lines = list(self.airflow.log(dag_id, run_id, task["task_id"], task["try_number"]))
        looks = [line for line in lines if _LOOK.match(line)]
        for line in looks[told.looks.get(task["task_id"], 0) :]:
            yield Text(f"  {line}", style="cyan")
        told.looks[task["task_id"]] = len(looks)

    def _said(self, dag_id: str, run_id: str, task: Any) -> str:
        if task["state"] != "failed" or task["task_id"] == "report":
            return ""
        return f"  {self.airflow.xcom(dag_id, run_id, task['task_id'], 'trouble') or ''}"

    def _page(self, dag_id: str, run_id: str) -> str:
        return f"{self.airflow.url}/dags/{dag_id}/runs/{run_id}"


def terminal(record: bool = False) -> Console:
    """The console, wide enough for the lines of a release where there is no terminal to ask; `record` keeps what is
    printed, for a picture."""
    console = Console(highlight=False, record=record)
    if not console.is_terminal:
        console.width = 132
    return console


def _under_way(tasks: dict[str, Any]) -> str:
    """`export`; what Airflow has not begun yet is said where nothing else is."""
    names = [name for name, task in tasks.items() if str(task["state"]) in ("running", "deferred", "up_for_retry")]
    return ", ".join(names) or "Airflow begins the next task"


def _is_watch(task_id: str) -> bool:
    return task_id in ("canary", "bake")


def _bar(traffic: dict[str, int]) -> Text:
    """`traffic  …-00001 75 % ▇▇▇▇▇▇▇  …-00002 25 % ▇▇`."""
    line = Text("  traffic ")
    for number, (revision, percent) in enumerate(sorted(traffic.items())):
        line.append(f" {revision} {percent} % ")
        line.append("▇" * max(1, percent // 5), style=("blue", "magenta", "yellow")[number % 3])
    if not traffic:
        line.append(" none")
    return line
