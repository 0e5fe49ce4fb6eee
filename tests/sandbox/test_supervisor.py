from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.patience import LIMIT, until

from sandbox import process, programs
from sandbox.ports import Ports
from sandbox.process import processes
from sandbox.s3 import ModelStore

pytestmark = pytest.mark.stack

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(programs.REPOSITORY / "include")}


@pytest.fixture
def sandbox(state: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    def run(command: str, *options: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "sandbox", command, "--state", str(state), *options]
        return subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True)

    yield run
    assert run("down").returncode == 0
    assert list(process.short_folder(state).iterdir()) == []


def status(sandbox: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sandbox("status", "--json").stdout)
    return found


def predict(front_door: str, host: str) -> tuple[int, str | None, Any]:
    request = urllib.request.Request(
        f"{front_door}/v1/models/digits:predict",
        data=json.dumps({"instances": [{"data": "x"}]}).encode(),
        headers={"Host": host, "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=LIMIT) as answer:
            return answer.status, answer.headers["x-revision"], json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.headers["x-revision"], None


def manifest(uri: str) -> str:
    return json.dumps(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "digits", "namespace": "models"},
            "spec": {"predictor": {"model": {"modelFormat": {"name": "pytorch"}, "storageUri": uri}}},
        }
    )


def test_from_up_to_down(sandbox: Any, state: Path, publish: Callable[..., str]) -> None:
    up = sandbox("up")
    assert up.returncode == 0, up.stderr
    assert all(f"{part} " in up.stdout for part in ("envoy", "prometheus", "s3", "kubernetes"))
    assert "runs already" in sandbox("up").stdout
    found = status(sandbox)
    assert found["ready"]

    # A model goes live by kubectl and answers at the front door.
    store = ModelStore(state, Ports(state / "ports.json"))
    assert [bucket["Name"] for bucket in store.client().list_buckets()["Buckets"]] == ["models"]
    uri = publish(store.client(), "v1")

    def kubectl(*arguments: str, given: str | None = None) -> str:
        argv = [str(programs.kubectl()), f"--kubeconfig={state}/kubeconfig.yaml", "-n", "models", *arguments]
        done = subprocess.run(argv, input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    kubectl("apply", "-f", "-", given=manifest(uri))
    kubectl("wait", "--for=condition=Ready", "isvc/digits", f"--timeout={LIMIT:.0f}s")
    front_door = found["parts"]["envoy"]["url"]
    answer = (200, "digits-predictor-00001", {"predictions": [{"got": "x"}]})
    assert predict(front_door, "digits.models.localhost") == answer

    # Load starts, changes and ends without a restart of anything.
    assert sandbox("load", "--service", "models/digits", "--rate", "60").returncode == 0
    until(lambda: status(sandbox)["load"]["answers"].get("digits-predictor-00001", {}).get("200", 0) > 60)
    assert sandbox("load", "--rate", "10").returncode == 0
    until(lambda: status(sandbox)["load"]["rate"] == 10)
    assert sandbox("load", "--end").returncode == 0
    until(lambda: not status(sandbox)["parts"]["load"]["running"])

    # A part can be stopped for a fault test, and comes back; one that dies comes back by itself.
    assert sandbox("stop", "prometheus").returncode == 0
    assert not status(sandbox)["parts"]["prometheus"]["running"]
    assert sandbox("start", "prometheus").returncode == 0
    psutil.Process(status(sandbox)["parts"]["envoy"]["pid"]).kill()
    until(lambda: status(sandbox)["parts"]["envoy"]["pid"] not in (None, found["parts"]["envoy"]["pid"]))
    until(lambda: predict(front_door, "digits.models.localhost") == answer)

    # Nothing listens but on loopback.
    ours = [*processes(state), psutil.Process(status(sandbox)["pid"])]
    listening = [one for each in ours for one in each.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    assert len(listening) > 8
    assert {one.laddr.ip.removeprefix("::ffff:") for one in listening} == {"127.0.0.1"}

    # A killed revision is unreachable at once.
    assert sandbox("kill", "models/digits-predictor-00001").returncode == 0
    until(lambda: predict(front_door, "digits.models.localhost")[0] == 503)

    # Down, nothing left; up again, everything is where it was.
    connections = (state / "connections.json").read_text()
    assert (state / "connections.json").stat().st_mode & 0o777 == 0o600
    assert sandbox("down").returncode == 0
    assert processes(state) == []
    assert not psutil.pid_exists(found["pid"])
    assert sandbox("up").returncode == 0
    assert (state / "connections.json").read_text() == connections
    until(lambda: predict(front_door, "digits.models.localhost") == answer)

    # A killed supervisor leaves nothing that `down` does not end.
    supervisor = psutil.Process(status(sandbox)["pid"])
    supervisor.send_signal(signal.SIGKILL)
    until(lambda: not supervisor.is_running() or supervisor.status() == psutil.STATUS_ZOMBIE)
    assert status(sandbox) == {"ready": False, "parts": {}}
    assert sandbox("down").returncode == 0
    assert processes(state) == []


def test_a_port_that_is_taken_is_one_line(sandbox: Any, state: Path) -> None:
    # What a killed supervisor wrote down must not count.
    (state / "status.json").write_text('{"ready": true, "pid": 1, "parts": {}}')
    port = Ports(state / "ports.json").of("prometheus")
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        up = sandbox("up")
    assert up.returncode == 1
    assert up.stderr.count("\n") == 1
    assert up.stderr.startswith(f"sandbox: port {port}, kept for prometheus, is taken by ")
    assert processes(state) == []


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["load", "--service", "models/digits"], "no sandbox runs in "),
        (["stop", "s3"], "no sandbox runs in "),
        (["kill", "models/r-00001"], "no process of revision models/r-00001"),
        (["logs", "nothing"], "no log of nothing"),
    ],
)
def test_commands_without_a_sandbox_are_one_line(sandbox: Any, command: list[str], line: str) -> None:
    done = sandbox(*command)
    assert done.returncode == 1
    assert done.stderr.startswith(f"sandbox: {line}")
    assert done.stderr.count("\n") == 1
