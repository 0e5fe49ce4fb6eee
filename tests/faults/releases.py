"""One release as somebody at Airflow's UI sees it, and does things to it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
from tests.patience import until

from sandbox import process

from .models import NAME

if TYPE_CHECKING:
    from .scene import Scene

OVER = ("success", "failed", "skipped", "upstream_failed")


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
        return str(self.scene.airflow.tasks(self.dag, self.run_id)[task]["state"])

    def until(self, task: str, *states: str) -> None:
        """Returns when the task is in one of these states."""
        seen: list[str] = []

        def there() -> bool:
            seen.append(self.state_of(task))
            assert seen[-1] in states or seen[-1] not in OVER, f"{task} is {seen[-1]}; {self.troubles()}"
            return seen[-1] in states

        until(there, lambda: f"{task} is {seen[-1]} and not {states}; {self.troubles()}")

    def until_try(self, task: str, number: int, state: str) -> None:
        """Returns when this try of the task is in this state."""

        def there() -> bool:
            found = self.scene.airflow.tasks(self.dag, self.run_id)[task]
            return (found["try_number"], found["state"]) == (number, state)

        until(there, lambda: f"{task} does not come to try {number}; {self.troubles()}")

    def clear(self, task: str) -> None:
        """As a person does in the UI, to have a task run again."""
        body = {"dry_run": False, "only_failed": False, "dag_run_id": self.run_id, "task_ids": [task]}
        self.scene.airflow.call("POST", f"/dags/{self.dag}/clearTaskInstances", json=body)

    def clear_all(self) -> None:
        """As a person does with a whole run."""
        self.scene.airflow.call("POST", f"{self.path}/clear", json={"dry_run": False})

    def mark(self, task: str, state: str) -> None:
        """As a person does with a task in the UI."""
        self.scene.airflow.call("PATCH", f"{self.path}/taskInstances/{task}", json={"new_state": state})

    def delete(self, task: str) -> None:
        """As a person does, or a script that cleans up: the task instance is gone from the run."""
        self.scene.airflow.call("DELETE", f"{self.path}/taskInstances/{task}")

    def mark_run(self, state: str) -> None:
        self.scene.airflow.call("PATCH", self.path, json={"state": state})

    def tries(self, task: str) -> int:
        return int(self.scene.airflow.tasks(self.dag, self.run_id)[task]["try_number"])

    def log(self, task: str, number: int = 1) -> str:
        return "\n".join(self.scene.airflow.log(self.dag, self.run_id, task, number))

    def kill_task(self, task: str) -> None:
        """kill -9 of the task's own process, as soon as it runs: out of memory, say."""

        def killed() -> bool:
            one = self.scene.airflow.tasks(self.dag, self.run_id)[task]
            assert one["state"] not in OVER, f"{task} is {one['state']} before it could be killed; {self.troubles()}"
            return one["state"] == "running" and self._kill_process(str(one["id"]))

        until(killed, lambda: f"{task} has no process; {self.troubles()}", pause=0.05)

    def _kill_process(self, try_id: str) -> bool:
        """Airflow gives the process of each try its id as a title, and a new id to the next try."""
        for one in process.processes(self.scene.live.state):
            with contextlib.suppress(psutil.Error):
                if " ".join(one.cmdline()).rstrip().endswith(f"-- {try_id}"):
                    one.kill()
                    return True
        return False

    def watching(self) -> str:
        """Returns when the canary is open and watched; its revision."""
        self.until("canary", "deferred")

        def opened() -> bool:
            claim = self.scene.claim
            assert claim is not None, f"nobody holds the service; {self.troubles()}"
            assert claim.closed is None, claim.closed
            return bool(claim.watches and claim.watches[-1].opened_at)

        until(opened, lambda: f"the canary is not open: {self.scene.claim.stage}")
        return str(self.scene.claim.canary)

    def ended(self) -> str:
        """Its state, once it has ended."""
        return str(self.scene.live.finished(self.dag, self.run_id)["state"])

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
        tasks = self.scene.airflow.tasks(self.dag, self.run_id)
        failed = [name for name, task in tasks.items() if task["state"] == "failed"]
        return {name: self.scene.airflow.xcom(self.dag, self.run_id, name, "trouble") for name in failed}

    def answers(self) -> dict[str, Counter[str]]:
        """How the users fared since it began: answers by revision and status."""
        time.sleep(1.5)  # the load writes its counts once a second
        now = self.scene.answers()
        return {name: counts - self.before.get(name, Counter()) for name, counts in now.items()}

    def outcome(self) -> str:
        return str(self.record()["outcome"])


def failures(answers: dict[str, Counter[str]]) -> dict[str, int]:
    """Requests that were not answered well, by revision; those without any are left out."""
    bad = {name: sum(count for status, count in counts.items() if status != "200") for name, counts in answers.items()}
    return {name: count for name, count in bad.items() if count}
