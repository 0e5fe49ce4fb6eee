"""A real MLflow server, in an environment of its own that uv makes, started by the command of docs/mlflow.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import install
import requests
from tests.patience import LIMIT, until

from model_release.build.registry import Registry
from sandbox.ports import free_port

PROJECT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (PROJECT / "docs/mlflow.md").read_text(encoding="utf-8"), re.DOTALL)
(SERVE, REGISTER, CONNECT, LOOK) = [text for kind, text in BLOCKS if kind == "bash"]
(SCRIPT,) = [text for kind, text in BLOCKS if kind == "python"]
(FILE,) = [text for kind, text in BLOCKS if kind == "yaml"]


class Server:
    """An MLflow server, started by the page's own command in `folder`, where `checkpoint` lies."""

    def __init__(self, folder: Path, port: int, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.address = f"http://127.0.0.1:{port}"
        self._port = port

    def said(self, command: str) -> str:
        """What one of the page's commands prints."""
        return command.replace("5000", str(self._port))

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", self.said(command)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def call(self, what: str, **given: str) -> Any:
        answer = requests.post(f"{self.address}/api/2.0/mlflow/{what}", json=given, timeout=LIMIT)
        assert answer.ok, answer.text
        return answer.json()

    def put(self, checkpoint: Path, name: str, *, as_transformers: bool = False) -> str:
        """Registers a version of the model `name` by the REST API alone, also laid out as MLflow's flavor does; → its
        number."""
        run = self.call("runs/create", experiment_id="0")["run"]["info"]
        files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
        if as_transformers:
            processor = "preprocessor_config.json"
            files = {
                f"{'components/image_processor' if file == processor else 'model'}/{file}": content
                for file, content in files.items()
            } | {"MLmodel": b"flavors: {}"}
        place = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
        for file, content in files.items():
            url = f"{self.address}/api/2.0/mlflow-artifacts/artifacts/{place}/made/{file}"
            requests.put(url, data=content, timeout=LIMIT).raise_for_status()
        if Registry(self.address).newest(name, None) is None:
            self.call("registered-models/create", name=name)
        source, run_id = f"{run['artifact_uri']}/made", run["run_id"]
        made = self.call("model-versions/create", name=name, source=source, run_id=run_id)
        return str(made["model_version"]["version"])


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The server, with its files in `folder`, as long as the block runs."""
    uv = install.find_uv()
    assert uv is not None
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    path = os.pathsep.join([str(uv.parent), os.environ["PATH"]])
    environment = {**kept, "PATH": path, "UV_PYTHON": sys.executable, "MLFLOW_DISABLE_TELEMETRY": "true"}
    if not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & environment.keys() and (index := install.pips_index()):
        environment["UV_DEFAULT_INDEX"] = index
    server = Server(folder, port, environment)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            # One worker: the other three serve nobody here.
            ["bash", "-ec", f"exec {server.said(SERVE).strip()} --workers 1"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:

            def answers() -> bool:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                try:
                    return requests.get(f"{server.address}/health", timeout=5).ok
                except requests.RequestException:
                    return False

            until(answers, lambda: (folder / "log").read_text()[-2000:])
            yield server
        finally:
            os.killpg(process.pid, 15)
            process.wait()
