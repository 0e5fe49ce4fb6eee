"""`make walkthrough`: one service, three tasks after each other, each released by canary, as a person would watch it.

`classifier-vit` answers what a face feels, then how old it is, then what a hand says. The models come from the
sandbox's hub by the model files of the real ones, unchanged. Each release has two moments that are worth a look: while
the canary has 30 % of the traffic, and when the revision that was judged has all of it. At each of the five (the first
version has no canary) this asks kubectl, the front door and Prometheus what is so, and shows it; `docs/walkthrough.md`
is such a walk, written down by `sandbox.walkthrough_page`.
"""

from __future__ import annotations

import base64
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from rich.console import Console
from rich.table import Table

from model_release.metrics.prometheus import Prometheus
from sandbox import programs, walkthrough_models, walkthrough_page
from sandbox.errors import SandboxError
from sandbox.follow import Ending, Follower, Told, terminal
from sandbox.process import PATIENCE
from sandbox.status import part_runs
from sandbox.waiting import clock
from sandbox.walkthrough_charts import Measured, measure
from sandbox.walkthrough_page import Snapshot, Stage, Walk

NAMESPACE, NAME = walkthrough_models.SERVICE.split("/")
CANARY = 30  # the one step of the three model files
RATE = 60.0  # requests a second: a verdict in a minute, and two cores have time left for the build of the next
# What each model file puts on the service, and with how many replicas.
TASKS = {"facial-emotions": ("emotions", 1), "face-ages": ("age groups", 2), "hand-gestures": ("hand gestures", 2)}
LOOKED_AT = 25.0  # seconds of the load at 100 %
ASKED = 30  # times that the front door is asked for one image


