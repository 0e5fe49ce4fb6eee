"""A small client for the sandbox's own Airflow: what `make release` and the end-to-end tests need of its REST API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from sandbox.airflow import USER
from sandbox.errors import SandboxError
from sandbox.process import PATIENCE

Json = dict[str, Any]


class AirflowApi:
    """Signs in as the sandbox's user. Every method raises SandboxError, one line, when Airflow refuses or is away."""

    def __init__(self, url: str, password: str) -> None:
        self.url = url
        self._password = password
        self._session = requests.Session()
        self._session.trust_env = False

    @classmethod
    def of(cls, state_dir: Path) -> AirflowApi:
        """For the Airflow that runs in the sandbox of `state_dir`."""
        status = json.loads((state_dir / "status.json").read_text())
        kept = json.loads((state_dir / "airflow" / "secrets.json").read_text())
        return cls(status["parts"]["airflow"]["url"], kept["password"])

    def call(self, method: str, path: str, **more: Any) -> Any:
        """One request below /api/v2; the JSON of the answer. Signs in anew when the token has run out."""
        for signed_in in (bool(self._session.headers.get("Authorization")), True):
            if not signed_in:
                self._sign_in()
            try:
                answer = self._session.request(method, f"{self.url}/api/v2{path}", timeout=PATIENCE, **more)
            except requests.RequestException as error:
                raise SandboxError(f"Airflow at {self.url} does not answer: {type(error).__name__}") from error
            if answer.status_code != 401:
                break
            self._session.headers.pop("Authorization", None)
            self._sign_in()
        if not answer.ok:
            raise SandboxError(f"Airflow: {method} {path}: {answer.status_code} {_detail(answer)}")
        return answer.json() if answer.content else None

    def wait_for_dag(self, dag_id: str) -> list[str]:
        """Returns when the DAG is there, with what Airflow says of other models' files that it cannot accept. A file
        that cannot be imported, and the DAG's own model file, are SandboxErrors at once."""
        end, own = time.monotonic() + PATIENCE, f"/{dag_id.partition('_')[2]}.yaml"
        while time.monotonic() < end:
            others = []
            for error in self.call("GET", "/importErrors")["import_errors"]:
                trace = error["stack_trace"].strip()
                said = trace.splitlines()[-1]
                if not error["filename"].endswith("model_files.py") or own in trace:
                    raise SandboxError(f"{error['filename']}: {said}")
                others.append(said.partition(": ")[2])
            if any(dag["dag_id"] == dag_id for dag in self.call("GET", "/dags", params={"limit": 500})["dags"]):
                return others
            time.sleep(0.3)
        raise SandboxError(f"Airflow knows no DAG {dag_id} after {PATIENCE:.0f} s; include/models/ has no file of it?")

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Starts a run as a person does from the UI; its run id."""
        run = self.call("POST", f"/dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": dict(conf or {})})
        return str(run["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> Json:
        """The run as it is now."""
        found: Json = self.call("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")
        return found

    def end(self, dag_id: str, run_id: str) -> None:
        """Marks the run as failed, as a person does in the UI."""
        self.call("PATCH", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}", json={"state": "failed"})

    def tasks(self, dag_id: str, run_id: str) -> dict[str, Json]:
        """The run's task instances by task id, in the order in which they started."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances"
        found = self.call("GET", path, params={"limit": 200})["task_instances"]
        return {one["task_id"]: one for one in sorted(found, key=lambda one: one["start_date"] or "9")}

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> Iterator[str]:
        """The lines of a task's log, a deferred task's from the triggerer included."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/logs/{try_number}"
        content = self.call("GET", path, params={"full_content": "true"}, headers={"Accept": "application/json"})
        for line in content["content"]:
            yield str(line.get("event", "")) if isinstance(line, dict) else str(line)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """What a task left under `key`; None when it left nothing."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/xcomEntries"
        entries = self.call("GET", path)["xcom_entries"]
        if not any(entry["key"] == key for entry in entries):
            return None
        return self.call("GET", f"{path}/{quote(key, safe='')}", params={"deserialize": "false"})["value"]

    def _sign_in(self) -> None:
        try:
            answer = self._session.post(
                f"{self.url}/auth/token", json={"username": USER, "password": self._password}, timeout=PATIENCE
            )
        except requests.RequestException as error:
            raise SandboxError(f"Airflow at {self.url} does not answer: {type(error).__name__}") from error
        if not answer.ok:
            raise SandboxError(f"Airflow: signing in: {answer.status_code} {_detail(answer)}")
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


def _detail(answer: requests.Response) -> str:
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = answer.text
    return " ".join(str(detail).split())[:300]
