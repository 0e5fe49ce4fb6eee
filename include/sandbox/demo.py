"""`make release`: three releases of the example model, as a person would watch them.

A first version goes live; a better one is released by canary and promoted; a bad one is released and rolled back.
Nothing here decides anything: it trains candidates, starts runs of `release_digits` as the UI does, sends users'
traffic, and shows what Airflow and the cluster say.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandbox.airflow import USER
from sandbox.airflow_api import AirflowApi
from sandbox.errors import SandboxError
from sandbox.wishes import Load, Wishes

MODEL = "digits"
DAG = f"release_{MODEL}"
SERVICE = f"models/{MODEL}"
RATE = 40.0  # requests a second: enough for a verdict in a minute, little enough for two cores
STORY = {
    "first": "a first model, trained for a short time",
    "better": "the same, trained for longer",
    "bad": "as accurate on the test set, but its processor was saved with do_resize: false",
}
PATIENCE = 900.0  # seconds for one release

_LOOK = re.compile(r"^(\d+ %|promoted) window \d+: ")
_ENDED = {"success": "green", "failed": "red", "upstream_failed": "red", "skipped": "dim"}


@dataclass
class Told:
    """What was already shown of a run."""

    states: dict[str, str] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """One release, as it ended."""

    candidate: str
    state: str
    sentence: str
    seconds: float


class Demo:
    """Shows everything on `console`. `candidates` is the folder that the model file names as its source."""

    def __init__(self, state_dir: Path, candidates: Path, console: Console) -> None:
        self._state_dir, self._candidates, self._console = state_dir, candidates, console
        self._airflow = AirflowApi.of(state_dir)
        self._parts = json.loads((state_dir / "status.json").read_text())["parts"]

    def run(self) -> int:
        """The three releases; 0 when each ended as its story says."""
        self._train()
        self._airflow.wait_for_dag(DAG)
        endings = [self._release(number, name) for number, name in enumerate(STORY, 1)]
        self._summary(endings)
        return 0 if [ending.state for ending in endings] == ["success", "success", "failed"] else 1

    def _train(self) -> None:
        from sandbox.digits import make_candidate

        self._console.rule("[bold]candidates", align="left")
        for name in STORY:
            make_candidate(name, self._trained(name), self._console.print)

    def _trained(self, name: str) -> Path:
        return self._state_dir / "trained" / name

    def _offer(self, name: str) -> None:
        """Puts the candidate where the source looks, under the present time: now it is the newest."""
        import shutil

        target = self._candidates / f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
        passing = target.with_name(f".{target.name}")
        shutil.rmtree(passing, ignore_errors=True)
        shutil.copytree(self._trained(name), passing)
        passing.rename(target)

    def _release(self, number: int, name: str) -> Ending:
        self._console.export_text(clear=True)  # a picture shows one release
        self._console.print()
        self._console.rule(f"[bold]release {number} of {len(STORY)}: {name}[/], {STORY[name]}", align="left")
        if self._traffic():
            self._load()
        self._offer(name)
        began = time.monotonic()
        run_id = self._airflow.trigger(DAG, {"note": f"make release: {STORY[name]}"})
        told, loaded = Told(), bool(self._traffic())
        while True:
            run, tasks = self._airflow.run(DAG, run_id), self._airflow.tasks(DAG, run_id)
            for line in self._news(run_id, tasks, told):
                self._console.print(Text.assemble((f"{_clock(time.monotonic() - began)} ", "dim"), line))
            if not loaded and self._traffic():
                self._load()
                loaded = True
            if run["state"] in ("success", "failed"):
                break
            if time.monotonic() - began > PATIENCE:
                raise SandboxError(
                    f"release {run_id} has not ended after {PATIENCE:.0f} s; its page: {self._page(run_id)}"
                )
            time.sleep(0.7)
        sentence = str(self._airflow.xcom(DAG, run_id, "report") or f"no report; see {self._page(run_id)}")
        style = "green" if run["state"] == "success" else "red"
        self._console.print(Text(sentence, style=f"bold {style}"))
        return Ending(name, run["state"], sentence, time.monotonic() - began)

    def _news(self, run_id: str, tasks: dict[str, Any], told: Told) -> Iterator[Text]:
        """What happened since the last call: tasks that began or ended, looks, changes of traffic."""
        for task_id, task in tasks.items():
            state = str(task["state"])
            if state == "deferred" and (task_id.startswith("watch_") or task_id == "bake"):
                yield from self._looks(run_id, task, told)
            before = told.states.get(task_id)
            if state == before or state in ("None", "scheduled", "queued"):
                continue
            told.states[task_id] = state
            if state in _ENDED:
                if task_id.startswith("watch_") or task_id == "bake":
                    yield from self._looks(run_id, task, told)
                if state not in ("skipped", "upstream_failed"):
                    took = f"{task['duration'] or 0:5.1f} s"
                    yield Text.assemble(
                        ("● ", _ENDED[state]), f"{task_id:<12}", (f"{state:<8} {took}", "dim"), self._said(run_id, task)
                    )
            elif before is None:
                yield Text.assemble(("○ ", "dim"), (f"{task_id:<12}", "dim"))
        traffic = self._traffic()
        if traffic != told.traffic:
            told.traffic = traffic
            yield _bar(traffic)

    def _looks(self, run_id: str, task: Any, told: Told) -> Iterator[Text]:
        lines = list(self._airflow.log(DAG, run_id, task["task_id"], task["try_number"]))
        looks = [line for line in lines if _LOOK.match(line)]
        for line in looks[told.looks.get(task["task_id"], 0) :]:
            yield Text(f"  {line}", style="cyan")
        told.looks[task["task_id"]] = len(looks)

    def _said(self, run_id: str, task: Any) -> str:
        if task["state"] != "failed" or task["task_id"] == "report":
            return ""
        return f"  {self._airflow.xcom(DAG, run_id, task['task_id'], 'trouble') or ''}"

    def _traffic(self) -> dict[str, int]:
        """Each revision's percent, by the service's status; empty when there is none."""
        namespace, name = SERVICE.split("/")
        url = self._parts["kubernetes"]["url"]
        address = f"{url}/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/{name}"
        answer = requests.get(address, timeout=10)
        if not answer.ok:
            return {}
        entries = answer.json().get("status", {}).get("components", {}).get("predictor", {}).get("traffic", [])
        shares: dict[str, int] = {}
        for entry in entries:
            if entry.get("percent"):
                shares[entry["revisionName"]] = shares.get(entry["revisionName"], 0) + entry["percent"]
        return shares

    def _load(self) -> None:
        wishes, wanted = Wishes.read(self._state_dir), Load(SERVICE, RATE)
        if wishes.load != wanted:
            wishes.with_load(wanted).write(self._state_dir)
            self._console.print(Text(f"users arrive: {RATE:.0f} requests a second through the front door", style="dim"))

    def _summary(self, endings: list[Ending]) -> None:
        self._console.print()
        self._console.rule("[bold]what happened", align="left")
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("candidate", "ended", "took", "why"):
            table.add_column(column, overflow="fold")
        for ending in endings:
            style = "green" if ending.state == "success" else "red"
            sentence = ending.sentence.removeprefix(f"{MODEL}: ")
            table.add_row(ending.candidate, Text(ending.state, style=style), _clock(ending.seconds), sentence)
        self._console.print(table)
        self._users()
        self._console.print()
        secret = self._state_dir / "airflow" / "passwords.json"
        front, host = self._parts["envoy"]["url"], Load(SERVICE, RATE).host
        for what, where in {
            "Airflow": f"{self._parts['airflow']['url']}   user {USER}, password in {secret}",
            "Prometheus": self._parts["prometheus"]["url"],
            "Service": f"{front}/v1/models/{MODEL}:predict   with the header Host: {host}",
            "Cluster": f"kubectl --kubeconfig {self._state_dir / 'kubeconfig.yaml'} -n models get isvc",
        }.items():
            # Not broken into lines: they are there to be copied.
            self._console.print(Text.assemble((f"{what:<12}", "dim"), where), soft_wrap=True)
        self._console.print(Text("All of it runs on; `make down` stops it.", style="dim"))

    def _users(self) -> None:
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

    def _page(self, run_id: str) -> str:
        return f"{self._airflow.url}/dags/{DAG}/runs/{run_id}"


def release(state_dir: Path, project: Path, stop: Callable[[], object], picture: Path | None = None) -> int:
    """Runs the demo in a sandbox that is up with Airflow. Ctrl-C calls `stop`, which stops all of it.

    `picture` is where the last release is drawn as it stood on the terminal (SVG).
    """
    console = Console(highlight=False, record=True)
    if not console.is_terminal:
        console.width = 132
    try:
        code = Demo(state_dir, project / "candidates" / MODEL, console).run()
        if picture is not None:
            # Without the web font of rich's template: a picture asks no other host for anything.
            template = re.sub(r"@font-face {{.*?}}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
            picture.write_text(console.export_svg(title="make release", code_format=template), encoding="utf-8")
        return code
    except KeyboardInterrupt:
        console.print("\nStopping everything …")
        stop()
        return 130


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _bar(traffic: dict[str, int]) -> Text:
    """`traffic  …-00001 75 % ▇▇▇▇▇▇▇  …-00002 25 % ▇▇`."""
    line = Text("  traffic ")
    for number, (revision, percent) in enumerate(sorted(traffic.items())):
        line.append(f" {revision} {percent} % ")
        line.append("▇" * max(1, percent // 5), style=("blue", "magenta", "yellow")[number % 3])
    if not traffic:
        line.append(" none")
    return line