class Walkthrough:
    """Shows everything on `console`."""

    def __init__(self, state_dir: Path, console: Console) -> None:
        self._state_dir, self._console = state_dir, console
        self._follower = Follower(state_dir, console, walkthrough_models.SERVICE, RATE)
        self._image = walkthrough_models.images(1, seed=7)[0]

    def run(self) -> Walk:
        """From an empty service to the third task at 100 %. Raises SandboxError when a release is not promoted."""
        self._prepare()
        began, stages = time.monotonic(), list[Stage]()
        for model, (what, replicas) in TASKS.items():
            first = not stages
            self._heading(f"{what}{', the first version' if first else f', by canary: {CANARY} %, then 100 %'}")
            opened: list[Snapshot] = []
            ending = self._follower.release(
                f"release_{model}", f"make walkthrough: {what}", partial(self._at_canary, opened)
            )
            if ending.state != "success" or bool(opened) == first:
                raise SandboxError(f"the release of {model} did not go as the walk-through tells: {ending.sentence}")
            if opened:
                stages.append(
                    self._measured(f"{what} at {CANARY} %", opened[0], self._span(f"release_{model}", ending))
                )
            stages.append(self._at_all(f"{what} at 100 %", replicas, ending))
        revisions = sorted({share.revision for stage in stages for share in stage.measured.shares})
        whole = self._measure(revisions, stages[0].measured.began)
        return Walk(tuple(stages), whole, self._follower.users(), time.monotonic() - began, RATE)

    def finish(self) -> None:
        self._follower.show_users()
        self._follower.show_addresses()

    def _prepare(self) -> None:
        """The hub with its three models, Airflow's connection to it, and no service of a walk before this one."""
        self._console.rule("[bold]the hub", align="left")
        walkthrough_models.publish(self._state_dir / "hub", self._console.print)
        self._until(lambda: part_runs(self._state_dir, "hub"), "the hub does not run")
        self._connect(self._follower.parts["hub"]["url"])
        self._follower.begin_anew(*(f"release_{model}" for model in TASKS))

    def _connect(self, url: str) -> None:
        """Airflow's connection `hub`, as one writes it under Admin, Connections; it stays. Without it, sources of the
        hub come from huggingface.co."""
        address, airflow = urlsplit(url), self._follower.airflow
        said = {"connection_id": "hub", "conn_type": "http", "schema": address.scheme, "port": address.port}
        said["host"] = address.hostname
        known = airflow.call("GET", "/connections", params={"connection_id_pattern": "hub"})["connections"]
        if any(connection["connection_id"] == "hub" for connection in known):
            airflow.call("PATCH", "/connections/hub", json=said)
        else:
            airflow.call("POST", "/connections", json=said)
        self._console.print(f"Airflow's connection hub says {url}")

    def _at_canary(self, seen: list[Snapshot], told: Told) -> None:
        """Looks once, when the judge has looked once: then users have met the canary for some seconds."""
        if not seen and told.looks.get("canary"):
            seen.append(self._look())

    def _at_all(self, title: str, replicas: int, ending: Ending) -> Stage:
        since = _moment(ending, "report", "end_date")
        self._until(lambda: len(self._kubectl_pods()) == replicas, f"there are not {replicas} pods")
        time.sleep(max(since + LOOKED_AT - time.time(), 0))
        return self._measured(title, self._look(), (since, time.time()), ending.sentence)

    def _look(self) -> Snapshot:
        answers = Counter(self._ask() for _ in range(ASKED))
        isvc, pods = self.kubectl("get", "isvc", NAME), self.kubectl("get", "pods", "-l", walkthrough_page.SELECTOR)
        for command, printed in ((f"get isvc {NAME}", isvc), (f"get pods -l {walkthrough_page.SELECTOR}", pods)):
            self._console.print(f"$ kubectl -n {NAMESPACE} {command}\n{printed}", style="dim", soft_wrap=True, end="")
        self._console.print(walkthrough_page.told(answers))
        return Snapshot(isvc, pods, answers)

    def _ask(self) -> tuple[str, str]:
        """(revision, label) of the front door's answer for the one image."""
        answer = requests.post(
            f"{self._follower.parts['envoy']['url']}/v1/models/{NAME}:predict",
            json={"instances": [{"data": base64.b64encode(self._image).decode()}]},
            headers={"Host": self._follower.load.host},
            timeout=30,
        )
        if not answer.ok:
            raise SandboxError(f"{NAME} answers {answer.status_code}: {answer.text[:200]}")
        return answer.headers["x-revision"], str(answer.json()["predictions"][0][0]["label"])

    def _measured(self, title: str, snapshot: Snapshot, span: tuple[float, float], sentence: str = "") -> Stage:
        measured = self._measure(sorted({revision for revision, _ in snapshot.answers}), *span)
        stage = Stage(title, snapshot, measured, sentence)
        self._heading(f"{title}: the load test")
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in walkthrough_page.COLUMNS:
            table.add_column(column)
        for row in walkthrough_page.rows(stage.measured):
            table.add_row(*row)
        self._console.print(table)
        return stage

    def _measure(self, revisions: list[str], began: float, ended: float | None = None) -> Measured:
        with Prometheus(self._follower.parts["prometheus"]["url"]) as prometheus:
            return measure(prometheus, NAMESPACE, revisions, began, ended or time.time())

    def kubectl(self, *words: str) -> str:
        """What kubectl prints."""
        argv = [str(programs.kubectl()), f"--kubeconfig={self._state_dir}/kubeconfig.yaml", "-n", NAMESPACE, *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise SandboxError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def _kubectl_pods(self) -> list[str]:
        return self.kubectl("get", "pods", "-l", walkthrough_page.SELECTOR, "-o", "name").split()

    def _until(self, holds: Callable[[], bool], trouble: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > deadline:
                raise SandboxError(f"{trouble} after {PATIENCE:.0f} s")
            time.sleep(0.5)

    def _span(self, dag_id: str, ending: Ending) -> tuple[float, float]:
        """From the moment when the gateway had the split to that of the promotion: all of it at the canary's share."""
        told = self._follower.airflow.xcom(dag_id, ending.run_id, "canary")
        changes = {one["change"]: datetime.fromisoformat(one["time"]).timestamp() for one in told["traffic"]}
        return changes[f"open_{CANARY}"], changes["promote"]

    def _heading(self, text: str) -> None:
        self._console.print()
        self._console.rule(f"[bold]{text}", align="left")


def _moment(ending: Ending, task: str, which: str) -> float:
    told: Any = ending.tasks[task][which]
    return datetime.fromisoformat(told).timestamp()


def walkthrough(state_dir: Path, stop: Callable[[], object], page: Path | None = None) -> int:
    """Walks in a sandbox that is up with Airflow. Ctrl-C calls `stop`, which stops all of it.

    `page` is where the walk is written down (Markdown), its charts in a folder of the same name beside it.
    """
    console = terminal()
    try:
        walking = Walkthrough(state_dir, console)
        walk = walking.run()
        walking.finish()
        console.print(f"The walk took {clock(walk.seconds)}.")
        if page is not None:
            walkthrough_page.write(walk, page)
            console.print(f"It is written down in {page}.")
    except KeyboardInterrupt:
        console.print("\nStopping everything …")
        stop()
        return 130
    return 0
